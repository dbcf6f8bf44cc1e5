"""Recurrent components as fused runs: equal to the loops of their calls, with all gradients."""
import torch
from small_loops import compare
from torch import Tensor

from lsnn_ext.loops.run import Plan

T, B, N, I = 7, 5, 6, 4


class Triangle(torch.autograd.Function):
    """A spike with a surrogate gradient."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (v,) = ctx.saved_tensors
        return gradient * 0.3 * torch.relu(1 - v.abs())


spike = Triangle.apply


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def currents(plan: Plan) -> int:
    """Of the first component in a kernel."""
    run = next(stage.run for stage in plan.stages if stage.kind == "fused")
    return len(run.__self__.found.currents)


def test_lif():
    def model(x, w, beta, v, z):
        spikes = []
        for x_t in x.unbind(0):
            v = beta * v + x_t + torch.nn.functional.linear(z, w) - z.detach()
            z = spike(v - 1.0)
            spikes.append(z)
        return spikes

    plan = compare(model, random(T, B, N), random(N, N), torch.rand(N).double(),
                            random(B, N, seed=1), (random(B, N) > 0).double())
    assert currents(plan) == 1


def test_alif():
    def model(x, w, alpha, rho, theta, v, a, z):
        spikes, membranes = [], []
        for x_t in x.unbind(0):
            a = rho * a + (1 - rho) * z
            limit = theta + 1.8 * a
            v = alpha * v + (1 - alpha) * (x_t + z @ w) - z * limit
            z = spike((v - limit) / limit)
            spikes.append(z)
            membranes.append(v)
        return spikes, membranes

    compare(model, random(T, B, N, scale=9), random(N, N), torch.rand(N).double(),
                    torch.tensor(0.9).double(), torch.rand(N).double() + 0.5,
                    random(B, N, seed=1), random(B, N, seed=2).abs(),
                    (random(B, N) > 0).double())


def test_detached_reset_and_bias():
    """As RLeaky: the reset is made at the beginning of the body, from the membrane before."""
    def model(x, w, bias, beta, v, z):
        spikes, membranes = [], []
        for x_t in x.unbind(0):
            reset = spike(v - 1.0).clone().detach()
            v = beta.clamp(0, 1) * v + x_t + torch.nn.functional.linear(z, w, bias) - reset * 1.0
            z = spike(v - 1.0)
            spikes.append(z)
            membranes.append(v)
        return spikes, membranes

    compare(model, random(T, B, N), random(N, N), random(N), torch.tensor(0.8).double(),
                    random(B, N, seed=1), torch.zeros(B, N).double())


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

    plan = compare(model, random(T, B, N), random(N, N), random(B, N, seed=1),
                            random(B, N, seed=2))
    assert currents(plan) == 1
