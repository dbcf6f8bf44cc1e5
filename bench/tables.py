"""Tables: CSV files that begin with facts about the run, and Markdown."""
import csv
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.limits import Skip

Row = TypeVar("Row")
MEASUREMENTS = "primitive", "parameter", "value", "unit"  # columns of the programs of bench/gpu


def write_table(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]],
                facts: Mapping[str, str] = {}) -> Path:
    """Writes facts as comments, the head, and the rows with six digits of each number."""
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row]
                         for row in rows)
    return path


def write_csv(path: Path, facts: Mapping[str, str], kind: type, rows: Iterable[Any]) -> Path:
    """Writes dataclasses of a kind, a column for each field."""
    return write_table(path, [field.name for field in fields(kind)], map(astuple, rows), facts)


def read_csv(kind: type[Row], path: Path) -> tuple[dict[str, str], list[Row]]:
    """The facts and rows of write_csv; nothing where there is no such file."""
    if not path.exists():
        return {}, []
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    convert: dict[Any, Callable[[str], Any]] = {
        float: float, int: int, str: str, bool: "True".__eq__}
    types = {field.name: convert[field.type] for field in fields(kind)}  # type: ignore[arg-type]
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return facts, [
        kind(**{name: types[name](value) for name, value in row.items()}) for row in rows]


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


def left_out(skipped: Iterable[Skip], yardstick: str) -> list[str]:
    """A list of the contestants that did not run on a yardstick, with the reasons; or nothing."""
    reasons = [f"* {one.contestant}: {one.reason}" for one in skipped if one.yardstick == yardstick]
    return ["Left out:\n\n" + "\n".join(reasons)] if reasons else []


def summarize(documented: Any) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
