"""Backward, copies and other owners of a converted model."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fooling import judge
from fooling.around import AllStates, LastOnly, Readout
from fooling.base import B, I, Net, Spike, T, build, numbers
from fooling.bodies import DetachedInBetween
from fooling.delays import DelayByDeque
from fooling.indices import Plain
from fooling.layers import LayersInside, TwoLoops
from fooling.parts import Shared
from fooling.writes import Writer
from lsnn_ext import loops

pytestmark = pytest.mark.usefixtures("interpreted")
MODELS = [Plain, LayersInside, AllStates, LastOnly, Readout, TwoLoops, DelayByDeque, Shared,
          DetachedInBetween]
each_model = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
Run = Callable[[Net], Any]


def x_of(seed: int) -> Tensor:
    return numbers(seed, T, B, I).requires_grad_()


def converted(kind: type[Net]) -> Net:
    model = build(kind)
    judge.convert(model, x_of(0))
    return model


def losses(result: Any) -> list[Tensor]:
    return judge.losses(judge.tensors_of(result))


def same(kind: type[Net], run: Run) -> None:
    """Whether run returns the same gradients, None included."""
    found = [run(build(kind)), run(converted(kind))]
    assert len(found[0]) == len(found[1])
    largest = max(float(one.abs().max()) for one in found[0] if one is not None)
    assert largest > 0
    texts = [judge.differ_gradients(a, b, largest) for a, b in zip(*found, strict=True)]
    assert texts == [""] * len(texts)


def grads(model: Net, *others: Tensor) -> list[Tensor | None]:
    return [one.grad for one in (*model.parameters(), *others)]


@each_model
def test_of_each_output_alone(kind: type[Net]) -> None:
    for k in range(len(losses(build(kind)(x_of(1))))):
        def run(model: Net, k: int = k) -> Any:
            x = x_of(1)
            losses(model(x))[k].backward()
            return grads(model, x)
        same(kind, run)


def of_one_step(model: Net) -> Any:
    x = x_of(1)
    judge.tensors_of(model(x))[0][-2].sum().backward()
    return grads(model, x)


def of_inputs_only(model: Net) -> Any:
    x = x_of(1)
    return torch.autograd.grad(losses(model(x)), [x])


def of_two_calls_in_the_other_order(model: Net) -> Any:
    x, y = x_of(1), x_of(2)
    first, second = sum(losses(model(x))), sum(losses(model(y)))
    second.backward()
    first.backward()
    return grads(model, x, y)


@each_model
@pytest.mark.parametrize("run", [
    of_one_step, of_inputs_only, of_two_calls_in_the_other_order], ids=lambda run: run.__name__)
def test_gradients(kind: type[Net], run: Run) -> None:
    same(kind, run)


@each_model
def test_of_a_graph_twice(kind: type[Net]) -> None:
    def run(model: Net, keep: bool = True) -> Any:
        x = x_of(1)
        loss = sum(losses(model(x)))
        loss.backward(retain_graph=keep)
        loss.backward()
        return grads(model, x)
    same(kind, run)
    for model in (build(kind), converted(kind)):
        with pytest.raises(RuntimeError, match="second time"):
            run(model, False)


@each_model
def test_of_gradients_raises_or_is_equal(kind: type[Net]) -> None:
    """Second derivatives."""
    def run(model: Net) -> Any:
        x = x_of(1)
        (g,) = torch.autograd.grad(losses(model(x)), [x], create_graph=True)
        return torch.autograd.grad(g.square().sum(), list(model.parameters()), allow_unused=True)
    try:
        run(converted(kind))
    except (RuntimeError, NotImplementedError):
        return
    same(kind, run)


@each_model
def test_weights_written_before_backward(kind: type[Net]) -> None:
    for model in (build(kind), converted(kind)):
        loss = sum(losses(model(x_of(1))))
        with torch.no_grad():
            for one in model.parameters():
                one.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class SavedByFunction(Writer):
    """The backward pass of sigmoid needs its result."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        return torch.sigmoid(v).mul_(2.0)


class SavedByProduct(Net):
    """That of the product needs the spikes for the gradient of its weights."""

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        current = self.back(z)
        z.clamp_(0.0, 0.5)
        v = self.beta * v + self.feed(x) + current - z.detach()
        return v, Spike.apply(v - self.threshold)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", [SavedByFunction, SavedByProduct])
def test_writes_to_what_the_backward_pass_needs_are_refused(kind: type[Net], verify: bool) -> None:
    model = build(kind)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses(model(x_of(0)))[0].backward()
    with pytest.raises(loops.Refused, match="backward pass without errors"):
        loops.fuse(model, x_of(0), verify=verify)
