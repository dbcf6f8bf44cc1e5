"""Counters of integers, which kernels hold as floating-point numbers where these are exact."""
import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lsnn_ext import convert
from small_loops import compare, find_components, random, run, spike

T, B, N = 40, 3, 5
LONG = torch.int64


def count(before: Callable[[Tensor], Tensor], after: Callable[..., Tensor], x: Tensor,
          w: Tensor) -> list[Tensor]:
    """Neurons that are silent while a counter is above 0."""
    v = z = torch.zeros_like(x[0])
    n = before(v)
    made = []
    for t in range(len(x)):
        v = 0.8 * v + x[t] + z @ w - z
        z = spike(v - 0.5) * (n <= 0)
        n = after(n, z, t)
        made.append(z)
    return [torch.stack(made), n, n.to(v.dtype) * v]


def zeros(v: Tensor, dtype: torch.dtype = LONG) -> Tensor:
    return torch.zeros_like(v, dtype=dtype)


def write(n: Tensor, z: Tensor, t: int) -> Tensor:
    n = (n - 1).clamp_(min=0)
    n[z > 0] = 3
    return n


EXACT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "refractory period": (zeros, lambda n, z, t: torch.where(z > 0, 3, (n - 1).clamp(min=0))),
    "int32, below 0": (partial(zeros, dtype=torch.int32),
                       lambda n, z, t: torch.where(z.bool(), torch.full_like(n, 3), n - 1)),
    "written in place": (lambda v: torch.full(v.shape, 2), write),
    "time of the last spike": (lambda v: torch.full(v.shape, -9),
                               lambda n, z, t: torch.where(z > 0, t, n)),
    "spikes so far, less a leak": (lambda v: torch.ones(v.shape).new_ones(v.shape, dtype=LONG),
                                   lambda n, z, t: n + 2 * z.long() - 1),
    "products and signs": (zeros, lambda n, z, t: -(n * (z.long() - 1)).maximum(-n.abs()) - 1),
    "a sum with alpha": (zeros, lambda n, z, t: torch.add(z.int().long(), n, alpha=-1)),
    "cut off below 0": (zeros, lambda n, z, t: torch.relu(n - 1) + 3 * (z > 0)),
    "from the input": (lambda v: v.new_zeros(v.shape).long() + (v > 0),
                       lambda n, z, t: torch.where(z > 0, 3, n - 1)),
    "to 2**24 - 1": (lambda v: torch.full(v.shape, 2**24 - 65),
                     lambda n, z, t: n + (z >= 0).long())}


@pytest.mark.parametrize("name", EXACT)
def test_counters(name: str) -> None:
    compare(partial(count, *EXACT[name]), random(T, B, N), random(N, N, seed=1))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "to 2**24": (lambda v: torch.full(v.shape, 2**24 - 64), lambda n, z, t: n + (z >= 0).long()),
    "doubled": (lambda v: torch.ones_like(v, dtype=LONG), lambda n, z, t: n * 2 - z.long()),
    "a late time": (zeros, lambda n, z, t: torch.where(z > 0, t * 1000003, n)),
    "narrowed": (zeros, lambda n, z, t: torch.where(
        z > 0, torch.full_like(n, 300).to(torch.uint8).long(), n)),
    "too large for int32": (lambda v: zeros(v).int(), lambda n, z, t: torch.where(
        z > 0, torch.full_like(n, 2**40, dtype=LONG).int(), n)),
    "seen as another dtype": (zeros, lambda n, z, t: torch.where(
        z > 0, torch.full((B, 2 * N), 1, dtype=torch.int32).view(LONG), n)),
    "a large number": (zeros, lambda n, z, t: torch.where(z > 0, 2**24, n - 1)),
    "rounded": (zeros, lambda n, z, t: (n.double() * 0.7 + 5 * z).long()),
    "a quotient": (zeros, lambda n, z, t: (n + z.long()) // 2),
    "int8": (partial(zeros, dtype=torch.int8), lambda n, z, t: n + z.to(torch.int8))}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_need_not_be_exact(name: str) -> None:
    want, got, plan = run(partial(count, *REFUSED[name]), (random(T, B, N), random(N, N, seed=1)))
    assert "fused" not in [stage.kind for stage in plan.stages]
    torch.testing.assert_close(got, want, rtol=0, atol=0)


class Started(torch.nn.Module):
    def __init__(self, after: Callable[..., Tensor]) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("w", random(N, N, seed=1))

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return count(lambda v: n, self.after, x, self.w)[0]


def test_a_state_in_another_range() -> None:
    """Such as a refractory period that goes on in the next call."""
    made = Started(lambda n, z, t: torch.where(z > 0, 3, n - 1))
    x, n = random(T, B, N), torch.zeros(B, N, dtype=LONG)
    net, report = convert(copy.deepcopy(made), (x, n))
    assert report.fused and not report.branches
    entry, = net._lsnn_replayer.all()
    for number, replays in ((-4095, 1), (4096, 1), (4095, 2), (2**24 + 1, 2), (-(2**40), 2)):
        n[0] = number
        assert torch.equal(net(x, n), made(x, n))
        assert entry.plan.replays == replays
    assert "integers before a loop from -4095 to 4095" in convert(made, (x, n))[1].reason


def test_ranges_of_kernels_that_lose_are_not_checked() -> None:
    """The plan that was chosen stands for a loop that starts an iteration before."""
    made = Started(lambda n, z, t: torch.add(n := n.clone(), 1, out=n))
    x, n = random(T, B, N), torch.zeros(B, N, dtype=LONG)
    net, report = convert(copy.deepcopy(made), (x, n))
    assert report.fused
    for start in (n, n + 5000):
        assert torch.equal(net(x, start), made(x, start))
    entry, = net._lsnn_replayer.all()
    assert entry.plan.replays == 2


def test_kernels_without_integers_are_those_of_any_length() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        return count(torch.zeros_like, lambda n, z, t: n + z, x, w)[0]

    steps = [find_components(compare(model, random(length, B, N), random(N, N, seed=1)))[0]
             .neuron.step for length in (8, 40)]
    assert steps[0].key == steps[1].key


@pytest.mark.parametrize("kind", ["buffer", "attribute", "input", "counted", "counted in place"])
def test_an_integer_of_another_call(kind: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("period", torch.tensor(3))
            self.w = torch.nn.Parameter(random(N, N, seed=1))

        def forward(self, x: Tensor, given: Tensor) -> Tensor:
            period = given if kind == "input" else self.period
            made = count(zeros, lambda n, z, t: torch.where(z > 0, period, n - 1), x, self.w)[0]
            if kind == "counted":
                self.period = self.period + 1
            elif kind == "counted in place":
                self.period += 1
            return made

    x = random(T, B, N)
    net, report = convert(Net(), (x, torch.tensor(3)))
    assert bool(report.fused) == (kind != "input")
    want = Net()
    for period in (3, 5):
        if kind == "attribute":
            net.period, want.period = torch.tensor(period), torch.tensor(period)
        elif kind == "buffer":
            net.period.fill_(period)
            want.period.fill_(period)
        for _ in range(2):
            torch.testing.assert_close(*(one(x, torch.tensor(period)) for one in (net, want)))
            assert net.period == want.period
