"""The backward pass is the derivative of the forward pass.

A spike has no derivative, so spikes are smooth here: z is the antiderivative of the surrogate and
the whole recurrence can be differenced. Where a model detaches a value, differences would see what
was detached; there the detached values are held at what they were while the inputs move, which only
the reference can do: its differences against the gradients of the operator.
"""
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case, Problem, build
from compare import assert_all_same
from lsnn_ext import functional, reference
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import MODELS


class Held:
    """Stores the values of the first calls of reference.stop_gradient, returns them later."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.position = -1

    def __call__(self, value: Tensor) -> Tensor:
        if self.position < 0:
            self.kept.append(value.detach().clone())
            return self.kept[-1]
        self.position += 1
        return self.kept[self.position - 1]


def _small(dynamics: str, surrogate: str | None = None, delay: str = "each",
           refractory: int = 1) -> Problem:
    problem = build(Case("small", dynamics, T=5, B=1, N=3, delay=delay, refractory=refractory,
                         state="real", unit_width=True, surrogate=surrogate))
    problem.fixed["dampening"] = 0.7
    for leaf in problem.leaves.values():
        leaf.requires_grad_()
    return problem


def _check(problem: Problem) -> None:
    """Differences of the operator against the gradients of the operator."""
    names = tuple(problem.leaves)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        outputs = problem.outputs(functional.alif, dict(zip(names, values, strict=True)),
                                  smooth=True)
        return tuple(outputs[name] for name in problem.weights)

    assert torch.autograd.gradcheck(call, tuple(problem.leaves.values()))


@pytest.mark.parametrize("dynamics", [name for name, model in MODELS.items() if not model.detach])
def test_model(dynamics: str) -> None:
    _check(_small(dynamics))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogate(surrogate: str) -> None:
    _check(_small("srnn", surrogate))


@pytest.mark.parametrize("delay", ["none", "one", "kernel"])
def test_delay(delay: str) -> None:
    _check(_small("lsnn", delay=delay, refractory=0))


@pytest.mark.parametrize("dynamics", [name for name, model in MODELS.items() if model.detach])
def test_model_that_detaches(dynamics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, held = _small(dynamics), Held()
    names = tuple(problem.leaves)
    monkeypatch.setattr(reference, "stop_gradient", held)
    with torch.no_grad():
        want = problem.outputs(reference.alif, smooth=True)
        held.position = 0
        again = problem.outputs(reference.alif, smooth=True)
    assert held.kept and held.position == len(held.kept)
    assert_all_same(again, want)

    class Joined(torch.autograd.Function):
        """Values of the reference with what is detached held; gradients of the operator."""

        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
            ctx.save_for_backward(*values)
            held.position = 0
            outputs = problem.outputs(reference.alif, dict(zip(names, values, strict=True)),
                                      smooth=True)
            return tuple(outputs[name].clone() for name in problem.weights)

        @staticmethod
        def backward(ctx: Any, *arriving: Tensor) -> Any:
            saved = zip(names, ctx.saved_tensors, strict=True)
            leaves = {name: value.detach().requires_grad_() for name, value in saved}
            with torch.enable_grad(), monkeypatch.context() as original:
                original.setattr(reference, "stop_gradient", torch.Tensor.detach)
                outputs = problem.outputs(functional.alif, leaves, smooth=True)
                return torch.autograd.grad([outputs[name] for name in problem.weights],
                                           list(leaves.values()), arriving, allow_unused=True)

    assert torch.autograd.gradcheck(Joined.apply, tuple(problem.leaves.values()))
