"""verify: compares a plan with its recording.

Each check starts from recorded numbers, so that a difference is found where it arises:

1. the loops, written out again, are the recorded calls, of which find_loops moves some;
2. the recorded calls, each from recorded numbers, give the recorded results;
3. so do the calls outside of loops, and each stage of a loop, for all iterations; a kernel takes
   one step of each iteration, from the recorded states and spikes of the iteration before;
4. a component's gradients are those of its calls, at its numbers;
5. the whole plan gives the recorded results, gradients and random draws; or, as rounding adds up
   until spikes flip, the recorded calls, each from numbers of the plan, give the plan's.

A number that differs by more than rounding is a flip if the recorded calls give it, too, once their
inputs move by rounding, as at a threshold. Anything else raises.
"""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..codegen.plain import generator_states, set_generator_states
from ..codegen.program import find_reachable
from . import rounding
from .component import Component
from .component_check import check_component
from .expected import Expected, list_results
from .integers import BEFORE, is_in_range
from .ir import Call, Leaf, Loop, Ref, Refused
from .plan import Plan
from .planner import is_live
from .reroll import make_constant_key
from .rounding import VerificationError, find_differences
from .stages import Stage, run_in_order
from .values import Frame, Place, Values, run_call


@dataclass(frozen=True)
class Comparison:
    """The differences that verify found, all within rounding."""

    ulps: float  # largest difference of a step, in ulps of the largest number of the value
    values: int  # numbers of steps that were compared
    flips: int  # those that differ, by rounding at a threshold
    replayed: int  # numbers of the results that differ, because rounding adds up in the whole run
    gradient: float  # largest difference as a share of the largest magnitude
    gradients: int  # inputs and parameters whose gradients of the whole run were compared
    reason: str = ""  # why there are none
    hooked: tuple[str, ...] = ()  # inputs and parameters with hooks, whose gradients were not

    def __str__(self) -> str:
        flips = f"{self.flips} of {self.values:,} numbers flip at a threshold by rounding" if (
            self.flips) else "no spike flips"
        results = "results equal to rounding" if not self.replayed else (
            f"in the whole run rounding adds up: {self.replayed} numbers of the results differ, "
            f"and each follows from those before it")
        gradients = f"gradients of the whole run not compared: {self.reason}" if self.reason else (
            f"{self.gradients} gradients within {self.gradient:.1e} of their largest")
        if self.hooked:
            gradients += f"; of {', '.join(self.hooked)}, which have hooks, not compared"
        return (f"each step within {self.ulps:.1f} ulps, {flips}; {results}; {gradients}")


def verify(plan: Plan, result: Any) -> Comparison:
    """Compares a plan with its recording, and frees the recorded numbers.

    Args:
        plan: of a recording made with keep_numbers=True.
        result: what the recorded call returned, with its graph, which stays usable.

    Raises:
        VerificationError: a difference that is no rounding.
        Refused: integers that may not be exact.

    Example:
        >>> result, recording = record(model, (x,), {}, origins, keep_numbers=True)
        >>> print(verify(Plan(recording), result))
    """
    recording = plan.recording
    try:
        check_order(plan)
        with _generators(recording.generators):
            expected = Expected(plan)
            after = generator_states()
        if not all(is_in_range(expected.numbers[value]) for value in plan.bounded):
            raise Refused(f"expected integers before a loop from {BEFORE[0]} to {BEFORE[-1]}, got "
                          f"others")
        _check_calls(plan, expected)
        gradients = [_check_stage(expected, loop, stage) for loop, stages in expected.loops
                     for stage in stages]
        whole = _check_whole(plan, expected, result, after)
        return replace(whole, gradient=max([*gradients, whole.gradient]))
    finally:
        recording.release()


def check_order(plan: Plan) -> None:
    """Raises VerificationError unless the parts of a plan, written out, are the recorded calls."""
    calls = iter(plan.recording.calls)

    def are_equal(a: Any, b: Any) -> bool:
        if isinstance(a, Ref) or isinstance(b, Ref):
            return bool(a == b)
        return a is b or make_constant_key(a) == make_constant_key(b)

    def is_same(got: Call, want: Call) -> bool:
        return got is want or (
            got.function == want.function and got.spec is want.spec and got.mode == want.mode
            and len(got.leaves) == len(want.leaves) and all(map(are_equal, got.leaves, want.leaves))
            and pytree.tree_leaves(got.results) == pytree.tree_leaves(want.results)
            and got.written == want.written and got.is_random == want.is_random)

    def check(got: Call, step: int | None) -> None:
        want = next(calls, None)
        if want is None or not is_same(got, want):
            raise VerificationError("expected the recorded call, got another one, or other "
                                    "arguments", got.line, step)

    for part in plan.parts:
        if isinstance(part, Call):
            check(part, None)
            continue
        for t in range(part[0].iterations):
            for q in range(len(part[0].body)):
                check(part[0].expand(t, q), t)
    if (left := next(calls, None)) is not None:
        raise VerificationError("expected all recorded calls, got none here", left.line)


def _check_calls(plan: Plan, expected: Expected) -> None:
    """Compares calls outside of loops, of which stack reads whole sequences."""
    values = Values({value: one for value, one in expected.numbers.items()
                     if value not in expected.inside}, plan.layout)
    values.frames = {k: expected.frame(loop, ()) for k, (loop, _) in enumerate(expected.loops)}
    for part in plan.parts:
        if isinstance(part, Call) and not part.is_random and is_live(part, plan.live):
            values.run(part)
            if not expected.is_uninitialized(part) and not all(
                    rounding.is_close(values.get(value).detach(), expected.numbers[value])
                    for value in part.outputs):
                raise VerificationError("a call outside of loops gives another result", part.line)
            values.tensors.update((value, expected.numbers[value]) for value in part.outputs)


def _check_stage(expected: Expected, loop: Loop, stage: Stage) -> float:
    """Compares a stage without a state, or a kernel. Returns the difference of gradients."""
    if stage.kind in ("drawn", "loop") or any(loop.body[q].call.is_random for q in stage.positions):
        return 0.0  # the calls themselves, whose order is known to be right
    if isinstance(stage.run, Component):
        return check_component(expected, loop, stage.run)
    frame = expected.frame(loop, stage.positions)
    with torch.no_grad():
        stage.run(frame)
        for place, start, got in list_results(loop, frame, stage):
            expected.compare(loop, place, got, start, lambda t: [
                expected.makers[loop.made[t][q][0]] for q in stage.positions])
    return 0.0


def _check_whole(plan: Plan, expected: Expected, result: Any,
                 after: Sequence[Tensor]) -> Comparison:
    """Runs the plan from its leaves. Its gradient is that of the whole run."""
    recording = plan.recording
    leaves = {value: expected.numbers[value].detach().requires_grad_(
        recording.kinds[value].requires_grad) for value in recording.leaves}
    with _generators(recording.generators):
        (made, changed, written), values = plan.run(leaves, keep_values=True)
        if not all(map(torch.equal, after, generator_states())):
            raise VerificationError("other random draws, or another number of them", "results")
    try:
        return _compare_results(plan, expected, leaves, (made, changed, list(written.values())),
                                result, values)
    finally:
        values.frames.clear()  # they have the values, which would stay alive


def _compare_results(plan: Plan, expected: Expected, leaves: dict[int, Tensor],
                     made: tuple[Any, ...], result: Any, values: Values) -> Comparison:
    """Compares what a run of the plan has made, and its gradients, with the recorded call and its
    result; where these differ, with the recorded calls at the values of the run."""
    recording = plan.recording
    refs, spec = pytree.tree_flatten((recording.result, [tree for _, tree in recording.changed],
                                      list(map(Ref, recording.written.values()))))
    results = [(ref.value, one.detach()) for ref, one in zip(
        refs, spec.flatten_up_to(made), strict=True) if isinstance(ref, Ref)]

    def count_differences(numbers: Mapping[int, Tensor]) -> int:
        return sum(int(find_differences(one, want, expected.run.of(want)).sum())
                   for value, one in results for want in [numbers[value]])

    for value, one in results:
        rounding.check_kind(one, expected.numbers[value], "results")
    replayed = count_differences(expected.numbers)
    numbers = _follow(plan, expected, values) if replayed else expected.numbers
    if wrong := count_differences(numbers):
        raise VerificationError(f"{wrong} numbers differ", "results")
    found = Comparison(expected.ulps, expected.values, expected.flips, replayed, 0.0, 0)
    refs, spec = pytree.tree_flatten(recording.result)
    pairs = [(ref, one, other) for ref, one, other in zip(
        refs, spec.flatten_up_to(made[0]), spec.flatten_up_to(result), strict=True)
        if isinstance(ref, Ref) and other.grad_fn is not None]
    wanted = [value for value, leaf in leaves.items() if leaf.requires_grad
              and recording.tensors[value].requires_grad]  # it may have been detached in the call
    names = {value: _name(recording.leaves[value]) for value in wanted}
    # autograd would run them once more
    hooked = [value for value in wanted if recording.tensors[value]._backward_hooks]
    wanted = [value for value in wanted if value not in hooked]
    found = replace(found, hooked=tuple(names[value] for value in hooked if pairs))
    if not pairs:
        return replace(found, reason="no result has one")
    if not wanted:
        other = "other " * bool(hooked)
        return replace(found, reason=f"no {other}input or parameter requires one")

    given = [leaves[one] for one in wanted]

    def run_calls(random: torch.Generator | None) -> tuple[list[Tensor], list[Tensor]]:
        again = dict(leaves)
        with _generators(recording.generators):
            for call in recording.calls:
                rounding.run_perturbed_call(call, again, numbers, random)
        return [again[ref.value] for ref, *_ in pairs], given

    def compare(want: Sequence[Tensor], others: Sequence[Tensor]) -> float:
        return rounding.compare_gradients(
            [one for _, one, _ in pairs], want, given, others,
            [f"gradient of {names[one]}" for one in wanted], run_calls, tolerance=expected.run)

    if not replayed:
        with suppress(VerificationError):
            worst = compare([one for *_, one in pairs], [recording.tensors[one] for one in wanted])
            return replace(found, gradient=worst, gradients=len(wanted))
        numbers = _follow(plan, expected, values)  # of states that no result shows
    return replace(found, gradient=compare(*run_calls(None)), gradients=len(wanted))


def _list_numbers(loop: Loop, stages: Sequence[Stage],
                  frame: Frame) -> Iterator[tuple[Place, int, Tensor]]:
    """Yields what list_results does, and all that recurrences read; nothing of random draws."""
    assert frame.inputs is not None
    for stage in stages:
        if any(loop.body[q].call.is_random for q in stage.positions):
            continue
        if isinstance(stage.run, Component):
            for place, numbers in stage.run.trace(frame.inputs[stage.run]).items():
                yield place, 0, numbers
            continue
        made = frame
        if stage.kind == "loop":  # once more, with all that it makes
            made = copy(frame)
            made.last = {}
            with torch.no_grad():
                run_in_order(loop, stage.positions, {*loop.list_places(stage.positions)}, set(),
                             made)
        for place, start, numbers in list_results(loop, made, stage):
            yield place, start, numbers.detach()


def _follow(plan: Plan, expected: Expected, values: Values) -> Mapping[int, Tensor]:
    """Returns the numbers of a run of the plan, and of the recorded calls where it has none. Raises
    VerificationError unless each recorded call, from numbers of the run, gives those of the run.
    values: of the run."""
    recording = plan.recording
    run = {value: values.get(value).detach() for part in plan.parts
           if isinstance(part, Call) and not part.is_random and is_live(part, plan.live)
           for value in part.outputs}
    steps: dict[int, int] = {}
    for number, (loop, stages) in enumerate(expected.loops):
        for (q, k), start, got in _list_numbers(loop, stages, values.frames[number]):
            at = [made[q][k] for made in loop.made[start:]]
            run.update(zip(at, got, strict=True))
            steps.update(zip(at, range(start, loop.iterations), strict=True))
    order = {id(call): k for k, call in enumerate(recording.calls)}

    def find_calls(call: Call) -> list[Call]:
        """Returns the calls that make the results of one from numbers of the run."""
        def list_makers(k: int) -> list[int]:
            return [order[id(one)] for value in recording.calls[k].inputs if value not in run
                    and (one := expected.makers.get(value)) is not None and not one.is_random]

        return [recording.calls[k] for k in sorted(find_reachable([order[id(call)]], list_makers))]

    followed = copy(expected)
    followed.numbers = numbers = {value: expected.numbers[value] for value in recording.leaves}
    with torch.no_grad(), _generators(recording.generators):
        for call in recording.calls:
            for value, one in run_call(call, numbers):
                numbers[value] = one
                if value not in run or expected.is_uninitialized(call):
                    continue
                limit = expected.run.of(one)
                if find_differences(run[value], one, limit).any():
                    followed.check_flips(value, run[value], find_calls(call), limit, expected.run,
                                         steps.get(value))
                numbers[value] = run[value]
    return numbers


@contextmanager
def _generators(states: Sequence[Tensor]) -> Iterator[None]:
    """Sets the states of the generators of torch, and restores them."""
    with torch.random.fork_rng(range(len(states) - 1)):  # the first is that of the CPU
        set_generator_states(states)
        yield


def _name(leaf: Leaf) -> str:
    hidden = ("_modules", "_parameters", "_buffers")
    keys = [str(step[1] if isinstance(step, tuple) else step) for step in leaf.path]
    return ("input " if leaf.kind == "input" else "") + ".".join(
        key for key in keys if key not in hidden)
