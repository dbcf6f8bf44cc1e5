"""The picture of the STORE-RECALL example: a sequence through the network, and how both networks
learned."""
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from common.plots import ACCENT, ADAPTIVE, INK, MUTED, REGULAR, STYLE, raster, smooth
from lsnn_ext import LSNN, LSNNState


def picture(net: LSNN, x: Tensor, batch: Any, state: LSNNState | None,
            history: list[dict[str, float]], errors: dict[str, float], dt: float,
            path: Path) -> None:
    """x (T, B, I) are the spikes of a batch of symbols, of which the sequence with the longest wait
    is shown."""
    step = torch.arange(len(batch.store))[:, None]
    since = step - torch.where(batch.store, step, 0).cummax(0).values
    item = int(torch.where(batch.recall, since, 0).amax(0).argmax())
    with torch.no_grad():
        z, _, traces = net.neurons(x, None if state is None else state.neurons, trace=True)
        y, _ = net.readout(z, None if state is None else state.readout)
    spikes, threshold, probability = z[:, item], traces.threshold[:, item], y[:, item].softmax(-1)
    T, steps = len(x), len(x) // len(batch.store)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(5, 1, figsize=(9.5, 9), layout="constrained",
                                    height_ratios=[1.6, 1.4, 1.2, 1.2, 1.6])
        raster(grid[0], x[:, item], INK, "0, 1, STORE, RECALL")
        grid[0].set_title("STORE-RECALL: a bit shown with STORE is named at RECALL")
        raster(grid[1], spikes[:, :net.n_regular], REGULAR, "neuron")
        at, neuron = spikes[:, net.n_regular:].nonzero(as_tuple=True)
        grid[1].scatter(at, neuron + net.n_regular, s=2.4, marker="|", linewidths=0.9,
                        color=ADAPTIVE, rasterized=True)
        grid[1].set_ylim(-1, spikes.shape[1])
        grid[1].set_title("Regular neurons below, adaptive ones above")
        grid[2].plot(1000 * threshold[:, net.n_regular:], color=ADAPTIVE, linewidth=0.8)
        grid[2].set(ylabel="threshold / 10$^{-3}$")
        grid[2].set_title("Moving thresholds of the adaptive neurons: the bit is kept here")
        grid[3].plot(probability[:, 1], color=INK, linewidth=1)
        grid[3].set(ylabel="probability of 1", ylim=(-0.02, 1.02))
        for symbol in range(len(batch.store)):
            span = symbol * steps, (symbol + 1) * steps
            if batch.store[symbol, item] or batch.recall[symbol, item]:
                colour = ACCENT if batch.recall[symbol, item] else MUTED
                for axes in grid[:4]:
                    axes.axvspan(*span, color=colour, alpha=0.15, linewidth=0)
            if batch.recall[symbol, item]:
                wanted = int(batch.target[symbol, item])
                grid[3].plot(span, (wanted, wanted), color=ACCENT, linewidth=3)
        grid[3].set_title("Readout; what is wanted at RECALL in green")
        ticks = torch.linspace(0, T, 7)
        for axes in grid[:4]:
            axes.set(xlim=(0, T), xticks=ticks.tolist(), xticklabels=[])
        grid[3].set_xticklabels([f"{float(tick) * dt / 1000:.1f}" for tick in ticks])
        grid[3].set_xlabel("time / s")
        for name, key, colour in (("LSNN", "error", ADAPTIVE), ("LIF", "lif_error", REGULAR)):
            if name in errors:
                values = 100 * torch.tensor([row[key] for row in history])
                grid[4].plot(values, color=colour, alpha=0.25, linewidth=0.6)
                grid[4].plot(smooth(values, 10), color=colour, linewidth=1.8,
                             label=f"{name}, at the end {100 * errors[name]:.1f} %")
        grid[4].set(xlabel="iteration", ylabel="error at RECALL / %", ylim=(0, 70))
        grid[4].legend()
        figure.savefig(path)
        plt.close(figure)
