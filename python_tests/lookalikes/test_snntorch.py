"""lsnn_ext.snntorch against snnTorch's own neurons, which compute in float32 only."""
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import snntorch as ours
from lsnn_ext._original import Refused
from originals import B, N, T, assert_equal, package
from peer_layers import snntorch as _theirs
from peer_layers import values as _values

LEAKY, SYNAPTIC = "RLeaky", "RSynaptic"
WITHIN = 2e-5
RESETS = [(LEAKY, "subtract", True), (LEAKY, "zero", True), (LEAKY, "none", True),
          (LEAKY, "subtract", False), (LEAKY, "zero", False), (LEAKY, "none", False),
          (SYNAPTIC, "subtract", True), (SYNAPTIC, "zero", True), (SYNAPTIC, "none", True)]


def _loop(layer: nn.Module, x: Tensor, state: list[Tensor]) -> dict[str, Tensor]:
    """The loop that users write."""
    spikes, membranes = [], []
    for current in x:
        state = list(layer(current, *state))
        spikes.append(state[0])
        membranes.append(state[-1])
    return {"spikes": torch.stack(spikes), "membranes": torch.stack(membranes)} | {
        f"state {k}": value for k, value in enumerate(state[1:])}


def _sequence(layer: Any, x: Tensor, state: list[Tensor]) -> dict[str, Tensor]:
    spikes, *last = layer(x, *state)
    membranes = layer(x, *state, trace=True)[-1]
    return {"spikes": spikes, "membranes": membranes} | {
        f"state {k}": value for k, value in enumerate(last)}


def _compare(theirs: Any, layer: Any, run: Callable[..., dict[str, Tensor]],
             given: bool = False) -> None:
    x = _values(-0.5, 0.9, T, B, N, seed=3).requires_grad_()
    count = len(layer._states)
    # spikes and membranes that do not belong together: a membrane above the threshold without a
    # spike, and a spike without
    state = [(_values(0, 1, B, N, seed=20) > 0.6).float(),
             *(_values(-0.5, 1.5, B, N, seed=20 + k) for k in range(1, count))]
    leaves = {"x": x, **dict(theirs.named_parameters())}
    if given:
        leaves |= {f"first {k}": value.requires_grad_() for k, value in enumerate(state)}
    else:
        state = [torch.zeros(B, N)] * count
    assert_equal(lambda: _loop(theirs, x, state), lambda: run(layer, x, state), leaves, WITHIN)


@pytest.mark.parametrize("given", [False, True], ids=["from rest", "from a state"])
@pytest.mark.parametrize("run", [_sequence, _loop], ids=["sequence", "loop"])
@pytest.mark.parametrize(("kind", "reset", "late"), RESETS)
def test_resets(kind: str, reset: str, late: bool, run: Callable[..., dict[str, Tensor]],
                given: bool) -> None:
    """As a sequence, and in place of theirs in the user's loop."""
    theirs = _theirs(kind, reset_mechanism=reset, reset_delay=late)
    _compare(theirs, getattr(ours, kind).from_original(theirs), run, given)


@pytest.mark.parametrize("V", [0.75, _values(-0.5, 0.9, N, seed=5)], ids=["one V", "V of each"])
@pytest.mark.parametrize("kind", [LEAKY, SYNAPTIC])
def test_one_to_one(kind: str, V: Any) -> None:
    theirs = _theirs(kind, all_to_all=False, linear_features=None, V=V)
    layer = getattr(ours, kind).from_original(theirs)
    if isinstance(V, Tensor):
        _compare(theirs, layer, _sequence)
    else:  # the gradient of one number is a sum over all neurons, which may nearly cancel
        theirs.V.requires_grad_(False)
        leaves = {"x": _values(-0.5, 0.9, T, B, N, seed=3).requires_grad_(), "beta": theirs.beta}
        rest = [torch.zeros(B, N)] * len(layer._states)
        assert_equal(lambda: _loop(theirs, leaves["x"], rest),
                     lambda: _sequence(layer, leaves["x"], rest), leaves, WITHIN)


@pytest.mark.parametrize(("name", "value"), [("atan", 1.25), ("fast_sigmoid", 3.0),
                                             ("sigmoid", 2.0)])
def test_surrogates(name: str, value: float) -> None:
    package("snntorch")
    from snntorch import surrogate
    function = getattr(surrogate, name)(value)
    theirs = _theirs(LEAKY, spike_grad=function)
    far = torch.tensor(-60.0, requires_grad=True)
    if torch.autograd.grad(function(far), far)[0].isnan():  # sigmoid of 1.0.0 overflows
        with pytest.raises(Refused, match="got nan at a distance of -"):
            ours.RLeaky.from_original(theirs)
        return
    _compare(theirs, ours.RLeaky.from_original(theirs), _sequence)


def test_without_a_surrogate() -> None:
    theirs = _theirs(LEAKY, surrogate_disable=True)
    layer = ours.RLeaky.from_original(theirs)
    x = _values(-0.5, 0.9, T, B, N, seed=3).requires_grad_()
    rest = [torch.zeros(B, N)] * 2
    want, got = _loop(theirs, x, rest), _sequence(layer, x, rest)
    assert torch.equal(got["spikes"], want["spikes"]) and want["spikes"].any()
    for found in (torch.autograd.grad(side["membranes"].sum(), x)[0] for side in (want, got)):
        torch.testing.assert_close(found, torch.autograd.grad(
            _loop(theirs, x, rest)["membranes"].sum(), x)[0])
    assert not torch.autograd.grad(got["spikes"].sum(), x)[0].any()


@pytest.mark.parametrize("kind", [LEAKY, SYNAPTIC])
@pytest.mark.parametrize("arguments", [
    {"linear_features": N}, {"linear_features": N, "learn_recurrent": False, "threshold": 0.5},
    {"all_to_all": False, "V": torch.ones(N)}, {"all_to_all": False, "learn_recurrent": False},
], ids=str)
def test_the_same_layer_from_the_same_seed(arguments: dict[str, Any], kind: str) -> None:
    snntorch = package("snntorch")
    made = []
    for place in (snntorch, ours):
        torch.manual_seed(5)
        decays = {"beta": 0.75} | ({"alpha": 0.5} if kind == SYNAPTIC else {})
        made.append(getattr(place, kind)(**decays, **arguments))
    theirs, layer = made
    want, got = theirs.state_dict(), layer.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    for name, parameter in theirs.named_parameters():
        assert dict(layer.named_parameters())[name].requires_grad == parameter.requires_grad
    layer.load_state_dict(want)
    x = torch.round(32 * torch.rand(T, B, N)) / 16
    spikes = _loop(theirs, x, [torch.zeros(B, N)] * len(layer._states))["spikes"]
    assert torch.equal(layer(x)[0], spikes) and 0.05 < float(spikes.detach().mean())


def test_the_loop_begins_as_theirs() -> None:
    """With the empty tensors of init_rleaky, and then with what a step has left in the layer."""
    theirs = _theirs(LEAKY)
    layer = ours.RLeaky.from_original(theirs)
    x = _values(-0.5, 0.9, T, B, N, seed=3)
    with torch.no_grad():
        for side in (theirs, layer):
            spk, mem = side.init_rleaky()
            assert not spk.numel()
            for current in x[:5]:
                spk, mem = side(current, spk, mem)
        for current in x[5:]:
            want, got = theirs(current), layer(current)
            assert torch.equal(got[0], want[0])
        assert torch.equal(layer.reset_mem()[1], torch.zeros(B, N))


def test_parameters_are_shared_and_copies_are_whole() -> None:
    theirs = _theirs(SYNAPTIC)
    layer = ours.RSynaptic.from_original(theirs)
    assert {id(p) for p in layer.parameters()} == {id(p) for p in theirs.parameters()}
    x = _values(-0.5, 0.9, T, B, N, seed=3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x)[0], layer(x)[0])


def test_a_negative_threshold() -> None:
    """Below it snnTorch resets from rest, and with a reset at once does so for ever."""
    theirs = _theirs(LEAKY, threshold=-0.25, learn_threshold=False)
    _compare(theirs, ours.RLeaky.from_original(theirs), _sequence)
    layer = ours.RLeaky(0.9, linear_features=N, threshold=-0.25, reset_mechanism="zero",
                        reset_delay=False)
    with pytest.raises(ValueError, match="threshold: expected numbers >= 0, got -0.25"):
        layer(torch.ones(T, B, N))


def _custom(u: Tensor) -> Tensor:
    return (u > 0).float()


@pytest.mark.parametrize(("kind", "arguments", "words"), [
    (LEAKY, {"init_hidden": True}, "init_hidden: expected False, got True"),
    (LEAKY, {"inhibition": True}, "inhibition: expected False, got True"),
    (LEAKY, {"state_quant": _custom}, "state_quant: expected False"),
    (LEAKY, {"spike_grad": _custom}, "spike_grad: expected None"),
    (LEAKY, {"conv2d_channels": 1, "kernel_size": 3, "linear_features": None}, "conv2d_channels"),
    (SYNAPTIC, {"reset_delay": False}, "reset_delay: expected True"),
])
def test_refusals(kind: str, arguments: dict[str, Any], words: str) -> None:
    theirs = _theirs(kind)
    with pytest.raises(Refused, match=f"{kind}: {words}"):
        getattr(ours, kind)(**{"beta": 0.5, "linear_features": N}
                            | ({"alpha": 0.5} if kind == SYNAPTIC else {}) | arguments)
    if "conv2d_channels" in arguments:
        theirs.conv2d_channels = 1
    else:
        theirs = _theirs(kind, **arguments)
    with pytest.raises(Refused, match=f"{kind}: {words}"):
        getattr(ours, kind).from_original(theirs)


def _graded(theirs: Any) -> None:
    theirs.graded_spikes_factor = torch.tensor(2.0)


def _other_reset(theirs: Any) -> None:
    theirs.reset_mechanism = "zero"


def _wrapped(theirs: Any) -> None:
    theirs.recurrent = nn.Sequential(theirs.recurrent)


def _hooked(theirs: Any) -> None:
    theirs.recurrent.register_forward_hook(lambda *_: None)


def _other_surrogate(theirs: Any) -> None:
    from snntorch import surrogate
    theirs.spike_grad = surrogate.straight_through_estimator()


@pytest.mark.parametrize(("change", "words"), [
    (_graded, "graded_spikes_factor: expected 1"), (_other_reset, "reset_mechanism: expected the"),
    (_wrapped, "recurrent: expected a torch.nn.Linear, got Sequential"),
    (_hooked, "recurrent: expected a torch.nn.Linear whose call"),
    (_other_surrogate, "spike_grad: expected None, or atan"),
])
def test_refusals_of_what_was_changed(change: Callable[[Any], None], words: str) -> None:
    theirs = _theirs(LEAKY)
    change(theirs)
    with pytest.raises(Refused, match=f"RLeaky: {words}"):
        ours.RLeaky.from_original(theirs)


def test_a_hook_that_comes_later_is_not_missed() -> None:
    layer = ours.RLeaky(0.5, linear_features=N)
    layer.recurrent.register_forward_hook(lambda *_: None)
    with pytest.raises(Refused, match="recurrent: expected a torch.nn.Linear whose call"):
        layer(torch.zeros(T, B, N))


def test_other_arguments() -> None:
    with pytest.raises(ValueError, match="reset_mechanism: expected one of subtract"):
        ours.RLeaky(0.5, linear_features=N, reset_mechanism="hard")
    for arguments in ({}, {"all_to_all": False, "linear_features": N}):
        with pytest.raises(TypeError, match="linear_features: expected"):
            ours.RLeaky(0.5, **arguments)
    layer = ours.RLeaky(0.5, linear_features=N)
    with pytest.raises(ValueError, match=r"mem: expected shape \(4, 12\), got \(3, 12\)"):
        layer(torch.zeros(T, B, N), None, torch.zeros(3, N))
    with pytest.raises(ValueError, match="trace: expected False with one step"):
        layer(torch.zeros(B, N), trace=True)
    with pytest.raises(Refused, match="V: expected a number or one for each"):
        ours.RLeaky(0.5, all_to_all=False, V=torch.ones(N, N))(torch.zeros(T, B, N))
