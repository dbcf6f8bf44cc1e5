"""The picture of the electrocardiogram example: a recording through the network, and how both
networks learned."""
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from common.plots import ADAPTIVE, INK, MUTED, REGULAR, STYLE, raster, smooth
from lsnn_ext import LSNN

NAMES = "P", "PQ", "QR", "RS", "ST", "TP"


def picture(net: LSNN, recordings: Any, history: list[dict[str, float]], batches: int,
            found: dict[str, dict[str, Any]], published: float, path: Path) -> None:
    """recordings.x (T, B, 4), of which the first is shown, with its .phase (T, B); history of
    iterations, of which an epoch has so many batches. Where nothing was kept back it shows the
    losses, each an epoch's mean."""
    x, phase = recordings.x[:, :1], recordings.phase[:, 0]
    with torch.no_grad():
        y, _, spikes = net(x, return_spikes=True)
    named: Tensor = y[:, 0].argmax(-1)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(4, 1, figsize=(9.5, 8.5), layout="constrained",
                                    height_ratios=[0.8, 1.4, 0.8, 1.6])
        grid[0].set_title("A recording of the test: levels crossed upwards and downwards")
        raster(grid[0], x[:, 0] > 0, INK, "input")
        raster(grid[0], x[:, 0] < 0, MUTED, "input")
        raster(grid[1], spikes[:, 0], ADAPTIVE, "neuron")
        shares = torch.stack([named, phase]).numpy()
        grid[2].imshow(shares, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0,
                       vmax=len(NAMES) - 1)
        grid[2].set(yticks=[0, 1], yticklabels=["named", "is"], xlabel="step")
        middle = torch.linspace(0, 1, len(NAMES))
        colours = plt.get_cmap("viridis")
        for name, share in zip(NAMES, middle, strict=True):
            grid[2].plot([], [], color=colours(float(share)), linewidth=5, label=name)
        grid[2].legend(ncols=len(NAMES), loc="lower right", bbox_to_anchor=(1, 1), fontsize=7)
        for axes in grid[:3]:
            axes.set_xlim(0, len(phase))
        is_chosen = "valid" in history[0]
        for name, prefix, colour in (("LSNN", "", ADAPTIVE), ("LIF", "lif_", REGULAR)):
            if name in found:
                epochs = torch.arange(len(history)) / batches
                shown = torch.tensor([row[prefix + ("valid" if is_chosen else "loss")]
                                      for row in history])
                grid[3].plot(epochs, 100 * shown if is_chosen else smooth(shown, batches),
                             color=colour,
                             label=f"{name}, tested {100 * found[name]['accuracy']:.1f} %")
        if is_chosen:
            grid[3].axhline(100 * published, color=INK, linestyle="--", linewidth=1,
                            label=f"published {100 * published:.1f} % of the test")
        grid[3].set(xlabel="epoch", ylabel="steps kept back, named / %" if is_chosen else "loss")
        grid[3].legend()
        figure.savefig(path)
        plt.close(figure)
