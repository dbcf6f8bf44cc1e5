"""The recurrence under autograd: one operator forward, one backward.

torch.ops.lsnn.alif_forward and alif_backward have no gradient; ``run_recurrence`` connects them.
The operators refuse tensors that require grad, whose gradient would be silently lost. alif_forward
accepts them where it saves what the backward pass needs, since torch.export leaves the raw operator
in its programs.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._core import torch_internals as internals
from .._core.autograd_rules import forbid_second_derivative, loop_over_batch
from .._core.bits import make_carrier
from .._core.coefficients import Rows, can_kernels_stack, split_gradient, stack_rows
from .._core.decisions import report
from .._core.lengths import Lengths
from .._core.state import count_past_steps
from ..models import COEFFICIENTS
from . import load
from .arguments import FIELDS, IN_FRONT, Inputs, Outputs, Settings, Tensors, find_sizes


def is_transformed() -> bool:
    """Whether a compiler or a transform is active, which always record the backward pass."""
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
        raised = load._C.take_signal_exception()
        if raised is None:
            raise
        raise raised from None


def _lists(settings: Settings, t: Tensors, states: Sequence[Tensor],
           coefficients: Tensor | None) -> tuple[Any, ...]:
    """The arguments that both operators share, from the state on."""
    state = [] if t.z is None else [*states, t.z]
    recurrence = [t.w_rec, t.delay, t.delay_kernel, t.recurrent_mask]
    if t.delay_kernel is None and t.recurrent_mask is None:  # exported programs keep their graph
        recurrence = recurrence[:2]
    # the bits of a slice of a batch are not contiguous
    projection = [t.w_in, t.bias, None if t.x_bits is None else t.x_bits.contiguous()]
    readout = [t.w_out, t.p] if t.b_out is None else [t.w_out, t.p, t.b_out]
    return state, coefficients, recurrence, list(settings.delays), projection, readout


def _forward(settings: Settings, t: Tensors, states: Sequence[Tensor], rows: Rows) -> Outputs:
    """Calls alif_forward. Where only bits are requested, a carrier replaces the spikes."""
    N = t.neurons
    lists = list(settings.constants), list(settings.numbers), list(settings.options)
    coefficients: Tensor | None = t.rows
    made: list[Tensor] = []  # the coefficients, unless they are given, or made by the kernels
    more: tuple[Any, ...] = ([], [], settings.key) if settings.key else ()
    if coefficients is None:
        if not load.has_cpu_kernels(t.x) and can_kernels_stack(rows, t.x.dtype, t.x.device):
            more = list(rows.tensors), [number for row in rows.each for number in row]
        else:
            coefficients = stack_rows(rows, N, t.x.dtype, t.x.device)
            made = [coefficients]
    args = t.x, *_lists(settings, t, states, coefficients), *lists, t.lengths, *more
    spikes, state, traces, readout, saved = call_interruptible(torch.ops.lsnn.alif_forward, *args)
    outputs = settings.constants.outputs
    if load.has_bit("outputs", outputs, "bits") and not load.has_bit("outputs", outputs, "spikes"):
        spikes = make_carrier(state[0], *t.x.shape[:2], N)
    p, p_last = readout
    return Outputs(spikes, tuple(state), tuple(traces), p, p_last,
                   (*saved[:4], *made, *saved[4:]))


class _Recurrence(torch.autograd.Function):
    """Settings and the rows as tuples, the stacks of the rows, a link, Tensors, states and the
    tensors of the rows -> the tensors of Outputs in turn, differentiable."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        out = _forward(*Inputs.of(args))
        return out.spikes, *out.state, *out.traces, out.p, out.p_last, *out.saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        settings, t, states, rows = Inputs.of(inputs)
        out = _join(settings, output)
        ctx.settings, ctx.each = settings, rows.each
        ctx.forms = [(one.shape, one.dtype, one.device) for one in rows.tensors]
        ctx.sizes = len(states), len(out.saved)
        without = out.state[find_sizes(settings.key).traces : -1]
        ctx.mark_non_differentiable(*without, *out.saved)
        ctx.set_materialize_grads(False)
        if t.w_in is None and not settings.constants.checkpoint:
            t = t._replace(x=None)  # the backward pass does not read it
        # Only second derivatives need them, so they may be changed in place and are not saved.
        # Transforms see only what is saved.
        ctx.learned = () if is_transformed() else tuple(
            one for one in rows.tensors if one.requires_grad)
        depend = rows.tensors if internals.is_transforming() else ()
        link = inputs[IN_FRONT - 1]
        ctx.save_for_backward(link, *t, *states, *out.saved, *depend)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """One differentiable call for each element: different weights need different products."""
        return loop_over_batch(_Recurrence.apply)(info, in_dims, *args)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(one is None for one in g):
            return (None,) * len(ctx.needs_input_grad)
        if not torch.compiler.is_compiling() and any(
                one is not None and internals.is_legacy_batched(one) for one in g):
            raise RuntimeError("lsnn_ext: expected the gradient of one result, got a batch of "
                               "gradients (is_grads_batched=True); call the backward pass for "
                               "each, or torch.func.vmap over torch.func.vjp")
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint computes them at each read
        with torch.no_grad():
            found = _Recurrence.gradients(ctx, saved, _join(ctx.settings, g))  # type: ignore[arg-type]
        gradients = forbid_second_derivative(found, (*g, *saved, *ctx.learned))
        return *[None] * IN_FRONT, *gradients

    @staticmethod
    def gradients(ctx: Any, saved: tuple[Any, ...], g: Outputs) -> tuple[Tensor | None, ...]:
        settings, (n_states, n_saved) = ctx.settings, ctx.sizes
        t, others = Tensors(*saved[1 : 1 + FIELDS]), saved[1 + FIELDS :]
        states, kept = others[:n_states], list(others[n_states : n_states + n_saved])
        coefficients = kept.pop(4) if t.rows is None else t.rows
        needed = ctx.needs_input_grad[IN_FRONT :]
        of_tensors, of_rows = Tensors(*needed[:FIELDS]), needed[FIELDS + n_states :]
        outputs = settings.constants.outputs
        # A compiled graph passes zeros of shape (0,) for what was not requested.
        has_spikes = any(load.has_bit("outputs", outputs, name) for name in ("spikes", "bits"))
        has_traces = load.has_bit("outputs", outputs, "traces")
        required = load.make_mask(
            "gradients", (name for name in load._C.gradients if getattr(of_tensors, name)))
        g_state = [*g.state[: find_sizes(settings.key).traces], g.state[-1]]
        x, (w_rec, kernel), stack, (*state, z), (w_in, bias), (
            w_out, p, b_out) = call_interruptible(
            torch.ops.lsnn.alif_backward, g.spikes if has_spikes else None,
            list(g.traces) if has_traces else [], g_state,
            [] if t.w_out is None else [g.p, g.p_last], t.x,
            *_lists(settings, t, states, coefficients), kept,
            list(settings.constants._replace(gradients=required)), list(settings.numbers),
            list(settings.options), t.lengths, *([settings.key] if settings.key else []))
        report("gradients", kept[1])
        if (settings.constants.existing and of_tensors.w_rec
                and not load.has_cpu_kernels(coefficients)):
            w_rec = w_rec.masked_fill_(t.w_rec == 0, 0.0)
        found = Tensors(x, z, w_rec, None, w_in, bias, None, w_out, p, b_out, None, kernel)
        learned: Sequence[Tensor | None] = [None] * len(of_rows)
        if settings.constants.coefficient_gradients:
            learned = split_gradient(stack, ctx.each, ctx.forms, of_rows)
        gradients = (*found, *(*state, None)[:n_states], *learned)  # none of the counter r
        return tuple(one if need else None for one, need in zip(gradients, needed, strict=True))


def _join(settings: Settings, tensors: Sequence[Any]) -> Outputs:
    """Outputs of the results of _Recurrence, or of their gradients."""
    sizes = find_sizes(settings.key)
    n = 2 + sizes.states
    m = n + sizes.traces
    spikes, (p, p_last, *saved) = tensors[0], tensors[m:]
    return Outputs(spikes, tuple(tensors[1:n]), tuple(tensors[n:m]), p, p_last, tuple(saved))


def _saves_packed(t: Tensors, settings: Settings) -> bool:
    """Whether the packed weights are saved for the backward pass, which otherwise packs them again:
    on a GPU, where they are at most a sixteenth of the saved membranes."""
    if settings.key or load.has_cpu_kernels(t.x) or is_transformed():
        return False
    T, B, _ = t.x.shape
    return 16 * load.count_packed(len(settings.delays), t.neurons) <= T * B * t.neurons


def _record(settings: Settings, t: Tensors, states: Sequence[Tensor], rows: Rows) -> Outputs:
    delays, constants, numbers = (tuple(part) for part in settings[:3])
    link = None  # an empty tensor in the graph of x: shows a second derivative where x is not saved
    if t.w_in is None and not torch.compiler.is_compiling() and internals.requires_gradient(t.x):
        link = t.x[:0].clone()
    return _join(settings, apply_function(
        _Recurrence, delays, constants, numbers, *settings[3:], rows.each,
        None if is_transformed() else rows.stacks, link, *t, *states, *rows.tensors))


def _run_in_order(settings: Settings, t: Tensors, states: Sequence[Tensor], rows: Rows) -> Outputs:
    """The operator, under autograd if a gradient is required; settings have the requested outputs.
    The saved bits are also returned where only `saved` is requested."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        internals.leave_graph_of_transforms()
    forward_mode = not torch.compiler.is_compiling() and internals.is_forward_mode()
    if t.z is None and torch.compiler.is_exporting():
        # AOTInductor turns an empty list into None.
        shape = t.x.shape[1], t.neurons
        t = t._replace(z=t.x.new_zeros(count_past_steps(settings.delays), *shape))
        states = [t.x.new_zeros(shape) for _ in range(find_sizes(settings.key).states)]
    constants = settings.constants
    if forward_mode or torch.is_grad_enabled() and (constants.coefficient_gradients or any(
            value is not None and internals.requires_gradient(value) for value in (*t, *states))):
        saved = ["saved", "packed"] if _saves_packed(t, settings) else ["saved"]
        constants = constants._replace(outputs=constants.outputs | load.make_mask("outputs", saved))
        settings = settings._replace(constants=constants)
        out = _record(settings, t, states, rows)
    else:
        rounding = load.make_mask("outputs", ["saved_bf16"])
        constants = constants._replace(checkpoint=0, outputs=constants.outputs & ~rounding)
        settings = settings._replace(constants=constants)
        with torch.no_grad():
            out = _forward(settings, t, states, rows)
    report("recurrence", settings, t, rows, out)
    return out


def call_differentiable(args: Any) -> tuple[Any, ...] | None:
    """alif_forward with gradients, as exported programs call it; None for neurons that are no
    models, and unless `saved` is requested and neither `bits` nor `packed`."""
    named = load.Constants(*args.constants)
    if args.neuron or not load.has_bit("outputs", named.outputs, "saved") or any(
            load.has_bit("outputs", named.outputs, name) for name in ("bits", "packed")):
        return None
    every = (1 << len(COEFFICIENTS)) - 1 if args.coefficients.requires_grad else 0
    named = named._replace(coefficient_gradients=every, bf16_parts=load.count_bf16_parts())
    w_rec, delay, kernel, mask = (*args.recurrence, *[None] * 4)[:4]
    w_in, bias, x_bits = (*args.projection, None, None, None)[:3]
    w_out, p, b_out = (*args.readout, None, None, None)[:3]
    *states, z = args.state or [None]
    t = Tensors(args.x, z, w_rec, delay, w_in, bias, x_bits, w_out, p, b_out, args.lengths, kernel,
                mask)
    rows = Rows(tuple((0.0, 1, k, 0.0) for k in range(len(COEFFICIENTS))),
                args.coefficients.unbind())
    settings = Settings(args.delays, named, args.numbers, tuple(args.options))
    out = _record(settings, t, states, rows)
    return out.spikes, list(out.state), list(out.traces), [out.p, out.p_last], list(out.saved[:4])


# The axis of the batch in Tensors.
_BATCH = {"x": 1, "z": 1, "x_bits": 1, "p": 0, "recurrent_mask": 0}


def run_recurrence(settings: Settings, t: Tensors, states: Sequence[Tensor], rows: Rows,
                   lengths: Lengths | None) -> Outputs:
    """The operator; sequences and results are in the order of the caller."""
    if lengths is None:
        return _run_in_order(settings, t, states, rows)
    t = t._replace(lengths=lengths.descending)
    if lengths.order is None:
        return _run_in_order(settings, t, states, rows)
    out = _run_in_order(
        settings, t._replace(**{name: lengths.sort(getattr(t, name), axis)
                                for name, axis in _BATCH.items()}),
        [lengths.sort(one, 0) for one in states], rows)

    def restore(one: Tensor, axis: int = 1) -> Tensor:
        return lengths.restore(one, axis) if one.dim() > 1 else one  # (0,): not requested

    *state, z = out.state
    return out._replace(
        spikes=restore(out.spikes), state=(*(restore(one, 0) for one in state), restore(z)),
        traces=tuple(map(restore, out.traces)), p=restore(out.p), p_last=restore(out.p_last, 0))
