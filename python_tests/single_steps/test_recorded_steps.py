"""Steps under autograd: bitwise one call on the sequence; gradients to rounding."""
import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compare import assert_same
from draws import draw
from lsnn_ext import ALIF, LSNN, State
from lsnn_ext.models import MODELS, find_defaults
from module_kinds import round_weights, run_steps
from steps import LAYERS, I, N, assert_equal, flat, needs_prepared_layers, without_operators

pytestmark = needs_prepared_layers
T, B = 12, 3
OTHERS = {**find_defaults("lsnn", "ALIF"), "threshold": 0.1, "p": 0.1, "q": 0.1, "sigma": 0.3}
EVERY: dict[str, Callable[[], Any]] = LAYERS | {
    name: lambda name=name: ALIF(I, N, **{**OTHERS, "dynamics": name}) for name in MODELS}


def _layer(name: str) -> Any:
    """Weights are multiples of 2^-8, so that sums are exact in any order."""
    torch.manual_seed(0)
    return round_weights(EVERY[name]())


def _start(layer: Any, dtype: torch.dtype) -> State:
    """A state that wants gradients, whose counters of the refractory period run."""
    _, end = layer(draw(5, B, I, dtype=dtype))
    return State(*(leaf.detach().clone().requires_grad_(name != "r")
                   for name, leaf in zip(State._fields, end, strict=True)))


def _loss(spikes: Tensor, end: State) -> Tensor:
    torch.manual_seed(2)
    weights = torch.randn(spikes.shape, dtype=spikes.dtype)
    return (spikes * weights).sum() + sum((leaf * torch.randn(leaf.shape, dtype=leaf.dtype)).sum()
                                          for leaf in end._replace(r=end.v))


def _in_steps(layer: Any, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    return without_operators(run_steps, layer, x, state)


@pytest.mark.parametrize("name", EVERY)
def test_equals_the_sequence(name: str) -> None:
    layer = _layer(name)
    dtype = layer.weight_ih_l0.dtype
    x = (draw(T, B, I) * 2).round().to(dtype).requires_grad_()
    start = _start(layer, dtype)
    want, end = layer(x, start)
    got, after = _in_steps(layer, x, start)
    assert bool(want.any()) and not bool(want.all())
    assert_equal([leaf.detach() for leaf in flat([got, after])], [want, end])
    leaves = [x, start.v, start.a, start.i, start.z, *layer.parameters()]
    gradients = (torch.autograd.grad(loss, leaves, materialize_grads=True)
                 for loss in (_loss(got, after), _loss(want, end)))
    assert_same("gradients", *gradients, tolerance=1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("batch", [(), (1,), (40,)], ids=str)
def test_forms(batch: tuple[int, ...]) -> None:
    layer, x = _layer("ALIF"), (draw(T, *batch, I) * 2).round()
    want, end = layer(x)
    got, after = _in_steps(layer, x, None)
    assert torch.equal(got, want) and torch.equal(after.v, end.v)
    gradients = (torch.autograd.grad(out.sum(), list(layer.parameters())) for out in (got, want))
    assert_same("gradients", *gradients, tolerance=2e-4)


class _Stepping(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return self[0].step(x)


def _step_with_another_weight(x: Tensor) -> Any:
    layer = ALIF(I, N)
    weight = {"0.weight_ih_l0": layer.weight_ih_l0 * 1.0}
    return torch.func.functional_call(_Stepping(layer), weight, (x,))


UNUSUAL: dict[str, Callable[[Tensor], Any]] = {
    "half": lambda x: ALIF(I, N).step(x.bfloat16()),
    "autocast": torch.autocast("cpu", torch.bfloat16)(lambda x: ALIF(I, N).step(x)),
    "computed-weight": _step_with_another_weight,
    "bf16-saved": lambda x: ALIF(I, N, saved_dtype=torch.bfloat16).step(x),
    "checkpoints": lambda x: ALIF(I, N, checkpoint_every=16).step(x)}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_takes_the_operators(name: str) -> None:
    with pytest.raises(AssertionError, match="called the operators"):
        without_operators(UNUSUAL[name], draw(B, I))
    assert UNUSUAL[name](draw(B, I))[0].requires_grad


def _outputs(layer: ALIF, steps: int = 4) -> Tensor:
    return _in_steps(layer, draw(steps, B, I), None)[0]


def test_backward_twice() -> None:
    layer = _layer("learned")
    loss = _outputs(layer).sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    assert_same("second", torch.autograd.grad(loss, list(layer.parameters())), first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    # the layer's own node is not freed with the graph of one pass
    again = torch.autograd.grad(_outputs(layer).sum(), list(layer.parameters()))
    assert_same("again", again, first)


def test_gradients_of_some() -> None:
    """A pass that does not come to the parameters adds nothing to what the next one hands out."""
    layer, x = _layer("ALIF"), draw(4, B, I).requires_grad_()
    loss = _in_steps(layer, x, None)[0].sum()
    names = [name for name, _ in layer.named_parameters()]
    want = torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True)
    for k, leaf in enumerate([x, *layer.parameters()]):
        alone, = torch.autograd.grad(loss, [leaf], retain_graph=True)
        assert torch.equal(alone, want[k]), [*"x", *names][k]
    loss.backward()
    assert torch.equal(layer.weight_hh_l0.grad, want[1 + names.index("weight_hh_l0")])
    assert not layer.__dict__["_prepared"]["_l0"].passes


def test_truncated_passes_add_up() -> None:
    layer, x = _layer("ALIF"), draw(6, B, I)
    whole, state = [], None
    for part in (x[:3], x[3:]):
        spikes, state = _in_steps(layer, part, state)
        spikes.sum().backward()
        whole.append(spikes)
        state = State(*(leaf.detach() for leaf in state))
    other = copy.deepcopy(layer)
    other.zero_grad()
    first, state = other(x[:3])
    last, _ = other(x[3:], State(*(leaf.detach() for leaf in state)))
    (first.sum() + last.sum()).backward()
    torch.testing.assert_close(layer.weight_hh_l0.grad, other.weight_hh_l0.grad)


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0", "tau_mem_l0"])
@pytest.mark.parametrize("through_data", [False, True])
def test_parameter_changed_before_the_backward_pass(name: str, through_data: bool) -> None:
    """The gradient is that of the forward pass, or it is refused."""
    layer, x = _layer("learned"), draw(4, B, I).requires_grad_()
    want = torch.autograd.grad(_in_steps(layer, x, None)[0].sum(), list(layer.parameters()))
    loss, parameter = _in_steps(layer, x, None)[0].sum(), getattr(layer, name)
    with torch.no_grad():
        (parameter.data if through_data else parameter).mul_(1.5)
    if name == "weight_ih_l0" and not through_data:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        return
    assert_same("gradients", torch.autograd.grad(loss, list(layer.parameters())), want)


def test_parameter_changed_between_steps() -> None:
    """Each step takes the weights as they are then, also those of neurons that were silent."""
    layer = _layer("ALIF")
    x, state = draw(6, B, I), None
    reference, other = copy.deepcopy(layer), None
    weights: list[Tensor] = []  # of each step of the reference, which does not copy them
    for x_t in x:
        for one in (layer, reference):
            with torch.no_grad():
                one.weight_hh_l0.data.mul_(1.25)
                one.threshold_l0.add_(0.001)
        spikes, state = without_operators(layer.step, x_t, state)
        weights.append(reference.weight_hh_l0.detach().clone().requires_grad_())
        want, other = torch.func.functional_call(
            reference, {"weight_hh_l0": weights[-1]}, (x_t[None], other))
        assert torch.equal(spikes, want[0])
    for end in (state, other):
        end.v.sum().backward()
    sum_of_steps = sum(w.grad for w in weights if w.grad is not None)
    torch.testing.assert_close(layer.weight_hh_l0.grad, sum_of_steps)


def test_state_changed_in_place_is_refused() -> None:
    layer = _layer("ALIF")
    _, state = layer.step(draw(B, I))
    spikes, _ = layer.step(draw(B, I), state)
    with torch.no_grad():
        state.v.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


def test_input_weights_may_be_transposed_and_a_bias_new() -> None:
    """Also without gradients."""
    layer, x = ALIF(I, N, bias=False), draw(B, I)
    layer.weight_ih_l0.data = layer.weight_ih_l0.data.t().contiguous().t()
    for _ in range(2):
        got, (_, end) = without_operators(layer.step, x), layer(x[None])
        with torch.no_grad():
            assert torch.equal(without_operators(layer.step, x)[1].v, got[1].v)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), layer.weight_ih_l0)[0]
                                     for v in (got[1].v, end.v)))
        torch.testing.assert_close(got[1].v, end.v)
        layer.bias_ih_l0 = nn.Parameter(torch.ones(N))


def test_frozen_and_thawed() -> None:
    layer = _layer("ALIF")
    _outputs(layer).sum().backward()
    layer.zero_grad()
    layer.weight_hh_l0.requires_grad_(False)
    _outputs(layer).sum().backward()
    assert layer.weight_hh_l0.grad is None and bool(layer.weight_ih_l0.grad.any())
    layer.weight_hh_l0.requires_grad_(True)
    _outputs(layer).sum().backward()
    assert bool(layer.weight_hh_l0.grad.any())
    layer.requires_grad_(False)
    assert not _outputs(layer).requires_grad


def test_batches_of_gradients_are_refused() -> None:
    layer = _layer("ALIF")
    spikes, _ = layer.step(draw(B, I))
    with pytest.raises(RuntimeError, match="got a batch of gradients"):
        torch.autograd.grad(spikes, layer.weight_ih_l0, torch.ones(2, B, N), is_grads_batched=True)


class _Kept:
    """A saved tensor that can be looked for."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_saved_tensors_are_freed() -> None:
    layer, kept = _layer("ALIF"), weakref.WeakSet[_Kept]()

    def keep(tensor: Tensor) -> _Kept:
        kept.add(one := _Kept(tensor))
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        spikes = _outputs(layer, 2)
    gc.collect()
    assert len(kept) == 16  # of each step the state before it, y, bits and x
    spikes.sum().backward()
    gc.collect()
    assert not kept


def test_gradients_that_are_no_rows() -> None:
    """Expanded, transposed and lazily negated gradients count as the numbers that they are."""
    layer = _layer("ALIF")
    spikes, _ = layer.step(draw(B, I), _start(layer, torch.float32))
    plain = torch.randn(N, B).t()
    for g in (torch.ones(()).expand(B, N), plain, plain.contiguous()._neg_view()):
        found, = torch.autograd.grad(spikes, layer.weight_hh_l0, g, retain_graph=True)
        same = g.resolve_neg().contiguous().clone()
        want, = torch.autograd.grad(spikes, layer.weight_hh_l0, same, retain_graph=True)
        assert torch.equal(found, want)


def test_network() -> None:
    torch.manual_seed(0)
    net, x = LSNN(I, 20, 17, 3), draw(T, B, I)
    ys, _ = without_operators(run_steps, net, x)
    want = net(x)[0]
    torch.testing.assert_close(ys, want)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), list(net.parameters()))
                                 for y in (ys, want)))


def test_failed_pass_leaves_nothing_behind() -> None:
    """What a backward pass had added up before it failed is no part of the next one."""
    layer = _layer("ALIF")

    def loss(fails: bool) -> Tensor:
        first, state = layer.step(draw(B, I))
        if fails:
            first.register_hook(lambda g: 1 // 0)
        spikes, state = layer.step(draw(B, I), state)
        return first.sum() + spikes.sum() + state.v.sum()

    want, = torch.autograd.grad(loss(False), layer.weight_ih_l0)
    with pytest.raises(ZeroDivisionError):
        loss(True).backward()
    assert not layer.__dict__["_prepared"]["_l0"].passes  # nor its memory
    found, = torch.autograd.grad(loss(False), layer.weight_ih_l0)
    assert torch.equal(found, want) and bool(found.any())
