"""A published network, run again: sequential MNIST by Yin, Corradi and Bohte (Nature Machine
Intelligence 3, 905, 2021).

    python examples/smnist/published.py CHECKPOINT [--digits 1000]

CHECKPOINT is the file model_98.21_Task-smnist... of NMI_vis/smnist in the authors' repository,
byin-cwi/Efficient-spiking-networks on GitHub (MIT licence); smnist.yin.load reads it. Four layers
of model `srnn`: two recurrent ones, one without recurrence, and ten output neurons; each reads the
spikes of the layer before in the same step. At each of 784 steps the network sees a window of 8
pixels, and the class whose output neuron spikes most is the answer.

Prints the accuracy on the test digits; then, on the first hundred, whether every spike of every
layer is that of a plain loop, and how long both take to count the spikes of the outputs on the same
threads.
"""
import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from lsnn_ext.functional import State
from smnist import yin
from smnist.data import load

THETA, BETA, ROUNDS = 0.01, 1.8, 5


def read(path: Path) -> yin.SequentialMNIST:
    """The network of a checkpoint. Raises SystemExit, with a message that names the file, for a
    file that is none."""
    try:
        return yin.load(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"CHECKPOINT: {error}") from None


def loop(net: yin.SequentialMNIST, x: Tensor, start: list[State]) -> Iterator[list[Tensor]]:
    """The spikes of all layers by the equations, step by step."""
    layers = net.layers()
    mem, b, z = ([getattr(state, name)[0] for state in start] for name in "vaz")
    z = [each[0] for each in z]
    alpha = [torch.exp(-1 / layer.tau_mem_l0) for layer in layers]
    rho = [torch.exp(-1 / layer.tau_adapt_l0) for layer in layers]
    for below in x:
        for k, layer in enumerate(layers):
            current = nn.functional.linear(below, layer.weight_ih_l0, layer.bias_ih_l0)
            if layer.recurrent:
                current = current + z[k] @ layer.weight_hh_l0.T
            b[k] = rho[k] * b[k] + (1 - rho[k]) * z[k]
            B = THETA + BETA * b[k]
            mem[k] = alpha[k] * mem[k] + (1 - alpha[k]) * current - B * z[k]
            z[k] = (mem[k] > B).float()
            below = z[k]
        yield list(z)


def counts(net: yin.SequentialMNIST, x: Tensor, start: list[State]) -> Tensor:
    """What net.counts computes, by the loop."""
    first = start[-1].z[0, 0]
    found = torch.zeros_like(first)  # whole numbers, without rounding; those of the start are not
    for z in loop(net, x, start):
        found += z[-1]
    return first + found


def accuracy(net: yin.SequentialMNIST, pixels: Tensor, labels: Tensor, batch: int = 250) -> float:
    """The share of the digits whose own output neuron spikes most."""
    generator = torch.Generator().manual_seed(0)
    correct = 0
    for part, wanted in zip(pixels.split(batch), labels.split(batch), strict=True):
        correct += int((net(part, generator).argmax(1) == wanted).sum())
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
    net = read(options.checkpoint)
    _, test = load(options.data)
    pixels, labels = test.pixels[:options.digits], test.labels[:options.digits]
    with torch.no_grad():
        print(f"accuracy on {len(labels):,} test digits: "
              f"{100 * accuracy(net, pixels, labels):.2f} %")
        compare(net, pixels[:100])


def compare(net: yin.SequentialMNIST, pixels: Tensor) -> None:
    """Prints how many spikes differ from those of the loop, and both times."""
    x, start = net.windows(pixels), net.start(len(pixels), torch.Generator().manual_seed(1))
    ours = net.spikes(x, start)
    theirs = [torch.stack(each) for each in zip(*loop(net, x, start), strict=True)]
    differing = sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
    entries = sum(each.numel() for each in theirs)
    rates = ", ".join(f"{100 * float(each.mean()):.1f} %" for each in theirs)
    print(f"spikes of all layers on {x.shape[1]} digits: {differing} of {entries:,} differ from "
          f"those of the loop; the layers fire at {rates}")
    if not torch.equal(net.counts(x, start), counts(net, x, start)):
        raise RuntimeError("the spikes of the outputs are not as many as the loop's")
    times = [(seconds(lambda: net.counts(x, start)), seconds(lambda: counts(net, x, start)))
             for _ in range(ROUNDS)]
    for what, at in (("medians", ROUNDS // 2), ("minima", 0)):
        mine, other = (sorted(each)[at] for each in zip(*times, strict=True))
        print(f"{x.shape[1]} digits, {torch.get_num_threads()} threads, {what} of {ROUNDS}: "
              f"lsnn_ext {1e3 * mine:.0f} ms, loop {1e3 * other:.0f} ms: {other / mine:.1f} times "
              f"faster")


if __name__ == "__main__":
    main()
