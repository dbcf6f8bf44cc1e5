"""Spikes with the surrogate gradients of the papers: 0 or 1 forward, a smooth slope backward.

Each function takes m, the distance of the membrane from its threshold.
"""
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["boxcar", "double_gaussian", "multi_gaussian", "ramp", "slayer", "super_spike",
           "triangle"]


def _normal(m: Tensor, mean: float, sigma: float) -> Tensor:
    """The density of a normal distribution."""
    return torch.exp(-((m - mean) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)


class _Above(torch.autograd.Function):
    """1 where m > 0; subclasses have the slope."""

    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return (m > 0).to(m.dtype)


class _AtLeast(torch.autograd.Function):
    """1 where m >= 0; subclasses have the slope."""

    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return (m >= 0).to(m.dtype)


class _DoubleGaussian(_Above):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return gradient * (0.5 * (1.15 * _normal(m, 0.0, 0.5) - 0.3 * _normal(m, 0.0, 3.0)))


class _MultiGaussian(_Above):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        sides = _normal(m, 0.5, 3.0) + _normal(m, -0.5, 3.0)
        return gradient * (0.5 * (1.15 * _normal(m, 0.0, 0.5) - 0.15 * sides))


class _Triangle(_AtLeast):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return gradient * torch.relu(1 - m.abs())


class _Boxcar(_Above):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return gradient * ((m > -0.5) & (m <= 0.5)).to(m.dtype)


class _Ramp(_AtLeast):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return gradient * (m >= -0.5).to(m.dtype)


class _Slayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, alpha: float, c: float) -> Tensor:
        ctx.save_for_backward(m)
        ctx.alpha, ctx.height = alpha, c * alpha / 2
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (m,) = ctx.saved_tensors
        return gradient * (ctx.height * torch.exp(-ctx.alpha * m.abs())), None, None


class _SuperSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(m)
        ctx.alpha = alpha
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (m,) = ctx.saved_tensors
        return gradient / (ctx.alpha * m.abs() + 1) ** 2, None


def double_gaussian(m: Tensor) -> Tensor:
    """1 where m > 0; slope 0.5 (1.15 N(m; 0, 0.5) - 0.3 N(m; 0, 3)), N by standard deviation.

    Source: Higuchi et al., ICML 2024, after Yin, Corradi and Bohte (2021).
    """
    return _DoubleGaussian.apply(m)  # type: ignore[no-any-return]


def multi_gaussian(m: Tensor) -> Tensor:
    """1 where m > 0; slope 0.5 (1.15 N(m; 0, 0.5) - 0.15 N(m; 0.5, 3) - 0.15 N(m; -0.5, 3)).

    Source: Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021).
    """
    return _MultiGaussian.apply(m)  # type: ignore[no-any-return]


def triangle(m: Tensor) -> Tensor:
    """1 where m >= 0; slope max(0, 1 - |m|).

    Source: Deng et al., Temporal efficient training, ICLR 2022.
    """
    return _Triangle.apply(m)  # type: ignore[no-any-return]


def boxcar(m: Tensor) -> Tensor:
    """1 where m > 0; slope 1 for -0.5 < m <= 0.5, else 0.

    Source: Kaiser, Mostafa and Neftci, Frontiers in Neuroscience 14, 424 (2020).
    """
    return _Boxcar.apply(m)  # type: ignore[no-any-return]


def ramp(m: Tensor) -> Tensor:
    """1 where m >= 0; slope 1 for m >= -0.5, else 0.

    Source: StepPWL of Rockpool, with at most one spike a step.
    """
    return _Ramp.apply(m)  # type: ignore[no-any-return]


def slayer(m: Tensor, alpha: float = 5.0, c: float = 0.4) -> Tensor:
    """1 where m > 0; slope c alpha / 2 exp(-alpha |m|).

    Source: Shrestha and Orchard, NeurIPS 2018; defaults of Baronig et al. (2025).
    """
    return _Slayer.apply(m, alpha, c)  # type: ignore[no-any-return]


def super_spike(m: Tensor, alpha: float = 100.0) -> Tensor:
    """1 where m > 0; slope 1 / (alpha |m| + 1)^2.

    Source: Zenke and Ganguli, Neural Computation 30, 1514 (2018); default of Norse.
    """
    return _SuperSpike.apply(m, alpha)  # type: ignore[no-any-return]
