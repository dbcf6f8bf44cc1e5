"""Constraints that forward enforces on parameters, as a clamp of decays or a mask of weights."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert

T, B, N = 30, 3, 6


def _draw() -> Tensor:
    return torch.rand(T, B, N, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, constrain: Callable[["Net"], object], is_late: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(N, N))
        self.decay = nn.Parameter(torch.rand(N) + 0.3)
        self.register_buffer("mask", torch.rand(N, N) < 0.5)
        self.constrain, self.is_late = constrain, is_late
        self.mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.is_late:
            self.constrain(self)
        r = x.new_zeros(B, N)
        out = []
        for t in range(T):
            r = self.decay * r + 0.1 * torch.tanh(r @ self.w + x[t])
            out.append(r)
        if self.is_late:
            self.constrain(self)
        return torch.stack(out)


def _clamp(net: Net) -> None:
    with torch.no_grad():
        net.decay.clamp_(0, 0.9)
        net.w.mul_(net.mask)


def _assign(net: Net) -> None:
    with torch.no_grad():
        torch._foreach_mul_([net.w, net.decay.data], 0.9)
        net.decay *= 0.9
        net.w *= net.mask


def _set(net: Net) -> None:
    net.w.data = net.w.data * net.mask
    net.w.data = net.mask * net.w
    net.decay.data = net.decay.detach().clamp(0, 0.8)
    net.decay.data = torch.clamp(net.decay, 0.1, 0.7)


def _multiply(net: Net) -> None:
    net.w.data.mul_(0.9)


def _write_parts(net: Net) -> None:
    net.w.data[net.mask] = 0.5
    net.w.data[0] = 0
    net.w.detach().fill_diagonal_(0.0)


CONSTRAINTS: list[Callable[[Net], Any]] = [
    _clamp, _assign, _set, _write_parts, _multiply,
    lambda net: net.w.data.copy_(net.w.data * net.mask + net.decay.data)]


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("constrain", CONSTRAINTS)
def test_constraints_hold(constrain: Callable[[Net], Any], is_late: bool) -> None:
    """In training, with steps of an optimizer between, and not at all in evaluation."""
    torch.manual_seed(0)
    original = Net(constrain, is_late).double()
    before = copy.deepcopy(original.state_dict())
    model, report = convert(copy.deepcopy(original), _draw())
    assert len(report.fused) == (0 if is_late else 1)
    assert not is_late or "no write to a parameter after calls that read it" in report.reason
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name])
    models = (model, original)
    optimizers = [torch.optim.SGD(one.parameters(), lr=1e-4) for one in models]
    for is_training in (True, True, False, True):
        x = _draw()
        for one, optimizer in zip(models, optimizers, strict=True):
            one.train(is_training)
            optimizer.zero_grad()
            one.result = one(x).detach()
            if not is_late:  # else the backward pass may raise
                # a write to the data does not count as one for what autograd keeps
                penalty = one.w.square().sum() if constrain is _multiply else 0.0
                (one(x).square().mean() + penalty).backward()
                optimizer.step()
        torch.testing.assert_close(model.result, original.result)
        torch.testing.assert_close(*([(p, p.grad) for p in one.parameters()] for one in models))


@pytest.mark.parametrize("make", ["input", "in the loop", "shared", "held", "returned",
                                  "transposed"])
def test_other_writes_stay_as_they_are(make: str) -> None:
    """Refused, or equal."""
    class Other(Net):
        def forward(self, x: Tensor) -> Any:
            if make == "input":
                x.data.clamp_(0, 0.5)
            if make == "transposed":
                with torch.no_grad():
                    self.w.t().data.mul_(self.mask)
            if make == "returned":
                self.w.data.clamp_(0, 0.5)
            if make == "shared":
                self.w.data = self.start
            held = self.w.data
            r = x.new_zeros(B, N)
            for t in range(T):
                r = self.decay * r + 0.1 * torch.tanh(r @ self.w + x[t])
                if make == "in the loop":
                    self.w.data.mul_(0.9)
                if make == "held" and t == 3:
                    self.w.data.mul_(0.5)
            return (r, held) if make == "returned" else r + held.sum()

    torch.manual_seed(0)
    original = Other(_clamp)
    original.register_buffer("start", torch.rand(N, N))
    original, x = original.double(), _draw().requires_grad_(make == "input")
    model, _ = convert(copy.deepcopy(original), x)
    torch.testing.assert_close(*(dict(one.state_dict()) for one in (model, original)))
    for _ in range(3):
        given = [x.detach().clone().requires_grad_(x.requires_grad) for _ in range(2)]
        results = [one(x) for one, x in zip((model, original), given, strict=True)]
        torch.testing.assert_close(*given)
        with torch.no_grad():
            for one in (model, original):
                one.w.mul_(0.9)  # as an optimizer does, which changes what shares its memory
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(dict(one.state_dict()) for one in (model, original)))


def test_data_whose_graph_is_read_is_refused() -> None:
    def constrain(net: Net) -> None:
        kept = net.w * net.mask
        net.w.data = kept
        net.kept = kept.sum()

    _, report = convert(Net(constrain).double(), _draw())
    assert not report.converted and "a tensor of unknown origin" in report.reason
