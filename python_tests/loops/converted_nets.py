"""Small models to convert, and whether a converted one does what the original does."""
import abc
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext.loops import convert
from lsnn_ext.loops.plan import Plan
from lsnn_ext.zoo.surrogates import triangle


@pytest.fixture(autouse=True)
def plans_are_useful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replays do not depend on what can be fused. Counts them."""
    run = Plan.__call__

    def counted(self: Plan, *args: Any) -> Any:
        seen_replays.append(self)
        return run(self, *args)

    monkeypatch.setattr(Plan, "reason", property(lambda self: ""))
    monkeypatch.setattr(Plan, "__call__", counted)
    yield
    seen_replays.clear()


seen_replays: list[Plan] = []


class Net(nn.Module):
    spike = staticmethod(triangle)

    def __init__(self) -> None:
        super().__init__()
        self.project, self.back = nn.Linear(5, 4), nn.Linear(4, 4, bias=False)
        self.beta = 0.9
        self.calls = 0  # of no use to forward

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Spikes."""
        v = z = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        spikes = []
        for t in range(len(x)):
            v = self.beta * v + gain * self.project(x[t]) + self.back(z)
            z = self.spike(v - 0.3)
            spikes.append(z)
        return torch.stack(spikes)

    def double_of(self, x: Tensor) -> Tensor:
        return 2 * self(x)


class Stateful(Net):
    def __init__(self) -> None:
        super().__init__()
        self.v: Any = None
        self.log: Any = []
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("last", torch.zeros(1, 4))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        v = torch.zeros(x.shape[1], 4) if self.v is None else self.v.detach()
        z = torch.zeros_like(v)
        self.log = []
        for x_t in x:
            v = self.beta * v + self.project(x_t) + self.back(z)
            z = triangle(v - 0.3)
            self.log.append(z)
        with torch.no_grad():
            self.total += z.sum(0)
        self.v, self.last = v, z.detach()
        return torch.stack(self.log)


class Random(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5) + torch.rand(x.shape))


class Smooth(Net):
    spike = staticmethod(torch.sigmoid)


class Meta(Net, metaclass=abc.ABCMeta):
    pass


def draw_x(T: int = 3, seed: int = 0) -> Tensor:
    return 2 * torch.rand(T, 2, 5, generator=torch.Generator().manual_seed(seed))


def make_pair(kind: Callable[[], Any] = Net) -> tuple[Any, Any]:
    """A converted model and a copy of the original."""
    torch.manual_seed(0)
    original = kind()
    model, report = convert(copy.deepcopy(original), draw_x())
    assert report.converted
    seen_replays.clear()
    return model, original


def assert_same(model: Any, original: Any, *args: Any, replays: bool | None = None) -> None:
    count = len(seen_replays)
    results = []
    for one in (model, original):
        one.zero_grad()
        torch.manual_seed(3)
        result = one(*args)
        if result.requires_grad:
            result.sum().backward()
        results.append((result, [p.grad for p in one.parameters()],
                        [b.clone() for b in one.buffers()],
                        getattr(one, "v", None), list(getattr(one, "log", [])),
                        torch.random.get_rng_state()))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].requires_grad == results[1][0].requires_grad
    if replays is not None:
        assert (len(seen_replays) > count) == replays
