"""State that a model keeps between calls, or leaves behind."""
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fooling.base import N, Net, OwnLoop, Spike, add, loop


def few_bits(v: Tensor) -> Tensor:
    """Without a gradient, and rounded so that sums stay exact in the next call."""
    return torch.round(v.detach() * 16) / 16


class Stateful(OwnLoop):
    """Programs that read their state before each step, and write it after."""

    def prepare(self) -> None:
        self.store(None, None)

    def load(self) -> Any:
        return self.v, self.z

    def store(self, v: Any, z: Any) -> None:
        self.v, self.z = v, z

    def begin(self, v: Tensor, z: Tensor) -> None:
        """Sets the first state, from zeros."""
        self.store(v, z)

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        self.begin(v, z)
        for x_t in x:
            v, z = self.step(x_t, *self.load())
            self.store(v, z)
            yield z


@loop
class StatesFromZero(Stateful):
    """Nothing goes from call to call."""


@loop
class StatesCarried(Stateful):
    """States go from call to call, detached; another batch begins at zero."""

    def begin(self, v: Tensor, z: Tensor) -> None:
        last = self.load()
        if last[0] is not None and len(last[0]) == len(v):
            v, z = last
        self.store(*self.cut(v, z))

    def cut(self, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return few_bits(v), z.detach()


# The states keep their graph, so that the second backward raises.
add(loop, StatesCarried, "cut", StatesWithGraph=lambda self, v, z: (v, z))


class ChangedStates(StatesCarried):
    """Programs whose states the user sets between calls."""

    changes = True


def set_states(self: Any, call: int) -> None:
    if call == 2:
        self.v = torch.full_like(self.v, 0.5)
    if call == 5:
        self.z.fill_(1)


add(loop, ChangedStates, "change",
    StatesReset=lambda self, call: self.store(None, None) if call in (2, 5) else None,
    StatesSet=set_states)


class Pair(NamedTuple):
    """The state of a layer."""

    v: Any
    z: Any


def prepare_list(self: Any) -> None:
    self.states = [None, None]


def store_in_list(self: Any, v: Any, z: Any) -> None:
    self.states[0], self.states[1] = v, z


def prepare_object(self: Any) -> None:
    self.kept = SimpleNamespace(v=None, z=None)


add(loop, StatesCarried, "prepare load store",
    StatesInList=(prepare_list, lambda self: self.states, store_in_list),
    StatesInObject=(prepare_object, lambda self: (self.kept.v, self.kept.z),
                    lambda self, v, z: vars(self.kept).update(v=v, z=z)))
add(loop, StatesCarried, "load store", StatesInTuple=(
    lambda self: self.state, lambda self, v, z: setattr(self, "state", Pair(v, z))))


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
class StatesInSubmodule(OwnLoop):
    """From a number to a tensor; the user resets before some calls."""

    def prepare(self) -> None:
        self.neuron = Neuron()

    def change(self, call: int) -> None:
        self.neuron.v = 0.0 if call != 2 else self.neuron.v.detach()

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        for x_t in x:
            z = self.neuron(self.feed(x_t) + self.back(z))
            yield z

    changes = True


@loop
class StatesInBuffer(Net):
    def prepare(self) -> None:
        self.register_buffer("v", torch.zeros(1, N, dtype=self.dtype))

    def zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().zeros(x)
        return self.v.expand_as(v), z

    def forward(self, x: Tensor) -> Any:
        spikes, v = self.over_with_membrane(x)
        self.v = few_bits(v[:1])
        return spikes


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
