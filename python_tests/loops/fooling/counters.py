"""Counters and caches that a model keeps between calls."""
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import N, Net, T, add, loop


class Memory(Net):
    """Programs with something of their own before and after each step."""

    def before(self) -> Any:
        """Returns what is added to the membrane."""
        return 0.0

    def after(self, z: Tensor) -> None:
        """Keeps something."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x, v + self.before(), z)
        self.after(z)
        return v, z


@loop
class Counts(Memory):
    count = 0

    def after(self, z: Tensor) -> None:
        self.count += 1


add(loop, Counts, "before", CountsAndReads=lambda self: self.count / 512)


@loop
class CountsCalls(Net):
    """The first two calls warm up."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.over(x, x if self.calls > 2 else x / 2)


@loop
class FirstCall(Net):
    is_first = True

    def forward(self, x: Tensor) -> Any:
        scale = 2 if self.is_first else 1
        self.is_first = False
        return scale * self.over(x, x)


@loop
class History(Memory):
    """A list that grows from call to call."""

    def prepare(self) -> None:
        self.history: list[Tensor] = []

    def after(self, z: Tensor) -> None:
        self.history.append(z.detach().sum())


add(loop, History, "before", HistoryRead=lambda self: (
    len(self.history) / 512 + (self.history[-1] / 512 if self.history else 0)))
# A deque that is full after the first call.
add(loop, History, "prepare before", LastFew=(
    lambda self: setattr(self, "history", deque(maxlen=4)),
    lambda self: self.history[0] / 512 if len(self.history) == 4 else 0.0))


def count_in_closure() -> Callable[[], int]:
    count = 0

    def following() -> int:
        nonlocal count
        count += 1
        return count

    return following


def count_in_default() -> Callable[[], int]:
    def following(kept: list[int] = [0]) -> int:  # noqa: B006
        kept[0] += 1
        return kept[0]

    return following


class CountsHidden(Memory):
    """No attribute shows the counter."""

    def make(self) -> Any:
        """What counts: a function or an iterator."""
        raise NotImplementedError

    def prepare(self) -> None:
        self.following = self.make()

    def before(self) -> Any:
        return (self.following() if callable(self.following) else next(self.following)) / 512


add(loop, CountsHidden, "make",
    CountsInClosure=lambda self: count_in_closure(),
    CountsInDefault=lambda self: count_in_default(),
    CountsInIterator=lambda self: itertools.count(),
    CountsInGenerator=lambda self: (k for k in range(10_000)))  # suspended between calls


@loop
class CountsInSlots(Memory):
    """An object without a __dict__."""

    class Slots:
        __slots__ = ("count",)

    def prepare(self) -> None:
        self.slots = self.Slots()
        self.slots.count = 0  # type: ignore[attr-defined]

    def before(self) -> Any:
        self.slots.count += 1  # type: ignore[attr-defined]
        return self.slots.count / 512  # type: ignore[attr-defined]


@loop
class CacheOfMasks(Net):
    """A dictionary of what was made once for each length."""

    def prepare(self) -> None:
        self.cache: dict[int, Tensor] = {}

    def order(self, x: Tensor) -> Any:
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.linspace(0.0, 1.0, len(x), dtype=x.dtype).round(decimals=1)
        mask = self.cache[len(x)]
        return (x[t] * mask[t] for t in range(len(x)))


@loop
class Nonpersistent(Net):
    """A buffer from None to a tensor in the first call."""

    def prepare(self) -> None:
        self.register_buffer("gains", None, persistent=False)

    def order(self, x: Tensor) -> Any:
        if self.gains is None or len(self.gains) != T:
            self.gains = torch.arange(T) % 3
        return (x[t] * self.gains[t] for t in range(len(x)))


@loop
class LazyWeight(Net):
    """A parameter that the first call makes."""

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.full((N,), 0.5, dtype=self.dtype))
        return self.over(x, x) * self.gain
