"""Writes to x[index], while x is there, too."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext.loops.ir import Refused
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.record import record
from small_loops import compare, random, run, spike

T, B, N = 12, 3, 5


def make_model(write: Callable[..., Any]) -> Callable[[Tensor, Tensor], Any]:
    """write(out, z, v, t): of what the loop collects, the spikes, the membrane and the time."""
    def model(x: Tensor, w: Tensor) -> Any:
        v = z = torch.zeros(B, N, dtype=x.dtype)
        out = torch.zeros(T, B, N, dtype=x.dtype)
        for t, one in enumerate(x):
            v = 0.9 * v + one + z @ w - z
            z = spike(v - 0.5)
            write(out, z, v, t)
        return out, v

    return model


def add(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t] += z


def compute(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t] += 2 * v
    out[t] **= 2
    out[t, ...] /= 3.0
    out[t].mul_(v).add_(z, alpha=2.0).clamp_(max=5.0)


def fill(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    part = out[t]
    part.copy_(z)
    part[v > 0] = 2.0
    part *= v
    del part
    out[t - 1 if t else 0, 0].zero_()
    out[t, 1].fill_(0.5)


def write_parts_of_parts(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t][1] += z[0]
    out[t][1, 2:] -= v[0, 0]
    out[t][2] = v[2]
    out[-1][:2] += v[1]


def read_after(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    part = out[t]
    part += v
    twice = 2 * part
    del part
    out[0] += twice


def select(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out.select(0, t).add_(z)
    out.narrow(0, t - T, 1)[0] += v
    torch.narrow(out, dim=-1, start=1, length=3).mul_(v[:, 1:4])
    torch.select(input=out, dim=-1, index=-2).add_(v[:, 0])


def set_halves(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t, :, :2] = z[:, :2]
    out[t, ..., 2:] = v[:, 2:]
    out[t, 1:, 3] = v[1:, 0]
    out[1:, t % B, 0] = v[t % B, 0]


def write_all(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[...] += 0.1 * z
    out[:] *= 0.9
    out[:, :, 0] += v[:, 0]
    out[1:3, :] += v


def write_without_gradient(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t] += v
    with torch.no_grad():
        out[t] *= 2.0


def shift(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[1] = out[0]
    out[0] += v


def write_to_two(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    one, other = out[t], out[t]
    one += z
    other *= 2.0


def write_where_another_view_is_read(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    rows = out.view(T, -1)
    out[t] += z
    rows *= 0.5


def draw(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t].bernoulli_(0.5)


def write_a_view_of_a_view(out: Tensor, z: Tensor, v: Tensor, t: int) -> None:
    out[t].t()[0] += z[:, 0]


WRITES = [add, compute, fill, write_parts_of_parts, read_after, select, set_halves, write_all,
          write_without_gradient,
          shift]
REFUSED = [write_to_two, write_where_another_view_is_read, draw, write_a_view_of_a_view]


@pytest.mark.parametrize("write", WRITES)
def test_writes_to_parts(write: Callable[..., Any]) -> None:
    given = [random(T, B, N).requires_grad_(), random(N, N, seed=1).requires_grad_()]
    want, got, plan = run(make_model(write), given)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad(out.square().sum() + v.sum(), given)
                 for out, v in (want, got)]
    torch.testing.assert_close(*gradients)
    assert "fused" in [stage.kind for stage in plan.stages]


def test_what_is_added_to_a_part_is_no_loop() -> None:
    compare(make_model(add), random(T, B, N), random(N, N, seed=1), fused=1)


@pytest.mark.parametrize("write", REFUSED)
def test_writes_that_other_views_see_are_refused(write: Callable[..., Any]) -> None:
    """The program runs as it would alone."""
    model, given = make_model(write), (random(T, B, N), random(N, N, seed=1))
    torch.manual_seed(0)
    want = model(*given)
    torch.manual_seed(0)
    got, refused = record(model, given, {}, Origins(model, given, {}))
    assert isinstance(refused, Refused) and "shares its memory" in refused.reason
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_view_of_no_grad_is_not_written_with_gradient() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        with torch.no_grad():
            part = out[0]
        part += x[0] @ w
        return out

    given = random(T, B, N), random(N, N).requires_grad_()
    with pytest.raises(RuntimeError, match="A view was created in no_grad mode"):
        record(model, given, {}, Origins(model, given, {}))
