"""Dropout as a draw, which depends on no number, times its argument."""
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .ir import Call, Kind, Ref


def split_dropout(call: Call, add_value: Callable[[Kind], int],
                   kinds: dict[int, Kind]) -> list[Call]:
    """The calls in the place of one, whose draw depends on no number."""
    args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
    is_dropout = call.function in (torch.nn.functional.dropout, torch.dropout)
    if not (is_dropout and call.is_random) or call.written or len(call.inputs) != 1:
        return [call]
    kind = kinds[call.inputs[0]]
    ones, draw = (add_value(kind._replace(requires_grad=False)) for _ in range(2))

    def make(function: Any, value: int, is_random: bool, *given: Any, **named: Any) -> Call:
        leaves, spec = pytree.tree_flatten((given, named))
        return Call(function, tuple(leaves), spec, Ref(value), (), call.mode, is_random, call.line)

    factory = make(torch.ones, ones, False, kind.shape, dtype=kind.dtype, device=kind.device)
    replaced = [Ref(ones) if isinstance(leaf, Ref) else leaf for leaf in call.leaves]
    drawn = call.replace(leaves=tuple(replaced), results=Ref(draw))
    product = make(torch.mul, call.outputs[0], False, Ref(call.inputs[0]), Ref(draw))
    return [factory, drawn, product]
