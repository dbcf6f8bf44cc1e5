"""Results and states of a replay share memory where those of the original do, and nowhere else."""
import copy
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from converted_nets import draw_x, plans_are_useful, seen_replays  # noqa: F401
from lsnn_ext.loops import Refused, convert, fuse
from small_loops import run_cells

T, B, N = 20, 3, 5


def integrate(x: Tensor) -> list[Tensor]:
    v, out = torch.zeros_like(x[0]), []
    for x_t in x:
        v = 0.9 * v + x_t
        out.append(v)
    return out


def share(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    turned = torch.stack(integrate(x)).transpose(0, 1)
    return turned, turned.detach()


def keep_last(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    out = integrate(x)
    return torch.stack(out), out[-1].detach()


def stack_again(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """An input and a state, in memory of their own."""
    seen = list(x.unbind(0))
    states = integrate(torch.tanh(x))
    return (torch.stack(seen), torch.stack(seen).flatten(1), torch.stack(states),
            torch.stack(states), torch.stack(states[3:]))


def return_zeros(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Tensors that no iteration changes."""
    others = [torch.zeros(B, N) for _ in range(6)]
    return integrate(x)[-1], *others


def project(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    current = F.linear(x, w)
    return run_cells(current, w, B), current, current.transpose(0, 1)


def project_parts(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    current = F.linear(x, w)
    parts = current.unbind(0)
    return (run_cells(parts, w, B), torch.stack(parts), current, current.transpose(0, 1)[1],
            parts[2])


@pytest.mark.filterwarnings("error")  # a replay that raises runs the original
@pytest.mark.parametrize("run", [share, keep_last, stack_again, return_zeros, project,
                                 project_parts])
def test_results_share_memory(run: Callable[..., Any]) -> None:
    """Each result is changed: a number shows by which ones."""
    x, w = torch.rand(T, B, N), torch.rand(N, N)
    fused = fuse(run, (x, w))
    for _ in range(2):
        given = [(x.clone(), w) for _ in range(2)]
        results = [call(*args) for call, args in zip((fused, run), given, strict=True)]
        torch.testing.assert_close(*results)
        for made in results:
            for k, one in enumerate(made):
                one.add_(2**k)
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*given)


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
        last = integrate(x)[-1]
        return last, log_std.expand_as(last)

    given = draw_x(), torch.zeros(5, requires_grad=True)
    with torch.no_grad():
        fused = fuse(run, given)
        for one, other in zip(fused(*given), run(*given), strict=True):
            assert torch.equal(one, other) and one.requires_grad == other.requires_grad


class Viewed(nn.Module):
    """Keeps a view of a parameter as its state."""

    def __init__(self, is_view: bool) -> None:
        super().__init__()
        self.start, self.is_view = nn.Parameter(torch.rand(4)), is_view
        self.s: Any = None

    def forward(self, x: Tensor) -> Tensor:
        s = self.start.expand(2, 4) if self.s is None else self.s
        self.s = s.detach() if self.is_view else s.detach().clone()
        return integrate(x * s)[-1]


def test_a_state_that_changes_with_a_parameter_is_refused() -> None:
    x = torch.rand(20, 2, 4)
    assert convert(Viewed(False), x)[1].converted
    report = convert(Viewed(True), x)[1]
    assert report.reason.startswith("start: expected states in other memory")


class ReturnsView(nn.Module):
    """Returns a view of a parameter, as actors do of a deviation."""

    def __init__(self, is_in_loop: bool) -> None:
        super().__init__()
        self.log_std, self.is_in_loop = nn.Parameter(torch.rand(4)), is_in_loop

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v = torch.zeros(2, 4)
        for t in range(20):
            v = 0.9 * v + torch.tanh(x[t] + v)
            std = self.log_std.expand_as(v) if self.is_in_loop or not t else std  # noqa: F821
        return v, std, self.log_std[1:].detach()


@pytest.mark.parametrize("is_in_loop", [False, True])
def test_a_view_of_a_parameter_is_a_result(is_in_loop: bool) -> None:
    x = torch.rand(20, 2, 4)
    original, (model, report) = ReturnsView(is_in_loop), convert(ReturnsView(is_in_loop), x)
    assert report.converted is not is_in_loop
    original.load_state_dict(model.state_dict())
    made, wanted = model(x), original(x)
    torch.testing.assert_close(made, wanted)
    assert [one.requires_grad for one in made] == [False, True, False]
    with torch.no_grad():
        model.log_std += 1  # as the step of an optimizer
    torch.testing.assert_close(made[1:], (wanted[1] + 1, wanted[2] + 1))


class KeepsInputs(nn.Module):
    """Keeps views of its input until the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.kept = nn.Linear(5, 5), {"x": []}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["x"] = []
        self.kept["x"] += x.unbind(0)
        return run_cells(self.kept["x"], self.back.weight, x.shape[1])


def test_states_that_the_call_replaces_share_no_memory_with_new_ones() -> None:
    model, x = KeepsInputs(), torch.randn(9, 3, 5)
    original = copy.deepcopy(model)
    model, report = convert(model, x)
    assert report.converted
    for _ in range(3):
        torch.testing.assert_close(model(x), original(x))
    assert all(entry.plan is not None for entry in model._lsnn_replayer.all())


class Writes(nn.Module):
    """Writes to what it has as attributes."""

    def __init__(self, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.start, self.write = nn.Parameter(torch.ones(2, 4)), write
        self.register_buffer("b", torch.ones(2, 4))
        self.s: Any = 0.5 * self.start

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        v = torch.zeros(2, 4)
        for one in x:
            v = 0.9 * v + torch.tanh(one + v)
        return v


@pytest.mark.parametrize("write, reason", (
    (lambda model: model.b.mul_(2).t_(), "t_: expected no write to a parameter"),
    (lambda model: model.b.mul_(2).requires_grad_(), "requires_grad_: expected no write to a"),
    (lambda model: model.start.detach_(), "detach_: expected no write to a parameter"),
    (lambda model: model.s.detach_().fill_(2), "fill_: expected no write to an attribute after"),
    (lambda model: model.s.detach_().t_(), "t_: expected no write to an attribute after")))
def test_a_write_that_changes_the_kind_of_an_attribute_is_refused(
        write: Callable[[Any], Any], reason: str) -> None:
    report = convert(Writes(write), torch.rand(20, 2, 4))[1]
    assert reason in report.reason


# -------------------------------------------------------------------------- identity of objects
class Kept(nn.Module):
    """A leaky layer, whose states a test keeps in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(N))
        self.zero = torch.zeros(B, N)
        self.z, self.first = torch.zeros(B, N), [torch.zeros(B, N), torch.zeros(B, N)]
        self.state = self.first
        self.store = {name: torch.full((B, N), float(k)) for k, name in enumerate("abc")}

    def run(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        z, out = torch.zeros(B, N), []
        for x_t in x:
            v = 0.75 * v + x_t + z @ self.w - z
            z = torch.sigmoid(v)
            out.append(z)
        return torch.stack(out), v.detach()

    def reset(self) -> None:
        self.store["a"] = self.store.pop("a")


class AsksForIdentity(Kept):
    def reset(self) -> None:
        self.z = self.zero

    def forward(self, x: Tensor) -> Tensor:
        out, self.z = self.run(x, self.z + 1 if self.z is self.zero else self.z)
        return out


class ReplacesList(Kept):
    def reset(self) -> None:
        self.state = self.first

    def forward(self, x: Tensor) -> Tensor:
        out, v = self.run(x, self.first[0])
        self.state[0] = v  # of self.first, too, while both are one list
        self.state = [v, v + 1]
        return out


class TurnsDict(Kept):
    def forward(self, x: Tensor) -> Tensor:
        name = next(iter(self.store))
        out, v = self.run(x, self.store.pop(name))
        self.store[name] = v
        return out


class TakesFirst(Kept):
    def forward(self, x: Tensor) -> Tensor:
        name = next(iter(self.store))
        out, self.store[name] = self.run(x, self.store[name])
        return out


@pytest.mark.parametrize("kind", [AsksForIdentity, ReplacesList, TurnsDict, TakesFirst])
def test_a_recording_holds_for_the_same_identities(kind: type[Kept]) -> None:
    torch.manual_seed(0)
    original, x = kind(), torch.rand(T, B, N)
    net, report = convert(copy.deepcopy(original), x)
    assert report.converted == (kind is not TurnsDict), report
    assert [*net.store] == [*"abc"]
    for call in range(8):
        for one in (original, net):
            if call in (3, 6):
                one.reset()
        torch.testing.assert_close(net(x), original(x))
        torch.testing.assert_close(net.first, original.first)
    assert kind is TurnsDict or seen_replays


# ------------------------------------------------------------ what a Function keeps, and is changed
class Box:
    def __init__(self, h: Any) -> None:
        self.h = h


KEEPS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "an object": (Box, lambda kept: kept.h), "a list": (lambda h: [h], lambda kept: kept[0]),
    "a set": (lambda h: {h}, lambda kept: next(iter(kept))),
    "a partial": (lambda h: functools.partial(torch.clone, h), lambda kept: kept()),
    "a function": (lambda h: lambda: h, lambda kept: kept())}


@pytest.mark.parametrize("name", KEEPS)
def test_objects_that_a_function_keeps_are_refused(name: str) -> None:
    """A write by 1 while it is recorded, and by another factor later."""
    keep, find = KEEPS[name]

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, v: Tensor, h: Tensor) -> Tensor:
            ctx.save_for_backward(v)
            ctx.kept = keep(h)
            return (v > 0).to(v.dtype)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            v, = ctx.saved_tensors
            return gradient / (1 + v.abs()) ** 2 * find(ctx.kept), None

    def run(x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
        v = z = torch.zeros(B, N)
        out = []
        for x_t in x:
            v = 0.75 * v + x_t + z @ w
            h = v.detach().abs()
            z = Spike.apply(v - 1, h)  # type: ignore[no-untyped-call]
            h.mul_(gain)
            out.append(z)
        return torch.stack(out)

    with pytest.raises(Refused, match=r"expected tensors in ctx.save_for_backward and plain"):
        fuse(run, (torch.rand(T, B, N), torch.eye(N).requires_grad_(), torch.ones(N)))
