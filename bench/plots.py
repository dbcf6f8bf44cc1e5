"""Plots: bars of the times of all contestants, time against the firing rate, and one for each
sweep."""
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.contestants import OURS
from bench.measure import PASSES, Result
from bench.sweep import KINDS, Point, slope_text
from bench.tables import number

OURS_COLOUR, PEER_COLOUR, TEXT, FAINT = "#d1495b", "#9fb3c8", "#243b53", "#bcccdc"
PASS_COLOURS = {PASSES[0]: "#edae49", PASSES[1]: OURS_COLOUR}


def label(result: Result) -> str:
    """The name of the contestant, for ours with the firing rate."""
    return f"{OURS} at {result.rate_asked:g} %" if result.contestant == OURS else result.contestant


def rated_yardsticks(results: Iterable[Result]) -> list[str]:
    """The yardsticks on which ours ran at more than one firing rate."""
    seen: dict[str, set[float]] = {}
    for r in (r for r in results if r.contestant == OURS):
        seen.setdefault(r.yardstick, set()).add(r.rate_asked)
    return [name for name, rates in seen.items() if len(rates) > 1]


def _figure(rows: int, columns: int, width: float, height: float, title: str,
            caption: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.10, rect=(0, 0.035, 1, 0.965))
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=15, fontweight="bold", color=TEXT, x=0.012, ha="left")
    figure.text(0.012, 0.012, caption, fontsize=8.5, color="#829ab1")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=TEXT, labelsize=9.5, length=0)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=160, facecolor="white")
    return path


def _shape_text(result: Result) -> str:
    return ("" if "," in result.yardstick else f"{result.yardstick}    ") + str(result.shape)


def plot_times(results: Sequence[Result], caption: str, path: Path) -> Path:
    """Bars of time: ours at the base rate and every peer, labelled with the ratio to ours."""
    shown = [r for r in results if r.base or r.contestant != OURS]
    names = list(dict.fromkeys(r.yardstick for r in shown))
    most = max(sum(r.yardstick == name for r in shown) for name in names) / len(PASSES)
    figure, axes = _figure(len(names), len(PASSES), 12.5, 1.0 + len(names) * (0.75 + 0.36 * most),
                           "Time of one recurrent layer, whole sequence", caption)
    for row, name in zip(axes, names, strict=True):
        for axis, timed in zip(row, PASSES, strict=True):
            bars = sorted((r for r in shown if r.yardstick == name and r.timed == timed),
                          key=lambda r: -r.median_ms)
            _bars(axis, bars)
            axis.set_title(f"{_shape_text(bars[0])}    {timed}", fontsize=10.5, color=TEXT,
                           loc="left", pad=8)
    return _save(figure, path)


def _bars(axis: Any, bars: list[Result]) -> None:
    # A bar of many times the others' would leave nothing of these: it is cut, which its end shows.
    usual = 5 * statistics.median(r.median_ms for r in bars)
    longest = max(max(r.median_ms, r.q3_ms) for r in bars if r.median_ms <= usual)
    axis.set_yticks(range(len(bars)), [label(r) for r in bars])
    for y, (r, tick) in enumerate(zip(bars, axis.get_yticklabels(), strict=True)):
        cut = r.median_ms > usual
        end = 1.1 * longest if cut else max(r.median_ms, r.q3_ms)
        axis.barh(y, end if cut else r.median_ms, color=OURS_COLOUR if r.base else PEER_COLOUR,
                  height=0.66)
        if cut:
            axis.plot(2 * [end - 0.03 * longest], [y - 0.4, y + 0.4], color="white", linewidth=4)
        else:
            axis.plot([r.q1_ms, r.q3_ms], [y, y], color=TEXT, linewidth=1.2, alpha=0.7,
                      solid_capstyle="butt")
        ratio = "" if r.base else f"   {number(r.ratio_to_ours)}×"
        axis.annotate(f"{number(r.median_ms)} ms{ratio}", (end, y), (6, 0),
                      textcoords="offset points", va="center", fontsize=9, color=TEXT,
                      fontweight="bold" if r.base else "normal")
        if r.base:
            tick.set(color=OURS_COLOUR, fontweight="bold")
    axis.set_xlim(0, 1.32 * longest)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)


def plot_rates(results: Sequence[Result], caption: str, path: Path) -> Path:
    """Cost of ours against the firing rate, with the fastest peer as a line to compare with."""
    names = rated_yardsticks(results)
    figure, axes = _figure(1, len(names), max(6.5, 4.6 * len(names)), 4.8,
                           "Cost against the firing rate", caption)
    for axis, name in zip(axes[0], names, strict=True):
        lines = [r for r in results if r.yardstick == name]
        ours = sorted((r for r in lines if r.contestant == OURS), key=lambda r: r.rate_measured)
        for timed in PASSES:
            points = [r for r in ours if r.timed == timed]
            _line(axis, [r.rate_measured for r in points], points, timed, f"{OURS} {timed}")
            peers = [r for r in lines if r.contestant != OURS and r.timed == timed]
            if peers:
                best = min(peers, key=lambda r: r.median_ms)
                axis.axhline(best.median_ms, color=PASS_COLOURS[timed], lw=1.4, ls=(0, (4, 3)))
                axis.annotate(f"{best.contestant}, {timed}", (0.02, best.median_ms), (0, 4),
                              va="bottom", fontsize=8.5, xycoords=("axes fraction", "data"),
                              textcoords="offset points", color=TEXT)
        _logarithmic(axis, {r.rate_asked for r in ours})
        axis.margins(y=0.12)
        axis.set_xlabel("neurons that fire in a step, %", color=TEXT)
        axis.set_title(_shape_text(ours[0]), fontsize=10.5, color=TEXT, loc="left", pad=8)
    axes[0][0].set_ylabel("ms", color=TEXT)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(PASSES), frameon=False,
                  fontsize=9.5, labelcolor=TEXT)
    return _save(figure, path)


def _line(axis: Any, x: list[float], points: Sequence[Result] | Sequence[Point], timed: str,
          name: str) -> None:
    colour = PASS_COLOURS[timed]
    axis.fill_between(x, [p.q1_ms for p in points], [p.q3_ms for p in points], color=colour,
                      alpha=0.2, lw=0)
    axis.plot(x, [p.median_ms for p in points], "o-", color=colour, lw=2.2, ms=5.5, label=name)
    axis.grid(axis="y", color="#e4e9f0", lw=0.8)
    axis.set_axisbelow(True)


def _logarithmic(axis: Any, ticks: Iterable[float]) -> None:
    """Both axes; on y 2 and 5 are labelled between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    def minor(value: float, _: int) -> str:
        return f"{value:g}" if round(value / 10 ** math.floor(math.log10(value))) in (2, 5) else ""

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sorted(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(minor))
    axis.tick_params(axis="y", which="minor", labelsize=8.5, length=0, colors=TEXT)


def plot_sweep(points: Sequence[Point], caption: str, path: Path) -> Path:
    """Time of ours over what was varied, with the fitted slope in the legend."""
    kind, first = KINDS[points[0].sweep], points[0]
    fixed = "  ".join(f"{letter}={getattr(first, letter)}" for letter in "TBIN"
                      if letter != first.sweep)
    figure, axes = _figure(1, 1, 6.8, 5.0, f"Cost against {kind.title}", f"{fixed}    {caption}")
    axis = axes[0][0]
    for timed in PASSES:
        line = sorted((p for p in points if p.timed == timed), key=lambda p: p.x)
        _line(axis, [p.x for p in line], line, timed, f"{timed}:  {slope_text(points, timed)}")
    if kind.log:
        _logarithmic(axis, {p.x for p in points})
    else:
        axis.set_ylim(0, 1.15 * max(p.q3_ms for p in points))
    axis.set_xlabel(kind.label, color=TEXT)
    axis.set_ylabel("ms", color=TEXT)
    axis.legend(frameon=False, fontsize=9.5, labelcolor=TEXT, loc="best")
    return _save(figure, path)
