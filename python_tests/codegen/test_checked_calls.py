"""Calls of checked arguments, as converted loops make them, are those of functional.recurrent."""
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import lsnn_ext
from lsnn_ext._core.options import CallArguments
from lsnn_ext.codegen import call as codegen_call
from lsnn_ext.codegen.state import NeuronState
from lsnn_ext.zoo.surrogates import super_spike

T, B, I, N = 7, 3, 5, 6


def step(c: Tensor, v: Tensor, w: Tensor, z: Tensor, *, a: Tensor) -> tuple[Tensor, ...]:
    v = a * v + c - 2.0 * w * z
    return v, 0.9 * w + 0.1 * z, super_spike(v - 0.5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**changed: Any) -> dict[str, Any]:
    """Arguments of a call."""
    state = NeuronState({"v": draw(B, N, seed=1), "w": draw(B, N, seed=2)}, torch.zeros(
        1, B, N, dtype=torch.float64))
    given = {"x": draw(T, B, N), "w_rec": draw(N, N, seed=3), "delay": 0, "state": state,
             "coefficients": {"a": draw(N, seed=4).sigmoid()}, "trace": True} | changed
    tensors = [given["x"], given["w_rec"], given["coefficients"]["a"], *state.states.values()]
    for one in (*tensors, given.get("w_in"), given.get("bias")):
        if one is not None and torch.is_grad_enabled():
            one.requires_grad_()
    return given


def run(function: Any, given: dict[str, Any]) -> list[Tensor]:
    """Results, and gradients of all arguments."""
    spikes, state, traces = function(**given)
    results = [spikes, *state.states.values(), state.z, *traces.values()]
    leaves = [one for one in (given["x"], given["w_rec"], given["coefficients"]["a"],
                              *given["state"].states.values(), given.get("w_in"),
                              given.get("bias")) if one is not None and one.requires_grad]
    total = sum((one * draw(*one.shape, seed=9)).sum() for one in results)
    return [*results, *(torch.autograd.grad(total, leaves) if leaves else ())]


def call(x: Tensor, w_rec: Tensor, delay: Any, state: NeuronState,
         coefficients: dict[str, Tensor], trace: bool, w_in: Tensor | None = None,
         bias: Tensor | None = None, is_checked: bool = True) -> Any:
    options = CallArguments(delay=delay, state=state, trace=trace)
    found = codegen_call.recurrent(x, w_rec, NEURON, options, coefficients, w_in, bias, is_checked)
    return found if trace else (*found, {})


NEURON, recurrent = lsnn_ext.Neuron(step), partial(call, is_checked=False)
CASES: dict[str, Any] = {
    "as it is": {},
    "not contiguous": {"x": draw(B, T, N).transpose(0, 1)},
    "no trace": {"trace": False},
    "delay": {"delay": 1, "state": NeuronState({"v": draw(B, N, seed=1), "w": draw(B, N, seed=2)},
                                               (draw(2, B, N, seed=8) > 0).double())},
    "projection": {"x": draw(T, B, I), "w_in": draw(N, I, seed=6), "bias": draw(N, seed=7)},
    "spikes": {"x": (draw(T, B, I) > 1).double(), "w_in": draw(N, I, seed=6)}}


@pytest.mark.parametrize("name", CASES)
def test_calls_are_those_of_recurrent(name: str) -> None:
    for _ in range(2):
        found, wanted = run(call, make(**CASES[name])), run(recurrent, make(**CASES[name]))
        assert all(map(torch.equal, found, wanted))


def test_without_gradients_and_with_them() -> None:
    with torch.no_grad():
        first = run(call, make())
    found = run(call, make())
    assert all(map(torch.equal, found, run(recurrent, make())))
    assert all(map(torch.equal, first, [one.detach() for one in found]))


def test_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen_call, "check_call", lambda *args: pytest.fail("checked again"))
    run(call, make())
