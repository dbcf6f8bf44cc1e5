"""Hooks, another forward, another module and compiled parts of LSNN are called."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrizations

from draws import draw
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, State
from steps import assert_equal, flat

I, N, O = 4, 9, 3


def _net(**options: Any) -> LSNN:
    torch.manual_seed(2)
    return LSNN(I, 4, 5, O, **options)


# Names within those of the functions of torch that register hooks, and options.
HOOKS: dict[str, tuple[str, dict[str, bool]]] = {
    "forward": ("forward", {}), "forward-always": ("forward", {"always_call": True}),
    "forward-with-kwargs": ("forward", {"with_kwargs": True}), "forward-pre": ("forward_pre", {}),
    "full-backward": ("full_backward", {}), "full-backward-pre": ("full_backward_pre", {})}
CALLS = {"forward": lambda net: net(draw(6, 2, I))[0], "step": lambda net: net.step(draw(2, I))[0],
         "batch-first-step": lambda net: net.step(draw(2, I))[0],
         "unbatched-step": lambda net: net.step(draw(I))[0]}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("part", ["neurons", "readout"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_a_part(hook: str, part: str, call: str) -> None:
    net, seen, (name, options) = _net(batch_first="first" in call), [], HOOKS[hook]
    want = CALLS[call](net)
    register = getattr(net.get_submodule(part), f"register_{name}_hook")
    handle = register(lambda *_: seen.append(hook), **options)
    out = CALLS[call](net)
    (out * torch.linspace(1, 2, O)).sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(out, want)
    with torch.no_grad():
        torch.testing.assert_close(CALLS[call](net), want)
    handle.remove()
    seen.clear()
    CALLS[call](net).sum().backward()
    assert not seen


@pytest.mark.parametrize("call", ["forward", "step"])
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if "kwargs" not in hook])
def test_hooks_on_all_modules(hook: str, call: str) -> None:
    net, seen, (name, options) = _net(), [], HOOKS[hook]
    register = getattr(hooks, f"register_module_{name}_hook")
    handle = register(lambda module, *_: seen.append(module), **options)
    try:
        CALLS[call](net).sum().backward()
    finally:
        handle.remove()
    # A step of the network is a method, not a call of it; the parts are called.
    assert {type(m) for m in seen} - {LSNN} == {ALIF, LeakyReadout}
    assert (LSNN in {type(m) for m in seen}) == (call == "forward")


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layer", [ALIF(I, N), ALIF(I, N, batch_first=True),
                                   LeakyReadout(I, O, batch_first=True),
                                   LeakyReadout(I, O, batch_first=True, tau_syn=5.0)],
                         ids=["ALIF", "batch-first", "readout", "synaptic-readout"])
@pytest.mark.parametrize("form", ["batch", "unbatched"])
def test_hooks_see_steps(layer: Any, form: str, gradients: bool) -> None:
    layer, x, seen = copy.deepcopy(layer), draw(2, I) if form == "batch" else draw(I), []
    with torch.set_grad_enabled(gradients):
        want = layer.step(x)
        layer.register_forward_hook(lambda *_: seen.append(1))
        got = layer.step(x)
    assert len(seen) == 1
    assert_equal([leaf.detach() for leaf in flat(got)], want)


class Doubled(ALIF):
    """Neurons that are driven twice as strongly."""

    def forward(self, x: Any, state: State | None = None, **options: Any) -> Any:
        return super().forward(2 * x, state, **options)


class Negative(LeakyReadout):
    """A readout of the other sign."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, end = super().forward(x, state)
        return -y, end


def _own_forward(net: LSNN) -> None:
    inner = net.neurons.forward
    net.neurons.forward = lambda x, *rest, **options: inner(2 * x, *rest, **options)  # type: ignore[method-assign]


def _another(kind: type, net: LSNN, **options: Any) -> Any:
    torch.manual_seed(5)
    return kind(N, O, **options) if issubclass(kind, LeakyReadout) else kind(I, N, **options)


class Foreign(nn.Module):
    """Neurons that have nothing of ours but the form of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(I, N)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        out = self.inner(x)
        zero = out.new_zeros(1, *out.shape[1:])
        return out, State(zero, zero, zero, zero, zero[None])


REPLACED: dict[str, Callable[[LSNN], Any]] = {
    "neurons-of-a-subclass": lambda net: setattr(net, "neurons", _another(Doubled, net)),
    "readout-of-a-subclass": lambda net: setattr(net, "readout", _another(Negative, net)),
    "forward-of-the-instance": _own_forward,
    "two-layers": lambda net: setattr(net, "neurons", _another(ALIF, net, num_layers=2)),
    "LIF": lambda net: setattr(net, "neurons", _another(LIF, net)),
    "foreign-neurons": lambda net: setattr(net, "neurons", Foreign()),
    "readout-without-bias": lambda net: setattr(net, "readout",
                                                _another(LeakyReadout, net, bias=False)),
    "readout-of-another-time": lambda net: setattr(net.readout, "tau", 5.0),
    "parametrized-readout": lambda net: parametrizations.weight_norm(net.readout, "weight"),
    "orthogonal-readout": lambda net: parametrizations.orthogonal(net.readout, "weight"),
    "parametrized-neurons": lambda net: parametrizations.weight_norm(net.neurons, "weight_hh_l0")}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", REPLACED)
def test_what_stands_there_is_called(name: str, gradients: bool) -> None:
    net, x = _net(), draw(8, 2, I)
    REPLACED[name](net)
    with torch.set_grad_enabled(gradients):
        spikes, end = net.neurons(x)
        want, p = net.readout(spikes)
        y, state, seen = net(x, return_spikes=True)
        assert spikes.any() and torch.equal(seen, spikes)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(flat(state), flat([end, p]))
        torch.testing.assert_close(net(x)[0], want)
        spikes, end = net.neurons(x[:1])
        want, p = net.readout(spikes)
        y, state = net.step(x[0])
        torch.testing.assert_close(y, want[0])
        torch.testing.assert_close(flat(state), flat([end, p]))


@pytest.mark.parametrize("part", ["neurons", "readout"])
def test_compiled_part(part: str) -> None:
    net, seen = _net(), []

    def backend(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph

    want = net(draw(6, 2, I))[0]
    net.get_submodule(part).compile(backend=backend)
    torch.testing.assert_close(net(draw(6, 2, I))[0], want)
    assert seen
