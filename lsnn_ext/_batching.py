"""torch.vmap over a raw operator without gradients: one call for each element of the batch."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._torch_internals import tree_map


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """The batching rule of an operator; in_dims has the structure of its arguments."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        def element(k: int, value: Any, axis: Any) -> Any:
            if isinstance(value, list | tuple):
                axes = axis if isinstance(axis, list | tuple) else [None] * len(value)
                return [element(k, part, a) for part, a in zip(value, axes, strict=True)]
            return (
                value.select(axis, k) if isinstance(value, Tensor) and axis is not None else value
            )

        calls = [op(*(element(k, value, axis) for value, axis in zip(args, in_dims, strict=True)))
                 for k in range(info.batch_size)]
        stacked = tree_map(lambda *parts: torch.stack(parts), *calls)
        return stacked, tree_map(lambda _: 0, stacked)

    return rule
