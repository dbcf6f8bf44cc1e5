"""Products of inputs, which the operator of a recurrence computes, in all the forms of programs."""
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import small_loops
from lsnn_ext import fuse
from lsnn_ext.loops import component
from small_loops import compare_calls, spike, spy

T, B, I, N = 32, 128, 160, 24  # enough numbers to be read as bits


run_cells = partial(small_loops.run_cells, rows=B)


def run_ahead(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The product with spikes at the end of an iteration, as in sinabs."""
    v = back = w.new_zeros(B, N)
    made = []
    for one in x:
        v = 0.9 * v + F.linear(one, w_in, b) + back
        z = spike(v - 1.0)
        v, back = v - z, z @ w
        made.append(z)
    return torch.stack(made), back, v


def run_turned(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """As ahead, but only the next iteration reads the product and its bias, and its first value is
    not that of a product; one result is read at the end only."""
    v, back = w.new_zeros(B, N), b.expand(B, N)
    made = []
    for one in x:
        v = 0.9 * v + F.linear(one, w_in) + back
        z = spike(v - 1.0)
        v, back = v - z, F.linear(z, w, b).reshape(B, N)
        level = (v * b).sin()
        made.append(z)
    return torch.stack(made), level


def run_turned_from_zeros(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor,
                          bias: float = 0.0) -> Tensor:
    """The first value of the product is 0, as are the spikes that reset the first membrane; a bias
    follows."""
    back, v, z = (torch.zeros_like(x[0, :, :N]) for _ in range(3))
    made = []
    for one in x:
        v = 0.9 * v + F.linear(one, w_in, b) + back - z
        z = spike(v - 1.0)
        back = F.linear(z, w, bias * b) if bias else z @ w
        made.append(z)
    return torch.stack(made)


def run_series(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor, inputs: int = N) -> Tensor:
    """Two products one after the other, as in a container of SpikingJelly."""
    matrix = torch.cat([w.t()[:inputs].t(), w], 1)
    v = z = w.new_zeros(B, N)
    made = []
    for one in F.linear(x, w_in[:inputs], b[:inputs]):
        v = 0.9 * v + F.linear(torch.cat([one, z], 1), matrix, b) - z
        z = spike(v - 1.0)
        made.append(z)
    return torch.stack(made)


def run_low_rank(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Recurrent weights of rank 3, with a bias in between."""
    v = z = w.new_zeros(B, N)
    made = []
    for one in x:
        h = F.linear(z, w[:3], b[:3]) + b[3:6]
        v = 0.9 * v + F.linear(one, w_in) + h @ w[:, :3].t() - z
        z = spike(v - 1.0)
        made.append(z)
    return torch.stack(made)


def run_without_gradient(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        current = F.linear(x, w_in, b)
    return run_cells(current, w)


def run_both(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    current = F.linear(x, w_in, b)
    with torch.no_grad():
        total = run_cells(current, w).sum()
    return run_cells(current, w), run_cells(current.flip(0), w) + total, current[3], current


RUNS: dict[str, Callable[..., Any]] = {
    "whole": lambda x, w_in, w, b: run_cells(F.linear(x, w_in, b), w),
    "steps": lambda x, w_in, w, b: run_cells([F.linear(one, w_in, b) for one in x], w),
    "@": lambda x, w_in, w, b: run_cells(x @ w_in.t() + b, w),
    "einsum": lambda x, w_in, w, b: run_cells(torch.einsum("tbi,ni->tbn", x, w_in), w),
    "addmm": lambda x, w_in, w, b: run_cells([torch.addmm(b, one, w_in.t()) for one in x], w),
    "a bias for each row": lambda x, w_in, w, b: run_cells(
        [torch.addmm(b.expand(B, N), one, w_in.t()) for one in x], w),
    "a number as bias": lambda x, w_in, w, b: run_cells([F.linear(x[t], w_in) + b[0]
                                                         for t in range(T)], w),
    "detached": lambda x, w_in, w, b: run_cells(F.linear(x, w_in.detach(), b), w),
    "some steps": lambda x, w_in, w, b: run_cells(F.linear(x, w_in, b).transpose(0, 1).unbind(1)[
        3:-2], w),
    "every second step": lambda x, w_in, w, b: run_cells(F.linear(x, w_in, b)[5:30:2], w),
    "steps by a list": lambda x, w_in, w, b: (lambda current: (
        run_cells(current, w), current[[0, 1]], current[0, 1], current[[0], [1]]))(
        F.linear(x, w_in, b)),
    "other axes": lambda x, w_in, w, b: (lambda current: (
        run_cells(current, w), current.transpose(1, 2).sin(), current.unbind(2)[0].sin()))(
        F.linear(x, w_in, b)),
    "a view": lambda x, w_in, w, b: run_cells(
        F.linear(x, w_in, b).view(-1, N).view(len(x), B, N), w),
    "a row that stays": lambda x, w_in, w, b: run_cells(
        F.linear(x, w_in), w, threshold=b.sin() * torch.ones(B, 1, dtype=b.dtype)),
    "series": run_series, "few numbers in between": partial(run_series, inputs=4),
    "low rank": run_low_rank, "ahead": run_ahead, "turned": run_turned,
    "turned from zeros": run_turned_from_zeros,
    "turned from zeros to a bias": partial(run_turned_from_zeros, bias=0.5),
    "without gradient": run_without_gradient,
    "both": run_both}
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "spikes": lambda x: (x < 0.05).double(), "numbers": lambda x: (x < 0.05) * 3.5 * x,
    "dense": lambda x: x, "batch in front": lambda x: (
        x.movedim(0, 1).contiguous().movedim(0, 1) < 0.05).double(),
    "one step": lambda x: (x[:1] < 0.05).double().expand(x.shape),
    "with a gradient": lambda x: (x < 0.05).double().requires_grad_()}


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("run", RUNS)
def test_projection(run: str, inputs: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = INPUTS[inputs](torch.rand(T, B, I, generator=random, dtype=torch.float64))
    w_in, w, b = (0.3 * torch.randn(*shape, generator=random, dtype=torch.float64)
                  for shape in ((N, I), (N, N), (N,)))
    given = (x, w_in.requires_grad_(), w.requires_grad_(), b.requires_grad_())
    compare_calls(fuse(RUNS[run], given), RUNS[run], *given, rtol=1e-9, atol=1e-9)


def run_views_without_gradient(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> Tensor:
    current = F.linear(x, w_in, b)
    with torch.no_grad():
        current = current.transpose(0, 1)
    return run_cells([current[:, t] for t in range(T)], w)


def run_slices_without_gradient(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor) -> Tensor:
    current, made = F.linear(x, w_in, b), []
    v = z = w.new_zeros(B, N)
    for t in range(T):
        with torch.no_grad():
            one = current[t]
        v = 0.9 * v + one + z @ w - z
        z = spike(v - 1.0)
        made.append(z)
    return torch.stack(made)


@pytest.mark.parametrize("index", [0, (-1,), (slice(None), 1)])
def test_a_step_that_gives_a_shape_leaves_the_projection(
        index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: Tensor, w_in: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        current = F.linear(x, w_in)
        step = current[index]
        total = torch.zeros_like(step) + step.sum()
        return run_cells(current, w), total

    given = tuple(torch.rand(*shape, requires_grad=True) for shape in ((T, B, I), (N, I), (N, N)))
    fused = fuse(run, given)
    seen = spy(monkeypatch, component.RepeatedCall, "__call__",
               lambda *args, **options: "w_in" in options)
    compare_calls(fused, run, *given, rtol=1e-4, atol=1e-4)
    assert seen == [True]


REPEATED = [lambda x, w_in, w, b: run_cells(torch.einsum("tbi,ni->tbn", x, w_in), w),
            lambda x, w_in, w, b: run_cells([torch.einsum("bi,ni->bn", one, w_in) for one in x], w)]
OTHERS = [lambda x, w_in, w, b: run_cells(torch.unbind(dim=0, input=F.linear(x, w_in, b)), w),
          lambda x, w_in, w, b: run_cells(torch.transpose(dim1=1, dim0=0, input=F.linear(
              x, w_in, b)).transpose(0, 1), w),
          run_views_without_gradient, run_slices_without_gradient]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("run", "inputs"), [*((run, I) for run in REPEATED + OTHERS),
                                             *((run, 1) for run in REPEATED)])
def test_names_repeated_inputs_and_switches(run: Callable[..., Any], inputs: int) -> None:
    random = torch.Generator().manual_seed(0)
    x, w_in, w, b = (torch.rand(*shape, generator=random, dtype=torch.float64).requires_grad_()
                     for shape in ((T, B, inputs), (N, I), (N, N), (N,)))
    given = (x, w_in, w, b)
    compare_calls(fuse(run, given, verify=False), run, *given, rtol=1e-9, atol=1e-9)
