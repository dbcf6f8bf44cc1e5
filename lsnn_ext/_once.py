"""Gradients that may be taken once: a spike has no second derivative."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class _OnlyOnce(torch.autograd.Function):
    """Gradients as they are; whoever asks for their gradient gets an error."""

    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """The first n of the tensors; the others are what they depend on."""
        return tuple(None if t is None else t.clone() for t in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "lsnn_ext: expected one derivative, got a second derivative, which spikes do not have"
        )


def only_once(
    gradients: Sequence[Tensor | None], depend_on: Iterable[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients that a backward pass has computed, for what records it (create_graph=True).

    Without this they would count as constants there, and their own gradients be dropped silently.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    unsaved = torch.zeros((), requires_grad=True)  # what they depend on and was not saved
    return _OnlyOnce.apply(len(gradients), *gradients, unsaved, *depend_on)
