"""Plain values and generators: when two values are equal, and how one is restored."""
import enum
import functools
import random
import struct
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from operator import attrgetter, is_
from types import BuiltinMethodType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionMeta
from torch.nn.parameter import is_lazy

MISSING = object()
SEQUENCES = (list, tuple, deque)
MEMBERS = {MethodType: ("__self__", "__func__"), property: ("fget", "fset"),
           staticmethod: ("__func__",), classmethod: ("__func__",),
           functools.partial: ("func", "args", "keywords")}  # of objects that do not change
WRAPPERS = tuple(MEMBERS)
MADE_OF = attrgetter("__code__", "__defaults__", "__kwdefaults__")  # of functions


class Same:
    """An object that is equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Stand:
    """Stands for a plain value, and is equal to itself only."""

    __slots__ = ()


SIMPLE = frozenset({bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout,
                    torch.memory_format, torch.Size, range, type(Ellipsis), slice, Same})


def find_oddity(tensor: Tensor) -> str:
    """Returns why a tensor has no numbers, strides or counter of writes; empty: it has them."""
    if is_lazy(tensor):
        return "an uninitialized parameter"
    if tensor.layout != torch.strided:
        return f"layout {tensor.layout}"
    if tensor.is_inference():
        return "one of torch.inference_mode"
    return "a quantized or nested one" if tensor.is_quantized or tensor.is_nested else ""


def get_attributes(tensor: Tensor) -> dict[str, Any]:
    """Returns what a program has set on a tensor, without the marks of torch.compile."""
    return {key: one for key, one in vars(tensor).items() if not key.startswith("_dynamo_")}


def find_layout(tensor: Tensor) -> tuple[Any, ...]:
    """Returns where a tensor lies in its memory."""
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def describe_tensor(tensor: Tensor) -> tuple[Any, ...]:
    return (type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad,
            tensor.stride())


def make_key(value: Any) -> tuple[Any, ...] | None:
    """Returns a key that is equal for equal plain values: 1, 1.0 and True differ, and so do 0.0
    and -0.0; NaN equals itself. None: not plain."""
    kind = type(value)
    if kind in SIMPLE:
        return kind, value
    if kind is float:
        return kind, struct.pack("d", value)
    if issubclass(kind, Stand) or isinstance(value, enum.Enum):
        return kind, Same(value)
    if kind is complex:
        return kind, struct.pack("dd", value.real, value.imag)
    for base in (int, float, str):
        if isinstance(value, base):  # of a class of the user, with a repr of its own
            return kind, base.__repr__(value)
    if isinstance(value, np.ndarray) and value.dtype != object or isinstance(value, np.generic):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (set, frozenset, np.ndarray)):
        elements = value.flat if isinstance(value, np.ndarray) else value
        return kind, tuple(make_key(one) or Same(one) for one in elements)  # sets: in any order
    if isinstance(value, random.Random):
        return kind, value.getstate()
    if isinstance(value, np.random.Generator):
        return kind, repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return kind, repr(value.get_state(legacy=False))
    if isinstance(value, functools._lru_cache_wrapper):
        return kind, Same(value), value.cache_info().misses
    return None


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one object, equal plain values, or tuples of such."""
    if one is other:
        return True
    if type(one) is tuple is type(other):
        return len(one) == len(other) and are_same(one, other)
    key = make_key(one)
    return key is not None and key == make_key(other)


def are_same(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether is_same for each value, up to the end of the shorter sequence."""
    return all(map(is_, now, before)) or all(map(is_same, now, before))


def has_equal_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and numbers; NaN equals itself."""
    one = one.detach()
    return one.dtype == other.dtype and one.shape == other.shape and (
        one.is_meta or torch.equal(one, other) or bool(one.isnan().any())
        and bool(torch.isclose(one, other, 0.0, 0.0, equal_nan=True).all()))


def is_apply(value: Any) -> bool:
    """Whether a value is the apply of an autograd.Function, as torch 2.15 binds it: in C."""
    return isinstance(value, BuiltinMethodType) and isinstance(value.__self__, FunctionMeta)


def find_referent(value: ContextVar[Any] | weakref.ref[Any]) -> Any:
    """Returns what a context variable or a weak reference holds; MISSING: nothing is set."""
    try:
        return value.get() if isinstance(value, ContextVar) else value()
    except LookupError:
        return MISSING


def list_members(value: Any) -> dict[str, Any]:
    """Returns by name what a method, a property or a partial holds; empty for others."""
    if is_apply(value):
        return {"__self__": value.__self__}
    return {name: getattr(value, name) for kind, names in MEMBERS.items()
            if isinstance(value, kind) for name in names} if isinstance(value, WRAPPERS) else {}


def list_elements(value: Any) -> list[Any]:
    """Returns the elements of a sequence, even if its class overrides __iter__."""
    return [*next(one for one in SEQUENCES if isinstance(value, one)).__iter__(value)]


def make_restore(value: Any) -> Callable[[], object] | None:
    """Returns a function that restores the value; None: it cannot change, or be restored."""
    if isinstance(value, np.ndarray) and value.flags.writeable:
        return functools.partial(np.copyto, value, value.copy(), "no")
    if isinstance(value, set):
        held = value.copy()
        return lambda: value.symmetric_difference_update(value ^ held)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def is_mutable(value: Any) -> bool:
    """Whether a plain value can change in place."""
    return isinstance(value, (np.ndarray, set, random.Random, np.random.Generator,
                              np.random.RandomState, functools._lru_cache_wrapper))


def draw_normal(shape: Sequence[int], random: torch.Generator,
                dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns normal numbers of a generator of the CPU, on the CPU whatever the default device."""
    return torch.randn(shape, generator=random, dtype=dtype, device="cpu")


def generator_states() -> list[Tensor]:
    """Returns the states of the generators of torch, the CPU first."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def set_generator_states(states: Sequence[Tensor]) -> None:
    """Sets the states of the generators of torch; an empty list is a no-op."""
    if states:
        torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))
