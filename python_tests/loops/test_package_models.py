"""convert on whole models of other packages' layers: trained as before, from given states, from
states that stay in the layers, and back again."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lsnn_ext
import package_models as models
import peer_layers as peers
from compare import assert_same
from originals import B, N, T, package, tolerance, uniform
from test_packages import was_fused
from whole_models import MAKERS, Case, made

# Compiled are some rows of test_packages.py.
pytestmark = pytest.mark.usefixtures("interpreted")
WHOLE = pytest.mark.parametrize("name", MAKERS)


def _reset(model: nn.Module) -> None:
    """Of layers that keep their state."""
    for module in model.modules():
        for name in ("reset_states", "reset"):
            if callable(getattr(module, name, None)):
                getattr(module, name)()


def _call(model: nn.Module, x: Tensor, *more: Any) -> list[Tensor]:
    """The tensors of the result, from one state of the generator."""
    torch.manual_seed(3)
    found = pytree.tree_leaves(model(x, *more))
    return [one for one in found if isinstance(one, Tensor)]


def _converted(name: str) -> tuple[Case, nn.Module, Any]:
    """Its model as it is, and another one converted."""
    theirs, ours = made(name), made(name)
    torch.manual_seed(3)
    model, report = lsnn_ext.convert(ours.model, ours.x)
    assert model is ours.model and report.fused, str(report)
    assert was_fused(report), str(report)
    return theirs, model, report


@WHOLE
def test_the_same_training(name: str) -> None:
    """Losses and parameters after each step; the layers, names and states are those of before."""
    theirs, model, _ = _converted(name)
    names = list(theirs.model.state_dict())
    assert list(model.state_dict()) == names
    limit = 1e-9 if theirs.dtype == torch.float64 else 1e-4  # sums round otherwise
    optimizers = [torch.optim.SGD(one.parameters(), 0.01) for one in (theirs.model, model)]
    start = copy.deepcopy(theirs.model.state_dict())
    for step in range(3):
        for one, optimizer in zip((theirs.model, model), optimizers, strict=True):
            optimizer.zero_grad()
            _reset(one)
            _call(one, theirs.x)[0].square().mean().backward()
            optimizer.step()
        for key, want in theirs.model.named_parameters():
            assert_same(f"{key}, step {step}", dict(model.named_parameters())[key].detach(),
                        want.detach(), tolerance=limit)
    moved = [key for key, value in theirs.model.named_parameters()
             if not torch.equal(value, start[key])]
    assert len(moved) >= len(list(theirs.model.parameters())) - 1


@WHOLE
def test_states_go_on(name: str) -> None:
    """From call to call, also into the model that revert returns."""
    theirs, model, _ = _converted(name)
    for one in (theirs.model, model):
        _reset(one)
    limit = tolerance(theirs.dtype) if theirs.dtype == torch.float64 else 1e-4
    with torch.no_grad():
        for call in range(4):
            if call == 3:
                lsnn_ext.revert(model)
            assert_same(f"call {call}", _call(model, theirs.x), _call(theirs.model, theirs.x),
                        tolerance=limit)


# ---------------------------------------------------------------------------------- given states
class FromState(nn.Module):
    """A model whose caller has the state."""

    def __init__(self, model: models.Small) -> None:
        super().__init__()
        self.layer = model.layer

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.layer(x, state)


class SnnTorchFromState(FromState):
    def forward(self, x: Tensor, state: Any) -> Any:
        spikes = []
        for current in x:
            state = self.layer(current, *state)
            spikes.append(state[0])
        return torch.stack(spikes), state


def _norse_state(kind: str) -> Any:
    """With spikes before the first step; norse counts them in b already."""
    nt = package("norse.torch")
    state = {"z": (uniform(0, 1, B, N, seed=7) > 0.7).double(),
             "v": uniform(0, 0.5, B, N, seed=4), "i": uniform(0, 0.5, B, N, seed=5)}
    if kind == "LSNNRecurrent":
        state["b"] = uniform(0.4, 0.8, B, N, seed=6)
    return getattr(nt, kind[:-len("Recurrent")] + "State")(**state)


def _norse(kind: str) -> tuple[FromState, Any, Any]:
    """Each neuron has its own numbers."""
    layer = peers.norse(kind, torch.float64, peers.norse_parameters(kind, torch.float64, True))
    model = models.Norse(layer)
    return FromState(model), model.inputs(3), _norse_state(kind)


def _snntorch(kind: str, reset: str) -> tuple[FromState, Any, Any]:
    """Spikes and membranes that do not belong together."""
    model = models.SnnTorch(peers.snntorch(kind, reset_mechanism=reset))
    state = [(peers.values(0, 1, B, N, seed=20) > 0.6).float(),
             *(peers.values(-0.5, 1.5, B, N, seed=20 + k) for k in range(len(
                 model.start(model.inputs(3))) - 1))]
    return SnnTorchFromState(model), model.inputs(3), state


GIVEN: dict[str, Callable[[], tuple[FromState, Any, Any]]] = {
    "norse LSNNRecurrent": lambda: _norse("LSNNRecurrent"),
    "norse LIFRecurrent": lambda: _norse("LIFRecurrent"),
    **{f"snnTorch {kind} {reset}": lambda kind=kind, reset=reset: _snntorch(kind, reset)  # type: ignore[misc]
       for kind in ("RLeaky", "RSynaptic") for reset in ("subtract", "zero", "none")}}


@pytest.mark.parametrize("name", GIVEN)
def test_given_states(name: str) -> None:
    """Which get their gradients."""
    sides: list[list[Tensor | None]] = []
    for is_ours in (True, False):
        model, x, state = GIVEN[name]()
        if is_ours:
            model, report = lsnn_ext.convert(model, (x, state))
            assert was_fused(report), str(report)
        values, spec = pytree.tree_flatten((x, state))
        values = [value.clone().requires_grad_() for value in values]
        values += [one for one in getattr(model.layer, "p", ()) if isinstance(one, Tensor)
                   and one.requires_grad]
        count = spec.num_leaves
        found = pytree.tree_leaves(model(*pytree.tree_unflatten(values[:count], spec)))
        loss = sum((one * uniform(-1, 1, *one.shape, dtype=one.dtype, seed=90 + k)).sum()
                   for k, one in enumerate(found))
        leaves = [*values, *model.parameters()]
        sides.append([*found, *torch.autograd.grad(loss, leaves, allow_unused=True)])
    limit = tolerance(x.dtype)
    assert 0.02 < float(found[0].detach().mean()) < 0.97
    for got, want in zip(*sides, strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert_same(name, got.detach(), want.detach(), tolerance=limit)


# -------------------------------------------------------------------------------- truncated in time
def test_chunks_of_spikingjelly() -> None:
    """detach between chunks, set_step_mode and reset_net act on the converted model too."""
    package("spikingjelly")
    from spikingjelly.activation_based import functional

    sides = []
    for is_ours in (True, False):
        net: Any = nn.Sequential(peers.spikingjelly(projected=True))
        x = models.Jelly(net[0]).inputs(3)
        functional.set_step_mode(net, "m")
        if is_ours:
            net, _ = lsnn_ext.convert(net, x[:10])
        functional.reset_net(net)
        found: list[Tensor] = []
        for chunk in x.split(10):
            spikes = net(chunk)
            found += [spikes, *torch.autograd.grad(spikes.square().sum(), list(net.parameters()))]
            node = net[0].sub_module[1]
            net[0].y, node.v = net[0].y.detach(), node.v.detach()
        functional.reset_net(net)
        assert net[0].y is None
        found.append(net(x))
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        found.append(torch.stack([net(x_t) for x_t in x]))
        sides.append(found)
    assert len(sides[0]) == T // 10 * 5 + 2 and bool(sides[0][0].any())
    assert_same("chunk", *sides, tolerance=1e-12)


def test_chunks_of_sinabs() -> None:
    """zero_grad of its layers cuts the graph of the states."""
    sides = []
    for is_ours in (True, False):
        net: Any = nn.Sequential(peers.sinabs("ALIFRecurrent"))
        x = models.Sinabs(net[0]).inputs(3)
        if is_ours:
            net, _ = lsnn_ext.convert(net, x[:, :10])
        net[0].reset_states()
        found: list[Tensor] = []
        for chunk in x.split(10, dim=1):
            net[0].zero_grad()
            spikes = net(chunk)
            found += [spikes, *torch.autograd.grad(spikes.square().sum(), [net[0].tau_mem])]
        sides.append(found)
    assert_same("chunk", *sides, tolerance=tolerance(torch.float32))


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize("kind", ["LIFNode", "IFNode", "ParametricLIFNode", "EIFNode", "QIFNode",
                                  "IzhikevichNode"])
def test_multi_step_nodes_of_spikingjelly(kind: str, stores: bool) -> None:
    """An operator in C++ or Python runs all steps; the states stay in the node."""
    package("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layer.Conv2d(2, 3, 3, step_mode="m")
            self.node = getattr(neuron, kind)(
                step_mode="m", surrogate_function=surrogate.ATan(), store_v_seq=stores)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            z = self.node(self.conv(x))
            return (z, self.node.v_seq) if stores else (z,)

    torch.manual_seed(0)
    x = 4 * torch.rand(20, 2, 2, 6, 6)
    original = Net()
    model, report = lsnn_ext.convert(copy.deepcopy(original), x)
    assert len(report.fused) == 1, str(report)
    for call in range(3):
        for one in (model, original):
            if call == 2:
                functional.reset_net(one)
        made, wanted = model(x), original(x)
        torch.testing.assert_close(made, wanted)
        torch.testing.assert_close(model.node.v, original.node.v)
        torch.testing.assert_close(*(torch.autograd.grad(
            sum(one.cos().sum() for one in results), list(model_.parameters()))
            for results, model_ in ((made, model), (wanted, original))), rtol=1e-4, atol=1e-4)
        for one in (model, original):
            functional.detach_net(one)
