"""The recurrence of a registered neuron under autograd: one operator forward, one backward."""
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.autograd_rules import forbid_second_derivative
from .._core.decisions import report
from .._core.lengths import Lengths
from .._core.state import count_past_steps
from . import autograd
from .load import Constants, Numbers, has_bit, make_mask

CHUNK = 16  # steps between two saved states, of csrc/alif.h


class NeuronSizes(NamedTuple):
    states: int
    currents: int
    coefficients: int
    gradients: int  # coefficients of the caller
    has_number_spikes: bool  # spikes may be other numbers than 0 and 1


_sizes: dict[int, NeuronSizes] = {}  # of neurons with registered kernels, by key


def register_sizes(key: int, sizes: NeuronSizes) -> None:
    """Must run before a call with this key."""
    _sizes[key] = sizes


def find_sizes(key: int) -> NeuronSizes:
    """The sizes of a neuron. Raises RuntimeError for a key without kernels in this process, such as
    one in a graph of another process."""
    if key not in _sizes:
        raise RuntimeError(f"neuron: expected a key that is registered in this process, got {key}; "
                           f"call lsnn_ext.functional.recurrent with the neuron once")
    return _sizes[key]


class NeuronCall(NamedTuple):
    """The arguments of a call that are not tensors."""

    key: int
    delays: tuple[int, ...]  # distinct, ascending
    constants: tuple[int, ...]  # Constants
    options: tuple[int, ...]  # of forced_options()


class NeuronTensors(NamedTuple):
    """The tensors of a call; all but x and rows may be None.

    Separate arguments are the S states (B, N) before the first step, none for zeros, and the
    coefficients of the caller, None for numbers.
    """

    x: Any  # (T, B, K N), or (T, B, I) the inputs of w_in; a carrier where x_bits are set
    w_rec: Any  # (N, N) or (K, N, N), with S in front for each of S delays
    z: Any  # (D, B, N)
    rows: Any  # (C, N) the coefficients as the kernels read them, without a gradient
    delay: Any  # of each synapse, as a matrix of w_rec
    lengths: Any  # (B,) descending, on the CPU
    link: Any = None  # see autograd.make_link
    w_in: Any = None  # (N, I)
    bias: Any = None  # (N,)
    x_bits: Any = None  # (T, B, ceil(I / 32))
    delay_kernel: Any = None  # (S, N) of axonal delays
    recurrent_mask: Any = None  # (B, N) bool


class NeuronOutputs(NamedTuple):
    spikes: Tensor  # (T, B, N)
    states: tuple[Tensor, ...]  # (B, N) after the last step
    z: Tensor  # (D, B, N)
    traces: tuple[Tensor, ...]  # (T, B, N), of shape (0,) where not requested


_FIELDS = len(NeuronCall._fields), len(NeuronTensors._fields)


def make_constants(outputs: Sequence[str], *, checkpoint: int, coefficient_gradients: int,
                   autapses: bool, is_existing: bool) -> tuple[int, ...]:
    """The Constants of a call; those that only models use are 0."""
    return tuple(Constants(
        checkpoint=checkpoint, outputs=make_mask("outputs", outputs),
        coefficient_gradients=coefficient_gradients, bf16_parts=autograd.count_bf16_parts(),
        without_autapses=int(not autapses), existing=int(is_existing)))


def _numbers() -> list[float]:
    """The Numbers of a call, which only models use."""
    return list(Numbers(dampening=0.0, k_out=0.0, cutoff=math.inf))


def _count_states(call: NeuronCall, t: NeuronTensors) -> int:
    """The states among the arguments behind NeuronTensors; coefficients follow."""
    return 0 if t.z is None else find_sizes(call.key).states


def _lists(t: NeuronTensors, states: Sequence[Tensor], call: NeuronCall) -> tuple[Any, ...]:
    state = [] if t.z is None else [*states, t.z]
    projection = [] if t.w_in is None else [t.w_in, t.bias, t.x_bits]
    return state, t.rows, autograd.list_recurrence(t), list(call.delays), projection, []


def _forward(call: NeuronCall, t: NeuronTensors, rest: Sequence[Any]) -> tuple[Tensor, ...]:
    """All results in one tuple: spikes, states, z, traces, saved."""
    spikes, state, traces, _, saved = autograd.call_interruptible(
        torch.ops.lsnn.alif_forward, t.x, *_lists(t, rest[:_count_states(call, t)], call),
        list(call.constants), _numbers(), list(call.options), t.lengths, [], [], call.key)
    return spikes, *state, *traces, *saved


class _Neuron(torch.autograd.Function):
    """NeuronCall, NeuronTensors, states and coefficients -> all results, differentiable."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _forward(*_split(args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, t, rest = _split(inputs)
        n = _count_states(call, t)
        states, coefficients = rest[:n], rest[n:]
        saved = output[2 + 2 * find_sizes(call.key).states :]
        ctx.call, ctx.n_states = call, n
        ctx.forms = [None if one is None else one.shape for one in coefficients]
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        x = t.x if t.w_in is not None or Constants(*call.constants).checkpoint else None
        # only second derivatives need them
        ctx.learned = [one for one in coefficients if one is not None and one.requires_grad]
        ctx.save_for_backward(*t._replace(x=x), *states, *saved)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(one is None for one in g):
            return (None,) * len(ctx.needs_input_grad)
        autograd.refuse_batch_of_gradients(g)
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint computes them at each read
        with torch.no_grad():
            found = _gradients(ctx, saved, g)
        gradients = forbid_second_derivative(found, (*g, *saved, *ctx.learned))
        return *(None for _ in NeuronCall._fields), *gradients


def _split(args: Sequence[Any]) -> tuple[NeuronCall, NeuronTensors, Sequence[Any]]:
    n, m = _FIELDS
    return NeuronCall(*args[:n]), NeuronTensors(*args[n : n + m]), args[n + m :]


def _gradients(ctx: Any, saved: Sequence[Any],
               g: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    call, m = ctx.call, _FIELDS[1]
    t, n = NeuronTensors(*saved[:m]), m + ctx.n_states
    S = find_sizes(call.key).states
    needed = ctx.needs_input_grad[len(NeuronCall._fields) :]
    of_tensors = NeuronTensors(*needed[:m])
    required = make_mask("gradients", [name for name in (
        "x", "w_rec", "z", "w_in", "bias", "delay_kernel") if getattr(of_tensors, name)])
    constants = Constants(*call.constants)._replace(gradients=required)
    # A compiled graph passes zeros of shape (0,) for what was not requested.
    g_traces = list(g[2 + S : 2 + 2 * S]) if has_bit("outputs", constants.outputs, "traces") else []
    x, (w_rec, kernel), stack, state, projection, _ = autograd.call_interruptible(
        torch.ops.lsnn.alif_backward, g[0], g_traces, list(g[1 : 2 + S]), [], t.x,
        *_lists(t, saved[m:n], call), list(saved[n:]), list(constants), _numbers(),
        list(call.options), t.lengths, call.key)
    report("gradients", saved[n + 1])
    w_in, bias = projection if t.w_in is not None else (None, None)
    found = [x, w_rec, state[-1], None, None, None, None, w_in, bias, None, kernel, None,
             *state[: ctx.n_states]]
    for k, (shape, need) in enumerate(zip(ctx.forms, needed[n:], strict=True)):
        found.append(None if not need else stack[k] if shape else stack[k].sum())
    return tuple(one if need else None for one, need in zip(found, needed, strict=True))


def run_neuron(call: NeuronCall, t: NeuronTensors, states: Sequence[Tensor],
               coefficients: Sequence[Tensor | None], lengths: Lengths | None) -> NeuronOutputs:
    """The operator, under autograd if a gradient is required; sequences are in the order of the
    caller. t.z None: a state of zeros, with empty states."""
    if lengths is not None:
        states = [lengths.sort(one, 0) for one in states]
        t = t._replace(x=lengths.sort(t.x, 1), z=lengths.sort(t.z, 1), lengths=lengths.descending,
                       recurrent_mask=lengths.sort(t.recurrent_mask, 0))
    S = find_sizes(call.key).states
    if t.z is None and torch.compiler.is_exporting():
        # AOTInductor turns an empty list into None.
        shape = t.x.shape[1], t.rows.shape[1]
        t = t._replace(z=t.x.new_zeros(count_past_steps(call.delays), *shape))
        states = [t.x.new_zeros(shape) for _ in range(S)]
    constants = Constants(*call.constants)
    inputs = (*t, *states, *coefficients)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in inputs):
        outputs = constants.outputs | make_mask("outputs", ["saved"])
        call = call._replace(constants=tuple(constants._replace(outputs=outputs)))
        t = t._replace(link=autograd.make_link(t.x) if t.w_in is None else None)
        found = autograd.apply_function(_Neuron, *call, *t, *states, *coefficients)
    else:
        if constants.checkpoint:
            call = call._replace(constants=tuple(constants._replace(checkpoint=0)))
        with torch.no_grad():
            found = _forward(call, t, (*states, *coefficients))
    report("neuron_call", call, t, coefficients, found[2 + 2 * S :])
    spikes, after, z, traces = found[0], found[1 : 1 + S], found[1 + S], found[2 + S : 2 + 2 * S]
    if lengths is None:
        return NeuronOutputs(spikes, tuple(after), z, tuple(traces))
    return NeuronOutputs(lengths.restore(spikes, 1),
                         tuple(lengths.restore(one, 0) for one in after), lengths.restore(z, 1),
                         tuple(lengths.restore(one, 1) if one.dim() > 1 else one for one in traces))
