"""Draws speed.png next to itself from a stored run of `python -m bench --like-for-like`:
`python docs/figures/speed.py [like_for_like.csv]`."""
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
STORED = HERE.parents[1] / (
    "bench/results/like_for_like/amd-epyc-2-cores-converted/like_for_like.csv")
OURS, FAINT, TEXT = "#d1495b", "#bcccdc", "#243b53"
YARDSTICK = "P"


def read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The conditions of a run, and its rows of training steps of the first way of the yardstick."""
    lines = path.read_text().splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return head, [row for row in rows if row["yardstick"] == YARDSTICK and row["way"] ==
                  rows[0]["way"] and row["timed"] == "forward+backward"]


def draw(path: Path) -> None:
    head, rows = read(path)
    rows = rows[::-1]
    names, places = [row["pair"] for row in rows], range(len(rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True,
                                         width_ratios=(3, 2), layout="constrained")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(which="both", colors=TEXT, length=0)
    times = [float(row["times_faster"]) for row in rows]
    left.barh(places, times, color=OURS, height=0.6)
    for place, ratio in zip(places, times, strict=True):
        left.annotate(f"{ratio:.{int(ratio < 100)}f}×", (ratio, place), (4, 0), va="center",
                      textcoords="offset points", color=TEXT, weight="bold")
    left.set_yticks(places, names)
    left.set(xlim=(1, 1000), xticks=(1, 10, 100))
    left.set_title("Speedup of a training step", loc="left", color=TEXT, size=11)
    errors = [float(row["gradient_difference"]) for row in rows]
    right.plot(errors, places, "o", color=OURS)
    for place, row, error in zip(places, rows, errors, strict=True):
        right.annotate(f"{int(row['differing']):,}", (error, place), (8, 0), va="center",
                       textcoords="offset points", color=TEXT)
    right.set(xlim=(1e-7, 1e-1))
    right.grid(axis="x", color=FAINT, lw=0.5)
    right.set_title("Largest relative gradient difference\n"
                    f"(number: spikes that differ, of {int(rows[0]['entries']):,})", loc="left",
                    color=TEXT, size=10)
    first = rows[0]
    figure.supxlabel(
        f"{first['T']} steps, batch {first['B']}, {first['I']} inputs, {first['N']} neurons, "
        f"float32; {head['processor']}, {first['threads']} threads, torch {head['torch']}, "
        f"{head['date']}. Models of the packages, as they are and converted.\n"
        f"{head['command']}", size=8, color=TEXT, x=0.01, ha="left")
    figure.savefig(HERE / "speed.png", dpi=130, facecolor="white")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else STORED)
