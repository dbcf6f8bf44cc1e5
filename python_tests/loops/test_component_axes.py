"""Recurrent components whose states have an axis of their own, as dendritic branches have."""
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from small_loops import check_loop, compare, find_components, over, run
from test_component import B, I, N, T, ones_and_zeros, random, spike, zeros

K = 3


def branch(x, w, bias, tau_m, tau_n, d, v, z):
    """Inputs and spikes in one Linear, whose outputs are the currents of the branches."""
    beta, alpha = torch.sigmoid(tau_n), torch.sigmoid(tau_m)
    current = F.linear(torch.cat((x, z), 1), w, bias)
    d = beta * d + (1 - beta) * torch.reshape(current, (-1, N, tau_n.shape[1]))
    v = alpha * v + (1 - alpha) * d.sum(2) - z
    return d, v, spike(v - 1.0)


branches = over(branch, 3, last=(0, 1))


def arguments(size=K):
    return (random(T, B, I, scale=3), random(N * size, I + N), random(N * size), random(N),
            random(N, size), random(B, N, size), random(B, N, seed=1), ones_and_zeros(B, N))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_branches(size):
    compare(branches, *arguments(size))


def test_mask_within_the_loop():
    def step(x, w, mask, beta, d, v, z):
        d = beta * d + F.linear(z, w * mask).view(B, N, K) + x.view(B, N, K)
        v = 0.9 * v + d.mean(-1)
        return d, v, spike(v - 0.5)

    compare(over(step, 3), random(T, B, N * K), random(N * K, N), ones_and_zeros(N * K, N, seed=1),
            random(N, K).sigmoid(), random(B, N, K), random(B, N), ones_and_zeros(B, N))


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
    return (x_t @ w_in.t() + torch.einsum("oi,bi...->bo...", w_rec, z) + bias).reshape(-1, N, K)


@pytest.mark.parametrize("current", [two_linears, views_of_two_linears, stack_of_products,
                                     matmul_and_einsum], ids=lambda one: one.__name__)
def test_currents(current):
    def step(x, w_in, w_rec, bias, beta, d, v, z):
        d = beta * d + current(x, z, w_in, w_rec, bias)
        v = 0.9 * v + d.sum(-1) - z.detach()
        return d, v, spike(v - 1.0)

    compare(over(step, 3, last=(0,), is_stacked=True), random(T, B, I), random(N * K, I),
            random(N * K, N), random(N * K), random(N, K).sigmoid(), random(B, N, K),
            random(B, N), ones_and_zeros(B, N))


def names(d, v):
    a, b, c = d.unbind(-1)
    return a + torch.tanh(b) * c


READS = {
    "indices": lambda d, v: d[..., 0] * d[:, :, 1] + d.select(-1, 2),
    "slices": lambda d, v: d[..., 1:].sum(-1) - d[..., :2].amax(-1),
    "names": names,
    "masks": lambda d, v: torch.where(d > v.unsqueeze(-1), d, 0.5 * d).mean(-1),
    "kept_axis": lambda d, v: (d - d.mean(-1, keepdim=True)).square().sum(-1),
    "normalized": lambda d, v: (d.sum(-1, keepdim=True) * 0.5).squeeze(-1),
    "joined": lambda d, v: torch.cat((d, v[..., None]), -1).amax(-1),
    "stacked": lambda d, v: torch.stack((v, d[..., 0]), -1).sum(-1)}


@pytest.mark.parametrize("name", READS)
def test_how_the_membrane_reads(name):
    def step(x, w, gamma, beta, v, d, z):
        d = beta * d + F.linear(z, w).view(-1, N, K) + x.unsqueeze(-1) * gamma
        d = torch.tanh(d - 0.1 * v.unsqueeze(-1))
        v = 0.8 * v + READS[name](d, v)
        return v, d, spike(v - 0.2)

    compare(over(step, 3, keep=(2, 1)), random(T, B, N), random(N * K, N), random(N, 1),
            random(1, K).sigmoid(), random(B, N), random(B, N, K), ones_and_zeros(B, N))


def test_axis_as_large_as_batch_and_neurons():
    """So that no shape says which axis is which."""
    n = 4

    def step(x, w, beta, k, d, v, z):
        d = beta * d + k * F.linear(z, w).view(n, n, n) + x[..., None]
        v = k.view(n) * v + d.sum(2) - d[..., 1]
        return d, v, spike(v - 0.2)

    compare(over(step, 3, last=(0,)), random(T, n, n), random(n * n, n), random(n, n).sigmoid(),
            random(n, 1), random(n, n, n), random(n, n, seed=1), random(n, n, seed=2))


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
    def step(x, w, before, d, v, z):
        d, before = 0.6 * d - 0.3 * before + F.linear(z, w).view(-1, N, K), d
        v = 0.8 * v + d.sum(-1) + x
        return before, d, v, spike(v - 0.5)

    compare(over(step, 4, last=(1,)), random(T, B, N), random(N * K, N), random(B, N, K, seed=1),
            random(B, N, K), random(B, N), ones_and_zeros(B, N))


def test_two_axes():
    def step(x, w_d, w_e, d, e, v, z):
        d = 0.6 * d + F.linear(z, w_d).view(-1, N, 2) + x.unsqueeze(-1)
        e = 0.7 * e + F.linear(z, w_e).view(-1, N, 3)
        v = 0.8 * v + d.sum(-1) - e.amax(-1)
        return d, e, v, spike(v - 0.5)

    compare(over(step, 4, last=(0, 1)), random(T, B, N), random(N * 2, N), random(N * 3, N),
            random(B, N, 2), random(B, N, 3), random(B, N), ones_and_zeros(B, N))


def test_flat_state():
    """A state (B, N * K) that only the membrane reads along its axis."""
    def step(x, w, beta, d, v, z):
        d = beta * d + F.linear(z, w) + x
        v = 0.9 * v + d.view(B, N, K).sum(2)
        return d, v, spike(v - 0.5)

    compare(over(step, 3, keep=(2, 0)), random(T, B, N * K), random(N * K, N),
            random(N * K).sigmoid(), random(B, N * K), random(B, N), ones_and_zeros(B, N))


# ------------------------------------------------------------------------------------- refused
def synapse(w, z):
    return F.linear(z, w).view(-1, N, K)


REFUSED = {
    "middle_axis": lambda d, v, z, w: (  # the axis is in front of that of the neurons
        0.9 * d + F.linear(z, w).view(-1, K, N).transpose(1, 2)),
    "softmax": lambda d, v, z, w: torch.softmax(0.9 * d + synapse(w, z), 1),
    "flipped": lambda d, v, z, w: 0.9 * d.flip(-1) + synapse(w, z),
    "product_of_branches": lambda d, v, z, w: (
        0.9 * d + synapse(w, z) + (d.flatten(1) @ w @ w.t()).view(-1, N, K))}


def sum_over_neurons(x, w, d, v, z):
    d = 0.9 * d + synapse(w, z)
    v = 0.8 * v + d.sum(-1) + x
    return d - 0.1 * d.sum(1, keepdim=True), v, spike(v - 0.5)


def two_axes_of_one_state(x, w, d, v, z):
    d = 0.9 * d + synapse(w, z)
    v = 0.8 * v + d.view(-1, K, N).sum(1) + x
    return d, v, spike(v - 0.5)


def of_branches(name):
    def step(x, w, d, v, z):
        d = REFUSED[name](d, v, z, w)
        v = 0.8 * v + d.sum(-1) + x
        return d, v, spike(v - 0.5)

    return step


@pytest.mark.parametrize("step", [sum_over_neurons, two_axes_of_one_state,
                                  *map(of_branches, REFUSED)], ids=[
    "sum_over_neurons", "two_axes_of_one_state", *REFUSED])
def test_what_no_kernel_can_run_is_refused(step):
    """It stays a loop, with a reason, and is equal."""
    check_loop(over(step, 3, is_stacked=True), "test_component_axes.py", random(T, B, N),
               random(N * K, N), random(B, N, K), random(B, N), ones_and_zeros(B, N))


@pytest.mark.parametrize("size", [9, 17])
def test_more_branches_than_currents_are_refused(size):
    check_loop(over(branch, 3, is_stacked=True), "test_component_axes.py", *arguments(size))


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


def single_step_arguments(batch):
    return (random(T, batch, N, scale=3), random(N, N), random(batch, N), ones_and_zeros(batch, N))


@pytest.mark.parametrize("batch", [B, 1])
def test_operator_over_an_axis_of_1(batch):
    compare(single_steps, *single_step_arguments(batch))


def test_operator_over_two_steps_is_refused():
    def step(x, w, v, z):
        current = x + z @ w
        z, _, v = torch.ops.lsnn_loops.over_time(torch.stack([current, current]), v, 2.0)
        return v, z[1]

    _, _, plan = run(over(step, 2, last=(0,)), single_step_arguments(B))
    kept, = [stage for stage in plan.stages if stage.kind == "loop"]
    assert "stack" in kept.reason or "shape" in kept.reason, kept.reason


@pytest.mark.parametrize("size", [1, K])
@pytest.mark.parametrize("inputs", ["numbers", "a number"])
def test_product_of_the_iteration_before(inputs, size):
    """Other numbers take its place in the first iteration; it has a bias after that."""
    def step(x, w, bias, beta, d, v, back, z):
        total = (x if inputs == "numbers" else 0.25) + back
        d = beta * d + total.view(B, N, size)
        v = 0.8 * v + d.sum(2)
        z = spike(v - 0.5)
        return d, v - z, F.linear(z, w, bias), z

    plan = compare(over(step, 4), random(T, B, N * size), random(N * size, N), random(N * size),
                   torch.rand(N, size).double(), random(B, N, size), random(B, N),
                   random(B, N * size, seed=4), zeros(B, N))
    assert not find_components(plan)[0].found.ahead
