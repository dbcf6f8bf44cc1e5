"""functional.alif with a projection equals functional.layer, and both parts apart."""
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compare import assert_all_same, assert_same, weighted_gradients
from layers import NEURON, B, T, problem
from lsnn_ext import functional
from operator_calls import Calls

KEYS = ("x", "w_in", "w_rec", "bias")


def _found(out: Tensor, state: functional.State, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = weighted_gradients((out, state.v), leaves.values())
    return {"spikes": out, "v": state.v,
            **{f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def _with_projection(leaves: dict[str, Tensor], **neuron: Any) -> dict[str, Tensor]:
    out, state, *_ = functional.alif(leaves["x"], leaves["w_rec"], w_in=leaves["w_in"],
                                     bias=leaves.get("bias"), **NEURON, **neuron)
    return _found(out, state, leaves)


def _apart(leaves: dict[str, Tensor], **neuron: Any) -> dict[str, Tensor]:
    current = nn.functional.linear(leaves["x"], leaves["w_in"], leaves.get("bias"))
    out, state, *_ = functional.alif(current, leaves["w_rec"], **NEURON, **neuron)
    return _found(out, state, leaves)


def _leaves(dtype: torch.dtype = torch.float32, share: float = 0.1, steps: int = T,
            bias: bool = True) -> dict[str, Tensor]:
    given = problem(dtype, share)
    given["x"] = given["x"][:steps]
    return {name: given[name].clone().requires_grad_() for name in KEYS[: 4 if bias else 3]}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("share", [0.1, 1.0], ids=["events", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [3, T], ids=["short", "long"])
def test_equals_a_layer_and_its_parts(steps: int, dtype: torch.dtype, share: float,
                                      bias: bool) -> None:
    leaves = _leaves(dtype, share, steps, bias)
    got = _with_projection(leaves)
    assert steps < T or bool(got["spikes"].any())
    made = functional.layer(leaves["x"], leaves["w_in"], leaves["w_rec"], bias=leaves.get("bias"),
                            **NEURON)
    assert_all_same(got, _found(made.spikes, made.state, leaves))
    assert_all_same(got, _apart(leaves), tolerance=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("share", "fused"), [(0.1, True), (1.0, False)])
def test_takes_the_ways_of_a_layer(share: float, fused: bool) -> None:
    leaves = _leaves(share=share)
    with Calls() as calls, torch.no_grad():
        functional.alif(leaves["x"], leaves["w_rec"], w_in=leaves["w_in"], **NEURON)
    call, = calls.forward
    assert (call.given.get("w_in") is not None) == fused


@pytest.mark.parametrize("neuron", [
    {"trace": True}, {"lengths": torch.arange(B) * 3}, {"checkpoint_every": 16},
    {"state": functional.State(*(torch.full((B, 300), 0.25) for _ in range(4)),
                               torch.ones(1, B, 300))}], ids=lambda neuron: next(iter(neuron)))
def test_with_other_arguments(neuron: dict[str, Any]) -> None:
    leaves = _leaves()
    assert_all_same(_with_projection(leaves, **neuron), _apart(leaves, **neuron), tolerance=1e-5)


def test_traces_come_third() -> None:
    leaves = _leaves()
    *_, traces = functional.alif(leaves["x"], leaves["w_rec"], w_in=leaves["w_in"], trace=True,
                                 **NEURON)
    assert traces.v.shape == (T, B, 300)


def test_spikes_as_bits() -> None:
    given = problem(torch.float32)
    packed = functional.pack_spikes(given["x"])
    got, _ = functional.alif(packed, given["w_rec"], w_in=given["w_in"], **NEURON)
    want, _ = functional.alif(given["x"], given["w_rec"], w_in=given["w_in"], **NEURON)
    assert_same("spikes", got, want)


BAD = [
    (lambda g: {"bias": g["bias"]}, ValueError, "bias: expected w_in with it, got None"),
    (lambda g: {"w_in": g["w_in"][:, 1:]}, ValueError,
     r"w_in: expected shape \(N, 23\), got \(300, 22\)"),
    (lambda g: {"w_in": [1.0]}, TypeError, "w_in: expected a tensor, got list"),
    (lambda g: {"w_in": g["w_in"].to("meta")}, ValueError,
     "w_in: expected device cpu as current, got meta"),
    (lambda g: {"w_in": g["w_in"], "bias": g["bias"][1:]}, ValueError,
     r"bias: expected shape \(300,\)"),
    (lambda g: {"w_in": g["w_in"], "current": g["x"][0]}, ValueError,
     r"current: expected shape \(T, B, I\)"),
    (lambda g: {"w_in": g["w_in"][1:]}, ValueError, r"w_rec: expected shape \(299, 299\)")]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_input_is_refused(change: Any, kind: type[Exception], message: str) -> None:
    given = problem(torch.float32)
    arguments = {"current": given["x"], "w_rec": given["w_rec"], **change(given)}
    with pytest.raises(kind, match=message):
        functional.alif(**arguments, **NEURON)
