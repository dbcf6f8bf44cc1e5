"""Gradients of outputs that are given those of what follows them."""
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import compress

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
    with without_functions():
        pairs = [(one, g) for one, g in zip(outputs, gradients, strict=True) if one.requires_grad]
        are_wanted = [one.requires_grad for one in inputs]
    if not pairs or not any(are_wanted):
        return (None,) * len(inputs)
    with nullcontext() if has_modes else without_functions():
        found = iter(run_backward(
            *zip(*pairs, strict=True), True, False, tuple(compress(inputs, are_wanted)),
            allow_unreachable=True, accumulate_grad=False))
    return tuple(next(found) if is_wanted else None for is_wanted in are_wanted)
