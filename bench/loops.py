"""Published recurrent neurons as plain loops over time, from their equations.

What does not change from step to step is computed once, which the published programs do not all do.
Both have no refractory period, no delay and, but for the first adaptation of the SRNN, a state of
zeros.
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Spike(torch.autograd.Function):
    """1 where u > 0, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.derivative = derivative
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return gradient * ctx.derivative(u), None


_spike: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] = _Spike.apply


def _normal(u: Tensor, mean: float, sigma: float) -> Tensor:
    return torch.exp(-((u - mean) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)


def _multi_gaussian(u: Tensor) -> Tensor:
    """Half of 1.15 N(u; 0, 0.5) - 0.15 N(u; 0.5, 3) - 0.15 N(u; -0.5, 3)."""
    return 0.5 * (1.15 * _normal(u, 0.0, 0.5) - 0.15 * _normal(u, 0.5, 3.0)
                  - 0.15 * _normal(u, -0.5, 3.0))


def _boxcar(u: Tensor) -> Tensor:
    """1 for -0.5 < u <= 0.5, else 0."""
    return (u > -0.5) & (u <= 0.5)


def srnn(current: Tensor, w_rec: Tensor, tau_m: Tensor, tau_adp: Tensor,
         theta: float = 0.01, strength: float = 1.8) -> Tensor:
    """Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021): spikes (T, B, N).

    current: (T, B, N); w_rec: (N, N), (to, from).
    """
    alpha, rho = torch.exp(-1 / tau_m), torch.exp(-1 / tau_adp)
    mem = z = torch.zeros_like(current[0])
    b = torch.full_like(mem, theta)
    spikes = []
    for c in current.unbind():
        b = rho * b + (1 - rho) * z
        B = theta + strength * b
        mem = alpha * mem + (1 - alpha) * (c + z @ w_rec.T) - B * z
        z = _spike(mem - B, _multi_gaussian)
        spikes.append(z)
    return torch.stack(spikes)


def radlif(current: Tensor, V: Tensor, alpha: Tensor, beta: Tensor, a: Tensor, b: Tensor,
           theta: float = 1.0) -> Tensor:
    """Bittar and Garner, Frontiers in Neuroscience 16, 865897 (2022): spikes (T, B, N).

    current: (T, B, N); V: (N, N), (from, to). They write alpha (u - s) and so round otherwise than
    here, where a spike's alpha is subtracted at the end; the numbers are the same else.
    """
    u = w = s = torch.zeros_like(current[0])
    spikes = []
    for c in current.unbind():
        w = beta * w + b * s + a * u
        u = alpha * u + (1 - alpha) * (c + s @ V - w) - alpha * s
        s = _spike(u - theta, _boxcar)
        spikes.append(s)
    return torch.stack(spikes)
