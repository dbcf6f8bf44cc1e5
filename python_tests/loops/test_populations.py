"""Populations that act on each other, of equal and of different sizes: each neuron of the kernels
has a copy for each of the values that products read. Where they act on each other within an
iteration, the rows of the batch run in groups."""
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import small_loops
from lsnn_ext import convert, fuse
from small_loops import compare, compare_calls, find_components, run, run_cells, spike

T, I = 9, 3

# v, current, z of the step before and a coefficient -> v, z
STEPS: list[Callable[..., tuple[Tensor, Tensor]]] = [
    lambda v, c, z, k: ((v := k * v + c - z.detach()), spike(v - 0.3)),
    lambda v, c, z, k: ((v := (1.0 - z) * (v + (c - v) * k)), spike(v - 0.2)),
    lambda v, c, z, k: ((v := k * v + (1 - k) * torch.tanh(c)), v),
    lambda v, c, z, k: ((v := v / (1 + k * k) + c), 2.0 * spike(v - 0.3))]


def draw(seed: int, has_now: bool) -> tuple[Callable[..., list[Any]], list[Tensor], list[int]]:
    """A network, its tensors, and the sizes of its populations; has_now: some act on a later one
    within an iteration."""
    d = random.Random(seed)
    B = d.choice((1, 2, 3, 4, 7))
    is_first = d.random() < 0.3  # products of values with the batch behind the neurons
    sizes = [d.choice([N for N in (1, 2, B, 5, 8) if not is_first or N != B])
             for _ in range(d.choice((2, 2, 2, 3)))]
    steps = [d.choice(STEPS) for _ in sizes]
    P = range(len(sizes))
    given: list[Tensor] = [small_loops.random(T, B, I, seed=seed)]

    def add(*shape: int, scale: float = 1.0) -> int:
        given.append(small_loops.random(*shape, scale=scale, seed=seed + len(given)))
        return len(given) - 1

    forms = "number", "learned", "each"
    coefficients: list[float | int] = [
        d.uniform(0.3, 0.9) if (form := d.choice(forms)) == "number" else
        add(*(sizes[p],) * (form == "each"), scale=0.5) for p in P]
    inputs = [add(sizes[p], I) for p in P]
    starts = [add(B, sizes[p]) if d.random() < 0.5 else None for p in P]
    # all of a cycle, and some others: from q to p, by spikes of one or two steps before
    pairs = {(p, (p + 1) % len(sizes)) for p in P} | {
        (p, q) for p in P for q in P if d.random() < 0.5}
    weights = {pair: (add(sizes[pair[0]], sizes[pair[1]]), d.choice((1, 1, 1, 2)))
               for pair in sorted(pairs)}
    delays = {q: lag for (_, q), (_, lag) in weights.items()}  # one for each source
    now = {pair for pair in weights if has_now and pair[0] > pair[1] and d.random() < 0.8}
    collected = [d.random() < 0.8 or not p for p in P]

    def run(*given: Tensor) -> list[Any]:
        states = [given[0].new_zeros(B, sizes[p]) if starts[p] is None else given[starts[p]]
                  for p in P]
        past = [[torch.zeros_like(one)] * 2 for one in states]
        rows: list[list[Tensor]] = []
        for x in given[0]:
            made = []
            for p in P:
                current = F.linear(x, given[inputs[p]])
                for (to, q), (w, _) in weights.items():
                    if to != p:
                        continue
                    z = made[q][1] if (p, q) in now else past[q][-delays[q]]
                    current = current + (
                        (given[w] @ z.t()).t() if is_first else F.linear(z, given[w]))
                k = coefficients[p]
                made.append(steps[p](states[p], current, past[p][-1],
                                     given[k].sigmoid() if isinstance(k, int) else k))
            states = [v for v, _ in made]
            past = [[older[-1], z] for older, (_, z) in zip(past, made, strict=True)]
            rows.append([one for pair, is_read in zip(made, collected, strict=True) if is_read
                         for one in pair])
        return [*map(torch.stack, zip(*rows, strict=True)), *states]

    return run, given, sizes


def check(seed: int, has_now: bool = False) -> None:
    run, given, sizes = draw(seed, has_now)
    try:
        plan = compare(run, *given)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, sizes {sizes}") from error
    (component,) = find_components(plan)
    assert {*component.found.sizes} <= {*sizes}


@pytest.mark.parametrize("has_now", [False, True])
@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_populations(first: int, has_now: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    for seed in range(first, first + 10):
        check(seed, has_now)


@pytest.mark.parametrize("has_now", [False, True])
def test_compiled(has_now: bool) -> None:
    check(1000, has_now)


@pytest.mark.parametrize("seed", range(4))
def test_verify_takes_steps_of_groups(seed: int) -> None:
    network, given, _ = draw(seed, True)
    fuse(network, tuple(one.detach().requires_grad_() for one in given))


def root(x: Tensor, v0: Tensor, k: Tensor, w: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    """A population below 0, and one with roots of numbers above 0, of equal size."""
    v, u = v0, v0.abs() + 1
    z = y = torch.zeros_like(v)
    for one in x:
        v = 0.9 * v + one - 5 + y @ back
        u = torch.sqrt(k * u) + (z @ w).abs() + 0.1
        z, y = spike(v + 20.0), spike(u - 1.0)
    return v, u, z


def test_states_of_another_population_pass_no_gradient() -> None:
    given = small_loops.random(T, 3, 8), small_loops.random(3, 8), torch.ones(()).double(), *(
        small_loops.random(8, 8, seed=k) for k in (1, 2))
    compare(root, *given)


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("is_now", [False, True])
def test_axis_of_its_own(is_now: bool, B: int) -> None:
    """Three dendrites of each neuron, in two layers of equal size."""
    def model(x: Tensor, w: Tensor, u: Tensor, beta: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
        d = e = x.new_zeros(B, 5, 3)
        v = y = z = q = x.new_zeros(B, 5)
        out = []
        for one in x:
            d = beta.sigmoid() * d + (one @ w[:I] + q @ w[I:]).view(B, 5, 3)
            v = 0.9 * v + d.sum(2)
            z = spike(v - 0.5)
            e = 0.8 * e + (one @ u[:I] + (z if is_now else y) @ u[I:]).view(B, 5, 3)
            y, q = z, spike(e.sum(2) * gain - 0.5)
            out.append(q + e.sum(2))
        return torch.stack(out), d, e, v

    plan = compare(model, *(small_loops.random(*shape, seed=k) for k, shape in enumerate(
        [(T, B, I), (I + 5, 15), (I + 5, 15), (5, 3), (5,)])))
    found = find_components(plan)[0].found
    assert found.retiming.groups == 1 + is_now
    assert len(found.shared_states) < len(found.registers)


def hold(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Excitation whose membrane explodes without its current, and the root of a current."""
    v0, k, w_ie, w_ei = given
    v, u = v0.expand(4, 8), x.new_zeros(4, 3)
    z, y = torch.zeros_like(v), u
    made = []
    for one in x:
        v = v + 0.1 * (k * v * v - one - (y @ w_ei).abs())
        u = 0.9 * u + torch.sqrt(1e-9 + (z @ w_ie).square())
        z, y = spike(v - 0.3), spike(u - 1.0)
        made.append(z)
    return torch.stack(made), v, u


def test_what_means_nothing_in_a_copy_passes_no_gradient() -> None:
    """A learned number and currents of populations of two sizes; where a copy does not hold the
    membrane, it grows without end."""
    def draw_held(level: float) -> tuple[Tensor, ...]:
        x = 4 * level**2 + small_loops.random(150, 4, 8, scale=0.01).abs()
        others = torch.full((8,), level), torch.ones(()), *(
            small_loops.random(*shape).abs() for shape in ((8, 3), (3, 8)))
        return x, *(one.double().requires_grad_() for one in others)

    fused = fuse(hold, draw_held(0.05))
    for level in (0.05, 0.5, 1.0):
        compare_calls(fused, hold, *draw_held(level), rtol=1e-8, atol=1e-8)


def test_no_items() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        return run_cells(x, w, x.shape[1]).sum(0)

    w = small_loops.random(6, 6).requires_grad_()
    fused = fuse(model, (small_loops.random(T, 4, 6), w))
    with pytest.warns(UserWarning, match="expected"):
        made = fused(small_loops.random(T, 0, 6), w)
    assert made.shape == (0, 6)


def make_mask() -> Tensor:
    return torch.arange(8) % 3 == 0


INDICES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "masks": lambda: (make_mask(), ~make_mask()),
    "where": lambda: (torch.where(make_mask())[0], torch.where(~make_mask())[0]),
    "nonzero": lambda: (make_mask().nonzero().squeeze(1), (~make_mask()).nonzero().squeeze(1)),
    "integers": lambda: (torch.tensor([0, -1, 2]), torch.tensor([3, 4, 4, 5, -7]))}


@pytest.mark.parametrize("axes", ["all", "last"])
@pytest.mark.parametrize("name", INDICES)
def test_products_of_parts_by_constant_indices(name: str, axes: str) -> None:
    """Excitatory and inhibitory neurons of one population, each with a matrix."""
    def model(x: Tensor, w_e: Tensor, w_i: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1:])
        excitatory, inhibitory = INDICES[name]()
        out = []
        for one in x:
            parts = (z[..., excitatory], z[..., inhibitory]) if axes == "last" else (
                z[:, excitatory], z[:, inhibitory])
            v = 0.9 * v + one + parts[0] @ w_e - F.linear(parts[1], w_i)
            z = spike(v - 0.5)
            out.append(z[:, excitatory].sum(1))
        return torch.stack(out)

    sizes = [len(torch.zeros(8)[one]) for one in INDICES[name]()]
    compare(model, small_loops.random(T, 3, 8), small_loops.random(sizes[0], 8),
            small_loops.random(8, sizes[1], seed=1))


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(100, 100)
        self.register_buffer("mask", torch.arange(100) < 50)

    def forward(self, x: Tensor) -> Tensor:
        v = z = torch.zeros_like(x[0])
        for one in x:
            v = 0.9 * v + one + self.linear(z)
            z = spike(v - 0.5)
        part = z[:, self.mask]
        return part.sum(1) / part.shape[1]


def test_a_mask_that_changes() -> None:
    model, original = Masked(), Masked()
    original.load_state_dict(model.state_dict())
    x = small_loops.random(T, 3, 100).float()
    model, report = convert(model, x)
    assert report.converted
    for shift, size in ((0, 50), (7, 50), (7, 20), (7, 50), (0, 20)):
        for one in (model, original):
            one.mask.copy_(torch.arange(100).roll(shift) < size)
        assert torch.equal(model(x), original(x))


def test_groups_that_are_slower_than_the_calls_stay_a_loop() -> None:
    """Half of the joint matrix of two layers of numbers is zeros."""
    def model(x: Tensor, w: Tensor, back: Tensor) -> Tensor:
        u = v = x.new_zeros(x.shape[1], 400)
        for one in x:
            u = torch.tanh(one + v @ back)
            v = torch.tanh(0.9 * v + u @ w)
        return v

    _, _, plan = run(model, (torch.rand(9, 64, 400), torch.rand(400, 400), torch.rand(400, 400)))
    (loop,) = [stage for stage in plan.stages if stage.kind == "loop"]
    assert "slower than the calls" in loop.reason and loop.line.startswith("test_populations.py")
