"""Delays by a buffer: x[:, t + d] = z, of which later iterations read x[:, t] or several steps."""
from collections.abc import Callable

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


@pytest.mark.parametrize("read", [
    lambda x, t: x[:, t + D:t + D + 1], lambda x, t: x.narrow(1, t, 3),
    lambda x, t: x[:, t:t + 3].transpose(0, 1)])
def test_a_view_of_a_part_that_is_written_stays_so(read: Callable[[Tensor, int], Tensor]) -> None:
    """A view that a later write changes is refused, not read as it was."""
    def run(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, T + D, N, dtype=x.dtype)
        v = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for t in range(T):
            view = read(buffer, t)
            v = 0.9 * v + x[t]
            buffer[:, t + D] = triangle(v - 0.5)
            made.append(view.sum())
        return torch.stack(made)

    x = torch.rand(T, B, N)
    wanted = run(x)
    try:
        made = fuse(run, x)(x)
    except Refused as refused:
        assert "shares its memory" in str(refused)  # noqa: PT017
    else:
        torch.testing.assert_close(made, wanted)
