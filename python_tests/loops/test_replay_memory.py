"""What a replay keeps: no value after its last use, no trace where the last step is read, what an
iteration needs that nothing reads."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert, fuse
from lsnn_ext.loops import component, products
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.values import Frame, Range, Values
from lsnn_ext.zoo.surrogates import triangle
from small_loops import compare_calls, run_cells, spy

T, B, N = 20, 3, 5


class Deep(nn.Module):
    """Two layers with feed-forward calls before, between and behind them; keeps its membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.back, self.second = nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, N)
        self.v: Any = None
        self.start = nn.Parameter(torch.rand(N))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x * 2) + 1
        v = torch.zeros(B, N) if self.v is None else self.v.detach()
        u = z = torch.zeros(B, N)
        out = []
        for t in range(T):
            current = torch.sigmoid(torch.tanh(self.first(x[:, t])) + 0.5).square()
            v = 0.9 * v + current + self.back(z) - z
            z = triangle(v - 1.0)
            current = torch.sin(torch.tanh(self.second(z)).abs())
            u = 0.8 * u + current
            out.append(torch.cos(u).exp())
        self.v = v
        return torch.stack(out).mean(0)


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Deep(), torch.rand(B, T, N)
    converted, report = convert(copy.deepcopy(model), x)
    assert len(report.fused) == 2
    for _ in range(2):  # the second call finds a state, and is recorded
        assert torch.allclose(converted(x), model(x), atol=1e-6)
    return converted, model, x


def test_values_are_freed_after_their_last_use(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    converted, model, x = pair
    alive = spy(monkeypatch, Frame, "free", lambda frame, place: len(frame.sequences))
    seen = spy(monkeypatch, Values, "free", lambda values, key: values)
    assert torch.allclose(converted(x), model(x), atol=1e-6)
    assert len(alive) > 15
    assert max(alive) <= 2  # the input of a stage and its result
    given = {id(x), *map(id, model.parameters()), *map(id, converted.parameters())}
    assert not any(one.numel() >= x.numel() and id(one) not in given
                   for one in seen[-1].tensors.values())


def test_a_state_that_only_the_next_call_reads_needs_no_trace(
        pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    converted, model, x = pair
    traces = spy(monkeypatch, component.RepeatedCall, "__call__",
                  lambda call, x, w_rec, delay, state, coefficients, trace, **options: trace)
    results = [one(x) for one in (converted, model)]
    assert traces == [False, False]
    assert torch.allclose(*results, atol=1e-6)
    torch.testing.assert_close(converted.v, model.v)
    gradients = [torch.autograd.grad(one.v.sum() + result.sum(), list(one.back.parameters()))
                 for one, result in zip((converted, model), results, strict=True)]
    torch.testing.assert_close(*gradients)


def test_inputs_with_the_batch_in_front_are_not_copied(
        pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    converted, model, x = pair
    seen = spy(monkeypatch, products.functional, "linear", lambda one, *args: one.is_contiguous())
    assert torch.allclose(converted(x), model(x), atol=1e-6)
    assert seen == [True, True]


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
@pytest.mark.parametrize("turn", [
    lambda z: z.transpose(0, 1), lambda z: torch.permute(dims=(1, 0, 2), input=z),
    lambda z: torch.stack(run_cells(z.unbind(1), torch.eye(N), B).unbind(0))])
def test_a_stack_with_the_batch_in_front_is_not_copied(
        turn: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        z = torch.stack(run_cells(x, w, B).unbind(0), 1)
        return turn(z) @ w, z.sum(2).view(-1), torch.mean(dim=(0, 1), input=z)

    given = torch.rand(T, B, N), torch.rand(N, N, requires_grad=True)
    fused = fuse(run, given)
    copied = spy(monkeypatch, products.Stacked, "compute", lambda one: 1)
    seen = spy(monkeypatch, products.functional, "linear", lambda one, *args: one.is_contiguous())
    compare_calls(fused, run, *given)
    assert not copied and seen and all(seen)


def test_a_part_of_the_steps_is_copied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "COPIED", 100)
    x, w = torch.rand(7, 30, 10), torch.rand(4, 10, requires_grad=True)
    part = x.movedim(1, 0)[3:25]
    seen = spy(monkeypatch, products.functional, "linear", lambda one, *args: len(one))
    made = products.linear(part, w)
    assert len(seen) == 22
    compare_calls(lambda *_: made, torch.nn.functional.linear, part, w)


class Peeled(nn.Module):
    """Another input in the first iteration, whose results are not read."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        first = torch.zeros_like(x[0])
        results, states = [], []
        for t, h in enumerate(x.unbind(0)):
            h = h if t else first
            v = 0.9 * v + torch.tanh(x[t])
            results.append(torch.tanh(2.0 * h))
            states.append(v)
        return torch.stack(results[1::2]) + torch.stack(states)[-1]


@pytest.mark.parametrize("verify", [False, True])
def test_an_iteration_that_nothing_reads_has_its_inputs(
        verify: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that raises would run the original."""
    monkeypatch.setenv("LSNN_COMPILE", "0")
    x = torch.randn(12, 3, 4, dtype=torch.float64)
    model, report = convert(Peeled(), x, verify=verify)
    assert report.converted
    replays = spy(monkeypatch, Plan, "__call__", lambda plan, *_: plan)
    model(x)
    y = torch.randn_like(x)
    torch.testing.assert_close(model(y), Peeled()(y), rtol=1e-12, atol=0)
    assert replays


def test_what_nothing_reads_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the indices of sort()."""
    freed = spy(monkeypatch, Frame, "free", lambda frame, place: place)

    def model(x: Tensor) -> Tensor:
        v = torch.zeros(B, N)
        for t in range(T):
            v = 0.9 * v + x[t].sort(0).values
        return v

    x = torch.rand(T, B, N)
    fused = fuse(model, x)
    fused(x)
    freed.clear()
    fused(x)
    assert {output for _, output in freed} >= {0, 1}


def test_a_sparse_buffer_keeps_the_original() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.eye(N).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            v = torch.zeros(B, N)
            for t in range(T):
                v = 0.9 * v + torch.sparse.mm(self.w, x[t].t()).t()
            return v

    net, x = Net(), torch.rand(T, B, N)
    converted, report = convert(net, x)
    assert converted is net and "w: expected a dense tensor, got layout torch.sparse_coo" in str(
        report)


@pytest.mark.parametrize("take", [
    lambda x: x.unbind(0), iter, lambda x: x.transpose(0, 1).unbind(dim=1),
    lambda x: reversed(x.unbind(0)), lambda x: x.unbind(0)[2:-1],
    lambda x: [*x.unbind(0)[:4], *(2 * x).unbind(0)[4:]]])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_unbind_takes_apart_is_not_stacked_again(
        take: Callable[[Tensor], Any], scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    x, w = torch.rand(T, B, N, requires_grad=True), torch.rand(N, N, requires_grad=True)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return run_cells(take(scale * x), w, B)

    fused = fuse(run, (x, w))
    seen = spy(monkeypatch, Values, "stack", lambda *each: each)
    compare_calls(fused, run, x, w)
    assert len(seen) == 2
    assert all(isinstance(one, Range) for values, given in seen for one in values.ranges[given])


@pytest.mark.parametrize("steps", [slice(None, None, 2), slice(1, None, 2), slice(3, 12, 4),
                                   slice(2, None, 3), slice(None, 4, -2)], ids=str)
def test_a_stack_of_each_kth_step_has_one_gradient_for_all(
        monkeypatch: pytest.MonkeyPatch, steps: slice) -> None:
    """Not one of the size of the sequence for each of its steps."""
    def run(x: Tensor, w: Tensor) -> Tensor:
        made = []
        v = torch.zeros(B, N)
        for one in x:
            v = 0.9 * v + one + torch.tanh(v) @ w
            made.append(v)
        return torch.stack(made[steps])

    x, w = torch.rand(T, B, N, requires_grad=True), torch.rand(N, N, requires_grad=True)
    fused = fuse(run, (x, w))
    seen = spy(monkeypatch, Frame, "range", lambda *each: each)
    compare_calls(fused, run, x, w)
    assert len(seen) < 4


def test_a_stack_of_what_unbind_makes_has_memory_of_its_own() -> None:
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        current = 2 * x
        parts = current.unbind(0)
        with torch.no_grad():
            total = parts[-1] + parts[0]
        return run_cells(parts, w, B), torch.stack(parts), current, total, parts[2].sum()

    x, w = torch.rand(T, B, N, requires_grad=True), torch.rand(N, N)
    fused = fuse(run, (x, w))
    compare_calls(fused, run, x, w)
    results = fused(x, w), run(x, w)
    for made in results:
        made[1].detach().zero_()
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
def test_parts_that_nothing_reads() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        v = torch.zeros(B, N)
        for part, unread in zip((2 * x).unbind(0), (3 * x).unbind(0), strict=True):
            torch.sin(unread)
            v = 0.9 * v + torch.tanh(part) @ w
        return v

    given = torch.rand(T, B, N), torch.rand(N, N)
    compare_calls(fuse(run, given), run, *given)


@pytest.mark.parametrize("multiply", [
    torch.nn.functional.linear, lambda x, w: x @ w.t(), lambda x, w: torch.matmul(x, w.t()),
    lambda x, w: torch.einsum("abc,dc->abd", x, w),
    lambda x, w: torch.einsum("cd,abc->abd", (w.t(), x))])
@pytest.mark.parametrize("exact", [False, True])
def test_products_outside_of_loops_skip_zeros(multiply: Callable[[Tensor, Tensor], Tensor],
                                              exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
        return multiply(run_cells(multiply(x, w), w, B), out)

    x, w = (torch.rand(T, B, N) < 0.1).float(), torch.rand(N, N, requires_grad=True)
    out = torch.rand(2, N, requires_grad=True)
    fused = fuse(run, (x, w, out), exact=exact)
    seen = spy(monkeypatch, products.functional, "linear", lambda one, *args: one.shape)
    projected = spy(monkeypatch, component.RepeatedCall, "__call__",
                     lambda *args, **options: "w_in" in options)
    compare_calls(fused, run, x, w, out)
    assert (seen, projected) == (([], [False]) if exact else ([x.shape], [True]))
