"""Gradients that may be taken once: a spike has no second derivative."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .torch_internals import is_transforming


class _OnlyOnce(torch.autograd.Function):
    """Gradients as they are; whoever asks for their gradient gets an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first n of the tensors; the others are what they depend on."""
        return tuple(tensor.clone() for tensor in tensors[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "lsnn_ext: expected one derivative, got a second derivative, which spikes do not have"
        )


def forbid_second_derivative(
    gradients: Sequence[Tensor | None], depend_on: Iterable[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients that a backward pass has computed, for what records it (create_graph=True).

    Without this they would count as constants there, and their own gradients be dropped silently.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tuple(gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return tuple(gradients)
    depends = [tensor for tensor in depend_on if tensor is not None]
    if not is_transforming():
        depends.append(torch.zeros((), requires_grad=True))  # whatever was not saved
    held = iter(_OnlyOnce.apply(len(present), *present, *depends))
    return tuple(None if gradient is None else next(held) for gradient in gradients)
