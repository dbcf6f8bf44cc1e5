"""What a step reads beside its arguments, when it was traced: a change makes the trace stale.

A trace holds numbers of globals, closures, defaults and attributes as constants. Watch notes each
place that the code of the step names, and what stood there; functions are followed.
"""
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.arguments import readable

_MISSING = object()
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# Packages whose attributes do not change.
_FIXED = frozenset({"torch", "numpy", "builtins", *sys.stdlib_module_names})
# Called without being named in the code of the caller.
_IMPLICIT = frozenset({"__call__", "forward", "backward", "setup_context", "jvp", "vmap"})
_LARGEST = 64  # lists and dicts of more elements are watched by identity


class _Place(NamedTuple):
    read: Callable[[], Any]
    name: str
    value: Any
    numbers: Tensor | int | None  # of a tensor: a copy, or its version where it is not readable

    def is_same(self) -> bool:
        now = self.read()
        if now is not self.value:
            return (type(now) is type(self.value) and isinstance(now, (*_SCALARS, tuple, frozenset))
                    and bool(_equal(now, self.value)))
        if not isinstance(now, Tensor):
            return True
        if isinstance(self.numbers, Tensor):
            return readable(now) and _same_numbers(now, self.numbers)
        return _version(now) == self.numbers


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(
            x is y or type(x) is type(y) and isinstance(x, (*_SCALARS, tuple)) and _equal(x, y)
            for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and a != a:
        return bool(b != b)
    # 0.0 == -0.0
    return bool(a == b) and (not isinstance(a, float) or str(a) == str(b))


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: NaN is equal to itself."""
    a = a.detach()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(a.isnan().any()) and bool(
        torch.isclose(a, b, 0.0, 0.0, equal_nan=True).all())


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Watch:
    """The places that a step reads, as they are now."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._places: list[_Place] = []
        self._seen: set[tuple[int, frozenset[str]]] = set()
        self._alive: list[Any] = []  # so that no other object gets the identity of one
        self._follow(step, _IMPLICIT)

    def is_current(self) -> bool:
        """Whether all of them still hold what they held."""
        return all(place.is_same() for place in self._places)

    def learned(self) -> str | None:
        """The name of a tensor that requires a gradient, which a trace would drop."""
        for place in self._places:
            if isinstance(place.value, Tensor) and place.value.requires_grad:
                return place.name
        return None

    def _note(self, name: str, read: Callable[[], Any], names: frozenset[str]) -> None:
        value = read()
        numbers: Tensor | int | None = None
        if isinstance(value, Tensor):
            with torch.inference_mode(False), torch.no_grad():
                numbers = value.detach().clone() if readable(value) else _version(value)
        self._places.append(_Place(read, name, value, numbers))
        self._follow(value, names)

    def _note_item(self, held: Mapping[Any, Any], key: Any, names: frozenset[str]) -> None:
        self._note(str(key), partial(held.get, key, _MISSING), names)

    def _follow(self, value: Any, names: frozenset[str]) -> None:
        """Notes what lies behind a value, for code that names these attributes."""
        if value is _MISSING or isinstance(value, (*_SCALARS, Tensor)):
            return
        if (id(value), names) in self._seen:
            return
        self._seen.add((id(value), names))
        self._alive.append(value)
        if isinstance(value, FunctionType):
            self._follow_function(value)
        elif isinstance(value, MethodType):
            self._follow(value.__func__, names)
            self._follow(value.__self__, self._names_of(value.__func__))
        elif isinstance(value, partial):
            for part in (value.func, value.args, value.keywords):
                self._follow(part, names)
        elif isinstance(value, staticmethod | classmethod):
            self._follow(value.__func__, names)
        elif isinstance(value, property):
            self._follow(value.fget, names)
        elif isinstance(value, list | tuple):
            self._follow_list(value, names)
        elif isinstance(value, dict):
            if len(value) <= _LARGEST:
                self._note("len()", value.__len__, names)
                for key in tuple(value):
                    self._note_item(value, key, names)
        elif isinstance(value, ModuleType):
            if not _is_fixed(value.__name__):
                self._follow_attributes(vars(value), names)
        elif isinstance(value, type):
            self._follow_class(value, names)
        else:
            self._follow_object(value, names)

    def _follow_function(self, function: FunctionType) -> None:
        if _is_fixed(function.__module__):
            return
        names = self._names_of(function)
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            self._note(part, partial(getattr, function, part), names)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (),
                              strict=True):
            self._note(name, partial(getattr, cell, "cell_contents", _MISSING), names)
        for name in names:
            if name in function.__globals__:
                self._note_item(function.__globals__, name, names)

    def _names_of(self, function: Any) -> frozenset[str]:
        code = getattr(function, "__code__", None)
        return _IMPLICIT if code is None else frozenset(_names(code)) | _IMPLICIT

    def _follow_list(self, value: list[Any] | tuple[Any, ...], names: frozenset[str]) -> None:
        if isinstance(value, tuple):
            for k in range(len(value)):
                self._note(f"[{k}]", partial(value.__getitem__, k), names)
        elif len(value) <= _LARGEST:
            self._note("len()", value.__len__, names)

            def read(k: int) -> Any:
                return value[k] if k < len(value) else _MISSING

            for k in range(len(value)):
                self._note(f"[{k}]", partial(read, k), names)

    def _follow_attributes(self, held: Mapping[str, Any], names: frozenset[str]) -> None:
        for name in names & held.keys():
            self._note_item(held, name, names)

    def _follow_class(self, kind: type, names: frozenset[str]) -> None:
        for base in kind.__mro__:
            if not _is_fixed(base.__module__):
                self._follow_attributes(vars(base), names)

    def _follow_object(self, value: Any, names: frozenset[str]) -> None:
        self._follow_class(type(value), names)
        held = getattr(value, "__dict__", {})
        self._follow_attributes(held, names)
        if isinstance(value, nn.Module):
            for part in ("_parameters", "_buffers", "_modules"):
                self._follow_attributes(held[part], names)
            self._note("training", partial(getattr, value, "training"), names)


def _is_fixed(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _FIXED


def _names(code: CodeType) -> set[str]:
    """What the code names, that of inner functions too."""
    found = set(code.co_names)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            found |= _names(one)
    return found
