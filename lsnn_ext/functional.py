"""Functions of tensors: the recurrence over a whole sequence, the projection in front of it and the
readout behind."""

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _ops, reference
from ._arguments import Delay, Delays, check_beside
from ._arguments import readable as readable
from ._bits import PackedSpikes, pack_spikes
from ._inference import PreparedLayer as PreparedLayer
from ._inference import Synapses as Synapses
from ._inference import may_be_kept as may_be_kept
from ._inference import may_be_prepared as may_be_prepared
from ._inference import ordinary as ordinary
from ._lengths import GivenLengths, Lengths, end_readout, lengths_of
from ._resolve import Call, Neuron, resolve
from ._route import bits_pay as bits_pay
from ._route import projection_of, route
from ._steps import Projection as Projection
from ._steps import RecordedLayer as RecordedLayer
from ._steps import recorded_step as recorded_step
from ._torch_internals import make_savable
from .models import COEFFICIENTS, Coefficient, State, Traces

__all__ = ["Delays", "Layered", "PackedSpikes", "State", "Traces", "alif", "layer", "leaky_readout",
           "linear", "pack_spikes"]

def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of a whole sequence: in reused memory, and by events where x is mostly zero, as
    spikes are.

    Args:
        x: (..., I).
        weight: (N, I).
        bias: (N,) or None.

    Returns:
        (..., N) of the dtype of x. Gradients of any order, as of F.linear.

    Raises:
        TypeError, ValueError: an argument of a wrong kind or device.

    Equivalent to:
        >>> y = torch.nn.functional.linear(x, weight, bias)
    """
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value is not None and value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x, got {value.device}")
    return _ops.linear(x, weight, bias, projection_of(x, weight))


make_savable(State)
make_savable(Traces)
make_savable(PackedSpikes)


def alif(
    current: Tensor, w_rec: Tensor | None, *, alpha: Coefficient, theta: Coefficient,
    rho: Coefficient | None = None, beta: Coefficient | None = None,
    kappa: Coefficient | None = None, q: Coefficient | None = None, p: Coefficient | None = None,
    eta: Coefficient | None = None, sigma: Coefficient | None = None, R: Coefficient | None = None,
    refractory: int = 0, delay: Delay = 0, dynamics: str = "lsnn", surrogate: str | None = None,
    dampening: float | None = None, width: Coefficient | None = None, state: State | None = None,
    trace: bool = False, smooth: bool = False, checkpoint_every: int | str | None = None,
    saved_dtype: torch.dtype | None = None, sparse_grad: bool = False,
    lengths: GivenLengths | None = None,
) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:
    """Recurrent neurons with adaptation over a whole sequence, as one operator; docs/equations.md
    has the equations.

    Args:
        current: (T, B, N) input current x_t, already projected. float32 and float64 are computed as
            such; bfloat16 and float16 in float32, the spikes are then returned in the dtype of
            current. T = 0 and B = 0 are allowed.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k; (S, N, N): w_rec[s,
            j, k] acts with the s-th of S delays; None: no recurrence, at no cost.
        alpha: decay of the membrane over a step, exp(-dt/tau); in [0, 1]. Every coefficient is a
            number or a tensor (N,), and differentiable.
        theta: base threshold.
        rho: decay of the adaptation, in [0, 1]. Default 0.
        beta: strength of the adaptation. Default 0 (LIF); per neuron, 0 for the regular neurons of
            an LSNN.
        kappa, q: gain of the current, and of a spike in the adaptation. Default what the model
            says.
        p, eta: coupling of the membrane into the adaptation, and of the adaptation into the
            current. Default 0 (adLIF: eta 1).
        sigma: decay of the synaptic current, in [0, 1]. Default 0: no synapse.
        R: what a spike subtracts, or resets to, in models with such a reset. Default theta, or 0.
        refractory: steps without a spike after each spike.
        delay: extra delay of the recurrent spikes in steps, one int, or integers (N, N) for each
            synapse; Delays of them where torch.compile is to see no data-dependent step. With a
            w_rec of shape (S, N, N): S ascending ints.
        dynamics: the name of a model; "lsnn" is the network of Bellec et al., NeurIPS 2018.
        surrogate, dampening, width: shape, height and width of the surrogate. Default what the
            model says.
        state: State to start from. Default zeros. Of a longer history of spikes the newest are
            used.
        trace: also return Traces of membrane, adaptation and moving threshold, each (T, B, N),
            differentiable.
        smooth: spikes become the antiderivative of the surrogate, real numbers, for gradient
            checks.
        checkpoint_every: None: y of equation (5) is saved for every step, 4 bytes per neuron-step.
            An int K: only the state every K steps (rounded up to a multiple of 16) and a bit per
            neuron-step; the backward pass computes the rest again, to the same bits and gradients
            (that of sigma: to rounding), K steps at a time. A text such as "500 MB": the saved
            tensors and the scratch memory of the backward pass stay below it, with the K that takes
            least where saving all does not fit. CPU only: on other devices everything is saved.
        saved_dtype: torch.bfloat16: y is saved in half the memory, 2.25 bytes per neuron-step in
            all instead of 4.25; the spikes stay as they are, and gradients are those of membranes
            rounded to 8 bits. None: the dtype of the computation. Of no effect in float64, or with
            checkpoint_every, which saves no y.
        sparse_grad: only synapses that are not zero get a gradient in w_rec, the others 0. Where
            most of w_rec is zero the CPU kernels follow those that are not, whatever is said here.
        lengths: (B,) steps of each sequence, from 0 to T, whole numbers on the CPU. Each ends after
            its own last step: spikes and traces are 0 from there on, its state is that of this
            step, and what is given for later steps, gradients too, is not read. Time grows with the
            sum of lengths. Default: all have T steps.

    Returns:
        spikes (T, B, N) of 0 and 1, the State after the last step, and with trace=True the Traces.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or
            range; the message names the argument, what is expected and what was given.

    Equivalent to, for dynamics="lsnn" without delay, refractory period and synapse:
        >>> v = a = z = torch.zeros_like(current[0])
        >>> for x_t in current:
        ...     a = rho * a + (1 - rho) * z
        ...     A = theta + beta * a
        ...     m = (v - A) / A  # of the membrane before this step, equation (7)
        ...     v = alpha * v + (1 - alpha) * (x_t + z @ w_rec) - z * A
        ...     z = (m > 0).to(v.dtype)  # its gradient is dampening * relu(1 - abs(m))

    Source: Bellec et al., NeurIPS 2018 (arXiv 1803.09574) and the models' own papers.
    """
    neuron = Neuron(
        alpha=alpha, theta=theta, rho=rho, beta=beta, kappa=kappa, q=q, p=p, eta=eta, sigma=sigma,
        R=R, width=width, refractory=refractory, delay=delay, dynamics=dynamics,
        surrogate=surrogate, dampening=dampening, state=state, trace=trace, smooth=smooth,
        checkpoint_every=checkpoint_every, saved_dtype=saved_dtype, sparse_grad=sparse_grad,
        lengths=lengths,
    )
    out, spikes = _outputs(current, w_rec, neuron, _Fused(), {"spikes"})
    state_after = State(out.v, out.a, out.i, out.r, out.z)
    if not trace:
        return spikes, state_after
    return spikes, state_after, Traces(out.trace_v, out.trace_a, out.threshold)


class _Fused(NamedTuple):
    """The projection and readout that are fused into the operator; None where they are not, or
    where there is none."""

    w_in: Tensor | None = None
    bias: Tensor | None = None
    x_bits: Tensor | None = None
    w_out: Tensor | None = None
    p: Tensor | None = None
    k_out: float = 0.0


def _outputs(
    x: Tensor, w_rec: Tensor | None, neuron: Neuron, fused: _Fused, requested: set[str],
) -> tuple[_ops.Outputs, Tensor]:
    """What the operator returns, and the spikes in the dtype of x; requested: names of outputs of
    csrc/torch/boundary.h."""
    call = resolve(neuron, x, w_rec, fused.w_in)
    model, (v, a, i, r, z) = call.model, call.state
    if not _ops.available:
        return _by_reference(x, w_rec, neuron, call)
    _check_kernels("current", x)
    if neuron.trace:
        requested = requested | {"traces"}
    if call.saved_bf16:
        requested = requested | {"saved_bf16"}
    constants = _ops.Constants(
        dynamics=_ops.DYNAMICS[model.dynamics], surrogate=_ops.SURROGATES[model.surrogate],
        refractory=model.refractory, smooth=int(neuron.smooth),
        checkpoint=call.checkpoint if _ops.cpu_kernels(x) else 0,
        outputs=_ops.mask("outputs", requested), gradients=0,
        coefficient_gradients=model.coefficient_gradients, allow_bf16=int(_ops.allows_bf16()),
    )
    numbers = _ops.Numbers(dampening=model.dampening, k_out=float(fused.k_out))
    tensors = _ops.Tensors(
        x.to(call.dtype), v, a, i, r, z, model.coefficients,
        None if w_rec is None else w_rec.to(call.dtype), model.delay, fused.w_in,
        fused.bias, fused.x_bits, fused.w_out, fused.p,
    )
    settings = _ops.Settings(model.delays, constants, numbers, neuron.sparse_grad,
                             _ops.forced_options())
    out = _ops.recurrence(tensors, settings, call.lengths)
    return out, out.spikes.to(x.dtype)


def _check_kernels(name: str, x: Tensor) -> None:
    if x.device.type not in _ops.DEVICES:
        raise RuntimeError(
            f"{name}: expected a tensor on {' or '.join(_ops.DEVICES)}, for which this build of "
            f"lsnn_ext has kernels, got device {x.device}; move the tensors there, or see "
            f"lsnn_ext.show_config()"
        )


def _say_slow(stacklevel: int) -> None:
    message = (
        f"lsnn_ext: the compiled part is missing ({_ops.load_error}); using the slow reference"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def _by_reference(x: Tensor, w_rec: Tensor | None, neuron: Neuron,
                  call: Call) -> tuple[_ops.Outputs, Tensor]:
    _say_slow(5)
    model = call.model
    result = reference.alif(
        x, w_rec, **dict(zip(COEFFICIENTS, model.coefficients, strict=True)),
        refractory=model.refractory, delay=neuron.delay.each if isinstance(neuron.delay, Delays)
        else neuron.delay, dynamics=model.dynamics,
        surrogate=model.surrogate, dampening=model.dampening, state=State(*call.state), trace=True,
        smooth=neuron.smooth, sparse_grad=neuron.sparse_grad,
        lengths=None if call.lengths is None else call.lengths.each,
    )
    assert len(result) == 3
    return _ops.Outputs(result[0], *result[1], *result[2],
                        *(x.new_empty(0) for _ in range(6))), result[0]


class Layered(NamedTuple):
    """What layer returns."""

    spikes: Tensor | None  # (T, B, N); None where they were not asked for as numbers
    state: State
    traces: Traces | None  # of trace=True
    readout: Tensor | None  # (T, B, O) of w_out
    readout_state: Tensor | None  # (B, O) the readout after the last step
    packed: PackedSpikes | None = None  # of spikes="bits"


def layer(
    x: Tensor | PackedSpikes, w_in: Tensor, w_rec: Tensor | None, *, bias: Tensor | None = None,
    w_out: Tensor | None = None, k_out: float = 0.0, readout_state: Tensor | None = None,
    spikes: bool | Literal["bits"] = True, **neuron: Any,
) -> Layered:
    """The input projection, the recurrence and a leaky readout in one call, and in one operator
    where that is faster.

    On the CPU mostly zero inputs, as spikes are, meet their weights inside the recurrence, event by
    event: no current (T, B, N) is ever written, nor its gradient. The readout runs inside too, so
    without spikes nothing of the size of (T, B, N) is left but what the backward pass needs; see
    checkpoint_every of alif.

    Args:
        x: (T, B, I) inputs, or spikes of another layer as bits.
        w_in: (N, I) input weights, as of torch.nn.functional.linear.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k, or (S, N, N), or
            None, as of alif.
        bias: (N,) added to the projected inputs.
        w_out: (O, N) weights of a readout p_t = k_out p_{t-1} + (1 - k_out) w_out z_t; None: no
            readout.
        k_out: its decay over a step, from 0 to 1.
        readout_state: (B, O) the readout before the first step. Default zeros.
        spikes: whether to return the spikes; without w_out they always are. "bits": packed, for the
            next layer. The backward pass keeps these bits anyway, so returning them takes no
            further memory. The CPU kernels write and read them; elsewhere they are made of numbers,
            which saves nothing.
        **neuron: the keyword arguments of alif.

    Returns:
        Layered: spikes, state, traces, readout, readout_state, packed.

    Raises:
        TypeError, ValueError, RuntimeError: as alif.

    Equivalent to, with w_out and without lengths:
        >>> spikes, state = alif(linear(x, w_in, bias), w_rec, **neuron)
        >>> readout, readout_state = leaky_readout(spikes, w_out, k_out, readout_state)
    """
    unknown = set(neuron) - set(Neuron._fields)
    if unknown:
        raise TypeError(
            f"layer: expected the keyword arguments of alif, got {sorted(unknown)[0]!r}")
    for name in ("alpha", "theta"):
        if name not in neuron:
            raise TypeError(f"{name}: expected a number or a tensor, got none")
    if isinstance(x, PackedSpikes):
        x.check("x")
    elif not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor or PackedSpikes, got {type(x).__name__}")
    if len(x.shape) != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {tuple(x.shape)}")
    T, B, I = x.shape
    like = x.carrier if isinstance(x, PackedSpikes) else x
    if _ops.available:
        _check_kernels("x", like)
    check_beside("w_in", w_in, ("N", I), like, "x")
    N = w_in.shape[0]
    if w_rec is not None:
        by_delay = isinstance(w_rec, Tensor) and w_rec.dim() == 3
        check_beside("w_rec", w_rec, ("S", N, N) if by_delay else (N, N), like, "x")
    if bias is not None:
        check_beside("bias", bias, (N,), like, "x")
    if w_out is not None:
        check_beside("w_out", w_out, ("O", N), like, "x")
    elif readout_state is not None:
        raise ValueError("readout_state: expected w_out beside it, got none")
    if w_out is not None and readout_state is not None:
        check_beside("readout_state", readout_state, (B, w_out.shape[0]), like, "x")
        dtype = torch.promote_types(like.dtype, torch.float32)
        if readout_state.dtype != dtype:
            raise TypeError(f"readout_state: expected {dtype}, got {readout_state.dtype}")
    if not 0 <= k_out <= 1:
        raise ValueError(f"k_out: expected a number from 0 to 1, got {k_out}")
    if spikes not in (True, False, "bits"):
        raise ValueError(f"spikes: expected True, False or 'bits', got {spikes!r}")
    given = Neuron(**neuron)
    lengths = lengths_of(given.lengths, T, B, like.device)
    given = given._replace(lengths=lengths)
    keeps_order = lengths is None or lengths.order is None
    chosen = route(x, w_in, (w_rec, bias), w_out, spikes, keeps_order, bool(given.smooth))
    x_bits = x.bits if isinstance(x, PackedSpikes) and chosen.is_fused else None
    if isinstance(x, PackedSpikes):
        x = x.carrier if chosen.is_fused else x.numbers()
    if chosen.is_fused:
        current = x
        fused = _Fused(w_in, bias, x_bits)
    else:
        if lengths is not None:  # the projection reads all steps
            x = x.masked_fill(lengths.ended(T, x.device), 0.0)
        current = _ops.linear(x, w_in, bias, chosen.projection)
        fused = _Fused()
    reads_numbers = w_out is not None and not chosen.fused_readout
    if w_out is not None and not reads_numbers:
        first = w_out.new_zeros(B, w_out.shape[0]) if readout_state is None else readout_state
        fused = fused._replace(w_out=w_out, p=first, k_out=k_out)
    wanted = spikes or w_out is None
    requested = {"spikes"} if wanted or reads_numbers else set()
    if chosen.returns_bits:
        requested = {"bits"}
    out, z = _outputs(current, w_rec, given, fused, requested)
    p, p_last = (None, None) if w_out is None else (out.p, out.p_last)
    if reads_numbers:
        p, p_last = leaky_readout(z, w_out, k_out, readout_state, lengths)  # type: ignore[arg-type]
    packed = None
    if spikes == "bits":
        packed = PackedSpikes(out.bits, z) if chosen.returns_bits else pack_spikes(z)
    traces = Traces(out.trace_v, out.trace_a, out.threshold) if given.trace else None
    numbers = z if wanted and packed is None else None
    return Layered(numbers, State(out.v, out.a, out.i, out.r, out.z), traces, p, p_last, packed)


def leaky_readout(x: Tensor, w_out: Tensor, k: float, p: Tensor | None = None,
                  lengths: GivenLengths | Lengths | None = None) -> tuple[Tensor, Tensor]:
    """A leaky integrator of weighted spikes, p_t = k p_{t-1} + (1 - k) w_out x_t, on the CPU and
    CUDA.

    Args:
        x: (T, B, N). T = 0 and B = 0 are allowed.
        w_out: (O, N).
        k: its decay over a step, a number from 0 to 1.
        p: (B, O) before the first step. Default zeros.
        lengths: (B,) as of alif: p is 0 after the end of each sequence, and the last one is that of
            its own last step.

    Returns:
        p of every step (T, B, O), and of the last one (B, O), float32 where x is float16 or
        bfloat16. Gradients of x, w_out and p, of any order.

    Raises:
        TypeError, ValueError: an argument of a wrong kind, shape, dtype, device or range.

    Equivalent to:
        >>> all_p = []
        >>> for x_t in x:
        ...     p = k * p + (1 - k) * (x_t @ w_out.T)
        ...     all_p.append(p)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (T, B, N), got {tuple(x.shape)}")
    check_beside("w_out", w_out, ("O", x.shape[2]), x, "x")
    if isinstance(k, bool) or not isinstance(k, int | float):
        raise TypeError(f"k: expected a number from 0 to 1, got {type(k).__name__}")
    if not 0 <= k <= 1:
        raise ValueError(f"k: expected a number from 0 to 1, got {k}")
    each = lengths_of(lengths, x.shape[0], x.shape[1], x.device)
    if each is not None:
        x = x.masked_fill(each.ended(x.shape[0], x.device), 0.0)
        return end_readout(leaky_readout(x, w_out, k, p)[0], p, each)
    product = linear(x.contiguous(), w_out.to(x.dtype))
    dtype = torch.promote_types(product.dtype, torch.float32)
    if p is not None:
        check_beside("p", p, (x.shape[1], w_out.shape[0]), x, "x")
        if p.dtype != dtype:
            raise TypeError(f"p: expected {dtype}, got {p.dtype}")
    if not _ops.available:
        _say_slow(3)
        return reference.leaky_readout(product.to(dtype), p, k)
    _check_kernels("x", x)
    return _ops.leaky_readout(product.to(dtype), p, float(k))
