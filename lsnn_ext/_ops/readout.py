"""The operator of the readout, p_t = k p_{t-1} + (1 - k) x_t, differentiable to any order.

The map is linear in x and p. So its backward pass is another linear map, whose backward pass is the
first map again: each of the two functions calls the other.
"""

from typing import Any

import torch
from torch import Tensor

from .._core.decisions import report
from .._core.torch_internals import is_forward_mode, requires_gradient
from .autograd import apply_function, call_operator


class LeakyReadout(torch.autograd.Function):
    """x (T, B, O), p (B, O) or None, k -> all p (T, B, O) and the last one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, p: Tensor | None, k: float) -> tuple[Tensor, Tensor]:
        return call_operator(torch.ops.lsnn.leaky_readout, x, p, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, p, ctx.k = inputs
        ctx.from_zero, ctx.steps = p is None, x.shape[0]
        ctx.set_materialize_grads(False)  # most losses do not read the last state

    @staticmethod
    def backward(ctx: Any, g_p: Tensor | None, g_last: Tensor | None) -> tuple[Tensor | None, ...]:
        if g_p is None:
            if g_last is None:
                return None, None, None
            g_p = g_last.new_zeros(ctx.steps, *g_last.shape)
        g_x, g_first = apply_function(LeakyReadoutBackward, g_p, g_last, ctx.k)
        return g_x, None if ctx.from_zero else g_first, None


class LeakyReadoutBackward(torch.autograd.Function):
    """The gradients of both results, the second may be None, and k -> those of x (T, B, O) and p
    (B, O)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g_p: Tensor, g_last: Tensor | None, k: float) -> tuple[Tensor, Tensor]:
        return call_operator(torch.ops.lsnn.leaky_readout_backward, g_p, g_last, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, g_last, ctx.k = inputs
        ctx.from_zero = g_last is None

    @staticmethod
    def backward(ctx: Any, h_x: Tensor, h_p: Tensor) -> tuple[Tensor | None, ...]:
        of_p, of_last = apply_function(LeakyReadout, h_x, h_p, ctx.k)
        return of_p, None if ctx.from_zero else of_last, None


def leaky_readout(x: Tensor, p: Tensor | None, k: float) -> tuple[Tensor, Tensor]:
    """The operator, under autograd if a gradient is required."""
    report("readout", x)
    is_recorded = torch.is_grad_enabled() and (requires_gradient(x)
                                          or (p is not None and requires_gradient(p)))
    # the raw operator would drop tangents
    if is_recorded or not torch.compiler.is_compiling() and is_forward_mode():
        return apply_function(LeakyReadout, x, p, k)
    with torch.no_grad():
        return call_operator(torch.ops.lsnn.leaky_readout, x, p, k)

