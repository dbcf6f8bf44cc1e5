"""Functions of tensors: the recurrence over a whole sequence, the projection in front of it and the readout behind."""

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _library, reference
from ._arguments import (
    Delays,
    check,
    check_beside,
    check_coefficients,
    checkpoint_steps,
    delays_of,
    small_membranes,
    stacked,
    whole_state,
)
from ._arguments import readable as readable
from ._bits import PackedSpikes, pack_spikes
from ._ready import Ready as Ready
from ._ready import integrated
from ._ready import plain as plain
from ._ready import prepared as prepared
from ._ready import short as short
from .reference import COEFFICIENTS, Coefficient, State, Traces, named_row, named_surrogate

__all__ = ["Delays", "Layered", "PackedSpikes", "State", "Traces", "alif", "layer", "leaky_readout", "linear",
           "pack_spikes"]  # fmt: skip

def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of a whole sequence: in reused memory, and by events where x is mostly zero, as spikes are.

    Args:
        x: (..., I).
        weight: (N, I).
        bias: (N,) or None.

    Returns:
        (..., N) of the dtype of x. Gradients of any order, as of F.linear.

    Raises:
        TypeError, ValueError: an argument of a wrong kind or device.
    """
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value is not None and value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x, got {value.device}")
    return _library.linear(x, weight, bias)


# A threshold that no readout ever reaches, so that the neuron of the operator is nothing but a leaky integrator.
_NEVER = 1e30


def make_savable(kind: type) -> None:
    """Lets torch.save, with weights_only=True at loading, and torch.export.save take a named tuple of tensors."""
    torch.serialization.add_safe_globals([kind])
    # torch.export has a public way for dataclasses only (torch 2.11 to 2.13).
    torch.utils._pytree._register_namedtuple(kind, serialized_type_name=f"lsnn_ext.{kind.__name__}")


make_savable(State)
make_savable(Traces)
make_savable(PackedSpikes)


def alif(
    current: Tensor, w_rec: Tensor, *, alpha: Coefficient, theta: Coefficient, rho: Coefficient | None = None,
    beta: Coefficient | None = None, kappa: Coefficient | None = None, q: Coefficient | None = None,
    p: Coefficient | None = None, eta: Coefficient | None = None, sigma: Coefficient | None = None,
    R: Coefficient | None = None, refractory: int = 0, delay: int | Tensor | Delays = 0, dynamics: str = "lsnn",
    surrogate: str | None = None, dampening: float | None = None, width: Coefficient | None = None,
    state: State | None = None, trace: bool = False, smooth: bool = False,
    checkpoint_every: int | str | None = None, saved_dtype: torch.dtype | None = None, sparse_grad: bool = False,
) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:  # fmt: skip
    """Recurrent neurons with adaptation over a whole sequence, as one operator; docs/equations.md has the equations.

    Args:
        current: (T, B, N) input current x_t, already projected. float32 and float64 are computed as such; bfloat16 and
            float16 in float32, the spikes are then returned in the dtype of current. T = 0 and B = 0 are allowed.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k.
        alpha: decay of the membrane over a step, exp(-dt/tau); in [0, 1]. Every coefficient is a number or a tensor
            (N,), and differentiable.
        theta: base threshold.
        rho: decay of the adaptation, in [0, 1]. Default 0.
        beta: strength of the adaptation. Default 0 (LIF); per neuron, 0 for the regular neurons of an LSNN.
        kappa, q: gain of the current, and of a spike in the adaptation. Default what the row of the model says.
        p, eta: coupling of the membrane into the adaptation, and of the adaptation into the current. Default 0
            (adLIF: eta 1).
        sigma: decay of the synaptic current, in [0, 1]. Default 0: no synapse.
        R: what a spike subtracts, or resets to, in rows with such a reset. Default theta, or 0.
        refractory: steps without a spike after each spike.
        delay: extra delay of the recurrent spikes in steps, one int, or integers (N, N) for each synapse; Delays of
            them where torch.compile is to see no data-dependent step.
        dynamics: the row of the table of models; "lsnn" is the network of Bellec et al., NeurIPS 2018.
        surrogate, dampening, width: shape, height and width of the pseudo-derivative. Default what the row says.
        state: State to start from. Default zeros. Of a longer history of spikes the newest are used.
        trace: also return Traces of membrane, adaptation and moving threshold, each (T, B, N), differentiable.
        smooth: spikes become the antiderivative of the pseudo-derivative, real numbers, for gradient checks.
        checkpoint_every: None: y of equation (5) is saved for every step, 4 bytes per neuron-step. An int K:
            only the state every K steps (rounded up to a multiple of 16) and a bit per neuron-step; the
            backward pass computes the rest again, to the same bits and gradients (that of sigma: to
            rounding), K steps at a time. A text such as "500 MB": the saved tensors and the scratch memory of
            the backward pass stay below it, with the K that takes least where saving all does not fit. CPU
            only: on other devices everything is saved.
        saved_dtype: torch.bfloat16: y is saved in half the memory, 2.25 bytes per neuron-step in all instead of 4.25;
            the spikes stay as they are, and gradients are those of membranes rounded to 8 bits. None: the dtype of
            the computation. Of no effect in float64, or with checkpoint_every, which saves no y.
        sparse_grad: only synapses that are not zero get a gradient in w_rec, the others 0. Where most of w_rec is
            zero the CPU kernels follow the others alone, whatever is said here.

    Returns:
        spikes (T, B, N) of 0 and 1, the State after the last step, and with trace=True the Traces.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or range; the message
            names the argument, what is expected and what was given.

    Source: Bellec et al., NeurIPS 2018 (arXiv 1803.09574) and the models named by the rows.
    """
    neuron = dict(
        alpha=alpha, theta=theta, rho=rho, beta=beta, kappa=kappa, q=q, p=p, eta=eta, sigma=sigma, R=R, width=width,
        refractory=refractory, delay=delay, dynamics=dynamics, surrogate=surrogate, dampening=dampening, state=state,
        trace=trace, smooth=smooth, checkpoint_every=checkpoint_every, saved_dtype=saved_dtype,
        sparse_grad=sparse_grad,
    )  # fmt: skip
    spikes, *last, trace_v, trace_a, threshold, _, _, _ = _outputs(current, w_rec, neuron)
    if trace:
        return spikes, State(*last), Traces(trace_v, trace_a, threshold)
    return spikes, State(*last)


def _outputs(
    current: Tensor, w_rec: Tensor, neuron: dict[str, Any], projection: _library.Projection | None = None,
    readout: _library.Readout | None = None, spikes: bool = True, as_bits: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What _library.alif returns; neuron: the keyword arguments of alif."""
    dynamics, refractory, delay = neuron.get("dynamics", "lsnn"), neuron.get("refractory", 0), neuron.get("delay", 0)
    row, trace, smooth = named_row(dynamics), neuron.get("trace", False), neuron.get("smooth", False)
    surrogate, dampening = neuron.get("surrogate"), neuron.get("dampening")
    surrogate = row.surrogate if surrogate is None else surrogate
    named_surrogate(surrogate)
    dampening = row.dampening if dampening is None else dampening
    check(current, w_rec, refractory, dampening, projection is not None)
    N, dtype = w_rec.shape[1], torch.promote_types(current.dtype, torch.float32)
    checkpoint = checkpoint_steps(
        neuron.get("checkpoint_every"), current.shape[0], current.shape[1], N, dtype.itemsize
    )
    small_y = small_membranes(neuron.get("saved_dtype"), dtype)
    chosen: dict[str, Any] = {name: neuron.get(name) for name in COEFFICIENTS}
    check_coefficients(chosen, N, current.device)
    coefficients, want = stacked(reference.coefficients(dynamics, **chosen), N, dtype, current.device)
    synapse, delays = delays_of(delay, N, current.device)
    state = whole_state(neuron.get("state"), current.shape[1], N, 1 + delays[-1], dtype, current.device)
    if not _library.available:
        _warn_slow()
        result = reference.alif(
            current, w_rec, **dict(zip(COEFFICIENTS, coefficients, strict=True)), refractory=refractory,
            delay=delay.each if isinstance(delay, Delays) else delay, dynamics=dynamics, surrogate=surrogate,
            dampening=dampening, state=State(*state), trace=True, smooth=smooth,
        )  # fmt: skip
        assert len(result) == 3
        return result[0], *result[1], *result[2], *(current.new_empty(0) for _ in range(3))
    if current.device.type not in _library.DEVICES:
        raise RuntimeError(
            f"current: expected a tensor on {' or '.join(_library.DEVICES)}, for which this build of lsnn_ext has "
            f"kernels, got device {current.device}; move the tensors there, or see lsnn_ext.show_config()"
        )
    out, *others = _library.alif(
        current.to(dtype), w_rec.to(dtype), coefficients, synapse, delays, state, dynamics=dynamics,
        surrogate=surrogate, dampening=float(dampening), refractory=refractory, smooth=smooth, trace=trace, want=want,
        checkpoint=checkpoint if _library.cpu_kernels(current) else 0, projection=projection, readout=readout,
        small_y=small_y, spikes=spikes, as_bits=as_bits, sparse_grad=neuron.get("sparse_grad", False),
    )  # fmt: skip
    return out.to(current.dtype), *others


class Layered(NamedTuple):
    """What layer returns."""

    spikes: Tensor | None  # (T, B, N); None where they were not asked for as numbers
    state: State
    traces: Traces | None  # of trace=True
    readout: Tensor | None  # (T, B, O) of w_out
    p: Tensor | None  # (B, O) the readout after the last step
    packed: PackedSpikes | None = None  # of spikes="bits"


def layer(
    x: Tensor | PackedSpikes, w_in: Tensor, w_rec: Tensor, *, bias: Tensor | None = None, w_out: Tensor | None = None,
    k_out: float = 0.0, p: Tensor | None = None, spikes: bool | Literal["bits"] = True, **neuron: Any,
) -> Layered:  # fmt: skip
    """The input projection, the recurrence and a leaky readout in one call, and in one operator where that is faster.

    On the CPU mostly zero inputs, as spikes are, meet their weights inside the recurrence, event by event: no current
    (T, B, N) is ever written, nor its gradient. The readout runs inside too, so without spikes nothing of the size of
    (T, B, N) is left but what the backward pass needs; see checkpoint_every of alif.

    Args:
        x: (T, B, I) inputs, or spikes of another layer as bits.
        w_in: (N, I) input weights, as of torch.nn.functional.linear.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k.
        bias: (N,) added to the projected inputs.
        w_out: (O, N) weights of a readout p_t = k_out p_{t-1} + (1 - k_out) w_out z_t; None: no readout.
        k_out: its decay over a step, from 0 to 1.
        p: (B, O) the readout before the first step. Default zeros.
        spikes: whether to return the spikes; without w_out they always are. "bits": packed, for the next layer.
            The backward pass keeps these bits anyway, so no memory is left that grows with T * B * N. The CPU kernels
            write and read them; elsewhere they are made of numbers, which saves nothing.
        **neuron: the keyword arguments of alif, but its p.

    Returns:
        Layered: spikes, state, traces, readout, p, packed.

    Raises:
        TypeError, ValueError, RuntimeError: as alif.
    """
    unknown = set(neuron) - _NEURON
    if unknown:
        raise TypeError(f"layer: expected the keyword arguments of alif, got {sorted(unknown)[0]!r}")
    for name in ("alpha", "theta"):
        if name not in neuron:
            raise TypeError(f"{name}: expected a number or a tensor, got none")
    if isinstance(x, PackedSpikes):
        x.check("x")
    elif not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor or PackedSpikes, got {type(x).__name__}")
    if len(x.shape) != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {tuple(x.shape)}")
    (_, B, I), where = x.shape, x.carrier if isinstance(x, PackedSpikes) else x
    check_beside("w_in", w_in, ("N", I), where, "x")
    N = w_in.shape[0]
    check_beside("w_rec", w_rec, (N, N), where, "x")
    if bias is not None:
        check_beside("bias", bias, (N,), where, "x")
    if w_out is not None:
        check_beside("w_out", w_out, ("O", N), where, "x")
    elif p is not None:
        raise ValueError("p: expected w_out beside it, as it is the state of the readout here, got none; the coupling "
                         "p of the equations is an argument of alif alone")
    if w_out is not None and p is not None:
        check_beside("p", p, (B, w_out.shape[0]), where, "x")
    if not 0 <= k_out <= 1:
        raise ValueError(f"k_out: expected a number from 0 to 1, got {k_out}")
    if spikes not in (True, False, "bits"):
        raise ValueError(f"spikes: expected True, False or 'bits', got {spikes!r}")
    x_bits = None
    if isinstance(x, PackedSpikes):
        inside = _inside(x.carrier, w_in, w_rec, bias)
        x, x_bits = (x.carrier, x.bits) if inside else (x.numbers(), None)
        plain = inside
    else:
        plain = _library.reused(x, w_in)
        inside = plain and _inside(x, w_in, w_rec, bias) and _library.mostly_zero(x)
    projection = _library.Projection(w_in, bias, x_bits) if inside else None
    current = x if inside else linear(x, w_in, bias)
    readout = None
    if w_out is not None and plain and w_out.dtype == x.dtype:
        readout = _library.Readout(w_out, w_out.new_zeros(x.shape[1], w_out.shape[0]) if p is None else p, k_out)
    wanted, behind = spikes or w_out is None, w_out is not None and readout is None  # the readout reads the numbers
    as_bits = spikes == "bits" and not behind and _library.plain(x, w_rec) and not neuron.get("smooth")
    out, *last, trace_v, trace_a, threshold, p_all, p_last, bits = _outputs(
        current, w_rec, neuron, projection, readout, bool(wanted and not as_bits or behind), as_bits
    )
    if w_out is not None and readout is None:
        p_all, p_last = leaky_readout(out, w_out, k_out, p)
    packed = None if spikes != "bits" else PackedSpikes(bits, out) if as_bits else pack_spikes(out)
    traces = Traces(trace_v, trace_a, threshold) if neuron.get("trace") else None
    numbers = out if wanted and packed is None else None
    y, y_last = (None, None) if w_out is None else (p_all, p_last)
    return Layered(numbers, State(*last), traces, y, y_last, packed)


def bits_pay(x: Tensor | PackedSpikes, w_rec: Tensor) -> bool:
    """Whether spikes of a layer with inputs x and weights w_rec (N, N) should go to the next layer as bits."""
    return _library.reused(x.carrier if isinstance(x, PackedSpikes) else x, w_rec)


def _inside(x: Tensor, w_in: Tensor, w_rec: Tensor, bias: Tensor | None) -> bool:
    """Whether inputs may meet their weights inside the operator."""
    return _library.plain(x, w_in) and w_rec.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)


_NEURON = {
    *COEFFICIENTS, "refractory", "delay", "dynamics", "surrogate", "dampening", "state", "trace", "smooth",
    "checkpoint_every", "saved_dtype", "sparse_grad",
}  # fmt: skip


def leaky_readout(x: Tensor, w_out: Tensor, k: float, p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A leaky integrator of weighted spikes, p_t = k p_{t-1} + (1 - k) w_out x_t: p (T, B, O) and the last one (B, O).

    x (T, B, N), w_out (O, N), k from 0 to 1, p (B, O) before the first step, default zeros. The result is float32
    where x is float16 or bfloat16.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (T, B, N), got {tuple(x.shape)}")
    check_beside("w_out", w_out, ("O", x.shape[2]), x, "x")
    if p is not None:
        check_beside("p", p, (x.shape[1], w_out.shape[0]), x, "x")
    product, O = linear(x.contiguous(), w_out.to(x.dtype)), w_out.shape[0]
    neuron: dict[str, Any] = dict(
        alpha=k, kappa=1 - k, theta=_NEVER, R=0.0, dynamics="snntorch_sub", surrogate="triangle"
    )
    if w_out.dtype == x.dtype:
        found = integrated(product, p, {**neuron, "refractory": 0, "delay": 0, "dampening": None})
        if found is not None:
            return found
    carried = None
    if p is not None:
        a, i, r, z = (torch.zeros_like(p) for _ in range(4))  # one given twice stops torch.compile
        carried = State(p, a, i, r, z.unsqueeze(0))
    result = alif(product, product.new_zeros(O, O, dtype=w_out.dtype), **neuron, state=carried, trace=True)
    assert len(result) == 3
    return result[2].v, result[1].v


def _warn_slow() -> None:
    message = f"lsnn_ext: the compiled part is missing ({_library.load_error}); using the slow reference"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
