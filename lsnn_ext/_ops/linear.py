"""A linear map of a whole sequence: in reused memory, and by events where its input is mostly zero,
as spikes are."""
from typing import Any

import torch
from torch import Tensor

FEW_OUTPUTS = 32  # up to which adding the weight rows of a readout beats torch's matrix product


class _Linear(torch.autograd.Function):
    """x (..., I), weight (N,I), bias (N) or None -> x weight^T + bias in reused memory; events:
    most of x is zero."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, events: bool) -> Tensor:
        rows, shape = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], weight.shape[0])
        if events:
            return torch.ops.lsnn.linear_events(rows, weight, bias).view(shape)
        out = torch.ops.lsnn.buffer(x, rows.shape[0], weight.shape[0])
        if bias is None:
            return torch.mm(rows, weight.t(), out=out).view(shape)
        return torch.addmm(bias, rows, weight.t(), out=out).view(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.events = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, x_rows = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        want_x, want_weight, want_bias, _ = ctx.needs_input_grad
        # the backward pass is recorded, for second derivatives: by torch's own products
        if torch.is_grad_enabled():
            g_x = (g @ weight).view(x.shape) if want_x else None
            return g_x, g.t() @ x_rows if want_weight else None, g.sum(
                0) if want_bias else None, None
        g_x = None
        if want_x and weight.shape[0] <= FEW_OUTPUTS:
            g_x = torch.ops.lsnn.linear_events(g, weight.t(), None).view(x.shape)
        elif want_x:
            g_x = torch.mm(g, weight, out=torch.ops.lsnn.buffer(g, *x_rows.shape)).view(x.shape)
        if ctx.events and (want_weight or want_bias):
            g_weight, g_bias = torch.ops.lsnn.linear_events_backward(g, x_rows)
            return g_x, g_weight if want_weight else None, g_bias if want_bias else None, None
        return g_x, torch.mm(g.t(),
                             x_rows) if want_weight else None, g.sum(0) if want_bias else None, None


def mostly_zero(x: Tensor) -> bool:
    """Whether adding rows for what is not zero beats a dense product, judged by a sample of the
    rows (..., I)."""
    with torch.no_grad():
        rows = x.reshape(-1, x.shape[-1])
        sample = rows[:: max(1, rows.shape[0] // 512)]
        return bool(torch.count_nonzero(sample) < 0.2 * sample.numel())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, projection: str) -> Tensor:
    """F.linear of a whole sequence (..., I); projection: torch, or in reused memory: events,
    product."""
    if projection == "torch":
        return torch.nn.functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, projection == "events")
