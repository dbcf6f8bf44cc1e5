"""Sums over the neurons of a recurrence, as of an inhibition that all have in common."""
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert
from small_loops import compare_calls, random, spike

T, B, N = 30, 3, 20


class Inhibited(nn.Module):
    """Leaky neurons, with a function of the spikes of all of them."""

    def __init__(self, inhibit: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.inhibit = nn.Linear(N, N), inhibit
        self.strength = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> list[Tensor]:
        v = z = torch.zeros_like(x[0])
        made, sums = [], []
        for one in x:
            inhibition = self.strength * self.inhibit(z, v)
            v = 0.9 * v + one + self.w(z) - z
            v -= inhibition
            z = spike(v - 0.5)
            made.append(z)
            sums.append(inhibition)
        return [torch.stack(made), v, sums[-1], torch.stack(sums)]


FUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda z, v: z.sum(1, keepdim=True),
    "others": lambda z, v: 0.5 * (z.sum(-1, keepdim=True) - z),
    "mean by name": lambda z, v: torch.mean(z, dim=1, keepdim=True) * 3,
    "detached and bounded": lambda z, v: torch.tanh(z.detach().sum((1,), keepdim=True) / 4),
    "two sums": lambda z, v: z.sum(1, True) * (2 * z).mean(1, True)}


@pytest.mark.parametrize("name", FUSED)
def test_sums_of_spikes(name: str) -> None:
    model, x = Inhibited(FUSED[name]).double(), random(T, B, N).requires_grad_()
    original = copy.deepcopy(model)
    converted, report = convert(model, x)
    assert report.fused, str(report)
    compare_calls(converted, original, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inhibit", [lambda z, v: torch.relu(v).sum(1, keepdim=True),
                                     lambda z, v: z.sum(1, keepdim=True).mul_(0.5)],
                         ids=["of rates", "written to"])
def test_other_sums_stay(inhibit: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Those of numbers that are not whole depend on their order."""
    _, report = convert(Inhibited(inhibit).double(), random(T, B, N))
    assert not report.converted and "got (3, 1)" in report.reason
