"""Functions of tensors: the recurrence over a whole sequence, and the projection in front of it."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _library, reference
from .reference import COEFFICIENTS, Coefficient, State, Traces, named_row, named_surrogate

__all__ = ["Delays", "State", "Traces", "alif", "linear"]

linear = _library.linear

# A state saved with torch.save can be loaded again with weights_only=True, the default.
torch.serialization.add_safe_globals([State, Traces])


class Delays(NamedTuple):
    """Delays d_jk (N, N) with their distinct values in ascending order, so that no call has to look for them."""

    each: Tensor
    distinct: tuple[int, ...]

    @classmethod
    def of(cls, each: Tensor) -> "Delays":
        """Looks for the distinct values; integers >= 0 are expected."""
        if not isinstance(each, Tensor):
            raise TypeError(f"delay: expected an int or an integer tensor (N, N), got {type(each).__name__}")
        if each.dtype.is_floating_point or each.dtype.is_complex or each.dtype == torch.bool:
            raise TypeError(f"delay: expected an integer tensor, got {each.dtype}")
        distinct = tuple(int(d) for d in each.unique().tolist())
        if distinct and distinct[0] < 0:
            raise ValueError(f"delay: expected extra steps >= 0 everywhere, got {distinct[0]}")
        return cls(each, distinct)


def _delays(delay: int | Tensor | Delays, N: int, device: torch.device) -> tuple[Tensor | None, list[int]]:
    """The delay of each synapse, or None where all are alike, and the distinct delays in ascending order."""
    if isinstance(delay, int) and not isinstance(delay, bool):
        if delay < 0:
            raise ValueError(f"delay: expected extra steps >= 0, got {delay}")
        return None, [delay]
    given = delay if isinstance(delay, Delays) else Delays.of(delay)  # type: ignore[arg-type]  # a bool is refused there
    if given.each.shape != (N, N):
        raise ValueError(f"delay: expected shape ({N}, {N}), got {tuple(given.each.shape)}")
    return (given.each.to(device, torch.int64) if len(given.distinct) > 1 else None), list(given.distinct)


def _check_coefficients(given: dict[str, Coefficient | None], N: int, device: torch.device) -> None:
    """Kinds, shapes, devices; ranges of numbers where the operator does not check them. None: left to the row."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.shape not in ((), (1,), (N,)):
                raise ValueError(f"{name}: expected a number or shape ({N},), got {tuple(value.shape)}")
            if value.dtype.is_complex:
                raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
            if value.device != device and (value.dim() > 0 or value.is_meta):
                raise ValueError(f"{name}: expected device {device} as current, got {value.device}")
        elif isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
        elif value is not None and device.type != "cpu":  # the operator reads numbers on the CPU only
            low, high = {"alpha": (0, 1), "rho": (0, 1), "sigma": (0, 1), "width": (5e-324, math.inf)}.get(
                name, (-math.inf, math.inf))
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name}: expected a finite number from {low} to {high}, got {value}")
    for name in ("alpha", "theta"):
        if given[name] is None:
            raise TypeError(f"{name}: expected a number or a tensor, got None")


def _stacked(given: dict[str, Coefficient], N: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int]:
    """All coefficients as one tensor (11,N), and the bits of those whose gradient is asked for."""
    want = sum(1 << k for k, value in enumerate(given.values()) if isinstance(value, Tensor) and value.requires_grad)
    if device.type == "cpu" and not any(isinstance(value, Tensor) for value in given.values()):
        return torch.tensor(list(given.values()), dtype=dtype)[:, None].expand(-1, N), 0

    def row(value: Coefficient) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(device, dtype).expand(N)
        # Filled on the device: a copy from the host would wait for it, and could not be captured in a graph.
        return torch.full((N,), value, dtype=dtype, device=device)

    return torch.stack([row(value) for value in given.values()]), want


def _state(state: State | None, B: int, N: int, D: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    if state is None:
        shapes = [(B, N)] * 4 + [(D, B, N)]  # five tensors: one given twice stops torch.compile
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape in shapes)
    if not isinstance(state, tuple) or len(state) != len(State._fields):
        wanted_state = f"a State of {len(State._fields)} tensors {State._fields}"
        raise TypeError(f"state: expected {wanted_state}, got {type(state).__name__}")
    for name, value in zip(State._fields, state, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"state.{name}: expected a tensor, got {type(value).__name__}")
        wanted = (D, B, N) if name == "z" else (B, N)
        if name == "z":
            enough = value.dim() == 3 and value.shape[0] >= D and value.shape[1:] == (B, N)
        else:
            enough = value.shape == wanted
        if not enough:
            more = " or more past steps" if name == "z" else ""
            raise ValueError(f"state.{name}: expected shape {wanted}{more}, got {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"state.{name}: expected device {device} as current, got {value.device}")
        if value.dtype != dtype:
            raise TypeError(f"state.{name}: expected {dtype}, got {value.dtype}")
    v, a, i, r, z = state
    return v, a, i, r, z[:D]


def _check(current: Tensor, w_rec: Tensor, refractory: int, checkpoint_every: int | None, dampening: float) -> None:
    for name, value in (("current", current), ("w_rec", w_rec)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating point dtype, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
    if current.dim() != 3:
        raise ValueError(f"current: expected shape (T, B, N), got {tuple(current.shape)}")
    N = current.shape[2]
    if w_rec.shape != (N, N):
        raise ValueError(f"w_rec: expected shape ({N}, {N}) for a current of {N} neurons, got {tuple(w_rec.shape)}")
    if N < 1:
        raise ValueError("current: expected one neuron or more, got shape " + str(tuple(current.shape)))
    dtype = torch.promote_types(current.dtype, torch.float32)
    if torch.promote_types(w_rec.dtype, torch.float32) != dtype:
        raise TypeError(f"w_rec: expected {dtype} or less for a current of {current.dtype}, got {w_rec.dtype}")
    if w_rec.device != current.device:
        raise ValueError(f"w_rec: expected device {current.device} as current, got {w_rec.device}")
    if isinstance(refractory, bool) or not isinstance(refractory, int):
        raise TypeError(f"refractory: expected an int, got {type(refractory).__name__}")
    if not 0 <= refractory < 1 << 24:
        raise ValueError(f"refractory: expected steps >= 0 and < 2^24, got {refractory}")
    whole = isinstance(checkpoint_every, int) and not isinstance(checkpoint_every, bool)
    if checkpoint_every is not None and (not whole or checkpoint_every < 1):
        raise ValueError(f"checkpoint_every: expected None or an int >= 1, got {checkpoint_every!r}")
    if isinstance(dampening, bool) or not isinstance(dampening, int | float):
        raise TypeError(f"dampening: expected a number, got {type(dampening).__name__}")
    if not (math.isfinite(dampening) and dampening >= 0):
        raise ValueError(f"dampening: expected a finite number >= 0, got {dampening}")


def alif(
    current: Tensor, w_rec: Tensor, *, alpha: Coefficient, theta: Coefficient, rho: Coefficient | None = None,
    beta: Coefficient | None = None, kappa: Coefficient | None = None, q: Coefficient | None = None,
    p: Coefficient | None = None, eta: Coefficient | None = None, sigma: Coefficient | None = None,
    R: Coefficient | None = None, refractory: int = 0, delay: int | Tensor | Delays = 0, dynamics: str = "lsnn",
    surrogate: str | None = None, dampening: float | None = None, width: Coefficient | None = None,
    state: State | None = None, trace: bool = False, smooth: bool = False, checkpoint_every: int | None = None,
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
        checkpoint_every: accepted for the same call everywhere; memory is saved by it in a later version only.

    Returns:
        spikes (T, B, N) of 0 and 1, the State after the last step, and with trace=True the Traces.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or range; the message
            names the argument, what is expected and what was given.

    Source: Bellec et al., NeurIPS 2018 (arXiv 1803.09574) and the models named by the rows.
    """
    row = named_row(dynamics)
    surrogate = row.surrogate if surrogate is None else surrogate
    named_surrogate(surrogate)
    dampening = row.dampening if dampening is None else dampening
    _check(current, w_rec, refractory, checkpoint_every, dampening)
    chosen: dict[str, Any] = {
        "alpha": alpha, "theta": theta, "rho": rho, "beta": beta, "kappa": kappa, "q": q, "p": p, "eta": eta,
        "sigma": sigma, "width": width, "R": R,
    }  # fmt: skip
    N, dtype = current.shape[2], torch.promote_types(current.dtype, torch.float32)
    _check_coefficients(chosen, N, current.device)
    coefficients, want = _stacked(reference.coefficients(dynamics, **chosen), N, dtype, current.device)
    synapse, delays = _delays(delay, N, current.device)
    full_state = _state(state, current.shape[1], N, 1 + delays[-1], dtype, current.device)
    if not _library.available:
        _warn_slow()
        each = delay.each if isinstance(delay, Delays) else delay
        return reference.alif(
            current, w_rec, **dict(zip(COEFFICIENTS, coefficients, strict=True)), refractory=refractory, delay=each,
            dynamics=dynamics, surrogate=surrogate, dampening=dampening, state=State(*full_state), trace=trace,
            smooth=smooth,
        )  # fmt: skip
    if current.device.type not in _library.DEVICES:
        raise RuntimeError(
            f"current: expected a tensor on {' or '.join(_library.DEVICES)}, for which this build of lsnn_ext has "
            f"kernels, got device {current.device}; move the tensors there, or see lsnn_ext.show_config()"
        )
    spikes, *last, trace_v, trace_a, threshold = _library.alif(
        current.to(dtype), w_rec.to(dtype), coefficients, synapse, delays, full_state, dynamics=dynamics,
        surrogate=surrogate, dampening=float(dampening), refractory=refractory, smooth=smooth, trace=trace, want=want,
    )  # fmt: skip
    spikes = spikes.to(current.dtype)
    if trace:
        return spikes, State(*last), Traces(trace_v, trace_a, threshold)
    return spikes, State(*last)


def _warn_slow() -> None:
    message = f"lsnn_ext: the compiled part is missing ({_library.load_error}); using the slow reference"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
