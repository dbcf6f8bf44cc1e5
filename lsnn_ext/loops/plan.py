"""Plan: runs a recording in another order, whole sequences at once where this is possible.

The body of a loop is cut into strongly connected components. A component is a recurrence: it runs
in the kernels, or as a loop over its own calls. What is in none runs for all iterations at once.
"""
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._core.bits import detach_bits
from .._core.torch_internals import find_storage
from ..codegen.program import find_reachable
from . import costs, ir
from .component import Component
from .functions import PRODUCTS, is_unversioned
from .integers import is_in_range
from .ir import Before, Call, Later, Leaf, Loop, Now, Part, Recording, Ref, Refused, find_initial
from .neuron_sums import spread_sums
from .planner import Planner, find_dead, is_live
from .reroll import find_loops
from .stages import Stage
from .unread import run_steps
from .values import Frame, Layout, Values, match_strides

LEAST_GAIN = 1.1  # how much faster a plan must be by estimate


class OtherBranchError(Exception):
    """Python would have read another bool than in the recorded call."""


class Plan:
    """A recording that runs on new numbers of its leaves."""

    def __init__(self, recording: Recording, exact: bool = False,
                 parts: Sequence[Part] | None = None) -> None:
        """parts: calls and loops of the recording. Default: as find_loops."""
        self.recording = recording
        self.replays = 0
        self.is_random = any(call.is_random for call in recording.calls)
        self.parts: list[Call | tuple[Loop, list[Stage]]] = []
        parts = find_loops(recording) if parts is None else parts
        self.refused: list[tuple[Loop, Refused]] = []  # loops that stay as they are, and why
        # Views among the results that share memory, and the first of these.
        self.views = {one: first for one, (first, is_detached) in recording.shared.items()
                      if not is_detached}
        self.layout = Layout({}, {}, exact, bool(self.views), recording.strides)
        places = self.layout.places
        loops = unbound = 0
        self.written = {value: leaf for leaf, value in recording.written.items()}
        self.unversioned = _find_unversioned(recording)
        self.live, read = find_live(recording, parts)
        for part in parts:
            if isinstance(part, Call):
                self.parts.append(part)
                if (part.name == "unbind" and len(part.outputs) > 1
                        and (part.mode.grad or not recording.kinds[part.inputs[0]].requires_grad)
                        and recording.find_results().isdisjoint(part.outputs)):
                    unbound -= 1
                    places.update((value, (unbound, t, (0, 0)))
                                  for t, value in enumerate(part.outputs))
                continue
            try:
                stages = Planner(part, recording, read, self.live, exact).stages()
            except Refused as refused:  # calls that must keep their order
                self.refused.append((part, refused))
                self.parts += [part.expand(t, q) for t in range(part.iterations)
                               for q in range(len(part.body))]
                continue
            self.parts.append((part, stages))
            places.update((value, (loops, t, (q, k)))
                               for value, (t, q, k) in part.places().items() if value in read)
            loops += 1
        self.detached = {one: other for one, (other, is_detached) in recording.shared.items()
                         if is_detached and other not in recording.leaves}
        if any(one in self.written or not is_detached and (value in places or one in places)
               for value, (one, is_detached) in recording.shared.items()):
            raise Refused("result: expected tensors with memory of their own, got some that share "
                          "it, as a view in a loop or of what is written to does; clone them")
        # integers before loops; a replay with others than in their range does not count
        self.bounded = {value for stage in self.stages if isinstance(stage.run, Component)
                        for value in stage.run.bounded}
        self.freed = self._find_freed()

    def _find_freed(self) -> list[list[Any]]:
        """Returns for each part what no later one reads, see Values.free."""
        def key(value: int) -> Any:
            frame, _, place = self.layout.places.get(value, (None, 0, 0))
            return value if frame is None else (frame, place)

        last = {key(value): k for k, part in enumerate(self.parts) for value in (
            part.inputs if isinstance(part, Call) else
            [one for call in part[0].body for slot in call.slots for one in find_initial(slot)])}
        results = set(map(key, self.recording.find_results() | self.bounded))
        freed: list[list[Any]] = [[] for _ in self.parts]
        for one, k in last.items():
            if one not in results:
                freed[k].append(one)
        return freed

    @property
    def loops(self) -> list[tuple[Loop, list[Stage]]]:
        return [part for part in self.parts if not isinstance(part, Call)]

    @property
    def stages(self) -> list[Stage]:
        return [stage for _, stages in self.loops for stage in stages]

    @property
    def has_kernel(self) -> bool:
        return any(stage.kind == "fused" for stage in self.stages)

    @property
    def reason(self) -> str:
        """Why the plan is not faster than the original; empty: it is."""
        if self.refused and not self.has_kernel:
            return f"no recurrence that runs in a kernel; {self.refused[0][1]}"
        if not self.loops:
            script = next((call for call in self.recording.calls
                           if isinstance(call.function, torch.jit.ScriptFunction)), None)
            why = ("if the loop is around the model: lsnn_ext.fuse(lambda x: run(model, x), x)"
                   if script is None else
                   f"{script.line}: a loop inside of torch.jit.script is one call")
            return f"no loop: expected calls of torch that repeat step by step; {why}"
        kept = [(costs.estimate_stage(loop, stage, self.recording), stage)
                for loop, stages in self.loops for stage in stages if stage.kind == "loop"]
        _, slowest = max(kept, key=lambda each: each[0], default=(0, None))
        why = "" if slowest is None else f"; {slowest.line}: {slowest.reason}"
        if not self.has_kernel:
            why = why or "; no iteration of a loop depends on the one before"
            return f"no recurrence that runs in a kernel{why}"
        original = sum(costs.estimate_call(call, self.recording.kinds)
                       for call in self.recording.calls)
        gain = original / self.estimate()
        return "" if gain > LEAST_GAIN else (
            f"expected at most {1 / LEAST_GAIN:.0%} of the time of the original, got an estimate "
            f"of {1 / gain:.0%}: too few steps or numbers, large products of rates, or too much "
            f"that stays as it is{why}")

    def estimate(self) -> float:
        """Estimates the time of a run, as costs.py."""
        kinds = self.recording.kinds
        calls = (costs.REPLAYED
                 + costs.estimate_call(part, kinds, 1, costs.skips_zeros(part, self.recording))
                 + costs.estimate_copies(part, kinds) for part in self.parts
                 if isinstance(part, Call) and is_live(part, self.live))
        returned = len(self.recording.find_results() & self.layout.places.keys())
        return costs.GUARD + sum(calls) + costs.RETURNED * returned + sum(
            costs.estimate_stage(loop, stage, self.recording)
            for loop, stages in self.loops for stage in stages)

    def __call__(self, leaves: dict[int, Tensor], attributes: dict[Any, Any] | None = None,
                 ) -> tuple[Any, list[Any], dict[int, Tensor]]:
        """Runs on the tensors of Recording.leaves, and other values of Recording.attributes.

        Returns:
            the result, the attributes in the order of Recording.changed, and by leaf the values
            of what is written to.
        """
        made, values = self.run(leaves, False, attributes)
        values.frames.clear()  # they have the values, which would stay alive
        return made

    def run(self, leaves: dict[int, Tensor], keep_values: bool = False,
            attributes: dict[Any, Any] | None = None,
            ) -> tuple[tuple[Any, list[Any], dict[int, Tensor]], Values]:
        """Returns the results of a call, and the values.

        keep_values: also of those that nothing reads any more.
        """
        values = Values(leaves, self.layout)
        loops = itertools.count()
        for part, freed in zip(self.parts, self.freed, strict=True):
            if isinstance(part, Call):
                if is_live(part, self.live):
                    values.run(part)
            else:
                loop, stages = part
                values.frames[next(loops)] = frame = Frame(loop.iterations, values)
                frame.inputs = {} if keep_values else None
                for stage in stages:
                    stage.run(frame)
                    for place in () if keep_values else stage.freed:
                        frame.free(place)
            for one in () if keep_values else freed:
                values.free(one)

        if not keep_values and not (
                all(bool(values.get(value)) == read
                    for value, read in self.recording.checked.items())
                and all(is_in_range(values.get(value)) for value in self.bounded)):
            raise OtherBranchError
        own: dict[int, Tensor] = {}
        taken: dict[int, int] = {}  # by storage, the first result in it
        for one, first in self.views.items():
            if first not in leaves and (
                    taken.setdefault(find_storage(values.get(one)), first) != first):
                raise Refused("result: expected tensors that share memory with each other only")
        recording = self.recording

        def result(one: Any) -> Any:
            if isinstance(one, Later):
                return numbers[one.step]
            if isinstance(one, ir.Container):
                return ir.list_containers(made)[one.number]
            if not isinstance(one, Ref):
                return one
            if one.value in leaves:
                return leaves[one.value]
            if one.value in self.written and not keep_values:  # before the caller writes it
                return leaves[self.written[one.value]]
            value = self.detached.get(one.value, one.value)
            if value not in own:
                tensor = values.get(value)
                # a view of a sequence keeps it alive, and cannot be written to in place; one of an
                # argument stays one
                first = self.views.get(value, value)
                is_taken = taken.setdefault(find_storage(tensor), first) != first
                is_taken |= values.is_shared(value, tensor)
                if is_taken and not values.is_part_of_leaf(tensor):
                    tensor = tensor.clone()
                # a sequence requires a gradient where one of its iterations does
                has_grad = recording.kinds[value].requires_grad
                if tensor.requires_grad and not has_grad:
                    tensor = tensor.detach()
                if has_grad and torch.is_grad_enabled() and not (
                        tensor.requires_grad):  # such as a part that nothing has written
                    raise Refused("results: expected requires_grad=True, got False")
                own[value] = match_strides(tensor, recording.strides.get(value))
            if one.value not in own:
                own[one.value] = own[value].detach()
            return own[one.value]

        def argument(one: Any, is_array: bool) -> Any:
            if isinstance(one, Leaf):
                return (attributes or recording.attributes)[one.path]
            return result(one) if is_array or not isinstance(one, Ref) else values.get(one.value)

        numbers = run_steps(recording.steps, argument)
        made = pytree.tree_map(result, recording.result)
        changed = [pytree.tree_map(result, tree) for _, tree in recording.changed]
        written = {leaf: values.get(value) for leaf, value in recording.written.items()}
        for packed in values.packed:
            if (spikes := packed()) is not None:
                detach_bits(spikes)
        return (made, changed, written), values


def make_plan(recording: Recording, exact: bool) -> Plan:
    """Returns the plan of the longest loops, or of loops inside if faster. Raises Refused."""
    plan = Plan(recording, exact)
    while (faster := _find_faster(plan, exact)) is not None:
        plan.recording.release()
        plan = faster
    return plan


def _find_faster(plan: Plan, exact: bool) -> Plan | None:
    """Returns the fastest plan of other loops, if it is faster."""
    kinds, recording = {stage.kind for stage in plan.stages}, plan.recording
    if "fused" in kinds and "loop" not in kinds:
        return None
    found = [plan]
    for change in (None, _separate, spread_sums):
        other = replace(recording, calls=[*recording.calls], kinds={**recording.kinds},
                        numbers={**recording.numbers}, tensors={**recording.tensors},
                        generators=[*recording.generators])
        if change is not None and not change(other, plan.loops):
            continue
        parts = find_loops(other, prefers_inner=change is None)
        if change is spread_sums or len(parts) != len(plan.parts):
            found.append(Plan(other, exact, parts))
    best = min(found, key=Plan.estimate)
    return None if best is plan else best


def _separate(recording: Recording, loops: Sequence[tuple[Loop, list[Stage]]]) -> bool:
    """Puts recurrences of several equal steps in each iteration, as of an integration in small
    steps, behind all that they read, and before the rest. These steps may be a loop then. Returns
    whether there are some."""
    calls = [*recording.calls]
    at = {value: i for i, call in enumerate(calls) for value in call.outputs}
    for loop, stages in loops:
        body, p = loop.body, len(loop.body)
        for stage in stages:
            products = [(body[q].call.function, [one for one in body[q].slots if isinstance(
                one, ir.Fixed)]) for q in stage.positions if body[q].call.name in PRODUCTS]
            if stage.kind == "loop" and any(products.count(one) > 1 for one in products):
                break  # a product of one matrix, again and again
        else:
            continue
        read = [[slot.position for slot in one.slots if isinstance(slot, Now | Before)]
                for one in body]
        # draws keep their order: one that reads the recurrence is the only one of an iteration
        drawn = [q for q, one in enumerate(body) if one.call.is_random and find_reachable(
            [q], read.__getitem__).isdisjoint(stage.positions)]
        reached = find_reachable([*stage.positions, *drawn], read.__getitem__)
        parts = [1 if q in stage.positions else 0 if q in reached else 2 for q in range(p)]
        first = next(at[made[0]] - q for q, made in enumerate(loop.made[0]) if made)
        end = first + p * loop.iterations
        recording.calls[first:end] = [calls[i] for part in range(3) for i in range(first, end)
                                      if parts[(i - first) % p] == part]
    return recording.calls != calls


def find_live(recording: Recording, parts: Sequence[Part]) -> tuple[set[int], set[int]]:
    """Returns the values that are read, and those that are read outside of the iteration or loop
    that makes them. A call of a loop runs in all iterations or in none."""
    read = recording.find_results()
    inside: set[int] = set()  # of loops
    for part in reversed(parts):
        if isinstance(part, Call):
            if is_live(part, read):
                read.update(part.inputs)
            continue
        left = list(set(range(len(part.body))) - find_dead(part, read))
        done: set[int] = set()
        while left:
            q = left.pop()
            if q in done:
                continue
            done.add(q)
            inside.update(value for made in part.made for value in made[q])
            for slot in part.body[q].slots:
                read.update(find_initial(slot))
                if isinstance(slot, Now | Before):
                    left.append(slot.position)
    return read | inside, read


def _find_unversioned(recording: Recording) -> set[int]:
    """Returns the leaves that calls write to without a new version, such as running statistics,
    which an earlier call may have saved for its backward pass."""
    owners = {leaf: leaf for leaf in recording.written}
    found = set(owners)
    for call in recording.calls:
        for before, after in call.written:
            if before in owners:
                owners[after] = owners[before]
                if not is_unversioned(call):
                    found.discard(owners[before])
    return found
