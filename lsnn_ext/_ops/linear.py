"""The linear maps of a whole sequence: products with weights, and the filter of a readout."""
import math
from typing import Any

import torch
from torch import Tensor

from .._core.autograd_rules import loop_over_batch
from .._core.bits import PackedSpikes
from .._core.decisions import report
from .._core.torch_internals import is_forward_mode, requires_gradient
from .autograd import apply_function, call_operator
from .load import MANY, has_cpu_kernels

# Measured on spikes at 3 %: with fewer outputs torch's product is as fast as adding the rows of
# nonzero inputs.
SCARCE_OUTPUTS = 8
# Up to which adding the weight rows of a readout is faster than torch's product for the gradient
# of x.
FEW_OUTPUTS = 16
_MANY_BACK = 1 << 20  # as MANY, of the gradient of x
# elements of inputs from which on spikes are packed; measured: no gain at 150,000 elements, 1/30 of
# a training step at 4 million
_MANY_SPIKES = 1 << 19
# Adding rows transposes the matrix and its gradient. Measured with 2**15 to 2**21 numbers: a dense
# product is as fast for rows**2 * _ROWS numbers, such as 64 rows and 256 x 256.
_ROWS = 16
SPARSE = 0.2  # share of nonzero inputs below which their rows are added
_SAMPLE = 1 << 12, 32  # elements and rows at least in which zeros are counted


def _buffer(like: Tensor, rows: int, columns: int, least: int) -> Tensor | None:
    """A matrix in reused CPU memory; None for a small one or on another device."""
    if rows * columns < least or not like.is_cpu:
        return None
    return torch.ops.lsnn.buffer(like, rows, columns)


class _Linear(torch.autograd.Function):
    """x (..., I), weight (N, I), bias (N,) or None -> x weight^T + bias in reused memory.

    events: whether x is mostly zero; bits: (T, B, ceil(I / 32)) if x is the carrier of spikes, or
    None.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, events: bool,
                bits: Tensor | None) -> Tensor:
        rows, shape = _flatten_rows(x), (*x.shape[:-1], weight.shape[0])
        if events:
            return call_operator(torch.ops.lsnn.linear_events, rows, weight, bias,
                                 _flatten_bits(bits)).view(shape)
        out = _buffer(x, rows.shape[0], weight.shape[0], MANY)
        if bias is None:
            return torch.mm(rows, weight.t(), out=out).view(shape)
        return torch.addmm(bias, rows, weight.t(), out=out).view(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.events, bits = inputs
        ctx.save_for_backward(x, weight, bits)
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return loop_over_batch(_Linear.apply)(info, in_dims, *args)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None, None
        x, weight, bits = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # a recorded backward pass, for second derivatives, uses torch's products
        if torch.is_grad_enabled():
            x = x if bits is None else PackedSpikes(bits, x).numbers()
            g, x_rows = _flatten_rows(g), _flatten_rows(x)
            g_x = (g @ weight).view(x.shape) if needs_x else None
            return g_x, g.t() @ x_rows if needs_weight else None, g.sum(
                0) if needs_bias else None, None, None
        # not on a GPU, where this would synchronize
        steps = x.shape[0] if has_cpu_kernels(x) and _is_constant_in_time(g) else 1
        each = g[:1] if steps > 1 else g
        g_x = _input_gradient(each, weight).expand(x.shape) if needs_x else None
        rows = _flatten_rows(each)
        g_weight = g_bias = None
        if needs_weight and ctx.events:
            g_weight, g_bias = call_operator(torch.ops.lsnn.linear_events_backward, rows,
                                             _flatten_rows(x), _flatten_bits(bits), needs_bias)
        elif needs_weight:
            x = x.sum(0) if steps > 1 else x
            g_weight = torch.mm(rows.t(), _flatten_rows(x))
        if needs_bias and not (needs_weight and ctx.events):
            g_bias = rows.sum(0) * steps
        return g_x, g_weight, g_bias if needs_bias else None, None, None


def _flatten_rows(x: Tensor) -> Tensor:
    """x (..., I) as (rows, I)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _flatten_bits(bits: Tensor | None) -> Tensor | None:
    """Bits (T, B, W) as (1, T B, W) for the operators."""
    return None if bits is None else _flatten_rows(bits).contiguous()[None]


def _is_constant_in_time(g: Tensor) -> bool:
    """Whether a gradient (T, ..., N) is the same at each step, like that of a mean over time."""
    if g.dim() < 3 or g.shape[0] < 2 or not g.numel():
        return False
    return g.stride(0) == 0 or torch.equal(g[0], g[1]) and torch.equal(g, g[:1].expand_as(g))


def _input_gradient(g: Tensor, weight: Tensor) -> Tensor:
    """g weight (..., I) of a gradient g (..., N)."""
    rows, shape = _flatten_rows(g), (*g.shape[:-1], weight.shape[1])
    is_large = rows.shape[0] * weight.shape[1] >= _MANY_BACK
    if g.is_cpu and is_large and weight.shape[0] <= FEW_OUTPUTS:
        return call_operator(torch.ops.lsnn.linear_events, rows, weight.t(), None).view(shape)
    out = _buffer(g, rows.shape[0], weight.shape[1], _MANY_BACK)
    return torch.mm(rows, weight, out=out).view(shape)


def sample_nonzero(x: Tensor) -> float:
    """The share of nonzero elements in a sample of the rows of x (..., I)."""
    with torch.no_grad():
        numbers, least = _SAMPLE
        step = max(1, min(x.numel() // numbers, x.numel() // max(1, x.shape[-1]) // least))
        if x.dim() == 3 and not x.is_contiguous():  # of which reshape makes a copy
            first = min(len(x), max(1, round(step**0.5)))
            sample = x[::first, :: max(1, step // first)]
        else:
            sample = x.reshape(-1, x.shape[-1])[::step]
        return int(torch.count_nonzero(sample)) / max(1, sample.numel())


def is_mostly_zero(x: Tensor) -> bool:
    """Whether adding rows of nonzero inputs is faster than a dense product, by a sample of x."""
    return x.numel() > 0 and sample_nonzero(x) < SPARSE


def has_few_rows(rows: int, numbers: int) -> bool:
    """Whether a dense product is faster than adding rows of nonzero inputs, however few."""
    return rows**2 * _ROWS < numbers


def pack_inputs(x: Tensor) -> Tensor | None:
    """Bits (T, B, ceil(I / 32)) of inputs (T, B, I), so both passes read 1/32 of the memory. None
    unless the inputs are large, 0 and 1, and require no gradient."""
    if (x.numel() < _MANY_SPIKES or x.stride(-1) != 1
            or requires_gradient(x) or is_forward_mode()):  # bits have no tangent
        return None
    bits: Tensor = torch.ops.lsnn.spike_bits(x)
    return bits if len(bits) else None


def linear(x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None,
           projection: str) -> Tensor:
    """F.linear of a whole sequence (..., I); projection: "torch", or in reused memory "events" or
    "product". For "torch" bits are unpacked."""
    if projection == "torch":
        numbers = x.numbers() if isinstance(x, PackedSpikes) else x
        return torch.nn.functional.linear(numbers, weight, bias)
    x, bits = (x.carrier, x.bits) if isinstance(x, PackedSpikes) else (x, None)
    return apply_function(_Linear, x, weight, bias, projection == "events", bits)


class Filter(torch.autograd.Function):
    """The filter of a readout, p_t = k p_{t-1} + (1 - k) x_t: x (T, B, O), p (B, O) or None, k ->
    all p (T, B, O) and the last one. The adjoint: gradients of these, that of the last one or None,
    and k -> those of x and p.

    The map is linear in x and p. So its backward pass is another linear map, its adjoint, whose
    backward pass is the first map again: the filter is differentiable to any order.
    """

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
    """The filter of a readout, under autograd if a gradient is required."""
    report("readout", x)
    is_recorded = torch.is_grad_enabled() and (requires_gradient(x)
                                          or (p is not None and requires_gradient(p)))
    # the raw operator would drop tangents
    if is_recorded or not torch.compiler.is_compiling() and is_forward_mode():
        return apply_function(Filter, x, p, k, False)
    with torch.no_grad():
        return call_operator(torch.ops.lsnn.leaky_readout, x, p, k)
