"""Steps and short calls without gradients, compared with the operators."""
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compare import flat
from lsnn_ext import ALIF, LIF
from lsnn_ext._core import prepared_layer
from lsnn_ext.modules import recurrent

I, N = 6, 37
DELAYS = torch.arange(N * N).view(N, N) % 3
LAYERS: dict[str, Callable[[], Any]] = {
    "ALIF": lambda: ALIF(I, N),
    "float64": lambda: ALIF(I, N, dtype=torch.float64),
    "no-bias": lambda: ALIF(I, N, bias=False, autapses=True),
    "feedforward": lambda: ALIF(I, N, recurrent=False),
    "whole-rows": lambda: ALIF(I, 64, autapses=True),
    "arctan": lambda: ALIF(I, 64, surrogate="arctan", dampening=0.5),
    "refractory": lambda: ALIF(I, N, refractory=3),
    "delay": lambda: ALIF(I, N, delay=2),
    "delays": lambda: ALIF(I, N, num_layers=2, delay=DELAYS),
    "delays-autapses": lambda: ALIF(I, N, delay=DELAYS, autapses=True),
    "learned": lambda: ALIF(I, N, learn=("tau_mem", "tau_adapt", "beta", "threshold")),
    "learned-each": lambda: ALIF(I, N, tau_mem=torch.linspace(10, 30, N), learn=("tau_mem",)),
    "three-layers": lambda: ALIF(I, N, num_layers=3, delay=2, refractory=2),
    "LIF": lambda: LIF(I, N)}
needs_prepared_layers = pytest.mark.skipif(
    not prepared_layer._USABLE, reason="no compiled operators here, or emulated ones")


def assert_equal(got: Any, want: Any) -> None:
    """Bit for bit, zeros with their signs; got has no gradient."""
    got, want = flat(got), [leaf.detach() for leaf in flat(want)]
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and not one.requires_grad
        assert torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def without_operators(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call that must not take the operators."""
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("called the operators")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent.Recurrent, "_run_layers", refuse)
        return call(*arguments)


def prepared(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result without gradients and without the operators."""
    with torch.no_grad():
        return without_operators(call, *arguments)


def agree(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of prepared layers, equal to that of the operators."""
    result = prepared(call, *arguments)
    assert_equal(result, call(*arguments))
    return result
