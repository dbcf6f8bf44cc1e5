"""The number of operator calls does not depend on the number of steps."""
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, _ops, functional
from operator_calls import Calls

I, N = 6, 10
K: dict[str, Any] = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}


def _calls(run: Callable[[Tensor], Any], x: Tensor, gradients: bool) -> int:
    with Calls() as calls, torch.set_grad_enabled(gradients):
        out = next(value for value in run(x) if isinstance(value, Tensor))
        if gradients:
            out.sum().backward()
    return calls.counts.total()


def _alif(x: Tensor) -> Any:
    return functional.alif(x, torch.full((N, N), 0.1, requires_grad=True), **K)


def _layer(x: Tensor) -> Any:
    w_in, w, w_out = (torch.ones(shape, requires_grad=True) for shape in ((N, I), (N, N), (3, N)))
    return functional.layer(x, w_in, w, w_out=w_out, k_out=0.9, **K)


RUNS: dict[str, tuple[Callable[[], Callable[[Tensor], Any]], int]] = {
    "alif": (lambda: _alif, N), "layer": (lambda: _layer, I),
    "ALIF": (lambda: ALIF(I, N), I), "LIF": (lambda: LIF(I, N), I),
    "both directions": (lambda: ALIF(I, N, 2, bidirectional=True), I),
    "batch first": (lambda: ALIF(I, N, batch_first=True), I),
    "delays": (lambda: ALIF(I, N, delay=3), I),
    "trace": (lambda: partial(ALIF(I, N), trace=True), I),
    "checkpoints": (lambda: ALIF(I, N, checkpoint_every=4), I),
    "LSNN": (lambda: LSNN(I, 5, 5, 3), I),
    "readout": (lambda: LeakyReadout(N, 3), N)}


@pytest.mark.skipif(_ops._C is None, reason="the reference is a loop over time")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("density", [0.05, 1.0])
@pytest.mark.parametrize("name", RUNS)
def test_calls_do_not_grow_with_the_steps(name: str, density: float, gradients: bool) -> None:
    make, features = RUNS[name]
    inputs = [(torch.rand(steps, 8, features) < density).float() for steps in (8, 40)]
    few, many = (_calls(make(), x, gradients) for x in inputs)
    assert 0 < few == many
