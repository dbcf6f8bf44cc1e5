"""lsnn_ext.sinabs against sinabs' own layers, which compute in float32 only."""
import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import sinabs as ours
from lsnn_ext._original import Refused
from originals import B, N, T, assert_equal, package
from peer_layers import linear_of as _linear
from peer_layers import sinabs as _theirs
from peer_layers import values as _values

ALIF, LIF = "ALIFRecurrent", "LIFRecurrent"
WITHIN = 2e-5


def _compare(theirs: Any, gain: float = 6.0, chunks: tuple[int, ...] = (T,)) -> None:
    layer: Any = getattr(ours, type(theirs).__name__).from_original(theirs)
    x = _values(-0.4 * gain, 0.8 * gain, B, T, N, seed=3).requires_grad_()
    leaves = {"x": x, **{name: parameter for name, parameter in theirs.named_parameters()
                         if parameter.requires_grad}}

    def run(side: Any) -> dict[str, Tensor]:
        side.reset_states()
        spikes = torch.cat([side(part) for part in x.split(chunks, dim=1)], dim=1)
        return {"spikes": spikes, "rate": side.firing_rate, **dict(side.named_buffers())}

    assert_equal(lambda: run(theirs), lambda: run(layer), leaves, WITHIN)


@pytest.mark.parametrize("reset", ["MembraneSubtract", "MembraneReset"])
@pytest.mark.parametrize("norm_input", [True, False])
@pytest.mark.parametrize("synapse", [False, True])
@pytest.mark.parametrize("kind", [ALIF, LIF])
def test_layers(kind: str, synapse: bool, norm_input: bool, reset: str) -> None:
    package("sinabs")
    from sinabs import activation
    theirs = _theirs(kind, synapse, norm_input, reset_fn=getattr(activation, reset)())
    _compare(theirs, (6.0 if norm_input else 1.0) * (1.5 if synapse else 1.0))


@pytest.mark.parametrize("synapse", [False, True])
@pytest.mark.parametrize("kind", [ALIF, LIF])
def test_calls_go_on_from_the_states(kind: str, synapse: bool) -> None:
    """As sinabs does: membrane and adaptation go on, recurrent spikes begin with none, and the
    synaptic current of ALIF too."""
    _compare(_theirs(kind, synapse), 9.0 if synapse else 6.0, chunks=(1, 9, T - 10))


@pytest.mark.parametrize("kind", [ALIF, LIF])
@pytest.mark.parametrize("arguments", [
    {"bias": False}, {"train_alphas": True}, {"train_alphas": True, "synapse": True},
], ids=str)
def test_arguments(arguments: dict[str, Any], kind: str) -> None:
    _compare(_theirs(kind, **arguments), 9.0 if "synapse" in arguments else 6.0)


@pytest.mark.parametrize("kind", [ALIF, LIF])
@pytest.mark.parametrize(("name", "values"), [
    ("SingleExponential", {"grad_width": 0.75, "grad_scale": 0.5}),
    ("Gaussian", {"sigma": 0.25, "grad_scale": 1.5}), ("MultiGaussian", {"grad_scale": 0.5}),
])
def test_surrogates(name: str, values: dict[str, float], kind: str) -> None:
    package("sinabs")
    from sinabs import activation
    theirs = _theirs(kind, surrogate_grad_fn=getattr(activation, name)(**values))
    if kind == ALIF and name != "SingleExponential":
        with pytest.raises(Refused, match="surrogate_grad_fn: expected SingleExponential, got"):
            ours.ALIFRecurrent.from_original(theirs)
        return
    _compare(theirs)


@pytest.mark.parametrize("kind", [ALIF, LIF])
@pytest.mark.parametrize("train_alphas", [False, True])
def test_the_same_layer_from_the_same_arguments(kind: str, train_alphas: bool) -> None:
    package("sinabs")
    from sinabs import layers
    from sinabs.activation import SingleSpike
    own = {"tau_adapt": 15.0} if kind == ALIF else {}
    made = [getattr(place, kind)(tau_mem=8.0, rec_connect=_linear(6, True), tau_syn=4.0,
                                 spike_fn=fn, train_alphas=train_alphas, **own)
            for place, fn in ((layers, SingleSpike), (ours, ours.SingleSpike))]
    want, got = (layer.state_dict() for layer in made)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    x = _values(-0.5, 5, B, T, N, seed=3)
    theirs, layer = made
    spikes = theirs(x)
    assert torch.equal(layer(x), spikes) and 0.03 < float(spikes.detach().mean()) < 0.9
    assert layer.v_mem.shape == theirs.v_mem.shape


def test_more_axes_and_a_shape() -> None:
    theirs = _theirs(ALIF, shape=(B, 2, N))
    layer = ours.ALIFRecurrent.from_original(theirs)
    x = _values(-1, 5, B, T, 2, N, seed=3)
    spikes = theirs(x)
    assert torch.equal(layer(x), spikes) and spikes.any() and layer.b.shape == (B, 2, N)
    assert ours.ALIFRecurrent(8.0, 15.0, _linear(6, True), shape=(B, N)).v_mem.shape == (B, N)


def test_states_and_their_graph() -> None:
    theirs = _theirs(ALIF)
    layer: Any = ours.ALIFRecurrent.from_original(theirs)
    x = _values(-1, 5, B, T, N, seed=3)
    layer(x).sum().backward()
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        layer(x).sum().backward()
    layer.zero_grad()
    assert layer.v_mem.any() and layer.v_mem.grad_fn is None and theirs.tau_mem.grad is None
    with torch.no_grad():
        again = [other(x) for other in copies]
        assert torch.equal(*again) and again[0].any()
        assert not torch.equal(again[0], theirs(x)), "a copy goes on from the states"
    layer.reset_states()
    assert not layer.v_mem.any()
    layer.reset_states(randomize=True, value_ranges={"b": (2.0, 3.0)})
    assert 2 <= float(layer.b.min()) <= float(layer.b.max()) <= 3 and layer.v_mem.max() <= 1
    assert {id(p) for p in layer.parameters()} == {id(p) for p in theirs.parameters()}


def _changed(name: str, value: Any) -> Any:
    theirs = _theirs(ALIF)
    setattr(theirs, name, value)
    return theirs


def test_refusals() -> None:
    package("sinabs")
    from sinabs import activation
    cases = {
        "record_states: expected False": _changed("record_states", True),
        "min_v_mem: expected None": _changed("min_v_mem", -1.0),
        "spike_fn: expected SingleSpike, got MultiSpike": _changed("spike_fn",
                                                                   activation.MultiSpike),
        "reset_fn: expected MembraneSubtract": _changed("reset_fn", activation.MembraneReset(0.1)),
        "reset_fn: expected Membrane": _changed("reset_fn", activation.MembraneSubtract(0.3)),
        "surrogate_grad_fn: expected SingleExponential": _changed(
            "surrogate_grad_fn", activation.PeriodicExponential()),
        "rec_connect: expected a torch.nn.Linear, got Sequential": _changed(
            "rec_connect", nn.Sequential(nn.Linear(N, N))),
    }
    for words, theirs in cases.items():
        with pytest.raises(Refused, match=f"ALIFRecurrent: {words}"):
            ours.ALIFRecurrent.from_original(theirs)
    with pytest.raises(Refused, match="spike_fn: expected SingleSpike, got MultiSpike"):
        ours.LIFRecurrent(8.0, nn.Linear(N, N))
    with pytest.raises(Refused, match="mu=0"):
        ours.LIFRecurrent(8.0, nn.Linear(N, N), spike_fn=ours.SingleSpike,
                          surrogate_grad_fn=ours.Gaussian(mu=0.1))
    for shape in ((B, N), (B, 0, N)):
        with pytest.raises(ValueError, match=r"input_data: expected shape \(B, T, ..., N\)"):
            ours.ALIFRecurrent(8.0, 15.0, nn.Linear(N, N))(torch.zeros(shape))
