"""The picture of the spoken digits: a word through the network, and how both networks learned."""
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt

from common.plots import ADAPTIVE, REGULAR, STYLE, raster, smooth
from lsnn_ext import LSNN


def picture(net: LSNN, recordings: Any, history: list[dict[str, float]], batches: int,
            found: dict[str, dict[str, Any]], path: Path) -> None:
    """recordings.x: of each (T, 40), of which the first is shown, with its .digit; history of
    iterations, of which an epoch has so many batches."""
    x, digit = recordings.x[0], int(recordings.digit[0])
    with torch.no_grad():
        y, _, spikes = net(x.unsqueeze(1), return_spikes=True)
    sure = (y[:, 0].cumsum(0) / torch.arange(1, len(x) + 1).unsqueeze(-1)).argmax(-1)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(4, 1, figsize=(9.5, 8.5), layout="constrained",
                                    height_ratios=[1.2, 1.4, 0.7, 1.6])
        grid[0].set_title(f"A word of the test, {digit}: energies of the mel bands")
        grid[0].imshow(x.T.numpy(), aspect="auto", origin="lower", cmap="viridis")
        grid[0].set(ylabel="band")
        raster(grid[1], spikes[:, 0], ADAPTIVE, "neuron")
        grid[2].step(range(len(x)), sure.numpy(), color=ADAPTIVE)
        grid[2].axhline(digit, color=REGULAR, linestyle="--", linewidth=1)
        grid[2].set(ylabel="named so far", xlabel="step", ylim=(-0.5, 9.5))
        for axes in grid[:3]:
            axes.set_xlim(0, len(x))
        for name, key, colour in (("LSNN", "accuracy", ADAPTIVE),
                                  ("LIF", "lif_accuracy", REGULAR)):
            if name in found:
                epochs = torch.arange(1, len(history) + 1) / batches
                values = 100 * torch.tensor([row[key] for row in history])
                grid[3].plot(epochs, smooth(values, batches), color=colour,
                             label=f"{name}, tested {100 * found[name]['accuracy']:.1f} %")
        grid[3].set(xlabel="epoch", ylabel="words of the training, named / %")
        grid[3].legend()
        figure.savefig(path)
        plt.close(figure)
