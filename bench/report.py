"""What is shown and kept: a table, a CSV of each kind with the machine in its first lines, and the plots."""
import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.measure import PASSES, Result, Skip
from bench.plots import label, plot_rates, plot_sweep, plot_times, rated_yardsticks
from bench.roofline import Bound, Rate
from bench.sweep import Point

__all__ = ["plot_rates", "plot_times", "read", "table", "write"]
Row = TypeVar("Row", Result, Skip, Point, Rate, Bound)
# Each kind of line has a file of its own; sweeps have one for each thing that is varied.
FILES: dict[type, str] = {Result: "bench.csv", Skip: "skipped.csv", Rate: "machine.csv", Bound: "bounds.csv"}


def _number(value: float, digits: str = ".2f", end: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{digits}}{end}"


def table(results: list[Result]) -> str:
    """One line per contestant: times with ratios to ours at the base rate, memory."""
    head = ["", "contestant", "spikes", "forward ms", "", "fwd+bwd ms", "", "saved B/neuron-step", "beyond output",
            "peak MiB"]
    lines = [head]
    for forward in (r for r in results if r.timed == PASSES[0]):
        both = _partner(results, forward)
        lines.append([forward.yardstick, label(forward), _number(forward.rate_measured, ".2f", " %"),
                      f"{forward.median_ms:.2f}", f"{forward.ratio_to_ours:.2f}x",
                      f"{both.median_ms:.2f}", f"{both.ratio_to_ours:.2f}x",
                      _number(both.saved_bytes), _number(both.saved_beyond_output), _number(both.peak_mib, ".0f")])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = ["  ".join(cell.ljust(w) if k < 2 else cell.rjust(w)
                      for k, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def _partner(results: list[Result], forward: Result) -> Result:
    same = (forward.yardstick, label(forward), PASSES[1])
    return next(r for r in results if (r.yardstick, label(r), r.timed) == same)


def write(out: Path, facts: dict[str, str], results: Sequence[Result], skipped: Sequence[Skip] = (),
          measured: Sequence[Rate] = (), limits: Sequence[Bound] = (), points: Sequence[Point] = ()) -> list[Path]:
    """Write the CSVs and the plots into the folder; the files that were written.

    With results come all files of their run, the empty ones too: none of an earlier run may stay beside them.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    if results:
        kinds = zip(FILES.items(), (results, skipped, measured, limits), strict=True)
        paths = [_write_csv(out / name, facts, kind, rows) for (kind, name), rows in kinds]
    sweeps: dict[str, list[Point]] = {}
    for point in points:
        sweeps.setdefault(point.sweep, []).append(point)
    paths += [_write_csv(out / f"sweep_{name}.csv", facts, Point, rows) for name, rows in sweeps.items()]
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed")
        return paths
    matplotlib.use("Agg")
    threads = "one thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
    caption = f"{facts['processor']}, {threads}, torch {facts['torch']}"
    if results:
        paths.append(plot_times(list(results), caption, out / "times.png"))
    if rated_yardsticks(results):
        paths.append(plot_rates(list(results), caption, out / "rates.png"))
    return paths + [plot_sweep(rows, caption, out / f"sweep_{name}.png") for name, rows in sweeps.items()]


def _write_csv(path: Path, facts: dict[str, str], kind: type, rows: Sequence[Any]) -> Path:
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    return path


def read(kind: type[Row], path: Path) -> tuple[dict[str, str], list[Row]]:
    """The facts and the lines of a CSV that was written here; nothing where there is no such file."""
    if not path.exists():
        return {}, []
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    convert: dict[str, Callable[[str], Any]] = {"float": float, "int": int, "str": str, "bool": "True".__eq__}
    types = {field.name: convert[getattr(field.type, "__name__", str(field.type))] for field in fields(kind)}
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return facts, [kind(**{name: types[name](value) for name, value in row.items()}) for row in rows]
