"""Watch: the values that a step read when it was traced; a change makes the trace stale.

A trace holds numbers of globals, closures, defaults and attributes as constants. Watch notes each
place that the code of the step names, and what stood there; functions are followed.
"""
import builtins
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Set
from contextvars import ContextVar
from enum import Enum
from functools import _lru_cache_wrapper, partial
from types import FunctionType, MappingProxyType, MemberDescriptorType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .._core.arguments import has_numbers
from . import plain
from .plain import MISSING
from .user_code import find_words, is_user

# Called without being named in the code of the caller.
_IMPLICIT = frozenset({
    "__call__", "forward", "backward", "setup_context", "jvp", "vmap", "__getattr__",
    "__getattribute__", "__getitem__", "__get__", "__iter__", "__len__", "__contains__", "__bool__",
    "__float__", "__int__", "__index__", "__enter__", "__exit__", "__neg__",
    *(f"__{side}{name}__" for name in ("add", "sub", "mul", "truediv", "pow")
      for side in ("", "r"))})
_LARGEST = 64  # of more elements of a list or dict the objects are watched, not what lies behind
# Modules whose classes have code that is not followed, unlike namespaces.
_STANDARD = sys.stdlib_module_names - {"builtins", "types", "argparse"}
_WITHOUT_PARTS = plain.SIMPLE | {object, float, complex}


class Watch:
    """The places that a step reads, and their values now. Of modules, classes and objects these are
    the attributes that some code behind the step names."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._names = set(_IMPLICIT)
        known = 0
        while known < len(self._names):  # code that is found names attributes of what was followed
            known = len(self._names)
            self._places: list[tuple[str, Callable[[], Any], Any]] = []
            self._tensors: list[tuple[str, Tensor, Tensor | int]] = []
            self._seen: dict[int, Any] = {}  # by identity, which lasts as long as the object
            self._follow("step", step)

    def is_current(self) -> bool:
        return self.find_changed() is None

    def has_same_numbers(self) -> bool:
        """Whether the tensors among them do; for callers that watch all else themselves."""
        return all(_is_unchanged(one, numbers) for _, one, numbers in self._tensors)

    def find_changed(self) -> str | None:
        """Returns the name of a place with another value, or None."""
        for name, read, value in self._places:
            if (now := read()) is not value and not plain.is_same(now, value):
                return name
        return next((name for name, one, numbers in self._tensors
                     if not _is_unchanged(one, numbers)), None)

    def find_learned(self) -> str | None:
        """Returns the name of a tensor that requires a gradient, which a trace would drop."""
        return next((name for name, one, _ in self._tensors if one.requires_grad), None)

    def _note(self, name: str, read: Callable[[], Any], is_followed: bool = True) -> None:
        value = read()
        self._places.append((name, read, value))
        if is_followed:
            self._follow(name, value)

    def _note_items(self, held: Mapping[str, Any], names: Set[str], hiding: Set[str] = frozenset(),
                    ) -> None:
        """Notes the items with these names, and the places of those that may appear."""
        for name in sorted(names & held.keys() | hiding):
            self._note(name, partial(held.get, name, MISSING))

    def _follow(self, name: str, value: Any) -> None:
        if type(value) in _WITHOUT_PARTS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            with torch.inference_mode(False), torch.no_grad():
                numbers = _read_numbers(value)
                self._tensors.append((name, value, numbers.clone() if isinstance(numbers, Tensor)
                                      else numbers))
            self._note_items(vars(value), self._names)
        elif isinstance(value, FunctionType):
            self._follow_function(value)
        elif isinstance(value, ModuleType):
            if not _is_fixed(value.__name__):
                self._note_items(vars(value), self._names)
        elif isinstance(value, type):
            for space in _list_spaces(value):
                self._note_items(space, self._names)
            self._follow(name, type(value))
        elif isinstance(value, _lru_cache_wrapper):  # its misses may change in the trace
            self._follow(name, value.__wrapped__)
        elif isinstance(value, ContextVar):
            self._note(name, partial(plain.find_referent, value))
        elif plain.is_mutable(value):
            self._note(name, partial(plain.make_key, value), False)
        else:
            for one in value if isinstance(value, tuple) else plain.list_members(value).values():
                self._follow(name, one)
            if isinstance(value, list | dict | deque | MappingProxyType):
                is_followed = len(value) <= _LARGEST and not isinstance(value, deque)
                self._note(name, partial(_copy_elements, value), is_followed)
            self._follow_object(value)

    def _follow_function(self, function: FunctionType) -> None:
        if _is_fixed(function.__module__):
            return
        names = find_words(function.__code__)
        self._names |= names
        self._note(function.__name__, partial(plain.MADE_OF, function))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (),
                              strict=True):
            self._note(name, partial(getattr, cell, "cell_contents", MISSING))
        # a builtin may be shadowed later
        self._note_items(function.__globals__, names, names & vars(builtins).keys())
        self._note_items(vars(function), self._names)

    def _follow_object(self, value: Any) -> None:
        kind, held, names = type(value), getattr(value, "__dict__", {}), self._names
        self._follow(kind.__name__, kind)
        if isinstance(value, nn.Module):
            parts = [held[part] for part in ("_parameters", "_buffers", "_modules")]
            if _is_fixed(kind.__module__):  # whose code is not followed
                names = names.union(held, *parts)
            names = names | {"training"}
            for part in parts:
                self._note_items(part, names)
        elif isinstance(value, Enum) or kind.__module__.partition(".")[0] in _STANDARD:
            names = names.union(held)
        of_class = {name for space in _list_spaces(kind) for name in names & space.keys()}
        for name in of_class:
            if isinstance(getattr(kind, name, None), MemberDescriptorType):  # of __slots__
                self._note(name, partial(getattr, value, name, MISSING))
        self._note_items(held, names, of_class)  # an attribute of the object may hide one of these


def _copy_elements(held: Any) -> tuple[Any, ...]:
    of: Any = OrderedDict if isinstance(held, OrderedDict) else dict
    if isinstance(held, MappingProxyType):
        held = dict(held)
    return (*of.keys(held), *of.values(held)) if isinstance(held, dict) else (
        *plain.list_elements(held),)


def _read_numbers(tensor: Tensor) -> Tensor | int:
    """Returns the numbers, or their version where they are not readable."""
    if has_numbers(tensor):
        return tensor.detach()
    return 0 if tensor.is_inference() else tensor._version


def _is_unchanged(tensor: Tensor, numbers: Tensor | int) -> bool:
    now = _read_numbers(tensor)
    if isinstance(now, int) or isinstance(numbers, int):
        return type(now) is type(numbers) and bool(now == numbers)
    return plain.has_equal_numbers(now, numbers)


def _is_fixed(module: str | None) -> bool:
    """Whether the attributes of a module and of its classes do not change."""
    return module is not None and not is_user(module) and module.partition(".")[0] != "lsnn_ext"


def _list_spaces(kind: type) -> list[Mapping[str, Any]]:
    """Returns the namespaces of a class and its bases."""
    return [vars(base) for base in kind.__mro__ if not _is_fixed(base.__module__)]
