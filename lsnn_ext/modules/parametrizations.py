"""Parametrizations of learned constants for torch.nn.utils.parametrize, so no step of an optimizer
leaves their range; and a base class of modules that have some."""
import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..models import find_model
from .checks import read_names
from .neuron import RANGES, Kind


class Log(nn.Module):
    """value = exp(original), for values > 0: time constants, thresholds, widths.

    A step of the optimizer changes the value by a factor: with Adam at lr=0.01 by about 1 %.
    """

    def forward(self, original: Tensor) -> Tensor:
        return original.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()


class Logit(nn.Module):
    """value = 1 / (1 + exp(-original)), for values between 0 and 1: decays over a step."""

    def forward(self, original: Tensor) -> Tensor:
        return torch.sigmoid(original)

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.logit(value)


class Clamp(nn.Module):
    """value = original, clamped to [low, high], with the gradient of torch.clamp: 0 outside.

    Args:
        low, high: numbers, low < high.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        for name, value in (("low", low), ("high", high)):
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise TypeError(f"{name}: expected a number, got {value!r}")
        if not low < high:
            raise ValueError(f"high: expected a number > low = {low}, got {high}")
        self.low, self.high = float(low), float(high)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def forward(self, original: Tensor) -> Tensor:
        return original.clamp(self.low, self.high)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def extra_repr(self) -> str:
        return f"{self.low:g}, {self.high:g}"


# The default parametrizations: constants with a range are learned without bounds.
_DEFAULTS = {"tau_mem": "log", "tau_adapt": "log", "threshold": "log", "width": "log",
         "alpha": "logit", "rho": "logit", "sigma": "logit"}
_WORDS = ("log", "logit", "clamp", "plain")
_SIMPLE: dict[str, Any] = {"plain": type(None), "log": Log, "logit": Logit}


def make_forms(learn: Any, names: Iterable[str], kind: Kind, dynamics: str,
               dt: float) -> dict[str, nn.Module | None]:
    """The parametrization of each learned constant; None: none. names: constants that may learn.
    Raises TypeError or ValueError naming learn."""
    names = tuple(names)
    expected = (f"some of {', '.join(names)}, as in learn=(\"tau_mem\",), or a dict from them to "
                f"\"log\", \"logit\", \"clamp\", \"plain\" or a parametrization")
    found: dict[str, nn.Module | None] = {}
    for name, form in read_names("learn", learn, expected).items():
        if name not in names:
            raise ValueError(f"learn: expected {expected}, got {name!r}{_hint(name, kind)}")
        found[name] = _make_form(name, form, dynamics, dt)
    return found


def _hint(name: Any, kind: str) -> str:
    if name not in RANGES:
        return ""
    if kind == "LIF" and name in ("beta", "tau_adapt", "rho", "q", "p", "eta"):
        return "; a LIF does not adapt"
    return f"; a coefficient needs a value to learn from: {name}="


def _make_form(name: str, form: Any, dynamics: str, dt: float) -> nn.Module | None:
    if isinstance(form, nn.Module):
        if not hasattr(form, "right_inverse"):
            raise TypeError(f"learn: expected a parametrization with right_inverse for {name}, got "
                            f"{type(form).__name__}")
        return form
    if form is None:
        form = _DEFAULTS.get(name, "plain")
    if form == "plain":
        return None
    if form == "log" and RANGES[name].low == 0:
        return Log()
    if form == "logit" and RANGES[name].ends:
        return Logit()
    if form == "clamp":
        origin = find_model(dynamics).origin
        if name not in origin.ranges:
            clamped = ", ".join(origin.ranges) or "none"
            raise ValueError(f"learn: expected a constant that the original {dynamics!r} clamps "
                             f"({clamped}) for \"clamp\", got {name!r}; "
                             f"lsnn_ext.modules.parametrizations.Clamp(low, high) clamps others")
        low, high = origin.ranges[name]
        unit = dt if name.startswith("tau") else 1.0
        return Clamp(low * unit, high * unit)
    fits = [word for word in _WORDS if word in ("clamp", "plain") or word == _DEFAULTS.get(name)]
    raise ValueError(f"learn: expected {', '.join(map(repr, fits))} or a parametrization for "
                     f"{name}, got {form!r}")


def check_start(name: str, form: nn.Module | None, start: Tensor) -> None:
    """Raises ValueError if the parametrization cannot represent the initial values."""
    if start.is_meta or form is None:
        return
    low, high = (float(bound) for bound in start.aminmax())
    if isinstance(form, Logit) and not 0 < low <= high < 1:
        raise ValueError(f"{name}: expected initial values between 0 and 1, which have a logit, "
                         f"got {low if low <= 0 else high:.6g}; learn={{{name!r}: \"plain\"}} "
                         f"learns the number itself")
    if isinstance(form, Clamp) and not form.low <= low <= high <= form.high:
        raise ValueError(f"{name}: expected initial values in the range of its clamp, from "
                         f"{form.low:g} to {form.high:g}, got "
                         f"{low if low < form.low else high:.6g}")


def describe_form(form: nn.Module | None) -> list[Any] | None:
    """A parametrization as JSON; None for a class that is not in this file."""
    if type(form) is Clamp:
        return ["clamp", form.low, form.high]
    return next(([word] for word, kind in _SIMPLE.items() if type(form) is kind), None)


def parse_form(words: Any) -> nn.Module | None:
    """The parametrization of this JSON. Raises ValueError if it is invalid."""
    match words:
        case [str(word)] if word in _SIMPLE:
            return _SIMPLE[word]()
        case ["clamp", float() | int() as low, float() | int() as high] if low < high:
            return Clamp(low, high)
    raise ValueError(f"learn: expected a form like [\"log\"] or [\"clamp\", low, high], got "
                     f"{repr(words):.60}")


def find_list(layer: nn.Module, name: str) -> parametrize.ParametrizationList | None:
    """The parametrizations of a tensor of the layer; None without any."""
    if not parametrize.is_parametrized(layer, name):
        return None
    return layer.parametrizations[name]  # type: ignore[union-attr,index,return-value]


def find_parametrization(layer: nn.Module, name: str) -> tuple[Tensor, nn.Module] | None:
    """The stored tensor and the parametrization of a constant, if it has exactly one, of a class in
    this file; else None."""
    found = find_list(layer, name)
    if found is None or len(found) != 1 or type(found[0]) not in (Log, Logit, Clamp):
        return None
    return found.original, found[0]  # type: ignore[return-value]


def format_forms(layer: nn.Module, learn: Iterable[str],
                 suffix: str) -> tuple[str, ...] | dict[str, Any]:
    """The argument learn for repr: names, and parametrizations if one is not the default."""
    lists = {name: find_list(layer, name + suffix) for name in learn}
    forms = {name: None if found is None else found[0] for name, found in lists.items()}
    words = {name: "plain" if form is None else type(form).__name__.lower()
             for name, form in forms.items()}
    if all(word == _DEFAULTS.get(name, "plain") for name, word in words.items()):
        return tuple(words)
    return {name: form if type(form) is Clamp else words[name] for name, form in forms.items()}


def fill_parameter(module: nn.Module, name: str, fill: Callable[[Tensor], Any]) -> None:
    """Calls fill to write to a parameter or buffer; if it is parametrized, the value gets the
    result."""
    if name in module._parameters or name in module._buffers:
        fill(getattr(module, name))
    elif parametrize.is_parametrized(module, name):
        value = getattr(module, name).detach().clone()
        fill(value)
        setattr(module, name, value)  # through right_inverse of the parametrization
    else:
        raise RuntimeError(f"{name}: expected a parameter or buffer, got a tensor computed from "
                           f"others, as by pruning; remove that first")


class ParametrizedModule(nn.Module):
    """A module whose copies and pickles keep its parametrizations.

    torch makes a class with properties for each parametrized module, which cannot be copied or
    pickled.

    _caches   attributes that follow from others, such as prepared layers; a copy has none
    """

    _caches: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._caches}

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = parametrize.type_before_parametrizations(self)
        return object.__new__, (kind,), ParametrizedModule.__getstate__(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        lists = self._modules.get("parametrizations")
        if not isinstance(lists, nn.ModuleDict):
            return
        # Registering a parametrization makes the class with properties; then the original
        # parametrizations take its place.
        self._modules = {name: part for name, part in self._modules.items()
                         if name != "parametrizations"}
        self._parameters = dict(self._parameters)
        for name, found in lists.items():
            self.register_parameter(name, nn.Parameter(torch.empty(0)))
            parametrize.register_parametrization(self, name, nn.Identity())
            made: Any = self.parametrizations
            made[name] = found

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        make, arguments, state = self.__reduce_ex__(4)
        replica: Self = make(*arguments)
        memo[id(self)] = replica
        replica.__setstate__(copy.deepcopy(state, memo))
        return replica

    def __repr__(self) -> str:
        """One line, also if constants learn, which extra_repr names."""
        kind = parametrize.type_before_parametrizations(self)
        lists: Any = self._modules.get("parametrizations") or {}
        if len(self._modules) == bool(lists) and all(
                find_parametrization(self, name) for name in lists):
            return f"{kind.__name__}({self.extra_repr()})"
        return super().__repr__()

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        for name in self._caches:  # they would keep the memory of the old parameters
            self.__dict__.pop(name, None)
        return super()._apply(*arguments, **named)
