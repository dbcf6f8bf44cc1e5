"""The backward pass is the derivative of the forward pass.

A spike has no derivative, so spikes are smooth here: z is the antiderivative of the surrogate and
the whole recurrence can be differenced. Where a model detaches a value, differences would see what
was detached: of those, fuzz/test_random_functions.py compares the gradients with those that torch
has of the reference.
"""
import pytest
import torch
from torch import Tensor

from cases import Case, Problem, build
from lsnn_ext import functional
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import MODELS


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
