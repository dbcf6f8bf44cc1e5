"""A call of functional.recurrent: checked, and computed by the kernels or a loop over time."""
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from .. import _ops
from .._core import arguments
from .._core import torch_internals as internals
from .._core.bits import PackedSpikes, attach_bits, make_carrier
from .._core.coefficients import Coefficient, Row, Rows
from .._core.decisions import is_listening, report
from .._core.device_checks import warn_if_cpu_only, warn_of_slow_reference
from .._core.lengths import Lengths, resolve_lengths
from .._core.options import CallArguments
from .._core.route import choose_route, linear
from .._core.state import count_past_steps
from .._core.synapses import check_sources, expand_kernel, split_synapses
from . import cache
from .closure import Watch
from .form import join_states, split_coefficient
from .kernels import Kernel, NoKernelsError, find_kernel, find_key_and_rows
from .loop import Result, run_loop
from .neuron import Neuron, Parts, check_coefficient, without_autocast
from .state import NeuronState, check_neuron_state


class Call(NamedTuple):
    """A call whose arguments are checked."""

    x: Tensor  # (T, B, K, N) in the dtype of the computation, or (T, B, I) of a projection inside
    w_rec: Tensor | None  # of this dtype
    delay: Tensor | None  # (N, N) or (K, N, N) of each synapse
    delay_kernel: Tensor | None  # (S, N) of this dtype
    delays: tuple[int, ...]  # distinct, ascending
    parts: Parts
    coefficients: dict[str, Coefficient]  # numbers, and tensors of this dtype or its complex one
    state: tuple[list[Tensor], Tensor] | None
    lengths: Lengths | None
    projection: tuple[Tensor | None, ...] = ()  # w_in, bias and x as bits, inside of the operator

    @property
    def like(self) -> Tensor:
        """(..., K, N) of this dtype and device."""
        w_in = self.projection[0] if self.projection else None
        return self.x if w_in is None else w_in.new_empty(0, 1, len(w_in))


def recurrent(x: Tensor | PackedSpikes, w_rec: Tensor | None, neuron: Neuron,
              options: CallArguments, coefficients: Mapping[str, Coefficient], w_in: Tensor | None,
              bias: Tensor | None) -> tuple[Any, ...]:
    """functional.recurrent, which explains the arguments."""
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron: expected a Neuron, got {type(neuron).__name__}; "
                        f"lsnn_ext.Neuron(step) makes one")
    call = check_call(x, w_rec, neuron, options, coefficients, w_in, bias)
    dtype = (x.carrier if isinstance(x, PackedSpikes) else x).dtype
    out, why = None, ""
    if call.projection or not explain_loop(call.x):
        try:
            out = _run_kernels(neuron, call, options)
        except NoKernelsError as error:
            why = str(error)
    if out is None:
        _warn_of_loop(call.x.device, why)
        report("loop", neuron, call.x, call.w_rec, why or explain_loop(call.x))
        T, B, _, N = call.x.shape
        arguments.resolve_checkpoint(options.checkpoint_every, T, B, N, 4)
        out = _run_loop(neuron, call, options)
    names = call.parts.states
    state = NeuronState(dict(zip(names, out.states, strict=True)), out.z)
    spikes = out.spikes.to(dtype)
    if not options.trace:
        return spikes, state
    return spikes, state, dict(zip(names, out.traces, strict=True))


def check_call(x: Tensor | PackedSpikes, w_rec: Tensor | None, neuron: Neuron,
               options: CallArguments, coefficients: Mapping[str, Coefficient],
               w_in: Tensor | None, bias: Tensor | None) -> Call:
    """Returns the arguments of functional.recurrent as the kernels take them."""
    like = _get_like(x, w_in)
    N = _count_neurons(like, w_in)
    dtype = torch.promote_types(like.dtype, torch.float32)
    values = _check_coefficients(neuron, coefficients, N, like.device, dtype)
    parts = neuron.parts(values, like, N)
    K = len(parts.currents)
    options.check()
    T, B = like.shape[:2] if like.dim() > 1 else (0, 0)  # a later check refuses one dimension
    lengths = resolve_lengths(options.lengths, T, B, like.device)
    projection: tuple[Tensor | None, ...] = ()
    if w_in is None:
        if bias is not None:
            raise ValueError("bias: expected w_in with it, got None")
        current = like
        arguments.check_sequence("x", current, w_rec, N, K)
    else:
        arguments.check_sequence("x", like, None, N)
        current, projection = project(x, like, w_in, bias, w_rec, K, N, lengths)
        arguments.check_sequence("x", like.new_empty(0, 0, *(K,) * (K > 1), N), w_rec, N, K)
    kernel = options.delay_kernel
    check_sources(kernel, options.recurrent_mask, w_rec, like, "x", B, N, K)
    delay, delays = arguments.resolve_delays(options.delay, w_rec, N, like.device, K, kernel)
    forms = dict(zip(parts.states, parts.forms, strict=True))
    state = check_neuron_state(options.state, forms, B, N, count_past_steps(delays), dtype,
                               like.device)
    if not projection:
        current = current.reshape(T, B, K, N).to(dtype)
    return Call(current, None if w_rec is None else w_rec.to(dtype), delay,
                None if kernel is None else kernel.to(dtype), tuple(delays), parts, values, state,
                lengths, projection)


def _get_like(x: Any, w_in: Tensor | None) -> Tensor:
    if isinstance(x, PackedSpikes):
        if w_in is None:
            raise TypeError("w_in: expected a tensor with PackedSpikes as x, got None")
        x.check("x")
        return x.carrier
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor or PackedSpikes, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"x: expected a floating point dtype, got {x.dtype}")
    return x


def _count_neurons(x: Tensor, w_in: Tensor | None) -> int:
    if w_in is None:
        if x.dim() not in (3, 4):
            raise ValueError(f"x: expected shape (T, B, N) or (T, B, K, N), got {tuple(x.shape)}")
        return x.shape[-1]
    if not isinstance(w_in, Tensor):
        raise TypeError(f"w_in: expected a tensor, got {type(w_in).__name__}")
    if w_in.dim() not in (2, 3):
        raise ValueError(f"w_in: expected shape (N, I) or (K, N, I), got {tuple(w_in.shape)}")
    return w_in.shape[-2]


def _check_coefficients(neuron: Neuron, given: Mapping[str, Any], N: int, device: torch.device,
                        dtype: torch.dtype) -> dict[str, Coefficient]:
    """Returns numbers, and tensors () or (N,), or (1, K) or (N, K), in the dtype of the call."""
    found = neuron.all_coefficients(given)
    sizes = set(neuron.axes.values())
    for name, value in found.items():
        check_coefficient(name, value)
        if not isinstance(value, Tensor):
            continue
        has_axis = value.dim() == 2 and value.shape[0] in (1, N) and value.shape[1] in sizes
        if value.shape not in ((), (1,), (N,)) and not has_axis:
            more = "".join(f" or ({N}, {size})" for size in sorted(sizes))
            raise ValueError(f"{name}: expected a number or shape ({N},){more}, got "
                             f"{tuple(value.shape)}")
        if value.device != device and (value.dim() > 0 or value.is_meta):
            raise ValueError(f"{name}: expected device {device} as x, got {value.device}")
        value = value.to(device, dtype.to_complex() if value.is_complex() else dtype)
        found[name] = value if has_axis or value.shape == (N,) else value.reshape(())
    return found


def project(x: Tensor | PackedSpikes, like: Tensor, w_in: Tensor, bias: Tensor | None,
            w_rec: Tensor | None, K: int, N: int,
            lengths: Lengths | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Returns currents (T, B, N) or (T, B, K, N) of inputs (T, B, I); or, dispatched as
    functional.layer, the inputs and the tensors with which the operator projects them."""
    T, B, I = like.shape
    arguments.check_operand("w_in", w_in, ("N", I) if K == 1 else (K, "N", I), like, "x")
    if bias is not None:
        arguments.check_operand("bias", bias, (N,) if K == 1 else (K, N), like, "x")
        bias = bias.flatten()
    if K == 1 and not explain_loop(like) and choose_route(
            x, w_in, (w_rec, bias), None, True, lengths, False).is_fused:
        if isinstance(x, PackedSpikes):
            return x.carrier, (w_in, bias, x.bits.contiguous())
        bits = _ops.pack_inputs(x)
        return x if bits is None else make_carrier(x, T, B, I), (w_in, bias, bits)
    if lengths is not None and isinstance(x, Tensor):  # the projection reads all steps
        x = lengths.mask(x)
    current = linear(x, w_in.flatten(0, -2), bias)
    return current if K == 1 else current.view(T, B, K, N), ()


def explain_loop(x: Tensor) -> str:
    """Why a loop computes the call; empty if the kernels do. Transforms of torch.func and forward
    mode differentiate the loop itself."""
    if not _ops.is_compiled_active():
        return "use_reference() is active, or the compiled part is missing"
    if x.device.type not in ("cpu", "cuda"):
        return f"only CPU and CUDA kernels run any neuron, and x is on {x.device}"
    if torch.compiler.is_compiling():
        if not _ops.has_cpu_kernels(x):
            return "torch.compile is active, and x is on a GPU"
        internals.leave_graph_of_transforms()
        return ""
    if internals.is_transforming() or internals.is_forward_mode() or internals.is_batched(x):
        return "a transform of torch.func or forward mode is active"
    return ""


def _run_kernels(neuron: Neuron, call: Call, options: CallArguments) -> Result:
    sparse_grad = options.sparse_grad
    if not _ops.has_cpu_kernels(call.x):
        if options.recurrent_mask is not None:
            raise NoKernelsError("a recurrent_mask")
        w_rec, kernel, sparse_grad = expand_kernel(call.w_rec, call.delay_kernel, sparse_grad)
        call = call._replace(w_rec=w_rec, delay_kernel=kernel)
    key, rows = find_key_and_rows(neuron, call.parts, call.like, call.coefficients)
    report("step", neuron)
    operator = make_operator(key, call, options, sparse_grad == "existing")
    return run_operator(operator, call, rows, options)


def make_operator(key: int, call: Call, options: CallArguments,
                  is_existing: bool = False, has_bits: bool = False) -> _ops.Settings:
    """Returns the arguments of the operator that are no tensors; key: of the kernels; has_bits:
    whether spikes have bits, see attach_bits. They depend on the kinds of those that are."""
    (T, B), (K, N) = call.x.shape[:2], call.like.shape[-2:]
    checkpoint = 0
    if options.checkpoint_every is not None:
        saved = arguments.Saved(K, sum(form.rows() for form in call.parts.forms), _ops.CHUNK,
                                int(_ops.find_sizes(key).has_number_spikes))
        checkpoint = arguments.resolve_checkpoint(options.checkpoint_every, T, B, N,
                                                  call.x.dtype.itemsize, saved)
    if checkpoint and not _ops.has_cpu_kernels(call.x):
        if torch.is_grad_enabled():
            warn_if_cpu_only("checkpoint_every", f"a state every {checkpoint} steps", call.x,
                             "the currents of every step are saved", 6)
        checkpoint = 0
    outputs = ["spikes", *["traces"] * options.trace, *["bits"] * has_bits]
    return _ops.Settings.of_neuron(
        key, call.delays, outputs,
        checkpoint=checkpoint, coefficient_gradients=_list_rows(call).gradient_bits(),
        autapses=options.autapses, is_existing=is_existing)


def _list_rows(call: Call) -> Rows:
    """The coefficients of which the kernels give the gradients."""
    each: list[Row] = []
    tensors: list[Tensor] = []
    for one in call.coefficients.values():
        split = split_coefficient(one) if isinstance(one, Tensor) else [None]
        for row in split:
            each.append((0.0, int(row is not None), len(tensors), 0.0))
            tensors += [] if row is None else [row]
    return Rows(tuple(each), tuple(tensors))


def run_operator(operator: _ops.Settings, call: Call, rows: Tensor,
                 options: CallArguments) -> Result:
    """Runs the kernels; rows: the coefficients as they read them."""
    forms = call.parts.forms
    states, z = call.state or ([], None)
    rows_of_states = [row for one, form in zip(states, forms, strict=False)
                      for row in form.split(one)]
    weight, bias, bits = call.projection or (None, None, None)
    tensors = _ops.Tensors(call.x.flatten(2), z, call.w_rec, call.delay, weight, bias, bits,
                           delay_kernel=call.delay_kernel, recurrent_mask=options.recurrent_mask,
                           rows=rows)
    made = _ops.run_recurrence(operator, tensors, rows_of_states, _list_rows(call), call.lengths)
    if _ops.has_bit("outputs", operator.constants.outputs, "bits"):
        attach_bits(made.spikes, made.saved[1])
    *after, last = made.state
    return Result(made.spikes, join_states(after, forms), last,
                  join_states(made.traces, forms) if options.trace else [])


def _warn_of_loop(device: torch.device, why: str = "") -> None:
    """Warns once if the loop runs where the kernels were expected; why: there are none on a GPU."""
    if _ops.is_reference_active():
        return
    if not _ops.available:
        warn_of_slow_reference(5)
    elif why or device.type not in ("cpu", "cuda", "meta"):
        expected = "CUDA kernels of the step" if why else "tensors on the CPU or a GPU"
        cache.warn_once(f"loop {why or device.type}",
                        f"recurrent: expected {expected}, got {why or device}; the step runs as a "
                        f"loop over time (shown once)", UserWarning)


def _run_loop(neuron: Neuron, call: Call, options: CallArguments) -> Result:
    _, B, K, N = call.x.shape
    z = call.x.new_zeros(count_past_steps(call.delays), B, N)
    states = [z.new_zeros(form.shape(B, N), dtype=form.dtype(z.dtype)) for form in call.parts.forms]
    if call.state is not None:
        states, z = call.state

    def flatten(w: Tensor) -> Tensor:
        """Weights (K, N, N) from neuron j to the current k of n as (N, K N)."""
        return w if K == 1 else w.transpose(0, 1).reshape(N, K * N)

    synapses = split_synapses(call.w_rec, options.delay, K, call.delay_kernel,
                              options.recurrent_mask, options.autapses,
                              options.sparse_grad == "existing", flatten)
    return run_loop(neuron.step, call.x, synapses, states, z, call.coefficients, call.lengths,
                    options.trace)


def _check_unchanged(watch: "ref[Watch]", _: Any) -> None:
    """Raises RuntimeError before a backward pass of kernels, which have the numbers of the forward
    pass, if the step would read others. Of a node, through which Python sees no cycle."""
    one = watch()
    if one is not None and (name := one.find_changed()) is not None:
        raise RuntimeError(f"lsnn_ext: {name}: expected what a backward reads to stay from the "
                           f"forward pass to the backward pass, got a change")


class RepeatedCall:
    """functional.recurrent of one neuron: the first call with arguments of a kind checks them and
    finds the kernels, later ones run these.

    The caller sees to it that what the step reads is the same, but for the numbers of tensors.
    """

    def __init__(self, neuron: Neuron) -> None:
        self.neuron = neuron
        self._known: dict[Any, tuple[Call, Watch, Kernel, _ops.Settings]] = {}

    def __call__(self, x: Tensor | PackedSpikes, w_rec: Tensor | None, delay: Any,
                 state: NeuronState, coefficients: dict[str, Tensor], trace: bool,
                 w_in: Tensor | None = None, bias: Tensor | None = None,
                 ) -> tuple[Tensor, NeuronState, dict[str, Tensor]]:
        """Returns spikes, state and traces, which are empty unless trace is set."""
        like = x.carrier if isinstance(x, PackedSpikes) else x
        given = CallArguments(delay=delay, state=state, trace=trace)
        kind = (like.shape, like.dtype, None if w_in is None else w_in.shape, bias is None, trace,
                _ops.forced_options(), torch.get_float32_matmul_precision(),
                torch.get_default_dtype(), *(one.requires_grad for one in coefficients.values()))
        known = None if is_listening() or explain_loop(like) else self._known.get(kind)
        if known is None or not known[1].has_same_numbers():
            arguments = x, w_rec, self.neuron, given, coefficients, w_in, bias
            found, after, *traces = recurrent(*arguments)
            self._prepare(kind, check_call(*arguments), given)
            return found, after, traces[0] if traces else {}
        call, watch, kernel, operator = known
        parts, (K, N) = call.parts, call.like.shape[-2:]
        current, projection = (like, ()) if w_in is None else project(
            x, like, w_in, bias, w_rec, K, N, None)
        call = call._replace(
            x=current if projection else current.reshape(*like.shape[:2], K, N), w_rec=w_rec,
            coefficients={**coefficients}, projection=projection,
            state=([state.states[name] for name in parts.states], state.z))
        with without_autocast(like.device):
            rows = kernel.rows([*coefficients.values()], call.like)
        out = run_operator(operator, call, rows, given)
        # else the caller has seen to it that what has changed is equal
        if out.spikes.grad_fn is not None and watch.is_current():
            out.spikes.grad_fn.register_prehook(partial(_check_unchanged, ref(watch)))
        return out.spikes, NeuronState(dict(zip(parts.states, out.states, strict=True)), out.z), (
            dict(zip(parts.states, out.traces, strict=True)) if trace else {})

    def _prepare(self, kind: Any, call: Call, options: CallArguments) -> None:
        """Stores how the kernels run a call; a no-op where a loop over time does."""
        if explain_loop(call.x):
            return
        try:
            with without_autocast(call.x.device):
                watch, kernel = find_kernel(self.neuron, call.parts, call.like, call.coefficients)
        except NoKernelsError:
            return
        has_bits = not _ops.find_sizes(kernel.key).has_number_spikes
        operator = make_operator(kernel.key, call, options, has_bits=(
            has_bits and _ops.has_cpu_kernels(call.x)))
        K, N = call.like.shape[-2:]
        self._known[kind] = call._replace(  # without tensors of this call
            x=call.like.new_empty(0, 0, K, N), w_rec=None, coefficients=dict.fromkeys(
                call.coefficients, 0.0), state=None, projection=()), watch, kernel, operator
