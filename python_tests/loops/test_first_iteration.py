"""The first iteration of a loop, in which states are made or broadcast."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree as pytree

from lsnn_ext import fuse
from lsnn_ext.loops.ir import Call
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.record import record
from lsnn_ext.loops.verify import verify
from small_loops import close, spike

T, B, I, N = 9, 5, 4, 6


class Cells(nn.Module):
    """A loop that makes its first states where it first needs them."""

    def __init__(self, make: Callable[..., Any], read: Callable[..., Any] | None = None,
                 rate: float = 0.0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.w_in, self.w, self.start = (
            nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))
            for shape in ((N, I), (N, N), ()))
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


@pytest.mark.parametrize(("model", "iterations"), [
    (Cells(zeros), T), (Cells(written), T), (Cells(filled), T),
    (Cells(of_a_tensor), T - 1), (Cells(learned), T), (Cells(of_current), T - 1),
    (Cells(drawn), T), (Cells(drawn, rate=0.3), T - 1), (Cells(zeros, rate=0.3), T),
    (Cells(transposed), T - 1), (Cells(with_gradient), T),
    (Cells(of_neurons), T - 1), (Cells(learned, read=lambda shrunk, c: shrunk), T - 1),
    (Cells(zeros, read=lambda shrunk, c: shrunk), T),
    (Cells(zeros, read=lambda shrunk, c: shrunk + c), T - 1), (TwoLoops(learned), 20)])
def test_first_iteration(model: Cells, iterations: int) -> None:
    x = torch.randn(T, B, I, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    origins = Origins(model, (x,), {})
    result, recording = record(model, (x,), {}, origins, True)
    assert not isinstance(recording, Exception)
    generator = recording.generators[0].clone()
    plan = Plan(recording)
    loops = [part[0].iterations for part in plan.parts if not isinstance(part, Call)]
    assert sum(loops) == iterations
    assert any(stage.kind == "fused" for stage in plan.stages)
    parameters = dict(model.named_parameters())
    wanted = _gradients(result, parameters)
    verify(plan, result)
    for _ in range(2):
        torch.set_rng_state(generator)
        leaves = {value: x if leaf.kind == "input" else parameters[leaf.path[-1][1]]
                  for value, leaf in recording.leaves.items()}
        got = plan(leaves)[0]
        for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(result), strict=True):
            close(one.detach(), other.detach(), 1e-9, "result")
        for name, one in _gradients(got, parameters).items():
            assert (one is None) == (wanted[name] is None), name
            if one is not None:
                close(one, wanted[name], 1e-9, name)


def _gradients(result: Any, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor | None]:
    total = sum((one * one.detach().cos()).sum() for one in pytree.tree_leaves(result))
    found = torch.autograd.grad(total, [*parameters.values()], retain_graph=True, allow_unused=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("call", [
    lambda a: torch.max(a, 0)[0], lambda a: a.min(dim=0, keepdim=True).values,
    lambda a: F.rrelu(a, training=True), lambda a: a.mul_(0.5), lambda a: a.cumsum(0)])
def test_states_of_other_shapes(call: Callable[[Tensor], Tensor]) -> None:
    """Only elementwise calls may read an expanded state: others depend on its shape."""
    w = torch.randn(N, N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

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

    x = torch.randn(T, B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fused = fuse(model, x, verify=False)
    states = []
    for one in (model, fused):
        torch.manual_seed(0)
        states.append((*one(x), torch.get_rng_state()))
    torch.testing.assert_close(*states)
