"""The operator of the readout, p_t = k p_{t-1} + (1 - k) x_t, differentiable to any order.

The map is linear in x and p. So its backward pass is another linear map, its adjoint, whose
backward pass is the first map again.
"""

from typing import Any

import torch
from torch import Tensor

from .._core.decisions import report
from .._core.torch_internals import is_forward_mode, requires_gradient
from .autograd import apply_function, call_operator


class Filter(torch.autograd.Function):
    """x (T, B, O), p (B, O) or None, k -> all p (T, B, O) and the last one. The adjoint: gradients
    of these, that of the last one or None, and k -> those of x and p."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, p: Tensor | None, k: float, is_adjoint: bool) -> tuple[Tensor, Tensor]:
        lsnn = torch.ops.lsnn
        return call_operator(lsnn.leaky_readout_backward if is_adjoint else lsnn.leaky_readout,
                             x, p, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, p, ctx.k, ctx.is_adjoint = inputs
        ctx.from_zero, ctx.steps = p is None, x.shape[0]
        ctx.set_materialize_grads(False)  # most losses do not read the last state

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_last: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            if g_last is None:
                return None, None, None, None
            g = g_last.new_zeros(ctx.steps, *g_last.shape)
        g_x, g_p = apply_function(Filter, g, g_last, ctx.k, not ctx.is_adjoint)
        return g_x, None if ctx.from_zero else g_p, None, None


def leaky_readout(x: Tensor, p: Tensor | None, k: float) -> tuple[Tensor, Tensor]:
    """The operator, under autograd if a gradient is required."""
    report("readout", x)
    is_recorded = torch.is_grad_enabled() and (requires_gradient(x)
                                          or (p is not None and requires_gradient(p)))
    # the raw operator would drop tangents
    if is_recorded or not torch.compiler.is_compiling() and is_forward_mode():
        return apply_function(Filter, x, p, k, False)
    with torch.no_grad():
        return call_operator(torch.ops.lsnn.leaky_readout, x, p, k)

