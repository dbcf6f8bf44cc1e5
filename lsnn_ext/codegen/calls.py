"""Calls to repeat: the part of a step that depends on coefficients only, run by torch."""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.torch_internals import tree_leaves
from .program import find_reachable

CPU = torch.device("cpu")
META = torch.device("meta")  # tensors of a trace, which have no numbers


class Call(NamedTuple):
    """Computes a fixed value: function(*arguments, **keywords)."""

    function: Any  # an operator of ATen or of Python; None: arguments[0] is the value
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = {}


class Place(int):
    """In the arguments of a call: the result of this call."""


class Size(NamedTuple):
    """In the arguments of a call: the sizes of a tensor, "B" and "N" where they are those."""

    sizes: tuple[int | str, ...]


def make_key(value: Any) -> object:
    """Returns a key that is equal for calls with equal results."""
    if isinstance(value, dict):
        return tuple((name, make_key(x)) for name, x in value.items())
    if isinstance(value, tuple) and not isinstance(value, Size):
        return tuple(map(make_key, value))
    if isinstance(value, Tensor):
        return value._cdata
    return type(value), repr(value) if isinstance(value, float) else value


def as_tensor(value: Tensor | float, device: torch.device = CPU) -> Tensor:
    """Returns a tensor; of a Python number one of float64."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=torch.float64, device=device)


def repeat_calls(calls: Sequence[Call], needed: Iterable[int], neurons: int,
                 coefficients: Sequence[Tensor | float],
                 device: torch.device = CPU) -> dict[int, Any]:
    """Returns the results of the calls `needed` for these coefficients, with a batch of 1; needed:
    ascending, with all calls that these depend on."""
    results: dict[int, Any] = {}
    sizes = {"B": 1, "N": neurons}

    def fill(value: Any, is_aten: bool) -> Any:
        if isinstance(value, Place):
            return as_tensor(results[value], device) if is_aten else results[value]
        if isinstance(value, Size):
            return [sizes.get(x, x) if isinstance(x, str) else x for x in value.sizes]
        if isinstance(value, torch.device):  # that of the trace
            return device
        return [fill(x, is_aten) for x in value] if isinstance(value, tuple) else value

    for place in needed:
        function, arguments, keywords = calls[place]
        if function is None:
            results[place] = arguments[0]
        elif function == "coefficient":
            value = coefficients[arguments[0]]
            results[place] = value.detach() if isinstance(value, Tensor) else value
        else:
            is_aten = isinstance(function, torch._ops.OpOverload)
            results[place] = function(*(fill(x, is_aten) for x in arguments),
                                      **{key: fill(x, is_aten) for key, x in keywords.items()})
    return results


def find_needed(calls: Sequence[Call], wanted: Sequence[int]) -> list[int]:
    """Returns the calls that `wanted` depend on, with them, ascending."""
    def arguments_of(place: int) -> list[int]:
        values = tree_leaves((calls[place].arguments, dict(calls[place].keywords)))
        return [int(x) for x in values if isinstance(x, Place)]

    return sorted(find_reachable(wanted, arguments_of))
