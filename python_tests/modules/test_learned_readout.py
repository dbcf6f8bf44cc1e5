"""A readout whose time constant learns: values, gradients, forms of input, copies and files."""
import copy
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compare import assert_same, through_file
from lsnn_ext import LSNN, LeakyReadout, functional, reference, use_reference
from module_kinds import run_steps
from synaptic_readouts import B, N, O, T, make
from synaptic_readouts import spikes as fired

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
    x = fired(T, B, N)
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


def test_a_network_whose_time_constant_is_a_tensor() -> None:
    """Without being learned, as of an experiment that sets it."""
    net = LSNN(N, 5, 5, O, tau_out=9.0, threshold=0.1, dtype=torch.float64)
    x = fired(T, B, N)
    want = net(x)
    net.readout.tau = torch.tensor(9.0, dtype=torch.float64)
    got = net(x)
    assert_same("readout", got[0], want[0], tolerance=1e-12)
    assert_same("state", got[1].readout, want[1].readout, tolerance=1e-12)


def test_a_network() -> None:
    """Its readout is one call behind that of the neurons; values and gradients of the reference."""
    net, x = _net(), fired(T, B, N) * 2
    parameters = dict(net.named_parameters())
    assert parameters[f"readout.{TAU}"].shape == (O,) and net.neurons.learn == ("tau_mem",)
    found = []
    for context in (nullcontext, use_reference):
        with context():
            y, state = net(x)
        loss = y.square().sum() + state.readout.sum()
        found.append([y, state.readout, *torch.autograd.grad(loss, list(parameters.values()))])
    for got, want in zip(*found, strict=True):
        assert want.any()
        assert_same("network", got.detach(), want.detach(), tolerance=1e-10)
    with torch.no_grad():
        steps, _ = run_steps(net, x)
    assert_same("steps", steps, found[0][0].detach(), tolerance=1e-14)
    assert _net(per_neuron=False).readout.tau.shape == ()
    named = LSNN(N, 3, 3, O, learn={"tau_out": "log", "beta": "plain"}, per_neuron="tau_out")
    assert named.readout.tau.shape == (O,) and named.neurons.learn == ("beta",)
    y, _, rates = _net()(x, return_rates=True)
    assert rates.shape == (1, B, 10)


def test_copies_pickles_and_state_dicts() -> None:
    net, x = _net(), fired(T, B, N) * 2
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
    readout = through_file(net.readout, weights_only=False)
    assert isinstance(readout, LeakyReadout) and readout.learn == ("tau",)
    assert_same("readout", readout.tau, net.readout.tau)


def test_a_fixed_time_constant_takes_no_learned_one() -> None:
    """Nor the other way round: numbers would be lost without a word."""
    learned = _net()
    fixed = LSNN(N, 5, 5, O, tau_out=9.0, learn=("tau_mem",), per_neuron=True, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=rf"Unexpected key.*readout\.{TAU}"):
        fixed.load_state_dict(learned.state_dict())
    with pytest.raises(RuntimeError, match=rf"Missing key.*readout\.{TAU}"):
        learned.load_state_dict(fixed.state_dict())


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: LeakyReadout(N, O, learn=("tua",)), ValueError,
     "learn: expected .tau., .tau_syn. or .., got .tua."),
    (lambda: LeakyReadout(N, O, learn=3), TypeError,
     "learn: expected .tau., .tau_syn. or .., got 3"),
    (lambda: LeakyReadout(N, O, learn={"tau": "plain"}), ValueError, "learn: expected .log."),
    (lambda: LeakyReadout(N, O, None, learn="tau"), ValueError,
     "tau: expected a number > 0 to learn from, got None"),
    (lambda: LeakyReadout(N, O, per_neuron=True), ValueError, "per_neuron: expected False"),
    (lambda: LSNN(N, 2, 2, O, tau_out=None, learn="tau_out"), ValueError,
     "tau_out: expected a number to learn"),
    (lambda: LSNN(N, 2, 2, O, per_neuron="tau_out"), ValueError,
     "per_neuron: expected names among those of learn"),
    (lambda: LSNN(N, 2, 2, O, learn=7), TypeError, "learn: expected some of")])
def test_what_is_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_a_number_of_numpy_is_a_decay() -> None:
    x, w = torch.ones(3, 2, 4), torch.ones(5, 4)
    assert_same("readout", functional.leaky_readout(x, w, np.float32(0.5)),  # type: ignore[arg-type]
                functional.leaky_readout(x, w, 0.5))


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
