"""The estimate of the time of calls."""
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from lsnn_ext.loops import costs
from lsnn_ext.loops.costs import estimate_call
from small_loops import run

M, K, N = 64, 512, 256


@pytest.mark.parametrize("multiply", [
    lambda x, w, b: F.linear(x, w, b), lambda x, w, b: x @ w.t() + b,
    lambda x, w, b: torch.addmm(b, x, w.t()), lambda x, w, b: F.conv1d(x.t(), w[..., None], b)],
    ids=["linear", "matmul", "addmm", "conv"])
def test_multiplications_are_counted(multiply):
    """Whatever comes beside the two matrices."""
    _, _, plan = run(multiply, (torch.rand(M, K), torch.rand(N, K), torch.rand(N)))
    call = next(one for one in plan.recording.calls if one.name in costs.PRODUCTS)
    assert estimate_call(call, plan.recording.kinds) == pytest.approx(
        costs.PRODUCT + costs.MULTIPLICATION * M * K * N)


def test_small_results_cost_no_more():
    kinds = {}
    for size in (1, costs.CACHED, 3 * costs.CACHED):
        _, _, plan = run(lambda x: x * 2, (torch.rand(size),))
        kinds[size] = estimate_call(plan.recording.calls[-1], plan.recording.kinds)
    small, cached, large = kinds.values()
    assert small == cached == costs.CALL
    assert large == pytest.approx(costs.CALL + 2 * costs.CACHED * costs.NUMBER)


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_a_product_of_spikes_costs_less(density):
    x, w = (torch.rand(M, K) < density).float(), torch.rand(N, K)
    _, _, plan = run(lambda x, w: x @ w.t(), (x, w))
    call = next(one for one in plan.recording.calls if one.name in costs.PRODUCTS)
    values = dict(zip(call.inputs, (x, w.t()), strict=True))
    assert costs.skips_zeros(call, values) == (density < 0.2)
    assert costs.skips_zeros(call, {})  # unknown
