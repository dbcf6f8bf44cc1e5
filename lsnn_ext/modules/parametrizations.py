"""What a learned constant is computed of, so that no step of an optimizer carries it out of its
range; in the form of torch.nn.utils.parametrize."""
import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..models import named_model
from .neuron import RANGES, Kind


class Log(nn.Module):
    """value = exp(original), for what is > 0: a time constant, a threshold, a width.

    A step of the optimizer changes the value by a factor: with Adam at a rate of 0.01 by one
    hundredth.
    """

    def forward(self, original: Tensor) -> Tensor:
        """The value of what is stored."""
        return original.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """What is stored for a value."""
        return value.log()


class Logit(nn.Module):
    """value = 1 / (1 + exp(-original)), for a share between 0 and 1: a decay over a step."""

    def forward(self, original: Tensor) -> Tensor:
        """The value of what is stored."""
        return torch.sigmoid(original)

    def right_inverse(self, value: Tensor) -> Tensor:
        """What is stored for a value."""
        return torch.logit(value)


class Clamp(nn.Module):
    """value = original, not below low nor above high, with the gradient of torch.clamp: 0 outside.

    low, high    numbers, low < high
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
        """Both, to be compared."""
        return self.low, self.high

    def forward(self, original: Tensor) -> Tensor:
        """The value of what is stored."""
        return original.clamp(self.low, self.high)

    def right_inverse(self, value: Tensor) -> Tensor:
        """What is stored for a value."""
        return value

    def extra_repr(self) -> str:
        """The two ends."""
        return f"{self.low:g}, {self.high:g}"


# By default what has a range is learned without bounds, and what has none as it is.
_FREE = {"tau_mem": "log", "tau_adapt": "log", "threshold": "log", "width": "log",
         "alpha": "logit", "rho": "logit", "sigma": "logit"}
_WORDS = ("log", "logit", "clamp", "plain")


def _expected(names: Iterable[str]) -> str:
    known = ", ".join(names)
    return (f"some of {known}, as in learn=(\"tau_mem\",), or a dict of them to \"log\", "
            f"\"logit\", \"clamp\", \"plain\" or a parametrization")


def make_forms(learn: Any, names: Iterable[str], kind: Kind, dynamics: str,
               dt: float) -> dict[str, nn.Module | None]:
    """What each learned constant is computed of; None: it is stored as it is.

    names: those that may learn. Raises TypeError or ValueError naming learn.
    """
    names = tuple(names)
    learn = (learn,) if isinstance(learn, str) else learn
    if not isinstance(learn, Iterable):
        raise TypeError(f"learn: expected {_expected(names)}, got {learn!r}")
    asked: dict[str, Any] = dict(learn) if isinstance(learn, Mapping) else {
        name: None for name in learn}
    found: dict[str, nn.Module | None] = {}
    for name, form in asked.items():
        if name not in names:
            raise ValueError(f"learn: expected {_expected(names)}, got {name!r}"
                             f"{_absent(name, kind)}")
        found[name] = _form(name, form, dynamics, dt)
    return found


def _absent(name: Any, kind: str) -> str:
    if name not in RANGES:
        return ""
    if kind == "LIF" and name in ("beta", "tau_adapt", "rho", "q", "p", "eta"):
        return "; a LIF does not adapt"
    return f"; a coefficient learns from a number that is given: {name}="


def _form(name: str, form: Any, dynamics: str, dt: float) -> nn.Module | None:
    if isinstance(form, nn.Module):
        if not hasattr(form, "right_inverse"):
            raise TypeError(f"learn: expected a parametrization with right_inverse for {name}, got "
                            f"{type(form).__name__}")
        return form
    if form is None:
        form = _FREE.get(name, "plain")
    if form == "plain":
        return None
    if form == "log" and RANGES[name].low == 0:
        return Log()
    if form == "logit" and RANGES[name].ends:
        return Logit()
    if form == "clamp":
        origin = named_model(dynamics).origin
        if name not in origin.ranges:
            known = ", ".join(origin.ranges) or "none"
            raise ValueError(f"learn: expected a constant that the makers of {dynamics!r} clamp "
                             f"({known}) for \"clamp\", got {name!r}; "
                             f"lsnn_ext.modules.parametrizations.Clamp(low, high) clamps any")
        low, high = origin.ranges[name]
        unit = dt if name.startswith("tau") else 1.0
        return Clamp(low * unit, high * unit)
    fits = [word for word in _WORDS if word in ("clamp", "plain") or word == _FREE.get(name)]
    raise ValueError(f"learn: expected {', '.join(map(repr, fits))} or a parametrization for "
                     f"{name}, got {form!r}")


def check_start(name: str, form: nn.Module | None, start: Tensor) -> None:
    """Raises ValueError where a learned constant cannot start from its numbers."""
    if start.is_meta or form is None:
        return
    low, high = (float(bound) for bound in start.aminmax())
    if isinstance(form, Logit) and not 0 < low <= high < 1:
        raise ValueError(f"{name}: expected a start between 0 and 1, which has a logit, to learn "
                         f"from, got {low if low <= 0 else high:.6g}; learn={{{name!r}: "
                         f"\"plain\"}} learns the number itself")
    if isinstance(form, Clamp) and not form.low <= low <= high <= form.high:
        raise ValueError(f"{name}: expected a start from {form.low:g} to {form.high:g}, where it "
                         f"is clamped, got {low if low < form.low else high:.6g}")


def describe_form(form: nn.Module | None) -> list[Any] | None:
    """A form in words and numbers, for a state dict; None: another one than those here."""
    if form is None:
        return ["plain"]
    if type(form) is Clamp:
        return ["clamp", form.low, form.high]
    return ["log"] if type(form) is Log else ["logit"] if type(form) is Logit else None


def parse_form(words: Any) -> nn.Module | None:
    """The form of these words and numbers. Raises ValueError for others."""
    simple: dict[str, Any] = {"plain": lambda: None, "log": Log, "logit": Logit}
    match words:
        case [str(word)] if word in simple:
            form: nn.Module | None = simple[word]()
            return form
        case ["clamp", float() | int() as low, float() | int() as high] if low < high:
            return Clamp(low, high)
    raise ValueError(f"learn: expected a form as [\"log\"] or [\"clamp\", low, high], got "
                     f"{repr(words):.60}")


def find_list(layer: nn.Module, name: str) -> parametrize.ParametrizationList | None:
    """The parametrizations of a tensor of the layer, or None where it has none."""
    if not parametrize.is_parametrized(layer, name):
        return None
    found = layer.parametrizations[name]  # type: ignore[union-attr,index]
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def find_parametrization(layer: nn.Module, name: str) -> tuple[Tensor, nn.Module] | None:
    """What is stored of a tensor with one parametrization of those here, and this one."""
    found = find_list(layer, name)
    if found is None or len(found) != 1 or type(found[0]) not in (Log, Logit, Clamp):
        return None
    original = found.original
    assert isinstance(original, Tensor)
    return original, found[0]


def format_forms(layer: nn.Module, learn: Iterable[str],
                 suffix: str) -> tuple[str, ...] | dict[str, Any]:
    """The argument learn in a line of repr: names, and forms where one is not the default."""
    lists = {name: find_list(layer, name + suffix) for name in learn}
    forms = {name: None if found is None else found[0] for name, found in lists.items()}
    words = {name: "plain" if form is None else type(form).__name__.lower()
             for name, form in forms.items()}
    if all(word == _FREE.get(name, "plain") for name, word in words.items()):
        return tuple(words)
    return {name: form if type(form) is Clamp else words[name] for name, form in forms.items()}


def fill_parameter(module: nn.Module, name: str, fill: Callable[[Tensor], Any]) -> None:
    """Has fill write into a parameter or buffer; where it is parametrized, what the module shows
    becomes the result."""
    if name in module._parameters or name in module._buffers:
        fill(getattr(module, name))
    elif parametrize.is_parametrized(module, name):
        value = getattr(module, name).detach().clone()
        fill(value)
        setattr(module, name, value)  # through right_inverse of the parametrization
    else:
        raise RuntimeError(f"{name}: expected a parameter to set anew, got a tensor that is "
                           f"computed from others, as "
                           "by pruning; remove that first")


class ParametrizedModule(nn.Module):
    """A module that is copied and pickled with its parametrizations.

    _caches   attributes that follow from the others, such as prepared layers: a copy has none
    """

    _caches: ClassVar[tuple[str, ...]] = ()

    def _plain_state(self) -> dict[str, Any]:
        """Without what is kept: a copy or a pickle is the module alone."""
        return {name: value for name, value in self.__dict__.items() if name not in self._caches}

    def __getstate__(self) -> dict[str, Any]:
        return self._plain_state()

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = parametrize.type_before_parametrizations(self)
        return object.__new__, (kind,), self._plain_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        lists = self._modules.get("parametrizations")
        if not isinstance(lists, nn.ModuleDict):
            return
        # The class with the properties is made for each module anew, by registering something that
        # is then replaced by what was there.
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
        """One line, also where constants learn: extra_repr names them and their forms."""
        kind = parametrize.type_before_parametrizations(self)
        lists: Any = self._modules.get("parametrizations") or {}
        if len(self._modules) == bool(lists) and all(
                find_parametrization(self, name) for name in lists):
            return f"{kind.__name__}({self.extra_repr()})"
        return super().__repr__()

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        for name in self._caches:  # they hold the memory that the parameters leave
            self.__dict__.pop(name, None)
        return super()._apply(*arguments, **named)
