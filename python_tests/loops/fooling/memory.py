"""State that a model keeps between calls, or leaves behind."""
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fooling.base import N, Net, Spike, loop


def few_bits(v: Tensor) -> Tensor:
    """Without a gradient, and rounded so that sums stay exact in the next call."""
    return torch.round(v.detach() * 16) / 16


@loop
class States(Net):
    """States in attributes, from zero in each call."""

    def forward(self, x: Tensor) -> Any:
        self.v, self.z = self.zeros(x)
        out = []
        for x_t in x:
            self.v, self.z = self.step(x_t, self.v, self.z)
            out.append(self.z)
        return torch.stack(out)


@loop
class StatesCarried(Net):
    """States go from call to call, detached; another batch begins at zero."""

    def prepare(self) -> None:
        self.v: Tensor | None = None
        self.z: Tensor | None = None

    def begin(self) -> None:
        self.v, self.z = few_bits(self.v), self.z.detach()

    def forward(self, x: Tensor) -> Any:
        if self.v is None or self.v.shape[0] != x.shape[1]:
            self.v, self.z = self.zeros(x)
        self.begin()
        out = []
        for x_t in x:
            self.v, self.z = self.step(x_t, self.v, self.z)
            out.append(self.z)
        return torch.stack(out)


@loop
class StatesReset(StatesCarried):
    """The user resets them between calls."""

    def change(self, call: int) -> None:
        if call in (2, 5):
            self.v = None

    changes = True


@loop
class StatesSet(StatesCarried):
    """The user sets them between calls."""

    def change(self, call: int) -> None:
        if call == 2:
            self.v = torch.full_like(self.v, 0.5)
        if call == 5:
            self.z.fill_(1)

    changes = True


@loop
class StatesWithGraph(StatesCarried):
    """The states keep their graph, so that the second backward raises."""

    def begin(self) -> None:
        """Detaches nothing."""


@loop
class StatesInList(Net):
    def prepare(self) -> None:
        self.states: list[Tensor | None] = [None] * 2

    def forward(self, x: Tensor) -> Any:
        if self.states[0] is None or len(self.states[0]) != x.shape[1]:
            self.states = list(self.zeros(x))
        self.states[0] = few_bits(self.states[0])
        self.states[1] = self.states[1].detach()
        out = []
        for x_t in x:
            self.states[0], self.states[1] = self.step(x_t, *self.states)
            out.append(self.states[1])
        return torch.stack(out)


class Pair(NamedTuple):
    """The state of a layer."""

    v: Tensor
    z: Tensor


@loop
class StatesInTuple(Net):
    state: Pair | None = None

    def forward(self, x: Tensor) -> Any:
        if self.state is None or self.state.v.shape[0] != x.shape[1]:
            self.state = Pair(*self.zeros(x))
        self.state = Pair(*(few_bits(one) for one in self.state))
        out = []
        for x_t in x:
            self.state = Pair(*self.step(x_t, *self.state))
            out.append(self.state.z)
        return torch.stack(out)


@loop
class StatesInObject(Net):
    def prepare(self) -> None:
        self.kept = SimpleNamespace(v=None, z=None)

    def forward(self, x: Tensor) -> Any:
        kept = self.kept
        if kept.v is None or kept.v.shape[0] != x.shape[1]:
            kept.v, kept.z = self.zeros(x)
        v, z = few_bits(kept.v), kept.z.detach()
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(z)
        kept.v, kept.z = v, z
        return torch.stack(out)


class Neuron(nn.Module):
    """A neuron with its state inside, as spikingjelly's and snnTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0

    def forward(self, c: Tensor) -> Tensor:
        self.v = 0.75 * self.v + c
        z = Spike.apply(self.v - 1)
        self.v = self.v - z.detach()
        return z


@loop
class StatesInSubmodule(Net):
    """From a number to a tensor; the user resets before some calls."""

    def prepare(self) -> None:
        self.neuron = Neuron()

    def change(self, call: int) -> None:
        self.neuron.v = 0.0 if call != 2 else self.neuron.v.detach()

    def forward(self, x: Tensor) -> Any:
        z = x.new_zeros(x.shape[1], N)
        out = []
        for x_t in x:
            z = self.neuron(self.feed(x_t) + self.back(z))
            out.append(z)
        return torch.stack(out)

    changes = True


@loop
class StatesInBuffer(Net):
    def prepare(self) -> None:
        self.register_buffer("v", torch.zeros(1, N, dtype=self.dtype))

    def forward(self, x: Tensor) -> Any:
        v, z = self.v.expand(x.shape[1], N), x.new_zeros(x.shape[1], N)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(z)
        self.v = few_bits(v[:1])
        return torch.stack(out)


@loop
class LeftBehind(Net):
    """An attribute that only the caller reads."""

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.last = {"spikes": spikes.detach(), "steps": len(x), "total": [spikes.sum()]}
        return spikes


@loop
class RateLoss(Net):
    """A regularizer in an attribute, with a gradient."""

    losses = ("rate",)
    rounds = True

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.rate = (spikes.mean((0, 1)) - 0.25).square().sum()
        return spikes


@loop
class RateAddedUp(Net):
    """A regularizer that each step adds to, from zero in each call."""

    losses = ("rate",)

    def order(self, x: Tensor) -> Any:
        self.rate: Any = 0.0
        return x

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().step(x, v, z)
        self.rate = self.rate + z.sum()
        return v, z


@loop
class MovingAverage(Net):
    """A plain tensor that each call reads and replaces."""

    def prepare(self) -> None:
        self.average = torch.zeros(N, dtype=self.dtype)

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(x, v - self.average / 64, z)

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.average = 0.5 * self.average + spikes.detach().sum((0, 1)) / 64
        return spikes


@loop
class MovingAverageInPlace(MovingAverage):
    step_at = Net.step_at

    def order(self, x: Tensor) -> Any:
        return x - self.average.sum() / 64

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.average.mul_(0.5).add_(spikes.detach().sum((0, 1)) / 64)
        return spikes
