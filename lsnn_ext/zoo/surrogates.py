"""Spikes with the surrogate gradients of the papers: 0 or 1 forward, a smooth slope backward.

Each function takes m, the distance of the membrane from its threshold.
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["boxcar", "double_gaussian", "multi_gaussian", "ramp", "slayer", "super_spike",
           "triangle"]


def _normal(m: Tensor, mean: float, sigma: float) -> Tensor:
    """The density of a normal distribution."""
    return torch.exp(-((m - mean) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)


def _make_spike(slope: Callable[..., Tensor], also_at_0: bool = False) -> Callable[..., Tensor]:
    """A function of m and constants, 1 where m > 0, with also_at_0 where m >= 0; its gradient is
    slope(gradient, m, *constants)."""
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, m: Tensor, *constants: float) -> Tensor:
            ctx.save_for_backward(m)
            ctx.constants = constants
            return (m >= 0 if also_at_0 else m > 0).to(m.dtype)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            (m,) = ctx.saved_tensors
            return slope(gradient, m, *ctx.constants), *[None] * len(ctx.constants)

    return Spike.apply


_double_gaussian = _make_spike(lambda gradient, m: gradient * (
    0.5 * (1.15 * _normal(m, 0.0, 0.5) - 0.3 * _normal(m, 0.0, 3.0))))
_multi_gaussian = _make_spike(lambda gradient, m: gradient * (
    0.5 * (1.15 * _normal(m, 0.0, 0.5) - 0.15 * (_normal(m, 0.5, 3.0) + _normal(m, -0.5, 3.0)))))
_triangle = _make_spike(lambda gradient, m: gradient * torch.relu(1 - m.abs()), also_at_0=True)
_boxcar = _make_spike(lambda gradient, m: gradient * ((m > -0.5) & (m <= 0.5)).to(m.dtype))
_ramp = _make_spike(lambda gradient, m: gradient * (m >= -0.5).to(m.dtype), also_at_0=True)
_slayer = _make_spike(lambda gradient, m, alpha, c: gradient * (
    c * alpha / 2 * torch.exp(-alpha * m.abs())))
_super_spike = _make_spike(lambda gradient, m, alpha: gradient / (alpha * m.abs() + 1) ** 2)


def double_gaussian(m: Tensor) -> Tensor:
    """1 where m > 0; slope 0.5 (1.15 N(m; 0, 0.5) - 0.3 N(m; 0, 3)), N by standard deviation.

    Source: Higuchi et al., ICML 2024, after Yin, Corradi and Bohte (2021).
    """
    return _double_gaussian(m)


def multi_gaussian(m: Tensor) -> Tensor:
    """1 where m > 0; slope 0.5 (1.15 N(m; 0, 0.5) - 0.15 N(m; 0.5, 3) - 0.15 N(m; -0.5, 3)).

    Source: Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021).
    """
    return _multi_gaussian(m)


def triangle(m: Tensor) -> Tensor:
    """1 where m >= 0; slope max(0, 1 - |m|).

    Source: Deng et al., Temporal efficient training, ICLR 2022.
    """
    return _triangle(m)


def boxcar(m: Tensor) -> Tensor:
    """1 where m > 0; slope 1 for -0.5 < m <= 0.5, else 0.

    Source: Kaiser, Mostafa and Neftci, Frontiers in Neuroscience 14, 424 (2020).
    """
    return _boxcar(m)


def ramp(m: Tensor) -> Tensor:
    """1 where m >= 0; slope 1 for m >= -0.5, else 0.

    Source: StepPWL of Rockpool, with at most one spike a step.
    """
    return _ramp(m)


def slayer(m: Tensor, alpha: float = 5.0, c: float = 0.4) -> Tensor:
    """1 where m > 0; slope c alpha / 2 exp(-alpha |m|).

    Source: Shrestha and Orchard, NeurIPS 2018; defaults of Baronig et al. (2025).
    """
    return _slayer(m, alpha, c)


def super_spike(m: Tensor, alpha: float = 100.0) -> Tensor:
    """1 where m > 0; slope 1 / (alpha |m| + 1)^2.

    Source: Zenke and Ganguli, Neural Computation 30, 1514 (2018); default of Norse.
    """
    return _super_spike(m, alpha)
