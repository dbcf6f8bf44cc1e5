"""lsnn_ext.norse against norse's own layers."""
import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import norse as ours
from lsnn_ext._original import Refused
from originals import B, I, N, T, assert_equal, package, tolerance, uniform
from peer_layers import norse as _theirs
from peer_layers import norse_parameters as _parameters

DOUBLE, SINGLE = torch.float64, torch.float32
LSNN, LIF = "LSNNRecurrent", "LIFRecurrent"


def _state(kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """With spikes before the first step; norse counts them in b already."""
    state = {"z": (uniform(0, 1, B, N, dtype=dtype, seed=7) > 0.7).to(dtype),
             "v": uniform(0, 0.5, B, N, dtype=dtype, seed=4),
             "i": uniform(0, 0.5, B, N, dtype=dtype, seed=5)}
    if kind == LSNN:
        state["b"] = uniform(0.4, 0.8, B, N, dtype=dtype, seed=6)
    return {name: value.requires_grad_() for name, value in state.items()}


def _named(spikes: Tensor, state: Any) -> dict[str, Tensor]:
    return {"spikes": spikes, **state._asdict()}


@pytest.mark.parametrize("given", [False, True], ids=["from rest", "from a state"])
@pytest.mark.parametrize("autapses", [False, True])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)
@pytest.mark.parametrize("kind", [LSNN, LIF])
def test_sequence(kind: str, dtype: torch.dtype, autapses: bool, given: bool) -> None:
    """norse fills its first state from numbers, so from rest every parameter is one for all."""
    parameters = _parameters(kind, dtype, per_neuron=given)
    theirs = _theirs(kind, dtype, parameters, autapses=autapses)
    layer = getattr(ours, kind).from_original(theirs)
    x = uniform(0, 1, T, B, I, dtype=dtype, seed=3).requires_grad_()
    state = _state(kind, dtype) if given else {}
    State = getattr(package("norse.torch"), kind[:-len("Recurrent")] + "State")
    first = State(**state) if given else None
    if dtype == SINGLE and not given:  # a sum over all neurons, which may nearly cancel
        parameters = {}
    elif kind == LIF and not given:  # its gradient passes the float32 of norse's first step
        del parameters["v_leak"]
    leaves = {"x": x, "input_weights": theirs.input_weights,
              "recurrent_weights": theirs.recurrent_weights, **parameters, **state}
    assert_equal(lambda: _named(*theirs(x, first)), lambda: _named(*layer(x, first)), leaves,
                 tolerance(dtype))
    assert type(layer(x, first)[1]) is State


@pytest.mark.parametrize("kind", [LSNN, LIF])
@pytest.mark.parametrize(("method", "alpha"), [("triangle", 0.4), ("tanh", 1.5),
                                               ("heavi_erfc", 1.25), ("super", 7.0)])
def test_methods(method: str, alpha: float, kind: str) -> None:
    theirs = _theirs(kind, DOUBLE, _parameters(kind, DOUBLE), method, alpha)
    layer = getattr(ours, kind).from_original(theirs)
    x = uniform(0, 1, T, B, I, seed=3).requires_grad_()
    leaves = {"x": x, "recurrent_weights": theirs.recurrent_weights}
    assert_equal(lambda: _named(*theirs(x)), lambda: _named(*layer(x)), leaves, 1e-12)


@pytest.mark.parametrize("kind", [LSNN, LIF])
def test_heaviside_has_no_gradient(kind: str) -> None:
    theirs = _theirs(kind, DOUBLE, _parameters(kind, DOUBLE), "heaviside")
    layer = getattr(ours, kind).from_original(theirs)
    x = uniform(0, 1, T, B, I, seed=3).requires_grad_()
    spikes = layer(x)[0]
    assert torch.equal(spikes, theirs(x)[0]) and spikes.any()
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert not gradient.any()


@pytest.mark.parametrize("kind", [LSNN, LIF])
def test_the_same_layer_from_the_same_seed(kind: str) -> None:
    norse = package("norse.torch")
    torch.manual_seed(3)
    theirs = getattr(norse, kind)(I, N)
    torch.manual_seed(3)
    layer = getattr(ours, kind)(I, N)
    assert layer.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)
    for field in layer.p._fields:
        assert getattr(layer.p, field) == getattr(theirs.p, field)
    theirs.load_state_dict(layer.state_dict())
    x = torch.round(4 * torch.rand(T, B, I)) / 4
    with torch.no_grad():
        for weight in (*layer.parameters(), *theirs.parameters()):
            weight.copy_(torch.round(weight * 128) / 64)
    want, got = theirs(x), layer(x)
    assert torch.equal(got[0], want[0]) and 0.01 < float(want[0].detach().mean()) < 0.7
    torch.testing.assert_close(tuple(got[1]), tuple(want[1]))


@pytest.mark.parametrize("kind", [LSNN, LIF])
def test_steps_and_chunks_are_one_call(kind: str) -> None:
    layer = getattr(ours, kind)(I, N).double()
    x = uniform(0, 4, T, B, I, seed=3)
    spikes, end = layer(x)
    parts, state = [], None
    for part in (x[:1], x[1:7], x[7:]):
        out, state = layer(part, state)
        parts.append(out)
    assert torch.equal(torch.cat(parts), spikes) and spikes.any()
    torch.testing.assert_close(tuple(state or ()), tuple(end), rtol=1e-12, atol=1e-12)
    alone, state = [], None
    for x_t in x:
        out, state = layer.step(x_t, state)
        alone.append(out)
    assert torch.equal(torch.stack(alone), spikes)


def test_other_axes() -> None:
    layer = ours.LSNNRecurrent(I, N).double()
    x = uniform(0, 4, T, 2, 3, I, seed=3)
    spikes, state = layer(x)
    flat, _ = layer(x.reshape(T, 6, I))
    assert torch.equal(spikes.reshape(T, 6, N), flat) and state.b.shape == (2, 3, N)
    one, state = layer(x[:, 0, 0])
    assert torch.equal(one, spikes[:, 0, 0]) and state.v.shape == (N,)


def test_a_copy_of_theirs_learns_autapses_as_it_does() -> None:
    """Copying drops norse's hook on the gradient: what its layer computes decides, not its name."""
    theirs = copy.deepcopy(_theirs(LSNN, DOUBLE, _parameters(LSNN, DOUBLE)))
    layer = ours.LSNNRecurrent.from_original(theirs)
    x = uniform(0, 1, T, B, I, seed=3).requires_grad_()
    leaves = {"x": x, "recurrent_weights": theirs.recurrent_weights}
    assert_equal(lambda: _named(*theirs(x)), lambda: _named(*layer(x)), leaves, 1e-12)
    (gradient,) = torch.autograd.grad(layer(x)[0].sum(), theirs.recurrent_weights)
    assert gradient.diagonal().any()


@pytest.mark.parametrize("kind", [LSNN, LIF])
def test_autapses_do_not_learn(kind: str) -> None:
    """In a layer of our own and in its copies."""
    made = getattr(ours, kind)(I, N).double()
    x = uniform(0, 4, T, B, I, seed=3)
    for layer in (made, copy.deepcopy(made)):
        assert not layer.recurrent_weights.detach().diagonal().any()
        (gradient,) = torch.autograd.grad(layer(x)[0].sum(), layer.recurrent_weights)
        assert gradient.any() and not gradient.diagonal().any()
    free = getattr(ours, kind)(I, N, autapses=True).double()
    (gradient,) = torch.autograd.grad(free(x)[0].sum(), free.recurrent_weights)
    assert gradient.diagonal().any() and free.recurrent_weights.detach().diagonal().all()


def test_parameters_are_shared() -> None:
    theirs = _theirs(LIF, SINGLE, _parameters(LIF, SINGLE))
    layer = ours.LIFRecurrent.from_original(theirs)
    assert [id(p) for p in layer.parameters()] == [id(p) for p in theirs.parameters()]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        x = uniform(0, 1, T, B, I, dtype=SINGLE, seed=3)
        assert torch.equal(other(x)[0], layer(x)[0])


def _hooked(theirs: Any) -> None:
    theirs.register_forward_hook(lambda *_: None)


def _other_state(theirs: Any) -> None:
    theirs.state_fallback = lambda x: None


def _adjoint(theirs: Any) -> None:
    from norse.torch.functional.adjoint.lsnn_adjoint import lsnn_adjoint_step
    theirs.activation = lsnn_adjoint_step


def _recording(theirs: Any) -> None:
    theirs.record_states = True


def _circ(theirs: Any) -> None:
    theirs.p = theirs.p._replace(method="circ")


def _fast(theirs: Any) -> None:
    theirs.p = theirs.p._replace(tau_mem_inv=torch.tensor(1500.0))


@pytest.mark.parametrize(("change", "words"), [
    (_hooked, "module: expected one without"), (_other_state, "state_fallback"),
    (_adjoint, "activation: expected lsnn_step"), (_recording, "record_states: expected False"),
    (_circ, "p.method: expected super"), (_fast, "1 - dt tau_mem_inv: expected a decay"),
])
def test_refusals(change: Any, words: str) -> None:
    theirs = _theirs(LSNN, SINGLE, _parameters(LSNN, SINGLE))
    change(theirs)
    with pytest.raises(Refused, match=f"LSNNRecurrent: {words}"):
        ours.LSNNRecurrent.from_original(theirs)


@pytest.mark.parametrize(("kind", "state"), [
    (ours.LIFRecurrent, ours.LSNNState(*4 * (torch.zeros(1, 3),))),
    (ours.LSNNRecurrent, ours.LIFState(*3 * (torch.zeros(1, 3),))),
    (ours.LIFRecurrent, 3 * (torch.zeros(1, 3),)),
    (ours.LSNNRecurrent, torch.zeros(4, 1, 3)),
])
def test_states_of_others(kind: Any, state: Any) -> None:
    wanted = "LIFState of z, v, i" if kind is ours.LIFRecurrent else "LSNNState of z, v, i, b"
    with pytest.raises(TypeError, match=f"^state: expected {wanted}, .* got "
                                        f"{type(state).__name__}$"):
        kind(2, 3)(torch.zeros(4, 1, 2), state)


def test_other_refusals() -> None:
    with pytest.raises(Refused, match="module: expected one of class norse.torch.module.lif"):
        ours.LIFRecurrent.from_original(nn.LSTM(2, 3))
    for arguments in ({"adjoint": True}, {"record_states": True}):
        with pytest.raises(Refused, match=f"{[*arguments][0]}: expected False, got True"):
            ours.LSNNRecurrent(2, 3, **arguments)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="p.method"):
        ours.LIFRecurrent(2, 3, ours.LIFParameters(method="adjoint"))
    with pytest.raises(Refused, match="dense"):
        ours.LIFRecurrent(2, 3)(torch.zeros(4, 1, 2).to_sparse())
