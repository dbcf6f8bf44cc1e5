"""Results of a replay share memory where those of the original do, and nowhere else."""
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from converted_nets import draw_x, plans_are_useful, seen_replays  # noqa: F401
from lsnn_ext.loops import convert, fuse


def test_views_of_results_share_memory() -> None:
    fused = fuse(share, draw_x())
    for _ in range(2):
        turned, detached = fused(draw_x())
        detached.fill_(3.0)
        assert bool((turned == 3.0).all())
    fused = fuse(keep_last, draw_x())
    for _ in range(2):
        out, last = fused(draw_x())
        last.fill_(3.0)
        assert not bool((out == 3.0).any())


def integrate(x: Tensor) -> list[Tensor]:
    v, out = torch.zeros(2, 5), []
    for x_t in x:
        v = 0.9 * v + x_t
        out.append(v)
    return out


def keep_last(x: Tensor) -> tuple[Tensor, Tensor]:
    out = integrate(x)
    return torch.stack(out), out[-1].detach()


def share(x: Tensor) -> tuple[Tensor, Tensor]:
    turned = torch.stack(integrate(x)).transpose(0, 1)
    return turned, turned.detach()


class Keeps(nn.Module):
    """Keeps a container of its result."""

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        super().__init__()
        self.choose, self.kept = choose, None

    def forward(self, x: Tensor) -> Any:
        out = integrate(x)
        result = {"all": out, "last": deque(out[-2:]), "pair": (out[0], [out[1]])}
        self.kept = self.choose(result)
        return result


@pytest.mark.parametrize("choose", [
    lambda result: result, lambda result: result["all"], lambda result: result["last"],
    lambda result: result["pair"][1]])
def test_an_attribute_is_a_container_of_the_result(choose: Callable[[Any], Any]) -> None:
    model, x = Keeps(choose), draw_x()
    model, report = convert(model, x)
    assert report.converted, report.reason
    for _ in range(3):
        result = model(x)
        assert model.kept is choose(result)
    assert len(seen_replays) > 1  # the second call is recorded: the first one started without


class Appends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.log[:] = integrate(x)
        return self.log


def test_a_container_from_before_the_call_is_no_result() -> None:
    _, report = convert(Appends(), draw_x())
    assert report.reason == "result: expected new lists and dicts, got log"


def test_a_part_that_nothing_has_written_has_a_gradient() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        v, out = torch.zeros(2, 5), torch.zeros(len(x), 2, 5)
        for t in range(len(x) // 2):
            v = 0.9 * v + x[t] * w
            out[t] = v
        return out[-1]

    x, w = draw_x(), torch.ones(5, requires_grad=True)
    fused = fuse(run, (x, w), verify=False)
    assert all(fused(x, w).requires_grad for _ in range(2))


def test_a_view_of_a_parameter_under_no_grad() -> None:
    """It requires a gradient, and has no backward pass."""
    def run(x: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        v, total = torch.zeros(2, 5), torch.zeros(2, 5)
        for x_t in x:
            v = 0.9 * v + x_t
            total += v
        return total, log_std.expand_as(total)

    given = draw_x(), torch.zeros(5, requires_grad=True)
    with torch.no_grad():
        fused = fuse(run, given)
        for one, other in zip(fused(*given), run(*given), strict=True):
            assert torch.equal(one, other) and one.requires_grad == other.requires_grad
