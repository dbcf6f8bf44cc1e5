"""Outputs and past spikes that are written to tensors, lists and dictionaries."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Net, OwnLoop, add, fused, loop


class Collects(Net):
    """Programs that write the spikes of each step to a tensor."""

    def make(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), x.shape[1], N)

    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        out = self.make(x)
        for t, _, v, z in self.run_steps(x, (x[t] for t in range(len(x)))):
            self.write(out, t, v, z)
        return out


def write_at(index: Callable[[int], Any]) -> Any:
    """A method that writes the spikes at an index that depends on the step."""
    def write(self: Net, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        out[index(t)] = z

    return write


add(fused, Collects, "write", OutByIndex=write_at(lambda t: t))
add(loop, Collects, "make write",
    OutInEmpty=(lambda self, x: torch.empty(x.shape[1], len(x), N, dtype=x.dtype),
                write_at(lambda t: (slice(None), t))),
    # All steps write to three rows.
    OutTwice=(lambda self, x: x.new_zeros(3, x.shape[1], N), write_at(lambda t: t % 3)))


def add_both(self: Net, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
    out[t] += z
    out[t] += v


def write_even_steps(self: Net, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
    if t % 2 == 0:
        out[t] = z


add(loop, Collects, "write", OutAdded=add_both, OutInEvenSteps=write_even_steps)


@loop
class OutReadBack(Net):
    """The states live in tensors over time."""

    def forward(self, x: Tensor) -> Any:
        v = x.new_zeros(len(x) + 1, x.shape[1], N)
        z = torch.zeros_like(v)
        for t in range(len(x)):
            v[t + 1], z[t + 1] = self.step(x[t], v[t].clone(), z[t].clone())
        return z[1:], v


@loop
class OutReadEarlier(Net):
    """Reads rows before they are written, and after."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = torch.ones(len(x), x.shape[1], N, dtype=x.dtype)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            v = v - (out[(t + 3) % len(x)] * 0.25).detach()
            with torch.no_grad():
                out[t] = z
        return out, v


@loop
class OutByView(Net):
    learns = False

    def forward(self, x: Tensor) -> Any:
        out = x.new_zeros(len(x), x.shape[1], N)
        for row, (_, _, _, z) in zip(out, self.run_steps(x), strict=True):
            row.copy_(z.detach())
        return out


@loop
class OutAlias(Net):
    """What is written is seen through a view that was taken before."""

    def forward(self, x: Tensor) -> Any:
        out = x.new_zeros(len(x), x.shape[1], N)
        first = out[0]
        for t, _, _, z in self.run_steps(x):
            out[t] = z
        return first * 2, out


@loop
class Ring(OwnLoop):
    """A buffer of four delays that is written in a circle."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        ring = x.new_zeros(4, x.shape[1], N)
        for t in range(len(x)):
            v, z = self.step(x[t], v, ring[(t + 1) % 4].clone())
            ring = ring.clone()
            ring[t % 4] = z
            yield z


def total_in_place(self: Net, x: Tensor) -> Tensor:
    total = torch.zeros_like(self.zeros(x)[0])
    for _, _, _, z in self.run_steps(x):
        total += z
    return total


add(loop, Net, "forward",
    InsertedInFront=lambda self, x: torch.stack([z for _, _, _, z in self.run_steps(x)][::-1]),
    Dictionary=lambda self, x: {(t % 5, "z"): z for t, _, _, z in self.run_steps(x)},
    TotalInPlace=total_in_place)
