"""Coefficients that a layer caches between calls: every change takes effect in the next call."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same
from lsnn_ext import ALIF, functional

T, B, I, N = 30, 3, 8, 20


def _set(name: str, value: float) -> Callable[[ALIF], Any]:
    return lambda layer: setattr(layer, name, value)


CHANGES: dict[str, Callable[[ALIF], Any]] = {
    "nothing": lambda layer: None,
    "in place": lambda layer: layer.tau_mem_l0.mul_(0.5),
    "data": lambda layer: layer.threshold_l0.data.mul_(2.0),
    "data of another dtype": lambda layer: setattr(
        layer.tau_mem_l0, "data", layer.tau_mem_l0.double()),
    "numpy": lambda layer: layer.beta_l0.numpy().fill(0.3),
    "another": lambda layer: setattr(layer, "tau_adapt_l0", torch.full((N,), 50.0)),
    "loaded": lambda layer: layer.load_state_dict(
        {name: value * 0.9 if value.is_floating_point() else value
         for name, value in layer.state_dict().items()}),
    "dt": _set("dt", 2.0), "refractory": _set("refractory", 3), "dampening": _set("dampening", 0.7),
    "dynamics": lambda layer: setattr(layer, "dynamics", "srnn"),
    "double": lambda layer: layer.double(),
    "learns": lambda layer: layer.tau_mem_l0.requires_grad_(),
    "delay": _set("delay", 2), "autapses": _set("autapses", True)}


def _results(layer: ALIF, x: Tensor) -> list[Tensor]:
    spikes, state = layer(x)
    loss = (spikes * torch.linspace(-1, 2, spikes.numel()).view_as(spikes)).sum() + state.v.sum()
    wanted = [one for one in (*layer.parameters(), *layer.buffers()) if one.requires_grad]
    return [spikes, *state, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    torch.manual_seed(0)
    layer, x = ALIF(I, N, beta=torch.linspace(0, 2, N)), (torch.rand(T, B, I) < 0.3).float()
    before = _results(layer, x)
    for _ in range(2):  # of what is kept
        assert_same("again", _results(layer, x), before)
    CHANGES[change](layer)
    x = x.to(layer.weight_ih_l0.dtype)  # type: ignore[arg-type,call-overload]
    fresh = copy.deepcopy(layer)
    assert "_coefficients" not in fresh.__dict__
    after = _results(layer, x)
    assert_same(change, after, _results(fresh, x))
    differs = [not torch.equal(one.to(two.dtype), two)
               for one, two in zip(before, after, strict=False)]
    assert any(differs) or change in ("nothing", "double", "learns", "data of another dtype")


def test_another_tensor_for_one_call() -> None:
    """torch.func.functional_call, with a gradient of a buffer too."""
    layer, x = ALIF(I, N), (torch.rand(T, B, I) < 0.3).float()
    want, tau = layer(x)[0], torch.tensor(5.0).requires_grad_()
    other, state = torch.func.functional_call(layer, {"tau_mem_l0": tau}, (x,))
    (gradient,) = torch.autograd.grad(state.v.sum(), tau)
    assert not torch.equal(other, want) and bool(gradient.isfinite()) and bool(gradient)
    assert_same("after it", layer(x)[0], want)


def test_within_inference_mode_first() -> None:
    layer, x = ALIF(I, N), (torch.rand(T, 200, I) < 0.3).float()
    with torch.inference_mode(), functional.use_reference():
        layer(x)
    layer(x)[0].sum().backward()
    with torch.inference_mode():
        layer(x)
    layer(x)[0].sum().backward()
