"""Gradients of outputs that are given those of what follows them."""
from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor

from .._core.torch_internals import run_backward, without_functions


def differentiate(outputs: Sequence[Tensor], inputs: Sequence[Tensor],
                  gradients: Sequence[Tensor],
                  has_modes: bool = False) -> tuple[Tensor | None, ...]:
    """Returns the gradients of inputs from those of outputs; None: there is none. The graph stays
    usable. torch.autograd.grad imports sympy where it gets gradients, which takes longer than to
    trace a step.

    has_modes: with modes of functions of torch, which torch.autograd.grad disables.
    """
    with nullcontext() if has_modes else without_functions():
        found: tuple[Tensor | None, ...] = run_backward(
            tuple(outputs), tuple(gradients), True, False, tuple(inputs), allow_unreachable=True,
            accumulate_grad=False)
    return found
