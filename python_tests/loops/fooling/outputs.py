"""Outputs and past spikes that are written to tensors, lists and dictionaries."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Net, fused, loop


@fused
class OutByIndex(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(len(x), x.shape[1], N)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out[t] = z
        return out


@loop
class OutInEmpty(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = torch.empty(x.shape[1], len(x), N, dtype=x.dtype)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out[:, t] = z
        return out


@loop
class OutAdded(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(len(x), x.shape[1], N)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out[t] += z
            out[t] += v
        return out


@loop
class OutAddedElsewhere(Net):
    """Each step adds to its own and to the next row."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(len(x) + 1, x.shape[1], N)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out[t] += z
            out[t + 1] += 0.5 * z
        return out


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
class OutInEvenSteps(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(len(x), x.shape[1], N)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            if t % 2 == 0:
                out[t] = z
        return out


@loop
class OutTwice(Net):
    """All steps write to three rows."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = x.new_zeros(3, x.shape[1], N)
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out[t % 3] = z
        return out


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


@loop
class TotalInPlace(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        total = torch.zeros_like(v)
        for x_t in x:
            v, z = self.step(x_t, v, z)
            total += z
        return total
