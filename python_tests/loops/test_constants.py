"""Objects among the arguments of a call: a constant is one that the model holds and that does not
change. What a call does beside calls of torch."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compare import assert_same, weighted_gradients
from lsnn_ext.loops.model import convert
from lsnn_ext.loops.verify import verify
from small_loops import prepare, random, spike

T, B, N = 12, 3, 5


@dataclass
class Slope:
    """The derivative of a spike."""

    height: float = 0.5
    others: Any = field(default_factory=lambda: {"power": [(2,)]})

    def __call__(self, u: Tensor) -> Tensor:
        return self.height / (1 + u.abs()) ** self.others["power"][0][0]


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Slope) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return gradient * ctx.slope(u), None


class Layer(nn.Module):
    def __init__(self, kind: str = "held") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent = nn.Linear(N, N, dtype=torch.float64)
        self.slope, self.kind = Slope(), kind
        self.register_buffer("mode", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        spikes = []
        v = torch.zeros_like(x[0])
        if self.kind == "detach_":
            v.detach_()
        z = v
        slope = Slope() if self.kind == "made" else self.slope
        if self.kind == "imports":
            from lsnn_ext import zoo
            v = v if zoo.brf else x[0]
        for t in range(len(x)):
            if self.kind == "compared" and self.mode == 1:
                v = 0.5 * v
            if self.kind == "compared numbers" and float(v.sum()) > 100:
                v = 0.5 * v
            if self.kind == "changed":
                self.slope.height = 0.5 + 0.1 * t
            v = 0.9 * v + x[t] + self.recurrent(z) - z.detach()
            if self.kind == "detach_ with a graph":
                v.detach_()
            z = Spike.apply(v - 1.0, slope)
            spikes.append(z)
        return torch.stack(spikes)


def _check(model: Layer, theirs: Layer, x: Tensor) -> None:
    """Twice: the recorded call, and one from the recording."""
    for _ in range(2):
        sides = []
        for side in (model, theirs):
            spikes = side(x)
            assert bool(spikes.any())
            gradients = (weighted_gradients([spikes], [x, *side.parameters()])
                         if spikes.requires_grad else ())
            sides.append((spikes, *gradients))
        assert_same("spikes and gradients", *sides, tolerance=1e-12)


def _x() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(T, B, N, dtype=torch.float64).requires_grad_()


def test_an_object_that_changes_between_calls() -> None:
    model, theirs, x = Layer(), Layer(), _x()
    convert(model, x)
    for height in (0.25, 2.0, 0.5):
        model.slope.height = theirs.slope.height = height
        _check(model, theirs, x)
    for side in (model, theirs):
        side.slope.others["power"][0] = (3,)
    _check(model, theirs, x)


def test_a_buffer_that_python_compares() -> None:
    """It is part of what each call looks at."""
    model, theirs, x = Layer("compared"), Layer("compared"), _x()
    convert(model, x)
    before = model(x)
    for mode in (1, 0, 2):
        for side in (model, theirs):
            side.mode.fill_(mode)
        _check(model, theirs, x)
        assert torch.equal(model(x), before) == (mode != 1)


@pytest.mark.parametrize("weigh", [
    lambda x, t: x * 0.9**t, lambda x, t: x * (torch.arange(B) <= t)[:, None],
    lambda x, t: (t - x).div(t + 1), lambda x, t: x + (x * torch.arange(N) * t).data])
def test_numbers_that_change_are_one_tensor(weigh: Callable[[Tensor, int], Tensor]) -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = torch.zeros(B, N).double()
        out = []
        for t, x_t in enumerate(x):
            v = 0.9 * v + weigh(x_t, t) @ w - spike(v - 0.5)
            out.append(v)
        return torch.stack(out)

    plan, result = prepare(model, [random(T, B, N), random(N, N)])
    assert verify(plan, result).gradients == 2
    assert {stage.kind for stage in plan.stages} <= {"invariant", "sliced", "batched", "fused"}
    assert all(getattr(stage.run, "has_rule", True) for stage in plan.stages)  # of torch.vmap


def test_what_cannot_be_restored() -> None:
    """A read-only array, and a tensor on the meta device."""
    model = Layer()
    model.table, model.shape = np.broadcast_to(np.ones(1), (3,)), torch.empty(3, device="meta")
    _, report = convert(model, _x())
    assert report.converted, report


@pytest.mark.parametrize(("kind", "reason"), [
    *((kind, "") for kind in ("held", "detach_", "detach_ with a graph", "imports", "compared")),
    ("compared numbers", "__float__: expected no number of a tensor in Python"),
    ("made", "expected tensors and plain arguments, got Slope"),
    ("changed", "expected tensors and plain arguments, got Slope"),
])
def test_fused_or_refused(kind: str, reason: str) -> None:
    model, x = Layer(kind), _x()
    _, report = convert(model, x)
    assert report.converted == bool(report.fused) == (not reason), str(report)
    assert reason in report.reason
    _check(model, Layer(kind), x)


# --------------------------------------------------------------- torch.full of numbers and sizes
FILLS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, level: torch.full((3, 4), level),
    lambda x, level: torch.full(size=(3, 4), fill_value=level), torch.full_like,
    lambda x, level: x.new_full((3, 4), level)]
SIZES: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, level: torch.full((3, 3 + (level > 0).long()), 1.0),
    lambda x, level: torch.full(size=(3, 3 + (level > 0).long()), fill_value=1.0),
    lambda x, level: torch.full((3, 3 + (level > 0).long()), level),
    lambda x, level: torch.zeros(3, 3 + (level > 0).long())]


class Started(nn.Module):
    """A membrane that starts at a level, which is the number or a part of the size."""

    def __init__(self, start: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("level", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, 3, 4)."""
        v = self.start(x[0], self.level)
        for x_t in x:
            v = 0.9 * v + torch.tanh(v) * x_t
        return v


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("start", "is_size"), [
    *((one, False) for one in FILLS), *((one, True) for one in SIZES)])
def test_a_number_is_read_in_each_call(start: Callable[..., Tensor], is_size: bool) -> None:
    x, original = torch.randn(8, 3, 4), Started(start)
    model, report = convert(Started(start), x)
    assert report.converted, str(report)
    for level in (0.5, 0.75, 0.5, -0.25):
        original.level.fill_(level)
        model.level.fill_(level)
        if is_size and level < 0:
            with pytest.raises(RuntimeError, match="size"):
                model(x)
        else:
            assert torch.allclose(model(x), original(x), rtol=1e-6, atol=1e-6)
