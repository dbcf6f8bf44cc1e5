"""Recurrent components that no kernel can run stay loops, with a reason."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from small_loops import check_loop, over, run, run_cells
from test_component import B, N, T, random, spike

STEPS = {
    "normalized over items": lambda x, w, v: F.layer_norm(0.9 * v + x, (B, N)),
    "normalized by mean squares": lambda x, w, v: F.rms_norm(0.9 * v + x, (N,)),
    "normalized in groups": lambda x, w, v: F.group_norm(0.9 * v + x, 1),
    "normalized with the numbers of items": lambda x, w, v: F.batch_norm(
        0.9 * v + x, None, None, training=True),
    "inhibited by all": lambda x, w, v: 0.9 * v + x - v.mean(1, keepdim=True),
    "half": lambda x, w, v: 0.9 * v + x.half(),
    "transposed": lambda x, w, v: 0.9 * v.t() + x[:, :B],  # other numbers, of the same shape
    "flipped": lambda x, w, v: 0.9 * v.flip(1) + x}
STARTS = {"half": Tensor.half, "transposed": lambda v: v[:, :B]}


@pytest.mark.parametrize("name", STEPS)
def test_what_no_kernel_can_run_is_refused(name):
    def step(*args):
        return STEPS[name](*args),

    start = STARTS.get(name, Tensor.clone)(random(B, N, seed=1))
    check_loop(over(step, 1), "test_component_refused.py", random(T, B, N), random(N, N), start)


def test_a_matrix_that_changes_is_refused():
    def step(x, w, v):
        w = 0.9 * w
        return w, torch.tanh(x + v @ w)

    check_loop(over(step, 2, last=(0,)), "test_component_refused.py", random(T, B, N),
               random(N, N), random(B, N, seed=1))


def test_autocast_is_refused():
    def model(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            return run_cells(x, w, B)

    _, _, plan = run(model, (random(T, B, N).float(), random(N, N).float()))
    assert [stage.reason for stage in plan.stages if stage.kind == "loop"] == [
        "expected no autocast"]


class Changed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, change):
        ctx.change = change
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


@pytest.mark.parametrize("change", [
    lambda g: g.clamp(-1, 1), lambda g: 2 * g.float().double(), lambda g: g * g, lambda g: g + 1,
    lambda g: 2 / g, lambda g: torch.where(g > 1, g, 0)])
@pytest.mark.parametrize("count", [1, 2])
def test_copies_of_a_neuron_whose_backward_is_not_linear_are_refused(count, change):
    """Each would clip, or round, a part of the gradient."""
    def model(x, w):
        v = z = torch.zeros(B, N, dtype=x.dtype)
        for one in x:
            v = 0.9 * v * (1 - z) + one + z @ w + (v @ w if count == 2 else 0)
            z = Changed.apply(v - 0.5, change)
        return v

    _, _, plan = run(model, (random(T, B, N), random(N, N)))
    reasons = [stage.reason for stage in plan.stages if stage.kind == "loop"]
    assert len(reasons) == count - 1
    assert all("a backward that is linear in the gradient" in one for one in reasons)


def test_a_recurrent_convolution_is_named():
    def model(x, w):
        v = z = torch.zeros(B, 3, 4, 4, dtype=x.dtype)
        for one in x:
            v = 0.9 * v + one + F.conv2d(z, w, padding=1)
            z = spike(v - 0.5)
        return v

    _, _, plan = run(model, (random(T, B, 3, 4, 4), random(3, 3, 3, 3)))
    assert any("each neuron by itself, got conv2d" in stage.reason for stage in plan.stages)
