"""Recurrences that read each other neuron by neuron run in one kernel, where this is faster."""
import pytest
import torch
from torch.nn import functional as F

from small_loops import compare, over, random, run, spike

T, B, N = 7, 3, 5


def synapse(x, i, v, z):
    i = 0.8 * i + x
    v = 0.9 * v + i - z
    return i, v, spike(v - 1.0)


def tanh_between(x, i, v):
    i = 0.8 * i + x
    v = 0.9 * v + 2.0 * torch.tanh(i)
    return i, v


def two_synapses(x, fast, slow, v):
    fast = 0.5 * fast + x
    slow = 0.9 * slow + 0.1 * x
    v = 0.9 * v + fast - slow
    return fast, slow, v


def chain(x, a, b, c):
    a = 0.5 * a + x
    b = torch.sin(b) + a
    c = 0.9 * c * b
    return a, b, c


def one_step_later(x, i, v):
    v = 0.9 * v + i
    return 0.8 * i + x, v


def trace_of_spikes(x, w, v, z, trace):
    v = 0.9 * v + x + z @ w
    z = spike(v)
    return v, z, 0.5 * trace + z


def without_gradient(x, i, v):
    with torch.no_grad():
        i = 0.8 * i + x
    return i, 0.9 * v + torch.sin(i)


def of_a_product(x, w, i, v):
    i = 0.8 * i + x
    return i, 0.9 * v + torch.tanh(i) @ w


def by_two_ways(x, w, i, v):
    i = 0.8 * i + x
    return i, 0.9 * v + i + torch.tanh(i) @ w


def of_all_neurons(x, i, v):
    i = 0.8 * i + x
    return i, 0.9 * v + F.layer_norm(i, (N,))


def independent(x, i, v):
    return 0.8 * i + x, 0.9 * v - x


def count_fused(step, states, fused, **options):
    """options: as of over."""
    names = step.__code__.co_varnames[:step.__code__.co_argcount]
    shapes = {"x": (T, B, N), "w": (N, N)}
    args = [random(*shapes.get(name, (B, N)), seed=k) for k, name in enumerate(names)]
    compare(over(step, states, **options), *args, fused=fused)


JOINED = [(synapse, 3, 2), (tanh_between, 2, 2), (two_synapses, 3, 3), (chain, 3, 3),
          (one_step_later, 2, 2), (trace_of_spikes, 3, 2), (without_gradient, 2, 1)]


@pytest.mark.parametrize(("step", "states", "parts"), JOINED)
def test_joined(step, states, parts):
    count_fused(step, states, 1)


@pytest.mark.parametrize(("step", "states", "parts"), JOINED)
def test_results_that_reach_other_states_stay_apart(step, states, parts):
    """A part that is a result has no gradient for the states of parts that read it."""
    count_fused(step, states, parts, keep=tuple(range(states)), last=tuple(range(states)))


@pytest.mark.parametrize("step", [of_a_product, by_two_ways, of_all_neurons])
def test_calls_of_other_neurons_between_keep_them_apart(step):
    count_fused(step, 2, 2)


def test_independent_ones_stay_apart():
    args = random(T, B, N), random(B, N), random(B, N, seed=1)
    want, got, plan = run(over(independent, 2, keep=(0, 1)), args)
    assert [stage.kind for stage in plan.stages].count("fused") == 2
    assert all(map(torch.equal, want[0] + want[1], got[0] + got[1]))


def test_slower_joined_stays_apart():
    """The input of the synapse would be a second current beside that of the product."""
    def model(x, w, i, v, z):
        out = []
        for x_t in x:
            i = 0.8 * i + x_t
            v = 0.9 * v + i + z @ w
            z = spike(v)
            out.append(z)
        return out

    steps, rows, n = 50, 16, 128
    compare(model, random(steps, rows, n), random(n, n),
            *(random(rows, n, seed=k) for k in range(3)), fused=2)


def test_parameter_that_one_result_reaches():
    """Results that reach other inputs stay apart: the gradient of the first is None for p."""
    def model(x, i, v, p):
        currents, membranes = [], []
        for x_t in x:
            i = 0.8 * i + x_t
            v = 0.9 * v + i.float().double() * p
            currents.append(i)
            membranes.append(v.float())
        return torch.stack(currents), torch.stack(membranes)

    args = [random(*shape).requires_grad_() for shape in ((T, B, N), (B, N), (B, N), (N,))]
    _, got, plan = run(model, args)
    assert [stage.kind for stage in plan.stages].count("fused") == 2
    found = torch.autograd.grad(got[0].sum(), args, allow_unused=True)
    assert [one is None for one in found] == [False, False, True, True]


def test_part_that_cannot_be_fused():
    """The other part runs in a kernel by itself."""
    def model(x, i, v):
        out = []
        for x_t in x:
            i = 0.8 * i + x_t
            v = torch.erfinv(0.5 * torch.tanh(v)) + i
            out.append(v)
        return out

    args = random(T, B, N), random(B, N), random(B, N)
    want, got, plan = run(model, args)
    assert [stage.kind for stage in plan.stages if stage.kind in ("fused", "loop")] == [
        "fused", "loop"]
    assert all(map(torch.equal, want, got))
