"""What is kept of a run: a CSV with one row per measurement, a summary in Markdown, and plots."""
import csv
import datetime
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.contestants import OURS
from bench.gpu.card import Card
from bench.gpu.steps import Outcome
from bench.measure import PASSES, Result
from bench.report import plot_rates, plot_times

COLUMNS = ("group", "what", "pass", "shape", "design", "plan", "dtype", "rate_percent", "ms", "q1_ms", "q3_ms", "ratio",
           "value", "unit", "peak_mib", "saved_bytes", "rounds", "card", "driver", "sm_mhz", "power_w", "torch", "cuda",
           "date", "command")
BARS = ("layers", "loops", "compiled")  # groups whose rows stand beside each other in the plot of times


@dataclass
class Report:
    """All that is known so far."""

    card: Card
    command: str
    date: str
    outcomes: list[Outcome]
    layers: list[dict[str, Any]]  # as layers.py wrote them
    notes: list[str]
    primitives: list[dict[str, str]]  # primitive, parameter, value, unit

    @classmethod
    def of(cls, card: Card, command: str, outcomes: list[Outcome], rows: Path, primitives: Path) -> "Report":
        """Reads what the steps have written; a file that is missing or was cut off gives what there is."""
        layers: list[dict[str, Any]] = []
        for line in rows.read_text().splitlines() if rows.exists() else []:
            try:
                layers.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a process that was stopped
                continue
        read: list[dict[str, str]] = []
        if primitives.exists():
            with primitives.open(newline="") as file:
                read = [row for row in csv.DictReader(file) if all(row.values())]
        return cls(card, command, datetime.date.today().isoformat(), list(outcomes),
                   [row for row in layers if "note" not in row], [row["note"] for row in layers if "note" in row], read)


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """One row per measurement; what does not apply is empty."""
    card = report.card
    same = {"card": card.name, "driver": card.driver, "torch": card.torch, "cuda": card.cuda, "date": report.date,
            "command": report.command}
    rows = [{"group": row["group"], "what": row["contestant"], "pass": row["timed"], "shape": _shape(row),
             "design": row["design"], "plan": row["plan"], "dtype": row["dtype"], "rate_percent": row["rate_measured"],
             "ms": row["median_ms"], "q1_ms": row["q1_ms"], "q3_ms": row["q3_ms"], "ratio": row["ratio_to_ours"],
             "peak_mib": row["peak_mib"], "saved_bytes": row["saved_bytes"], "rounds": row["repeats"],
             "sm_mhz": row["sm_mhz"], "power_w": row["power_w"], **same} for row in report.layers]
    rows += [{"group": "primitives", "what": row["primitive"], "shape": row["parameter"], "value": float(row["value"]),
              "unit": row["unit"], **same} for row in report.primitives]
    return [{name: _cell(row.get(name, "")) for name in COLUMNS} for row in rows]


def _shape(row: dict[str, Any]) -> str:
    return " ".join(f"{letter}={row[letter]}" for letter in "TBIN")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def write(report: Report, out: Path) -> list[Path]:
    """The CSV, where anything was measured, and the summary; the files that were written."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    rows = csv_rows(report)
    if rows:
        paths.append(out / f"{report.card.slug}.csv")
        with paths[0].open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    paths.append(out / f"{report.card.slug}.md")
    paths[-1].write_text(markdown(report) + "\n")
    return paths


def plots(report: Report, out: Path) -> list[Path]:
    """The plots of the CPU benchmark, of these numbers; a line instead where they cannot be drawn."""
    bars, rates = results(report, BARS), results(report, ("rates",))
    if not bars and not rates:
        print("no plots: no layer was timed")
        return []
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed")
        return []
    matplotlib.use("Agg")
    caption = f"{report.card.name}, torch {report.card.torch}, driver {report.card.driver or 'unknown'}, {report.date}"
    paths = []
    try:
        if bars:
            paths.append(plot_times(bars, caption, out / f"{report.card.slug}-times.png"))
        if rates:
            paths.append(plot_rates(rates, caption, out / f"{report.card.slug}-rates.png"))
    except Exception as reason:  # a picture is not worth the numbers
        print(f"no plots: {type(reason).__name__}: {reason}")
    return paths


def results(report: Report, kinds: tuple[str, ...]) -> list[Result]:
    """Rows of these groups as the CPU benchmark knows them; ours at 2 %, which every group times, once."""
    found: dict[tuple[str, str, float, str], Result] = {}
    for row in report.layers:
        if row["group"] in kinds:
            values = {field.name: row[field.name] for field in fields(Result)}
            if row["dtype"] != "float32" and row["contestant"] != OURS or row["dtype"] == "float16":
                values["contestant"] += f" {row['dtype']}"
            rate = row["rate_asked"] if values["contestant"] == OURS else 0.0
            found.setdefault((row["yardstick"], values["contestant"], rate, row["timed"]), Result(**values))
    return list(found.values())


# ------------------------------------------------------------------------------------------------------------- summary
def markdown(report: Report) -> str:
    """Steps, tables of the groups, primitives, and what is missing."""
    card = report.card
    parts = [
        f"# {card.name}",
        f"Compute capability {card.capability[0]}.{card.capability[1]}, {card.multiprocessors} multiprocessors, driver "
        f"{card.driver or 'unknown'}, torch {card.torch}, CUDA {card.cuda}; `{report.command}`, {report.date}.",
        "## Steps",
        _table(["step", "result", "s", "note"],
               [[o.name, o.state, f"{o.seconds:.0f}", o.note.replace("|", "/")] for o in report.outcomes]),
    ]
    kinds = list(dict.fromkeys(row["group"] for row in report.layers))
    if kinds:
        parts.append("Medians in ms of a whole sequence, input projection included, through the public module with "
                     "autograd. The contestants of one table alternate; ratios are to ours in its first line.")
    for kind in kinds:
        for name in dict.fromkeys(row["yardstick"] for row in report.layers if row["group"] == kind):
            parts += _layers(kind, [r for r in report.layers if r["group"] == kind and r["yardstick"] == name])
    if report.primitives:
        parts += ["## Primitives", _table(["primitive", "parameter", "value", "unit"],
                                          [[*row.values()] for row in report.primitives])]
    if report.notes:
        parts += ["## Left out", "\n".join(f"* {note}" for note in report.notes)]
    if not report.layers and not report.primitives:
        parts.append("Nothing was measured.")
    return "\n\n".join(parts)


def _layers(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    clocks = [row["sm_mhz"] for row in rows if not math.isnan(row["sm_mhz"])]
    title = f"## {kind}: {_shape(rows[0])}" + (f", {clocks[0]:.0f} MHz" if clocks else "")
    lines = []
    for row in (r for r in rows if r["timed"] == PASSES[0]):
        same = ("contestant", "design", "dtype", "rate_asked")
        both = next(r for r in rows if r["timed"] == PASSES[1] and all(_cell(r[k]) == _cell(row[k]) for k in same))
        lines.append([
            row["contestant"], row["dtype"], _number(row["rate_measured"], ".2f"), row["design"] or row["plan"],
            f"{row['median_ms']:.3g}", f"{row['ratio_to_ours']:.2f}", f"{both['median_ms']:.3g}",
            f"{both['ratio_to_ours']:.2f}", _number(row["saved_bytes"], ".2f"), _number(both["peak_mib"], ".0f")])
    return [title, _table(["", "dtype", "spikes %", "design", "forward", "ratio", "fwd+bwd", "ratio",
                           "saved B/neuron-step", "peak MiB"], lines)]


def _number(value: float, digits: str) -> str:
    return "" if math.isnan(value) else f"{value:{digits}}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])
