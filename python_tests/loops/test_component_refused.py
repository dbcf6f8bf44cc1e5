"""Recurrent components that no kernel can run stay loops, with a reason."""
import pytest
import torch
from torch.utils import _pytree as pytree

from small_loops import run
from test_component import B, N, T, random, spike


def two_values(x, w, v):
    """Products of the spike and of the membrane."""
    for t in range(T):
        z = spike(v)
        v = 0.9 * v + x[t] + z @ w + v @ w
    return v


def normalized(x, w, v):
    for t in range(T):
        v = torch.nn.functional.layer_norm(0.9 * v + x[t], (N,))
    return v


def inhibited_by_all(x, w, v):
    for t in range(T):
        v = 0.9 * v + x[t] - v.mean(1, keepdim=True)
    return v


def matrix_that_changes(x, w, v):
    for t in range(T):
        w = 0.9 * w
        v = torch.tanh(x[t] + v @ w)
    return v, w


def half(x, w, v):
    v = v.half()
    for t in range(T):
        v = 0.9 * v + x[t].half()
    return v


def transposed(x, w, v):
    """Its numbers are others, of the same shape."""
    v = v[:, :B]
    for t in range(T):
        v = 0.9 * v.t() + x[t][:, :B]
    return v


def flipped(x, w, v):
    for t in range(T):
        v = 0.9 * v.flip(1) + x[t]
    return v


@pytest.mark.parametrize("model", [
    two_values, normalized, inhibited_by_all, matrix_that_changes, half, transposed,
    flipped], ids=lambda one: one.__name__)
def test_what_no_kernel_can_run_is_refused(model):
    """It stays a loop, with a reason, and is equal."""
    args = random(T, B, N), random(N, N), random(B, N, seed=1)
    want, got, plan = run(model, args)
    stages = [stage for stage in plan.stages if stage.kind in ("fused", "loop")]
    loops = [stage for stage in stages if stage.kind == "loop"]
    assert len(loops) == 1
    assert loops[0].reason
    assert loops[0].line.startswith("test_component_refused.py:")
    assert all(torch.equal(one, other) for one, other in zip(
        pytree.tree_leaves(want), pytree.tree_leaves(got), strict=True))


def test_autocast_is_refused():
    def model(x, w, v):
        with torch.autocast("cpu", torch.bfloat16):
            for t in range(T):
                v = 0.9 * v + x[t] + torch.tanh(v) @ w
        return v

    _, _, plan = run(model, (random(T, B, N).float(), random(N, N).float(), random(B, N).float()))
    assert [stage.reason for stage in plan.stages if stage.kind == "loop"] == [
        "expected no autocast"]
