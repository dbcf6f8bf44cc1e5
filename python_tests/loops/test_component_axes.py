"""Recurrent components whose states have an axis of their own, as dendritic branches have."""
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from small_loops import compare, run
from test_component import B, I, N, T, random, spike

K = 3


def branches(x, w, bias, tau_m, tau_n, d, v, z, view=None):
    """Inputs and spikes in one Linear, whose outputs are the currents of the branches."""
    spikes, size = [], tau_n.shape[1]
    for x_t in x.unbind(0):
        beta, alpha = torch.sigmoid(tau_n), torch.sigmoid(tau_m)
        current = F.linear(torch.cat((x_t, z), 1), w, bias)
        d = beta * d + (1 - beta) * (view or torch.reshape)(current, (-1, N, size))
        v = alpha * v + (1 - alpha) * d.sum(2) - z
        z = spike(v - 1.0)
        spikes.append(z)
    return spikes, d, v


def arguments(size=K):
    return (random(T, B, I, scale=3), random(N * size, I + N), random(N * size), random(N),
            random(N, size), random(B, N, size), random(B, N, seed=1),
            (random(B, N) > 0).double())


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_branches(size):
    compare(branches, *arguments(size))


def test_weights_with_a_mask():
    """Each input reaches one branch of a neuron."""
    def model(x, w, mask, *args):
        return branches(x, w * mask, *args)

    x, w, *args = arguments()
    compare(model, x, w, (random(*w.shape, seed=3) > 0).double(), *args)


def test_mask_within_the_loop():
    def model(x, w, mask, beta, d, v, z):
        spikes = []
        for x_t in x.unbind(0):
            d = beta * d + F.linear(z, w * mask).view(B, N, K) + x_t.view(B, N, K)
            v = 0.9 * v + d.mean(-1)
            z = spike(v - 0.5)
            spikes.append(z)
        return spikes

    compare(model, random(T, B, N * K), random(N * K, N), (random(N * K, N, seed=1) > 0).double(),
            random(N, K).sigmoid(), random(B, N, K), random(B, N), (random(B, N) > 0).double())


def two_linears(x_t, z, w_in, w_rec, bias):
    return (F.linear(x_t, w_in, bias) + F.linear(z, w_rec, bias)).view(-1, N, K)


def views_of_two_linears(x_t, z, w_in, w_rec, bias):
    return (F.linear(x_t, w_in, bias).unflatten(1, (N, K))
            + F.linear(z, w_rec, bias).unflatten(1, (N, K)))


def stack_of_products(x_t, z, w_in, w_rec, bias):
    parts = w_rec.view(N, K, N).unbind(1)
    return torch.stack([F.linear(z, part) for part in parts], -1) + F.linear(x_t, w_in).view(
        -1, N, K)


def matmul_and_einsum(x_t, z, w_in, w_rec, bias):
    return (x_t @ w_in.t() + torch.einsum("bi,oi->bo", z, w_rec) + bias).reshape(-1, N, K)


@pytest.mark.parametrize("current", [two_linears, views_of_two_linears, stack_of_products,
                                     matmul_and_einsum], ids=lambda one: one.__name__)
def test_currents(current):
    def model(x, w_in, w_rec, bias, beta, d, v, z):
        spikes = []
        for x_t in x.unbind(0):
            d = beta * d + current(x_t, z, w_in, w_rec, bias)
            v = 0.9 * v + d.sum(-1) - z.detach()
            z = spike(v - 1.0)
            spikes.append(z)
        return torch.stack(spikes), d

    compare(model, random(T, B, I), random(N * K, I), random(N * K, N), random(N * K),
            random(N, K).sigmoid(), random(B, N, K), random(B, N), (random(B, N) > 0).double())


def indices(d, v):
    return d[..., 0] * d[:, :, 1] + d.select(-1, 2)


def slices(d, v):
    return d[..., 1:].sum(-1) - d[..., :2].amax(-1)


def names(d, v):
    a, b, c = d.unbind(-1)
    return a + torch.tanh(b) * c


def masks(d, v):
    return torch.where(d > v.unsqueeze(-1), d, 0.5 * d).mean(-1)


def kept_axis(d, v):
    return (d - d.mean(-1, keepdim=True)).square().sum(-1)


def normalized(d, v):
    return (d.sum(-1, keepdim=True) * 0.5).squeeze(-1)


def joined(d, v):
    return torch.cat((d, v[..., None]), -1).amax(-1)


def stacked(d, v):
    return torch.stack((v, d[..., 0]), -1).sum(-1)


@pytest.mark.parametrize("read", [indices, slices, names, masks, kept_axis, normalized, joined,
                                  stacked], ids=lambda one: one.__name__)
def test_how_the_membrane_reads(read):
    def model(x, w, gamma, beta, d, v, z):
        spikes, branches = [], []
        for x_t in x.unbind(0):
            d = beta * d + F.linear(z, w).view(-1, N, K) + x_t.unsqueeze(-1) * gamma
            d = torch.tanh(d - 0.1 * v.unsqueeze(-1))
            v = 0.8 * v + read(d, v)
            z = spike(v - 0.2)
            spikes.append(z)
            branches.append(d)
        return spikes, branches

    compare(model, random(T, B, N), random(N * K, N), random(N, 1), random(1, K).sigmoid(),
            random(B, N, K), random(B, N), (random(B, N) > 0).double())


def test_axis_as_large_as_batch_and_neurons():
    """So that no shape says which axis is which."""
    n = 4

    def model(x, w, beta, k, d, v, z):
        spikes = []
        for x_t in x.unbind(0):
            d = beta * d + k * F.linear(z, w).view(n, n, n) + x_t[..., None]
            v = k.view(n) * v + d.sum(2) - d[..., 1]
            z = spike(v - 0.2)
            spikes.append(z)
        return spikes, d

    compare(model, random(T, n, n), random(n * n, n), random(n, n).sigmoid(), random(n, 1),
            random(n, n, n), random(n, n, seed=1), random(n, n, seed=2))


def test_spike_at_the_beginning():
    """The product reads the spike of its own iteration."""
    def model(x, w, d, v):
        spikes, branches = [], []
        for x_t in x.unbind(0):
            z = spike(v - 1.0)
            d_new = 0.9 * d + F.linear(z, w).view(-1, N, K) + x_t.unsqueeze(-1)
            v = (0.8 * v + d.sum(-1)) * (1.0 - z.detach())
            d = d_new
            spikes.append(z)
            branches.append(d)
        return spikes, branches

    compare(model, random(T, B, N), random(N * K, N), random(B, N, K), random(B, N))


def test_states_of_past_iterations():
    def model(x, w, d, before, v, z):
        spikes = []
        for x_t in x.unbind(0):
            new = 0.6 * d - 0.3 * before + F.linear(z, w).view(-1, N, K)
            d, before = new, d
            v = 0.8 * v + d.sum(-1) + x_t
            z = spike(v - 0.5)
            spikes.append(z)
        return spikes, d

    compare(model, random(T, B, N), random(N * K, N), random(B, N, K), random(B, N, K, seed=1),
            random(B, N), (random(B, N) > 0).double())


def test_two_axes():
    def model(x, w_d, w_e, d, e, v, z):
        spikes = []
        for x_t in x.unbind(0):
            d = 0.6 * d + F.linear(z, w_d).view(-1, N, 2) + x_t.unsqueeze(-1)
            e = 0.7 * e + F.linear(z, w_e).view(-1, N, 3)
            v = 0.8 * v + d.sum(-1) - e.amax(-1)
            z = spike(v - 0.5)
            spikes.append(z)
        return spikes, d, e

    compare(model, random(T, B, N), random(N * 2, N), random(N * 3, N), random(B, N, 2),
            random(B, N, 3), random(B, N), (random(B, N) > 0).double())


def test_writes_in_place():
    def model(x, w, beta, d, v, z):
        d, spikes = d.clone(), []
        for x_t in x.unbind(0):
            d.mul_(beta).add_(F.linear(z, w).view(-1, N, K)).add_(x_t.unsqueeze(-1))
            v = 0.9 * v + d.sum(-1)
            z = spike(v - 0.5)
            spikes.append(z)
        return spikes, d

    compare(model, random(T, B, N), random(N * K, N), random(N, K).sigmoid(), random(B, N, K),
            random(B, N), (random(B, N) > 0).double())


def test_flat_state():
    """A state (B, N * K) that only the membrane reads along its axis."""
    def model(x, w, beta, d, v, z):
        spikes, branches = [], []
        for x_t in x.unbind(0):
            d = beta * d + F.linear(z, w) + x_t
            v = 0.9 * v + d.view(B, N, K).sum(2)
            z = spike(v - 0.5)
            spikes.append(z)
            branches.append(d)
        return spikes, branches

    compare(model, random(T, B, N * K), random(N * K, N), random(N * K).sigmoid(),
            random(B, N * K), random(B, N), (random(B, N) > 0).double())


# ------------------------------------------------------------------------------------- refused
def middle_axis(x_t, z, w, d, v):
    """The axis is in front of that of the neurons."""
    d = 0.9 * d + F.linear(z, w).view(-1, K, N).transpose(1, 2)
    return d, 0.8 * v + d.sum(-1) + x_t


def sum_over_neurons(x_t, z, w, d, v):
    d = 0.9 * d + F.linear(z, w).view(-1, N, K)
    return d - 0.1 * d.sum(1, keepdim=True), 0.8 * v + d.sum(-1) + x_t


def softmax(x_t, z, w, d, v):
    d = torch.softmax(0.9 * d + F.linear(z, w).view(-1, N, K), 1)
    return d, 0.8 * v + d.sum(-1) + x_t


def flipped(x_t, z, w, d, v):
    d = 0.9 * d.flip(-1) + F.linear(z, w).view(-1, N, K)
    return d, 0.8 * v + d.sum(-1) + x_t


def two_axes_of_one_state(x_t, z, w, d, v):
    d = 0.9 * d + F.linear(z, w).view(-1, N, K)
    return d, 0.8 * v + d.view(-1, K, N).sum(1) + x_t


def product_of_branches(x_t, z, w, d, v):
    d = 0.9 * d + F.linear(z, w).view(-1, N, K) + (d.flatten(1) @ w @ w.t()).view(-1, N, K)
    return d, 0.8 * v + d.sum(-1) + x_t


@pytest.mark.parametrize("body", [middle_axis, sum_over_neurons, softmax, flipped,
                                  two_axes_of_one_state, product_of_branches],
                         ids=lambda one: one.__name__)
def test_what_no_kernel_can_run_is_refused(body):
    """It stays a loop, with a reason, and is equal."""
    def model(x, w, d, v, z):
        spikes = []
        for x_t in x.unbind(0):
            d, v = body(x_t, z, w, d, v)
            z = spike(v - 0.5)
            spikes.append(z)
        return torch.stack(spikes)

    _check_loop(model, random(T, B, N), random(N * K, N), random(B, N, K), random(B, N),
                (random(B, N) > 0).double())


@pytest.mark.parametrize("size", [9, 17])
def test_more_branches_than_currents_are_refused(size):
    _check_loop(lambda *args: torch.stack(branches(*args)[0]), *arguments(size))


def _check_loop(model, *args):
    want, got, plan = run(model, args)
    loops = [stage for stage in plan.stages if stage.kind == "loop"]
    assert len(loops) == 1
    assert loops[0].reason
    assert loops[0].line.startswith("test_component_axes.py:")
    assert torch.equal(want, got)


# ---------------------------------------------------------- operators of packages over an axis of 1
LIBRARY = torch.library.Library("lsnn_loops", "DEF")
LIBRARY.define("over_time(Tensor x, Tensor v, float tau) -> (Tensor, Tensor, Tensor)")
LIBRARY.define("first(Tensor x) -> Tensor")


def over_time(x, v, tau):
    """Spikes and charges of all steps, and the last membrane, as packages register it."""
    spikes, charges = [], []
    for x_t in x:
        h = v + (x_t - v) / tau
        z = spike(h - 1.0)
        v = (1 - z) * h
        spikes.append(z)
        charges.append(h)
    return torch.stack(spikes), torch.stack(charges), v


def first(x):
    return x[0] + 0.5 * x[0].unsqueeze(0).squeeze(0)


LIBRARY.impl("over_time", over_time, "CompositeImplicitAutograd")
LIBRARY.impl("first", first, "CompositeImplicitAutograd")


def single_steps(x, w, v, z):
    """Each step is a sequence of one."""
    spikes, charges = [], []
    for x_t in x.unbind(0):
        current = torch.ops.lsnn_loops.first((x_t + z @ w).unsqueeze(0))
        z, h, v = torch.ops.lsnn_loops.over_time(current[None], v, 2.0)
        z = z[0]
        spikes.append(z)
        charges.append(h)
    return spikes, torch.cat(charges), v


def test_operator_over_an_axis_of_1():
    args = (random(T, B, N, scale=3), random(N, N), random(B, N), (random(B, N) > 0).double())
    compare(single_steps, *args)


def test_operator_over_an_axis_of_1_and_a_batch_of_1():
    args = (random(T, 1, N, scale=3), random(N, N), random(1, N), (random(1, N) > 0).double())
    compare(single_steps, *args)


def test_operator_over_two_steps_is_refused():
    def model(x, w, v, z):
        spikes = []
        for x_t in x.unbind(0):
            current = x_t + z @ w
            z, _, v = torch.ops.lsnn_loops.over_time(torch.stack([current, current]), v, 2.0)
            z = z[1]
            spikes.append(z)
        return spikes, v

    args = (random(T, B, N, scale=3), random(N, N), random(B, N), (random(B, N) > 0).double())
    _, _, plan = run(model, args)
    kept, = [stage for stage in plan.stages if stage.kind == "loop"]
    assert "stack" in kept.reason or "shape" in kept.reason, kept.reason
