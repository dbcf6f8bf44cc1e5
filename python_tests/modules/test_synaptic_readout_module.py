"""A readout with a synaptic current as a module: state, copies, files, torch.compile, bad input."""
import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import lsnn_ext
from compare import assert_same, through_file
from lsnn_ext import LSNN, LeakyReadout, ReadoutState, functional
from module_kinds import run_steps
from synaptic_readouts import BOTH, B, N, O, T, loop_of, make, spikes, start


def test_the_state() -> None:
    made, x = make(), spikes(T, B, N)
    _, end = made(x)
    assert end.p.requires_grad and not any(leaf.requires_grad for leaf in end.detach())
    assert {leaf.dtype for leaf in end.to(torch.float32)} == {torch.float32}
    anew = end.reset(torch.tensor([False, True, False]))
    assert not anew.p[1].any() and not anew.i[1].any() and torch.equal(anew.i[0], end.i[0])
    loaded = through_file(end.detach(), weights_only=True)
    assert type(loaded) is ReadoutState and torch.equal(loaded.i, end.i)
    made(x, end)[0].sum().backward()
    with pytest.raises(RuntimeError, match=r"state\.p: expected a state that no backward pass"):
        made(x, end)[0].sum().backward()


@pytest.mark.parametrize("steps", [1, 5])
def test_a_change_of_the_output_leaves_the_state_alone(steps: int) -> None:
    with torch.no_grad():
        y, end = make()(spikes(steps, B, N))
        want = end.map(torch.clone)
        y.zero_()
    assert torch.equal(end.p, want.p) and torch.equal(end.i, want.i) and end.p.any()


def test_copies_and_pickles() -> None:
    made, x = make(learn=BOTH, per_neuron=True), spikes(T, B, N)
    other = make(learn=BOTH, per_neuron=True).requires_grad_()
    other.load_state_dict(made.state_dict())
    made_again = [copy.deepcopy(made), pickle.loads(pickle.dumps(made)), other]
    for one in (made, make(), make(tau_syn=0), LeakyReadout(N, O)):
        loaded: Any = pickle.loads(pickle.dumps(one))
        assert repr(loaded) == repr(one)
        assert_same("loaded", loaded(x.to(one.weight))[0], one(x.to(one.weight))[0])
        assert (loaded.tau_syn is None) == (one.tau_syn is None)
    for one in made_again:
        assert isinstance(one, LeakyReadout) and one.learn == BOTH
        assert_same("copy", one(x)[0], made(x)[0])
        one.reset_parameters()
        for name, first in (("tau", 7.0), ("tau_syn", 3.0)):
            assert_same(name, getattr(one, name), torch.full((O,), first).double(), tolerance=1e-14)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*tau_syn\.original"):
        make(learn="tau", per_neuron=True).load_state_dict(made.state_dict())


def test_other_devices() -> None:
    empty = LeakyReadout(N, O, tau_syn=5.0, learn=BOTH, device="meta")
    y, end = empty(torch.zeros(T, B, N, device="meta"))
    assert y.shape == (T, B, O) and end.i.shape == (B, O) and y.is_meta
    empty.to_empty(device="cpu").reset_parameters()
    assert float(empty.tau.detach()) == pytest.approx(20.0)  # type: ignore[union-attr]
    assert float(empty.tau_syn.detach()) == pytest.approx(5.0)  # type: ignore[union-attr]


def test_a_time_constant_that_is_a_tensor() -> None:
    """Without being learned, as of an experiment that sets it."""
    made, x = make(), spikes(T, B, N)
    want, _ = made(x)
    made.tau_syn = torch.full((O,), 3.0, dtype=torch.float64)
    assert_same("y", made(x)[0].detach(), want.detach(), tolerance=1e-12)


def test_a_network_that_has_one() -> None:
    """Its readout is a call behind the neurons, and its state is that of the readout."""
    net = LSNN(N, 5, 5, O, threshold=0.1, dtype=torch.float64)
    net.readout = LeakyReadout(10, O, 9.0, tau_syn=4.0, dtype=torch.float64)
    x = spikes(T, B, N) * 2
    y, state, z = net(x, return_spikes=True)
    want, last = loop_of(net.readout, z)
    assert z.any() and type(state.readout) is ReadoutState
    assert_same("y", y.detach(), want.detach(), tolerance=1e-12)
    assert_same("i", state.readout.i.detach(), last.i.detach(), tolerance=1e-12)
    anew = state.detach().reset(torch.tensor([True, False, True]))
    assert not anew.readout.i[0].any() and anew.readout.i[1].any()
    with torch.no_grad():
        steps, _ = run_steps(net, x)
    assert_same("steps", steps, y.detach(), tolerance=1e-12)
    with pytest.raises(TypeError, match=r"state\.readout: expected a ReadoutState\('p', 'i'\)"):
        net.step(x[0], state._replace(readout=torch.zeros(B, O).double()))


@pytest.mark.slow
def test_exported() -> None:
    made, x = make(), spikes(T, B, N)
    with torch.no_grad():
        program = torch.export.export(made, (x, start()))
        (y, end), (want, last) = program.module()(x, start()), made(x, start())
    assert type(end) is ReadoutState
    assert_same("y", y, want, tolerance=1e-14)
    assert_same("i", end.i, last.i, tolerance=1e-14)


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda *_: LeakyReadout(N, O, tau_syn=-1.0), ValueError, "tau_syn: expected .* > 0, got"),
    (lambda *_: LeakyReadout(N, O, tau_syn=math.nan), ValueError, "tau_syn: expected a number > 0"),
    (lambda *_: LeakyReadout(N, O, tau_syn=False), TypeError, "tau_syn: expected a number > 0"),
    (lambda *_: LeakyReadout(N, O, tau_syn="5"), TypeError, "tau_syn: expected a number > 0"),
    (lambda *_: LeakyReadout(N, O, tau_syn=0.005), ValueError,
     "tau_syn: expected at least a tenth .* for no filter give tau_syn=0"),
    (lambda *_: LeakyReadout(N, O, learn="tau_syn"), ValueError,
     "tau_syn: expected a number > 0 to learn from, got None"),
    (lambda *_: LeakyReadout(N, O, tau_syn=0, learn="tau_syn"), ValueError,
     "tau_syn: expected a number > 0 to learn from, got 0"),
    (lambda *_: LeakyReadout(N, O, tau_syn=5.0, learn={"tau_syn": "plain"}), ValueError,
     "learn: expected .log."),
    (lambda *_: lsnn_ext.nir.to_nir(LeakyReadout(N, O, tau_syn=5.0)), ValueError,
     r"LeakyReadout.* in NIR: expected no synaptic current, got tau_syn"),
    (lambda m, x: m(x, start().p), TypeError, r"state: expected a ReadoutState\('p', 'i'\)"),
    (lambda m, x: m(x, (start().p, start().i)), TypeError, "state: expected a ReadoutState"),
    (lambda m, x: m(x, start()._replace(i=None)), TypeError, r"state\.i: expected a tensor"),
    (lambda m, x: m(x, start().map(lambda leaf: leaf[:2])), ValueError,
     r"state\.p: expected shape \(3, 4\), got \(2, 4\)"),
    (lambda m, x: m(x, start()._replace(i=torch.zeros(B, O))), TypeError,
     r"state\.i: expected torch.float64, got torch.float32"),
    (lambda m, x: m(x.transpose(0, 1), start()), ValueError, r"batch_first=True"),
    (lambda m, x: m.step(x[0], start().p), TypeError, "state: expected a ReadoutState"),
    (lambda m, x: m(x[..., :2]), ValueError, r"x: expected shape \(T, B, 6\)"),
    (lambda m, x: m(functional.pack_spikes(x)), TypeError, "x: expected a tensor"),
    (lambda m, x: m(x, lengths=[1, 2]), ValueError, r"lengths: expected shape \(3,\)"),
    (lambda m, x: LeakyReadout(N, O)(x.float(), start()), TypeError, "state: expected a tensor")])
def test_arguments_that_are_refused(call: Any, error: type[Exception], words: str) -> None:
    if "NIR" in words:
        pytest.importorskip("nir")
    with pytest.raises(error, match=words):
        call(make(), spikes(T, B, N))


def test_numbers_of_numpy() -> None:
    x = spikes(T, B, N)
    assert_same("y", make(tau_syn=np.float64(3.0))(x)[0].detach(), make()(x)[0].detach())
    assert make(tau_syn=np.int64(0)).tau_syn == 0.0


def test_values_set_by_hand_are_checked() -> None:
    made, x = make(), spikes(T, B, N)
    made.tau_syn = -3.0
    with pytest.raises(ValueError, match="k_syn: expected a number from 0 to 1, got 1.39"):
        made(x)
    made.tau_syn = torch.full((O,), -3.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="k_syn: expected numbers from 0 to 1, got 1.39"):
        made(x)


def test_no_second_derivative() -> None:
    made, x = make(), spikes(T, B, N).requires_grad_()
    (first,) = torch.autograd.grad(made(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        first.sum().backward()
