"""Values of shape (neurons, items), and products with the matrix on the left."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loop_programs import spike
from lsnn_ext import fuse
from small_loops import compare, run

T, B, I, N = 9, 3, 4, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator)


def columns(x: Tensor, w_in: Tensor, w: Tensor, v: Tensor) -> Any:
    made = []
    for one in x:
        v = v + 0.1 * (torch.tanh(w @ v + w_in @ one.T) - v)
        made.append(v)
    return torch.stack(made, 1), v


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
