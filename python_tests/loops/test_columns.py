"""Values of shape (neurons, items), and products with the matrix on the left."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import convert, fuse
from small_loops import compare, compare_calls, random, run, spike

T, B, I, N = 9, 3, 4, 6


def columns(x: Tensor, w_in: Tensor, w: Tensor, v: Tensor) -> Any:
    made = []
    for one in x:
        v = v + 0.1 * (torch.tanh(w @ v + w_in @ one.T) - v)
        made.append(v)
    return torch.stack(made, 1), v.view(-1)  # which needs the layout of the loop


def with_coefficients(x: Tensor, w_in: Tensor, w: Tensor, v: Tensor) -> Any:
    """Of each neuron (N, 1), and of each item (B,)."""
    decay, gain = w[:, :1].sigmoid(), x[0, :, 0].exp()
    z, made = torch.zeros_like(v), []
    for one in x:
        v = decay * v + gain * torch.matmul(w, z) + torch.mm(w_in, one.t()) + w_in[:, 1:2]
        z = spike(v - 0.5)
        made.append(z)
    return made, v


def turned_sum(x: Tensor, w_in: Tensor, w: Tensor, v: Tensor) -> Any:
    v, made = v.t().contiguous(), []
    for one in x:
        v = 0.9 * v + torch.tanh(w @ v.T + w_in @ one.T).T
        made.append(v)
    return torch.stack(made)


def turned_products(x: Tensor, w_in: Tensor, w: Tensor, v: Tensor) -> Any:
    v, made = v.t().contiguous(), []
    for one in x:
        v = 0.9 * v + torch.tanh((w @ v.transpose(0, 1)).permute(1, 0) + (w_in @ one.T).T)
        made.append(v.sum(1))
    return torch.stack(made), v


def two_steps_before(x: Tensor, w_in: Tensor, w: Tensor, v: Tensor) -> Any:
    before, made = v, []
    for one in x:
        before, v = v, 0.5 * before + torch.sigmoid(w @ v + w_in @ one.T)
        made.append(before)
    return torch.stack(made), v


PROGRAMS = [columns, with_coefficients, turned_sum, turned_products, two_steps_before]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.__name__)
def test_columns(program: Callable[..., Any]) -> None:
    given = random(T, B, I), random(N, I, seed=1), random(N, N, seed=2), random(N, B, seed=3)
    compare(program, *given)
    fuse(program, tuple(one.requires_grad_() for one in given))  # which compares each step


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.__name__)
def test_as_many_items_as_neurons_stay_a_loop(program: Callable[..., Any]) -> None:
    """A shape does not tell which is which then."""
    want, got, plan = run(program, (random(T, N, I), random(N, I, seed=1), random(N, N, seed=2),
                                    random(N, N, seed=3)))
    assert "fused" not in [stage.kind for stage in plan.stages]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("draw", [
    lambda h: F.alpha_dropout(h, 0.4, True), lambda h: h.clone().bernoulli_(0.3),
    lambda h: torch.multinomial(h.detach().sigmoid(), 2).to(h.dtype),
    lambda h: torch.randint_like(h, 9)])
@pytest.mark.parametrize("is_late", [False, True])
def test_draws_are_in_the_order_of_memory(draw: Callable[..., Tensor], is_late: bool) -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        h, made = torch.zeros(N, B, dtype=x.dtype), []
        for one in x:
            h = torch.tanh(w @ h + one)
            made.append(h if is_late else draw(h))
        return draw(made[-2]) if is_late else torch.stack(made)

    given = random(T, N, B), random(N, N, seed=1)
    for verify in (False, True):
        compare_calls(fuse(model, given, verify=verify), model, *given)


class KeepsColumns(nn.Module):
    """Draws for its state, whose dimensions are in another order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.h = torch.zeros(B, N, dtype=torch.float64).t()

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.h, 0.5) + torch.rand_like(self.h)
        for t in range(T):
            h = torch.tanh(0.5 * h + x[..., t].t())
        self.h = h.detach()
        return h


def test_results_and_states_keep_the_order_of_their_dimensions() -> None:
    model = KeepsColumns()
    converted, report = convert(copy.deepcopy(model), random(B, N, T))
    assert report.converted
    for seed in range(4):
        found = []
        for one in (model, converted):
            torch.manual_seed(seed)
            made = one(random(B, N, T, seed=seed))
            found.append((made, one.h, F.dropout(made), made.t().view(-1)))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12, check_stride=True)
