"""Surrogates of other packages inside of steps."""
from typing import Any

import pytest
import torch
from torch import Tensor

from traced_steps import NEURONS, check_step


def import_package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed; pip install \".[peers]\"")


@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "sigmoid", "straight_through_estimator"])
def test_snntorch(name: str) -> None:
    surrogate = getattr(import_package("snntorch.surrogate"), name)()

    def rleaky(c: Tensor, mem: Tensor, z: Tensor, *, beta: Any, threshold: Any) -> Any:
        reset = (mem - threshold > 0).to(mem).detach()
        mem = beta * mem + c - reset * threshold
        return mem, surrogate(mem - threshold).to(mem)

    for dtype in (torch.float32, torch.float64):
        beta = torch.linspace(0.8, 0.95, NEURONS, dtype=dtype)
        for seed in range(3):
            traced = check_step(rleaky, {"beta": beta, "threshold": 1.0}, dtype=dtype, seed=seed,
                                tolerance=1e-5 if dtype == torch.float32 else 1e-7)
            assert traced.program.is_spike


@pytest.mark.parametrize("method", ["super", "triangle", "tanh", "circ", "heavi_erfc", "heaviside"])
def test_norse(method: str) -> None:
    threshold = import_package("norse.torch.functional.threshold").threshold

    def lif(c: Tensor, v: Tensor, i: Tensor, z: Tensor, *, a: Any) -> Any:
        v = v + 0.1 * ((0.0 - v) + i)
        z = threshold(v - 1.0, method, torch.as_tensor(100.0))
        return (1 - z.detach()) * v, i - a * i + c, z

    check_step(lif, {"a": 0.2}, states=2, dtype=torch.float32, is_exact=False)


@pytest.mark.parametrize("name", ["Sigmoid", "ATan", "PiecewiseQuadratic", "Erf", "LeakyKReLU",
                                  "PiecewiseLeakyReLU"])
def test_spikingjelly(name: str) -> None:
    surrogate = getattr(import_package("spikingjelly.activation_based.surrogate"), name)()

    def lif(c: Tensor, v: Tensor, z: Tensor, *, tau: Any) -> Any:
        h = v + (c - v) / tau
        z = surrogate(h - 1.0)
        return h * (1 - z), z

    for dtype in (torch.float32, torch.float64):
        tau = torch.tensor(2.0, dtype=dtype)
        check_step(lif, {"tau": tau}, dtype=dtype, is_exact=False)
