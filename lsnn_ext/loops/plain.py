"""Plain values and generators: when two values are equal, and how one is restored."""
import enum
import functools
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

SIMPLE = frozenset({bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout,
                    torch.memory_format, torch.Size, range, type(Ellipsis), slice})


class Same:
    """An object that is equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def find_oddity(tensor: Tensor) -> str:
    """Returns why a tensor has no numbers, strides or counter of writes; empty: it has them."""
    if is_lazy(tensor):
        return "an uninitialized parameter"
    if tensor.layout != torch.strided:
        return f"layout {tensor.layout}"
    if tensor.is_inference():
        return "one of torch.inference_mode"
    return "a quantized or nested one" if tensor.is_quantized or tensor.is_nested else ""


def find_storage(tensor: Tensor) -> int:
    """Returns a number of the memory of a tensor, which its views have, too."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


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
    if kind is complex:
        return kind, struct.pack("dd", value.real, value.imag)
    if isinstance(value, enum.Enum):
        return kind, Same(value)
    for base in (int, float, str):
        if isinstance(value, base):  # of a class of the user, with a repr of its own
            return kind, base.__repr__(value)
    if isinstance(value, np.ndarray) and value.dtype != object or isinstance(value, np.generic):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (set, frozenset)):
        parts = [make_key(one) or Same(one) for one in value]
        return kind, tuple(parts)  # their order may differ
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
    """Whether two values are one object or equal plain values."""
    return one is other or (make_key(one) is not None and make_key(one) == make_key(other))


def make_restore(value: Any) -> Callable[[], object] | None:
    """Returns a function that restores the value; None: it cannot change in place, or cannot be
    restored."""
    if isinstance(value, np.ndarray):
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
        state = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", state)
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
