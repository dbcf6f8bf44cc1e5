"""A published network, run again: electrocardiograms by Yin, Corradi and Bohte (Nature Machine
Intelligence 3, 905, 2021).

    python examples/ecg/published.py CHECKPOINT --data FOLDER

CHECKPOINT is the file model_0.8589...36bptt-fr_MG.pth of NMI_vis/ecg in the authors' repository,
byin-cwi/Efficient-spiking-networks on GitHub (MIT licence); FOLDER its folder data, see
examples/ecg/train.py. 36 recurrent neurons of model `srnn` without adaptation read the inputs, and
six adaptive ones without recurrence read their spikes of the same step; the largest membrane of
these names the phase. Membranes begin at 0, where the authors' begin at random numbers below the
threshold.

Prints the share of steps that are named as they are. The authors count from the eleventh step on.
"""
import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from ecg import train as ecg
from lsnn_ext import functional

# The checkpoint holds neither threshold nor adaptation. Of the thresholds in the authors' programs
# 0.1 is the one with which it names what it was published with, and the adaptive time constants of
# its recurrent neurons all stand where they began: these do not adapt.
THRESHOLD, BETA = 0.1, 1.8
FIRST = 10  # steps that the authors leave out
NEURONS = 36
SHAPES: dict[str, tuple[int, ...]] = {
    "i2h.weight": (NEURONS, ecg.INPUTS), "i2h.bias": (NEURONS,), "h2h.weight": (NEURONS, NEURONS),
    "h2h.bias": (NEURONS,), "tau_m_h": (NEURONS,), "tau_adp_h": (NEURONS,),
    "h2o.weight": (ecg.PHASES, NEURONS), "h2o.bias": (ecg.PHASES,), "tau_m_o": (ecg.PHASES,),
    "tau_adp_o": (ecg.PHASES,),
}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of the checkpoint. Raises SystemExit naming a file that is none."""
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(held[name].shape) for name in SHAPES}
    except Exception as error:
        # whatever a file that is something else leads to
        raise SystemExit(f"{path}: expected the published checkpoint, got a file that cannot be "
                         f"read as one ({type(error).__name__})") from None
    for name, shape in SHAPES.items():
        if found[name] != shape:
            raise SystemExit(f"{path}: expected {name} of shape {shape}, got {found[name]}")
    return {name: held[name].float() for name in SHAPES}


def layer(x: Tensor, w_in: Tensor, w_rec: Tensor | None, bias: Tensor, tau_m: Tensor,
          tau_adp: Tensor, beta: float) -> functional.Layered:
    """A layer of model srnn, whose adaptation begins at the threshold."""
    zero = torch.zeros(x.shape[1], len(tau_m))
    start = functional.State(zero, zero + THRESHOLD, zero, zero, zero[None])
    return functional.layer(
        x, w_in, w_rec, bias=bias, theta=THRESHOLD, beta=beta, dynamics="srnn", trace=True,
        alpha=torch.exp(-1 / tau_m), rho=torch.exp(-1 / tau_adp), state=start)


@torch.no_grad()
def membranes(held: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of the outputs at each step, (T, B, 6), for x (T, B, 4)."""
    hidden = layer(x, held["i2h.weight"], held["h2h.weight"].T, held["i2h.bias"] + held["h2h.bias"],
                   held["tau_m_h"], held["tau_adp_h"], 0.0).spikes
    traces = layer(hidden, held["h2o.weight"], None, held["h2o.bias"], held["tau_m_o"],
                   held["tau_adp_o"], BETA).traces
    assert traces is not None
    return traces.v


def main(given: list[str] | None = None) -> None:
    """Reads, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    ecg.data_option(parser)
    options = parser.parse_args(given)
    held, data = read(options.checkpoint), ecg.load(options.data)
    for name, recordings in (("test", data.test), ("training, kept back", data.valid),
                             ("training, the rest", data.train)):
        named = (membranes(held, recordings.x).argmax(-1) == recordings.phase).float()
        print(f"{name}: {100 * named.mean().item():.2f} % of all steps, "
              f"{100 * named[FIRST:].mean().item():.2f} % from the eleventh on")
    print(f"published: {100 * ecg.PUBLISHED:.1f} %")


if __name__ == "__main__":
    main()
