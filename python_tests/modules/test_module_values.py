"""The constants of a layer: refused out of range, set again by reset_parameters."""
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_all_same
from draws import draw
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, LSNNState, State

I, N = 4, 8


# ----------------------------------------------------------------------------- learned out of range
BAD = {"zero": 0.0, "negative": -0.109, "nan": math.nan, "infinite": math.inf}


@pytest.mark.parametrize("how", ["forward", "forward without gradients", "step",
                                 "step without gradients"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["tau_mem", "tau_adapt", "threshold", "beta"])
@pytest.mark.parametrize("each", [True, False], ids=["each", "one"])
def test_learned_out_of_range(name: str, bad: str, each: bool, how: str) -> None:
    number = 0.5 if name in ("beta", "threshold") else 60.0
    value = torch.full((N,), number) if each else number
    layer = ALIF(I, N, 2, learn={name: "plain"}, **{name: value})
    call, x = (layer.step, draw(3, I)) if "step" in how else (layer, draw(2, 3, I))
    with torch.set_grad_enabled("without" not in how):
        call(x)
        with torch.no_grad():
            layer.get_parameter(name + "_l1").view(-1)[5 if each else 0] = BAD[bad]
        if name == "beta" and bad in ("zero", "negative"):  # it may be
            call(x)
            return
        where = " at neuron 5" if each else ""
        remedy = f"learn it unbounded.*clamp {name}_l1 .*smaller learning rate"
        with pytest.raises(ValueError, match=f"^{name}_l1: .* in ALIF, got {BAD[bad]:.6g}{where}; "
                                             f".*{remedy}"):
            call(x)


def test_what_is_not_learned_is_looked_at_too() -> None:
    layer = ALIF(I, N)
    layer(draw(2, 3, I))  # the coefficients of this call are cached
    layer.threshold_l0.data.fill_(-0.5)
    with pytest.raises(ValueError, match=r"^threshold_l0: expected finite numbers > 0 in ALIF, got "
                                         r"-0.5$"):
        layer(draw(2, 3, I))


# ---------------------------------------------------------------------------------------- set again
EACH, DELAY = torch.linspace(5, 50, N), torch.arange(N * N).view(N, N) % 3
SET: dict[str, Callable[..., Any]] = {
    "ALIF": lambda **on: ALIF(I, N, 2, bidirectional=True, tau_mem=EACH, beta=0.3, delay=DELAY,
                              learn=("tau_mem", "threshold"), **on),
    "LIF": lambda **on: LIF(I, N, learn="tau_mem", threshold=EACH, **on),
    "LSNN": lambda **on: LSNN(I, 3, 5, 2, delay=DELAY.int(), learn=("beta",), **on),
    "float64": lambda **on: LSNN(I, 3, 5, 2, beta=1.7, dtype=torch.float64, **on),
    "readout": lambda **on: LeakyReadout(I, 2, 7.0, **on)}


@pytest.mark.parametrize("where", ["meta", "context", "pickled", "trained"])
@pytest.mark.parametrize("name", SET)
def test_set_again(name: str, where: str) -> None:
    if where == "meta":
        module = SET[name](device="meta").to_empty(device="cpu")
    elif where == "context":
        with torch.device("meta"):
            module = SET[name]()
        assert all(value.is_meta for value in (*module.parameters(), *module.buffers()))
        module = module.to_empty(device="cpu")
    else:
        module = pickle.loads(pickle.dumps(SET[name]())) if where == "pickled" else SET[name]()
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.fill_(77)
    torch.manual_seed(3)
    module.reset_parameters()
    torch.manual_seed(3)
    assert_all_same(module.state_dict(), SET[name]().state_dict())
    module(torch.rand(3, 2, I, dtype=next(module.parameters()).dtype))


def test_names_in_the_state_dict() -> None:
    assert set(ALIF(I, N, delay=torch.ones(N, N, dtype=torch.long)).state_dict()) == {
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "tau_mem_l0", "tau_adapt_l0", "beta_l0",
        "threshold_l0", "delay", "_extra_state"}
    assert "tau_mem_l1_reverse" in ALIF(I, N, 2, bidirectional=True).state_dict()


def test_constants_that_have_no_numbers() -> None:
    with torch.device("meta"):
        layer = ALIF(I, N, beta=torch.ones(N))
    with pytest.raises(RuntimeError, match="beta: expected the numbers of the constructor, got a "
                                           "meta tensor"):
        layer.to_empty(device="cpu").reset_parameters()
    with pytest.raises(ValueError, match="delay: expected numbers, got a tensor on meta"):
        ALIF(I, N, delay=torch.ones(N, N, dtype=torch.long, device="meta"))


# ----------------------------------------------------------------------------------------- messages
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ALIF(I, N, True), ValueError,
     "num_layers: .*, got True; pass bias and other flags by keyword"),
    (lambda: LeakyReadout(N, 2, False), TypeError, "tau: .*, got False; .* bias"),
    (lambda: LeakyReadout(N, 2, True), TypeError, "tau: .*, got True; .* bias"),
    (lambda: ALIF(I, N, 1, 0.5), TypeError, "bias: expected True or False, got 0.5"),
    (lambda: LeakyReadout(N, 2, bias=None), TypeError, "bias: expected True or False, got None"),
    (lambda: ALIF(I, N, batch_first="no"), TypeError,
     "batch_first: expected True or False, got 'no'"),
    (lambda: ALIF(I, N, autapses=0), TypeError, "autapses: expected True or False, got 0"),
    (lambda: ALIF(I, N, dt=True), TypeError, "dt: expected a number > 0, got True"),
    (lambda: LeakyReadout(I, N, dt=torch.ones(2)), TypeError,
     "dt: expected a number > 0, got tensor"),
    (lambda: ALIF(I, N, tau_mem=True), TypeError,
     "tau_mem: expected a number or a tensor, got True"),
    (lambda: LIF(I, N, tau_mem="20"), TypeError,
     "tau_mem: expected a number or a tensor, got '20'"),
    (lambda: LIF(I, N, tau_mem=torch.ones(N) * 1j), TypeError, "tau_mem: expected real numbers"),
    (lambda: ALIF(I, N, refractory=True), ValueError, "refractory: expected a whole number"),
    (lambda: ALIF(I, N, delay=True), TypeError, "delay: expected an int or an integer tensor"),
    (lambda: ALIF(I, N, 2, dropout=True), ValueError, "dropout: expected a probability"),
    (lambda: LSNN(I, 3, 5, 2, beta=math.nan), ValueError, "beta: expected finite numbers"),
    (lambda: LSNN(I, 3, 5, 2)(draw(2, 2, I), (None, None)), TypeError,
     "state: .* LSNNState.*, got tuple"),
    (lambda: LSNN(I, 3, 5, 2).step(draw(2, I), torch.zeros(2, 8)), TypeError,
     "LSNNState.*, got Tensor"),
    (lambda: LSNN(I, 3, 5, 2)(draw(2, 2, I), LSNNState(*LSNN(I, 3, 5, 2)(draw(2, 2, I))[1][::-1])),
     TypeError, "(state: expected a State of 5 tensors|state.readout: expected a tensor)"),
    (lambda: ALIF(I, N)(draw(I)), ValueError, r"x: expected shape .*, got \(4,\)"),
    (lambda: LSNN(I, 3, 5, 2)(draw(2, 3, 3)), ValueError, r"x: expected shape .*, got \(2, 3, 3\)"),
    (lambda: ALIF(I, N)(draw(2, 3, I).double()), ValueError,
     "x: expected torch.float32 .*, got torch.float64"),
    (lambda: LeakyReadout(N, 2)(draw(40, 3, I)), ValueError,
     r"x: expected shape \(T, B, 8\) or \(T, 8\), got \(40, 3, 4\)"),
    (lambda: LeakyReadout(N, 2, -1.0), ValueError, "tau"),
    (lambda: ALIF(I, N, tau_mem=-1.0), ValueError, "tau_mem"),
    (lambda: ALIF(I, N, tau_adapt=0.0), ValueError, "tau_adapt"),
    (lambda: ALIF(I, N, threshold=-0.1), ValueError, "threshold"),
    (lambda: ALIF(I, N, beta=torch.ones(3)), ValueError,
     r"beta: expected .*\(8,\), got shape \(3,\)"),
    (lambda: ALIF(I, N, learn=("tau",)), ValueError, "learn: expected .*, got 'tau'"),
    (lambda: ALIF(I, N, delay=-1), ValueError, "delay"),
    (lambda: ALIF(I, N, delay=torch.ones(N, N)), TypeError, "delay: expected an integer tensor"),
    (lambda: ALIF(I, N, dampening=0.0), ValueError, "dampening"),
    (lambda: ALIF(I, N, dt=0.0), ValueError, "dt"),
    (lambda: ALIF(I, N, num_layers=0), ValueError, "num_layers"),
    (lambda: ALIF(I, N, dtype=torch.int64), ValueError, "dtype"),
    (lambda: LSNN(I, -1, 4, 2), ValueError, "n_regular"),
    (lambda: ALIF(I, N)(draw(2, 2, I), ALIF(I, N)(draw(2, 3, I))[1]), ValueError,
     r"state.v: expected shape \(1, 2, 8\), got \(1, 3, 8\)"),
    (lambda: ALIF(I, N)(draw(2, 3, I), (end := ALIF(I, N)(draw(2, 3, I))[1])._replace(z=end.z[0])),
     ValueError, r"state.z: expected shape \(1, D, 3, 8\), got"),
    (lambda: ALIF(I, N)(draw(2, 2, I), State(*[None] * 5)), TypeError,
     r"state\.v: expected a tensor, got")]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refused_by_name(call: Callable[[], Any], error: type[Exception], message: str,
                         gradients: bool) -> None:
    with torch.set_grad_enabled(gradients), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("beta", [0.7, 1, torch.tensor(0.7), torch.linspace(0, 2, 5),
                                  torch.linspace(0, 2, 5).double(),
                                  torch.cat([torch.zeros(3), torch.linspace(0, 2, 5)])], ids=str)
def test_beta_of_the_network(beta: Any) -> None:
    last = torch.as_tensor(beta).float()
    want = torch.cat([torch.zeros(3), last.expand(5) if last.dim() == 0 else last[-5:]])
    net = LSNN(I, 3, 5, 2, 2, beta=beta)
    assert all(torch.equal(found, want) for found in (net.neurons.beta_l0, net.neurons.beta_l1))
    assert torch.equal(LSNN(I, 0, 5, 2, beta=want[3:]).neurons.beta_l0, want[3:])
    if isinstance(beta, Tensor):
        beta.fill_(3.0)  # it is the caller's
        assert torch.equal(net.neurons.beta_l0, want)


def test_beta_in_double_precision() -> None:
    net = LSNN(I, 2, 3, 4, beta=1.8, dtype=torch.float64)
    assert net.neurons.beta_l0.tolist() == [0.0, 0.0, 1.8, 1.8, 1.8]


# ---------------------------------------------------------------------------- times with their unit
@pytest.mark.parametrize("make", [
    lambda **more: ALIF(5, 8, **more), lambda **more: LIF(5, 8, **more),
    lambda **more: LSNN(5, 4, 4, 3, **more).neurons], ids=["ALIF", "LIF", "LSNN"])
def test_times_are_whole_steps(make: Any) -> None:
    for dt, refractory, delay in (1.0, 3, 9), (0.5, 6, 19), (0.1, 30, 99):
        layer = make(dt=dt, refractory="3 ms", delay="10ms")
        assert (layer.refractory, layer.delay) == (refractory, delay)
    assert make(dt=2, delay="2 ms", refractory="0 ms").delay == 0
    assert make(delay=4, refractory=2).delay == 4
    assert make(recurrent=False, delay="1 ms").delay == 0


@pytest.mark.parametrize(("given", "said"), [
    ({"refractory": "3 ms", "dt": 2}, "refractory: expected whole steps of dt=2, got '3 ms'"),
    ({"delay": "5 s"}, "delay: expected steps, or a time such as '5 ms', got '5 s'"),
    ({"refractory": "-1 ms"}, "refractory: expected steps, or a time"),
    ({"delay": "0 ms"}, "delay, in steps: expected a whole number >= 1, got 0"),
    ({"delay": "2 ms", "recurrent": False}, "delay: expected 0 with recurrent=False"),
    ({"delay": "5 ms", "dt": 0.001, "tau_mem": 0.02, "tau_adapt": 0.2},
     "delay: expected a number of steps with dt=0.001, which seems to be in seconds")])
def test_times_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        ALIF(5, 8, **given)
    assert said in str(refused.value)
