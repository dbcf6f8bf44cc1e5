"""Learn by how many steps each synapse delays its spikes: real numbers, by gradient descent.

A w_rec of shape (S, N, N) holds a weight for each pair of neurons and each of S delays. A delay d
that is a real number becomes two of them, (1 - f) w at the delay floor(d) and f w at the next, with
f = d - floor(d): then d has a gradient, and nothing but torch is needed to say so.

Here sources fire at random and targets listen. A teacher has delays that nobody knows; from its
membranes alone the student finds them. The gradients of delays and weights are first compared with
finite differences.

    python examples/learned_delays/train.py
"""
import argparse

import torch
from torch import Tensor

from lsnn_ext import functional

NEURON = {"alpha": 0.95, "theta": 1.0, "rho": 0.9, "beta": 0.5}


def spread(w: Tensor, d: Tensor, S: int) -> Tensor:
    """Weights w (N, N) with delays d (N, N) from 0 to S - 1, real numbers, as weights (S, N, N) of
    whole delays."""
    steps = torch.arange(S, dtype=d.dtype, device=d.device)[:, None, None]
    return w * torch.relu(1 - (d - steps).abs())


def membranes(x: Tensor, w: Tensor, d: Tensor, S: int, smooth: bool = False) -> Tensor:
    """The membrane (T, B, N) of neurons with these weights and delays; x (T, B, N) comes from
    outside."""
    out = functional.alif(x, spread(w, d, S), delay=tuple(range(S)), trace=True, smooth=smooth,
                          **NEURON)
    traces = out[-1]
    assert isinstance(traces, functional.Traces)
    return traces.v


def check_gradients(generator: torch.Generator) -> bool:
    """Whether autograd and finite differences agree, in delays and weights; smooth spikes have
    derivatives."""
    T, B, N, S = 12, 2, 4, 5

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    x = drawn(T, B, N) * 2 - 0.5
    w = (drawn(N, N) - 0.3).requires_grad_()
    d = (
        drawn(N, N) * 0.8 + 0.1 + torch.randint(0, S - 1, (N, N), generator=generator)
    ).requires_grad_()
    return torch.autograd.gradcheck(lambda w, d: membranes(x, w, d, S, smooth=True), (w, d),
                                    rtol=1e-4, atol=1e-6)


def learn(iterations: int, generator: torch.Generator, sources: int = 8, targets: int = 8,
          S: int = 8,
          ) -> tuple[float, float]:
    """Mean distance of the student's delays from the teacher's, in steps, before and after."""
    T, B, N = 200, 8, sources + targets
    x = torch.zeros(T, B, N)
    x[..., :sources] = 20.0 * (torch.rand(T, B, sources, generator=generator) < 0.04)
    joined = torch.zeros(N, N)
    joined[:sources, sources:] = 1.0
    w = joined * (0.5 + torch.rand(N, N, generator=generator))
    teacher = torch.randint(0, S, (N, N), generator=generator).float()
    with torch.no_grad():
        wanted = membranes(x, w, teacher, S)
    d = torch.full((N, N), (S - 1) / 2, requires_grad=True)
    optimizer = torch.optim.Adam([d], lr=0.1)

    def distance() -> float:
        return float(((d.detach() - teacher).abs() * joined).sum() / joined.sum())

    before = distance()
    for _ in range(iterations):
        optimizer.zero_grad()
        (membranes(x, w, d, S) - wanted)[..., sources:].square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            d.clamp_(0, S - 1)
    return before, distance()


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn real-valued delays of synapses.")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    print(f"gradients of delays and weights agree with finite differences: "
          f"{check_gradients(generator)}")
    before, after = learn(args.iterations, generator)
    print(f"distance of the delays from the teacher's, in steps: {before:.2f} before, {after:.2f} "
          f"after")


if __name__ == "__main__":
    main()
