"""A step without gradients compares every number, and every weight that has acted."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from draws import draw
from lsnn_ext import ALIF, LIF, LSNN, LSNNState, State
from steps import I, N, assert_equal, flat, needs_prepared_layers, prepared

pytestmark = needs_prepared_layers
EACH = {"tau_mem": (15.0, 25.0), "tau_adapt": (50.0, 300.0), "beta": (0.5, 2.0),
        "threshold": (0.008, 0.012)}


def _layer(dtype: torch.dtype = torch.float32, **more: Any) -> ALIF:
    """A layer in which every neuron has constants of its own."""
    torch.manual_seed(1)
    constants: dict[str, Any] = {name: torch.linspace(*ends, N) for name, ends in EACH.items()}
    return ALIF(I, N, dtype=dtype, **constants, **more)


def _state(past: Tensor) -> State:
    """A state with these past spikes (D, B, N); all else is drawn."""
    random = torch.Generator().manual_seed(2)
    _, B, N = past.shape
    v, a, i = (torch.rand(1, B, N, generator=random).to(past) for _ in range(3))
    return State(v, a, i, torch.zeros_like(v), past[None])


def _check(call: Callable[..., Any], arguments: tuple[Any, ...], change: Callable[[], Any],
           seen: bool = True) -> None:
    """After the change a call equals the operators; seen: and differs from what it was before."""
    with torch.no_grad():
        for _ in range(2):
            before = prepared(call, *arguments)
        change()
    got = prepared(call, *arguments)
    assert_equal(got, call(*arguments))
    same = all(torch.equal(one, other) for one, other in zip(flat(got), flat(before), strict=True))
    assert same != seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("index", [0, 7, 8, 15, 16, 24, N - 1])
@pytest.mark.parametrize("name", EACH)
def test_each_number_of_a_source(name: str, index: int, dtype: torch.dtype) -> None:
    layer, state = _layer(dtype), _state(torch.ones(1, 1, N, dtype=dtype))
    value = getattr(layer, f"{name}_l0")
    _check(layer.step, (draw(1, I, dtype=dtype), state), lambda: value[index].mul_(1.5))


@pytest.mark.parametrize(
    ("target", "source"), [(0, 0), (0, N - 1), (N - 1, 0), (N - 1, N - 1), (20, 21)], ids=str)
@pytest.mark.parametrize("others", [False, True], ids=["one-spike", "many-spikes"])
@pytest.mark.parametrize("autapses", [False, True])
def test_each_weight(autapses: bool, others: bool, target: int, source: int) -> None:
    """Corners of the weights, where one neuron has spiked and where all have."""
    layer, past = _layer(autapses=autapses), torch.full((1, 1, N), float(others))
    past[0, 0, source] = 1
    _check(layer.step, (draw(1, I), _state(past)),
           lambda: layer.weight_hh_l0[target, source].add_(9), seen=autapses or target != source)


@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("age", [0, 1, 2])
@pytest.mark.parametrize("delay", ["one", "each"])
@pytest.mark.parametrize("others", [False, True], ids=["one-spike", "many-spikes"])
def test_weights_of_past_spikes_of_every_age(others: bool, delay: str, age: int, item: int) -> None:
    """With delays the weights of spikes act that lie some steps back, in any item of the batch."""
    each = torch.arange(N)[:, None].add(torch.arange(N)).remainder(3)
    layer, past = _layer(delay=2 if delay == "one" else each), torch.zeros(3, 2, N)
    past[age, item, : N if others else 1] = 1
    _check(layer.step, (draw(2, I), _state(past)), lambda: layer.weight_hh_l0[1:, 0].add_(9),
           seen=delay == "each" or age == 2)


@pytest.mark.parametrize("place", [(0, 1), (N - 1, N - 2), (20, 21)], ids=str)
def test_each_delay(place: tuple[int, int]) -> None:
    each = torch.arange(N)[:, None].add(torch.arange(N)).remainder(3)
    layer, past = _layer(delay=each), torch.zeros(3, 1, N)
    past[0] = 1

    def change() -> None:
        assert isinstance(layer.delay, Tensor)
        layer.delay[place] = 2 if layer.delay[place] == 0 else 0

    _check(layer.step, (draw(1, I), _state(past)), change)


SOURCES = ("weight_ih", "weight_hh", "bias_ih", *EACH)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("replaced", [False, True])
def test_each_layer(replaced: bool, index: int, name: str) -> None:
    """Layers on top of each other are compared one by one."""
    layer, past = _layer(num_layers=3), torch.ones(3, 1, 2, N)
    state = State(*(leaf.expand(3, 2, N).contiguous() for leaf in _state(past[0])[:4]), past)
    name = f"{name}_l{index}"
    value = getattr(layer, name)

    def change() -> None:
        if replaced:
            setattr(layer, name, nn.Parameter(value + 0.25) if isinstance(value, nn.Parameter)
                    else value + 0.25)
        else:
            value.add_(0.25)

    _check(layer.step, (draw(2, I), state), change)


@pytest.mark.parametrize("name", ["neurons.weight_ih_l0", "neurons.weight_hh_l0", "neurons.beta_l0",
                                  "neurons.threshold_l0", "readout.weight", "readout.bias",
                                  "readout.tau"])
def test_each_part_of_a_network(name: str) -> None:
    torch.manual_seed(1)
    net = LSNN(I, 20, 17, 3)
    state = LSNNState(_state(torch.ones(1, 2, N)), torch.ones(2, 3))
    part, what = name.split(".")
    value = getattr(getattr(net, part), what)

    def change() -> None:
        if isinstance(value, Tensor):
            value.add_(0.25)
        else:
            setattr(getattr(net, part), what, 2 * value)

    _check(net.step, (draw(2, I), state), change)


@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("steps", [3, 6])
def test_weights_of_spikes_within_a_sequence(steps: int, item: int) -> None:
    """Weights of the only neuron that spikes act in the same call."""
    layer, x = _layer(), torch.zeros(steps, 2, I)
    with torch.no_grad():
        layer.weight_ih_l0.zero_()[N - 1] = 1
        layer.weight_hh_l0.clamp_(max=0)
        x[0, item] = 1
        spikes, _ = layer(x)
        assert torch.equal(spikes.nonzero(),
                           torch.tensor([[t, item, N - 1] for t in range(1, steps)]))
    _check(layer, (x,), lambda: layer.weight_hh_l0[0, N - 1].sub_(9))


@pytest.mark.parametrize("kind", [ALIF, LIF])
def test_a_counter_in_a_layer_without_refractory_steps(kind: type[ALIF]) -> None:
    """A counter that is carried in silences its neuron until it runs out."""
    torch.manual_seed(0)
    layer, state = kind(I, N, refractory=0), _state(torch.zeros(1, 1, N))
    state, over = (state._replace(r=torch.arange(N).remainder(4).view(1, 1, N).float()),
                   torch.full((1, 1, N), 99.0))
    for left in [state.r - step for step in range(4)]:
        spikes, state = prepared(layer.step, torch.zeros(1, I), state._replace(v=over))
        assert_equal(spikes, (left[0] <= 0).float())
        assert_equal(state.r, (left - 1).clamp(min=0))
