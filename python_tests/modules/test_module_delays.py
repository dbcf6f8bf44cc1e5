"""Changed delays of each synapse act in the next call, or are refused."""
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from draws import draw
from lsnn_ext import ALIF, LSNN, functional
from module_kinds import run_steps
from steps import assert_equal, flat, needs_prepared_layers, prepared

I, N = 4, 9
FIRST = {"alike": torch.full((N, N), 1),
         "several": torch.randint(0, 3, (N, N), generator=torch.Generator().manual_seed(1))}


def _layer(delay: Tensor, num_layers: int = 2) -> ALIF:
    torch.manual_seed(2)
    return ALIF(I, N, num_layers, delay=delay)


def _load(layer: ALIF, **how: Any) -> None:
    other = _layer(torch.full((N, N), 4), layer.num_layers)
    layer.load_state_dict(other.state_dict(), **how)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "other-numbers": lambda layer: layer.delay.fill_(3),
    "larger-numbers": lambda layer: layer.delay.add_(2),
    "smaller-numbers": lambda layer: layer.delay.fill_(0),
    "one-synapse": lambda layer: layer.delay[1, 2].fill_(7),
    "one-of-those-there": lambda layer: layer.delay[1, 2].fill_(1),
    "in-data": lambda layer: layer.delay.data.fill_(3),
    "through-numpy": lambda layer: layer.delay.numpy()[2].put(5, 4),
    "replaced": lambda layer: setattr(layer, "delay", torch.full((N, N), 2)),
    "replaced-by-another-dtype": lambda layer: setattr(layer, "delay",
                                                       torch.full((N, N), 2, dtype=torch.int32)),
    "data-replaced": lambda layer: setattr(layer.delay, "data", torch.full((N, N), 2)),
    "loaded": lambda layer: _load(layer), "assigned": lambda layer: _load(layer, assign=True)}


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "none"])
@pytest.mark.parametrize("how", ["forward", "step"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("first", FIRST)
def test_change_is_seen(first: str, change: str, how: str, gradients: bool) -> None:
    layer = _layer(FIRST[first])

    def run(module: ALIF) -> Any:
        return module(draw(16, 2, I)) if how == "forward" else run_steps(module, draw(16, 2, I))

    with torch.set_grad_enabled(gradients):
        before = [run(layer) for _ in range(2)][1]
        CHANGES[change](layer)
        assert isinstance(layer.delay, Tensor)
        fresh = _layer(layer.delay.clone())
        fresh.load_state_dict(layer.state_dict())
        for module in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer):
            got, want = flat(run(module)), flat(run(fresh))
            assert_equal([leaf.detach() for leaf in got], want)
        assert got[0].sum() > 0
        if change != "one-of-those-there":
            assert any(a.shape != b.shape or not torch.equal(a, b)
                       for a, b in zip(got, flat(before), strict=True))


@needs_prepared_layers
def test_longer_delays_between_steps() -> None:
    """The state is too short for the new delays: refused, by prepared layers too."""
    layer = _layer(FIRST["alike"], 1)
    with torch.no_grad():
        _, state = prepared(layer.step, draw(2, I))
        CHANGES["other-numbers"](layer)
        with pytest.raises(ValueError, match=r"state.z: expected shape \(4, 2, 9\) or more"):
            layer.step(draw(2, I), state)
        prepared(layer.step, draw(2, I))


@pytest.mark.parametrize("gradients", [True, False])
def test_delay_from_outside(gradients: bool) -> None:
    layer, x = _layer(FIRST["alike"]), draw(16, 2, I)
    with torch.set_grad_enabled(gradients):
        own = layer(x)
        for delay in (torch.full((N, N), 3), FIRST["several"]):
            other = _layer(delay)
            other.load_state_dict({**layer.state_dict(), "delay": delay})
            got = torch.func.functional_call(layer, {"delay": delay}, (x,))
            assert_equal([leaf.detach() for leaf in flat(got)], other(x))
            assert_equal([leaf.detach() for leaf in flat(layer(x))], own)


def test_a_tensor_in_place_of_a_number() -> None:
    layer, x = ALIF(I, N, delay=1), draw(16, 2, I)
    layer.delay = FIRST["several"].clone()
    fresh = ALIF(I, N, delay=FIRST["several"])
    fresh.load_state_dict({**layer.state_dict(), "delay": FIRST["several"]})
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_equal([leaf.detach() for leaf in flat(layer(x))], fresh(x))
            layer.delay.fill_(2)
            fresh.delay.fill_(2)  # type: ignore[union-attr]
            assert_equal([leaf.detach() for leaf in flat(layer(x))], fresh(x))


@pytest.mark.parametrize("first", FIRST)
def test_bad_delay_is_refused(first: str) -> None:
    layer = _layer(FIRST[first])
    assert isinstance(layer.delay, Tensor)
    layer.delay[3, 3] = -1
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match="delay: expected"):
            layer(draw(3, 2, I))


def _called(delay: functional.Delays, x: Tensor, gradients: bool) -> Tensor:
    w = torch.zeros(N, N, requires_grad=gradients)
    return functional.alif(x, w, alpha=0.9, theta=0.1, delay=delay)[0]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("first", FIRST)
def test_delays_that_were_changed(first: str, gradients: bool) -> None:
    delays, x = functional.Delays.of(FIRST[first].clone()), torch.rand(5, 2, N)
    _called(delays, x, gradients)
    delays.each[4, 4] = 5
    errors = {"alike": (ValueError, "delay: expected only the values .* make functional.Delays"),
              "several": (RuntimeError, "delay: expected only numbers in delays, got 5")}
    error, message = errors[first]
    with pytest.raises(error, match=message):
        _called(delays, x, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_compiled_layer_refuses_what_it_has_not_seen(first: str) -> None:
    layer = _layer(FIRST[first], 1)
    compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), draw(6, 2, I)
    assert_equal([leaf.detach() for leaf in flat(compiled(x))], layer(x))
    CHANGES["one-synapse"](layer)
    with pytest.raises(RuntimeError, match="^delay: expected only "):
        compiled(x)
    want = layer(x)  # the call that the error asks for
    assert_equal([leaf.detach() for leaf in flat(compiled(x))], want)
    CHANGES["loaded"](layer)  # seen by loading
    assert_equal([leaf.detach() for leaf in flat(compiled(x))], layer(x))


def test_network() -> None:
    net, x = LSNN(I, 4, 5, 2, delay=FIRST["alike"]), draw(16, 2, I)
    net(x)
    CHANGES["other-numbers"](net.neurons)
    other = LSNN(I, 4, 5, 2, delay=3)
    other.load_state_dict({name: value for name, value in net.state_dict().items() if name
                           != "neurons.delay"})
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_equal([leaf.detach() for leaf in flat(net(x))], other(x))
