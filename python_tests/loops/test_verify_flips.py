"""What verify counts as rounding: at a threshold, and of gradients."""
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import Refused, fuse
from lsnn_ext.loops.expected import Expected
from lsnn_ext.loops.functions import Apply
from lsnn_ext.loops.ir import Call, Loop
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.record import record
from lsnn_ext.loops.rounding import (
    VerificationError,
    compare_gradients,
    perturb,
    run_perturbed_call,
)
from lsnn_ext.loops.values import Values
from lsnn_ext.loops.verify import verify
from small_loops import find_components, prepare, random, spike

T, B, N = 9, 3, 5


def near_threshold(after: Callable[[list[Tensor]], Tensor] = torch.stack,
                   ) -> tuple[Plan, Any, Loop, int]:
    """A plan in whose step 4 the argument of neuron (1, 2) is an ulp above the threshold.

    after: makes the result of the spikes.
    """
    x, w = random(T, B, N), torch.zeros(N, N).double()

    def leaky(x, w):
        v, z = torch.full((B, N), 0.1).double(), torch.zeros(B, N).double()
        out = []
        for x_t in x.unbind(0):
            v = 0.9 * v + x_t + z @ w
            z = spike(v - 1.0)
            out.append(z)
        return after(out)

    v = torch.full((B, N), 0.1).double()
    for t in range(T):
        if t == 4:
            x[t, 1, 2] = 1 + 2e-16 - 0.9 * v[1, 2]
        v = 0.9 * v + x[t]
        if t == 4:
            assert 0 < v[1, 2] - 1 < 1e-15
    plan, result = prepare(leaky, [x, w])
    loop = next(part[0] for part in plan.parts if not isinstance(part, Call))
    z = next(q for q, one in enumerate(loop.body) if isinstance(one.call.function, Apply))
    return plan, result, loop, z


def test_flip_at_the_threshold_counts():
    plan, _, loop, z = near_threshold()
    expected = Expected(plan)
    got = torch.stack([expected.numbers[made[z][0]] for made in loop.made])
    got[4, 1, 2] = 0

    def calls(t):
        return [expected.makers[values[0]] for values in loop.made[t]]

    expected.compare(loop, (z, 0), got, 0, calls)
    assert expected.flips == 1
    got[7, 0, 3] = 1 - got[7, 0, 3]
    with pytest.raises(VerificationError) as error:
        expected.compare(loop, (z, 0), got, 0, calls)
    assert (error.value.step, error.value.neuron) == (7, (0, 3))


def move_current(plan: Plan, share: float = 1e-15, to: float = 0.0) -> None:
    """Moves the input current of the first kernel by some ulps."""
    component = find_components(plan)[0]
    make_current = component.currents.make_current
    component.currents.make_current = lambda *args: make_current(*args) * (1 - share) + to
    component.currents.projected = None  # the operator would make it


def change_run(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor],
               leaf: int | None) -> None:
    """Changes what the run of a whole plan reads as a leaf; None: its result."""
    run = Plan.run

    def run_wrong(plan: Plan, leaves: dict[int, Tensor], keep_values: bool) -> Any:
        given = {value: change(one) if k == leaf else one
                 for k, (value, one) in enumerate(leaves.items())}
        (made, *others), values = run(plan, given, keep_values)
        return (change(made) if leaf is None else made, *others), values

    monkeypatch.setattr(Plan, "run", run_wrong)


def test_flip_in_a_run():
    """An input current of a kernel moves by an ulp, and a spike with it."""
    plan, result, _, _ = near_threshold()
    move_current(plan)
    found = verify(plan, result)
    assert found.flips >= 1 and found.replayed >= 1
    assert (found.gradients, found.reason) == (2, "")
    assert "flip at a threshold" in str(found)
    assert "in the whole run rounding adds up: 1 numbers" in str(found)
    assert "results equal" not in str(found) and "; 2 gradients within" in str(found)


def write(out: list[Tensor]) -> Tensor:
    made = torch.empty(T, B, N, dtype=torch.float64)
    for t, z in enumerate(out):
        made[t] = z
    return made


def move_number(x: Tensor, step: int, row: int) -> Tensor:
    other = x.detach().clone()
    other[step, row, 0] += 0.01
    return x + (other - x).detach()


@pytest.mark.parametrize(("change", "leaf", "reason"), [
    *((functools.partial(move_number, step=step, row=row), 0, rf"neuron \({row}, 0\)")
      for row in (0, 1) for step in (2, 7)),
    (lambda w: w + 0.1 * (w - w.detach()), 1, "gradient of input 1: a gradient differs"),
    (lambda made: made.roll(1, 0), None, "results: .* numbers differ")])
def test_a_flip_excuses_nothing_else(change: Callable[[Tensor], Tensor], leaf: int | None,
                                     reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 1 has a flip in step 4."""
    plan, result, _, _ = near_threshold(write)
    move_current(plan)
    change_run(monkeypatch, change, leaf)
    with pytest.raises(VerificationError, match=reason):
        verify(plan, result)


@pytest.mark.parametrize("after", [
    write, lambda out: torch.view_as_real(torch.complex(torch.stack(out), 2 * torch.stack(out))),
    lambda out: torch.cat([torch.stack(out).masked_fill(torch.stack(out) > 0, -torch.inf),
                           torch.zeros(T, B, 1)], -1).softmax(-1)])
def test_what_follows_a_flip(after: Callable[[list[Tensor]], Tensor]) -> None:
    plan, result, _, _ = near_threshold(after)
    move_current(plan)
    found = verify(plan, result)
    assert found.replayed and found.gradients == 2


def test_a_state_that_no_result_shows_flips() -> None:
    """u is 0.1 above or below v, by an ulp of v, which no spike shows but the surrogate."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v, out = torch.zeros(B, N).double(), []
        for x_t in x:
            u = v - 0.1 * torch.sign(v)
            z = spike(u - 0.3)
            v = x_t + (0.5 * z) @ w + 0.0 * v
            out.append(z)
        return torch.stack(out).sum(0)

    x = torch.tensor([1.0, *[1e-16] * (N - 1)]).double().repeat(T, B, 1)
    plan, result = prepare(model, [x, random(N, N)])
    move_current(plan, 0.0, -2e-16)
    found = verify(plan, result)
    assert (found.replayed, found.gradients) == (0, 2)


def test_a_flip_outside_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument of a spike is an ulp above the threshold, and a plan rounds it down."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v, out = torch.zeros(B, N).double(), []
        for z in spike(x * 1.0 - 1.0):
            v = 0.9 * v + z @ w
            out.append(v)
        return torch.stack(out)

    x = random(T, B, N)
    x[4, 1, 2] = 1 + 2**-52
    plan, result = prepare(model, [x, random(N, N)])
    run = Values.run

    def run_rounded(values: Values, call: Call) -> None:
        run(values, call)
        if call.name == "mul":
            values.tensors[call.outputs[0]] = values.get(call.outputs[0]) * (1 - 2**-52)

    monkeypatch.setattr(Values, "run", run_rounded)
    found = verify(plan, result)
    assert found.replayed and found.gradients == 2


def izhikevich(v: Tensor, b: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step of 1 ms, in which differences grow sixfold."""
    v, b = v + 0.04 * v**2 + 5 * v + 0.14 - b + current, b + 0.02 * (0.2 * v - b)
    z = spike(v - 0.3)
    return (1 - z) * v - 0.5 * z, b + 0.08 * z, z


def grow(x: Tensor, w: Tensor, other: Tensor) -> Tensor:
    u = a = v = b = x.new_zeros(x.shape[1], len(w))
    out = []
    for x_t in x:
        u, a, z = izhikevich(u, a, F.linear(x_t, w))
        v, b, z = izhikevich(v, b, F.linear(z, other))
        out.append(z)
    return torch.stack(out)


def test_a_run_whose_differences_grow():
    """The original's own spikes flip when its numbers move by an ulp."""
    given = [(random(60, 16, 80) > 0.8), random(256, 80, scale=0.06, seed=1),
             random(256, 256, scale=0.04, seed=2)]
    with torch.no_grad():
        plan, result = prepare(grow, [one.float() for one in given])
        move_current(plan, 1e-6)
        found = verify(plan, result)
    assert found.replayed and "rounding adds up" in str(found)


@pytest.mark.parametrize("mask", [None, torch.float64, torch.bool])
def test_a_flip_of_a_comparison(mask: torch.dtype | None) -> None:
    """v at the threshold, which the step compares: what a call reads may be bools."""
    dead = torch.arange(N) == 1

    def model(x: Tensor, w: Tensor) -> Tensor:
        v = z = x.new_zeros(B, N)
        out = []
        for x_t in x:
            v = v - 0.1 * torch.sign(v) + x_t + z @ w
            z = (v > 0.5).double()
            if mask is not None:
                z = z.masked_fill(dead, 0) if mask == torch.bool else z * ~dead
            v = v * (1 - z)
            out.append(v)
        return torch.stack(out)

    plan, result = prepare(model, [(random(9 * T, B, N) * 3).round() / 10,
                                   (random(N, N) * 2).round() / 10])
    found = verify(plan, result)
    assert found.replayed and "rounding adds up" in str(found)


class CountSpikes(torch.autograd.Function):
    """Several spikes of a neuron in a step, up to 65,536."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.floor().clamp(0, 2**16)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def test_a_small_number_beside_large_ones_flips() -> None:
    """A rounding error of the largest would move it by several spikes."""
    def model(x: Tensor) -> Tensor:
        v, out = torch.zeros(B, N), []
        for x_t in x:
            v = 0.5 * v + x_t
            out.append(CountSpikes.apply(v))
        return torch.stack(out)

    x = torch.zeros(T, B, N)
    x[..., 0], x[4, 1, 2] = 3e7, 14533.001
    plan, _ = prepare(model, [x])
    loop, _ = plan.loops[0]
    z = next(q for q, one in enumerate(loop.body) if isinstance(one.call.function, Apply))
    expected = Expected(plan)

    def compare(number: float) -> None:
        got = torch.stack([expected.numbers[made[z][0]] for made in loop.made])
        assert got[4, 1, 2] == 14533
        got[4, 1, 2] = number
        expected.compare(loop, (z, 0), got, 0, lambda t: [expected.makers[loop.made[t][z][0]]])

    compare(14532)
    assert expected.flips == 1
    with pytest.raises(VerificationError, match=r"expected 14533.0, got 14500.0"):
        compare(14500)


def test_numbers_that_are_all_integers_are_perturbed() -> None:
    tensor = torch.tensor([0.5, 3.0, 2.0**23 - 1, 2.0**23, 2.0**24])
    found = perturb(tensor, 8.0, 1, torch.Generator())
    assert (found != tensor).tolist() == [True, False, False, True, True]


def mix_dtypes(x: Tensor, w_in: Tensor, beta: Tensor) -> Tensor:
    """Adds numbers in float64 to a product in float32."""
    v = z = torch.zeros(B, N, dtype=beta.dtype)
    out = []
    for current in (F.linear(x, w_in) + beta).unbind(0):
        v = 0.9 * v + current - z.detach()
        z = spike(v - 1.0)
        out.append(z)
    return torch.stack(out)


@pytest.mark.parametrize("share", (0, 1e-9))
def test_results_in_float64_of_products_in_float32(
        share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call starts from recorded numbers: the rounding of a product is none of a later call."""
    plan, result = prepare(mix_dtypes, [torch.rand(T, B, 4), torch.randn(N, 4),
                                        torch.rand(N).double()])
    run = Values.run

    def run_wrong(values: Values, call: Call) -> None:
        run(values, call)
        one = values.get(call.outputs[0])
        if call.name == "linear":
            values.tensors[call.outputs[0]] = one * (1 + 2e-7)
        if "add" in call.name:
            values.tensors[call.outputs[0]] = one * (1 + share)

    monkeypatch.setattr(Values, "run", run_wrong)
    if share:
        with pytest.raises(VerificationError, match="outside of loops"):
            verify(plan, result)
    else:
        assert verify(plan, result).flips == 0


def test_a_recurrence_of_two_dtypes_names_a_remedy() -> None:
    def model(x: Tensor, beta: Tensor) -> Tensor:
        v = z = torch.zeros(B, N)
        out = []
        for x_t in x.unbind(0):
            v = beta * v + x_t + F.linear(z, w)
            z = spike(v - 1.0).float()
            out.append(z)
        return torch.stack(out)

    w = torch.rand(N, N)

    with pytest.raises(Refused, match=r"got torch.float32; .*float\(\) or .*double\(\)"):
        fuse(model, (torch.rand(T, B, N), torch.rand(N).double()))


@pytest.mark.parametrize(("error", "is_rounding"), [(2e-8, True), (2e-6, False)])
def test_gradients_are_rounded_between_calls(error: float, is_rounding: bool) -> None:
    """Two large gradients, each of one call, of which the difference is 0."""
    def model(x: Tensor) -> Tensor:
        return x * 2**27 - x * 2**27 + x

    x = torch.ones(8, dtype=torch.float64, requires_grad=True)
    want, recording = record(model, (x,), {}, Origins(model, (x,), {}), keep_numbers=True)
    start = next(iter(recording.leaves))

    def run_perturbed(random: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        values = {start: x}
        for call in recording.calls:
            run_perturbed_call(call, values, recording.numbers, random)
        return [values[recording.result.value]], [x]

    given = [x * (1 + error)], [want], [x], [x], "x", run_perturbed
    if is_rounding:
        compare_gradients(*given)
        return
    with pytest.raises(VerificationError, match="a gradient differs by"):
        compare_gradients(*given)
