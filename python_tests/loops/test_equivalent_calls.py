"""Calls that are recorded as others: parts of stacks, views in place, fills of masks, copies."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable

from lsnn_ext import convert, fuse
from lsnn_ext.loops.ir import Refused
from small_loops import compare, compare_calls, over, random, run, spike

T, B, N = 9, 3, 5


STACKED: dict[str, tuple[Callable[[Tensor], Any], Callable[..., Tensor], int]] = {
    "nested": (lambda s: torch.stack([s])[0].unbind(), lambda *parts: torch.stack(parts), 0),
    "unpacked": (lambda s: tuple(s), lambda *parts: torch.stack(parts), 0),
    "by cat": (lambda s: (s[0], s[1]), lambda *parts: torch.cat([one[None] for one in parts]), 0),
    "unbind": (lambda s: s.unbind(), lambda *parts: torch.stack([*parts]), 0),
    "by name": (lambda s: torch.unbind(input=s, dim=-1),
                lambda *parts: torch.stack(tensors=parts, dim=2), 2),
    "index": (lambda s: (s[0], s[-1]), lambda *parts: torch.stack(parts, 0), 0),
    "last axis": (lambda s: (s[..., 0], s[:, :, 1]), lambda *parts: torch.stack(parts, -1), 2)}


@pytest.mark.parametrize("name", STACKED)
def test_states_in_one_tensor(name: str) -> None:
    take, stack, dim = STACKED[name]

    def model(x: Tensor, w: Tensor, v: Tensor) -> Any:
        state = torch.stack((v, torch.zeros_like(v)), dim)
        made = []
        for one in x:
            v, z = take(state)
            v = 0.9 * v + one + z @ w - z
            z = spike(v - 0.5)
            state = stack(v, z)
            made.append(z)
        return torch.stack(made), state

    compare(model, random(T, B, N), random(N, N, seed=1), random(B, N, seed=2))


def test_calls_of_einops_are_those_of_torch() -> None:
    einops = pytest.importorskip("einops")
    layers = pytest.importorskip("einops.layers.torch")
    turn = layers.Rearrange("b t n -> t b n")

    def model(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        v = einops.repeat(v, "n -> b n", b=len(x))
        z, made = torch.zeros_like(v), []
        for one in turn(x):
            v = 0.9 * v + einops.rearrange(one, "b n -> b n") - z
            v = v + einops.einsum(z, w, "b i, o i -> b o")
            z = spike(v - 0.5)
            made.append(z)
        return einops.reduce(einops.rearrange(made, "t b n -> b t n"), "b t n -> b t", "mean")

    compare(model, random(B, T, N), random(N, N, seed=1), random(N, seed=2))


def test_a_stack_that_is_written_to_has_other_parts() -> None:
    def model(x: Tensor, v: Tensor) -> Tensor:
        state = torch.stack((v, v))
        for one in x:
            state = torch.stack([state[0] * 0.9 + one, state[1] * 0.5 - one])
            state *= 0.5
        return state

    want, got, plan = run(model, (random(T, B, N), random(B, N, seed=1)))
    assert "fused" not in [stage.kind for stage in plan.stages]
    assert torch.equal(got, want)


def test_parts_of_a_stack_of_several_dtypes_are_converted() -> None:
    def model(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        z = torch.zeros_like(v)
        for one in x:
            v = 0.9 * v + one + z @ w
            z = torch.stack([torch.sigmoid(v).float(), v])[0]
        return z

    want, got, _ = run(model, (random(T, B, N), random(N, N).double(), random(B, N)))
    assert got.dtype == want.dtype == torch.float64
    assert torch.equal(got, want)


def detached(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    reset = z * 0.5
    reset.detach_()
    v = 0.9 * v + x @ w - reset
    return v, spike(v - 0.5)


def turned(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    current = (x @ w).t().contiguous()
    current.t_()
    other = (0.1 * x).unsqueeze_(0).squeeze_(0).view(B, N, 1).transpose_(1, 2).squeeze(1)
    v = 0.9 * v + current + other - z
    return v, spike(v - 0.5)


def viewed(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    made = x @ w
    current, other = made.view(N, B), made.unsqueeze(0)
    current.transpose_(0, 1)
    other.squeeze_(0)
    v = 0.9 * v + current + 0.1 * other + 0.1 * made - z
    return v, spike(v - 0.5)


def copied(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    before = copy.deepcopy({"z": z.detach(), "v": v.detach(), "again": z.detach()})
    v = 0.9 * v[()] + x @ w - before["z"] - 0.1 * before["v"][...]
    return v, spike(v - 0.5)


def shared(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    v = 0.9 * v + copy.copy(x) @ w - copy.copy(z)  # without the gradient of z
    return v, spike(v - 0.5)


def like_others(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    """w has another shape than the states."""
    current = (x @ w).flatten().reshape_as(v) * w[:1, :1].expand_as(v)
    v = 0.9 * v + current.view_as(x).type(w.type()) - (z > 0).to(w, copy=True)
    return v, spike(v - 0.5) * (v < 2).type_as(w)


def written_variables(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    """As programs of old releases of torch make states."""
    reset = Variable(z.new(B, N).zero_().add_(z.data)) * w.new([0.9])
    v = 0.9 * v + Variable(x.clone().mul_(2.0)) @ w - reset
    return v, spike(v - 0.5)


def integers(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    fired = (v > 0.5).int()
    v = (0.9 * v * (1 - fired) + x @ w - z) % 1.3
    return v, spike(v - 0.5) - 0.1 * fired.long()


@pytest.mark.parametrize("step", [
    detached, turned, viewed, copied, shared, like_others, written_variables, integers],
    ids=lambda one: one.__name__)
def test_equivalent_calls(step: Callable[..., Any]) -> None:
    compare(over(step, 2, last=(0,)), random(T, B, N), random(N, N, seed=1), random(B, N, seed=2),
            torch.zeros(B, N).double())


@pytest.mark.parametrize(("make", "reason"), [
    (copy.copy, "result: expected no copy.copy of a tensor"),
    (lambda v: v * copy.copy(nn.Parameter(torch.ones(N).double())), "copy: .* got a Parameter"),
    (lambda v: copy.copy(v.detach()).zero_() + v, "zero_: .* shares its memory")])
def test_copies_that_are_refused(make: Callable[[Tensor], Tensor], reason: str) -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = torch.zeros(B, N).double()
        for one in x:
            v = torch.tanh(v @ w) + one
        return make(v)

    with pytest.raises(Refused, match=reason):
        run(model, (random(T, B, N), random(N, N).requires_grad_()))
    assert not hasattr(Tensor, "__copy__")


def test_fills_with_numbers_that_change() -> None:
    def model(x: Tensor, w: Tensor, v: Tensor) -> Any:
        z, made = torch.zeros_like(v), []
        for t, one in enumerate(x):
            v = (0.9 * v + one @ w).masked_fill(z > 0, t)
            z = spike(torch.masked_fill(v, v > t, -0.25) - 0.5)
            made.append(z)
        return torch.stack(made), v

    compare(model, random(T, B, N), random(N, N, seed=1), random(B, N, seed=2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_time_on_any_axis_and_numbers_of_another_dtype(axis: int) -> None:
    """Read and written as x[..., t]."""
    def at(t: int) -> tuple[Any, ...]:
        return (slice(None),) * axis + (t, ...) if axis < 2 else (..., t)

    def model(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        v = torch.zeros_like(x[at(0)])
        for t in range(x.shape[axis]):
            v = 0.5 * v * (1 - out[at(max(t - 1, 0))].detach()) + x[at(t)]
            out[at(t)] = spike(v - 0.5).float()
        return out

    plan = compare(model, random(*(B, N)[:axis], T, *(B, N)[axis:]))
    assert [stage.kind for stage in plan.stages].count("sliced") == 1


def test_a_write_to_a_view_in_place_is_refused() -> None:
    """A parameter or an input keeps its shape."""
    def model(x: Tensor) -> Tensor:
        x.unsqueeze_(0)
        return x * 2

    with pytest.raises(Refused, match="unsqueeze_: expected no write to an input"):
        run(model, (random(T, B, N),))


class Keep(torch.autograd.Function):
    """Keeps a tensor for its backward pass without a check of its version."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor) -> Tensor:
        ctx.h, ctx.w = h, w
        return h * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return g * ctx.w, (g * ctx.h).sum(0)


@pytest.mark.parametrize("keep", [
    lambda u, w: u.data * w, lambda u, w: copy.copy(u) * w, lambda u, w: u.unbind()[0].data * w,
    lambda u, w: Keep.apply(u.view(B, N), w), lambda u, w: Keep.apply(u, w)])
@pytest.mark.parametrize("write", [lambda u: u.mul_(1 + (u > 2.2).double()),
                                   lambda u: u.add_(u.view(B, N)),
                                   lambda u: u.detach().mul_(2)])
def test_a_write_to_what_the_backward_pass_may_read_is_refused(
        keep: Callable[..., Tensor], write: Callable[[Tensor], Tensor]) -> None:
    """Also if it changes nothing in the recorded call, and if the other tensor is not read later:
    autograd keeps it, and has no version to compare."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v, made = torch.zeros(B, N, dtype=x.dtype), []
        for one in x:
            v = torch.tanh(v + one)
            u = 2 * v.detach()
            made.append(keep(u, w))
            write(u)
        return torch.stack(made)

    with pytest.raises(Refused):
        run(model, (0.1 * random(T, B, N), random(N, seed=1).requires_grad_()))


def test_a_view_in_place_that_makes_the_backward_pass_raise_is_refused() -> None:
    """It gives another version to what an earlier product has saved, in the original."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = torch.zeros(B, B, dtype=x.dtype)
        for one in x:
            y = one.reshape(N, B)
            y.t_()
            v = 0.9 * v + y @ w
        return v

    w = random(N, B).requires_grad_()
    with pytest.raises(Refused, match="expected a backward pass without errors"):
        run(model, (random(T, B, N), w))
    with torch.no_grad():
        want, got, _ = run(model, (random(T, B, N), w))
    torch.testing.assert_close(got, want)


def test_a_view_in_place_of_a_value_with_gradient_under_no_grad_is_refused() -> None:
    """Its gradient is not turned back."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        w = 2 * w
        with torch.no_grad():
            w.t_()
        v = torch.zeros(B, N, dtype=x.dtype)
        for one in x:
            v = torch.tanh(v @ w) + one
        return v

    given = random(T, B, N), random(N, N).requires_grad_()
    with pytest.raises(Refused, match="t_: expected a value without gradient under no_grad"):
        run(model, given)
    with torch.no_grad():
        want, got, _ = run(model, given)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("make", [torch.empty_like, lambda v: v.new_empty(v.shape),
                                  lambda v: torch.empty(B, N, dtype=v.dtype)])
def test_uninitialized_memory_that_is_written(make: Callable[..., Tensor]) -> None:
    """In parts and as a whole: what is not yet written has any numbers, which verify does not
    compare."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = make(x[0]).copy_(x[0])
        for one in x:
            other = make(v)
            other[:, 0], other[:, 1:] = one[:, 0], one[:, 1:] * 2
            v = torch.tanh(v @ w) + make(v).copy_(other)
        return v

    given = random(T, B, N), random(N, N, seed=1)
    for _ in range(3):
        junk = torch.full((1000,), torch.nan, dtype=torch.float64)
        del junk
        compare_calls(fuse(model, given), model, *given)


class Truncated(nn.Module):
    """Detaches the state of the last call in place."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N, dtype=torch.float64)
        self.v = torch.zeros(B, N, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.v.detach_()
        v = self.v
        for one in x:
            v = torch.tanh(self.back(v)) + one
        self.v = v
        return v * 2


@pytest.mark.filterwarnings("error")
def test_a_state_that_is_detached_in_place() -> None:
    model = Truncated()
    converted, report = convert(copy.deepcopy(model), random(T, B, N))
    assert report.converted
    for seed in range(4):
        for one in (model, converted):
            one.zero_grad()
            one(random(T, B, N, seed=seed)).sum().backward()
        torch.testing.assert_close(converted.v, model.v)
        torch.testing.assert_close(converted.back.weight.grad, model.back.weight.grad)
    entries = converted._lsnn_replayer.all()
    assert len(entries) == 2
    assert entries[1].guard.settle([random(T, B, N)])  # by all that there is, not by objects alone


# ------------------------------------------------------------ of numbers, not of rows and columns
OF_NUMBERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "movedim": lambda v, w, k: v.movedim(-1, -1),
    "moveaxis": lambda v, w, k: torch.moveaxis(v, 0, 1).moveaxis(0, 1),
    "einsum": lambda v, w, k: torch.einsum("bn,n->bn", v, w[0]),
    "einsum, turned": lambda v, w, k: torch.einsum("n, b...n -> b...n", w[0], v),
    "einsum of two": lambda v, w, k: torch.einsum("bn,bn->bn", v, v),
    "einsum of three": lambda v, w, k: torch.einsum("n,bn,n->bn", w[0], v, w[1]),
    "einsum of an axis in front": lambda v, w, k: torch.einsum(
        "bn,b->bn", v, (k[:, 0] % 2).to(v.dtype)),
    "einsum of inner axes": lambda v, w, k: torch.einsum(
        "b...n,...->b...n", v.view(B, 1, N), w[0, :1]).reshape(B, N),
    "integer product": lambda v, w, k: v * k,
    "integer sum": lambda v, w, k: v + k,
    "sum with bools": lambda v, w, k: v + (k > 0),
    "integer where": lambda v, w, k: torch.where(k > 0, v, k),
    "integers of each step": lambda v, w, k: v * k[0]}


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calls_of_numbers_are_fused(name: str, dtype: torch.dtype) -> None:
    def model(x: Tensor, w: Tensor, k: Tensor) -> Tensor:
        v = z = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for one, integers in zip(x, k, strict=True):
            v = OF_NUMBERS[name](0.9 * v + one + z @ w, w, integers)
            z = spike(v - 0.5)
            made.append(z)
        return torch.stack(made)

    k = torch.arange(T * B * N).reshape(T, B, N) % 3
    want, got, plan = run(model, (random(T, B, N).to(dtype), random(N, N).to(dtype), k))
    assert [stage.kind for stage in plan.stages].count("fused") == 1
    torch.testing.assert_close(got, want)


def test_integers_in_a_sum_of_another_dtype_stay_out() -> None:
    def model(x: Tensor, w: Tensor, k: Tensor) -> Tensor:
        v = torch.zeros(B, N, dtype=x.dtype)
        for one, integers in zip(x, k, strict=True):
            v = 0.9 * v + one + (torch.tanh(v).float() @ w + integers / 3 + integers).double()
        return v

    k = torch.arange(T * B * N).reshape(T, B, N) % 7
    want, got, _ = run(model, (random(T, B, N), random(N, N).float(), k))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("step", "rows", "scale", "is_fused"), [
    *((lambda v, one, w, turn=turn: turn(torch.einsum("bn,n->nb", 0.9 * v + one, w[0])), N, 1,
       False) for turn in (Tensor.t, torch.clone)),
    (lambda v, one, w: 0.5 * v + one + torch.einsum("bn,nm->bm", v, w) * torch.einsum(
        "bn,bm->bn", v, v), B, 9, False),
    (lambda v, one, w: one - torch.matmul(w, v.unsqueeze(-1)).squeeze(-1), B, 9, True),
    (lambda v, one, w: one - (w.view(1, 1, N, N) @ v.view(B, 1, N, 1)).flatten(1), B, 9, True),
    (lambda v, one, w: one - torch.bmm(v[None], w[None])[0], B, 9, True)])
def test_products_of_other_shapes(step: Any, rows: int, scale: int, is_fused: bool) -> None:
    """An einsum that transposes is no product of numbers; one of rows and columns is a product."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = torch.zeros(rows, N, dtype=x.dtype)
        for one in x:
            v = step(v, one, w)
        return v

    want, got, plan = run(model, (random(T, rows, N) / scale, random(N, N) / scale))
    assert any(stage.kind == "fused" for stage in plan.stages) == is_fused
    torch.testing.assert_close(got, want)
