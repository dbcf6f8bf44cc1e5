"""Gradients of outputs that are given those of what follows them."""
from collections.abc import Sequence

from torch import Tensor

from .._core.torch_internals import run_backward


def differentiate(outputs: Sequence[Tensor], inputs: Sequence[Tensor],
                  gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Returns the gradients of inputs from those of outputs; None: there is none. The graph stays
    usable. torch.autograd.grad imports sympy where it gets gradients, which takes longer than to
    trace a step, and disables modes of functions."""
    found: tuple[Tensor | None, ...] = run_backward(
        tuple(outputs), tuple(gradients), True, False, tuple(inputs), allow_unreachable=True,
        accumulate_grad=False)
    return found
