"""Gradients of fused components where torch records some of the calls only."""
import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lsnn_ext import Refused, convert, fuse
from small_loops import compare, over
from test_component import B, N, T, random, spike


def test_no_grad_and_in_place():
    """A write under no_grad keeps the gradient of what it writes to."""
    def model(x, w, decay, v, z):
        spikes = []
        v = v.clone()
        for t in range(T):
            with torch.no_grad():
                rest = decay * v
            v -= 0.1 * rest
            v += x[t]
            v = v.mul_(0.9) + z @ w
            with torch.no_grad():
                v.mul_(0.5)
            z = spike(v - 0.1)
            spikes.append(z)
        return spikes, v

    compare(model, random(T, B, N), random(N, N), torch.rand(N).double(), random(B, N),
            torch.zeros(B, N).double())


def test_gradient_of_the_first_iteration_only():
    def model(x, v):
        membranes = []
        for _ in range(T):
            membranes.append(1.0 * v)
            with torch.no_grad():
                rest = 0.5 * v
            v = torch.tanh(rest)
        return membranes

    compare(model, random(T, B, N), random(B, N))


def test_gradient_of_a_value_before_the_loop_only():
    """What another component reads of the iteration before requires a gradient in the first one."""
    def model(v, u):
        membranes = []
        for _ in range(T):
            v_new = torch.tanh(0.9 * v + u)
            with torch.no_grad():
                u = torch.sin(u)
            v = v_new
            membranes.append(v)
        return membranes

    compare(model, random(B, N), random(B, N, seed=1))


class _Carried(nn.Module):
    """Keeps the last spike, with its graph, and starts the membrane anew in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(random(N, N))
        self.z = self.v = torch.zeros(B, N).double()

    def forward(self, x):
        self.v = torch.zeros_like(self.v)
        out = []
        for x_t in x:
            self.v = 0.9 * self.v + x_t + self.z @ self.w
            self.z = spike(self.v - 0.1)
            out.append(self.z)
        return torch.stack(out)


@pytest.mark.filterwarnings("error")  # of a recording that is not equal to the original
def test_gradients_pass_on_to_the_call_before():
    """The spike that a call starts from depends on the membrane that it replaces. A call with other
    shapes is recorded, so its states have the graph of the original."""
    torch.manual_seed(0)
    model, x = _Carried(), random(T, B, N)
    original = copy.deepcopy(model)
    model, report = convert(model, x)
    assert report.fused
    calls = [[one(x[1:]) for _ in range(3)] for one in (model, original)]
    for made in calls:
        sum(each.square().sum() for each in made).backward()
    torch.testing.assert_close(*calls)
    torch.testing.assert_close(model.w.grad, original.w.grad)


class _Vanishing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g * torch.exp(-2e3 * u) / (1 + torch.exp(-2e3 * u)) ** 2  # inf / inf below -0.4


def test_gradients_that_are_not_finite_keep_the_original():
    def step(x, w, v, z):
        v = 0.9 * v + x + z @ w
        return v, _Vanishing.apply(v - 2.0)

    given = random(T, B, N), random(N, N).requires_grad_(), *torch.zeros(2, B, N).double()
    with pytest.raises(Refused, match="expected a gradient that is finite where that of the"):
        fuse(over(step, 2, last=(0,)), given)


def spikes_and_membranes(x, w, theta):
    """The threshold changes spikes only, the matrix in front of the loop both results."""
    v, spikes, membranes = torch.zeros(B, N).double(), [], []
    for t in range(T):
        v = 0.9 * v + x[t] @ w
        spikes.append(spike(v - theta))
        membranes.append(v)
    return torch.stack(spikes), torch.stack(membranes)


def fuse_with_gradients(model):
    """The fused function and its arguments, after a first call."""
    args = [one.requires_grad_() for one in (random(T, B, N), random(N, N), random(N))]
    fused = fuse(model, tuple(args))
    fused(*args)
    return fused, args


def test_what_no_used_result_depends_on_has_no_gradient():
    fused, args = fuse_with_gradients(spikes_and_membranes)
    results, wanted = fused(*args), spikes_and_membranes(*args)
    assert all(one.grad_fn is not None for one in results)
    for which in ((1,), (0, 1), (0,), (1,)):  # again on the same graph
        got, want = (torch.autograd.grad([one[k].sum() for k in which], args, retain_graph=True,
                                         allow_unused=True) for one in (results, wanted))
        assert (got[2] is None) == (which == (1,))
        torch.testing.assert_close(got, want)


def test_backward_passes_at_the_same_time_do_not_meet():
    """Each thread with a result of its own, of one graph."""
    fused, args = fuse_with_gradients(spikes_and_membranes)
    results = fused(*args)

    def is_none(k):
        return [torch.autograd.grad(results[k].sum(), args, retain_graph=True,
                                    allow_unused=True)[2] is None for _ in range(100)]

    with ThreadPoolExecutor(2) as pool:
        spikes, membranes = pool.map(is_none, (0, 1))
    assert not any(spikes) and all(membranes)


def test_a_backward_pass_that_raises_leaves_nothing():
    fused, args = fuse_with_gradients(spikes_and_membranes)
    spikes, membranes = fused(*args)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.autograd.grad(spikes, args, torch.ones(2, *spikes.shape).double(),
                            retain_graph=True, is_grads_batched=True)
    found = torch.autograd.grad(membranes.sum(), args, allow_unused=True)
    assert found[2] is None and found[0].any()


def test_none_passes_through_what_lies_before():
    """Another recurrence and a product lead to a current of the spikes only."""
    def model(x, w, decay):
        u = v = torch.zeros(B, N).double()
        spikes, membranes = [], []
        for t in range(T):
            u = torch.tanh(decay * u + x[t])
            v = 0.9 * v + x[t]
            spikes.append(spike(v - torch.nn.functional.linear(u, w)))
            membranes.append(v)
        return torch.stack(spikes), torch.stack(membranes)

    fused, args = fuse_with_gradients(model)
    for k, is_none in ((1, True), (0, False)):
        _, w, decay = torch.autograd.grad(fused(*args)[k].sum(), args, allow_unused=True)
        assert (w is None, decay is None) == (is_none, is_none)


class Oscillating(nn.Module):
    """An adaptive neuron whose adaptation is driven by the membrane, with a large factor."""

    def __init__(self, n: int = 128) -> None:
        super().__init__()
        self.w_in, self.w_rec = nn.Linear(140, n), nn.Linear(n, n, bias=False)
        self.a, self.b = nn.Parameter(torch.rand(n)), nn.Parameter(2 * torch.rand(n))
        self.fast, self.slow = nn.Parameter(torch.rand(n)), nn.Parameter(torch.rand(n))

    def forward(self, x):
        u, z, w = (torch.zeros(x.shape[1], len(self.a), requires_grad=True) for _ in range(3))
        spikes = []
        for one in x:
            decay = torch.exp(-1 / (5 + 20 * self.fast))
            rho = torch.exp(-1 / (60 + 240 * self.slow))
            u = decay * u + (1 - decay) * (self.w_in(one) + self.w_rec(z) - w)
            above = u - 1
            slope = (1 / torch.exp(5 * above.abs())).detach()
            z = (above > 0).to(u.dtype) + slope * (above - above.detach())
            u = u * (1 - z.detach())
            w = rho * w + (1 - rho) * (self.a * u + self.b * z) * 60
            spikes.append(z)
        return torch.stack(spikes)


def test_a_step_that_enlarges_rounding_is_fused():
    """Rounding changes its results as much as an ulp of its inputs does."""
    torch.manual_seed(0)
    _, report = convert(Oscillating(), 5 * torch.rand(50, 16, 140))
    assert report.fused
