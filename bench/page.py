"""Files of a run: CSVs that begin with facts about the machine, plots, and a page, which follows
from the CSVs.

    python -m bench.page bench/results/layer/amd-epyc-2-cores     makes the page again
"""
import importlib.util
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import page_alike, peers, roofline
from bench.arguments import make_parser
from bench.contestants import OURS
from bench.like_for_like import WAY, Alike
from bench.limits import Skip
from bench.measure import PASSES, Result
from bench.plots import label, plot_rates, plot_sweep, plot_times, rated_yardsticks
from bench.roofline import Rate
from bench.sweep import KINDS, Point, slope_text
from bench.tables import left_out, markdown, number, read_csv, summarize, write_csv


@dataclass
class Run:
    """What a run has measured."""

    results: list[Result] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    alike: list[Alike] = field(default_factory=list)
    alike_skipped: list[Skip] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    @property
    def sweeps(self) -> dict[str, list[Point]]:
        """The points by what is varied."""
        found = {name: [p for p in self.points if p.sweep == name] for name in KINDS}
        return {name: points for name, points in found.items() if points}


# By field of Run the kind of its lines and their file; sweeps have a file each.
FILES: dict[str, tuple[type, str]] = {
    "results": (Result, "bench.csv"), "skipped": (Skip, "skipped.csv"),
    "rates": (Rate, "machine.csv"), "alike": (Alike, "like_for_like.csv"),
    "alike_skipped": (Skip, "like_for_like_skipped.csv")}
WHO = {
    "jax scan, jit": "the same equations under `jax.lax.scan`, jitted",
    "compiled step": "the same equations, `torch.compile` of one step in a Python loop",
    "eager loop": "the same equations, a Python loop",
    "nn.LSTM": "no spikes: what PyTorch has compiled for a layer of this size",
    **{name: summarize(layer).rstrip(".")
       + (f"; {peers.INDEXED}" if name in peers.WITH_INDEX else "")
       for name, layer in peers.LAYERS.items()},
}


# -------------------------------------------------------------------------------------------- files
def write(out: Path, facts: dict[str, str], run: Run) -> list[Path]:
    """Writes CSVs, plots and page into the folder. Returns their paths.

    Results, skipped and rates are written together, empty ones too, since files of an earlier run
    must not stay. So are the two files of like for like.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = ["results", "skipped", "rates"] if run.results else []
    names += ["alike", "alike_skipped"] if run.alike else []
    paths = [write_csv(out / file, facts, kind, getattr(run, name))
             for name, (kind, file) in FILES.items() if name in names]
    paths += [write_csv(out / f"sweep_{name}.csv", facts, Point, points)
              for name, points in run.sweeps.items()]
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
    else:
        threads = "one thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
        caption = f"{facts['processor']}, {threads}, torch {facts['torch']}"
        if run.results:
            paths.append(plot_times(run.results, caption, out / "times.png"))
        if rated_yardsticks(run.results):
            paths.append(plot_rates(run.results, caption, out / "rates.png"))
        paths += [plot_sweep(points, caption, out / f"sweep_{name}.png")
                  for name, points in run.sweeps.items()]
    return [*paths, write_page(out)]


# --------------------------------------------------------------------------------------------- page
def write_page(folder: Path) -> Path:
    """Writes README.md from the CSVs in the folder."""
    found = {name: read_csv(kind, folder / file) for name, (kind, file) in FILES.items()}
    swept = {name: read_csv(Point, folder / f"sweep_{name}.csv") for name in KINDS}
    run = Run(**{name: rows for name, (_, rows) in found.items()},
              points=[p for _, points in swept.values() for p in points])
    run.alike = [line for line in run.alike if line.way == WAY]  # not those of earlier versions
    about = {name: facts for name, (facts, _) in {**found, **swept}.items() if facts}
    if not run.results and not run.points and not run.alike:
        raise FileNotFoundError(f"folder: expected bench.csv, like_for_like.csv or sweep_*.csv of "
                                f"a run, got none in {folder}")
    facts = next(iter(about.values()))
    cores = "one core" if facts["cores"] == "1" else f"{facts['cores']} cores"
    parts = [f"# One recurrent layer on {facts['processor']}, {cores}", machine_table(facts)]
    if run.alike:
        parts += [page_alike.section(run.alike, run.alike_skipped),
                  _other_run(about["alike"], facts)]
    if run.results:
        parts += [times(run.results, run.skipped), *_pictures(run.results, folder),
                  _memory(run.results, run.skipped)]
    bases = [r for r in run.results if r.base and r.timed == PASSES[1]]
    if bases and run.rates:
        parts.append(_limits(run.rates, bases))
    if run.points:
        parts.append(_sweeps(run.sweeps, about, facts, folder))
    path = folder / "README.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def machine_table(facts: dict[str, str]) -> str:
    """The command, and a table of the other facts."""
    shown = {name: value.split("; rows:")[0].replace("|", "/") for name, value in facts.items()
             if name != "command"}
    text = markdown(["", ""], list(shown.items())).replace("---:", "---", 1)
    return f"Measured by\n\n```sh\n{facts.get('command', 'python -m bench')}\n```\n\n{text}"


def _title(r: Result) -> str:
    inputs = "" if math.isnan(r.input_rate) else f"; {r.input_rate:g} % of the inputs are spikes"
    name = "" if "," in r.yardstick else f"{r.yardstick}: "
    return name + r.shape.describe() + inputs


def times(results: Sequence[Result], skipped: Sequence[Skip] = ()) -> str:
    """A table for each yardstick, and the contestants that did not run there."""
    parts = ["## Time of the paper's network beside other packages' layers", f"""\
The neurons of these tables are not alike: they show what a layer of each package costs as it is. A
whole sequence through one layer, input projection included, float32. All contestants of a yardstick
alternate in one run; times are medians with quartiles in ms, and "times ours" is the contestant's
median by the median of {OURS} at the firing rate printed in bold, in the same run."""]
    for name in dict.fromkeys(r.yardstick for r in results):
        lines = [r for r in results if r.yardstick == name]
        both = {label(r): r for r in lines if r.timed == PASSES[1]}
        rows = []
        for r in (r for r in lines if r.timed == PASSES[0]):
            bold = "**" if r.base else ""
            cells = [f"{bold}{label(r)}{bold}", number(r.rate_measured)]
            for one in (r, both[label(r)]):
                spread = f" ({number(one.q1_ms)} to {number(one.q3_ms)})"
                quartiles = spread if one.repeats > 1 else ""
                cells += [number(one.median_ms) + quartiles, number(one.ratio_to_ours)]
            rows.append([*cells, str(r.repeats)])
        parts += [f"### {_title(lines[0])}", markdown(["", "spikes %", "forward", "times ours",
                                                       "both passes", "times ours", "rounds"],
                                                      rows), *left_out(skipped, name)]
    return "\n\n".join(parts)


def _pictures(results: list[Result], folder: Path) -> list[str]:
    seen = {r.contestant for r in results}
    who = [f"* {name}: {text}" for name, text in WHO.items() if name in seen]
    parts = ["Who they are:\n\n" + "\n".join(who)] if who else []
    if (folder / "times.png").exists():
        parts.append(
            "![Time of forward, and of forward and backward pass, beside the peers](times.png)")
    if rated_yardsticks(results) and (folder / "rates.png").exists():
        parts.append("![Time at several firing rates](rates.png)")
    return parts


def _memory(results: list[Result], skipped: list[Skip]) -> str:
    lines = [r for r in results if r.timed == PASSES[1] and (r.base or r.contestant != OURS)]
    if all(math.isnan(r.saved_bytes) for r in lines):
        return ""
    names = list(dict.fromkeys(r.yardstick for r in lines if not math.isnan(r.peak_mib)))
    ours = {r.yardstick: r.peak_mib for r in lines if r.contestant == OURS}
    cells = {(r.contestant, r.yardstick): f"{number(r.peak_mib)} "
             f"({number(r.peak_mib / ours[r.yardstick])})" for r in lines if r.peak_mib > 0
             and ours[r.yardstick] > 0}
    without = [s for s in skipped if "GB" in s.reason]
    cells |= {(s.contestant, s.yardstick): s.reason.removeprefix("not run: ") for s in without}
    saved = {r.contestant: r.saved_beyond_output for r in reversed(lines)}  # on the first yardstick
    who = dict.fromkeys([*(r.contestant for r in lines), *(s.contestant for s in without)])
    rows = [[name, number(saved.get(name, math.nan)),
             *(cells.get((name, yardstick), "-") for yardstick in names)] for name in who]
    return "\n\n".join(["## Memory", f"""\
The most resident memory of one forward + backward pass in a fresh process, in MiB above what stood
there before (inputs, weights, the gradient from outside); in brackets, times {OURS} at the firing
rate of the ratios. Saved: bytes per neuron-step that are kept for the backward pass beyond inputs,
weights and outputs, on the first yardstick.""",
                        markdown(["", "saved", *names], rows)])


def _limits(rates: list[Rate], bases: list[Result]) -> str:
    measured = markdown(["", "", "", "by"],
                        [(r.what, number(r.value), r.unit, r.how) for r in rates])
    head = ["", "product Gflop", "active %", "read MB", "written MB", "dense ms", "active ms",
            "bytes ms", "events ms", f"{OURS} ms", "by the dense bound", "by the active bound"]
    rows = []
    for ours in bases:
        bound = roofline.bound(ours, rates)
        values = (*asdict(bound).values(), bound.ours_by_dense, bound.ours_by_active)
        rows.append([ours.yardstick, *map(number, values)])
    about = inspect.cleandoc(roofline.__doc__ or "")
    return "\n\n".join(["## Limits of this machine", about, measured, markdown(head, rows), """\
The dense bound is the larger of "dense" and "bytes", the active bound the larger of "active" and
"bytes"; times are for the threads of this run. A quotient of 1 would be the limit. Below 1 against
the dense bound, leaving out rows has saved more than all else costs."""])


def _sweeps(sweeps: dict[str, list[Point]], about: dict[str, dict[str, str]],
            facts: dict[str, str], folder: Path) -> str:
    parts = ["## What the cost grows with", f"""\
{OURS} alone, at 2 % spikes where the firing rate is not what varies. Slopes are fitted: on
logarithmic axes the exponent over the larger half of the values, else ms per percent over all. The
share of neuron-steps whose surrogate is not 0 is varied by its width, which leaves the spikes as
they are."""]
    rows = [[f"[{name}](sweep_{name}.csv)", *(slope_text(points, timed) for timed in PASSES)]
            for name, points in sweeps.items()]
    parts.append(markdown(["varied", *PASSES], rows))
    for name in sweeps:
        if (folder / f"sweep_{name}.png").exists():
            parts.append(f"![Time against {KINDS[name].title}](sweep_{name}.png)")
        parts.append(_other_run(about[name], facts))
    return "\n\n".join(part for part in parts if part)


def _other_run(about: dict[str, str], facts: dict[str, str]) -> str:
    if about.get("command") == facts.get("command") and about.get("date") == facts.get("date"):
        return ""
    return f"Measured in another run, on {about.get('date')}, by `{about.get('command')}`."


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("bench.page", __doc__)
    parser.add_argument("folder", type=Path, help="with the CSVs of a run")
    given = parser.parse_args(arguments)
    try:
        print(f"wrote {write_page(given.folder)}")
    except FileNotFoundError as wrong:
        parser.error(str(wrong))


if __name__ == "__main__":
    main()
