"""Random numbers within a recurrence."""
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import fuse
from lsnn_ext.loops.ir import Refused
from small_loops import compare_calls, run, spike
from small_loops import random as draw_double

T, B, N = 12, 3, 5


# Draws for a state v that depend on its shape alone.
DRAWS = dict(
    rand_like=torch.rand_like,
    randn_like=torch.randn_like,
    randn=lambda v: torch.randn(v.shape, dtype=v.dtype),
    of_a_dtype=lambda v: torch.rand_like(v, dtype=torch.float32).to(v.dtype),
    filled=lambda v: torch.empty_like(v).normal_(0, 0.5),
    of_another_size=lambda v: v.new_empty(1, N).uniform_(),
    around_zeros=lambda v: torch.normal(torch.zeros_like(v), 0.5),
    bernoulli=lambda v: torch.bernoulli(torch.full_like(v, fill_value=0.25)),
    bernoulli_of_new=lambda v: torch.bernoulli(v.new_full((B, N), 0.25)),
    dropout=lambda v: F.dropout(torch.ones_like(v), 0.5),
    poisson=lambda v: torch.poisson(v.new_ones(B, N)),
    two=lambda v: torch.rand_like(v) - torch.rand_like(v),
    threshold=lambda v: (torch.rand_like(v) < v.detach().sigmoid()).to(v.dtype),
)


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_for_a_shape_runs_before_the_recurrence(name):
    """Spikes, states and gradients are those of the loop, with other draws in each call."""
    def model(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        v = z = x.new_zeros(B, N)
        made = []
        for one in x:
            v = 0.9 * v + one + z @ w + 0.5 * DRAWS[name](v)
            z = spike(v - 0.5)
            made.append(z)
        return torch.stack(made), v

    x, w = (draw_double(*shape).requires_grad_() for shape in ((T, B, N), (N, N)))
    fused = fuse(model, (x, w))
    kinds = [stage.kind for stage in fused.replayer.all()[0].plan.stages]
    assert kinds.count("fused") == 1
    assert "loop" not in kinds
    compare_calls(fused, model, x, w, seeds=(1, 2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [
    torch.zeros_like, torch.ones_like, lambda v: torch.full_like(v, 2), lambda v: v.new_zeros(4, 2),
    lambda v: torch.full_like(v, fill_value=2), lambda v: v.new_full(fill_value=2.5, size=(3,)),
    lambda v: v.new_full((3,), 2, dtype=torch.int32), lambda v: v.new_ones(3, dtype=torch.bool),
    lambda v: torch.zeros_like(v, dtype=torch.float64), lambda v: v.new_full([], True),
    lambda v: v.new_full((2,), 1j, dtype=torch.complex64)])
def test_constants_read_no_tensor(make):
    want, got, plan = run(make, (torch.rand(2, 3),))
    assert not plan.recording.calls[0].inputs
    assert torch.equal(got, want)
    assert got.dtype == want.dtype


@pytest.mark.parametrize("make", [
    lambda x: torch.zeros_like(x.t()), lambda x: torch.full_like(x, x[0, 0].detach()),
    lambda x: torch.zeros_like(x, requires_grad=True),
    lambda x: x.new_full((3,), torch.tensor(2.0))])
def test_constants_of_more_than_a_shape_stay(make):
    """A layout, the number of a tensor, and requires_grad."""
    want, got, plan = run(make, (torch.rand(2, 3),))
    assert plan.recording.calls[-1].inputs
    assert torch.equal(got, want)
    assert (got.stride(), got.requires_grad) == (want.stride(), want.requires_grad)


def turned(x: Tensor) -> Tensor:
    return F.dropout(x.t(), 0.5).t()


def strided(x: Tensor) -> Tensor:
    return x.t().as_strided((N, B), (B, 1)).t()


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("read", [turned, strided])
def test_what_reads_the_order_in_memory_is_exact(read: Any, is_late: bool) -> None:
    """Within the loop, and behind it."""
    def model(x: Tensor, v: Tensor) -> Tensor:
        made = []
        for one in x:
            v = 0.9 * v + one
            made.append(v.t() if is_late else read(v) + v)
        return torch.stack([read(2 * one.t()) for one in made[-2:]]) if is_late else (
            torch.stack(made))

    x, v = torch.rand(T, B, N), torch.rand(B, N)
    for exact in (False, True):
        if read is strided:
            with pytest.raises(Refused):
                fuse(model, (x, v), verify=False, exact=exact)
        else:
            fused = fuse(model, (x, v), verify=False, exact=exact)
            compare_calls(fused, model, x, v, rtol=0, atol=0)


def same(x: Tensor) -> Tensor:
    return x


def drop(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)


def integrate(currents: Iterable[Tensor], v: Tensor) -> Tensor:
    made = []
    for one in currents:
        v = 0.9 * v + one
        made.append(v)
    return torch.stack(made)


@pytest.mark.parametrize("draw", (
    drop, lambda v: v + torch.randn_like(v), lambda v: torch.bernoulli(v.detach().sigmoid())))
@pytest.mark.parametrize("turn", (same, Tensor.t))
def test_draws_of_slices_in_the_loop_are_those_of_the_original(draw: Any, turn: Any) -> None:
    """Of a sequence with the batch first: not contiguous, and in another order of memory."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = z = torch.zeros(B, N)
        made = []
        for t in range(T):
            v = 0.9 * v + turn(draw(turn(x[:, t]))) + z @ w
            z = spike(v - 0.5)
            made.append(drop(z) if draw is drop else z)
        return torch.stack(made)

    x, w = torch.rand(B, T, N), torch.randn(N, N)
    compare_calls(fuse(model, (x, w)), model, x, w, seeds=(2, 3))


def test_a_draw_of_a_state_that_is_a_turned_argument_is_that_of_the_original() -> None:
    """The first iteration draws in the order of the argument, the others in that of results."""
    def model(x: Tensor, v: Tensor) -> Tensor:
        u = z = torch.zeros(B, N)
        for one in x:
            noise, v = F.alpha_dropout(v, 0.5, True), torch.sin(one)
            u = 0.9 * u + noise - z
            z = spike(u - 0.5)
        return u

    x, v = torch.rand(T, B, N), torch.rand(N, B).t()
    compare_calls(fuse(model, (x, v), verify=False), model, x, v)


def test_a_draw_that_keeps_its_loop_is_the_reason() -> None:
    """Also beside another loop, which has no recurrence."""
    def model(x: Tensor, v: Tensor) -> Tensor:
        first = torch.stack([one.sin() * 2 for one in x])
        made = []
        for one in first:
            v = 0.9 * v + F.alpha_dropout(one, 0.5, True)
            made.append(F.alpha_dropout(v, 0.5, True))
        return torch.stack(made)

    with pytest.raises(Refused, match="whose arguments the loop computes and another draw"):
        fuse(model, (torch.rand(T, B, N), torch.rand(B, N)))


@pytest.mark.parametrize("before, each, behind", (
    (lambda x: drop(x.transpose(0, 1)), same, same),
    (lambda x: x.transpose(0, 1) + torch.randn_like(x.transpose(0, 1)), same, same),
    (lambda x: drop(x[:, :1].expand(-1, T, -1)).transpose(0, 1), same, same),
    (lambda x: x.transpose(0, 1), drop, same),
    (lambda x: x.transpose(0, 1), same, lambda z: drop(z.permute(2, 0, 1)))))
def test_draws_of_turned_tensors_are_those_of_the_original(
        before: Any, each: Any, behind: Any) -> None:
    """In the order of memory: of a batch that comes first, and of a result."""
    def model(x: Tensor, v: Tensor) -> Tensor:
        return behind(integrate(map(each, before(x)), v))

    x, v = torch.rand(B, T, N), torch.rand(B, N)
    compare_calls(fuse(model, (x, v)), model, x, v, seeds=(2, 3))


@pytest.mark.parametrize("read", (
    lambda x: x.expand(-1, -1, N).transpose(0, 1), lambda x: x.reshape(-1).unfold(0, N, 1)[:B]))
def test_a_draw_of_the_kind_of_an_expanded_or_unfolded_tensor_is_refused(read: Any) -> None:
    def model(x: Tensor, v: Tensor) -> Tensor:
        return integrate(drop(read(x)), v)

    with pytest.raises(Refused, match="got an expanded or unfolded tensor"):
        fuse(model, (torch.rand(B, T, 1), torch.rand(B, N)))
