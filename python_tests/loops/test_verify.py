"""verify finds plans that are wrong, names where, and counts what is rounding at a threshold."""
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext.loops.functions import Apply
from lsnn_ext.loops.ir import Before, Call, Fixed, Loop, Now, Numbers, Refused
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.planner import Planner
from lsnn_ext.loops.rounding import VerificationError, compare_gradients
from lsnn_ext.loops.verify import check_order, verify
from small_loops import line_of, prepare, random, run_cells, spike
from surrogates import Triangle

T, B, N, I = 9, 3, 5, 4


class Higher(Triangle):
    """Another gradient, equal spikes."""

    @staticmethod
    def backward(ctx, gradient):
        (v,) = ctx.saved_tensors
        return gradient * 0.31 * torch.relu(1 - v.abs())


def model(x, w_in, w, beta, other, start, before):
    """Leaky neurons with a readout; `other` and `before` stand ready to be read by mistake."""
    v, z, y = start, x.new_zeros(B, N), x.new_ones(B, N)
    out = []
    for x_t in x.unbind(0):
        v = beta * v + x_t @ w_in + z @ w - z.detach()
        z = spike(v - 1.0)
        y = 0.75 * y + z @ w
        out.append(y)
    return torch.stack(out), v, other.sum() + before.sum()


def arguments() -> list[Tensor]:
    beta = torch.full((N,), 0.9, dtype=torch.float64)
    other = beta.clone()
    other[3] += 1e-9  # neuron 3 only
    start = random(B, N)
    before = start.clone()
    before[2, 1] += 1e-9
    return [random(T, B, I), random(I, N), random(N, N), beta, other, start, before]


def prepare_model() -> tuple[Plan, Any]:
    return prepare(model, arguments())


def find_loop(plan: Plan) -> tuple[int, Loop, list[Any]]:
    """The place of the loop among the parts, the loop, and its stages."""
    (place, (loop, stages)), = [(i, part) for i, part in enumerate(plan.parts)
                                if not isinstance(part, Call)]
    return place, loop, stages


def find_calls(loop: Loop, name: str) -> list[int]:
    """The positions of the calls of this name."""
    return [q for q, one in enumerate(loop.body) if one.call.name == name]


def tamper(plan: Plan, change: Callable[[Loop], Loop], has_order: bool = True) -> None:
    """Changes the loop of a plan.

    Args:
        has_order: only what runs; the loop that check_order sees stays right.
    """
    place, loop, _ = find_loop(plan)
    changed = change(loop)
    stages = Planner(changed, plan.recording, set(plan.layout.places), plan.live, False).stages()
    plan.parts[place] = (loop if has_order else changed, stages)


def change_slots(loop: Loop, change: Callable[[Call, Any], Any]) -> Loop:
    """The loop with other slots; change returns what is in the place of one."""
    return loop._replace(body=tuple(
        one._replace(slots=tuple(change(one.call, slot) for slot in one.slots))
        for one in loop.body))


def leaf(plan: Plan, argument: int) -> int:
    """The value of an argument of the model."""
    return next(value for value, one in plan.recording.leaves.items() if one.path == (argument,))


def find_fault(run: Callable[..., Any], *args: Any, match: str | None = None) -> VerificationError:
    with pytest.raises(VerificationError, match=match) as error:
        run(*args)
    return error.value


def run_otherwise(plan: Plan, kind: str, change: Callable[[Any, Any], None]) -> None:
    """Changes the frame after the first stage of a kind; change gets the stage and the frame."""
    place, loop, stages = find_loop(plan)
    stage = next(one for one in stages if one.kind == kind)

    def run(frame):
        stage.run(frame)
        change(stage, frame)

    plan.parts[place] = (loop, [one._replace(run=run) if one is stage else one for one in stages])


NEURON = "v = beta * v + x_t"  # the lines of the model
READOUT = "y = 0.75 * y"


# ------------------------------------------------------------------------------ right plans
def test_right_plan():
    plan, result = prepare_model()
    assert [one.kind for one in plan.stages].count("fused") == 2
    found = verify(plan, result)
    assert found.flips == found.replayed == 0
    assert found.values >= 4 * T * B * N  # input currents, membranes, spikes, readout
    assert found.gradients == 7
    assert not found.reason
    assert found.gradient < 1e-12
    assert found.ulps < 4


def test_result_stays_usable_and_numbers_are_released():
    plan, result = prepare_model()
    kept = weakref.ref(plan.recording.numbers[plan.recording.calls[3].outputs[0]])
    assert kept() is not None
    verify(plan, result)
    result[0].sum().backward()
    del result
    gc.collect()
    assert not plan.recording.numbers
    assert not plan.recording.tensors
    assert kept() is None


def test_numbers_are_released_after_an_error():
    plan, result = prepare_model()
    tamper(plan, lambda loop: change_slots(loop, lambda _, slot: 0.8 if slot == 0.75 else slot))
    find_fault(verify, plan, result)
    assert not plan.recording.numbers


def in_place(x, w):
    """Writes to the membrane, a running sum, and a part of the output in each step."""
    v, z = torch.zeros(B, N).double(), torch.zeros(B, N).double()
    out, total = torch.zeros(T, B, N).double(), torch.zeros(B, N).double()
    for t in range(T):
        v.mul_(0.9).add_(x[t] + z @ w - z.detach())
        z = spike(v - 1.0)
        out[t] = z
        total += z
    return out, total


def test_written_values():
    plan, result = prepare(in_place, [random(T, B, N), random(N, N)])
    found = verify(plan, result)
    assert (found.flips, found.replayed, found.gradients) == (0, 0, 2)


def drawn(x, w):
    """Dropout in each step."""
    return run_cells((torch.nn.functional.dropout(x_t, 0.4) for x_t in x.unbind(0)), w, B)


def test_random_draws_are_repeated():
    plan, result = prepare(drawn, [random(T, B, N), random(N, N)])
    torch.manual_seed(7)  # whatever was drawn since
    state = torch.get_rng_state()
    found = verify(plan, result)
    assert (found.replayed, found.gradients) == (0, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_random_draws():
    plan, result = prepare(drawn, [random(T, B, N), random(N, N)])
    run_otherwise(plan, "drawn", lambda stage, frame: torch.rand(()))
    find_fault(verify, plan, result, match="random draws")


def test_without_gradients():
    with torch.no_grad():
        plan, result = prepare_model()
        found = verify(plan, result)
    assert found.gradients == 0
    assert found.reason == "no result has one"


def test_gradients_of_tensors_with_hooks_are_named():
    x, hooked = torch.rand(4), torch.rand(4, requires_grad=True)
    hooked.register_hook(lambda g: 2 * g)
    for given, n in (([x, hooked], 1), ([hooked], 0)):
        found = verify(*prepare(lambda *each: sum(each).sin(), given))
        assert found.gradients == n and f"of input {n}, which have hooks, not" in str(found)
        assert found.reason == ("" if n else "no other input or parameter requires one")


def projected(x, w, bias, w_rec):
    """Products by autocast, one of them with a bias, which torch.vmap computes in float32."""
    v, z = torch.zeros(B, N), torch.zeros(B, N)
    out = []
    for x_t in x.unbind(0):
        v = 0.9 * v + torch.nn.functional.linear(x_t, w, bias)
        z = spike(v - 1.0)
        out.append(torch.nn.functional.linear(z, w_rec))
    return torch.stack(out)


@pytest.mark.parametrize("has_grad", [False, True])
def test_autocast(has_grad):
    args = [random(*shape).float() for shape in ((T, B, I), (N, I), (N,), (N, N))]
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(has_grad):
        plan, result = prepare(projected, args)
        found = verify(plan, result)
    assert result.dtype == torch.bfloat16
    assert found.replayed == 0
    assert found.gradients == 4 * has_grad
    assert found.gradient < 0.02


# ------------------------------------------------------------------------------ wrong loops
def other_slot(loop: Loop) -> Loop:
    """The readout takes the spike's argument for the spike."""
    (z,), y = find_calls(loop, "Triangle.apply"), find_calls(loop, "matmul")[-1]
    (v,) = loop.body[z].slots
    body = list(loop.body)
    body[y] = body[y]._replace(slots=tuple(v if slot == Now(z, 0) else slot
                                           for slot in body[y].slots))
    return loop._replace(body=tuple(body))


def other_lag(loop: Loop) -> Loop:
    """The readout is that of two steps before."""
    y = find_calls(loop, "add")[-1]
    return change_slots(loop, lambda _, slot: slot._replace(
        lag=2, initial=slot.initial * 2) if isinstance(slot, Before) and slot.position == y
        else slot)


def other_constant(loop: Loop) -> Loop:
    return change_slots(loop, lambda _, slot: 0.75 + 1e-9 if slot == 0.75 else slot)


def at_step(step: int) -> Callable[[Loop], Loop]:
    """A constant that is another one in one step only."""
    numbers = Numbers(tuple(0.75 + 1e-9 * (t == step) for t in range(T)))
    return lambda loop: change_slots(loop, lambda _, slot: numbers if slot == 0.75 else slot)


LOOPS = [(other_slot, 0), (other_lag, 1), (other_constant, 0), (at_step(6), 6)]


@pytest.mark.parametrize(("change", "step"), LOOPS)
def test_another_loop_or_kernel(change, step):
    plan, _ = prepare_model()
    tamper(plan, change, has_order=False)
    error = find_fault(check_order, plan)
    assert (error.component, error.step) == (line_of(__file__, READOUT), step)
    plan, result = prepare_model()  # what runs differs from the loop of the plan
    tamper(plan, change)
    error = find_fault(verify, plan, result)
    assert (error.component, error.step, error.neuron) == (line_of(__file__, READOUT), step, (0, 0))


def test_another_call():
    plan, _ = prepare_model()
    plan.parts[-1] = plan.parts[-1].replace(function=torch.sub)
    find_fault(check_order, plan, match="expected the recorded call")
    del plan.parts[-1]
    find_fault(check_order, plan, match="all recorded calls")


def test_another_order_of_results():
    plan, result = prepare_model()
    outputs = next(part.inputs for part in plan.parts
                   if isinstance(part, Call) and part.function is torch.stack)
    one, other = outputs[2], outputs[5]
    places = plan.layout.places
    places[one], places[other] = places[other], places[one]
    error = find_fault(verify, plan, result, match="outside of loops")
    assert error.component == line_of(__file__, "return torch.stack(out), v, other")


# ---------------------------------------------------------------------------- wrong kernels
def other_coefficient(plan: Plan, _: Call, slot: Any) -> Any:
    return Fixed(leaf(plan, 4)) if slot == Fixed(leaf(plan, 3)) else slot


def other_initial_state(plan: Plan, _: Call, slot: Any) -> Any:
    is_start = isinstance(slot, Before) and slot.initial == (leaf(plan, 5),)
    return slot._replace(initial=(leaf(plan, 6),)) if is_start else slot


@pytest.mark.parametrize(("change", "neuron"), [(other_coefficient, (0, 3)),
                                                (other_initial_state, (2, 1))])
def test_another_number_of_one_neuron(change, neuron):
    plan, result = prepare_model()
    tamper(plan, lambda loop: change_slots(loop, functools.partial(change, plan)))
    error = find_fault(verify, plan, result)
    assert (error.component, error.step, error.neuron) == (line_of(__file__, NEURON), 0, neuron)


def test_another_surrogate_gradient():
    plan, result = prepare_model()
    tamper(plan, lambda loop: loop._replace(body=tuple(
        one._replace(call=one.call.replace(function=Apply(Higher)))
        if isinstance(one.call.function, Apply) else one for one in loop.body)))
    error = find_fault(verify, plan, result, match="a gradient differs")
    assert error.component == line_of(__file__, "z = spike(v - 1.0)")


def test_another_reset_gradient():
    """The numbers are equal."""
    plan, result = prepare_model()

    def change(loop: Loop) -> Loop:
        detached = find_calls(loop, "detach")
        (before,) = {slot for q in detached for slot in loop.body[q].slots}
        assert [before.position] == find_calls(loop, "Triangle.apply")
        return change_slots(loop, lambda _, slot: before if isinstance(slot, Now)
                            and slot.position in detached else slot)

    tamper(plan, change)
    find_fault(verify, plan, result, match="a gradient differs")


@pytest.mark.parametrize("step", [0, 5])
def test_another_batched_value(step):
    """A product of the inputs that is another one in one step and neuron."""
    plan, result = prepare_model()

    def move(stage, frame):
        q, = stage.positions
        change = torch.zeros_like(frame.whole((q, 0)))
        change[step, 1, 2] = 1e-9
        frame.sequences[q, 0] = frame.sequences[q, 0] + change

    run_otherwise(plan, "batched", move)
    error = find_fault(verify, plan, result)
    assert (error.step, error.neuron) == (step, (1, 2))


@pytest.mark.parametrize("wrong", ["", "a", "b", "all"])
def test_gradients_differ_by_what_rounding_amplifies(wrong: str) -> None:
    """Gradients of both leaves differ by 1e-6; a perturbation shows so much, but of a wrong one;
    all: perturbed runs are as wrong as the plan, since the recording is."""
    leaves = [torch.ones(8, dtype=torch.float64, requires_grad=True) for _ in "ab"]
    amplified = {name: 0.0 if wrong in (name, "all") else 1e-6 for name in "ab"}
    recorded = 0.0 if wrong == "all" else 1e-6

    def run(shares: dict[str, Any]) -> list[Tensor]:
        return [sum((1 + shares[name]) * leaf for name, leaf in zip("ab", leaves, strict=True))]

    def perturb(random: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        return run({name: recorded + share * torch.randn(8, generator=random, dtype=torch.float64)
                    for name, share in amplified.items()}), leaves

    got, want = run(dict.fromkeys("ab", 0.0)), run(dict.fromkeys("ab", 1e-6))
    if not wrong:
        compare_gradients(got, want, leaves, leaves, "ab", perturb)
        return
    with pytest.raises(VerificationError, match="a gradient differs by") as error:
        compare_gradients(got, want, leaves, leaves, "ab", perturb)
    assert error.value.component == ("a" if wrong == "all" else wrong)


def test_gradients_that_vanish_are_equal() -> None:
    leaf = torch.ones(3, requires_grad=True)
    outputs = [leaf * 1e-40], [leaf * 0.0]
    assert compare_gradients(*outputs, [leaf], [leaf], "a", run_perturbed=None) == 0.0


def test_a_gradient_that_is_no_number():
    x = torch.ones(3, requires_grad=True)
    got = torch.where(x > 0, x, (x - 2).sqrt())
    with pytest.raises(Refused, match="finite"):
        compare_gradients([got], [x * 1], [x], [x], ["x"], run_perturbed=None)
