"""rewrite: recorded calls as calls that read no more than their results depend on."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from .functions import IN_PLACE_VIEWS
from .ir import Call, Kind, Mode, Ref, flatten_arguments

_FACTORIES: dict[Any, Callable[..., Tensor]] = {
    torch.zeros_like: torch.zeros, Tensor.new_zeros: torch.zeros, torch.ones_like: torch.ones,
    Tensor.new_ones: torch.ones, torch.full_like: torch.full, Tensor.new_full: torch.full,
    torch.empty_like: torch.empty, Tensor.new_empty: torch.empty, torch.rand_like: torch.rand,
    torch.randn_like: torch.randn}


def rewrite(call: Call, add_value: Callable[[Kind], int], kinds: dict[int, Kind]) -> list[Call]:
    """Returns the calls that stand for a call.

    zeros_like, randn_like and others, which read a shape alone, become torch.zeros and so on.
    Dropout becomes a draw, which depends on no number, and a product. masked_fill with a number
    becomes torch.where, which takes other numbers in each iteration; detach_ becomes detach, of
    which the tensor is the result.
    """
    if call.function in _FACTORIES:
        return [_make_factory(call, kinds)]
    if call.function in (functional.dropout, torch.dropout):
        return _split_dropout(call, add_value, kinds)
    if call.function in IN_PLACE_VIEWS and call.written:
        (_, after), = call.written
        return [call.replace(function=IN_PLACE_VIEWS[call.function], results=Ref(after),
                             written=())]
    if call.function in (torch.masked_fill, Tensor.masked_fill) and len(call.leaves) == 3:
        x, mask, value = call.leaves
        kind = kinds[call.outputs[0]]
        if isinstance(value, float | int) and kind.dtype.is_floating_point and kind.is_contiguous:
            leaves, spec = flatten_arguments((mask, value, x), {})
            return [call.replace(function=torch.where, leaves=tuple(leaves), spec=spec)]
    return [call]


def make_copy(value: int, copy: int, line: str) -> Call:
    """Returns the call that copies a value."""
    leaves, spec = flatten_arguments((Ref(value),), {})
    return Call(Tensor.clone, tuple(leaves), spec, Ref(copy), (), Mode.now(), False, line)


def _make_factory(call: Call, kinds: dict[int, Kind]) -> Call:
    """Returns the call of a factory; the call itself, where it reads or makes more."""
    kind = kinds[call.outputs[0]]
    factory = _FACTORIES[call.function]
    args, kwargs = pytree.tree_unflatten(list(call.leaves), call.spec)
    given: tuple[Any, ...] = list(kind.shape),
    if factory is torch.full:
        at = 2 if call.function is Tensor.new_full else 1
        given += (kwargs["fill_value"] if "fill_value" in kwargs else args[at],)
    leaves, spec = flatten_arguments(given, {"dtype": kind.dtype, "device": kind.device})
    if (kind.requires_grad or not kind.is_contiguous or "generator" in kwargs
            or any(isinstance(leaf, Ref) for leaf in leaves)):
        return call
    return call.replace(function=factory, leaves=tuple(leaves), spec=spec)


def _split_dropout(call: Call, add_value: Callable[[Kind], int],
                   kinds: dict[int, Kind]) -> list[Call]:
    if not call.is_random or call.written or len(call.inputs) != 1:
        return [call]
    kind = kinds[call.inputs[0]]
    ones, draw = (add_value(kind._replace(requires_grad=False)) for _ in range(2))

    def make(function: Any, value: int, is_random: bool, *given: Any, **named: Any) -> Call:
        leaves, spec = flatten_arguments(given, named)
        return Call(function, tuple(leaves), spec, Ref(value), (), call.mode, is_random, call.line)

    factory = make(torch.ones, ones, False, kind.shape, dtype=kind.dtype, device=kind.device)
    replaced = [Ref(ones) if isinstance(leaf, Ref) else leaf for leaf in call.leaves]
    drawn = call.replace(leaves=tuple(replaced), results=Ref(draw))
    product = make(torch.mul, call.outputs[0], False, Ref(call.inputs[0]), Ref(draw))
    return [factory, drawn, product]
