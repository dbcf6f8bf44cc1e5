"""The estimate of the time of calls."""
import copy
import warnings

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from converted_nets import Net, draw_x
from lsnn_ext._core.route import choose_linear
from lsnn_ext.loops import convert, costs
from lsnn_ext.loops.costs import estimate_call
from lsnn_ext.loops.functions import OneStep
from small_loops import prepare, run, spike

M, K, N = 128, 512, 256


def find_product(plan):
    return next(one for one in plan.recording.calls if one.name in costs.PRODUCTS)


@pytest.mark.parametrize(("multiply", "matrix"), [
    (lambda x, w, b: F.linear(x, w, b), K * N), (lambda x, w, b: x @ w.t() + b, K * N),
    (lambda x, w, b: torch.addmm(b, x, w.t()), K * N),
    (lambda x, w, b: F.conv1d(x.t(), w[..., None], b), 0)],
    ids=["linear", "matmul", "addmm", "conv"])
def test_multiplications_are_counted(multiply, matrix):
    """Whatever comes beside the two matrices."""
    _, _, plan = run(multiply, (torch.rand(M, K), torch.rand(N, K), torch.rand(N)))
    assert estimate_call(find_product(plan), plan.recording.kinds) == pytest.approx(
        costs.FORWARD_PRODUCT * costs.PRODUCT + costs.NUMBER * M * N
        + costs.MULTIPLICATION * M * K * N + costs.WEIGHT * max(matrix - costs.CACHED, 0))


def test_calls_outside_of_loops_take_longer_than_in_the_original():
    for share, requires_grad in ((costs.FORWARD, False), (1, True)):
        x = torch.rand(M, requires_grad=requires_grad)
        _, _, plan = run(lambda x: x.sin().cos().tanh(), (x,))
        assert plan.estimate() == pytest.approx(
            costs.GUARD + 3 * (share * costs.CALL + costs.NUMBER * M + costs.REPLAYED))


def test_an_original_that_is_faster_without_gradients_runs_without_a_warning(monkeypatch):
    model, x = Net(), draw_x(60)
    converted, _ = convert(copy.deepcopy(model), x)
    monkeypatch.setattr("lsnn_ext.loops.plan.LEAST_GAIN", 1.1)
    monkeypatch.setattr(costs, "FORWARD", 0.0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(converted(x), model(x))
    entries = converted._lsnn_replayer.all()
    assert [entry.plan is None for entry in entries] == [False, True]
    assert entries[1].reason.startswith("expected at most 91% of the time of the original, got an ")


def test_a_step_of_an_operator_that_runs_many_costs_less():
    _, _, plan = run(lambda x: x.sin(), (torch.rand(0),))
    (call,), operator = plan.recording.calls, torch.ops.aten.sin.default
    assert [estimate_call(call.replace(function=one), plan.recording.kinds)
            for one in (operator, OneStep(operator))] == [costs.OPERATOR, costs.STEP]


def test_numbers_cost_in_proportion():
    for size in (0, 1000, 100_000):
        _, _, plan = run(lambda x: x * 2, (torch.rand(size),))
        assert estimate_call(plan.recording.calls[-1], plan.recording.kinds) == pytest.approx(
            costs.FORWARD * costs.CALL + size * costs.NUMBER)


def test_a_write_in_a_plan_copies_the_whole():
    def write(x):
        x = x * 2
        x[0] = 1.0
        return x

    small, large = (run(write, (torch.rand(size),))[2].estimate() for size in (1, costs.CACHED))
    assert large - small == pytest.approx((1 + costs.WRITTEN) * costs.NUMBER * (costs.CACHED - 1))


def test_each_result_of_an_iteration_costs_a_copy():
    def estimate(last):
        def model(x):
            v, made = torch.zeros_like(x[0]), []
            for one in x:
                v = 0.5 * v + one
                made.append(v)
            return made[-last:]

        return run(model, (torch.rand(20, 8, N),))[2].estimate()

    assert estimate(20) - estimate(5) == pytest.approx(15 * costs.RETURNED)


def test_a_recurrent_product_of_dropped_spikes_costs_less():
    def estimate(gain):
        def model(x, w):
            v = z = torch.zeros_like(x[0])
            for one in x:
                v = 0.5 * v + gain * one + z @ w
                z = spike(v - 1) * one
            return z

        plan, _ = prepare(model, [torch.rand(20, 8, N), 0.001 * torch.rand(N, N)])
        loop, _ = next(part for part in plan.parts if isinstance(part, tuple))
        return plan.estimate() / loop.iterations

    # for each of the two currents
    more = 2 * (costs.DENSE - costs.SPIKES) * costs.MULTIPLICATION * 8 * N * N
    assert estimate(3.0) - estimate(0.6) == pytest.approx(more)


def test_a_recurrent_product_of_rates_costs_more_without_gradients():
    def model(x, w):
        v = torch.zeros_like(x[0])
        for one in x:
            v = torch.tanh(one + v @ w)
        return v

    x, w = torch.rand(20, 8, N), torch.rand(N, N)
    *_, plan = run(model, (x, w))
    loop, stages = plan.loops[0]
    times = [costs.estimate_stage(loop, stage, plan.recording) for stage in stages
             if stage.kind == "fused"]
    *_, plan = run(model, (x, w.requires_grad_()))
    loop, stages = plan.loops[0]
    times += [costs.estimate_stage(loop, stage, plan.recording) for stage in stages
              if stage.kind == "fused"]
    more = (costs.DENSE_FORWARD - costs.DENSE) * costs.MULTIPLICATION * 8 * N * N
    assert times[0] - times[1] == pytest.approx(20 * more)


def test_a_state_of_one_number_has_an_estimate():
    def model(x):
        v = x[0, 0]
        for one in x[:, 0]:
            v = 0.5 * v + one
        return v

    plan, _ = prepare(model, [torch.rand(20, 2)])
    assert [stage.kind for stage in plan.stages].count("fused") == 1 and plan.estimate() > 0


def test_a_part_of_a_sequence_with_a_gradient_costs_one_of_its_size():
    x = torch.rand(4, costs.CACHED, requires_grad=True)
    _, _, plan = run(lambda x: x[0] + x.detach()[1], (x,))
    parts = [one for one in plan.recording.calls if one.name == "__getitem__"]
    assert [estimate_call(one, plan.recording.kinds) for one in parts] == pytest.approx(
        [costs.CALL + (1 + 3 * costs.SPREAD) * costs.CACHED * costs.NUMBER,
         costs.FORWARD * costs.CALL + costs.CACHED * costs.NUMBER])


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_a_product_of_spikes_costs_less(density):
    x, w = (torch.rand(M, K) < density).float(), torch.rand(N, K)
    _, _, plan = run(lambda x, w: x @ w.t(), (x, w))
    call = find_product(plan)
    assert costs.skips_zeros(call, plan.recording)  # unknown
    plan.recording.numbers.update(zip(call.inputs, (x, w.t()), strict=True))
    assert costs.skips_zeros(call, plan.recording) == (density < 0.2)


def test_few_rows_are_multiplied_as_torch_does():
    x, w = torch.zeros(4, 512), torch.rand(1024, 512)
    _, _, plan = run(F.linear, (x, w))
    call = find_product(plan)
    assert not costs.skips_zeros(call, plan.recording)
    assert costs.skips_zeros(call, plan.recording, 100)  # in each of 100 iterations
    assert [choose_linear(one, w)[0] for one in (x, x.repeat(100, 1))] == ["torch", "events"]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_new_memory_costs_more_unless_backward_needs_it(requires_grad):
    _, _, plan = run(lambda x: x.sin(), (torch.rand(M, requires_grad=requires_grad),))
    (call,), kinds = plan.recording.calls, plan.recording.kinds
    times = costs.LARGE // M
    few, many = (estimate_call(call, kinds, one) for one in (times - 1, times))
    assert (many - few > costs.LARGE_NUMBER * costs.LARGE) is not requires_grad
