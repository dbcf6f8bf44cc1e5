"""The rows that kernels read are computed on the device of a call."""
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext import zoo
from lsnn_ext.codegen.trace import trace
from surrogates import SpyTorch
from zoo_loops import draw_call, zoo_coefficients

META = torch.device("meta")  # stands for a GPU: its operators refuse tensors of the CPU
N = 7
held = torch.ones(N, device=META)


def step(c: Tensor, v: Tensor, z: Tensor, *, tau: Any, theta: Any, w: Any) -> tuple[Any, ...]:
    """Reads a closed-over tensor, makes one, and mixes numbers with tensors."""
    alpha = torch.exp(-1 / tau) if isinstance(tau, Tensor) else 1 - 1 / tau
    reset = torch.sqrt(theta * held + w) + torch.ones(N, device=held.device)
    v = alpha * v + (1 - alpha) * c - z * reset
    return v, SpyTorch.apply(v - theta)


@pytest.mark.parametrize("given", [
    {"tau": torch.ones(N), "theta": 0.5, "w": torch.ones(())},
    {"tau": 3.0, "theta": 0.5, "w": 1.0},
    {"tau": torch.ones(N), "theta": torch.ones(()), "w": 0.0}], ids=str)
def test_rows_are_on_the_device(given: dict[str, Any]) -> None:
    given = {name: one.to(META) if isinstance(one, Tensor) else one for name, one in given.items()}
    traced = trace(step, currents=1, states=1, dtype=torch.float32, coefficients=given)
    rows = traced.prologue(list(given.values()), META)
    assert rows and all(one.device == META for one in rows)


@pytest.mark.parametrize("name", zoo.NEURONS)
def test_rows_of_the_zoo_are_on_the_device(name: str) -> None:
    neuron = zoo.NEURONS[name].neuron
    x, _, values = draw_call(name, 0)
    given = neuron.all_coefficients({**zoo_coefficients(name), **values})
    parts = neuron.parts(given, x, x.shape[-1])
    given = {key: one.to(META) if isinstance(one, Tensor) else one for key, one in given.items()}
    traced = trace(neuron.step, currents=len(parts.currents), states=len(parts.states),
                   dtype=x.dtype, coefficients=given, forms=parts.forms)
    assert all(one.device == META for one in traced.prologue(list(given.values()), META))
