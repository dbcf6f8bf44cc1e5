"""Branches on numbers of tensors: a call with others than the recorded ones runs the original."""
import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert
from small_loops import spike

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


def run(model: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(3)
    try:
        made, v = model(x)
    except ValueError as error:
        return str(error)
    gradients = torch.autograd.grad(made.sum() + v.sum(), [*model.parameters()])
    return [made, v, *gradients, torch.get_rng_state()]


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Checked()
    converted, report = convert(copy.deepcopy(model), draw())
    assert report.converted
    assert f"{T + 2} bools of tensors that Python reads" in str(report)
    return model, converted


def count_others(converted: Any) -> int:
    """Calls with other branches."""
    return sum(converted._lsnn_replayer.branches.values())


def test_the_same_branches_are_replayed(pair: Any) -> None:
    model, converted = pair
    for seed in range(1, 4):
        got, want = run(converted, draw(seed=seed)), run(model, draw(seed=seed))
        torch.testing.assert_close(got, want)
    assert not count_others(converted)


def test_other_branches_run_the_original(pair: Any) -> None:
    model, converted = pair
    for x in (draw(40.0, 1), draw().fill_(torch.nan), draw(seed=2)):
        got, want = run(converted, x), run(model, x)
        assert got == want if isinstance(want, str) else all(map(torch.equal, got[:1], want[:1]))
        if not isinstance(want, str):
            torch.testing.assert_close(got, want)
    assert 1 < count_others(converted) <= 2


def test_other_branches_may_be_rare(pair: Any) -> None:
    model, converted = pair
    for seed in range(90):
        x = draw(40.0 if seed % 9 == 8 else 1.0, seed)
        torch.testing.assert_close(run(converted, x), run(model, x))
    assert 0 < count_others(converted) < 2 and converted._lsnn_replayer.all()[0].plan is not None


class Grows(Checked):
    """Asks for the memory of a tensor in a batch of another size."""

    def forward(self, x: Tensor) -> Any:
        made = super().forward(x)
        return made if len(x) == T or made[1].data_ptr() else made


def test_a_later_call_that_is_refused_warns() -> None:
    model, report = convert(Grows(), draw())
    assert report.converted
    with pytest.warns(UserWarning, match="data_ptr: .*; the original runs"):
        model(draw()[: T - 1])


def test_branches_that_differ_again_and_again_end_the_replay(pair: Any) -> None:
    model, converted = pair
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for seed in range(10):
            x = draw(40.0, seed)
            torch.testing.assert_close(run(converted, x), run(model, x))
    assert ["got others in 8 calls" in str(one.message) for one in found] == [True]
    assert [entry.plan for entry in converted._lsnn_replayer.all()] == [None]
