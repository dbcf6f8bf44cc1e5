"""Results and states in the memory of others."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert
from small_loops import spike


class Viewed(nn.Module):
    """Keeps a view of a parameter as its state."""

    def __init__(self, is_view: bool) -> None:
        super().__init__()
        self.start, self.is_view = nn.Parameter(torch.rand(4)), is_view
        self.s: Any = None

    def forward(self, x: Tensor) -> Tensor:
        s = self.start.expand(2, 4) if self.s is None else self.s
        self.s = s.detach() if self.is_view else s.detach().clone()
        v = torch.zeros(2, 4)
        for t in range(20):
            v = 0.9 * v + x[t] * s
        return v


def test_a_state_that_changes_with_a_parameter_is_refused() -> None:
    x = torch.rand(20, 2, 4)
    assert convert(Viewed(False), x)[1].converted
    report = convert(Viewed(True), x)[1]
    assert report.reason.startswith("start: expected states in other memory")


class ReturnsView(nn.Module):
    """Returns a view of a parameter, as actors do of a deviation."""

    def __init__(self, is_in_loop: bool) -> None:
        super().__init__()
        self.log_std, self.is_in_loop = nn.Parameter(torch.rand(4)), is_in_loop

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v = torch.zeros(2, 4)
        for t in range(20):
            v = 0.9 * v + torch.tanh(x[t] + v)
            std = self.log_std.expand_as(v) if self.is_in_loop or not t else std  # noqa: F821
        return v, std, self.log_std[1:].detach()


@pytest.mark.parametrize("is_in_loop", [False, True])
def test_a_view_of_a_parameter_is_a_result(is_in_loop: bool) -> None:
    x = torch.rand(20, 2, 4)
    original, (model, report) = ReturnsView(is_in_loop), convert(ReturnsView(is_in_loop), x)
    assert report.converted is not is_in_loop
    original.load_state_dict(model.state_dict())
    made, wanted = model(x), original(x)
    torch.testing.assert_close(made, wanted)
    assert [one.requires_grad for one in made] == [False, True, False]
    with torch.no_grad():
        model.log_std += 1  # as the step of an optimizer
    torch.testing.assert_close(made[1:], (wanted[1] + 1, wanted[2] + 1))


class KeepsInputs(nn.Module):
    """Keeps views of its input until the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.kept = nn.Linear(5, 5), {"x": []}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["x"] = []
        v = z = torch.zeros(x.shape[1], 5)
        for one in x:
            self.kept["x"].append(one)
            v = 0.9 * v + one + self.back(z)
            z = spike(v - 0.5)
        return v


def test_states_that_the_call_replaces_share_no_memory_with_new_ones(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsnn_ext.loops.plan.LEAST_GAIN", 0)
    model, x = KeepsInputs(), torch.randn(9, 3, 5)
    original = copy.deepcopy(model)
    model, report = convert(model, x)
    assert report.converted
    for _ in range(3):
        torch.testing.assert_close(model(x), original(x))
    assert all(entry.plan is not None for entry in model._lsnn_replayer.all())


class Writes(nn.Module):
    """Writes to what it has as attributes."""

    def __init__(self, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.start, self.write = nn.Parameter(torch.ones(2, 4)), write
        self.register_buffer("b", torch.ones(2, 4))
        self.s: Any = 0.5 * self.start

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        v = torch.zeros(2, 4)
        for one in x:
            v = 0.9 * v + torch.tanh(one + v)
        return v


@pytest.mark.parametrize("write, reason", (
    (lambda model: model.b.mul_(2).t_(), "t_: expected no write to a parameter"),
    (lambda model: model.b.mul_(2).requires_grad_(), "requires_grad_: expected no write to a"),
    (lambda model: model.start.detach_(), "detach_: expected no write to a parameter"),
    (lambda model: model.s.detach_().fill_(2), "fill_: expected no write to an attribute after"),
    (lambda model: model.s.detach_().t_(), "t_: expected no write to an attribute after")))
def test_a_write_that_changes_the_kind_of_an_attribute_is_refused(
        write: Callable[[Any], Any], reason: str) -> None:
    report = convert(Writes(write), torch.rand(20, 2, 4))[1]
    assert reason in report.reason
