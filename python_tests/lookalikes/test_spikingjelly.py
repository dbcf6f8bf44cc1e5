"""lsnn_ext.spikingjelly against SpikingJelly's own container and neurons."""
import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import spikingjelly as ours
from lsnn_ext._original import Refused
from originals import B, I, N, T, assert_equal, package, tolerance, uniform
from peer_layers import spikingjelly as _theirs

DOUBLE, SINGLE = torch.float64, torch.float32
LIF, PLIF = "LIFNode", "ParametricLIFNode"


def _compare(theirs: Any, dtype: torch.dtype = DOUBLE, sequence: bool = False,
             scalars: bool = True) -> None:
    """Calls in the user's loop, or of the whole sequence; the state goes on from call to call."""
    layer = ours.LinearRecurrentContainer.from_original(theirs)
    x = uniform(-0.6, 1.0, T, B, theirs.rc.in_features - N, dtype=dtype, seed=3).requires_grad_()
    leaves = {"x": x, **{name: parameter for name, parameter in theirs.named_parameters()
                         if scalars or parameter.dim()}}

    def run(side: Any) -> dict[str, Tensor]:
        from spikingjelly.activation_based import functional
        functional.reset_net(side)
        if sequence:
            side.step_mode = "m"
            spikes = torch.cat([side(x[:9]), side(x[9:])])
        else:
            spikes = torch.stack([side(x_t) for x_t in x])
        sub = side.sub_module
        return {"spikes": spikes, "y": side.y,
                "v": (sub[1] if isinstance(sub, nn.Sequential) else sub).v}

    assert_equal(lambda: run(theirs), lambda: run(layer), leaves, tolerance(dtype))


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.2])
@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_nodes(kind: str, v_reset: float | None, detach: bool, decay_input: bool,
               dtype: torch.dtype) -> None:
    """In float32 with a tau and a reset of few bits, and without the gradient of the one number w,
    a sum over all neurons that may nearly cancel."""
    tau = {LIF: "tau", PLIF: "init_tau"}[kind]
    value, rest = (3.0, v_reset) if dtype == DOUBLE else (4.0, v_reset and -0.25)
    theirs = _theirs(kind, dtype, v_reset=rest, detach_reset=detach, decay_input=decay_input,
                     **{tau: value}, **({} if dtype == DOUBLE else {"v_threshold": 0.75}))
    _compare(theirs, dtype, scalars=dtype == DOUBLE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_sequences(kind: str, bias: bool) -> None:
    _compare(_theirs(kind, bias=bias), sequence=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_with_a_projection_inside(kind: str, sequence: bool, bias: bool) -> None:
    """The recurrence comes before it, so its weights are multiplied with those of rc."""
    _compare(_theirs(kind, projected=True, bias=bias), sequence=sequence)


@pytest.mark.parametrize("name", [*ours._SHAPES])
def test_surrogates(name: str) -> None:
    package("spikingjelly")
    from spikingjelly.activation_based import surrogate
    theirs = _theirs(surrogate_function=getattr(surrogate, name)(1.25))
    _compare(theirs)
    assert getattr(ours, name)().alpha == getattr(surrogate, name)().alpha
    assert ours._shape("", getattr(ours, name)(1.25)) == ours._shape(
        "", getattr(surrogate, name)(1.25))


@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_the_same_layer_from_the_same_seed(kind: str) -> None:
    package("spikingjelly")
    from spikingjelly.activation_based import layer as layers
    from spikingjelly.activation_based import neuron
    made = []
    for container, nodes in ((layers.LinearRecurrentContainer, neuron),
                             (ours.LinearRecurrentContainer, ours)):
        torch.manual_seed(4)
        made.append(container(nn.Sequential(nn.Linear(I, N), getattr(nodes, kind)()), I, N,
                              step_mode="m"))
    want, got = (layer.state_dict() for layer in made)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    with torch.no_grad():
        for layer in made:
            for parameter in layer.parameters():
                parameter.copy_(torch.round(parameter * 64) / 8)
    x = torch.round(32 * torch.rand(T, B, I)) / 16
    theirs, layer = made
    spikes = theirs(x)
    assert torch.equal(layer(x), spikes) and 0.03 < float(spikes.detach().mean()) < 0.9


def test_states() -> None:
    package("spikingjelly")
    from spikingjelly.activation_based import functional

    theirs = _theirs(step_mode="m")
    layer: Any = ours.LinearRecurrentContainer.from_original(theirs)
    x = uniform(-0.6, 1.0, T, B, N, seed=3)
    spikes = layer(x)
    spikes.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        layer(x).sum().backward()
    copies = [other(x) for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))]
    assert torch.equal(*copies) and not torch.equal(copies[0], spikes)
    with pytest.raises(ValueError, match=r"expected the batch of the state \(4,\), got \(2,\)"):
        layer(x[:, :2])
    functional.reset_net(layer)
    assert torch.equal(layer(x), spikes) and layer.step(x[0]).shape == (B, N)
    assert {id(p) for p in layer.parameters()} == {id(p) for p in theirs.parameters()}
    theirs(x)
    taken = ours.LinearRecurrentContainer.from_original(theirs)
    assert torch.equal(taken(x), theirs(x)), "it goes on from the state of the original"
    other = uniform(-0.6, 1.0, T, 3, 2, N, seed=4)
    for side in (layer, theirs):
        functional.reset_net(side)
    assert torch.equal(layer(other), theirs(other))


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_functions_over_a_network(kind: str, projected: bool) -> None:
    """set_step_mode, detach_net between chunks of truncated BPTT, reset_net: as on SpikingJelly's
    own network, and the chunks have the same gradients. The state of SpikingJelly's own container
    is detached by hand: it is a view, at which its detach_net stops."""
    package("spikingjelly")
    from spikingjelly.activation_based import functional
    theirs = nn.Sequential(_theirs(kind, projected=projected))
    net = nn.Sequential(ours.LinearRecurrentContainer.from_original(theirs[0]))
    x = uniform(-0.6, 1.0, T, B, theirs[0].rc.in_features - N, seed=3)
    found = []
    for side in (theirs, net):
        functional.set_step_mode(side, "m")
        assert side[0].step_mode == "m"
        functional.reset_net(side)
        spikes, gradients = [], []
        for chunk in x.split(9):
            spikes.append(side(chunk))
            gradients += torch.autograd.grad(spikes[-1].square().sum(), list(theirs.parameters()))
            if side is theirs:
                sub = side[0].sub_module
                node = sub[1] if projected else sub
                side[0].y, node.v = side[0].y.detach(), node.v.detach()
            else:
                functional.detach_net(side)
        assert not side[0].y.requires_grad and side[0].y.any()
        functional.reset_net(side)
        assert side[0].y is None
        whole = functional.chunk_multi_step_forward(9, x, side)
        functional.reset_net(side)
        functional.set_step_mode(side, "s")
        steps = functional.multi_step_forward(x, side)
        assert torch.equal(whole, torch.cat(spikes)) and torch.equal(steps, whole)
        found.append([*spikes, *gradients])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    node = net[0]._node()
    node.step_mode = "m"  # as set_step_mode does
    assert node.step_mode == "s" and node.v.grad_fn is not None
    with pytest.raises(ValueError, match="step_mode: expected 's' or 'm', got 't'"):
        functional.set_step_mode(net, "t")


def test_reset_of_the_container_leaves_the_membrane() -> None:
    """There and here; functional.reset_net goes to the node too."""
    theirs = _theirs(step_mode="m")
    layer: Any = ours.LinearRecurrentContainer.from_original(theirs)
    x = uniform(-0.6, 1.0, T, B, N, seed=3)
    found = []
    for side in (theirs, layer):
        first = side(x)
        side.reset()
        assert side.y is None and bool(side.sub_module.v.any())
        found.append(side(x))
        assert not torch.equal(found[-1], first)
    assert torch.equal(*found)


def _stored(theirs: Any) -> None:
    theirs.sub_module.store_v_seq = True


def _hooked(theirs: Any) -> None:
    theirs.sub_module.register_forward_hook(lambda *_: None)


def _smooth(theirs: Any) -> None:
    from spikingjelly.activation_based import surrogate
    theirs.sub_module.surrogate_function = surrogate.Sigmoid(spiking=False)


def _other_surrogate(theirs: Any) -> None:
    from spikingjelly.activation_based import surrogate
    theirs.sub_module.surrogate_function = surrogate.Rect()


def _other_node(theirs: Any) -> None:
    from spikingjelly.activation_based import neuron
    theirs.sub_module = neuron.IFNode()


def _other_rest(theirs: Any) -> None:
    theirs.sub_module.set_reset_value("v", 0.5)


def _precision(theirs: Any) -> None:
    theirs.sub_module._neuron_precision = ("bf16", "bf16", "bf16")


def _hooked_inside(theirs: Any) -> None:
    theirs.rc.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(("change", "words"), [
    (_stored, "store_v_seq: expected False"), (_hooked, "sub_module: expected one without"),
    (_smooth, "surrogate_function: expected spiking=True"),
    (_other_surrogate, "surrogate_function: expected one of Sigmoid"),
    (_other_node, "sub_module: expected a LIFNode or ParametricLIFNode"),
    (_other_rest, "sub_module: expected 0.0"), (_precision, "sub_module: expected that of x"),
    (_hooked_inside, "rc: expected a torch.nn.Linear whose call"),
])
def test_refusals(change: Any, words: str) -> None:
    theirs = _theirs()
    change(theirs)
    with pytest.raises(Refused, match=words):
        ours.LinearRecurrentContainer.from_original(theirs)


def test_other_arguments() -> None:
    node = ours.LIFNode()
    with pytest.raises(Refused, match="forward: expected a LinearRecurrentContainer around it"):
        node(torch.zeros(B, N))
    with pytest.raises(Refused, match="out_features: expected the 5 features"):
        ours.LinearRecurrentContainer(node, I, N)
    with pytest.raises(Refused, match="sub_module: expected a node of lsnn_ext.spikingjelly"):
        ours.LinearRecurrentContainer(nn.ReLU(), N, N)
    with pytest.raises(Refused, match="step_mode: expected 's' inside"):
        ours.LIFNode(step_mode="m")
    with pytest.raises(ValueError, match="step_mode: expected 's' or 'm', got 't'"):
        ours.LinearRecurrentContainer(node, N, N, step_mode="t")
    for kind in (ours.LIFNode, ours.ParametricLIFNode):
        with pytest.raises(ValueError, match="tau: expected a number > 1, got 1.0"):
            kind(1.0)
