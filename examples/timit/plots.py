"""The picture of the TIMIT example: a sentence, what it was taken for, and how the networks
learned."""
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from common.plots import ACCENT, ADAPTIVE, REGULAR, STYLE


def picture(x: Tensor, phone: Tensor, guess: Tensor, history: list[dict[str, float]], batches: int,
            found: dict[str, dict[str, Any]], path: Path) -> None:
    """x (T, 39) of a sentence, its phones and what the LSNN took them for (T,); history of
    iterations, of which an epoch has so many batches."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(3, 1, figsize=(9.5, 7), layout="constrained",
                                    height_ratios=[1.2, 0.6, 1.6])
        grid[0].imshow(x.t().numpy(), aspect="auto", origin="lower", cmap="viridis",
                       interpolation="nearest", vmin=-2, vmax=2)
        grid[0].set(ylabel="coefficient")
        grid[0].set_title("A sentence of the core test")
        grid[1].imshow(torch.stack([guess, phone]).numpy(), aspect="auto", cmap="nipy_spectral",
                       interpolation="nearest", vmin=0, vmax=60)
        grid[1].set(yticks=[0, 1], yticklabels=["taken for", "is"], xlabel="frame")
        for name, prefix, colour in (("LSNN", "", ADAPTIVE), ("LIF", "lif_", REGULAR),
                                     ("LSTM", "lstm_", ACCENT)):
            if name in found:
                epochs = torch.arange(len(history)) / batches
                grid[2].plot(epochs, [100 - 100 * row[prefix + "valid"] for row in history],
                             color=colour,
                             label=f"{name}, tested {100 * found[name]['folded']:.1f} %")
        grid[2].set(xlabel="epoch", ylabel="frames kept back, wrong of 39 / %")
        grid[2].legend()
        figure.savefig(path)
        plt.close(figure)
