"""Rules that our autograd functions share.

torch.vmap makes one call for each element of the batch, and a second derivative raises an error,
since spikes have none.
"""
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .torch_internals import is_transforming, tree_map, without_compiler


def loop_over_batch(op: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the batching rule of an operator; in_dims has the structure of its arguments."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        def select(k: int, value: Any, axis: Any) -> Any:
            if isinstance(value, list | tuple):
                axes = axis if isinstance(axis, list | tuple) else [None] * len(value)
                return [select(k, part, a) for part, a in zip(value, axes, strict=True)]
            if not isinstance(value, Tensor):
                return value
            if info.batch_size:
                return value if axis is None else value.select(axis, k)
            tensors.append(value)
            shape = [n for each, n in enumerate(value.shape) if each != axis]
            return value.new_empty(shape, device="meta")

        tensors: list[Tensor] = []
        calls = [op(*(select(k, value, axis) for value, axis in zip(args, in_dims, strict=True)))
                 for k in range(max(info.batch_size, 1))]
        if info.batch_size:
            stacked = tree_map(lambda *parts: torch.stack(parts), *calls)
        else:
            nothing = sum(one.flatten()[:0].sum() for one in tensors if one.is_floating_point())

            def make_empty(result: Tensor) -> Tensor:  # (0, ...), in the graph of the tensors
                made = torch.empty((0, *result.shape), dtype=result.dtype, device=tensors[0].device)
                return made + nothing if made.is_floating_point() else made

            stacked = tree_map(make_empty, calls[0])
        return stacked, tree_map(lambda _: 0, stacked)

    return without_compiler(rule)


class _FirstDerivative(torch.autograd.Function):
    """The identity on gradients; its backward pass raises RuntimeError."""

    generate_vmap_rule = True

    @staticmethod
    def forward(n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first n of the tensors, which depend on the others."""
        return tuple(tensor.clone() for tensor in tensors[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError("lsnn_ext: expected a first derivative, got a second derivative, which "
                           "spikes do not have")


def forbid_second_derivative(gradients: Sequence[Tensor | None],
                             depend_on: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of a backward pass, of which a further backward pass raises RuntimeError.

    Without this a recorded backward pass (create_graph=True) would take them for constants and
    silently drop their gradients.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tuple(gradients)
    depends = [tensor for tensor in depend_on if tensor is not None]
    if not is_transforming():
        depends.append(present[0].new_zeros((), requires_grad=True))  # for what was not saved
    results = iter(_FirstDerivative.apply(len(present), *present, *depends))
    return tuple(None if gradient is None else next(results) for gradient in gradients)
