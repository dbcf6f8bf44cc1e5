"""Counters and caches that a model keeps between calls."""
import itertools
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fooling.base import N, Net, T, loop


class Memory(Net):
    """Programs with something of their own before and after each step."""

    def before(self, t: int, v: Tensor) -> Any:
        """Returns what is added to the membrane."""
        return 0.0

    def after(self, t: int, v: Tensor, z: Tensor) -> None:
        """Keeps something."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v + self.before(t, v), z)
            self.after(t, v, z)
            out.append(z)
        return torch.stack(out)


@loop
class Counts(Memory):
    """A counter that only counts."""

    count = 0

    def after(self, t: int, v: Tensor, z: Tensor) -> None:
        self.count += 1


@loop
class CountsAndReads(Counts):
    def before(self, t: int, v: Tensor) -> Any:
        return self.count / 512


@loop
class CountsModulo(Counts):
    """Every fifth step is another one, across calls."""

    def before(self, t: int, v: Tensor) -> Any:
        return 0.25 if self.count % 5 == 0 else 0.0


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
        spikes = self.over(x, x)
        if self.is_first:
            self.is_first = False
            return spikes * 2
        return spikes


@loop
class History(Memory):
    """A list that grows from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def after(self, t: int, v: Tensor, z: Tensor) -> None:
        self.history.append(z.detach().sum())


@loop
class HistoryRead(History):
    def before(self, t: int, v: Tensor) -> Any:
        return len(self.history) / 512 + (self.history[-1] / 512 if self.history else 0)


@loop
class LastFew(History):
    """A deque that is full after the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.history = deque(maxlen=4)  # type: ignore[assignment]

    def before(self, t: int, v: Tensor) -> Any:
        return self.history[0] / 512 if len(self.history) == 4 else 0.0


@loop
class CountsInArray(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(2)

    def before(self, t: int, v: Tensor) -> Any:
        return float(self.counts[0]) / 512

    def after(self, t: int, v: Tensor, z: Tensor) -> None:
        self.counts[0] += 1


@loop
class CountsInClosure(Memory):
    """No attribute shows the counter."""

    def __init__(self) -> None:
        super().__init__()
        count = 0

        def following() -> int:
            nonlocal count
            count += 1
            return count

        self.following = following

    def before(self, t: int, v: Tensor) -> Any:
        return self.following() / 512


@loop
class CountsInIterator(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.ticks = itertools.count()

    def before(self, t: int, v: Tensor) -> Any:
        return next(self.ticks) / 512


@loop
class CountsInGenerator(Memory):
    """A generator that is suspended between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = (k / 512 for k in range(10_000))

    def before(self, t: int, v: Tensor) -> Any:
        return next(self.gains)


@loop
class CountsInDefault(Memory):
    """A default argument that is written to."""

    def __init__(self) -> None:
        super().__init__()

        def following(kept: list[int] = [0]) -> int:  # noqa: B006
            kept[0] += 1
            return kept[0]

        self.following = following

    def before(self, t: int, v: Tensor) -> Any:
        return self.following() / 512


@loop
class CountsInSlots(Memory):
    """An object without a __dict__."""

    class Slots:
        __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.slots = self.Slots()
        self.slots.count = 0  # type: ignore[attr-defined]

    def before(self, t: int, v: Tensor) -> Any:
        self.slots.count += 1  # type: ignore[attr-defined]
        return self.slots.count / 512  # type: ignore[attr-defined]


@loop
class CacheOfMasks(Net):
    """A dictionary of what was made once for each length."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.linspace(0.0, 1.0, len(x), dtype=x.dtype).round(decimals=1)
        mask = self.cache[len(x)]
        return self.over(x, (x[t] * mask[t] for t in range(len(x))))


@loop
class Nonpersistent(Net):
    """A buffer from None to a tensor in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", None, persistent=False)

    def forward(self, x: Tensor) -> Any:
        if self.order is None or len(self.order) != T:
            self.order = torch.arange(T) % 3
        return self.over(x, (x[t] * self.order[t] for t in range(len(x))))


@loop
class LazyWeight(Net):
    """A parameter that the first call makes."""

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.full((N,), 0.5, dtype=self.dtype))
        return self.over(x, x) * self.gain
