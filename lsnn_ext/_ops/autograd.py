"""The recurrence under autograd: one operator forward, one backward.

torch.ops.lsnn.alif_forward and alif_backward have no gradient; ``run_recurrence`` connects them.
The operators refuse tensors that require grad, whose gradient would be silently lost. alif_forward
accepts them where it saves what the backward pass needs, since torch.export leaves the raw operator
in its programs.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import torch_internals as internals
from .._core.autograd_rules import forbid_second_derivative, loop_over_batch
from .._core.bits import make_carrier
from .._core.coefficients import Row, Rows, can_kernels_stack, split_gradient, stack_rows
from .._core.decisions import report
from .._core.lengths import Lengths
from .._core.state import count_past_steps
from ..models import COEFFICIENTS
from .load import _C, Constants, count_packed, has_bit, has_cpu_kernels, make_mask


class Tensors(NamedTuple):
    """The tensors of a call without its coefficients, which are Rows. All but x may be None."""

    # (T, B, N) the current, or (T, B, I) the inputs of w_in; a carrier where x_bits are set
    x: Any
    v: Any  # (B, N) the state before the first step, v to z; all five None: zeros
    a: Any
    i: Any
    r: Any
    z: Any  # (D, B, N)
    w_rec: Any  # (N, N), or (S, N, N) for each of S delays
    delay: Any = None  # (N, N) of each synapse
    w_in: Any = None  # (N, I)
    bias: Any = None  # (N,)
    x_bits: Any = None  # (T, B, ceil(I / 32))
    w_out: Any = None  # (O, N) of the readout
    p: Any = None  # (B, O) its state; None: zeros
    b_out: Any = None  # (O,) added to the readout, on a GPU
    lengths: Any = None  # (B,) steps of each sequence, descending, on the CPU; None: all T
    delay_kernel: Any = None  # (S, N) of axonal delays
    recurrent_mask: Any = None  # (B, N) bool

    @property
    def neurons(self) -> int:
        if self.w_rec is not None:
            return int(self.w_rec.shape[-1])
        return self.x.shape[2] if self.w_in is None else self.w_in.shape[0]  # type: ignore[no-any-return]


class Outputs(NamedTuple):
    """The results of a call; shape (0,) where not requested."""

    spikes: Tensor  # (T, B, N), or their carrier where bits are requested
    v: Tensor  # (B, N) the state after the last step
    a: Tensor
    i: Tensor
    r: Tensor
    z: Tensor  # (D, B, N)
    trace_v: Tensor  # (T, B, N)
    trace_a: Tensor
    threshold: Tensor
    p: Tensor  # (T, B, O)
    p_last: Tensor  # (B, O)
    # Saved for the backward pass, see docs/equations.md.
    y: Tensor
    bits: Tensor
    smooth_z: Tensor
    carry: Tensor
    coefficients: Tensor  # (11, N)
    packed: Tensor | None = None  # weights and coefficients, as the CUDA kernels read them


class Settings(NamedTuple):
    """The arguments of a call that are not tensors."""

    delays: tuple[int, ...]  # distinct, ascending
    constants: Any  # Constants
    numbers: Any  # Numbers
    options: tuple[int, ...] = ()  # Options, or none


def is_transformed() -> bool:
    """Whether a transform of torch.func or a compiler is active, which always record the backward
    pass."""
    return torch.compiler.is_compiling() or internals.is_transforming()


@functools.cache
def _drop_setup_context(kind: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Returns the same function without setup_context, which only transforms and compilers need."""
    def forward(ctx: Any, *args: Any) -> Any:
        output = kind.forward(*args)
        kind.setup_context(ctx, args, output)
        return output

    return type(kind.__name__, (torch.autograd.Function,), {
        "__doc__": kind.__doc__, "__module__": kind.__module__,
        "forward": staticmethod(forward), "backward": staticmethod(kind.backward)})


def apply_function(kind: type[torch.autograd.Function], *args: Any) -> Any:
    """kind.apply, where possible without setup_context, for which torch binds the signature of
    forward at each call: a noticeable overhead for a small layer."""
    return (kind if is_transformed() else _drop_setup_context(kind)).apply(*args)


def call_operator(op: Callable[..., Any], *args: Any) -> Any:
    """Calls an operator whose call is not recorded. It skips our autograd kernel in Python
    (__init__.py), whose overhead matters in short calls."""
    if is_transformed():
        return op(*args)
    with internals.below_autograd():
        return op(*args)


def call_interruptible(op: Callable[..., Any], *args: Any) -> Any:
    """The same; an exception of a signal handler, such as KeyboardInterrupt, replaces its error."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return call_operator(op, *args)
    except RuntimeError:
        raised = _C.take_signal_exception()
        if raised is None:
            raise
        raise raised from None


def list_recurrence(t: Any) -> list[Any]:
    """The recurrent tensors of a call; programs exported without the last two keep their graph."""
    found = [t.w_rec, t.delay, t.delay_kernel, t.recurrent_mask]
    return found[:2] if t.delay_kernel is None and t.recurrent_mask is None else found


def _lists(t: Tensors, coefficients: Tensor | None, settings: Settings) -> tuple[Any, ...]:
    """The arguments that both operators share, from the state on."""
    state = [] if t.v is None else [t.v, t.a, t.i, t.r, t.z]
    # the bits of a slice of a batch are not contiguous
    projection = [t.w_in, t.bias, None if t.x_bits is None else t.x_bits.contiguous()]
    readout = [t.w_out, t.p] if t.b_out is None else [t.w_out, t.p, t.b_out]
    return state, coefficients, list_recurrence(t), list(settings.delays), projection, readout


def _forward(t: Tensors, rows: Rows, settings: Settings) -> Outputs:
    """Calls alif_forward. For spikes as bits a carrier of their gradient replaces the numbers."""
    N = t.neurons
    lists = list(settings.constants), list(settings.numbers), list(settings.options)
    coefficients: Tensor | None = None
    made: list[Tensor] = []  # the coefficients, unless the kernels make and return them
    if not has_cpu_kernels(t.x) and can_kernels_stack(rows, t.x.dtype, t.x.device):
        sources: tuple[Any, ...] = (list(rows.tensors),
                                    [number for row in rows.each for number in row])
    else:
        coefficients, sources = stack_rows(rows, N, t.x.dtype, t.x.device), ()
        made = [coefficients]
    args = t.x, *_lists(t, coefficients, settings), *lists, t.lengths, *sources
    spikes, state, traces, readout, saved = call_interruptible(torch.ops.lsnn.alif_forward, *args)
    if has_bit("outputs", settings.constants.outputs, "bits"):
        spikes = make_carrier(state[0], *t.x.shape[:2], N)
    return Outputs(spikes, *state, *traces, *readout, *saved[:4], *made, *saved[4:])


def make_link(x: Tensor) -> Tensor | None:
    """An empty tensor in the graph of x, by which a second derivative is noticed where x is not
    saved."""
    if torch.compiler.is_compiling() or not internals.requires_gradient(x):
        return None
    return x[:0].clone()


def refuse_batch_of_gradients(g: Sequence[Tensor | None]) -> None:
    """Raises RuntimeError for a batch of gradients, of is_grads_batched=True."""
    if not torch.compiler.is_compiling() and any(
            one is not None and internals.is_legacy_batched(one) for one in g):
        raise RuntimeError("lsnn_ext: expected the gradient of one result, got a batch of "
                           "gradients (is_grads_batched=True); call the backward pass for each, or "
                           "torch.func.vmap over torch.func.vjp")


class _Alif(torch.autograd.Function):
    """Settings and the rows as tuples, the stacks of the rows, a link, Tensors and the tensors of
    the rows -> Outputs, differentiable."""

    @staticmethod
    def forward(delays: tuple[int, ...], constants: tuple[int, ...], numbers: tuple[float, ...],
                options: tuple[int, ...], each: tuple[Row, ...], stacks: Any, link: Tensor | None,
                *tensors: Tensor | None) -> tuple[Tensor, ...]:
        settings = Settings(delays, Constants(*constants), numbers, options)
        out = _forward(*_split(each, tensors, stacks), settings)
        return tuple(one for one in out if one is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        delays, constants, numbers, options, each, _, link, *tensors = inputs
        (t, rows), out = _split(each, tensors), Outputs(*output)
        ctx.settings = Settings(delays, Constants(*constants), numbers, options)
        ctx.each = each
        ctx.forms = [(one.shape, one.dtype, one.device) for one in rows.tensors]
        saved = out.y, out.bits, out.smooth_z, out.carry, out.coefficients, out.packed
        ctx.mark_non_differentiable(out.r, *(one for one in saved if one is not None))
        ctx.set_materialize_grads(False)
        if t.w_in is None and not ctx.settings.constants.checkpoint:
            t = t._replace(x=None)  # the backward pass does not read it
        # Only second derivatives need them, so they may be changed in place and are not saved.
        # Transforms see only what is saved.
        ctx.learned = () if is_transformed() else tuple(
            one for one in rows.tensors if one.requires_grad)
        depend = rows.tensors if internals.is_transforming() else ()
        ctx.save_for_backward(link, *t, *saved, *depend)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """One differentiable call for each element: different weights need different products."""
        return loop_over_batch(_Alif.apply)(info, in_dims, *args)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_batch_of_gradients(g)
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint computes them at each read
        with torch.no_grad():
            found = _Alif.gradients(ctx, saved, Outputs(*g))  # type: ignore[arg-type]
        gradients = forbid_second_derivative(found, (*g, *saved, *ctx.learned))
        return *(None for _ in Settings._fields), None, None, None, *gradients

    @staticmethod
    def gradients(ctx: Any, saved: tuple[Any, ...], g: Outputs) -> tuple[Tensor | None, ...]:
        n = 1 + len(Tensors._fields)
        t, (*kept, coefficients, packed) = Tensors(*saved[1:n]), saved[n : n + 6]
        settings, of_inputs = ctx.settings, ctx.needs_input_grad[len(Settings._fields) + 3 :]
        needed, of_rows = Tensors(*of_inputs[: n - 1]), of_inputs[n - 1 :]
        outputs = settings.constants.outputs
        # A compiled graph passes zeros of shape (0,) for what was not requested.
        has_spikes = has_bit("outputs", outputs, "spikes") or has_bit("outputs", outputs, "bits")
        has_traces = has_bit("outputs", outputs, "traces")
        required = make_mask("gradients", (name for name in _C.gradients if getattr(needed, name)))
        g_traces = [g.trace_v, g.trace_a, g.threshold] if has_traces else []
        g_state = [g.v, g.a, g.i, g.z]
        g_readout = [] if t.w_out is None else [g.p, g.p_last]
        x, (w_rec, kernel), stack, (v, a, i, z), (w_in, bias), (
            w_out, p, b_out) = call_interruptible(
            torch.ops.lsnn.alif_backward, g.spikes if has_spikes else None,
            g_traces, g_state, g_readout, t.x, *_lists(t, coefficients, settings),
            kept if packed is None else [*kept, packed],
            list(settings.constants._replace(gradients=required)), list(settings.numbers),
            list(settings.options), t.lengths)
        report("gradients", kept[1])
        if settings.constants.existing and needed.w_rec and not has_cpu_kernels(coefficients):
            w_rec = w_rec.masked_fill_(t.w_rec == 0, 0.0)
        found = Tensors(x, v, a, i, None, z, w_rec, None, w_in, bias, None, w_out, p, b_out,
                        None, kernel)
        learned: Sequence[Tensor | None] = [None] * len(of_rows)
        if settings.constants.coefficient_gradients:
            learned = split_gradient(stack, ctx.each, ctx.forms, of_rows)
        gradients = (value if need else None for value, need in zip(found, needed, strict=True))
        return *gradients, *learned


def _split(each: tuple[Row, ...], tensors: Sequence[Any],
           stacks: Any = None) -> tuple[Tensors, Rows]:
    n = len(Tensors._fields)
    return Tensors(*tensors[:n]), Rows(each, tuple(tensors[n:]), stacks)


def count_bf16_parts() -> int:
    """The number of bfloat16 parts of a factor of a product that
    torch.set_float32_matmul_precision allows; 0: factors are not rounded."""
    if torch.compiler.is_compiling():
        return 0
    return {"medium": 1, "high": 2}.get(torch.get_float32_matmul_precision(), 0)


def _saves_packed(t: Tensors, settings: Settings) -> bool:
    """Whether the packed weights are saved for the backward pass, which otherwise packs them again:
    on a GPU, where they are at most a sixteenth of the saved membranes."""
    if has_cpu_kernels(t.x) or is_transformed():
        return False
    T, B, _ = t.x.shape
    return 16 * count_packed(len(settings.delays), t.neurons) <= T * B * t.neurons


def _record(t: Tensors, rows: Rows, settings: Settings) -> Outputs:
    delays, constants, numbers = (tuple(part) for part in settings[:3])
    link = make_link(t.x) if t.w_in is None else None
    return Outputs(*apply_function(_Alif, delays, constants, numbers, *settings[3:], rows.each,
                            None if is_transformed() else rows.stacks, link, *t, *rows.tensors))


def _run_in_order(t: Tensors, rows: Rows, settings: Settings) -> Outputs:
    """The operator, under autograd if a gradient is required; settings have the requested outputs.
    Outputs.bits are also returned where only `saved` is requested."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        internals.leave_graph_of_transforms()
    forward_mode = not torch.compiler.is_compiling() and internals.is_forward_mode()
    if t.v is None and torch.compiler.is_exporting():
        # AOTInductor turns an empty list into None.
        shape = t.x.shape[1], t.neurons
        t = t._replace(z=t.x.new_zeros(count_past_steps(settings.delays), *shape),
                       **{name: t.x.new_zeros(shape) for name in ("v", "a", "i", "r")})
    constants = settings.constants
    if forward_mode or torch.is_grad_enabled() and (constants.coefficient_gradients or any(
            value is not None and internals.requires_gradient(value) for value in t)):
        saved = ["saved", "packed"] if _saves_packed(t, settings) else ["saved"]
        constants = constants._replace(outputs=constants.outputs | make_mask("outputs", saved))
        settings = settings._replace(constants=constants)
        out = _record(t, rows, settings)
    else:
        rounding = make_mask("outputs", ["saved_bf16"])
        constants = constants._replace(checkpoint=0, outputs=constants.outputs & ~rounding)
        settings = settings._replace(constants=constants)
        with torch.no_grad():
            out = _forward(t, rows, settings)
    report("recurrence", t, rows, settings, out)
    return out


def call_differentiable(args: Any) -> tuple[Any, ...] | None:
    """alif_forward with gradients, as exported programs call it; None for neurons that are no
    models, and unless `saved` is requested and neither `bits` nor `packed`."""
    named = Constants(*args.constants)
    if args.neuron or not has_bit("outputs", named.outputs, "saved") or any(
            has_bit("outputs", named.outputs, name) for name in ("bits", "packed")):
        return None
    every = (1 << len(COEFFICIENTS)) - 1 if args.coefficients.requires_grad else 0
    named = named._replace(coefficient_gradients=every, bf16_parts=count_bf16_parts())
    w_rec, delay, kernel, mask = (*args.recurrence, *[None] * 4)[:4]
    w_in, bias, x_bits = (*args.projection, None, None, None)[:3]
    w_out, p, b_out = (*args.readout, None, None, None)[:3]
    v, a, i, r, z = args.state or [None] * 5
    t = Tensors(args.x, v, a, i, r, z, w_rec, delay, w_in, bias, x_bits, w_out, p, b_out,
                args.lengths, kernel, mask)
    rows = Rows(tuple((0.0, 1, k, 0.0) for k in range(len(COEFFICIENTS))),
                args.coefficients.unbind())
    out = _record(t, rows, Settings(args.delays, named, args.numbers, tuple(args.options)))
    state = [out.v, out.a, out.i, out.r, out.z]
    traces = [out.trace_v, out.trace_a, out.threshold]
    saved = [out.y, out.bits, out.smooth_z, out.carry]
    return out.spikes, state, traces, [out.p, out.p_last], saved


# The axis of the batch in the arguments and results of the operator.
_BATCH_IN = {"x": 1, "v": 0, "a": 0, "i": 0, "r": 0, "z": 1, "x_bits": 1, "p": 0,
             "recurrent_mask": 0}
_BATCH_OUT = {"spikes": 1, "v": 0, "a": 0, "i": 0, "r": 0, "z": 1, "trace_v": 1, "trace_a": 1,
              "threshold": 1, "p": 1, "p_last": 0}


def run_recurrence(t: Tensors, rows: Rows, settings: Settings, lengths: Lengths | None) -> Outputs:
    """The operator; sequences and results are in the order of the caller."""
    if lengths is None:
        return _run_in_order(t, rows, settings)
    t = t._replace(lengths=lengths.descending)
    if lengths.order is None:
        return _run_in_order(t, rows, settings)
    out = _run_in_order(t._replace(**{
        name: lengths.sort(getattr(t, name), axis) for name, axis in _BATCH_IN.items()}),
        rows, settings)
    return out._replace(**{
        name: lengths.restore(getattr(out, name), axis) for name, axis in _BATCH_OUT.items()
        if getattr(out, name).dim() > 1})  # what was not requested has shape (0,)
