"""Delays by a buffer: x[:, t + d] = z, of which later iterations read x[:, t] or several steps."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext import fuse
from lsnn_ext.loops.ir import Refused
from lsnn_ext.zoo.surrogates import triangle
from small_loops import compare, random

T, B, N, D = 12, 3, 5, 6

READS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "range": lambda x, t: x[:, range(t, t + D, 2)],
    "list": lambda x, t: x[:, [t, t + 3, t - T - D]],
    "slice": lambda x, t: x[:, t:t + D:2],
    "a view": lambda x, t: x[:, t:t + 3].transpose(0, 1),
    "ellipsis": lambda x, t: x[..., t:t + 3, :],
    "the step itself": lambda x, t: x[:, t + 4:t + D + 1],
    "one": lambda x, t: x[:, t + 1],
    "new axes": lambda x, t: torch.cat([x[:, t + k, None] for k in (0, 4)], 1),
    "stacked": lambda x, t: torch.stack([x[:, t + k] for k in (0, 4)], 1),
}


def _delay(read: Callable[[Tensor, int], Tensor], start: Callable[..., Tensor] = torch.zeros,
           ) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        buffer = start(B, T + D, N, dtype=x.dtype)
        v = u = z = y = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for t in range(T):
            v = 0.9 * v + x[t] - z
            z = triangle(v - 0.5)
            buffer[:, t + D] = z.clone()
            view = read(buffer, t)  # alive in the next iteration
            delayed = 1.0 * view.reshape(B, -1)
            u = 0.8 * u + delayed @ w[:delayed.shape[1]] + y @ w[:N] - y
            y = triangle(u - 0.5)
            made.append(y)
        return torch.stack(made), u, v

    return run


@pytest.mark.parametrize("start", [torch.zeros, torch.ones])
@pytest.mark.parametrize("name", READS)
def test_delays_between_layers(name: str, start: Callable[..., Tensor]) -> None:
    compare(_delay(READS[name], start), random(T, B, N).abs(), random(4 * N, N), fused=2)


@pytest.mark.parametrize("take", [
    lambda x, t: x[t:t + 3].sum(0), lambda x, t: x[range(t, t + 5, 2)].reshape(-1, N)[:B],
    lambda x, t: x.transpose(0, 1)[:, t:t + 2].reshape(B, -1)[:, :N],
    lambda x, t: x.movedim(0, -1)[..., t:t + 2].mean(-1), lambda x, t: x[-t - 3:-t - 1].mean(0)])
def test_windows_of_the_input(take: Callable[[Tensor, int], Tensor]) -> None:
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v = z = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for t in range(T):
            v = 0.9 * v + take(x, t) + z @ w - z
            z = triangle(v - 0.5)
            made.append(z)
        return torch.stack(made), v

    plan = compare(run, random(T + 4, B, N).abs(), random(N, N))
    assert not any(stage.kind in ("loop", "in order") for stage in plan.stages)


@pytest.mark.parametrize("lags", [(2,), (1, 4), (3, D)])
def test_recurrent_delays(lags: tuple[int, ...]) -> None:
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        buffer = torch.zeros(B, T + D, N, dtype=x.dtype)
        v = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for t in range(T):
            before = torch.cat([buffer[:, t + D - lag] for lag in lags], 1)
            v = 0.9 * v + x[t] + before @ w[:before.shape[1]]
            buffer[:, t + D] = triangle(v - 0.5)
            made.append(buffer[:, t + D])
        return torch.stack(made), v

    compare(run, random(T, B, N).abs(), random(2 * N, N))


def _write(index: Callable[[int], Any], value: Any = None) -> Callable[..., None]:
    return lambda x, t, z: x.__setitem__(index(t), z[:, :1] if value is None else value)


@pytest.mark.parametrize("has_grad", [False, True])
@pytest.mark.parametrize("look", [
    lambda x, t, z: x[:, t + D:t + D + 1], lambda x, t, z: x.narrow(1, t, 3),
    lambda x, t, z: x[:, t:t + 3].transpose(0, 1), lambda x, t, z: x.transpose(0, 1)[:, 0],
    _write(lambda t: (slice(None), t + 1)), _write(lambda t: (slice(None), slice(t, t + 2)), 0.5),
    _write(lambda t: 0, 0.25), _write(lambda t: (0, t + 1), 0.25), _write(lambda t: (..., 0), 0.5)])
def test_other_parts_are_equal_or_refused(look: Callable[..., Any], has_grad: bool) -> None:
    """A view that a later write changes, and writes that are no whole parts."""
    def run(x: Tensor, w: Tensor) -> Tensor:
        buffer = torch.zeros(B, T + D, N, dtype=x.dtype) + (w.sum() if has_grad else 0)
        v = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for t in range(T):
            view = look(buffer, t, v)
            v = 0.9 * v + x[t] @ w
            buffer[:, t + D] = triangle(v - 0.5)
            made.append(buffer[:, t + 1] * 1 if view is None else view.sum())
        return torch.stack(made)

    given = random(T, B, N), random(N, N).requires_grad_()
    try:
        fused = fuse(run, given)
    except Refused:
        return
    made, wanted = fused(*given), run(*given)
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(one.cos().sum(), given[1])
                                 for one in (made, wanted)))
