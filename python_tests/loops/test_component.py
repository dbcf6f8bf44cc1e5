"""Recurrent components as fused runs: equal to the loops of their calls, with all gradients."""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import fuse
from lsnn_ext.loops.plan import Plan
from small_loops import close, compare, find_components, over, random, run, spike

T, B, N, I = 7, 5, 6, 4


_LIBRARY = torch.library.Library("lsnn_names", "FRAGMENT")
for _name, _run in {"zeros_like(Tensor x)": lambda x: torch.ones_like(x) * 3,
                    "mul(Tensor x, Tensor y)": lambda x, y: (x * y).cumsum(0),
                    "linear(Tensor x, Tensor y)": lambda x, y: 3 * x @ y,
                    "add(Tensor x, Tensor y)": lambda x, y: x - 2 * y}.items():
    _LIBRARY.define(f"{_name} -> Tensor")
    _LIBRARY.impl(_name.partition("(")[0], _run, "CompositeImplicitAutograd")
PACKAGE = SimpleNamespace(**{name: getattr(torch.ops.lsnn_names, name)
                             for name in ("zeros_like", "mul", "linear", "add")})


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def ones_and_zeros(*shape: int, seed: int = 0) -> Tensor:
    return (random(*shape, seed=seed) > 0).double()


def currents(plan: Plan) -> int:
    """Of the first component in a kernel."""
    return len(find_components(plan)[0].found.currents)


def test_alif():
    def step(x, w, alpha, rho, theta, v, a, z):
        a = rho * a + (1 - rho) * z
        limit = theta + 1.8 * a
        v = alpha * v + (1 - alpha) * (x + z @ w) - z * limit
        return v, a, spike((v - limit) / limit)

    compare(over(step, 3, keep=(2, 0)), random(T, B, N, scale=9), random(N, N),
            torch.rand(N).double(), torch.tensor(0.9).double(), torch.rand(N).double() + 0.5,
            random(B, N, seed=1), random(B, N, seed=2).abs(), ones_and_zeros(B, N))


def populations(x: Tensor, w: Tensor, tau: Tensor, u: Tensor, v: Tensor, z: Tensor, y: Tensor,
                how: str) -> tuple[Tensor, ...]:
    """A step of two neurons of other kinds, each of which reads the spikes of both."""
    if how == "apart":
        a, b = z @ w[:N, :N] - y @ w[N:, :N], F.linear(z, w[:N, N:]) + y @ w[N:, N:]
    elif how == "together":
        a, b = (torch.cat([z, y], -1) @ w).chunk(2, -1)
    else:  # the same matrix, and spikes that no gradient reaches
        a, b = (z + y.detach()) @ w[:N, :N], z.detach() @ w[:N, :N]
    u = tau * u * (1 - z) + x + a
    v = 0.5 * v + torch.tanh(b) - 0.25 * y.detach()
    return u, v, spike(u - 0.5), torch.tanh(v)


@pytest.mark.parametrize("how", ["apart", "together", "sum"])
@pytest.mark.parametrize("keep", [(2,), (3, 0), (0, 1, 2, 3)])
def test_two_populations_are_one_component(how, keep):
    compare(over(partial(populations, how=how), 4, keep, last=(1,)), random(T, B, N),
            random(2 * N, 2 * N), torch.rand(N).double(), random(B, N, seed=1),
            random(B, N, seed=2), ones_and_zeros(B, N), random(B, N, seed=3))


def test_a_product_of_two_states_of_a_neuron():
    """As coRNN, with three iterations between."""
    def model(x, w, h, y):
        states, ys = [h, h, h], []
        for one in x:
            c = torch.tanh(one + F.linear(y, w[:, :N]) + F.linear(states[-3], w[:, N:]))
            y = y + 0.05 * (c - 2.7 * states[-1] - 4.7 * y)
            states.append(states[-1] + 0.05 * y)
            ys.append(y)
        return torch.stack(states[3:]), torch.stack(ys)

    compare(model, random(T, B, N), random(N, 2 * N), random(B, N, seed=1), random(B, N, seed=2))


def test_detached_reset_and_bias():
    """As RLeaky: the reset is made at the beginning of the body, from the membrane before."""
    def step(x, w, bias, beta, v, z):
        reset = spike(v - 1.0).clone().detach()
        v = beta.clamp(0, 1) * v + x + F.linear(z, w, bias) - reset * 1.0
        return v, spike(v - 1.0)

    compare(over(step, 2, keep=(1, 0)), random(T, B, N), random(N, N), random(N),
            torch.tensor(0.8).double(), random(B, N, seed=1), zeros(B, N))


def test_spike_at_the_beginning():
    """As SpyTorch: the product reads the spike of its own iteration."""
    def model(x, w, v, i):
        spikes, membranes = [], []
        for x_t in x.unbind(0):
            z = spike(v - 1.0)
            i_new = 0.9 * i + x_t + torch.einsum("ab,bc->ac", (z, w))
            v_new = (0.8 * v + i) * (1.0 - z.detach())
            membranes.append(v)
            spikes.append(z)
            v, i = v_new, i_new
        return spikes, membranes

    plan = compare(model, random(T, B, N), random(N, N), random(B, N, seed=1), random(B, N, seed=2))
    assert currents(plan) == 1


def test_cell_of_four_states():
    """As norse's LSNN cell: two products, jumps, decays as numbers."""
    def step(x, w_in, w_rec, inverse, v, i, b, z):
        v_decayed = v + 0.001 * inverse * ((0.0 - v) + i)
        i_decayed = i + -0.2 * i
        b_decayed = b + 0.01 * (1.0 - b)
        z_new = spike(v_decayed - b_decayed)
        v = (1 - z_new) * v_decayed + z_new * 0.0
        i = i_decayed + F.linear(x, w_in) + F.linear(z, w_rec)
        return v, i, b_decayed + z_new * 0.3 * 1.8, z_new

    plan = compare(over(step, 4, last=(0, 1, 2), is_stacked=True), 9 * random(T, B, I),
                   random(N, I), random(N, N), torch.tensor(100.0), random(B, N, seed=1),
                   random(B, N, seed=2), random(B, N, seed=3), zeros(B, N))
    assert currents(plan) == 1


def test_two_synapses():
    """Two currents, of which one has a matrix of zeros added by a mask."""
    def model(x, y, w_1, w_2, mask, v, fast, slow, z):
        spikes = []
        for t in range(T):
            fast = 0.7 * fast + (x[t] + z @ (w_1 * mask))
            slow = 0.9 * slow + (y[t] + torch.mm(z, w_2.t()))
            v = 0.8 * v + fast - slow
            z = spike(v - 1.0)
            spikes.append(z)
        return torch.stack(spikes, 1)

    plan = compare(model, random(T, B, N), random(T, B, N, seed=1), random(N, N),
                   random(N, N, seed=2), ones_and_zeros(N, N, seed=3),
                   *(random(B, N, seed=k) for k in range(4, 7)), zeros(B, N))
    assert currents(plan) == 2


def test_products_that_are_only_added_are_one():
    def step(x, w_1, w_2, v, z):
        v = 0.9 * v + z @ w_1 + x + torch.addmm(x, z, w_2)
        return v, torch.tanh(v)

    plan = compare(over(step, 2, keep=(), last=(0, 1)), random(T, B, N), random(N, N),
                   random(N, N, seed=2), random(B, N), random(B, N, seed=1))
    assert currents(plan) == 1


def test_membrane_of_four_axes():
    def step(x, theta, beta, v, _):
        v = beta * v + x - theta
        z = spike(v)
        return v * (1 - z.detach()), z

    compare(over(step, 2, keep=(1, 0), is_stacked=True), random(T, B, 3, 2, 4),
            torch.rand(3, 1, 1).double(), torch.rand(4).double(), zeros(1), zeros(1))


def test_delay_behind_the_spike():
    """The product reads the spike of its own and of the last iteration."""
    def step(x, w_1, w_2, v, z_before):
        z = spike(v + z_before @ w_2)
        return 0.9 * v + x + z @ w_1 - 0.1 * z_before, z

    compare(over(step, 2, last=(0,)), random(T, B, N), random(N, N), random(N, N, seed=1),
            random(B, N), ones_and_zeros(B, N, seed=2))


def test_unbatched():
    def step(x, w, theta, v, z):
        v = theta * v + x + w @ z
        return v, spike(v)

    compare(over(step, 2), random(T, N), random(N, N), torch.rand(N).double(), random(N), zeros(N))


def test_without_products_and_inputs():
    """Two carried values, one input from before the loop for each neuron of each item."""
    def model(given, v):
        for _ in range(T):
            v = torch.sigmoid(v * 0.9 + given)
        return v

    compare(model, random(B, N), random(B, N, seed=1))


def test_weights_of_low_rank_and_many_neurons_stay():
    """One product by their product would take longer than the loop."""
    def model(x, w, v):
        for t in range(T):
            v = 0.9 * v + x[t] + (torch.tanh(v) @ w) @ w.t()
        return v

    _, _, plan = run(model, (random(T, 32, 256), random(256, 2), random(32, 256)))
    assert [(stage.kind, stage.reason) for stage in plan.stages if stage.reason] == [
        ("loop", "expected matrices that are faster as one product, got shapes (256, 2), "
                 "(2, 256)")]


def test_values_before_the_last():
    """The end reads a function of the state before the last step."""
    def step(x, w, v, z, _):
        before = (v * w[0]).sin()
        v = 0.8 * v + x + z @ w
        return v, spike(v - 0.3), before.cos()

    compare(over(step, 3, keep=(1,), last=(2,)), random(T, B, N), random(N, N),
            random(B, N, seed=1), zeros(B, N), zeros(B, N))


def test_refractory_mask():
    """A carried value of bools, and counts that are numbers."""
    def step(x, w, v, rest, z):
        v = torch.where(rest, torch.zeros_like(v), 0.9 * v + x + z @ w)
        z = spike(v - 0.2)
        return v, z > 0.5, z

    compare(over(step, 3, last=(1,)), random(T, B, N), random(N, N), random(B, N),
            random(B, N, seed=3) > 0, zeros(B, N))


def test_other_values_before_the_loop():
    """The product and the reset begin with other spikes."""
    def step(x, w, v, reset, z):
        v = 0.9 * v + x + z @ w - reset
        z = spike(v)
        return v, z, z

    compare(over(step, 3), random(T, B, N), random(N, N), random(B, N), random(B, N, seed=4),
            zeros(B, N))


@pytest.mark.parametrize("is_detached", [True, False])
def test_spikes_in_the_product(is_detached):
    """Detached, or numbers before the loop."""
    def step(x, w, v, z):
        v = 0.9 * v + x + (z.detach() if is_detached else z) @ w
        return v, spike(v)

    before = zeros(B, N) if is_detached else 0.3 * random(B, N, seed=1)
    compare(over(step, 2), random(T, B, N), random(N, N), random(B, N), before)


@pytest.mark.parametrize("is_learning", [True, False])
def test_float32(is_learning):
    def step(x, w, v, z):
        v = 0.9 * v + x + z @ w - z
        return v, spike(v - 1)

    def model(*args):
        with torch.set_grad_enabled(is_learning):
            return over(step, 2, last=(0,), is_stacked=True)(*args)

    args = [one.float().requires_grad_() for one in (
        random(T, B, N), random(N, N), random(B, N), zeros(B, N))]
    want, got, plan = run(model, args)
    assert [stage.kind for stage in plan.stages if stage.kind in ("fused", "loop")] == ["fused"]
    assert torch.equal(want[0], got[0])
    assert got[1].dtype == torch.float32
    close(got[1].detach(), want[1].detach(), 1e-6, "membrane")
    assert got[1].requires_grad == is_learning


def test_product_of_an_input_inside():
    """The sum of a carried value and a product of an input is one call."""
    compare(over(lambda x, w, v: (torch.tanh(torch.addmm(v, x, w)),), 1), random(T, B, N),
            random(N, N), random(B, N))


def test_equal_layers_share_their_kernels():
    def model(x, w, v, u):
        results = []
        for t in range(T):
            v = 0.9 * v + x[t]
            z = spike(v)
            u = 0.9 * u + z @ w
            y = spike(u)
            results.append((z, y))
        return results

    plan = compare(model, random(T, B, N), random(N, N), random(B, N), random(B, N, seed=1),
                   fused=2)
    first, second = find_components(plan)
    assert first.neuron is second.neuron


def test_views_of_one_step():
    """A layer for sequences, called for sequences of one step."""
    def step(x, w, bias, v, z):
        current = F.linear(torch.cat((x, z), -1), w, bias)
        steps = []
        for c in current.unsqueeze(0).unbind(0):
            v = v + (c - v) / 2.0
            z = spike(v - 0.2)
            v = v * (1 - z)
            steps.append(z)
        return v, torch.stack(steps)[0]

    plan = compare(over(step, 2), random(T, B, I), random(N, I + N), random(N), random(B, N),
                   zeros(B, N))
    assert currents(plan) == 1


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(B, N), (B, 1)])
def test_what_differs_by_row_but_not_by_iteration_is_a_state(learned, shape):
    """As the thresholds of DH-SNN, (B, N), and a mask of sequences."""
    def model(x, w, limit):
        v = z = zeros(B, N)
        keep, made = x[0, :, :1] > 0, []
        for one in x:
            v = torch.where(keep, 0.9 * v, v) + one + z @ w - limit * z
            z = spike(v - limit)
            made.append(z)
        return torch.stack(made), v

    plan = compare(model, random(T, B, N), random(N, N),
                   random(*shape, seed=4).abs().requires_grad_(learned))
    assert currents(plan) == 1


@pytest.mark.parametrize("name", ["zeros_like", "mul", "linear", "add"])
def test_operators_with_names_of_torch(name):
    """Those of a package do something else."""
    def step(x, w, v, z):
        v = 0.9 * v + x + z @ w
        v = PACKAGE.add(v, z) if name == "add" else v
        return v, spike(v - 0.3)

    def model(x, w):
        v, made = None, []
        for one in x * 0.5:
            one = PACKAGE.linear(one, w) if name == "linear" else one * 2
            if v is None:
                v = PACKAGE.zeros_like(one) if name == "zeros_like" else torch.zeros_like(one)
                z = torch.zeros_like(one)
            v, z = step(one, w, v, z)
            made.append(PACKAGE.mul(z, v) if name == "mul" else z)
        return torch.stack(made)

    x, w = random(T, T, N), random(N, N)
    torch.testing.assert_close(fuse(model, (x, w), verify=False)(x, w), model(x, w))


@pytest.mark.parametrize("call", [
    lambda z, v, k: z.max(1, keepdim=True)[0], lambda z, v, k: torch.max(z, v),
    lambda z, v, k: F.prelu(v, k), lambda z, v, k: v * k, lambda z, v, k: k[0] * v.sum(1),
    lambda z, v, k: v.sum(1) + k[:B], lambda z, v, k: v.sum() * 0.3, lambda z, v, k: v.sum() * k,
    lambda z, v, k: v.sum(1, keepdim=True) * v, lambda z, v, k: v.sum(0) * v,
    lambda z, v, k: v.float() * k,
    lambda z, v, k: (v.sum().float() * z) * k, lambda z, v, k: torch.where(z > 0, v, k),
    lambda z, v, k: v.clamp(-0.5, 0.5), lambda z, v, k: torch.softmax(v, 0),
    lambda z, v, k: torch.frexp(v)[0], lambda z, v, k: v.clone().mul_(k)])
def test_calls_of_all_iterations(call):
    """What no state depends on runs on sequences, whose first axis is time, of as many steps as
    there are rows."""
    def step(x, w, k, v, z, _):
        v = 0.8 * v + x + z @ w
        z = spike(v - 0.3)
        return v, z, call(z, v, k)

    compare(over(step, 3), random(B, B, N), random(N, N), random(N), random(B, N, seed=1),
            zeros(B, N), zeros(B, N))
