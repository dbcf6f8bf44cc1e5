"""The costs in the formulas of the plan, next to measurements of a card.

    python -m bench.gpu.costs bench/results/gpu/CARD/CARD-primitives.csv

Prints the numbers of csrc/cuda/costs.h, as compiled, and the measured primitives of `make gpu` that
they stand for. It changes nothing: a measured number is copied into that file by hand, with the
card.
"""
import csv
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.arguments import make_parser
from bench.tables import markdown
from lsnn_ext import _ops

# By cost: the primitive, and a pattern of its parameter; the median of all matches counts.
STAND_FOR = {
    "shared_bytes": ("shared memory gather", r""),
    "l2_bytes": ("L2 gather", r""),
    # the smallest row, in the order of the general kernel: each step waits for its own row
    "exchange": ("counted exchange in cluster", r"^1 parts, lag 0, work 0, 1 clusters$"),
}


def measured(primitives: Iterable[dict[str, str]], cost: str,
             unit: str) -> tuple[float, int] | None:
    """The median of the primitives that a cost stands for, and their number; None: no match."""
    name, parameter = STAND_FOR.get(cost, ("", ""))
    found = [float(row["value"]) for row in primitives
             if row["primitive"] == name and row["unit"] == unit
             and re.search(parameter, row["parameter"])]
    return (statistics.median_high(found), len(found)) if found else None


def table(primitives: list[dict[str, str]]) -> str:
    """A line for each cost, in Markdown."""
    lines = []
    for name, (number, unit, origin) in _ops._C.costs().items():
        here = measured(primitives, name, unit)
        lines.append([name, f"{number:g}", unit, "" if here is None else
                      f"{here[0]:.4g} of {here[1]}", origin])
    return markdown(["cost", "in the plan", "unit", "median measured", "origin in the plan"], lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 if the file has none of the primitives."""
    parser = make_parser("bench.gpu.costs", __doc__)
    parser.add_argument("primitives", type=Path, help="a CSV file of bench/gpu/primitives.cu")
    rows = list(csv.DictReader(parser.parse_args(arguments).primitives.read_text().splitlines()))
    if not any(row.get("primitive") == name for row in rows for name, _ in STAND_FOR.values()):
        print("primitives: expected rows such as 'L2 gather', found none")
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
