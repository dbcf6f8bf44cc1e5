"""The first iteration of a loop, in which states are made or broadcast."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import fuse
from lsnn_ext.loops.ir import Call
from small_loops import compare_calls, find_components, random, spike

T, B, I, N = 9, 5, 4, 6


class Cells(nn.Module):
    """A loop that makes its first states where it first needs them."""

    def __init__(self, make: Callable[..., Any], read: Callable[..., Any] | None = None,
                 rate: float = 0.0) -> None:
        super().__init__()
        self.w_in, self.w, self.start = (
            nn.Parameter(random(*shape, seed=3)) for shape in ((N, I), (N, N), ()))
        self.make, self.read, self.rate = make, read, rate

    def forward(self, x: Tensor) -> Any:
        state: Any = None
        made, more = [], []
        for one in x:
            c = F.dropout(F.linear(one, self.w_in), self.rate)
            if state is None:
                state = self.make(self, c)
            v, z = state
            shrunk = 0.9 * v
            if self.read is not None and not made:
                more.append(self.read(shrunk, c))
            v = shrunk + c + F.linear(z, self.w) - z
            z = spike(v - 0.5)
            state = v, z
            made.append(z)
        return torch.stack(made), v, more


class TwoLoops(Cells):
    """The longer one is found first; the other one then gets a call more."""

    def forward(self, x: Tensor) -> Any:
        first, v, _ = super().forward(x[:5])
        return super().forward(F.pad(first, (0, I - N)).repeat(3, 1, 1)), v, first


def zeros(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(c), c.new_zeros(c.shape)


def filled(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(c, fill_value=0.25), c.new_full((B, N), 0.0)


def of_a_tensor(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(c, model.start.detach()), torch.full_like(c, 0)


def written(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.ones_like(c)
    v *= 0.25
    return v, torch.zeros(B, N, dtype=c.dtype)


def learned(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(model.start), torch.zeros_like(c)


def of_neurons(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes of one dimension, which the product keeps."""
    return model.start, torch.zeros(N, dtype=c.dtype)


def of_current(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * c, torch.zeros_like(c)


def drawn(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.rand(B, N, dtype=c.dtype), torch.zeros_like(c)


def transposed(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(c.t()).t(), torch.zeros_like(c)


def with_gradient(model: Cells, c: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.zeros(B, N, dtype=c.dtype)
    v.requires_grad = True
    return v, torch.zeros_like(c)


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
@pytest.mark.parametrize(("model", "iterations"), [
    (Cells(zeros), T), (Cells(written), T), (Cells(filled), T),
    (Cells(of_a_tensor), T - 1), (Cells(learned), T), (Cells(of_current), T - 1),
    (Cells(drawn), T), (Cells(drawn, rate=0.3), T - 1), (Cells(zeros, rate=0.3), T),
    (Cells(transposed), T - 1), (Cells(with_gradient), T),
    (Cells(of_neurons), T - 1), (Cells(learned, read=lambda shrunk, c: shrunk), T - 1),
    (Cells(zeros, read=lambda shrunk, c: shrunk), T),
    (Cells(zeros, read=lambda shrunk, c: shrunk + c), T - 1), (TwoLoops(learned), 20)])
def test_first_iteration(model: Cells, iterations: int) -> None:
    x, original = random(T, B, I), copy.deepcopy(model)
    fuse(model, x)  # which compares each step
    plan = model._lsnn_replayer.all()[0].plan
    loops = [part[0].iterations for part in plan.parts if not isinstance(part, Call)]
    assert sum(loops) == iterations
    assert find_components(plan)
    compare_calls(model, original, x, seeds=(0, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("call", [
    lambda a: torch.max(a, 0)[0], lambda a: a.min(dim=0, keepdim=True).values,
    lambda a: F.rrelu(a, training=True), lambda a: a.mul_(0.5), lambda a: a.cumsum(0)])
def test_states_of_other_shapes(call: Callable[[Tensor], Tensor]) -> None:
    """Only elementwise calls may read an expanded state: others depend on its shape."""
    w = random(N, N)

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        v = z = x.new_zeros(B, N)
        a = torch.linspace(-1, 1, N, dtype=x.dtype)
        made = []
        for one in x:
            v = 0.9 * v + one + z @ w
            z = torch.sigmoid(v)
            a = 0.5 * z - call(a)
            made.append(z)
        return torch.stack(made), a

    x = random(T, B, N)
    compare_calls(fuse(model, x, verify=False), model, x)
