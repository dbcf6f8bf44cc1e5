"""Calls of functional.alif, functional.layer and functional.leaky_readout: check the arguments,
choose the route, call the operator."""
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _ops, reference
from ..models import COEFFICIENTS
from .arguments import check_operand, is_readable
from .bits import PackedSpikes, make_carrier, pack_spikes, pack_unchecked
from .coefficients import Coefficient, stack_rows
from .device_checks import check_kernels, warn_if_cpu_only, warn_of_slow_reference
from .lengths import Lengths, LengthsArgument, add_bias, mask_readout, resolve_lengths
from .options import CallArguments, NeuronArguments
from .resolve import Call, make_constants, resolve
from .route import choose_route, linear
from .state import State, Traces
from .synapses import expand_kernel


class Layered(NamedTuple):
    """What layer returns."""

    spikes: Tensor | None  # (T, B, N); None with spikes=False or "bits"
    state: State
    traces: Traces | None  # of trace=True
    readout: Tensor | None  # (T, B, O) of w_out
    readout_state: Tensor | None  # (B, O) the readout after the last step
    packed: PackedSpikes | None = None  # of spikes="bits"


def _lacks_kernels(x: Tensor, options: CallArguments) -> bool:
    """Whether the reference computes a call that the kernels for x do not support."""
    return options.recurrent_mask is not None and not _ops.has_cpu_kernels(x)


def _run_operator(x: Tensor, w_rec: Tensor | None, neuron: NeuronArguments, options: CallArguments,
                  requested: set[str], k_out: float = 0.0,
                  **fused: Tensor | None) -> tuple[_ops.Outputs, Tensor]:
    """The outputs of the operator, and the spikes in the dtype of x; requested: names of outputs in
    csrc/torch/boundary.h; fused: tensors of the projection and readout inside of the operator."""
    call = resolve(neuron, options, x, w_rec, fused.get("w_in"))
    if not _ops.is_compiled_active():
        return _run_reference(x, w_rec, neuron, options, call)
    check_kernels("current", x)
    if _lacks_kernels(x, options):
        return _run_reference(x, w_rec, neuron, options, call)
    if call.checkpoint and torch.is_grad_enabled():
        warn_if_cpu_only("checkpoint_every", f"a state every {call.checkpoint} steps", x,
                         "the membrane of every step is saved", 6)
    if options.trace:
        requested = requested | {"traces"}
    if call.saved_bf16:
        requested = requested | {"saved_bf16"}
    w_rec = None if w_rec is None else w_rec.to(call.dtype)
    kernel = None if options.delay_kernel is None else options.delay_kernel.to(call.dtype)
    if not _ops.has_cpu_kernels(x):
        w_rec, kernel, sparse_grad = expand_kernel(w_rec, kernel, options.sparse_grad)
        options = options._replace(sparse_grad=sparse_grad)
    constants, numbers = make_constants(
        call, options, checkpoint=call.checkpoint if _ops.has_cpu_kernels(x) else 0,
        outputs=_ops.make_mask("outputs", requested))
    numbers = numbers._replace(k_out=float(k_out))
    *states, z = call.state
    tensors = _ops.Tensors(x.to(call.dtype), z, w_rec, call.delay, delay_kernel=kernel,
                           recurrent_mask=options.recurrent_mask, **fused)
    settings = _ops.Settings(call.delays, constants, numbers, _ops.forced_options())
    out = _ops.run_recurrence(settings, tensors, [] if z is None else states, call.rows,
                              call.lengths)
    return out, out.spikes.to(x.dtype)


def _run_reference(x: Tensor, w_rec: Tensor | None, neuron: NeuronArguments,
                   options: CallArguments, call: Call) -> tuple[_ops.Outputs, Tensor]:
    if _ops.is_compiled_active():
        warn_if_cpu_only("recurrent_mask", "a mask of recurrent spikes", x,
                         "the slow reference computes the call", 6)
    else:
        warn_of_slow_reference(6)
    coefficients = stack_rows(call.rows, x.shape[2], call.dtype, x.device)
    numbers: Any = neuron._asdict() | dict(zip(COEFFICIENTS, coefficients, strict=True))
    del numbers["rows"]
    settings = options._replace(
        trace=True, state=None if options.state is None else State(*call.state),
        lengths=None if call.lengths is None else call.lengths.each)
    result: Any = reference.alif(x, w_rec, **numbers, **settings._asdict())
    z, state, traces = result
    empty = x.new_empty(0)
    return _ops.Outputs(z, tuple(state), tuple(traces), empty, empty, ()), z


def run_neurons(current: Tensor, w_rec: Tensor | None, neuron: NeuronArguments,
                options: CallArguments) -> Layered:
    """The recurrence of a current (T, B, N); as of functional.alif."""
    out, z = _run_operator(current, w_rec, neuron, options, {"spikes"})
    traces = Traces(*out.traces) if options.trace else None
    return Layered(z, State(*out.state), traces, None, None)


def check_readout(x: Tensor, w_out: Tensor, p: Tensor | None) -> None:
    """Raises TypeError or ValueError unless these are x (T, B, N), w_out (O, N) and p (B, O)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (T, B, N), got {tuple(x.shape)}")
    check_operand("w_out", w_out, ("O", x.shape[2]), x, "x")
    if p is not None:
        check_operand("p", p, (x.shape[1], w_out.shape[0]), x, "x", is_carried=True)


def project_to_outputs(x: Tensor, w_out: Tensor) -> Tensor:
    """w_out x_t of every step, (T, B, O); float32 where x is float16 or bfloat16."""
    product = linear(x.contiguous(), w_out.to(x.dtype))
    return product.to(torch.promote_types(product.dtype, torch.float32))


def check_decay(name: str, k: Coefficient, w_out: Tensor | None, x: Tensor, of: str) -> None:
    """Raises TypeError or ValueError unless k is a decay, or decays () or (O,), of a readout w_out
    (O, N) of x; of: the name of x."""
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not isinstance(k, Real):
            raise TypeError(f"{name}: expected a number from 0 to 1 or a tensor of such, got "
                            f"{type(k).__name__}")
        if not 0 <= k <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {k}")
        return
    if w_out is None:
        raise ValueError(f"{name}: expected a number without w_out, got a tensor")
    check_operand(name, k, () if k.dim() == 0 else (w_out.shape[0],), x, of)
    if not is_readable(k) or not k.numel():
        return
    low, high = (float(end) for end in k.detach().aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name}: expected numbers from 0 to 1, got "
                         f"{high if 0 <= low else low:.6g}")


def leaky_readout(x: Tensor, w_out: Tensor, k: Coefficient, p: Tensor | None = None,
                  lengths: LengthsArgument | Lengths | None = None) -> tuple[Tensor, Tensor]:
    """A leaky integrator of weighted spikes, p_t = k p_{t-1} + (1 - k) w_out x_t, on the CPU and
    CUDA.

    Args:
        x: (T, B, N). T = 0 and B = 0 are allowed.
        w_out: (O, N).
        k: decay per step, 0 to 1: a number; or a differentiable tensor, () or (O,), with which the
            operator of the recurrence computes the readout.
        p: (B, O) before the first step. Default None: zeros.
        lengths: (B,) steps of each sequence, as in alif: p is 0 after the last step of a sequence.
            Default None: all have T steps.

    Returns:
        p of every step (T, B, O), and p after the last step of each sequence (B, O); float32 for a
        float16 or bfloat16 x. Differentiable, to any order if k is a number, else once.

    Raises:
        TypeError, ValueError: an argument of a wrong kind, shape, dtype, device or range.

    Equivalent to:
        >>> all_p = []
        >>> for x_t in x:
        ...     p = k * p + (1 - k) * (x_t @ w_out.T)
        ...     all_p.append(p)
    """
    check_readout(x, w_out, p)
    check_decay("k", k, w_out, x, "x")
    each = resolve_lengths(lengths, x.shape[0], x.shape[1], x.device)
    if each is not None:
        x = each.mask(x)
    product = project_to_outputs(x, w_out)
    if isinstance(k, Tensor):
        decay = k.to(product.dtype)
        # Spikes do not change this membrane: R = 0, no recurrence, no adaptation.
        neuron = NeuronArguments(alpha=decay, theta=1.0, kappa=1.0, R=0.0,
                                 dynamics="eprop_elig_stop")
        state = None
        if p is not None:  # the membrane; all else is 0
            zero = torch.zeros_like(p)
            state = State(p, zero, zero, zero, zero[None])
        result: Any = run_neurons((1 - decay) * product, None, neuron,
                                  CallArguments(state=state, trace=True))
        every, last = result.traces.v, result.state.v
    elif not _ops.is_compiled_active():
        warn_of_slow_reference(3)
        every, last = reference.leaky_readout(product, p, k)
    else:
        check_kernels("x", product)
        every, last = _ops.leaky_readout(product, p, float(k))
    return (every, last) if each is None else mask_readout(every, p, each)


def run_layer(x: Tensor | PackedSpikes, w_in: Tensor, w_rec: Tensor | None, bias: Tensor | None,
              neuron: NeuronArguments, options: CallArguments, name: str, *,
              w_out: Tensor | None = None, k_out: Coefficient = 0.0,
              readout_state: Tensor | None = None, b_out: Tensor | None = None,
              spikes: bool | Literal["bits"] = True) -> Layered:
    """The projection of x, the argument called name, the recurrence and a readout; as of
    functional.layer, which documents the arguments."""
    if isinstance(x, PackedSpikes):
        x.check(name)
    elif not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor or PackedSpikes, got {type(x).__name__}")
    if len(x.shape) != 3:
        raise ValueError(f"{name}: expected shape (T, B, I), got {tuple(x.shape)}")
    T, B, I = x.shape
    like = x.carrier if isinstance(x, PackedSpikes) else x
    if _ops.is_compiled_active():
        check_kernels(name, like)
    check_operand("w_in", w_in, ("N", I), like, name)
    N = w_in.shape[0]
    if w_rec is not None:
        by_delay = isinstance(w_rec, Tensor) and w_rec.dim() == 3
        check_operand("w_rec", w_rec, ("S", N, N) if by_delay else (N, N), like, name)
    if bias is not None:
        check_operand("bias", bias, (N,), like, name)
    if w_out is not None:
        check_operand("w_out", w_out, ("O", N), like, name)
    for argument, value in (("readout_state", readout_state), ("b_out", b_out)):
        if w_out is None and value is not None:
            raise ValueError(f"{argument}: expected w_out with it, got None")
    if w_out is not None and b_out is not None:
        check_operand("b_out", b_out, (w_out.shape[0],), like, name)
    if w_out is not None and readout_state is not None:
        check_operand("readout_state", readout_state, (B, w_out.shape[0]), like, name,
                      is_carried=True)
    check_decay("k_out", k_out, w_out, like, name)
    if spikes not in (True, False, "bits"):
        raise ValueError(f"spikes: expected True, False or 'bits', got {spikes!r}")
    lengths = resolve_lengths(options.lengths, T, B, like.device)
    options = options._replace(lengths=lengths)
    route = choose_route(x, w_in, (w_rec, bias), w_out, spikes, lengths, bool(options.smooth),
                         isinstance(k_out, Tensor))
    if _lacks_kernels(like, options):
        route = route._replace(fused_readout=False, returns_bits=False)
    fused: dict[str, Any] = {}
    if route.is_fused:
        current = like  # the gradient of bits flows through a carrier
        x_bits = x.bits if isinstance(x, PackedSpikes) else _ops.pack_inputs(x)
        if x_bits is not None and isinstance(x, Tensor):
            current = make_carrier(x, T, B, I)
        fused = {"w_in": w_in, "bias": bias, "x_bits": x_bits}
    else:
        if isinstance(x, PackedSpikes) and route.projection == "torch":
            if _ops.available and not _ops.can_read_bits(like):
                kind = str(like.dtype).removeprefix("torch.")
                warn_if_cpu_only(name, f"inputs as bits in {kind}", like,
                                 "they are unpacked to floats (T, B, I)", 5,
                                 expected="CPU tensors, or float32 and compute capability 8.0 or "
                                          "newer,")
            x = x.numbers()
        if lengths is not None and isinstance(x, Tensor):  # the projection reads the padding too
            x = lengths.mask(x)
        current = _ops.linear(x, w_in, bias, route.projection)
    reads_numbers = w_out is not None and not route.fused_readout
    if w_out is not None and route.fused_readout:
        on_cpu = _ops.has_cpu_kernels(like)
        first = readout_state
        if first is None and on_cpu:
            first = w_out.new_zeros(B, w_out.shape[0])
        fused |= {"w_out": w_out, "p": first, "k_out": k_out}
        if not on_cpu:
            fused["b_out"], b_out = b_out, None
    returns_spikes = spikes or w_out is None
    requested = {"spikes"} if returns_spikes or reads_numbers else set()
    if route.returns_bits:
        requested = {"bits"}
    out, z = _run_operator(current, w_rec, neuron, options, requested, **fused)
    p, p_last = (None, None) if w_out is None else (out.p, out.p_last)
    if w_out is not None and not route.fused_readout:
        p, p_last = leaky_readout(z, w_out, k_out, readout_state, lengths)
    if p is not None and b_out is not None:
        p = add_bias(p, b_out, lengths)
    packed = None
    if spikes == "bits":
        # pack_spikes reads the numbers, which torch.vmap does not allow
        pack = pack_spikes if options.smooth else pack_unchecked
        packed = PackedSpikes(out.saved[1], z) if route.returns_bits else pack(z)
    traces = Traces(*out.traces) if options.trace else None
    numbers = z if returns_spikes and packed is None else None
    return Layered(numbers, State(*out.state), traces, p, p_last, packed)
