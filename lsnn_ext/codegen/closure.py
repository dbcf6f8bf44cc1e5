"""Watch: the values that a step read when it was traced; a change makes the trace stale.

A trace holds numbers of globals, closures, defaults and attributes as constants. Watch notes each
place that the code of the step names, and what stood there; functions are followed.
"""
import builtins
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.torch_internals import is_batched, is_mode_active

_MISSING = object()
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# Packages whose attributes do not change.
_FIXED = frozenset({"torch", "numpy", "builtins", *sys.stdlib_module_names})
# Called without being named in the code of the caller.
_IMPLICIT = frozenset({
    "__call__", "forward", "backward", "setup_context", "jvp", "vmap", "__getattr__",
    "__getattribute__", "__getitem__", "__get__", "__iter__", "__len__", "__contains__", "__bool__",
    "__float__", "__int__", "__index__", "__enter__", "__exit__", "__neg__",
    *(f"__{side}{name}__" for name in ("add", "sub", "mul", "truediv", "pow")
      for side in ("", "r"))})
_LARGEST = 64  # of more elements of a list or dict the objects are watched, not what lies behind


class _Place(NamedTuple):
    read: Callable[[], Any]
    name: str
    value: Any
    numbers: Tensor | int | None  # of a tensor: a copy, or its version where it is not readable

    def is_same(self) -> bool:
        now = self.read()
        if now is not self.value:
            return (type(now) is type(self.value) and isinstance(now, (*_SCALARS, tuple, frozenset))
                    and bool(_are_equal(now, self.value)))
        if not isinstance(now, Tensor):
            return True
        if isinstance(self.numbers, Tensor):
            return _is_readable(now) and _have_same_numbers(now, self.numbers)
        return _get_version(now) == self.numbers


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(
            x is y or type(x) is type(y) and isinstance(x, (*_SCALARS, tuple)) and _are_equal(x, y)
            for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and a != a:
        return bool(b != b)
    # 0.0 == -0.0
    return bool(a == b) and (not isinstance(a, float) or str(a) == str(b))


def _have_same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether numbers are bitwise equal; NaN equals NaN."""
    a = a.detach()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(a.isnan().any()) and bool(
        torch.isclose(a, b, 0.0, 0.0, equal_nan=True).all())


def _is_readable(tensor: Tensor) -> bool:
    """Whether the numbers can be read, also while torch.compile calls this."""
    return (tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
            and not is_mode_active(functions=False) and not is_batched(tensor))


def _get_version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Watch:
    """The places that a step reads, and their values now.

    Of modules, classes and objects these are the attributes that some code behind the step names.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self._names = set(_IMPLICIT)
        known = 0
        while known < len(self._names):  # code that is found names attributes of what was followed
            known = len(self._names)
            self._places: list[_Place] = []
            self._seen: dict[int, Any] = {}  # by identity, which lasts as long as the object
            self._follow(step)

    def is_current(self) -> bool:
        """Whether all places hold the same values as before."""
        return all(place.is_same() for place in self._places)

    def has_same_numbers(self) -> bool:
        """Whether the tensors among them do; for callers that watch all else themselves."""
        return all(place.is_same() for place in self._places if place.numbers is not None)

    def find_changed(self) -> str | None:
        """Returns the name of a place with another value, or None."""
        return next((place.name for place in self._places if not place.is_same()), None)

    def find_learned(self) -> str | None:
        """Returns the name of a tensor that requires a gradient, which a trace would drop."""
        for place in self._places:
            if isinstance(place.value, Tensor) and place.value.requires_grad:
                return place.name
        return None

    def _note(self, name: str, read: Callable[[], Any]) -> None:
        value = read()
        numbers: Tensor | int | None = None
        if isinstance(value, Tensor):
            with torch.inference_mode(False), torch.no_grad():
                numbers = value.detach().clone() if _is_readable(value) else _get_version(value)
        self._places.append(_Place(read, name, value, numbers))
        self._follow(value)

    def _note_copy(self, read: Callable[[], Any]) -> None:
        """Stores elements without their contents."""
        self._places.append(_Place(read, "an element", read(), None))

    def _note_item(self, held: Mapping[Any, Any], key: Any) -> None:
        self._note(str(key), partial(held.get, key, _MISSING))

    def _follow(self, value: Any) -> None:
        if value is _MISSING or isinstance(value, (*_SCALARS, Tensor)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, FunctionType):
            self._follow_function(value)
        elif isinstance(value, MethodType):
            self._follow(value.__func__)
            self._follow(value.__self__)
        elif isinstance(value, partial):
            for part in (value.func, value.args, value.keywords):
                self._follow(part)
        elif isinstance(value, staticmethod | classmethod):
            self._follow(value.__func__)
        elif isinstance(value, property):
            self._follow(value.fget)
        elif isinstance(value, list | tuple | dict):
            self._follow_elements(value)
        elif isinstance(value, set | deque):
            self._note_copy(partial(tuple, value))
        elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            self._note_copy(value.tobytes)
        elif isinstance(value, ModuleType):
            if not _is_fixed(value.__name__):
                self._follow_attributes(vars(value), self._names)
        elif isinstance(value, type):
            self._follow_class(value)
        else:
            self._follow_object(value)

    def _follow_function(self, function: FunctionType) -> None:
        if _is_fixed(function.__module__):
            return
        names = _find_names(function.__code__)
        self._names |= names
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            self._note(part, partial(getattr, function, part))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (),
                              strict=True):
            self._note(name, partial(getattr, cell, "cell_contents", _MISSING))
        for name in names:  # a builtin may be shadowed later
            if name in function.__globals__ or hasattr(builtins, name):
                self._note_item(function.__globals__, name)

    def _follow_elements(self, value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
        if isinstance(value, tuple):
            for k in range(len(value)):
                self._note(f"[{k}]", partial(_get_item, value, k))
        elif len(value) <= _LARGEST:
            self._note("a length", value.__len__)
            for key in tuple(value) if isinstance(value, dict) else range(len(value)):
                self._note(f"[{key}]", partial(_get_item, value, key))
        else:
            self._note_copy(partial(_list_elements, value))

    def _follow_attributes(self, held: Mapping[str, Any], names: Iterable[str]) -> None:
        for name in sorted(held.keys() & set(names)):
            self._note_item(held, name)

    def _follow_class(self, kind: type) -> set[str]:
        """Returns the names that the class has."""
        found: set[str] = set()
        for base in kind.__mro__:
            if not _is_fixed(base.__module__):
                self._follow_attributes(vars(base), self._names)
                found |= self._names & vars(base).keys()
        return found

    def _follow_object(self, value: Any) -> None:
        of_class = self._follow_class(type(value))
        held = getattr(value, "__dict__", {})
        parts = [held]
        names = self._names
        if isinstance(value, nn.Module):
            parts += [held[part] for part in ("_parameters", "_buffers", "_modules")]
            if _is_fixed(type(value).__module__):  # whose code is not followed
                names = names.union(*parts)
            names = names | {"training"}
        for part in parts:
            self._follow_attributes(part, names)
        for name in of_class - held.keys():  # may be hidden by an attribute of the object
            if isinstance(getattr(type(value), name, None), MemberDescriptorType):  # of __slots__
                self._note(name, partial(getattr, value, name, _MISSING))
            else:
                self._note_item(held, name)


def _get_item(held: Any, key: Any) -> Any:
    try:
        return held[key]
    except (IndexError, KeyError):
        return _MISSING


def _list_elements(held: list[Any] | dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(held.items() if isinstance(held, dict) else held)


def _is_fixed(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _FIXED


def _find_names(code: CodeType) -> set[str]:
    """Returns the names in the code, in inner functions, and in strings for getattr."""
    found = set(code.co_names)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            found |= _find_names(one)
        elif isinstance(one, str) and one.isidentifier():
            found.add(one)
    return found
