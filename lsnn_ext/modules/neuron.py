"""The constants of a layer: defaults, conversions, and checks at construction and in calls."""
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._core.arguments import is_readable
from .._core.coefficients import Coefficient
from ..models import Rate, find_defaults, find_model

Kind: TypeAlias = Literal["ALIF", "LIF", "LSNN"]

class Range(NamedTuple):
    """The interval of a constant."""

    low: float = -math.inf
    high: float = math.inf
    ends: bool = False  # whether low and high belong to it

    @property
    def words(self) -> str:
        """The interval in words, for messages."""
        if self.ends:
            return f"numbers from {self.low:g} to {self.high:g}"
        return "finite numbers" if self.low < 0 else f"numbers > {self.low:g}"

    def contains(self, low: Any, high: Any) -> Any:
        """Whether numbers from low to high are in it, of tensors each; False for NaN."""
        if self.ends:
            return (self.low <= low) & (high <= self.high)
        return (self.low < low) & (high < self.high)


_ANY, _POSITIVE, _SHARE = Range(), Range(0.0), Range(0.0, 1.0, True)
# All constants of a layer. beta may be negative, as in the paper's ELIF.
RANGES: dict[str, Range] = {
    "tau_mem": _POSITIVE, "tau_adapt": _POSITIVE, "beta": _ANY, "threshold": _POSITIVE,
    "alpha": _SHARE, "rho": _SHARE, "kappa": _ANY, "q": _ANY, "p": _ANY, "eta": _ANY,
    "sigma": _SHARE, "width": _POSITIVE, "R": _ANY,
}
# The decay that takes the place of a time constant.
DECAYS = {"tau_mem": "alpha", "tau_adapt": "rho"}
# Arguments that come before the options.
AS_LSTM = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
_ALIASES = {"theta": "threshold", "thr": "threshold", "v_threshold": "threshold", "tau": "tau_mem",
            "tau_m": "tau_mem", "tau_a": "tau_adapt", "tau_adp": "tau_adapt", "tau_syn": "sigma"}


_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *ms")
_SHORTEST = 0.05  # a dt below is taken for seconds


def count_steps(name: str, value: Any, dt: float) -> Any:
    """The steps of a time such as "5 ms"; anything but a string is returned unchanged. Raises
    ValueError for other strings, and for a time that is not a whole number of steps."""
    if not isinstance(value, str):
        return value
    found = _TIME.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{name}: expected steps, or a time such as '5 ms', got {value!r}")
    if dt < _SHORTEST:
        raise ValueError(f"{name}: expected a number of steps with dt={dt:g}, which seems to be in "
                         f"seconds, got {value!r}")
    exact = float(found[1]) / dt
    if abs(exact - round(exact)) > 1e-6 * max(1.0, exact):
        raise ValueError(f"{name}: expected whole steps of dt={dt:g}, got {value!r}, which is "
                         f"{exact:.6g}; pass a number of steps")
    return round(exact)


def check_names(kind: str, names: Iterable[str], options: Iterable[str]) -> None:
    """Raises TypeError for a keyword that is not an option of this kind of layer."""
    options = tuple(options)
    for name in names:
        if name in options or name in AS_LSTM:
            continue
        option = _ALIASES.get(name)
        near = [option] if option else get_close_matches(name, [*AS_LSTM, *options], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if name == "beta":
            hint = f"; a {kind} does not adapt, and beta of snnTorch, the decay, is alpha"
        raise TypeError(f"{name}: expected a keyword argument of {kind}, got an unknown name{hint}")


def complete_constants(kind: Kind, dynamics: str, options: dict[str, Any],
                       dt: float) -> dict[str, Any]:
    """The constants of a layer with this model: the options, and the model's defaults for None.

    Constants with neither are omitted: functional.alif has a rule for them. Raises TypeError if a
    required constant has no default, ValueError for both a time constant and its decay.
    """
    defaults, origin = find_defaults(dynamics, kind), find_model(dynamics).origin
    given = {name: value for name, value in options.items() if value is not None}
    for tau, decay in DECAYS.items():
        if tau in given and decay in given:
            raise ValueError(f"{decay}: expected {tau} or {decay} = exp(-dt / {tau}), got both")
        if tau in given:
            defaults.pop(decay, None)
        if decay in given:
            defaults.pop(tau, None)
    missing = [name for name, value in defaults.items()
               if isinstance(value, str) and name not in given]
    if missing:
        pairs = {name: f"{tau} or {decay}" for tau, decay in DECAYS.items()
                 for name in (tau, decay)}
        names = ", ".join(pairs.get(name, name) for name in missing)
        values = "; ".join(f"{name}: {defaults[name]}" for name in missing)
        beyond = f"; beyond that it has {origin.beyond}" if origin.beyond else ""
        raise TypeError(f"{names}: expected a value with dynamics={dynamics!r}, which has no "
                        f"default, got None; {origin.name} has {values}{beyond}")
    return {name: value.decay(dt) if isinstance(value, Rate) else value
            for name, value in {**defaults, **given}.items() if value is not None}


def make_constant(name: str, value: Coefficient, shapes: Iterable[tuple[int, ...]],
                  dtype: torch.dtype) -> Tensor:
    """A copy of the value on the CPU; a meta tensor stays on meta. Raises TypeError or ValueError
    for a wrong kind or shape, and for a number that is out of range in dtype.

    A number becomes float64, so that converting a layer to another dtype rounds only once.
    """
    if isinstance(value, bool) or isinstance(value, str) or value is None:
        raise TypeError(f"{name}: expected a number or a tensor, got {value!r}")
    if not isinstance(value, Tensor):
        copy = torch.as_tensor(value, dtype=torch.float64, device="cpu").clone()
    else:
        copy = value.detach().clone() if value.is_meta else value.detach().to("cpu", copy=True)
    if copy.dtype == torch.bool or copy.dtype.is_complex:
        raise TypeError(f"{name}: expected real numbers, got {copy.dtype}")
    if copy.shape not in tuple(shapes):
        sizes = " or ".join(str(shape) for shape in shapes if shape)
        raise ValueError(f"{name}: expected a number or shape {sizes}, got shape "
                         f"{tuple(copy.shape)}")
    if not copy.is_meta:
        data = copy.to(dtype)
        if not bool(data.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got "
                             f"{data[~data.isfinite()][0].item()}")
        low, high = (float(bound) for bound in data.aminmax())
        if not RANGES[name].contains(low, high):
            bad = high if RANGES[name].contains(low, low) else low
            # a decay > 1 is often a time constant
            tau = next((tau for tau, decay in DECAYS.items() if decay == name and bad > 1), None)
            hint = "" if tau is None else (
                f"; {name} is a decay exp(-dt / tau) per step: for a time constant pass "
                f"{tau}={bad:.6g}")
            raise ValueError(f"{name}: expected {RANGES[name].words}, got {bad:.6g}{hint}")
    return copy


def check_unit(name: str, tau: float, dt: float, remedy: str) -> None:
    """Raises ValueError for a time constant so small that its unit must be wrong."""
    if tau < dt / 10:
        raise ValueError(
            f"{name}: expected at least a tenth of a step, which is dt={dt:g}, got {tau:.6g}; both "
            f"are in one unit, milliseconds by default: for seconds give dt in seconds too; "
            f"{remedy}")


def check_units(constants: Mapping[str, Tensor], dt: float) -> None:
    """Raises ValueError for a time constant below a tenth of a step, which is likely in another
    unit; warns below a step, and above 10,000 steps for the membrane."""
    for name in ("tau_mem", "tau_adapt"):
        tau = constants.get(name)
        if tau is None or tau.is_meta:
            continue
        low, high = (float(bound) for bound in tau.aminmax())
        check_unit(name, low, dt, f"for no memory at all give {DECAYS[name]}=0.0")
        if low < dt:
            warnings.warn(f"{name}: expected at least a step, dt={dt:g}, got {low:.6g}; are both "
                          f"in one unit?", stacklevel=5)
        if name == "tau_mem" and high > 1e4 * dt:
            warnings.warn(f"{name}: expected at most 10,000 steps of dt={dt:g}, got {high:.6g}; "
                          f"are both in one unit?", stacklevel=5)


# Gain of the adaptation on itself within a step, for a neuron at its threshold: that of the paper's
# network with beta = 1.8 at 50 steps. Above it, gradients grow if neurons stay near the threshold.
_LARGEST_GAIN = 1.07


def warn_of_explosion(constants: Mapping[str, Tensor], dynamics: str, dt: float, height: float,
                      ) -> None:
    """Warns if adaptation is strong and fast enough for gradients to grow from step to step.

    a raises the threshold, which suppresses the spike that raises a: a step multiplies dL/da by
    rho - q beta height / s, with the height of the surrogate.
    """
    model = find_model(dynamics)
    if {"adapt", "thr"} & set(model.detach) or model.drive == "above":
        return
    if any(value.is_meta for value in constants.values()):
        return
    zero = torch.zeros((), device="cpu")
    beta, rho = constants.get("beta", zero), constants.get("rho", zero)
    if "tau_adapt" in constants:
        rho = torch.exp(-dt / constants["tau_adapt"])
    q = constants.get("q", 1 - rho if model.q == "1-rho" else zero + 1)
    theta = constants["threshold"]
    width = constants.get("width", theta if model.width is None else zero + model.width)
    gain = q * beta * height / (width * theta if model.scale == "A" else width)
    if float(gain.max()) > _LARGEST_GAIN:
        tau = constants.get("tau_adapt")
        of = "" if tau is None else f" and tau_adapt={float(tau.min()) / dt:.6g} steps"
        scale = "(width theta)" if model.scale == "A" else "width"
        warnings.warn(
            f"beta: expected q beta dampening psi(0) / {scale} <= {_LARGEST_GAIN}, got "
            f"{float(gain.max()):.3g} with beta={float(beta.max()):.6g}{of}; gradients can explode "
            f"within a few hundred steps, by up to this factor a step, if neurons stay near their "
            f"threshold: use a longer tau_adapt, a smaller beta or dampening, or a wider surrogate",
            stacklevel=5)


def format_value(value: Any) -> str:
    """The text of a value in a repr; of a tensor with axes or on meta, its shape."""
    if isinstance(value, Tensor):
        is_number = not value.dim() and not value.is_meta
        return repr(round_number(value)) if is_number else f"<{tuple(value.shape)}>"
    return repr(value)


def round_number(value: Tensor) -> float:
    """The number of a tensor () to 6 digits, those of a float32."""
    return float(f"{value.item():.6g}")


def write_constant(name: str, target: Tensor, value: Tensor) -> None:
    """Writes a constant into a parameter or buffer of any device and dtype. Raises RuntimeError for
    a meta tensor, unless the target is one."""
    if value.is_meta and not target.is_meta:
        raise RuntimeError(f"{name}: expected the numbers of the constructor, got a meta tensor; "
                           f"pass it on the CPU, also for a layer on meta")
    if value.dim():
        target.copy_(value)
    elif not value.is_meta:
        target.fill_(value.item())


def check_range(kind: str, name: str, value: Tensor, allowed: Range, is_learned: bool) -> None:
    """Raises ValueError if a constant in use is out of range; no check unless is_readable.

    A constant learned as "plain" can leave its range: an optimizer step moves a small threshold or
    time constant below zero, and the next call would return NaN.
    """
    if not is_readable(value):
        return
    value = value.detach()
    low, high = (value, value) if value.dim() == 0 else value.aminmax()
    if allowed.contains(float(low), float(high)):
        return
    inside = allowed.contains(value, value)
    bad = int((~inside | ~value.isfinite()).reshape(-1).nonzero()[0])
    where = f" at neuron {bad}" if value.dim() else ""
    words = allowed.words if allowed.words.startswith("finite") else f"finite {allowed.words}"
    remedy = (
        f"; an optimizer step or a loss that is not finite moved a learned constant out of its "
        f"range: restore an earlier state; learn it unbounded, the default of learn=, instead of "
        f"as \"plain\", clamp {name} after each step under torch.no_grad(), or use a smaller "
        f"learning rate"
    ) if is_learned else ""
    raise ValueError(f"{name}: expected {words} in {kind}, got "
                     f"{float(value.reshape(-1)[bad]):.6g}{where}{remedy}")
