"""Delays by a buffer: x[:, t + d] = z, of which later iterations read x[:, t] or several steps."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert, fuse
from lsnn_ext.loops.ir import Refused
from lsnn_ext.zoo.surrogates import triangle
from small_loops import compare, compare_calls, random, run, run_cells

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
    def run(x: Tensor, w: Tensor) -> Tensor:
        return run_cells((take(x, t) for t in range(T)), w, B)

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
    compare_calls(fused, run, *given)


# --------------------------------------------------------------------- several writes of a buffer
ROWS = 2 * T
SEVERAL: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "layers": ((T, 2, B, N), lambda x, t, y, z: (put(x, (t, 0), y), put(x, (t, 1), z))),
    "parts of an axis": ((B, T, 2 * N), lambda x, t, y, z: (
        put(x, (slice(None), t, slice(N)), y), put(x, (slice(None), t, slice(N, None)), z))),
    "time behind": ((2, B, N, T), lambda x, t, y, z: (
        put(x, (-1, ..., t), z), put(x, (0, slice(None), slice(None), t), y))),
    "one over the other": ((T, B, N), lambda x, t, y, z: (
        put(x, t, y), put(x, (t, slice(1, None, 2)), z[1::2]),
        put(x, (t, slice(None), 0), y[:, 1]))),
    "backwards, from the end": ((T, 3, B, N), lambda x, t, y, z: (
        put(x, (-1 - t, 2), y), put(x, (T - 1 - t, 0), z))),
    "rows of two steps": ((ROWS, 2, B, N), lambda x, t, y, z: (
        put(x, (2 * t, 0), y), put(x, (2 * t, 1), z))),
    "broadcast": ((T, 2, B, N), lambda x, t, y, z: (put(x, (t, 0), y[:, :1]), put(x, (t,), z))),
    "axes of 1": ((T, 2, B, N), lambda x, t, y, z: (
        put(x, (t, 0), y[None]), put(x, (t, 1), z[None, None])))}
STAYING: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {  # their order matters
    "two times": ((40, B, N), lambda x, t, y, z: (put(x, t, y), put(x, T - 1 - t, z))),
    "one time again": ((T, 2, B, N), lambda x, t, y, z: (
        put(x, (t // 2, 0), y), put(x, (t // 2,), z))),
    "times of two axes": ((T, T, B, N), lambda x, t, y, z: (put(x, (t, 0), y), put(x, (1, t), z))),
    "a list": ((T, 2, B, N), lambda x, t, y, z: (put(x, (t, [0]), y), put(x, (t, [1, 0]), z)))}


def put(x: Tensor, index: Any, value: Tensor) -> None:
    x[index] = value


@pytest.mark.parametrize("name", [*SEVERAL, *STAYING])
def test_several_writes_in_each_step(name: str) -> None:
    size, write = (SEVERAL | STAYING)[name]

    def model(x: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        kept = x.new_zeros(size)
        v = z = s = y = x.new_zeros(B, N)
        for t in range(T):
            v = 0.8 * v + x[t] + z @ w
            z = triangle(v - 0.5)
            s = 0.7 * s + z @ u
            y = torch.tanh(s)
            write(kept, t, y, z)
        return kept, y

    given = random(T, B, N), random(N, N, scale=0.3), random(N, N, scale=0.3, seed=1)
    if name in SEVERAL:
        plan = compare(model, *given, fused=2)
        assert sum(stage.kind == "written" for stage in plan.stages) == 1
    else:
        want, got, plan = run(model, given)
        assert "loop" in {stage.kind for stage in plan.stages}
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------- shift registers
def _put_first(x: Tensor, z: Tensor) -> Tensor:
    x = torch.roll(x, 1, 0)
    x[0] = z
    return x


# (x, z) -> the next x of shape (D, B, N), or with the steps elsewhere; how z of D steps ago is read
SHIFTED: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "new in front": (0, lambda x, z: torch.cat([z[None], x[:-1]]), lambda x: x[-1]),
    "new behind": (0, lambda x, z: torch.cat((x[1:], z.unsqueeze(0)), 0), lambda x: x[0]),
    "middle axis": (1, lambda x, z: torch.cat([x[:, 1:], z[:, None]], dim=1), lambda x: x[:, 0]),
    "last axis": (2, lambda x, z: torch.cat([z[..., None], x[..., :-1]], -1),
                  lambda x: x[..., D - 1]),
    "roll": (0, _put_first, lambda x: x[-1]),
    "two at once": (0, lambda x, z: torch.cat([z[None], (2 * z)[None], x[:-2]]), lambda x: x[-1]),
    "several are read": (0, lambda x, z: torch.cat([z[None], x[:-1]]),
                         lambda x: x[2] - x[1] + x[-1]),
    "detached": (0, lambda x, z: torch.cat([z.detach()[None], x[:-1]]), lambda x: x[-2]),
    "stack of them": (0, lambda x, z: torch.stack([z, *x.unbind(0)[:-1]]), lambda x: x[-1])}


def remember(read: Callable[[Tensor, int], Tensor], change: Callable[[Tensor, Tensor, int], Tensor],
             axis: int = 0, is_learned: bool = False) -> Callable[..., tuple[Tensor, ...]]:
    """A layer that reads its past spikes; is_learned: the first ones."""
    def model(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v, past = x.new_zeros(B, N), x.new_zeros(*[B, N][:axis], D, *[B, N][axis:])
        past = past + w[0] if is_learned else past
        made = []
        for t, one in enumerate(x):
            v = 0.8 * v + one + read(past, t) @ w
            made.append(triangle(v - 0.5))
            past = change(past, made[-1], t)
        return torch.stack(made), past

    return model


def check_equal_or_refused(model: Callable[..., Any]) -> None:
    given = random(2 * T, B, N), random(N, N).requires_grad_()
    try:
        fused = fuse(model, given, verify=False)
    except Refused:
        return
    compare_calls(fused, model, *given, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHIFTED)
def test_shift_registers_are_delays(name: str) -> None:
    axis, shift, read = SHIFTED[name]
    compare(remember(lambda x, t: read(x), lambda x, z, t: shift(x, z), axis),
            random(3 * T, B, N), random(N, N))


# (x, z, t) -> the next x of shape (D, B, N); how z of D - 1 or D steps ago is read
WRITTEN: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, int], Tensor]]] = {
    "a copied ring": (lambda x, z, t: write(x.clone(), (t % D, z)), lambda x, t: x[t % D]),
    "two rows of a ring": (lambda x, z, t: write(x.clone(), ((t + 1) % D, z)),
                           lambda x, t: x[t % D] - x[(t + 3) % D]),
    "a ring": (lambda x, z, t: write(x, (t % D, z)), lambda x, t: x[(t - 2) % D].clone()),
    "a range": (lambda x, z, t: write(torch.zeros_like(x), (slice(1, None), x[:-1]), (0, z)),
                lambda x, t: x[-1]),
    "a range backwards": (lambda x, z, t: write(
        torch.empty_like(x), (slice(None, -1), x[range(D - 1, 0, -1)]), (D - 1, z)),
        lambda x, t: x[0] - x[1]),
    "a range of itself": (lambda x, z, t: write(x.clone(), (slice(1, None), x[:-1]), (0, z)),
                          lambda x, t: x[-2]),
    "a list": (lambda x, z, t: write(x.clone(), ([1, 3], x[[0, 2]].clone()), (0, z)),
               lambda x, t: x[1] + x[3])}


def write(x: Tensor, *given: tuple[Any, Tensor]) -> Tensor:
    for index, value in given:
        x[index] = value
    return x


@pytest.mark.parametrize("name", WRITTEN)
def test_buffers_that_are_copied_or_moved_are_delays(name: str) -> None:
    change, read = WRITTEN[name]
    compare(remember(read, change), random(3 * T, B, N), random(N, N))


@pytest.mark.parametrize("change", [
    lambda x, z, t: write(x.clone(), ([0, 0], torch.stack([z, x[1]]))),
    lambda x, z, t: write(x.clone(), ((0, slice(1, None)), z[1:]), (slice(1, None), x[:-1])),
    lambda x, z, t: write(x.clone(), (slice(1, None), x[:1]), (slice(2), z)),
    lambda x, z, t: write(without_grad(x.clone), (t % D, z)),
    lambda x, z, t: write(without_grad(torch.stack([z, *x.unbind(0)[:-1]]).clone), (0, z)),
    lambda x, z, t: write(x.clone(), (slice(1, None), without_grad(lambda: x[:-1])), (0, z)),
    lambda x, z, t: write(x.float(), (slice(1, None), x[:-1]), (0, z)).double(),
    lambda x, z, t: write(x.clone().transpose(0, 1), (0, z[:1])).transpose(0, 1)])
@pytest.mark.parametrize("is_learned", [False, True])
def test_other_written_buffers_are_equal(change: Callable[..., Tensor], is_learned: bool) -> None:
    check_equal_or_refused(remember(lambda x, t: x[-1] - x[1], change, is_learned=is_learned))


def test_a_row_that_is_written_twice_at_once_is_unknown() -> None:
    """Which number is left is undefined on a GPU."""
    model = remember(lambda x, t: x[1], lambda x, z, t: write(
        x.clone(), ([1, 1], torch.stack([x[0], z])), (0, z)))
    want, got, plan = run(model, (random(T, B, N), random(N, N)))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert "fused" not in {stage.kind for stage in plan.stages}


class Ring(nn.Module):
    """A layer with delays, whose spikes go on from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(random(N, N))
        self.register_buffer("past", torch.zeros(D, B, N).double())

    def forward(self, x: Tensor) -> Tensor:
        v, out = x.new_zeros(B, N), []
        for t, one in enumerate(x):
            v = 0.8 * v + one + self.past[(t + 1) % D].clone() @ self.w
            z = triangle(v - 0.5)
            self.past[t % D] = z.detach()
            out.append(z)
        return torch.stack(out)


def test_a_ring_in_an_attribute() -> None:
    original = Ring()
    net, report = convert(copy.deepcopy(original), random(3 * T, B, N))
    assert report.converted, report
    plan = net._lsnn_replayer.all()[-1].plan
    assert "loop" not in {stage.kind for stage in plan.stages}  # of writes
    for seed in range(3):
        x = random(3 * T, B, N, seed=seed)
        torch.testing.assert_close(net(x), original(x))
        torch.testing.assert_close(net.past, original.past)


@pytest.mark.parametrize("change", [
    lambda x, z: torch.cat([z[None], x[:-1] * 0.5]), lambda x, z: torch.cat([x[:1], x[:-1]]) + z,
    lambda x, z: torch.roll(x, (1, 1), (0, 1)) + z, lambda x, z: torch.roll(x, 1) + z,
    lambda x, z: torch.cat([z[:, None].transpose(0, 1), x[:-1]]),
    lambda x, z: torch.cat([z[None], x[[1, 0, 3, 2, 4]]]),
    lambda x, z: torch.cat([z[None].float(), x[:-1]]),
    lambda x, z: torch.cat([z.float()[None], x[:-1]])])
@pytest.mark.parametrize("is_learned", [False, True])
def test_other_shifts_are_equal(change: Callable[..., Tensor], is_learned: bool) -> None:
    def model(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        v, past = x.new_zeros(B, N), x.new_zeros(D, B, N)
        past = past + w[0] if is_learned else past
        for one in x:
            v = 0.8 * v + one + past[-1] @ w
            past = change(past, torch.tanh(v))
        return v, past

    want, got, _ = run(model, (random(T, B, N), random(N, N).requires_grad_()))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def without_grad(function: Callable[..., Tensor], *args: Any) -> Tensor:
    with torch.no_grad():
        return function(*args)


@pytest.mark.parametrize("change", [
    lambda x, z, t: torch.cat([without_grad(lambda: z[None]), x[:-1]]),
    lambda x, z, t: torch.cat([z[None], without_grad(lambda: x[:-1])]),
    lambda x, z, t: put(y := without_grad(torch.roll, x, 1, 0), 0, z) or y,
    lambda x, z, t: (without_grad if t < 3 else lambda f, *args: f(*args))(
        torch.cat, [z[None], x[:-1]])])
def test_shifts_partly_under_no_grad(change: Callable[..., Tensor]) -> None:
    check_equal_or_refused(remember(lambda x, t: x[-1], change))


def test_a_leaf_is_shifted_first_and_inputs_stay_whole() -> None:
    def model(past: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        past, v = torch.roll(past.detach(), 1, 0), x.new_zeros(B, N)
        for one in x.detach():
            v = 0.8 * v + one + torch.roll(one, 1, 1) + past[-1] @ w
            past = torch.cat([triangle(v - 0.5)[None], past[:-1]])
        return v, past

    plan = compare(model, random(D, B, N), random(T, B, N), random(N, N))
    assert sum(call.name == "roll" for call in plan.recording.calls) == T
