"""Copies of whole models to try things on, so that the user's own model is never touched."""
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._core.torch_internals import hooks_of

_OWN = ("_parameters", "_buffers", "_modules")  # where nn.Module keeps these


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from _tensors(part)


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a model with all its modules, parameters and state.

    Unlike copy.deepcopy it takes state that has a graph, which becomes a copy without, keeps the
    hooks of parameters, and does not ask modules how they would copy themselves, as some of other
    packages fail at that. What cannot be copied, a logger say, is shared. memo: as of
    copy.deepcopy.
    """
    memo = {} if memo is None else memo
    pairs = [(module, object.__new__(type(module))) for module in model.modules()
             if id(module) not in memo]
    memo |= {id(module): twin for module, twin in pairs}
    for module, _ in pairs:
        for tensor in _tensors(vars(module)):
            if tensor.grad_fn is not None:
                memo[id(tensor)] = tensor.detach().clone()
    for module, twin in pairs:
        for name, value in vars(module).items():
            try:
                twin.__dict__[name] = copy.deepcopy(value, memo)
            except Exception:
                if name in _OWN:
                    raise
                twin.__dict__[name] = value
    for module, twin in pairs:
        for name, parameter in module._parameters.items():
            other = twin._parameters[name]
            if parameter is not None and other is not None and not hooks_of(other):
                frozen = not other.requires_grad
                other.requires_grad_()  # no hook is taken otherwise
                for hook in hooks_of(parameter):
                    other.register_hook(hook)
                other.requires_grad_(not frozen)
    found: nn.Module = memo[id(model)]
    return found


def _mapped(value: Any, change: Callable[[Tensor], Tensor], seen: dict[int, Tensor]) -> Any:
    """The same with all tensors changed, one that occurs twice to the same."""
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen[id(value)] = change(value)
        return seen[id(value)]
    if isinstance(value, dict):
        return type(value)((k, _mapped(part, change, seen)) for k, part in value.items())
    if isinstance(value, list | tuple):
        parts = [_mapped(part, change, seen) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _plain(value: Any) -> bool:
    """Whether it is a tensor, or holds some in containers that can be made anew."""
    return any(True for _ in _tensors(value)) and not (
        isinstance(value, dict) and type(value) is not dict)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself in another dtype, with the tensors that it keeps as plain attributes."""
    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

    model.to(dtype)
    seen: dict[int, Tensor] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _OWN and _plain(value):
                module.__dict__[name] = _mapped(value, change, seen)
    return model


def round_weights(model: nn.Module, bits: int) -> None:
    """Rounds weights and biases to so many bits below their largest, so that sums of them are
    exact in any order. Time constants, thresholds and the like are left."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 and "bias" not in name or not parameter.is_floating_point():
                continue
            parameter.copy_(rounded(parameter, bits))


def rounded(value: Tensor, bits: int) -> Tensor:
    """The numbers as multiples of the power of 2 that is `bits` bits below the largest of them."""
    largest = float(value.detach().abs().max()) if value.numel() else 0.0
    if not value.is_floating_point() or not 0 < largest < math.inf:
        return value
    grid = 2.0 ** (math.frexp(largest)[1] - bits)
    return torch.round(value / grid) * grid


class Kept:
    """The state of a model besides its parameters: buffers, the random generator and whatever
    tensors its modules keep."""

    def __init__(self, model: nn.Module) -> None:
        self.kept: list[tuple[dict[str, Any], str, Any]] = []
        for module in model.modules():
            self.kept += [(module._buffers, name, _clone(value))
                          for name, value in module._buffers.items()]
            self.kept += [(module.__dict__, name, _clone(value))
                          for name, value in vars(module).items()
                          if name not in _OWN and _is_state(value)]

    def give_back(self) -> None:
        for where, name, value in self.kept:
            where[name] = _clone(value)


def _is_state(value: Any) -> bool:
    """Tensors, numbers and None, alone or in a dict, as modules keep what the last call left."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    if type(value) is dict:
        return all(_is_state(part) for part in value.values())
    return value is None or isinstance(value, bool | int | float)


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor) and not (value.is_leaf and value.requires_grad):
        return value.detach().clone()
    if type(value) is dict:
        return {name: _clone(part) for name, part in value.items()}
    return value
