"""What all classes that stand for another package's layer have in common."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import _original, norse, se_adlif, sinabs, snntorch, sparch, spikingjelly, yin
from lsnn_ext._original import Original, Refused, Shape

T, B, I, N = 6, 2, 3, 5


def _node(kind: type) -> spikingjelly.LinearRecurrentContainer:
    return spikingjelly.LinearRecurrentContainer(kind(), N, N, step_mode="m")


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "norse LSNNRecurrent": (lambda: norse.LSNNRecurrent(I, N), (T, B, I)),
    "norse LIFRecurrent": (lambda: norse.LIFRecurrent(I, N), (T, B, I)),
    "snnTorch RLeaky": (lambda: snntorch.RLeaky(0.875, linear_features=N), (T, B, N)),
    "snnTorch RSynaptic": (lambda: snntorch.RSynaptic(0.5, 0.875, linear_features=N), (T, B, N)),
    "sinabs ALIFRecurrent": (lambda: sinabs.ALIFRecurrent(8.0, 15.0, nn.Linear(N, N)), (B, T, N)),
    "sinabs LIFRecurrent": (lambda: sinabs.LIFRecurrent(
        8.0, nn.Linear(N, N), spike_fn=sinabs.SingleSpike), (B, T, N)),
    "SpikingJelly LIFNode": (lambda: _node(spikingjelly.LIFNode), (T, B, N)),
    "SpikingJelly ParametricLIFNode": (lambda: _node(spikingjelly.ParametricLIFNode), (T, B, N)),
    "Yin et al.": (lambda: yin.SRNN(I, N), (T, B, I)),
    "sparch RLIFLayer": (lambda: sparch.RLIFLayer(I, N, B, 0.25), (B, T, I)),
    "sparch RadLIFLayer": (lambda: sparch.RadLIFLayer(I, N, B, 0.25), (B, T, I)),
    "SEAdLIF": (lambda: se_adlif.SEAdLIF(I, N), (B, T, I)),
}


def _spikes(found: Any) -> Tensor:
    """Of what a call returns, that of Yin's programs aside, which has the membrane first."""
    spikes: Tensor = found[0] if isinstance(found, tuple) else found
    return spikes


def _from_rest(layer: nn.Module, x: Tensor, call: Callable[[Tensor], Any] | None = None) -> Tensor:
    """Spikes from the state that a call begins with where none came before; call: the layer in
    another form."""
    for part in layer.modules():
        for reset in ("reset", "reset_states"):
            if hasattr(part, reset):
                getattr(part, reset)()
    if isinstance(layer, yin.SRNN):
        layer.set_neuron_state(B)
    torch.manual_seed(2)
    return _spikes(layer(x) if call is None else call(x))


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_as_one_graph(name: str) -> None:
    made, shape = LAYERS[name]
    torch.manual_seed(1)
    layer, x = made(), 20 * torch.rand(shape)
    want = []
    for compiled in (False, True):
        call = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
        want.append(_from_rest(layer, x, call))
    assert torch.equal(*want) and want[0].any()


@pytest.mark.parametrize("name", LAYERS)
def test_under_autocast(name: str) -> None:
    """A Linear in front hands on bfloat16 there; the neurons compute in float32 all the same."""
    made, shape = LAYERS[name]
    torch.manual_seed(1)
    layer, x = made(), (20 * torch.rand(shape)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):  # the second one finds what the first has left
            spikes = _from_rest(layer, x)
    assert spikes.any()
    spikes.float().sum().backward()
    learned = [p for p in layer.parameters() if p.grad is not None]
    assert learned and all(p.grad.dtype == p.dtype and bool(p.grad.isfinite().all())
                           for p in learned)
    if name.startswith(("snnTorch", "sinabs")):  # these multiply nothing in front of the neurons
        assert torch.equal(spikes.float(), _from_rest(layer, x.float()))
    assert _from_rest(layer.bfloat16(), x).any()


SETTINGS = [(name, setting) for name, (made, _) in LAYERS.items()
            for setting in (*type(made()).unread, *type(made()).once)]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_a_setting_that_is_read_once_cannot_be_changed(name: str, setting: str) -> None:
    """An attribute would be set, and nothing would follow it."""
    layer = LAYERS[name][0]()
    kept = vars(layer).get(setting)
    for one in (layer, copy.deepcopy(layer)):
        for value in (True, nn.Identity(), torch.ones(1)):
            with pytest.raises(Refused, match=f"^{type(layer).__name__}: {setting}: expected to be "
                                              f"given when the layer is made, .*got it set after"):
                setattr(one, setting, value)
        assert vars(one).get(setting) == kept and setting not in one._modules


def test_what_has_settings_that_are_read_once() -> None:
    assert {name.split()[0] for name, _ in SETTINGS} == {
        "norse", "snnTorch", "sinabs", "sparch", "Yin"}
    for kind in (spikingjelly.LIFNode, spikingjelly.ParametricLIFNode):
        for surrogate in (spikingjelly.ATan(), nn.Identity()):
            with pytest.raises(Refused, match="LIFNode: surrogate_function: expected to be given"):
                kind().surrogate_function = surrogate


@pytest.mark.parametrize("projected", [False, True])
def test_hooks_that_come_later_are_refused(projected: bool) -> None:
    node = spikingjelly.LIFNode()
    sub = nn.Sequential(nn.Linear(N, N), node) if projected else node
    layer = spikingjelly.LinearRecurrentContainer(sub, N, N, step_mode="m")
    x = torch.rand(T, B, N)
    for part in sub.modules():
        handle = part.register_forward_hook(lambda *_: None)
        with pytest.raises(Refused, match="LinearRecurrentContainer: sub_module.* with hooks"):
            layer(x)
        handle.remove()
    layer(x)


@pytest.mark.parametrize("name", ["snnTorch RLeaky", "snnTorch RSynaptic"])
def test_a_factor_that_comes_with_a_state_dict(name: str) -> None:
    layer = LAYERS[name][0]()
    layer.load_state_dict(layer.state_dict() | {"graded_spikes_factor": torch.tensor(2.0)})
    for call, x in ((layer, torch.rand(T, B, N)), (layer, torch.rand(B, N))):
        with pytest.raises(Refused, match=f"{name[9:]}: graded_spikes_factor: expected 1, got 2"):
            call(x)


def test_all_are_registered_by_their_originals() -> None:
    known = {type(made()).original for made, _ in LAYERS.values()}
    assert {name: kind.original for name, kind in Original.registry.items()} == {
        name: name for name in known}


@pytest.mark.parametrize("name", LAYERS)
def test_another_module_is_refused(name: str) -> None:
    kind = type(LAYERS[name][0]())
    with pytest.raises(Refused, match=f"^{kind.__name__}: module: expected one of class "
                                      f"{kind.original}, got one of class torch.nn"):
        kind.from_original(nn.ReLU())


def test_a_look_at_a_surrogate() -> None:
    """It finds another test, another value at the threshold, another derivative, and a NaN."""
    shape = Shape("triangle", 0.5, 2.0)

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, u: Tensor, at_zero: float, factor: float, far: float) -> Tensor:
            ctx.save_for_backward(u)
            ctx.factor, ctx.far = factor, far
            return torch.where(u == 0, at_zero, (u > 0).to(u.dtype))

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            (u,) = ctx.saved_tensors
            return g * torch.where(u < -50, ctx.far, ctx.factor * shape.of(u)), None, None, None

    def look(at_zero: float = 0.0, factor: float = 1.0, far: float = 0.0, ge: bool = False) -> Any:
        return _original.measured(shape, lambda u: Spike.apply(u, at_zero, factor, far), "Layer",
                                  "spike_fn", ge)

    assert look() == shape == look(1.0, ge=True)
    for changed in ({"at_zero": 1.0}, {"ge": True}, {"at_zero": 0.5}):
        with pytest.raises(Refused, match="^Layer: spike_fn: expected 0 below the threshold"):
            look(**changed)  # type: ignore[arg-type]
    for changed in ({"factor": 1.001}, {"far": float("nan")}, {"far": 1e-3}):
        with pytest.raises(Refused, match="^Layer: spike_fn: expected the derivative of"):
            look(**changed)  # type: ignore[arg-type]
