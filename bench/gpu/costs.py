"""What the plan of the CUDA kernels counts with, beside what was measured on a card.

    python -m bench.gpu.costs bench/results/gpu/CARD/CARD-primitives.csv

The numbers of csrc/cuda/costs.h, as the compiled part has them, and of the primitives of `make gpu`
those that they stand for. It changes nothing: who takes over a measured number writes it, and the
card, into that file.
"""
import argparse
import csv
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.page import markdown
from lsnn_ext import _ops

# By cost: the primitive, and a pattern of its parameter; the median of all that fit counts.
STAND_FOR = {
    "shared_bytes": ("shared memory gather", r""),
    "l2_bytes": ("L2 gather", r""),
    "exchange": ("tagged handoff in cluster", r"C=[248]$"),
}


def measured(primitives: Iterable[dict[str, str]], cost: str,
             unit: str) -> tuple[float, int] | None:
    """The median of the primitives that a cost stands for, and how many they are; None: there are
    none."""
    name, parameter = STAND_FOR.get(cost, ("", ""))
    found = sorted(float(row["value"]) for row in primitives
                   if row["primitive"] == name and row["unit"] == unit
                   and re.search(parameter, row["parameter"]))
    return (found[len(found) // 2], len(found)) if found else None


def table(primitives: list[dict[str, str]]) -> str:
    """A line for each cost, in Markdown."""
    lines = []
    for name, (number, unit, origin) in _ops._C.costs().items():
        here = measured(primitives, name, unit)
        lines.append([name, f"{number:g}", unit, "" if here is None else
                      f"{here[0]:.4g} of {here[1]}", origin])
    return markdown(["cost", "in the plan", "unit", "median measured", "the plan's is"], lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 where the file has none of the primitives."""
    parser = argparse.ArgumentParser("python -m bench.gpu.costs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("primitives", type=Path, help="a CSV file of bench/gpu/primitives.cu")
    rows = list(csv.DictReader(parser.parse_args(arguments).primitives.read_text().splitlines()))
    if not any(row.get("primitive") == name for row in rows for name, _ in STAND_FOR.values()):
        print("primitives: expected rows such as 'L2 gather', found none")
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
