"""Several loops, loops in loops, and several layers."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import N, Net, OwnLoop, add, fused, loop


def repeat_step(count: Callable[[int], int]) -> Any:
    """A method that makes as many substeps as count returns for a step."""
    def step_at(self: Net, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(count(t)):
            v, z = self.step(x, v, z)
        return v, z

    return step_at


add(loop, Net, "step_at order",
    Substeps=(repeat_step(lambda t: 3), Net.order),
    MoreAndMoreSubsteps=(repeat_step(lambda t: t + 1), lambda self, x: (x[t] for t in range(6))))


@loop
class AsManySubsteps(OwnLoop):
    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        for t in range(5):
            for k in range(5):
                v, z = self.step(x[t] + x[k], v, z)
            yield z


@fused
class TwoLoops(Net):
    def result(self, x: Tensor, spikes: Tensor) -> Any:
        v = spikes.new_zeros(x.shape[1], N)
        out = []
        for z in spikes:
            v = 0.5 * v + z
            out.append(v)
        return torch.stack(out)


add(loop, Net, "forward", LoopsOfOtherLengths=lambda self, x: torch.cat(
    [self.over(x, x[:5]), self.over(x, x[5:]), self.over(x, x[2:7])]))


@loop
class EqualLayers(Net):
    """A loop over layers, which is none over time."""

    def prepare(self) -> None:
        self.layers = nn.ModuleList([nn.Linear(N, N) for _ in range(6)])

    def forward(self, x: Tensor) -> Any:
        y = self.feed(x)
        for layer in self.layers:
            y = y + torch.relu(layer(y)) / 4
        return y

    rounds = True


@fused
class LayersInside(OwnLoop):
    def prepare(self) -> None:
        self.layers = nn.ModuleList([nn.Linear(N, N) for _ in range(3)])

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        states = [(v, z)] * 3
        for x_t in x:
            z = self.feed(x_t)
            for k, layer in enumerate(self.layers):
                v, z = self.fire(layer(z), *states[k])
                states[k] = v, z
            yield z
