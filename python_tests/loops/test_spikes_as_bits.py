"""Spikes of a component that products read as bits, while their numbers are there for all else."""
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_leaves

from lsnn_ext import fuse
from lsnn_ext._core import route
from lsnn_ext._core.bits import attach_bits, detach_bits, find_attached, find_bits, pack_bits
from lsnn_ext.codegen import call
from lsnn_ext.functional import PackedSpikes
from lsnn_ext.loops import component
from lsnn_ext.loops.values import Frame
from small_loops import compare_calls, run_cells, spike

T, B, N, M = 50, 256, 70, 24


def run_inside(x: Tensor, w: Tensor, u: Tensor, b: Tensor, is_next: bool = False) -> Any:
    """A product in each step, which a second population reads, or the caller."""
    v = z = w.new_zeros(B, N)
    level = y = u.new_zeros(B, M)
    made = []
    for one in x:
        v = 0.9 * v + one + z @ w - z
        z = spike(v - 1.0)
        current = F.linear(z, u, b)
        if is_next:
            level = 0.8 * level + current + y @ w[:M, :M] - y
            y = spike(level - 1.0)
        made.append(y if is_next else current)
    return torch.stack(made), z


# how what follows reads spikes (T, B, N), and whether it reads their bits
READS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], bool]] = {
    "whole": (lambda z, u, b: F.linear(z, u, b), True),
    "and their numbers": (lambda z, u, b: (z @ u.t(), z, z.sum(0), z.transpose(0, 1)), True),
    "batch in front": (lambda z, u, b: torch.stack(z.unbind(0), 1) @ u.t() + b, True),
    "both axes in front": (lambda z, u, b: F.linear(torch.stack(z.unbind(0), 2).permute(
        2, 0, 1), u), True),
    "sum": (lambda z, u, b: torch.stack(z.unbind(0)).sum(0) @ u.t(), False),
    "next layer": (lambda z, u, b: run_cells(F.linear(z, u, b), u[:, :M], B), True),
    "two layers": (lambda z, u, b: run_cells(F.linear(run_cells(
        2 * z, 0.1 * u.t() @ u, B), u), u[:, :M], B), True),
    "written": (lambda z, u, b: F.linear(z.mul_(0.5), u), False),
    "half": (lambda z, u, b: F.linear(z.float().double() / 2, u), False)}
RUNS: dict[str, tuple[Callable[..., Any], bool]] = {
    **{name: (lambda x, w, u, b, read=read: read(run_cells(x, w, B), u, b), has_bits)
       for name, (read, has_bits) in READS.items()},
    "in each step": (run_inside, True),
    "in each step of the next layer": (lambda *given: run_inside(*given, is_next=True), True)}


def draw(scale: float = 1.0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    return tuple(factor * torch.randn(*shape, generator=random, dtype=torch.float64)
                 for factor, shape in ((0.4 * scale, (T, B, N)), (0.03, (N, N)), (0.3, (M, N)),
                                       (0.3, (M,))))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each product so far was one of bits."""
    found: list[bool] = []

    def choose(original: Callable[..., Any], x: Any, *args: Any) -> Any:
        found.append(isinstance(x, PackedSpikes))
        return original(x, *args)

    monkeypatch.setattr(route, "choose_linear", partial(choose, route.choose_linear))
    monkeypatch.setattr(call, "choose_route", partial(choose, route.choose_route))
    return found


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
@pytest.mark.parametrize(("name", "needs_gradient"), [
    *((name, True) for name in RUNS), ("batch in front", False), ("next layer", False)])
def test_results_and_gradients(name: str, needs_gradient: bool, read: list[bool]) -> None:
    run, has_bits = RUNS[name]
    given = [one.requires_grad_(needs_gradient) for one in draw()]
    fused = fuse(run, tuple(given))
    fused(*given)
    read.clear()
    compare_calls(fused, run, *given, rtol=1e-9, atol=1e-9)
    assert read and any(read) == has_bits
    assert not any(map(_has_bits, tree_leaves(fused(*given))))  # the caller may write to results


def _has_bits(tensor: Tensor) -> bool:
    return find_attached(tensor) is not None


def test_the_caller_may_write_to_spikes_before_the_backward_pass() -> None:
    def run(x: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        z = run_cells(x, w, B)
        return torch.stack(z.unbind(0)), F.linear(z, u)

    given = [one.requires_grad_() for one in draw()[:3]]
    fused = fuse(run, tuple(given))
    fused(*given)

    def write(*given: Tensor) -> Tensor:
        z, y = fused(*given)
        z.mul_(0.5)
        return y

    compare_calls(write, lambda *given: run(*given)[1], *given, rtol=1e-9, atol=1e-9)


def test_spikes_of_layers_before_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(3):
            x = run_cells(x @ w, w, B)
        return x.sum(0)

    made: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []
    original = component.Component.__call__

    def spy(self: component.Component, frame: Frame) -> None:
        alive.append([one() is not None for one in made])
        original(self, frame)
        found = [find_attached(one) for one in frame.sequences.values()]
        made.extend(weakref.ref(one) for one in found if one is not None)

    monkeypatch.setattr(component.Component, "__call__", spy)
    x, w, *_ = draw(3.0)
    with torch.no_grad():
        fused = fuse(run, (x[:20], w))
        fused(x[:20], w)
        made.clear()
        alive.clear()
        fused(x[:20], w)
    assert alive == [[], [True], [False, True]]


def test_bits_of_views() -> None:
    numbers = (torch.rand(6, 5, 40) < 0.3).double()
    attach_bits(numbers, pack_bits(numbers != 0))
    views = [numbers, numbers[2:], numbers[1::2], numbers.transpose(0, 1), numbers[:, 3:4],
             numbers.permute(1, 0, 2)[1:4, ::3], numbers[2:2], numbers.expand(6, 5, 40)]
    for one in views:
        found = find_bits(one)
        assert found is not None and found.carrier is one
        assert torch.equal(found.bits, pack_bits(one != 0))
    others = [numbers[..., 1:], numbers[..., :32], numbers.transpose(1, 2), numbers[0],
              numbers.view(6, 200)[:, 1:161].view(6, 4, 40), numbers.clone(), numbers[[0, 1]],
              numbers.view(30, 40), numbers.as_strided((6, 5, 40), (0, 0, 1), 3),
              numbers.view(6, 10, 20)]
    assert all(find_bits(one) is None for one in others)
    numbers[0, 0, 0] += 1
    assert find_bits(numbers) is None and find_bits(views[1]) is None
    detach_bits(numbers)
    detach_bits(numbers)
    assert not _has_bits(views[1])
