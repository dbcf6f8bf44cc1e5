"""What the pictures of all tasks share, and the learning curve as CSV."""
import csv
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

plt.switch_backend("Agg")  # works without a screen

INK, MUTED, REGULAR, ADAPTIVE, ACCENT = "#1b1f24", "#8a929c", "#2a6f97", "#c8553d", "#2f855a"
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "figure.dpi": 150, "savefig.bbox": "tight", "legend.frameon": False,
}


def raster(axes: Axes, spikes: Tensor, colour: str, label: str) -> None:
    """spikes (T, channels) as dots."""
    t, channel = spikes.nonzero(as_tuple=True)
    axes.scatter(t, channel, s=2.4, marker="|", linewidths=0.9, color=colour, rasterized=True)
    axes.set(ylim=(-1, spikes.shape[1]), ylabel=label)


def smooth(values: Tensor, width: int) -> Tensor:
    """Mean over the last `width` values, fewer at the start."""
    total = torch.cat([torch.zeros(1), values.cumsum(0)])
    high = torch.arange(1, len(values) + 1)
    low = (high - width).clamp(min=0)
    return (total[high] - total[low]) / (high - low)


def write_curve(history: list[dict[str, float]], path: Path, most: int = 1000) -> None:
    """The history as CSV: a line an iteration, or of a long run `most` lines at the most, each the
    mean of a block."""
    block = -(-len(history) // most)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        for start in range(0, len(history), block):
            rows = history[start:start + block]
            mean = {name: f"{sum(row[name] for row in rows) / len(rows):.5g}" for name in rows[0]}
            writer.writerow(mean | {"iteration": rows[-1]["iteration"],
                                    "seconds": f"{rows[-1]['seconds']:.1f}"})
