"""What tests of verify and of its report share: a spike, numbers, and plans of functions."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.record import record
from surrogates import Triangle

spike = Triangle.apply


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64, the same for a shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def prepare(function: Callable[..., Any], args: list[Tensor]) -> tuple[Plan, Any]:
    """A plan that verify can check, and the result of the function."""
    args = [one.requires_grad_(one.is_floating_point()) for one in args]
    result, recording = record(function, tuple(args), {}, Origins(function, tuple(args), {}),
                               keep_numbers=True)
    assert not isinstance(recording, Exception), recording
    return Plan(recording), result
