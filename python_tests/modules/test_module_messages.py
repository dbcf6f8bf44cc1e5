"""Messages for common mistakes name the argument, the value, what is expected, and a hint."""
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from draws import draw
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, LSNNState, functional
from module_kinds import make_kinds

T, B, I, N = 9, 3, 4, 8
KINDS = make_kinds(I, N)
of_every_kind = pytest.mark.parametrize("kind", KINDS)


def _answer(call: Callable[[], Any], argument: str, given: str, wanted: str, hint: str,
            error: type[Exception] | tuple[type[Exception], ...] = (TypeError, ValueError)) -> None:
    """Looks for the four parts; the message begins with the argument and names no file of ours."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.match(f"{argument}: ", message), message
    for part, pattern in (("given", given), ("wanted", wanted), ("hint", hint)):
        assert re.search(pattern, message), f"{part} ({pattern}) is not in: {message}"
    assert not re.search(r"\.(cpp|h|py|cuh?)\b", message), message


@of_every_kind
@pytest.mark.parametrize(("argument", "name", "known", "meant"), [
    *(("dynamics", name, "lsnn, eprop, .*se_adlif", meant) for name, meant in (
        ("snntorch", "'snntorch_sub' or 'snntorch_zero' or"),
        ("norse", "'norse_lsnn' or 'norse_lif'"), ("lsn", "'lsnn'"), ("LSNN", "'lsnn'"),
        ("RadLIF", "'adlif'"), ("SpikingJelly", "'sj_soft' or"))),
    *(("surrogate", name, "triangle, .*multi_gaussian", f".*'{meant}'") for name, meant in (
        ("atan", "arctan"), ("fast-sigmoid", "fast_sigmoid"), ("SuperSpike", "fast_sigmoid"),
        ("triangel", "triangle"), ("MultiGaussian", "multi_gaussian")))])
def test_names(kind: str, argument: str, name: str, known: str, meant: str) -> None:
    _answer(lambda: KINDS[kind](**{argument: name}), argument, f"got '{name}'",
            f"expected one of {known}", f"did you mean {meant}")


@of_every_kind
def test_state_of_an_lstm(kind: str) -> None:
    h = torch.zeros(1, B, N)
    for method, x in (("forward", draw(T, B, I)), ("step", draw(B, I))):
        _answer(lambda method=method, x=x: getattr(KINDS[kind](), method)(x, (h, h)),  # type: ignore[misc]
                "state", "got tuple of two tensors, as .h, c. of nn.LSTM", "State",
                "pass None to the first call")
    _answer(lambda: functional.alif(draw(T, B, N), None, alpha=0.9, theta=0.1, state=(h[0], h[0])),  # type: ignore[arg-type]
            "state", "as .h, c. of nn.LSTM", "expected a State", "pass None to the first call")


@of_every_kind
def test_learn_true(kind: str) -> None:
    _answer(lambda: KINDS[kind](learn=True), "learn", "got True", "expected some of tau_mem, ",
            r'as in learn=\("tau_mem",\)', TypeError)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_time_constant_for_a_decay(gradients: bool) -> None:
    current = draw(T, B, N).requires_grad_(gradients)
    for name in ("alpha", "rho"):
        given = {"alpha": 0.9, "theta": 0.1, name: 20.0}
        _answer(lambda given=given: functional.alif(current, None, **given), name, "got 20",  # type: ignore[misc]
                "a number from 0 to 1", r"decay per step: .* math.exp\(-dt / 20\)")
    _answer(lambda: ALIF(I, N, alpha=20.0), "alpha", "got 20", "numbers from 0 to 1", "tau_mem=20$")
    _answer(lambda: LSNN(I, 3, 5, 2, rho=200.0), "rho", "got 200", "numbers from 0 to 1",
            "tau_adapt=200$")


def test_states_of_each_other() -> None:
    alif, net = ALIF(I, N), LSNN(I, 3, 5, 2)
    _, state = alif(draw(T, B, I))
    _, state_of_net = net(draw(T, B, I))
    _answer(lambda: net(draw(T, B, I), state), "state", "got State", "expected an LSNNState",
            r"LSNNState\(state, readout\)")
    _answer(lambda: alif(draw(T, B, I), state_of_net), "state", "got LSNNState",
            "expected a State of 5 tensors", "state.neurons")
    net(draw(T, B, I), LSNNState(state, torch.zeros(B, 2)))  # as the hint says
    alif(draw(T, B, I), state_of_net.neurons)


def test_betas_of_a_network() -> None:
    betas = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 0.5, 1.5, 1.0])
    _answer(lambda: LSNN(I, 3, 5, 2, beta=betas[:4]), "beta", r"got shape \(4,\)",
            r"expected a number or shape \(5,\) or \(8,\)", r"\(5,\)", ValueError)
    _answer(lambda: LSNN(I, 3, 5, 2, beta=betas.flip(0)), "beta", r"got \[1.0, 1.5, 0.5\]",
            "expected 0 for the first n_regular = 3 neurons", "do not adapt", ValueError)


@of_every_kind
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("method", ["forward", "step"])
def test_truncated_bptt_without_detach(kind: str, layers: int, method: str) -> None:
    module, call = KINDS[kind](num_layers=layers), None
    call, x = getattr(module, method), draw(T, B, I) if method == "forward" else draw(B, I)
    out, state = call(x)
    out.sum().backward()
    again, _ = call(x, state)  # whoever wants no gradient may go on, as with nn.LSTM
    _answer(again.sum().backward, r"state\.\w+", "one whose graph is freed",
            "expected a state that no backward pass has gone through", r"state.detach\(\)",
            RuntimeError)
    out, state = call(x, state.detach())  # as the hint says
    out.sum().backward(retain_graph=True)
    call(x, state)[0].sum().backward()
    with torch.no_grad():  # nothing is wrong here
        call(x, state)


@of_every_kind
def test_batch_first(kind: str) -> None:
    """Known where a state says how large the batch is."""
    for first in (False, True):
        module = KINDS[kind](batch_first=first)
        x = draw(B, T, I) if first else draw(T, B, I)
        _, state = module(x)
        _answer(lambda module=module, x=x, state=state: module(x.transpose(0, 1), state),  # type: ignore[misc]
                "state.v" if kind != "LSNN" else "state.readout", rf"got \((1, )?{B}, ",
                rf"\((1, )?{T}, ",
                f"layer with batch_first={first} has its steps: x seems to be .*{not first}$")


@pytest.mark.parametrize("kind", [*KINDS, "LeakyReadout"])
def test_batch_first_with_lengths(kind: str) -> None:
    """Known where lengths say how large the batch is."""
    for first in (False, True):
        module = LeakyReadout(I, 2, batch_first=first) if kind == "LeakyReadout" else (
            KINDS[kind](batch_first=first))
        for lengths in ([T] * B, torch.full((B,), T)):
            _answer(lambda module=module, lengths=lengths, first=first: module(  # type: ignore[misc]
                draw(T, B, I) if first else draw(B, T, I), lengths=lengths), "lengths",
                rf"got \({B},\)", rf"expected shape \({T},\)",
                f"layer with batch_first={first} has its steps: x seems to be .*{not first}$")


@pytest.mark.parametrize(("call", "parts"), [
    (lambda: ALIF(I, N)(draw(T, B, I).movedim(-1, 0)),
     ("x", r"\(4, 9, 3\)", r"expected shape \(T, B, I\)", r"x.movedim\(0, -1\)")),
    (lambda: ALIF(I, N)(draw(T, B, I).movedim(-1, 1)),
     ("x", r"\(9, 4, 3\)", r"expected shape \(T, B, I\)", r"x.movedim\(1, -1\)")),
    (lambda: ALIF(I, N).step(draw(T, B, I)),
     ("x", r"\(9, 3, 4\)", r"\(B, I\) or \(I,\)", "for a whole sequence call the layer")),
    (lambda: ALIF(I, N, tau_mem=20.0, alpha=0.9),
     ("alpha", "got both", "expected tau_mem or alpha", r"exp\(-dt / tau_mem\)"))])
def test_shapes_and_arguments(call: Callable[[], Any], parts: tuple[str, str, str, str]) -> None:
    _answer(call, *parts)


@of_every_kind
@pytest.mark.parametrize("name", ["tau_mem", "tau_adapt"])
def test_seconds_and_milliseconds(kind: str, name: str, recwarn: pytest.WarningsRecorder) -> None:
    if kind == "LIF" and name == "tau_adapt":
        return
    _answer(lambda: KINDS[kind](**{name: 0.02}), name, "got 0.02",
            "at least a tenth of a step, which is dt=1", "for seconds give dt in seconds too")
    KINDS[kind](dt=0.001, tau_mem=0.02, **({"tau_adapt": 0.2} if kind != "LIF" else {}))
    assert not recwarn.list
    if name == "tau_mem":
        with pytest.warns(UserWarning, match="^tau_mem: .* 10,000 steps of dt=0.001, got 20; are"):
            KINDS[kind](tau_mem=20.0, dt=0.001)
    with pytest.warns(UserWarning, match=f"^{name}: .* a step, dt=1, got 0.5; are both in"):
        KINDS[kind](**{name: 0.5})


def test_seconds_and_milliseconds_of_a_readout() -> None:
    for name, make in (("tau_out", lambda **tau: LSNN(I, 3, 5, 2, **tau)),
                       ("tau", lambda **tau: LeakyReadout(N, 2, **tau))):
        _answer(lambda make=make, name=name: make(**{name: 0.02}), name, "got 0.02",  # type: ignore[misc]
                "at least a tenth of a step, which is dt=1", f"seconds too; .* give {name}=None$")
        make(**{name: 0.02, "dt": 0.001}, **(
            {"tau_mem": 0.02, "tau_adapt": 0.7} if name == "tau_out" else {}))


# ------------------------------------------------------------------------------ and some more words
@of_every_kind
@pytest.mark.parametrize(("given", "meant"), [("tau", "tau_mem"), ("theta", "threshold"),
                                              ("thresold", "threshold"), ("hidden", None)])
def test_keywords(kind: str, given: str, meant: str | None) -> None:
    _answer(lambda: KINDS[kind](**{given: 1.0}), given, "got an unknown name",
            f"expected a keyword argument of {kind}",
            f"did you mean {meant}" if meant else "unknown name$")


def test_adaptation_of_a_lif() -> None:
    for name in ("beta", "tau_adapt", "rho", "eta"):
        with pytest.raises(TypeError, match=f"^{name}: expected a keyword argument of LIF"):
            LIF(I, N, **{name: 1.0})


def test_fast_and_strong_adaptation() -> None:
    """Where gradients explode, see the gradient of one such layer, a warning says so."""
    with pytest.warns(UserWarning, match="^beta: .* beta=1.8 and tau_adapt=10 steps; .*explode.*"
                                         "longer tau_adapt, a smaller beta"):
        layer = ALIF(40, 128, tau_adapt=10.0)
    calm, x = ALIF(40, 128, tau_adapt=50.0), (torch.rand(600, 4, 40) < 0.1).float() * 0.1
    norms = []
    for one in (layer, calm):
        torch.manual_seed(0)
        one.reset_parameters()
        one(x)[0][-20:].sum().backward()
        norms.append(float(one.weight_hh_l0.grad.norm()))
    assert not norms[0] < 1e6 and norms[1] < 1e4


@of_every_kind
@pytest.mark.parametrize("learns", [False, True])
def test_sparse_inputs(kind: str, learns: bool) -> None:
    layer = KINDS[kind]().requires_grad_(learns)
    for call, x in ((layer, draw(T, B, I)), (layer.step, draw(B, I))):
        with torch.set_grad_enabled(learns):
            _answer(lambda call=call, x=x: call(x.to_sparse()), "x", r"layout torch\.sparse_coo",
                    "expected a dense tensor", r"x\.to_dense\(\)")
