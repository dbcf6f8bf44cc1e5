"""Readouts as modules, with time constants that learn and synaptic currents: values, means over
windows, state, copies, files, bad input."""
import copy
import math
import pickle
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import lsnn_ext
from compare import assert_same, through_file
from lsnn_ext import LSNN, LeakyReadout, ReadoutState, functional, reference, use_reference
from module_kinds import run_steps
from synaptic_readouts import BOTH, B, N, O, T, loop_of, make, spikes, start

TAU = "parametrizations.tau.original"
_readout = partial(make, tau_syn=None, learn="tau")


def _net(per_neuron: bool = True, **options: Any) -> LSNN:
    torch.manual_seed(2)
    return LSNN(N, 5, 5, O, tau_out=9.0, learn=("tau_mem", "tau_out"), threshold=0.1,
                per_neuron=per_neuron, dtype=torch.float64, **options)


# ------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("per_neuron", [False, True])
def test_as_a_readout_that_learns_nothing(per_neuron: bool) -> None:
    """The same numbers, and the gradient of a step dt longer in tau."""
    made, fixed = _readout(), LeakyReadout(N, O, 7.0, dtype=torch.float64)
    fixed.load_state_dict({name: value for name, value in made.state_dict().items() if name != TAU})
    x = spikes(T, B, N)
    assert_same("fixed", made(x), fixed(x), tolerance=1e-14)
    made = _readout(per_neuron=per_neuron)
    stored = made.get_parameter(TAU)
    assert stored.shape == ((O,) if per_neuron else ())
    assert_same("tau", made.tau, stored.exp())
    assert isinstance(made.decay, Tensor)
    assert_same("decay", made.decay, torch.exp(-1 / stored.exp()))
    y, _ = made(x)
    (got,) = torch.autograd.grad(y.square().sum(), stored)
    k = torch.exp(-1 / stored.detach().exp()).requires_grad_()
    loop, _ = reference.leaky_readout(x @ made.weight.T, None, k)
    (of_k,) = torch.autograd.grad((loop + made.bias).square().sum(), k)
    tau = stored.detach().exp()
    assert_same("d log tau", got, of_k * torch.exp(-1 / tau) / tau, tolerance=1e-12)


def test_a_network() -> None:
    """Its readout is one call behind that of the neurons; values and gradients of the reference."""
    net, x = _net(), spikes(T, B, N) * 2
    parameters = dict(net.named_parameters())
    assert parameters[f"readout.{TAU}"].shape == (O,) and net.neurons.learn == ("tau_mem",)
    found = []
    for context in (nullcontext, use_reference):
        with context():
            y, state = net(x)
        loss = y.square().sum() + state.readout.sum()
        found.append([y, state.readout, *torch.autograd.grad(loss, list(parameters.values()))])
    assert_same("network", *found, tolerance=1e-10, nonzero=True)
    with torch.no_grad():
        steps, _ = run_steps(net, x)
    assert_same("steps", steps, found[0][0].detach(), tolerance=1e-14)
    assert _net(per_neuron=False).readout.tau.shape == ()
    named = LSNN(N, 3, 3, O, learn={"tau_out": "log", "beta": "plain"}, per_neuron="tau_out")
    assert named.readout.tau.shape == (O,) and named.neurons.learn == ("beta",)
    y, _, rates = _net()(x, return_rates=True)
    assert rates.shape == (1, B, 10)


def test_a_network_whose_time_constant_is_a_tensor() -> None:
    """Without being learned, as of an experiment that sets it."""
    net = LSNN(N, 5, 5, O, tau_out=9.0, threshold=0.1, dtype=torch.float64)
    x = spikes(T, B, N)
    want = net(x)
    net.readout.tau = torch.tensor(9.0, dtype=torch.float64)
    got = net(x)
    assert_same("readout", got[0], want[0], tolerance=1e-12)
    assert_same("state", got[1].readout, want[1].readout, tolerance=1e-12)


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


def test_numbers_of_numpy() -> None:
    x = spikes(T, B, N)
    assert_same("y", make(tau_syn=np.float64(3.0))(x)[0].detach(), make()(x)[0].detach())
    assert make(tau_syn=np.int64(0)).tau_syn == 0.0
    x, w = torch.ones(3, 2, 4), torch.ones(5, 4)
    assert_same("readout", functional.leaky_readout(x, w, np.float32(0.5)),  # type: ignore[arg-type]
                functional.leaky_readout(x, w, 0.5))


# ---------------------------------------------------------------------- means over windows of steps
def _windowed(**more: Any) -> LSNN:
    torch.manual_seed(0)
    return LSNN(5, 8, 8, 3, threshold=0.005, **more)


def _equal(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.detach().abs().max()) > 0
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_windows_of_each_form(bidirectional: bool) -> None:
    net = _windowed(bidirectional=bidirectional)  # which sets the seed of x too
    x = torch.rand(12, 4, 5)
    whole, end = net(x)
    found, state = net(x, readout_every=3)
    wanted = torch.stack([whole[k:k + 3].mean(0) for k in range(0, 12, 3)])
    _equal(found, wanted)
    assert torch.equal(state.readout, end.readout)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), list(net.parameters()))
                            for y in (found, wanted)), strict=True):
        _equal(one, other)
    _equal(net(x[:, 0], readout_every=3)[0], wanted[:, 0])
    first = _windowed(bidirectional=bidirectional, batch_first=True)
    _equal(first(x.transpose(0, 1), readout_every=3)[0], wanted.transpose(0, 1))
    y, _, spikes, rates = net(x, return_spikes=True, return_rates=True, readout_every=12)
    assert y.shape == (1, 4, 3) and spikes.shape[0] == 12 and rates.shape[1] == 4
    assert net(x[:0], readout_every=3)[0].shape == (0, 4, 3)


@pytest.mark.parametrize("steps", [[12, 6, 3], [3, 12, 6]])
def test_windows_of_packed_sequences(steps: list[int]) -> None:
    """Each has those of its own steps, in the order given."""
    sequences = [torch.rand(T, 5) for T in steps]
    net = _windowed()
    y, _ = net(pack_sequence(sequences, enforce_sorted=False), readout_every=3)
    means, lengths = pad_packed_sequence(y)
    assert lengths.tolist() == [T // 3 for T in steps]
    for item, x in enumerate(sequences):
        _equal(means[:len(x) // 3, item], net(x, readout_every=3)[0])


def test_windows_that_do_not_fit_are_refused() -> None:
    net, x = _windowed(), torch.rand(12, 4, 5)
    with pytest.raises(ValueError, match=r"readout_every: expected a divisor of the T = 12 .* 5"):
        net(x, readout_every=5)
    with pytest.raises(ValueError, match="readout_every: expected a whole number >= 1, got 0"):
        net(x, readout_every=0)
    with pytest.raises(ValueError, match="readout_every: .* each sequence, got 3 for one of 4"):
        net(pack_sequence([x[:, 0], x[:4, 1]]), readout_every=3)


# ------------------------------------------------------------------------- state, copies and files
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


def test_copies_of_a_network() -> None:
    net, x = _net(), spikes(T, B, N) * 2
    with torch.no_grad():
        net.readout.tau = torch.linspace(3.0, 20.0, O, dtype=torch.float64)
    want, other = net(x)[0], _net()
    other.load_state_dict(through_file(net.state_dict(), weights_only=True))
    for made in (copy.deepcopy(net), through_file(net, weights_only=False), other):
        assert isinstance(made, LSNN)
        assert_same("copy", made(x)[0], want)
        made.get_parameter(f"readout.{TAU}")
        made.reset_parameters()
        assert_same("as it was made", made.readout.tau, torch.full((O,), 9.0).double(),
                    tolerance=1e-14)


def test_a_fixed_time_constant_takes_no_learned_one() -> None:
    """Nor the other way round: numbers would be lost without a word."""
    learned = _net()
    fixed = LSNN(N, 5, 5, O, tau_out=9.0, learn=("tau_mem",), per_neuron=True, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=rf"Unexpected key.*readout\.{TAU}"):
        fixed.load_state_dict(learned.state_dict())
    with pytest.raises(RuntimeError, match=rf"Missing key.*readout\.{TAU}"):
        learned.load_state_dict(fixed.state_dict())


def test_other_devices() -> None:
    empty = LeakyReadout(N, O, tau_syn=5.0, learn=BOTH, device="meta")
    y, end = empty(torch.zeros(T, B, N, device="meta"))
    assert y.shape == (T, B, O) and end.i.shape == (B, O) and y.is_meta
    empty.to_empty(device="cpu").reset_parameters()
    assert float(empty.tau.detach()) == pytest.approx(20.0)  # type: ignore[union-attr]
    assert float(empty.tau_syn.detach()) == pytest.approx(5.0)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda *_: LeakyReadout(N, O, learn=("tua",)), ValueError,
     "learn: expected .tau., .tau_syn. or .., got .tua."),
    (lambda *_: LeakyReadout(N, O, learn=3), TypeError,
     "learn: expected .tau., .tau_syn. or .., got 3"),
    (lambda *_: LeakyReadout(N, O, learn={"tau": "plain"}), ValueError, "learn: expected .log."),
    (lambda *_: LeakyReadout(N, O, None, learn="tau"), ValueError,
     "tau: expected a number > 0 to learn from, got None"),
    (lambda *_: LeakyReadout(N, O, per_neuron=True), ValueError, "per_neuron: expected False"),
    (lambda *_: LSNN(N, 2, 2, O, tau_out=None, learn="tau_out"), ValueError,
     "tau_out: expected a number to learn"),
    (lambda *_: LSNN(N, 2, 2, O, per_neuron="tau_out"), ValueError,
     "per_neuron: expected names among those of learn"),
    (lambda *_: LSNN(N, 2, 2, O, learn=7), TypeError, "learn: expected some of"),
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


def test_values_set_by_hand_are_checked() -> None:
    made, x = make(), spikes(T, B, N)
    made.tau_syn = -3.0
    with pytest.raises(ValueError, match="k_syn: expected a number from 0 to 1, got 1.39"):
        made(x)
    made.tau_syn = torch.full((O,), -3.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="k_syn: expected numbers from 0 to 1, got 1.39"):
        made(x)


@pytest.mark.parametrize(("k", "error", "words"), [
    (torch.tensor(1.5), ValueError, "k: expected numbers from 0 to 1, got 1.5"),
    (torch.tensor([0.5, -0.25, 0.5, 0.5]), ValueError, "k: expected numbers .* got -0.25"),
    (torch.tensor([0.5, 0.5]), ValueError, r"k: expected shape \(4,\), got \(2,\)"),
    (torch.tensor([math.nan] * O), ValueError, "k: expected numbers from 0 to 1, got nan"),
    (torch.tensor(1), TypeError, "k: expected a floating point dtype"),
    ("0.5", TypeError, "k: expected a number from 0 to 1 or a tensor of such, got str")])
def test_decays_that_are_refused(k: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        functional.leaky_readout(torch.zeros(T, B, N), torch.zeros(O, N), k)
    x, w_in, w_out = torch.zeros(T, B, N), torch.zeros(N, N), torch.zeros(O, N)
    with pytest.raises(error, match=words.replace("k:", "k_out:")):
        functional.layer(x, w_in, None, w_out=w_out, k_out=k, alpha=0.9, theta=0.3)
    with pytest.raises(ValueError, match="k_out: expected a number without w_out, got a tensor"):
        functional.layer(x, w_in, None, k_out=torch.tensor(0.5), alpha=0.9, theta=0.3)


def test_no_second_derivative() -> None:
    made, x = make(), spikes(T, B, N).requires_grad_()
    (first,) = torch.autograd.grad(made(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        first.sum().backward()
