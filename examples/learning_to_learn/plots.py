"""The picture of the learning-to-learn example: errors by the number of the example, and three
tasks."""
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from common.plots import ACCENT, ADAPTIVE, INK, MUTED, REGULAR, STYLE

COLOURS = {"LSNN": ADAPTIVE, "LIF": REGULAR, "online ridge": MUTED, "backpropagation": ACCENT,
           "best linear": INK}


def picture(curves: dict[str, Tensor], x: Tensor, y: Tensor, guess: Tensor, trained: int,
            path: Path) -> None:
    """Curves (E,) of errors, numbers as lines; inputs x (E, 3, D), answers y and the network's
    (E, 3); trained: how many examples a task had in the training."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=[1.3, 1])
        axes = figure.add_subplot(grid[0, :])
        for name, curve in curves.items():
            label = f"{name} of all examples" if not curve.dim() else name
            if curve.dim():
                axes.plot(torch.arange(1, len(curve) + 1), curve, color=COLOURS[name], label=label,
                          linewidth=1.8 if name == "LSNN" else 1.1)
            else:
                axes.axhline(float(curve), color=COLOURS[name], linestyle="--", label=label)
        axes.axvline(trained, color=MUTED, linestyle=":", linewidth=1)
        axes.annotate(" end of the tasks in training", (trained, 1), va="top", color=MUTED,
                      xycoords=axes.get_xaxis_transform())
        axes.set(xscale="log", yscale="log", xlabel="example of a task",
                 ylabel="squared error (range of answers: 1)")
        axes.set_title("New tasks, with weights that stay as they are")
        axes.legend(ncols=2)
        for task in range(3):
            axes = figure.add_subplot(grid[1, task])
            axes.plot(y[:trained, task], color=INK, linewidth=1, label="answer")
            axes.plot(guess[:trained, task], color=ADAPTIVE, linewidth=1, label="network")
            if x.shape[2] == 1:  # a function of one number can be drawn as one
                axes.clear()
                order = x[:, task, 0].argsort()
                axes.plot(x[order, task, 0], y[order, task], color=INK, linewidth=1)
                for part, colour, label in ((slice(0, 5), MUTED, "examples 1 to 5"),
                                            (slice(5, None), ADAPTIVE, "later ones")):
                    axes.scatter(x[part, task, 0], guess[part, task], s=9, color=colour,
                                 label=label)
            axes.set(ylim=(-0.05, 1.05), xlabel="input" if x.shape[2] == 1 else "example")
            if not task:
                axes.set(ylabel="answer")
                axes.legend(fontsize=7)
        figure.savefig(path)
        plt.close(figure)
