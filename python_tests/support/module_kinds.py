"""Layers of each kind, weights of few bits, single steps over a sequence, and a parametrization."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lsnn_ext import ALIF, LIF, LSNN


def make_kinds(I: int, N: int, O: int = 2) -> dict[str, Callable[..., Any]]:
    """Constructors of modules with I inputs and N neurons, three of LSNN's without adaptation."""
    return {"ALIF": lambda **options: ALIF(I, N, **options),
            "LIF": lambda **options: LIF(I, N, **options),
            "LSNN": lambda **options: LSNN(I, 3, N - 3, O, **options)}


def neurons_of(module: Any) -> Any:
    """What has the weights of nn.LSTM."""
    return module.neurons if isinstance(module, LSNN) else module


def round_weights(module: nn.Module, steps: int = 256, matrices_only: bool = True) -> Any:
    """The module with weights that are multiples of 1 / steps: sums are exact in any order."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2 or not matrices_only:
                parameter.copy_((parameter * steps).round() / steps)
    return module


def run_steps(module: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Outputs (T, ...) and the last state of single steps."""
    outputs = []
    for x_t in x:
        out, state = module.step(x_t, state)
        outputs.append(out)
    return torch.stack(outputs), state


class Exp(nn.Module):
    """A parametrization that keeps a learned value positive."""

    def forward(self, value: Tensor) -> Tensor:
        return value.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()
