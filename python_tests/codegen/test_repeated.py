"""RepeatedCall returns what functional.recurrent does, whatever it knows from earlier calls."""
from typing import Any

import pytest
import torch
from torch import Tensor

import lsnn_ext
from compare import weighted_gradients
from lsnn_ext._core.decisions import listening
from lsnn_ext.codegen import call as codegen_call
from lsnn_ext.codegen.call import RepeatedCall
from lsnn_ext.codegen.state import NeuronState
from lsnn_ext.zoo.surrogates import super_spike

T, B, I, N = 7, 3, 5, 6
SCALE = torch.tensor(2.0)


def step(c: Tensor, v: Tensor, w: Tensor, z: Tensor, *, a: Tensor) -> tuple[Tensor, ...]:
    v = a * v + c - SCALE * w * z
    w = 0.9 * w + 0.1 * z
    return v, w, super_spike(v - 0.5)


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
    return [*results, *(weighted_gradients(results, leaves) if leaves else ())]


def recurrent(x: Tensor, w_rec: Tensor, delay: Any, state: NeuronState,
              coefficients: dict[str, Tensor], trace: bool, **projection: Tensor) -> Any:
    found = lsnn_ext.functional.recurrent(x, w_rec, NEURON, delay=delay, state=state, trace=trace,
                                          **projection, **coefficients)
    return found if trace else (*found, {})


NEURON = lsnn_ext.Neuron(step)
OTHERS: dict[str, Any] = {
    "same": {},
    "other numbers": {"x": draw(T, B, N, seed=5)},
    "not contiguous": {"x": draw(B, T, N).transpose(0, 1)},
    "other length": {"x": draw(T + 2, B, N)},
    "no trace": {"trace": False},
    "projection": {"x": draw(T, B, I), "w_in": draw(N, I, seed=6), "bias": draw(N, seed=7)},
    "spikes": {"x": (draw(T, B, I) > 1).double(), "w_in": draw(N, I, seed=6)}}


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("name", OTHERS)
def test_calls_are_those_of_recurrent(name: str, is_first: bool) -> None:
    call, calls = RepeatedCall(NEURON), [OTHERS[name], OTHERS[name], {}]
    for changed in calls if is_first else [{}, *calls]:
        found, wanted = run(call, make(**changed)), run(recurrent, make(**changed))
        assert all(map(torch.equal, found, wanted))


def test_without_gradients_and_with_them() -> None:
    call = RepeatedCall(NEURON)
    with torch.no_grad():
        first = [run(call, make()) for _ in range(2)]
    found, wanted = run(call, make()), run(recurrent, make())
    assert all(map(torch.equal, found, wanted))
    assert all(map(torch.equal, first[1], [one.detach() for one in wanted]))


def test_numbers_of_a_tensor_that_the_step_reads_may_change() -> None:
    call = RepeatedCall(NEURON)
    before = run(call, make())
    run(call, make())
    try:
        SCALE.fill_(0.5)
        found, wanted = run(call, make()), run(recurrent, make())
    finally:
        SCALE.fill_(2.0)
    assert all(map(torch.equal, found, wanted))
    assert not torch.equal(found[1], before[1])


def test_the_loop_runs_where_recurrent_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    call = RepeatedCall(NEURON)
    run(call, make())
    loops, original = [], codegen_call._run_loop
    monkeypatch.setattr(codegen_call, "_run_loop", lambda *args: (
        loops.append(1), original(*args))[1])
    with lsnn_ext.use_reference():
        found = run(call, make())
    assert len(loops) == 1
    assert all(torch.allclose(one, other) for one, other in zip(found, run(call, make()),
                                                                strict=True))
    assert len(loops) == 1


def test_decisions_are_reported() -> None:
    call = RepeatedCall(NEURON)
    run(call, make())
    kinds: list[str] = []
    with listening(lambda kind, *facts: kinds.append(kind)):
        run(call, make())
    assert "step" in kinds


def test_later_calls_check_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    call = RepeatedCall(NEURON)
    run(call, make())
    monkeypatch.setattr(codegen_call, "check_call", lambda *args: pytest.fail("checked again"))
    run(call, make())
