"""A surrogate whose parts are functions of TorchScript, with a constant that is a tensor."""
import math
from typing import Any

import torch
from torch import Tensor, nn

from lsnn_ext.loops import convert


@torch.jit.script
def heaviside(x: Tensor) -> Tensor:
    return x.gt(0.0).to(x.dtype)


@torch.jit.script
def bell(x: Tensor, width: float = 1.0) -> Tensor:
    return torch.exp(-(x**2) / (2.0 * width**2)) / (width * torch.sqrt(2 * torch.tensor(math.pi)))


class ScriptedSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return heaviside(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (1.15 * bell(x, 0.5) - 0.3 * bell(x, 3.0))


class Resonator(nn.Module):
    """Two states that rotate, a threshold that rises with each spike."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6 + 8, 8)
        self.linear.weight.data.mul_(30.0)
        self.omega = nn.Parameter(torch.empty(8).uniform_(5.0, 10.0))

    def forward(self, x: Tensor) -> Tensor:
        u = v = z = q = x.new_zeros(x.shape[1], 8)
        spikes = []
        for x_t in x:
            current = self.linear(torch.cat((x_t, z), 1))
            b = (torch.sqrt(1 - (0.01 * self.omega) ** 2) - 1) / 0.01 - q
            u, v = (u + 0.01 * (b * u - self.omega * v + current),
                    v + 0.01 * (self.omega * u + b * v))
            z = ScriptedSpike.apply(u - 0.1 - q)
            q = 0.9 * q + z
            spikes.append(z)
        return torch.stack(spikes)


def test_scripted_surrogate_is_fused() -> None:
    torch.manual_seed(0)
    original = Resonator().double()
    x = (torch.rand(30, 3, 6) < 0.4).double().requires_grad_()
    want = original(x)
    model, report = convert(original, x)
    assert report.converted and report.fused and not report.loops[0].kept, str(report)
    assert 0.02 < float(want.detach().mean()) < 0.9
    torch.manual_seed(1)
    weight = torch.rand_like(want)
    wanted = torch.autograd.grad((want * weight).sum(), [*model.parameters(), x])
    got = model(x)
    gradients = torch.autograd.grad((got * weight).sum(), [*model.parameters(), x])
    assert torch.equal(got, want)
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-9 * float(other.abs().max()))
