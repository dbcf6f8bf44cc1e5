"""torch.func over parameters: each gradient is that of one network after the other."""
import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrize

from compare import assert_same
from lsnn_ext import ALIF, LSNN, functional, use_reference
from operator_calls import needs_compiled

pytestmark = [needs_compiled, pytest.mark.filterwarnings("ignore:.*performance drop")]
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ALIF-learned": lambda: ALIF(5, 7, 2, bidirectional=True, learn=("tau_mem", "beta")),
    "ALIF-delays": lambda: ALIF(5, 7, delay=torch.arange(49).view(7, 7) % 3),
    "LSNN": lambda: LSNN(5, 4, 3, 2),
    # of a size where a network alone goes by events and in reused memory
    "LSNN-large": lambda: LSNN(60, 64, 64, 10)}
Ensemble = tuple[list[nn.Module], dict[str, Tensor], dict[str, Tensor], Callable[..., Tensor]]


def _stacked_state(members: list[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As stack_module_state, which refuses parametrized modules."""
    if not any(map(parametrize.is_parametrized, members)):
        return stack_module_state(members)

    def stacked(all_of: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {key: torch.stack([each[key].detach() for each in all_of]) for key in all_of[0]}

    parameters = stacked([dict(member.named_parameters()) for member in members])
    for value in parameters.values():
        value.requires_grad_()
    return parameters, stacked([dict(member.named_buffers()) for member in members])


def _ensemble(name: str) -> Ensemble:
    """Three networks, their stacked state, and the output of one given its state."""
    torch.manual_seed(0)
    members = [MODULES[name]() for _ in range(3)]
    parameters, buffers = _stacked_state(members)
    bare = copy.deepcopy(members[0]).to("meta")

    def output(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return functional_call(bare, (parameters, buffers), (x,))[0]

    return members, parameters, buffers, output


def _x(name: str) -> Tensor:
    torch.manual_seed(1)
    if name == "LSNN-large":
        return (torch.rand(100, 32, 60) < 0.05).float()
    return torch.randn(20, 3, 5)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_each_member(name: str) -> None:
    """By autograd outside of vmap, which hides it from what it maps over, and inside."""
    members, parameters, buffers, output = _ensemble(name)
    x = _x(name)
    y = vmap(output, (0, 0, None))(parameters, buffers, x)
    assert_same("outputs", y.detach(), torch.stack([m(x)[0].detach() for m in members]),
                tolerance=1e-6)
    outside = torch.autograd.grad(y.square().sum(), list(parameters.values()))
    leaves = {key: value.detach() for key, value in parameters.items()}
    slopes = grad(lambda *given: output(*given).square().sum())
    inside = vmap(slopes, (0, 0, None))(leaves, buffers, x)
    want = zip(*(torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters()))
                 for m in members), strict=True)
    stacked = [torch.stack(each) for each in want]
    for found in (list(inside.values()), outside):
        assert_same("gradients", found, stacked, tolerance=1e-5, nonzero=True)


def test_gradients_of_each_sample() -> None:
    torch.manual_seed(0)
    module, x = LSNN(5, 4, 3, 2), torch.randn(20, 3, 5)
    given = {key: value.detach() for key, value in module.named_parameters()}

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, given, (x,))[0].square().sum()

    found = vmap(grad(loss), (None, 1))(given, x)
    for sample in range(3):
        want = torch.autograd.grad(module(x[:, sample])[0].square().sum(),
                                   list(module.parameters()))
        assert_same("gradients", [one[sample] for one in found.values()], want, tolerance=1e-6)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "reference"])
@pytest.mark.parametrize("name", [name for name in MODULES if name != "ALIF-learned"])
def test_ensembles_without_members(name: str, compiled: bool) -> None:
    """Shapes and graph as those of torch's own functions of no elements. torch itself fails on
    an empty batch of scalars times a number, so time constants are not in the batch."""
    _, parameters, buffers, output = _ensemble(name)
    none = {key: value.detach()[:0].requires_grad_() for key, value in parameters.items()}
    one, x = {key: value[0] for key, value in buffers.items()}, _x(name)
    wanted = vmap(output, (0, None, None))(parameters, one, x).shape[1:]
    with nullcontext() if compiled else use_reference():
        y = vmap(output, (0, None, None))(none, one, x)
        found = vmap(grad(lambda *given: output(*given).sum()), (0, None, None))(none, one, x)
    assert y.shape == (0, *wanted)
    gradients = torch.autograd.grad(y.sum(), list(none.values()))
    for value, outside, inside in zip(none.values(), gradients, found.values(), strict=True):
        assert outside.shape == inside.shape == value.shape


def test_ensembles_without_members_take_lengths() -> None:
    lengths, k = torch.tensor([4, 2, 0]), {"alpha": 0.9, "theta": 0.5}

    def spikes(x: Tensor) -> Tensor:
        return functional.alif(x, None, lengths=lengths, **k)[0]

    assert vmap(spikes)(torch.zeros(0, 4, 3, 5)).shape == (0, 4, 3, 5)


def _inner() -> tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Tensor]]:
    torch.manual_seed(0)
    module, x = ALIF(5, 7), torch.randn(20, 3, 5)

    def loss(given: dict[str, Tensor]) -> Tensor:
        return functional_call(module, given, (x,))[0].square().mean()

    return {key: value.detach() for key, value in module.named_parameters()}, loss


def test_a_learned_learning_rate() -> None:
    """The outer derivative of an inner step by its rate needs first derivatives alone."""
    given, loss = _inner()

    def after_a_step(rate: Tensor) -> Tensor:
        slopes = grad(loss)(given)
        return loss({key: value - rate * slopes[key] for key, value in given.items()})

    rate, before = torch.tensor(0.1), grad(loss)(given)
    after = grad(loss)({key: value - rate * before[key] for key, value in given.items()})
    want = -torch.stack([(before[key] * after[key]).sum() for key in given]).sum()
    assert want != 0
    assert_same("slope of the rate", grad(after_a_step)(rate), want, tolerance=1e-5)


def _two_steps(given: dict[str, Tensor], loss: Callable[..., Tensor]) -> Tensor:
    slopes = grad(loss)(given)
    return loss({key: value - 0.1 * slopes[key] for key, value in given.items()})


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("outer", ["torch.func", "autograd"])
def test_second_derivatives_through_an_inner_step_are_refused(outer: str, compiled: bool) -> None:
    """By any pair of ways to differentiate; the first one alone would be another gradient."""
    given, loss = _inner()

    def run(given: dict[str, Tensor]) -> Any:
        if outer == "torch.func":
            return grad(lambda given: _two_steps(given, loss))(given)
        return _two_steps(given, loss)

    run = torch.compile(run, backend="aot_eager") if compiled else run
    with pytest.raises(RuntimeError, match="second derivative"):
        if outer == "torch.func":
            run(given)
        else:
            run({key: value.requires_grad_() for key, value in given.items()}).backward()


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True], ids=["grad-outside", "grad-inside"])
def test_compiled_ensembles(inside: bool) -> None:
    """They leave the graph, and give the gradients of uncompiled ones."""
    _, parameters, buffers, output = _ensemble("LSNN")
    x = _x("LSNN")

    def run() -> list[Tensor]:
        if inside:
            loss = grad(lambda *given: output(*given).square().sum())
            return list(vmap(loss, (0, 0, None))(leaves, buffers, x).values())
        return [vmap(output, (0, 0, None))(parameters, buffers, x)]

    def gradients(call: Callable[[], list[Tensor]]) -> list[Tensor]:
        found = call()
        if inside:
            return found
        return list(torch.autograd.grad(found[0].square().sum(), list(parameters.values())))

    leaves = {key: value.detach() for key, value in parameters.items()}
    want = gradients(run)
    found = gradients(torch.compile(run, backend="aot_eager"))
    assert_same("gradients", found, want, tolerance=1e-6, nonzero=True)


def test_batches_of_gradients_are_refused() -> None:
    module, x = ALIF(5, 7), torch.randn(4, 2, 5, requires_grad=True)
    y = module(x)[0]
    with pytest.raises(RuntimeError, match="got a batch of gradients"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)
