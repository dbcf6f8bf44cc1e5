"""Surrogates as authors write them."""
import math
from typing import Any

import torch
from torch import Tensor


class Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return g * 0.3 * torch.clamp(1 - x.abs(), min=0)


class SpyTorch(torch.autograd.Function):
    """The surrogate of SpyTorch's tutorials, with its masked write."""

    scale = 100.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return g.clone() / (SpyTorch.scale * torch.abs(x) + 1.0) ** 2


class SetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        g = g.clone()
        g[x.abs() > 0.5] = 0
        return g


class ArcTan(torch.autograd.Function):
    """With a number as an argument, which it saves as a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x, torch.tensor([alpha], device=x.device))
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, saved = ctx.saved_tensors
        alpha = saved[0].item()
        return g * alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2), None


class MultiGaussian(torch.autograd.Function):
    """With a function of its own, and a constant that is a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors

        def bell(mean: float, width: float) -> Tensor:
            scale = width * torch.sqrt(2 * torch.tensor(math.pi))
            return torch.exp(-((x - mean) ** 2) / (2 * width**2)) / scale

        return g * 0.5 * (1.15 * bell(0.0, 0.5) - 0.15 * bell(0.5, 3.0) - 0.15 * bell(-0.5, 3.0))


def apply_soft(x: Tensor) -> Tensor:
    """A straight-through estimator."""
    soft = torch.sigmoid(4 * x)
    return ((x > 0).to(x) - soft).detach() + soft
