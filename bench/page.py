"""The page of a run: one README.md with tables and plots, made from the CSVs of its folder alone.

    python -m bench.page bench/results/amd-epyc-2-cores     makes the page again
"""
import argparse
import inspect
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import peers, roofline
from bench.contestants import OURS
from bench.measure import PASSES, Result, Skip
from bench.plots import label, rated_yardsticks
from bench.report import FILES, read
from bench.roofline import Bound, Rate
from bench.sweep import KINDS, Point, slope_text

WHO = {
    "jax scan, jit": "the same equations under `jax.lax.scan`, jitted",
    "compiled step": "the same equations, `torch.compile` of one step in a Python loop",
    "eager loop": "the same equations, a Python loop",
    "nn.LSTM": "no spikes: what PyTorch has compiled for a layer of this size",
    **{name: (inspect.getdoc(layer) or "").split("\n")[0].rstrip(".")
       + (f"; {peers.INDEXED}" if name in peers.WITH_INDEX else "") for name, layer in peers.LAYERS.items()},
}


def write_page(folder: Path) -> Path:
    """Write README.md beside the CSVs."""
    facts, results = read(Result, folder / FILES[Result])
    _, skipped = read(Skip, folder / FILES[Skip])
    _, measured = read(Rate, folder / FILES[Rate])
    _, bounds = read(Bound, folder / FILES[Bound])
    sweeps = {name: read(Point, folder / f"sweep_{name}.csv") for name in KINDS}
    sweeps = {name: (about, points) for name, (about, points) in sweeps.items() if points}
    if not results and not sweeps:
        raise FileNotFoundError(f"folder: expected {FILES[Result]} or sweep_*.csv of a run, got none in {folder}")
    facts = facts or next(iter(sweeps.values()))[0]
    cores = "one core" if facts["cores"] == "1" else f"{facts['cores']} cores"
    parts = [f"# One recurrent layer on {facts['processor']}, {cores}", _machine(facts)]
    if results:
        parts += [_times(results, skipped, folder), _memory(results, skipped)]
    if bounds:
        parts.append(_limits(measured, bounds))
    if sweeps:
        parts.append(_sweeps(sweeps, facts, folder))
    path = folder / "README.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def number(value: float) -> str:
    """Three digits, never an exponent; a dash where there is none."""
    if math.isnan(value):
        return "-"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 4)}f}"


def _machine(facts: dict[str, str]) -> str:
    shown = {name: value.split("; rows:")[0].replace("|", "/") for name, value in facts.items() if name != "command"}
    text = markdown(["", ""], list(shown.items())).replace("---:", "---", 1)
    return f"Measured by\n\n```sh\n{facts.get('command', 'python -m bench')}\n```\n\n{text}"


def _title(r: Result) -> str:
    shape = f"{r.T} steps, batch {r.B}, {r.I} inputs, {r.N} neurons"
    inputs = "" if math.isnan(r.input_rate) else f"; {r.input_rate:g} % of the inputs are spikes"
    return shape + inputs if "," in r.yardstick else f"{r.yardstick}: {shape}{inputs}"


def _times(results: list[Result], skipped: list[Skip], folder: Path) -> str:
    parts = ["## Time", f"""\
A whole sequence through one layer, input projection included, float32. All contestants of a yardstick alternate in one
run; times are medians with quartiles in ms, and \"times ours\" is the contestant's median by the median of {OURS} at
the firing rate printed in bold, in the same run."""]
    for name in dict.fromkeys(r.yardstick for r in results):
        lines = [r for r in results if r.yardstick == name]
        both = {label(r): r for r in lines if r.timed == PASSES[1]}
        rows = []
        for r in (r for r in lines if r.timed == PASSES[0]):
            bold = "**" if r.base else ""
            cells = [f"{bold}{label(r)}{bold}", number(r.rate_measured)]
            for one in (r, both[label(r)]):
                quartiles = f" ({number(one.q1_ms)} to {number(one.q3_ms)})" if one.repeats > 1 else ""
                cells += [number(one.median_ms) + quartiles, number(one.ratio_to_ours)]
            rows.append([*cells, str(r.repeats)])
        parts += [f"### {_title(lines[0])}",
                  markdown(["", "spikes %", "forward", "times ours", "both passes", "times ours", "rounds"], rows)]
        parts += _reasons(s for s in skipped if s.yardstick == name)
    seen = {r.contestant for r in results}
    if who := [f"* {name}: {text}" for name, text in WHO.items() if name in seen]:
        parts.append("Who they are:\n\n" + "\n".join(who))
    if (folder / "times.png").exists():
        parts.append("![Time of forward, and of forward and backward pass, beside the peers](times.png)")
    if rated_yardsticks(results) and (folder / "rates.png").exists():
        parts.append("![Time at several firing rates](rates.png)")
    return "\n\n".join(parts)


def _reasons(skipped: Iterable[Skip]) -> list[str]:
    lines = [f"* {s.contestant}: {s.reason}" for s in skipped]
    return ["Left out:\n\n" + "\n".join(lines)] if lines else []


def _memory(results: list[Result], skipped: list[Skip]) -> str:
    lines = [r for r in results if r.timed == PASSES[1] and (r.base or r.contestant != OURS)]
    if all(math.isnan(r.saved_bytes) for r in lines):
        return ""
    names = list(dict.fromkeys(r.yardstick for r in lines if not math.isnan(r.peak_mib)))
    cell = {(r.contestant, r.yardstick): number(r.peak_mib) for r in lines}
    cell |= {(s.contestant, s.yardstick): s.reason.removeprefix("not run: ") for s in skipped if "GB" in s.reason}
    ours = {r.yardstick: r.peak_mib for r in lines if r.contestant == OURS}
    ratio = {(r.contestant, r.yardstick): r.peak_mib / ours[r.yardstick] for r in lines if ours[r.yardstick] > 0}
    saved: dict[str, float] = {}
    for r in lines:
        saved.setdefault(r.contestant, r.saved_beyond_output)
    rows = []
    for who in dict.fromkeys([*saved, *(s.contestant for s in skipped if "GB" in s.reason)]):
        cells = [who, number(saved.get(who, math.nan))]
        for name in names:
            times = ratio.get((who, name), math.nan)
            cells.append(cell.get((who, name), "-") + ("" if math.isnan(times) else f" ({number(times)})"))
        rows.append(cells)
    return "\n\n".join(["## Memory", f"""\
The most resident memory of one forward + backward pass in a fresh process, in MiB above what stood there before
(inputs, weights, the gradient from outside); in brackets, times {OURS} at the firing rate of the ratios. Saved: bytes
per neuron-step that are kept for the backward pass beyond inputs, weights and outputs, on the first yardstick.""",
                        markdown(["", "saved", *names], rows)])


def _limits(measured: list[Rate], bounds: list[Bound]) -> str:
    rates = markdown(["", "", "", "by"], [(r.what, number(r.value), r.unit, r.how) for r in measured])
    head = ["", "product Gflop", "active %", "read MB", "written MB", "dense ms", "active ms", "bytes ms", "events ms",
            f"{OURS} ms", "by the dense bound", "by the active bound"]
    rows = [[b.yardstick, *map(number, (b.product_gflop, b.active_share, b.read_mb, b.written_mb, b.dense_ms,
                                        b.active_ms, b.bytes_ms, b.events_ms, b.ours_ms, b.ours_by_dense,
                                        b.ours_by_active))] for b in bounds]
    return "\n\n".join(["## Limits of this machine", inspect.cleandoc(roofline.__doc__ or ""), rates,
                        markdown(head, rows), """\
The dense bound is the larger of \"dense\" and \"bytes\", the active bound the larger of \"active\" and \"bytes\"; times
are for the threads of this run. A quotient of 1 would be the limit. Below 1 against the dense bound, leaving out rows
has saved more than all else costs."""])


def _sweeps(sweeps: dict[str, tuple[dict[str, str], list[Point]]], facts: dict[str, str], folder: Path) -> str:
    parts = ["## What the cost grows with", f"""\
{OURS} alone, at 2 % spikes where the firing rate is not what varies. Slopes are fitted: on logarithmic axes the
exponent over the larger half of the values, else ms per percent over all. The share of neuron-steps whose
pseudo-derivative is not 0 is varied by its width, which leaves the spikes as they are."""]
    rows = [[f"[{name}](sweep_{name}.csv)", *(slope_text(points, timed) for timed in PASSES)]
            for name, (_, points) in sweeps.items()]
    parts.append(markdown(["varied", *PASSES], rows))
    for name, (about, _) in sweeps.items():
        if (folder / f"sweep_{name}.png").exists():
            parts.append(f"![Time against {KINDS[name].title}](sweep_{name}.png)")
        if about.get("command") != facts.get("command") or about.get("date") != facts.get("date"):
            parts.append(f"Measured in another run, on {about.get('date')}, by `{about.get('command')}`.")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Make the page of a folder again."""
    parser = argparse.ArgumentParser("python -m bench.page", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="with the CSVs of a run")
    given = parser.parse_args(arguments)
    try:
        print(f"wrote {write_page(given.folder)}")
    except FileNotFoundError as wrong:
        parser.error(str(wrong))


if __name__ == "__main__":
    main()
