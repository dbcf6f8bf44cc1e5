"""Outputs and past spikes that are written to tensors, lists and dictionaries."""
from typing import Any

import torch
from torch import Tensor

from fooling.around import Folds
from fooling.base import N, Net, add, fused, loop


class Collects(Net):
    """Programs that write the spikes of each step to a tensor."""

    extra = 0  # rows more than steps

    def make(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x) + self.extra, x.shape[1], N)

    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = self.make(x)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            self.write(out, t, v, z)
        return out


@fused
class OutByIndex(Collects):
    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        out[t] = z


@loop
class OutInEmpty(Collects):
    def make(self, x: Tensor) -> Tensor:
        return torch.empty(x.shape[1], len(x), N, dtype=x.dtype)

    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        out[:, t] = z


@loop
class OutAdded(Collects):
    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        out[t] += z
        out[t] += v


@loop
class OutAddedElsewhere(Collects):
    """Each step adds to its own and to the next row."""

    extra = 1

    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        out[t] += z
        out[t + 1] += 0.5 * z


@loop
class OutInEvenSteps(Collects):
    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        if t % 2 == 0:
            out[t] = z


@loop
class OutTwice(Collects):
    """All steps write to three rows."""

    def make(self, x: Tensor) -> Tensor:
        return x.new_zeros(3, x.shape[1], N)

    def write(self, out: Tensor, t: int, v: Tensor, z: Tensor) -> None:
        out[t % 3] = z


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
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(len(x), x.shape[1], N)
        for row, x_t in zip(out, x, strict=True):
            v, z = self.step(x_t, v, z)
            row.copy_(z.detach())
        return out


@loop
class OutAlias(Net):
    """What is written is seen through a view that was taken before."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(len(x), x.shape[1], N)
        first = out[0]
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out[t] = z
        return first * 2, out


@loop
class Ring(Net):
    """A buffer of four delays that is written in a circle."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        ring = x.new_zeros(4, x.shape[1], N)
        out = []
        for t in range(len(x)):
            v, z = self.step(x[t], v, ring[(t + 1) % 4].clone())
            ring = ring.clone()
            ring[t % 4] = z
            out.append(z)
        return torch.stack(out)


@loop
class Rolled(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        past = x.new_zeros(3, x.shape[1], N)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, past[-1])
            past = torch.cat([z[None], past[:-1]])
            out.append(z)
        return torch.stack(out)


@loop
class InsertedInFront(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out: list[Tensor] = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.insert(0, z)
        return torch.stack(out)


@loop
class Dictionary(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = {}
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, z)
            out[t % 5, "z"] = z
        return out


add(loop, Folds, "fold", TotalInPlace=lambda self, total, v, z: total.add_(z))
