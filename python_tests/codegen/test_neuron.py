"""Neuron: signature, identity, copies, pickles; no kernel outlives what its step reads."""
import copy
import functools
import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import any_neurons
from any_neurons import ADAPTIVE, BRANCHES, adaptive, branches
from lsnn_ext import Neuron, use_reference
from lsnn_ext.codegen import call as codegen_call
from lsnn_ext.codegen import kernels
from lsnn_ext.codegen.form import Form
from lsnn_ext.functional import recurrent

DECAY = 0.5


@Neuron
def decorated(c, v, z, *, tau=2.0):
    return DECAY * v + c / tau, torch.sigmoid(v)


class Cell(nn.Module):
    def forward(self, c: Tensor, v: Tensor, z: Tensor, *, tau: float) -> tuple[Tensor, Tensor]:
        v = v + c / tau
        return v, (v > 1).to(v.dtype)


def test_reads_the_signature() -> None:
    assert ADAPTIVE.inputs == ("c", "v", "w", "z")
    assert list(ADAPTIVE.coefficients) == ["tau", "theta"]
    like = torch.zeros(0)
    forms = (Form(), Form())
    assert ADAPTIVE.parts({"tau": 1.0, "theta": 1.0}, like, 3) == (
        ("c",), ("v", "w"), forms, "tau:number theta:number")
    assert BRANCHES.parts({"tau": 1.0, "gain": torch.ones(3)}, like, 3) == (
        ("c", "d"), ("u", "v"), forms, "tau:number gain:N")
    assert repr(ADAPTIVE) == "Neuron(adaptive)" and "Neuron(decorated)" == repr(decorated)
    assert ADAPTIVE == Neuron(adaptive) != BRANCHES
    assert len({ADAPTIVE, Neuron(adaptive), BRANCHES}) == 2
    assert Neuron(ADAPTIVE).step is adaptive
    state = torch.random.get_rng_state()
    noisy = Neuron(lambda c, v, z: (v + torch.randn_like(v), torch.sigmoid(c)))
    assert noisy.parts({}, like, 3) == (("c",), ("v",), forms[:1], "")
    assert torch.equal(state, torch.random.get_rng_state())
    assert decorated(torch.ones(1), torch.ones(1), torch.ones(1))[0] == 1.0


@pytest.mark.parametrize(("step", "message"), [
    (3, "expected a function step"),
    (lambda z: z, "expected a current and the last spike"),
    (lambda *c: c, "expected a name for each current"),
    (lambda c, z, **more: z, "expected a name for each current"),
    (lambda c, v=0.0, z=0.0: z, "expected no default of the current, state or spike v"),
    (lambda c, z, *, delay=1: z, "expected another name for the coefficient delay"),
    (lambda c, z, *, tau="1": z, "tau: expected a number or a tensor, got str")])
def test_refuses_what_is_no_step(step: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Neuron(step)


@pytest.mark.parametrize(("step", "message"), [
    (lambda c, v, z: (v, v, v, z), "expected one current or more, 3 states and z before"),
    (lambda c, v, z: None, "expected its states and its spike as a tuple"),
    (lambda c, v, z: (v, 0.0), "expected tensors as results, got float")])
def test_refuses_other_results(step: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        recurrent(torch.zeros(2, 1, 3), None, Neuron(step))


def test_refuses_results_of_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen_call, "explain_loop", lambda x: "kernels are off")
    with pytest.raises(ValueError, match=r"expected results of shape \(B, N\) = \(1, 3\)"):
        recurrent(torch.zeros(2, 1, 3), None, Neuron(lambda c, v, z: (v[:, :2], z)))
    counts = iter((1, 2, 1))
    neuron = Neuron(lambda c, v, z: (v,) * next(counts) + (z,))
    with pytest.raises(TypeError, match="expected 2 results at each step, got 3"):
        recurrent(torch.zeros(2, 1, 3), None, neuron)


@pytest.mark.parametrize("neuron", [ADAPTIVE, decorated, Neuron(Cell()), Neuron(Cell().forward),
                                    Neuron(functools.partial(branches, gain=1.0))], ids=repr)
def test_copies_keep_the_step(neuron: Neuron) -> None:
    assert copy.deepcopy(neuron).step is copy.copy(neuron).step is neuron.step
    again = pickle.loads(pickle.dumps(neuron))
    assert again.inputs == neuron.inputs and list(again.coefficients) == list(neuron.coefficients)
    if neuron in (ADAPTIVE, decorated):
        assert again.step is neuron.step and again == neuron


def test_a_local_step_is_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def local(c, v, z):
        return v, z

    for neuron in (Neuron(local), Neuron(lambda c, v, z: (v, z))):
        with pytest.raises(pickle.PicklingError, match="define it at the top of a module"):
            pickle.dumps(neuron)
        assert copy.deepcopy(neuron).step is neuron.step
    neuron = Neuron(branches)
    monkeypatch.setattr(any_neurons, "branches", adaptive)
    with pytest.raises(pickle.PicklingError, match="or one that was replaced"):
        pickle.dumps(neuron)


def test_a_step_that_changes_what_it_reads_is_refused(interpreted: None) -> None:
    calls = 0

    def step(c: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.relu(c if calls > 9 else -c)

    with pytest.raises(TypeError, match="changes nothing that it reads, got a change of calls"):
        for _ in range(3):
            recurrent(torch.ones(3, 1, 2), None, Neuron(step))


@pytest.mark.parametrize("context", [
    lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: 2 * x, lambda x: x),
    lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy(), torch.from_numpy),
    lambda: torch.autograd.set_detect_anomaly(True)])
def test_kernels_hold_nothing_of_what_is_active_at_the_first_call(
        context: Callable[[], Any], interpreted: None) -> None:
    x = torch.randn(4, 1, 2, requires_grad=True)
    neuron, same = Neuron(adaptive), Neuron(adaptive)
    with torch.no_grad(), context():
        recurrent(x, None, neuron, theta=0.5)
    gradients = [torch.autograd.grad(recurrent(x, None, one, theta=0.5)[0].sum(), x)[0]
                 for one in (neuron, same)]
    assert torch.equal(*gradients)


def test_a_first_call_inside_of_a_checkpoint(interpreted: None) -> None:
    x, neuron = torch.randn(4, 1, 2, requires_grad=True), Neuron(adaptive)

    def loss(x: Tensor) -> Tensor:
        return recurrent(x, None, neuron, theta=0.5)[0].sum()

    once = torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), x)[0]
    assert torch.equal(once, torch.autograd.grad(loss(x), x)[0])


def test_a_module_is_a_step(interpreted: None) -> None:
    spikes, _ = recurrent(torch.ones(4, 1, 2), None, Neuron(Cell()), tau=2.0)
    assert spikes[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_a_kernel_is_made_once_for_each_form(interpreted: None,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Neuron] = []
    make_kernel = kernels._make_kernel
    monkeypatch.setattr(kernels, "_make_kernel", lambda neuron, *more: made.append(neuron)
                        or make_kernel(neuron, *more))

    def call(dtype: torch.dtype = torch.float32, **coefficients: Any) -> Tensor:
        return recurrent(torch.ones(3, 1, 2, dtype=dtype), None, neuron, **coefficients)[0]

    neuron = Neuron(decorated.step)
    first = call()
    for value in (2.0, 3.0, 4):
        call(tau=value)
    assert len(made) == 1
    for count, given in ((2, {"dtype": torch.float64}), (3, {"tau": torch.tensor(2.0)}),
                         (4, {"tau": torch.ones(2)}), (4, {"tau": torch.ones(1)})):
        call(**given)
        assert len(made) == count
    monkeypatch.setitem(globals(), "DECAY", 0.25)
    assert not torch.equal(call(), first) and len(made) == 5


def test_a_gradient_from_outside_is_refused() -> None:
    weight = torch.ones((), requires_grad=True)
    neuron = Neuron(lambda c, v, z: (v * weight, torch.sigmoid(c)))
    with pytest.raises(TypeError, match="keyword-only argument .* got weight, which"):
        recurrent(torch.zeros(2, 1, 3), None, neuron)


def reads_numbers(c, v, z, *, tau, theta, steps=2):
    decay = math.exp(-1 / tau)
    for _ in range(steps):
        v = decay * v if tau > 2 else 0.5 * v
    v = v + c
    return v, (v > theta).to(v)


def test_python_reads_numbers_of_a_call() -> None:
    neuron, x = Neuron(reads_numbers), torch.linspace(0, 1, 60, dtype=torch.float64).view(4, 3, 5)
    theta = torch.full((5,), 0.4, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()

    def run(tau: float, theta: Any) -> tuple[Tensor, Tensor]:
        spikes, state = recurrent(x, None, neuron, tau=tau, theta=theta)
        return spikes, torch.autograd.grad(state.states["v"].sum(), x)[0]

    for tau in (1.5, 20.0, 3.0):
        for given in (theta, 0.4):
            fused = run(tau, given)
            with use_reference():
                loop = run(tau, given)
            assert all(map(torch.equal, fused, loop)) and 0 < float(fused[0].mean()) < 1
    with pytest.warns(UserWarning, match="compiled for 8 numbers"):
        for tau in range(4, 12):
            run(float(tau), 0.4)
    held = SimpleNamespace()
    neuron = Neuron(lambda c, v, z, *, tau: (held.decay(tau) * v + c, torch.sigmoid(v)))
    for held.decay in (lambda tau: 1 / tau, lambda tau: math.exp(-1 / tau)):
        after = recurrent(torch.ones(2, 1, 2), None, neuron, tau=2.0)[1].states["v"]
        torch.testing.assert_close(after, torch.full((1, 2), 1 + held.decay(2.0)))
