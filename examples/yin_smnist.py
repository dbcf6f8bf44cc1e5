"""A published network, run again: sequential MNIST by Yin, Corradi and Bohte (Nature Machine
Intelligence 3, 905, 2021).

    python examples/yin_smnist.py CHECKPOINT [--digits 1000]

CHECKPOINT is the file model_98.21_Task-smnist... of NMI_vis/smnist in the authors' repository,
byin-cwi/Efficient-spiking-networks on GitHub (MIT licence). Four layers of model `srnn`: two
recurrent ones, one without recurrence, and ten output neurons; each reads the spikes of the layer
before in the same step. At each of 784 steps the network sees a window of 8 pixels, and the class
whose output neuron spikes most is the answer.

Prints the accuracy on the test digits; then, on the first hundred, whether every spike of every
layer is that of a plain loop, and how long both take on the same threads.
"""
import argparse
import pickle
import time
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lsnn_ext import functional
from mnist import load

THETA, BETA, WINDOW, ROUNDS = 0.01, 1.8, 8, 5
# The layers from the input on: names of the input and of the recurrent Linear, and of the time
# constants.
LAYERS = (("i2h", "h2h", "r1"), ("h2d", "d2d", "r2"), ("dense1", None, "d1"), ("d2o", None, "o"))


# --------------------------------------------------------------------------------------- checkpoint
# The file is a pickle of a whole module. A pickle names functions and classes and has them called
# while it is read, so one from elsewhere could run anything. These are the names that a module of
# tensors cannot do without, and they make tensors and nothing else.
KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): set,  # as protocol 2 spells it
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "FloatStorage"): torch.FloatStorage,
}


class Unknown(nn.Module):
    """Stands for every other name: an empty module, which takes what was pickled of a module as its
    content, runs none of its code, and cannot be called with arguments as a function is."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name), Unknown)


def _loads(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, whatever else its pickle asks for.

    Raises SystemExit, with a message that names the file, for a file that is no such checkpoint.
    """
    reader: Any = types.SimpleNamespace(Unpickler=_Unpickler, load=_loads, __name__="checkpoint")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # that the source of the pickled classes is not here, which is the point
            warnings.simplefilter("ignore")
            module = torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False)
        if not isinstance(module, Unknown):
            raise TypeError(f"the pickle holds a {type(module).__name__}, not a module")
        tensors = module.state_dict()
        _check(tensors)
    except Exception as error:  # whatever a file that is something else leads to
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise SystemExit(f"{path}: expected a checkpoint of Yin et al.'s sequential MNIST network, "
                         f"got a file that cannot be read as one ({type(error).__name__}: "
                         f"{first})") from None
    return tensors


def _check(tensors: dict[str, Tensor]) -> None:
    before = WINDOW
    for linear, recurrent, name in LAYERS:
        N = len(tensors[f"tau_m_{name}"])
        wanted = {f"tau_m_{name}": (N,), f"tau_adp_{name}": (N,), f"{linear}.weight": (N, before),
                  f"{linear}.bias": (N,)}
        if recurrent is not None:
            wanted |= {f"{recurrent}.weight": (N, N), f"{recurrent}.bias": (N,)}
        for tensor, shape in wanted.items():
            if tensors[tensor].shape != shape or tensors[tensor].dtype != torch.float32:
                raise ValueError(f"{tensor}: expected float32 {shape}, got {tensors[tensor].dtype} "
                                 f"{tuple(tensors[tensor].shape)}")
        before = N


# ------------------------------------------------------------------------------------------ network
class Layer(NamedTuple):
    """One layer: weights as of a Linear, coefficients of each neuron."""

    w_in: Tensor  # (N, I)
    w_rec: Tensor | None  # (N, N), (to, from)
    bias: Tensor  # (N,) of the input and of the recurrent Linear
    alpha: Tensor  # (N,)
    rho: Tensor  # (N,)


def layers(tensors: dict[str, Tensor]) -> list[Layer]:
    """The four layers of a checkpoint."""
    found = []
    for linear, recurrent, name in LAYERS:
        bias = tensors[f"{linear}.bias"]
        w_rec = None
        if recurrent is not None:
            w_rec, bias = tensors[f"{recurrent}.weight"], bias + tensors[f"{recurrent}.bias"]
        found.append(Layer(tensors[f"{linear}.weight"], w_rec, bias,
                           torch.exp(-1 / tensors[f"tau_m_{name}"]),
                           torch.exp(-1 / tensors[f"tau_adp_{name}"])))
    return found


def windows(pixels: Tensor) -> Tensor:
    """Digits (B, 784) of bytes as inputs (784, B, 8): at step i the pixels from i on, and the last
    eight where there are no more."""
    steps = pixels.shape[1]
    first = torch.arange(steps).clamp(max=steps - WINDOW)
    at = first[:, None] + torch.arange(WINDOW)
    return (pixels.float() / 255)[:, at].transpose(0, 1).contiguous()


def starts(net: list[Layer], items: int, generator: torch.Generator) -> list[Tensor]:
    """What the authors' program draws for each layer and item: random numbers in [0, 1), which are
    both the membranes and the spikes before the first step."""
    return [torch.rand(items, len(layer.bias), generator=generator) for layer in net]


def fused(net: list[Layer], x: Tensor | functional.PackedSpikes, start: list[Tensor],
          all_spikes: bool = True) -> list[Tensor]:
    """Spikes (784, B, N) of every layer, by lsnn_ext; or those of the last alone, and then the
    layers hand on their spikes as bits."""
    spikes = []
    for layer, first in zip(net, start, strict=True):
        zero = torch.zeros_like(first)
        # the adaptation starts at theta
        state = functional.State(first, torch.full_like(first, THETA), zero, zero, first[None])
        found = functional.layer(
            x, layer.w_in, None if layer.w_rec is None else layer.w_rec.T, bias=layer.bias,
            alpha=layer.alpha, rho=layer.rho, theta=THETA, beta=BETA, dynamics="srnn", state=state,
            spikes=True if all_spikes or layer is net[-1] else "bits")
        if found.packed is not None:
            x = found.packed
        else:
            assert found.spikes is not None
            x = found.spikes
            spikes.append(x)
    return spikes


def loop(net: list[Layer], x: Tensor, start: list[Tensor],
         all_spikes: bool = True) -> list[Tensor]:
    """The same by the equations, step by step."""
    mem, z = list(start), list(start)
    b = [torch.full_like(first, THETA) for first in start]
    spikes: list[list[Tensor]] = [[] for _ in net]
    for below in x:
        for k, (w_in, w_rec, bias, alpha, rho) in enumerate(net):
            current = nn.functional.linear(below, w_in, bias)
            if w_rec is not None:
                current = current + z[k] @ w_rec.T
            b[k] = rho * b[k] + (1 - rho) * z[k]
            B = THETA + BETA * b[k]
            mem[k] = alpha * mem[k] + (1 - alpha) * current - B * z[k]
            z[k] = (mem[k] > B).float()
            below = z[k]
            spikes[k].append(below)
    return [torch.stack(each) for each in (spikes if all_spikes else spikes[-1:])]


def accuracy(net: list[Layer], pixels: Tensor, labels: Tensor, batch: int = 250) -> float:
    """The share of the digits whose own output neuron spikes most; the start counts, as the authors
    count it."""
    generator = torch.Generator().manual_seed(0)
    correct = 0
    for part, wanted in zip(pixels.split(batch), labels.split(batch), strict=True):
        start = starts(net, len(part), generator)
        outputs = fused(net, windows(part), start, all_spikes=False)[-1]
        correct += int(((start[-1] + outputs.sum(0)).argmax(1) == wanted).sum())
    return correct / len(labels)


def seconds(run: Callable[[], object]) -> float:
    """What a call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main(given: list[str] | None = None) -> None:
    """Reads, tests, compares, times."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--digits", type=int, default=10_000, help="how many test digits")
    parser.add_argument("--data", type=Path, default=Path("data"),
                        help="folder the data is kept in")
    options = parser.parse_args(given)
    net = layers(read(options.checkpoint))
    _, test = load(options.data)
    pixels, labels = test.pixels[:options.digits], test.labels[:options.digits]
    with torch.no_grad():
        print(f"accuracy on {len(labels):,} test digits: "
              f"{100 * accuracy(net, pixels, labels):.2f} %")
        compare(net, windows(pixels[:100]))


def compare(net: list[Layer], x: Tensor) -> None:
    """Prints how many spikes differ from those of the loop, and both times."""
    start = starts(net, x.shape[1], torch.Generator().manual_seed(1))
    ours, theirs = fused(net, x, start), loop(net, x, start)
    differing = sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
    entries = sum(each.numel() for each in theirs)
    rates = ", ".join(f"{100 * float(each.mean()):.1f} %" for each in theirs)
    print(f"spikes of all layers on {x.shape[1]} digits: {differing} of {entries:,} differ from "
          f"those of the loop; the layers fire at {rates}")
    times = [(seconds(lambda: fused(net, x, start, False)),
              seconds(lambda: loop(net, x, start, False))) for _ in range(ROUNDS)]
    for what, at in (("medians", ROUNDS // 2), ("minima", 0)):
        mine, other = (sorted(each)[at] for each in zip(*times, strict=True))
        print(f"{x.shape[1]} digits, {torch.get_num_threads()} threads, {what} of {ROUNDS}: "
              f"lsnn_ext {1e3 * mine:.0f} ms, loop {1e3 * other:.0f} ms: {other / mine:.1f} times "
              f"faster")


if __name__ == "__main__":
    main()
