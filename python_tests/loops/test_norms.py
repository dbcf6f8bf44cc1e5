"""Norms inside a recurrence."""
import copy

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import Neuron, convert
from lsnn_ext.codegen.trace import StepError
from lsnn_ext.functional import recurrent
from small_loops import compare_calls, random, spike

T, B, N = 30, 3, 20
NORMS = {
    "layer": nn.LayerNorm, "without bias": lambda n: nn.LayerNorm(n, bias=False),
    "plain": lambda n: nn.LayerNorm((n,), eps=0.1, elementwise_affine=False),
    "batch": nn.BatchNorm1d, "plain batch": lambda n: nn.BatchNorm1d(n, affine=False)}
PLACES = {
    "product": lambda norm, x, v, y: 0.9 * v + x + norm(y),
    "current": lambda norm, x, v, y: 0.9 * v + norm(x + y),
    "membrane": lambda norm, x, v, y: norm(0.9 * v + x + y)}


class Normed(nn.Module):
    def __init__(self, norm: str, place: str, populations: int = 1) -> None:
        super().__init__()
        self.norm, self.place, self.populations = NORMS[norm](N), PLACES[place], populations
        self.w = nn.Linear(N, N, bias=False)
        for values in self.norm.state_dict().values():  # numbers other than those at the start
            if values.is_floating_point():
                values.add_(torch.rand(N))

    def forward(self, x: Tensor) -> Tensor:
        states = [(torch.zeros_like(x[0]),) * 2] * self.populations
        made = []
        for one in x:
            for i, (v, z) in enumerate(states):
                v = self.place(self.norm, (i + 1) * one, v, self.w(z)) - 0.5 * z
                states[i] = v, spike(v - 0.5)
                made.append(states[i][1])
        return torch.stack(made)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("norm", NORMS)
def test_norm_in_a_recurrence(norm: str, place: str) -> None:
    model, x = Normed(norm, place).double().eval(), random(T, B, N).requires_grad_()
    original = copy.deepcopy(model)
    converted, report = convert(model, x)
    assert len(report.fused) == 1, str(report)
    for other in (x, random(T + 7, B + 10, N).requires_grad_()):
        compare_calls(converted, original, other, rtol=1e-9, atol=1e-9)
    assert 0.03 < float(converted(x).mean()) < 0.8


@pytest.mark.parametrize("place", PLACES)
def test_batch_norm_that_trains_stays(place: str) -> None:
    """It reads the values of all items."""
    _, report = convert(Normed("batch", place).double(), random(T, B, N))
    assert not report.converted and "or a LayerNorm, got batch_norm" in report.reason


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_norms_of_two_populations(norm: str) -> None:
    model, x = Normed(norm, "membrane", 2).double().eval(), random(T, B, N).requires_grad_()
    original = copy.deepcopy(model)
    converted, report = convert(model, x)
    assert report.converted, str(report)
    compare_calls(converted, original, x, rtol=1e-9, atol=1e-9)


def test_norm_over_items_is_refused() -> None:
    def step(c: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + nn.functional.layer_norm(c, c.shape)
        return v, spike(v)

    with pytest.raises(StepError, match=r"expected a LayerNorm of \(B, N\) over x.shape\[-1:\]"):
        recurrent(random(T, B, N), None, Neuron(step))
