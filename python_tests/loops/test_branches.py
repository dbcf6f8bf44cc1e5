"""Branches on numbers of tensors: a call with others than the recorded ones runs the original."""
import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert
from small_loops import compare_calls, spike

T, B, N = 12, 3, 5


class Checked(nn.Module):
    """Checks, and branches that are seldom taken."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Any:
        if torch.isnan(x).any():
            raise ValueError("NaN")
        v = z = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for one in x:
            v = 0.9 * v + one + self.back(z) + 0.1 * torch.rand_like(v)
            if v.abs().max() > 50:
                v = v / 2
            z = spike(v - 0.5)
            made.append(z)
        if torch.stack(made).mean() > 2:
            raise RuntimeError("too many spikes")
        return torch.stack(made), v


def draw(scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(T, B, N, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Checked()
    converted, report = convert(copy.deepcopy(model), draw())
    assert report.converted
    assert f"{T + 2} bools of tensors that Python reads" in str(report)
    return converted, model


def count_others(converted: Any) -> int:
    """Calls with other branches."""
    return sum(converted._lsnn_replayer.branches.values())


def test_the_same_branches_are_replayed(pair: Any) -> None:
    for seed in range(1, 4):
        compare_calls(*pair, draw(seed=seed))
    assert not count_others(pair[0])


def test_other_branches_run_the_original(pair: Any) -> None:
    for x in (draw(40.0, 1), draw(seed=2)):
        compare_calls(*pair, x)
    for one in pair:
        with pytest.raises(ValueError, match="NaN"):
            one(draw().fill_(torch.nan))
    assert 1 < count_others(pair[0]) <= 2


def test_other_branches_may_be_rare(pair: Any) -> None:
    for seed in range(90):
        compare_calls(*pair, draw(40.0 if seed % 9 == 8 else 1.0, seed))
    (entry,) = pair[0]._lsnn_replayer.all()
    assert 0 < count_others(pair[0]) < 2 and entry.plan is not None


class Grows(Checked):
    """Asks for the memory of a tensor in a batch of another size, and has no loop for one step."""

    def forward(self, x: Tensor) -> Any:
        made = super().forward(x)
        return made if len(x) in (1, T) or made[1].data_ptr() else made


@pytest.mark.parametrize(("steps", "reason"), [(T - 1, "data_ptr: "), (1, "no loop: ")])
def test_a_later_call_that_is_refused_warns(steps: int, reason: str) -> None:
    model, report = convert(Grows(), draw())
    assert report.converted
    with pytest.warns(UserWarning, match=f"{reason}.*; the original runs"):
        model(draw()[:steps])


def test_branches_that_differ_again_and_again_end_the_replay(pair: Any) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for seed in range(10):
            compare_calls(*pair, draw(40.0, seed))
    assert ["got others in 8 calls" in str(one.message) for one in found] == [True]
    assert [entry.plan for entry in pair[0]._lsnn_replayer.all()] == [None]
