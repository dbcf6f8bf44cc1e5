"""Plot the responses of the zoo's neurons to a current step, with default coefficients.

    python -m lsnn_ext.zoo --out folder            one plot a neuron
    python -m lsnn_ext.zoo --out folder rf brf     some of them
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tools import import_extra, plot
from . import NEURONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BEGIN, END = 300, 50, 250
STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the current, by the module's CURRENT
SHOWN = 2  # index of the strength whose states are drawn


def respond(module: ModuleType) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Returns currents (K, T, n), states (T, n) by name and spikes (T, n), a column a strength.

    The first current is on from BEGIN to END, others from the middle on at minus half of it.
    """
    parts = module.neuron.parts_of(module.neuron.coefficients, torch.zeros(()), 1)
    currents = torch.zeros(len(parts.currents), STEPS, len(STRENGTHS))
    currents[0, BEGIN:END] = module.CURRENT * torch.tensor(STRENGTHS)
    currents[1:, (BEGIN + END) // 2:END] = -0.5 * currents[0, BEGIN]
    now = [torch.zeros(1, len(STRENGTHS)) for _ in (*parts.states, "z")]
    steps = []
    for t in range(STEPS):
        now = list(module.step(*currents[:, t:t + 1], *now))
        steps.append(now)
    *found, spikes = (torch.cat(values) for values in zip(*steps, strict=True))
    states: dict[str, Tensor] = {}
    for name, state in zip(parts.states, found, strict=True):
        if state.is_complex():
            states |= {f"Re {name}": state.real, f"Im {name}": state.imag}
        else:
            states[name] = state
    return currents, states, spikes


def draw(name: str) -> "Figure":
    """Returns a figure of the current, every state, and spikes by strength of the current."""
    module = NEURONS[name]
    currents, states, spikes = respond(module)
    rows = 2 + len(states)
    figure = import_extra("matplotlib.figure", "zoo", "matplotlib>=3.8").Figure(
        figsize=(7, 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, sharex=True)
    for k, current in enumerate(currents, 1):
        axes[0].plot(current[:, SHOWN], label=f"c{k}" if len(currents) > 1 else "c")
    axes[0].legend(loc="upper right")
    axes[0].set(ylabel="current", title=(module.__doc__ or name).splitlines()[0].rstrip("."))
    for ax, label, state in zip(axes[1:-1], *zip(*states.items(), strict=True), strict=True):
        ax.plot(state[:, SHOWN])
        ax.set(ylabel=label)
    plot.raster(spikes, axes[-1])
    axes[-1].set(xlabel="step", ylabel="spikes,\ncurrent by c", yticks=range(len(STRENGTHS)),
                 yticklabels=[f"{strength:g}" for strength in STRENGTHS])
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lsnn_ext.zoo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("neurons", nargs="*", help="default: all", metavar="|".join(NEURONS))
    parser.add_argument("--out", type=Path, required=True, help="folder for the plots")
    options = parser.parse_args(arguments)
    for name in options.neurons:
        if name not in NEURONS:
            parser.error(f"neurons: expected some of {', '.join(NEURONS)}, got {name!r}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.neurons or NEURONS:
        path = options.out / f"{name}.png"
        draw(name).savefig(path, dpi=120)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
