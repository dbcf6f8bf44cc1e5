"""The constants of a layer: what stands for those left out, and checks, when they are given and
when they are used."""
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._core.arguments import readable
from .._core.coefficients import Coefficient
from ..models import Origin, Rate, default_values, named_model

Kind: TypeAlias = Literal["ALIF", "LIF", "LSNN"]

# nn.Linear takes bias at the third place
_BY_NAME = "; what is True or False, as bias is, is given by its name"


class Range(NamedTuple):
    """Where the numbers of a constant may lie."""

    low: float = -math.inf
    high: float = math.inf
    ends: bool = False  # whether low and high are among them

    @property
    def words(self) -> str:
        """As a message says it."""
        if self.ends:
            return f"numbers from {self.low:g} to {self.high:g}"
        return "finite numbers" if self.low < 0 else f"numbers > {self.low:g}"

    def holds(self, low: float, high: float) -> bool:
        """Whether these are the least and the greatest of finite numbers of it; of NaN never."""
        if self.ends:
            return self.low <= low and high <= self.high
        return self.low < low and high < self.high


_ANY, _POSITIVE, _SHARE = Range(), Range(0.0), Range(0.0, 1.0, True)
# All that a module can be told of its neurons; beta may be negative, as in the paper's ELIF.
RANGES: dict[str, Range] = {
    "tau_mem": _POSITIVE, "tau_adapt": _POSITIVE, "beta": _ANY, "threshold": _POSITIVE,
    "alpha": _SHARE, "rho": _SHARE, "kappa": _ANY, "q": _ANY, "p": _ANY, "eta": _ANY,
    "sigma": _SHARE, "width": _POSITIVE, "R": _ANY,
}
# The decay that takes the place of a time constant.
DECAYS = {"tau_mem": "alpha", "tau_adapt": "rho"}
# Arguments that come before the options.
_AS_LSTM = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
_MEANT = {"theta": "threshold", "thr": "threshold", "v_threshold": "threshold", "tau": "tau_mem",
          "tau_m": "tau_mem", "tau_a": "tau_adapt", "tau_adp": "tau_adapt", "tau_syn": "sigma"}


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raises ValueError for all but whole numbers from least on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        hint = _BY_NAME if isinstance(value, bool) else ""
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}{hint}")


_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *ms")
_SHORTEST = 0.05  # a dt below is taken for seconds


def steps(name: str, value: Any, dt: float) -> Any:
    """The steps of a time such as "5 ms"; what is no string is given back. Raises ValueError for
    other words, and for a time that is no whole number of steps."""
    if not isinstance(value, str):
        return value
    found = _TIME.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{name}: expected steps, or a time such as '5 ms', got {value!r}")
    if dt < _SHORTEST:
        raise ValueError(f"{name}: expected steps where dt={dt:g} seems to be in seconds, got "
                         f"{value!r}")
    exact = float(found[1]) / dt
    if abs(exact - round(exact)) > 1e-6 * max(1.0, exact):
        raise ValueError(f"{name}: expected whole steps of dt={dt:g}, got {value!r}, which is "
                         f"{exact:.6g}; give steps in its place")
    return round(exact)


def check_positive(name: str, value: Any) -> None:
    """Raises TypeError for what is no number, ValueError for one that is not > 0."""
    if isinstance(value, bool) or not isinstance(value, Real):  # a number of numpy's is a Real too
        hint = _BY_NAME if isinstance(value, bool) else ""
        raise TypeError(f"{name}: expected a number > 0, got {value!r}{hint}")
    if not float(value) > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError for all but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_names(kind: str, given: Iterable[str], options: Iterable[str]) -> None:
    """Raises TypeError for a keyword that is no option of this kind of layer."""
    options = tuple(options)
    for name in given:
        if name in options or name in _AS_LSTM:
            continue
        meant = _MEANT.get(name)
        near = [meant] if meant else get_close_matches(name, [*_AS_LSTM, *options], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"{name}: expected a keyword argument of {kind}, got an unknown name{hint}")


def _describe_origin(origin: Origin, names: list[str], defaults: Mapping[str, Any]) -> str:
    """A sentence on what the makers of a model have in place of these arguments."""
    values = "; ".join(f"{name}: {defaults[name]}" for name in names)
    beyond = f"; beyond that it has {origin.beyond}" if origin.beyond else ""
    return f"{origin.whose} has {values}{beyond}"


def complete(kind: Kind, dynamics: str, given: dict[str, Any], dt: float) -> dict[str, Any]:
    """The constants of a layer with this model: given, and its makers' defaults for what is None.

    Names without a value are left out: functional.alif has a rule for them. Raises TypeError for
    what has no default, ValueError for a time constant and its decay together.
    """
    defaults, origin = default_values(dynamics, kind), named_model(dynamics).origin
    given = {name: value for name, value in given.items() if value is not None}
    for tau, decay in DECAYS.items():
        if tau in given and decay in given:
            raise ValueError(f"{decay}: expected {tau} or {decay} = exp(-dt / {tau}), got both")
        if tau in given:
            defaults.pop(decay, None)
        if decay in given:
            defaults.pop(tau, None)
    found = {**defaults, **given}
    missing = [name for name, value in defaults.items()
               if isinstance(value, str) and name not in given]
    if missing:
        pairs = {name: f"{tau} or {decay}" for tau, decay in DECAYS.items()
                 for name in (tau, decay)}
        names = [pairs.get(name, name) for name in missing]
        raise TypeError(f"{', '.join(names)}: expected to be given with dynamics={dynamics!r}, "
                        f"which has no default for it, got none; "
                        f"{_describe_origin(origin, missing, defaults)}")
    return {name: value.decay(dt) if isinstance(value, Rate) else value
            for name, value in found.items() if value is not None}


def constant(name: str, value: Coefficient, shapes: Iterable[tuple[int, ...]],
             dtype: torch.dtype) -> Tensor:
    """The value on the CPU, apart from the caller's; checked as it will be in dtype. A meta tensor
    has none and stays.

    Numbers stay in float64, so that a layer which is made anew in another dtype rounds once.
    """
    if isinstance(value, bool) or isinstance(value, str) or value is None:
        raise TypeError(f"{name}: expected a number or a tensor, got {value!r}")
    if not isinstance(value, Tensor):
        kept = torch.as_tensor(value, dtype=torch.float64, device="cpu").clone()
    else:
        kept = value.detach().clone() if value.is_meta else value.detach().to("cpu", copy=True)
    if kept.dtype == torch.bool or kept.dtype.is_complex:
        raise TypeError(f"{name}: expected real numbers, got {kept.dtype}")
    if kept.shape not in tuple(shapes):
        wanted = " or ".join(str(shape) for shape in shapes if shape)
        raise ValueError(f"{name}: expected a number or shape {wanted}, got shape "
                         f"{tuple(kept.shape)}")
    if not kept.is_meta:
        data = kept.to(dtype)
        if not bool(data.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got "
                             f"{data[~data.isfinite()][0].item()}")
        low, high = (float(bound) for bound in data.aminmax())
        if not RANGES[name].holds(low, high):
            bad = high if RANGES[name].holds(low, low) else low
            raise ValueError(f"{name}: expected {RANGES[name].words}, got {bad:.6g}"
                             f"{_decay_hint(name, bad)}")
    return kept


def _decay_hint(name: str, value: float) -> str:
    """What is meant where a decay is no share."""
    for tau, decay in DECAYS.items():
        if name == decay and value > 1:
            return (f"; {decay} is a decay exp(-dt / tau) over a step: for a time constant give "
                    f"{tau}={value:.6g}")
    return ""


SHORTEST = 10  # a step may have so many of the shortest time constant that is taken


def check_units(constants: Mapping[str, Tensor], dt: float) -> None:
    """Raises ValueError for a time constant so far below a step that it must be in another unit;
    warns of one that is far above."""
    for name in ("tau_mem", "tau_adapt"):
        tau = constants.get(name)
        if tau is None or tau.is_meta:
            continue
        low, high = (float(bound) for bound in tau.aminmax())
        if low < dt / SHORTEST:
            raise ValueError(
                f"{name}: expected at least a tenth of a step, which is dt={dt:g}, got {low:.6g}; "
                f"both are in one unit, milliseconds by default: for seconds give dt in seconds "
                f"too; for no memory at all give {DECAYS[name]}=0.0"
            )
        if low < dt:
            warnings.warn(f"{name}: {low:.6g} is less than a step of dt={dt:g}; are both in one "
                          f"unit?", stacklevel=5)
        if name == "tau_mem" and high > 1e4 * dt:
            warnings.warn(f"{name}: {high:.6g} is {high / dt:.6g} steps of dt={dt:g}; are both in "
                          f"one unit?", stacklevel=5)


# Of the adaptation on itself within a step, for a neuron at its threshold: beta = 1.8 at 50 steps
# of the paper's network. From about there on gradients grow where neurons stay near the threshold.
_LARGEST_GAIN = 1.07


def warn_of_explosion(constants: Mapping[str, Tensor], dynamics: str, dt: float, height: float,
                      ) -> None:
    """Warns of an adaptation that is so strong and so fast that gradients grow from step to step.

    height: of the surrogate. a of one step raises the threshold, which holds back the spike that
    raises a: dL/da is multiplied by rho - q beta height / s.
    """
    model = named_model(dynamics)
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
        of = "" if tau is None else f"tau_adapt={float(tau.min()) / dt:.6g} steps, "
        warnings.warn(
            f"beta: {of}beta={float(beta.max()):.6g}: an adaptation that is so strong and so "
            f"fast lets gradients explode over some hundred steps where neurons stay near their "
            f"threshold, by up to {float(gain.max()):.3g} a step; expected at most "
            f"{_LARGEST_GAIN} = q beta dampening psi(0) / width: a longer tau_adapt, a smaller "
            f"beta or dampening, or a wider surrogate", stacklevel=5)


def shown(value: Any) -> str:
    """A value within a line of repr: the shape of a tensor, if it is more than a number."""
    if isinstance(value, Tensor):
        return f"<{tuple(value.shape)}>" if value.dim() or value.is_meta else repr(rounded(value))
    return repr(value)


def rounded(value: Tensor) -> float:
    """The number of a tensor () to 6 digits, which are those that a float32 was given."""
    return float(f"{value.item():.6g}")


def put(name: str, target: Tensor, value: Tensor) -> None:
    """Writes a constant into a parameter or buffer, of whatever device and dtype."""
    if value.is_meta and not target.is_meta:
        raise RuntimeError(f"{name}: expected the numbers that the layer was made with, got a meta "
                           f"tensor, which has "
                           "none; make it on the CPU, also where the layer is made on meta")
    if value.dim():
        target.copy_(value)
    elif not value.is_meta:
        target.fill_(value.item())


def hold_range(kind: str, name: str, value: Tensor, of: Range, is_learned: bool) -> None:
    """Raises ValueError where a constant in use has left its range; looks on the CPU only, and
    where nobody compiles.

    Training does that where it learns the number itself: a step of the optimizer carries a small
    threshold or time constant through zero, and the next pass would make everything NaN.
    """
    if not readable(value):
        return
    value = value.detach()
    low, high = (value, value) if value.dim() == 0 else value.aminmax()
    if of.holds(float(low), float(high)):
        return
    inside = (value >= of.low) & (value <= of.high) if of.ends else (
        (value > of.low) & (value < of.high))
    bad = int((~inside | ~value.isfinite()).reshape(-1).nonzero()[0])
    where = f" at neuron {bad}" if value.dim() else ""
    wanted = of.words if of.words.startswith("finite") else f"finite {of.words}"
    remedy = (
        f"; the last step of an optimizer, or the loss, has carried what this {kind} learns out of "
        f"its range: go back to a state before it, and learn it without bounds, which learn= does "
        f"for all that has a range unless \"plain\" is asked for; or clamp {name} after each step "
        f"(under torch.no_grad()), or give it a smaller learning rate"
    ) if is_learned else ""
    raise ValueError(f"{name}: expected {wanted} in {kind}, got "
                     f"{float(value.reshape(-1)[bad]):.6g}{where}{remedy}")
