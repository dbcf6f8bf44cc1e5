"""Pictures of the sequential MNIST example: one digit through the network, and the learning
curve."""
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from common.pair import Learners
from common.plots import ACCENT, ADAPTIVE, INK, MUTED, REGULAR, STYLE, raster, smooth
from lsnn_ext import LSNN
from smnist.data import PIXELS
from smnist.networks import ANSWER

# test accuracy of the LSNN after 36,000 iterations with 1 and 2 ms a pixel, means of 12 runs
# (Bellec et al. 2018)
PAPER = {1: 0.942, 2: 0.938}
COLOURS = {"LSNN": ADAPTIVE, "LIF": REGULAR, "LSTM": ACCENT, "SRNN": INK, "BRF": MUTED}


def digit_picture(model: LSNN, x: Tensor, image: Tensor, label: int, hold: int,
                  path: Path) -> None:
    """x (T, 1, I) is the encoded image (28, 28), each pixel for `hold` ms: input, spikes, moving
    thresholds and readout over time, as a PNG."""
    answer_steps = ANSWER * hold
    with torch.no_grad():
        spikes, _, traces = model.neurons(x, trace=True)
        readout, _ = model.readout(spikes)
    spikes, threshold, readout = spikes[:, 0], traces.threshold[:, 0], readout[:, 0]
    T, regular = len(x), model.n_regular
    probability = readout.softmax(-1)
    answer = int(readout[-answer_steps:].mean(0).argmax())
    adaptive = model.n_adaptive > 0
    names = (
        ["input", "regular"] * (regular > 0)
        + ["input"] * (regular == 0)
        + ["adaptive", "threshold"] * adaptive
    )
    names.append("readout")
    heights = {"input": 1.5, "regular": 1.7, "adaptive": 1.7, "threshold": 1.3, "readout": 1.3}
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(len(names), 1, figsize=(9.5, 1.9 * len(names)), sharex=True,
                                    layout="constrained",
                                    height_ratios=[heights[name] for name in names])
        axes = dict(zip(names, grid, strict=True))
        if x.shape[2] == 1:
            axes["input"].plot(x[:, 0, 0], color=INK, linewidth=0.8)
            axes["input"].set(ylabel="brightness")
        else:
            raster(axes["input"], x[:, 0], INK, "channel")
        each = "one pixel per millisecond" if hold == 1 else f"one pixel in {hold} ms"
        axes["input"].set_title(f"A handwritten {label}, {each}; the network answers {answer}")
        corner = axes["input"].inset_axes((1.01, 0.0, 0.14, 1.0))
        corner.imshow(image, cmap="gray_r")
        corner.axis("off")
        if regular:
            raster(axes["regular"], spikes[:, :regular], REGULAR, "neuron")
            rate = 1000 * float(spikes[:, :regular].mean())
            axes["regular"].set_title(f"{regular} regular neurons (LIF), {rate:.0f} spikes per "
                                      f"second and neuron")
        if adaptive:
            raster(axes["adaptive"], spikes[:, regular:], ADAPTIVE, "neuron")
            rate = 1000 * float(spikes[:, regular:].mean())
            title = (
                f"{model.n_adaptive} adaptive neurons (ALIF), {rate:.0f} spikes per second and "
                f"neuron"
            )
            axes["adaptive"].set_title(title)
            moving = threshold[:, regular:] * 1000
            busiest = moving.amax(0).topk(min(40, model.n_adaptive)).indices
            axes["threshold"].plot(moving[:, busiest], color=ADAPTIVE, linewidth=0.6, alpha=0.35)
            axes["threshold"].plot(moving.mean(1), color=INK, linewidth=1.4, label="mean of all")
            axes["threshold"].set(ylabel="threshold / 10$^{-3}$")
            axes["threshold"].set_title("Their moving thresholds: the memory of what has passed")
            axes["threshold"].legend(loc="upper left")
        for digit in range(probability.shape[1]):
            shown = digit in (answer, label)
            colour = (ACCENT if digit == label else ADAPTIVE) if shown else MUTED
            axes["readout"].plot(probability[:, digit], color=colour,
                                 linewidth=1.6 if shown else 0.7, alpha=1.0 if shown else 0.6,
                                 label=f"digit {digit}" if shown else None)
        axes["readout"].set(ylabel="probability", xlabel="time / ms", ylim=(0, 1.02), xlim=(0, T))
        axes["readout"].set_title("Readout (the other digits in grey)")
        axes["readout"].legend(loc="upper left")
        for panel in axes.values():
            if T > PIXELS * hold:
                panel.axvspan(PIXELS * hold, T, color=ACCENT, alpha=0.07, linewidth=0)
            panel.axvspan(T - answer_steps, T, color=ACCENT, alpha=0.12, linewidth=0)
        axes["input"].text(T - answer_steps / 2, x.shape[2] * 0.9, "answer", ha="center",
                           color=ACCENT, fontsize=8)
        figure.savefig(path)
        plt.close(figure)


def curve_picture(run: Learners, found: dict[str, dict[str, float]], path: Path) -> None:
    """Loss, accuracy and firing rate of each network over the iterations, as a PNG; found: what it
    reached on the test, by its name."""
    history, options = run.history, run.options
    iteration = torch.tensor([row["iteration"] for row in history])
    panels = [("loss", "cross entropy / nat", 1.0), ("accuracy", "accuracy / %", 100.0)]
    if run.nets:
        panels.append(("rate", "firing rate / Hz", 1000.0))
    width = max(1, len(history) // 40)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.2),
                                    layout="constrained")
        for axes, (value, label, unit) in zip(grid, panels, strict=True):
            for name, row in found.items():
                column = run.column(name, value)
                if column not in history[0]:
                    continue
                colour, values = COLOURS[name], unit * torch.tensor([row[column]
                                                                     for row in history])
                axes.plot(iteration, values, color=colour, alpha=0.2, linewidth=0.6)
                tested = f", test {100 * row['accuracy']:.1f} %" * (value == "accuracy")
                axes.plot(iteration, smooth(values, width), color=colour, linewidth=1.8,
                          label=name + tested)
            axes.set(xlabel="iteration", ylabel=label, xlim=(0, float(iteration[-1])))
            axes.set_ylim(bottom=0, top=100 if value == "accuracy" else None)
            if value == "accuracy":
                if options.hold in PAPER and not options.permuted:
                    axes.axhline(100 * PAPER[options.hold], color=MUTED, linewidth=1.5,
                                 linestyle=":", label="the paper's LSNN, 36,000 iterations: "
                                 f"{100 * PAPER[options.hold]:.1f} %")
                axes.legend(loc="lower right")
        minutes = history[-1]["seconds"] / 60
        figure.suptitle(f"Sequential MNIST, {len(history)} iterations in {minutes:.1f} minutes; "
                        f"means of {width}", fontweight="bold")
        figure.savefig(path)
        plt.close(figure)
