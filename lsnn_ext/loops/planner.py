"""Planner: cuts the body of a loop into stages, each of which runs for all iterations."""
import itertools
from collections.abc import Sequence
from functools import partial
from math import inf

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import stages
from .component import Component
from .costs import estimate_recurrence, estimate_stage
from .functions import PRODUCTS, Apply, is_elementwise, is_pointwise
from .ir import Before, Call, Fixed, Loop, Now, Numbers, Recording, Refused, Varying
from .reader import find_invariants
from .recurrence import Recurrence
from .stages import Batched, Stage
from .values import Place

INDEXING = (Tensor.__getitem__, Tensor.select, torch.select)


class Planner:
    """Plans the stages of a loop. Raises Refused where calls must keep their order."""

    def __init__(self, loop: Loop, recording: Recording, read: set[int], live: set[int],
                 exact: bool) -> None:
        """read: values that are read outside of the loop; live: that anything reads."""
        self.loop, self.recording, self.exact = loop, recording, exact
        places = [(t, (q, k)) for value, (t, q, k) in loop.places().items() if value in read]
        self.read = {place for _, place in places}  # after the loop
        # those of which the last iteration only is read
        self.last = self.read - {place for t, place in places if t < loop.iterations - 1}
        self.dead = find_dead(loop, live)
        self.readers: dict[Place, set[int]] = {}
        for q in range(len(loop.body)):
            for place in () if q in self.dead else self._places_read(q):
                self.readers.setdefault(place, set()).add(q)
        self.final = self._find_final()
        self.invariant = set(find_invariants(loop)) - self.dead

    def stages(self) -> list[Stage]:
        """Returns the stages in the order in which they run."""
        body = self.loop.body
        found = [Stage("invariant", (q,), partial(stages.run_once, q, body[q], True))
                 for q in sorted(self.invariant)]
        drawn = [q for q, one in enumerate(body) if one.call.is_random and not any(
            isinstance(slot, Before | Varying) or (isinstance(slot, Now)
                                                   and slot.position not in self.invariant)
            for slot in one.slots)]
        others = [q for q, one in enumerate(body) if one.call.is_random and q not in drawn]
        if len(others) > 1 or (others and drawn):
            raise Refused("a random draw whose arguments the loop computes and another draw stay "
                          "in their order", body[others[0]].call.line)
        if drawn:
            places = {*self.loop.list_places(drawn)}
            found.append(Stage("drawn", tuple(drawn), partial(
                stages.run_in_order, self.loop, drawn, places, set())))
        before = self.invariant | set(drawn) | self.dead
        components = self._components(before)
        joined = self._join(components, before)
        planned = self._plan(joined, before)
        whole = [{*one} for one in joined if one not in components]
        if any(not _is_uniform(stage) and any(one.issubset(stage.positions) for one in whole)
               for stage in planned):
            planned = self._plan(components, before)
        found += planned
        made = {place: k for k, stage in enumerate(found)
                for place in self.loop.list_places(stage.positions)}
        last = {place: k for k, stage in enumerate(found) for q in stage.positions
                for place in self._places_read(q)}
        last = {place: k for place, k in (made | last).items() if place not in self.read}
        return [stage._replace(freed=tuple(place for place in last if last[place] == k))
                for k, stage in enumerate(found)]

    def _plan(self, components: Sequence[tuple[int, ...]], without: set[int]) -> list[Stage]:
        absorbed = self._absorb([one for one in components if self._is_recurrent(one)], without)
        taken = {q for extra in absorbed.values() for q in extra}
        found: list[Stage] = []
        for component in components:
            if self._is_recurrent(component):
                found += self._recurrence(component, absorbed[component])
            elif component[0] not in taken:
                found.append(self._single(component[0]))
        return found

    # -------------------------------------------------------------------------- structure
    def _find_final(self) -> set[int]:
        """Returns the calls of which only the last iteration is read."""
        found: set[int] = set()
        for q, one in reversed([*enumerate(self.loop.body)]):
            if q in self.dead or one.call.is_random or any(
                    isinstance(slot, Before) for slot in one.slots):
                continue
            places = {*self.loop.list_places([q])}
            if places & self.read <= self.last and all(
                    self.readers.get(place, set()) <= found for place in places):
                found.add(q)
        return found

    def _places_read(self, q: int) -> list[Place]:
        return [slot[:2] for slot in self.loop.body[q].slots if isinstance(slot, Now | Before)]

    def _needed(self, q: int, without: set[int]) -> set[int]:
        return {slot.position for slot in self.loop.body[q].slots
                if isinstance(slot, Now | Before) and slot.position not in without}

    def _join(self, found: list[tuple[int, ...]], without: set[int]) -> list[tuple[int, ...]]:
        """Joins components of which one reads the other neuron by neuron, as a membrane reads its
        synaptic current, where a kernel for both is faster."""
        edges: list[tuple[int, int]] = []
        for one, other in itertools.combinations(filter(self._is_recurrent, found), 2):
            edge = one[0], other[0]
            joined = self._components(without, [*edges, edge])
            whole = next(each for each in joined if edge[0] in each)
            parts = [each for each in found if each[0] in whole]
            is_read = len(parts) > 2 or any(self._needed(q, without) & {*one} for q in other)
            recurrent = [each for each in parts if self._is_recurrent(each)]
            if len(parts) > 1 and is_read and all(
                    each in recurrent or is_elementwise(self.loop.body[each[0]].call)
                    for each in parts) and (
                    self._estimate(whole) < sum(map(self._estimate, recurrent))):
                found = joined
                edges.append(edge)
        return found

    def _estimate(self, component: tuple[int, ...]) -> float:
        """Returns the time of a component in a kernel; infinity: it cannot be fused."""
        try:
            found = Recurrence(self.loop, component, self._outputs(component)[0], self.recording)
        except Refused:
            return inf
        return estimate_recurrence(self.loop, found, self.recording)

    def _components(self, without: set[int],
                    edges: Sequence[tuple[int, int]] = ()) -> list[tuple[int, ...]]:
        """Strongly connected components, each after those that it reads (Warshall): calls that
        reach the same calls. What a component reads reaches fewer. edges: pairs of calls that count
        as connected; with them are those on paths between them."""
        reached = {q: sum(1 << other for other in {q, *self._needed(q, without)})
                   for q in range(len(self.loop.body)) if q not in without}
        for one, other in edges:
            reached[one] |= 1 << other
            reached[other] |= 1 << one
        for k in reached:
            for q in reached:
                if reached[q] >> k & 1:
                    reached[q] |= reached[k]
        found: dict[int, list[int]] = {}
        for q, mask in reached.items():
            found.setdefault(mask, []).append(q)
        return [tuple(found[mask]) for mask in sorted(found, key=int.bit_count)]

    def _is_recurrent(self, component: tuple[int, ...]) -> bool:
        return len(component) > 1 or component[0] in self._needed(component[0], set())

    def _absorb(self, recurrent: Sequence[tuple[int, ...]],
                without: set[int]) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Elementwise calls that only follow a component and lead to an autograd.Function, which
        has no rule for whole sequences."""
        found = {}
        taken: set[int] = set()
        for component in recurrent:
            inside, extra = set(component), []
            for q, one in enumerate(self.loop.body):
                needed = self._needed(q, without)
                if (q not in inside and q not in taken and q not in without and needed
                        and needed <= inside and is_elementwise(one.call)
                        and not any(isinstance(slot, Varying | Before) for slot in one.slots)):
                    inside.add(q)
                    extra.append(q)
            wanted = {q for q in extra if isinstance(self.loop.body[q].call.function, Apply)}
            for q in reversed(extra):
                if q in wanted:
                    wanted |= self._needed(q, without) & set(extra)
            taken |= wanted
            found[component] = tuple(sorted(wanted))
        return found

    # ----------------------------------------------------------------------------- stages
    def _outputs(self, positions: Sequence[int]) -> tuple[set[Place], set[Place]]:
        """Returns the results that other calls read, and those of which only the last is read."""
        places = {*self.loop.list_places(positions)}
        inside = set(positions)
        outside = {place for place in places if self.readers.get(place, set()) - inside}
        found = (places & self.read) | outside
        last = self.last | {place for place in outside - self.read
                            if self.readers[place] - inside <= self.final}
        return found, {place for place in found & last
                       if self.readers.get(place, set()) - inside <= self.final}

    def _recurrence(self, component: tuple[int, ...], extra: tuple[int, ...]) -> list[Stage]:
        positions = tuple(sorted(component + extra))
        if (stage := self._written(component)) is not None:
            return [stage]
        read, last = self._outputs(positions)
        run = partial(stages.run_in_order, self.loop, component, read, last)
        line = self.loop.body[component[0]].call.line
        kept = Stage("loop", component, run, "", line)
        try:
            found = Recurrence(self.loop, positions, read, self.recording)
            fused = Stage("fused", positions, Component(found, last))
            estimate = partial(estimate_stage, self.loop, recording=self.recording)
            if found.retiming.groups > 1 and estimate(fused) >= estimate(kept):
                raise Refused("expected recurrent products of values of earlier iterations; with "
                              "one of the same iteration a kernel is slower than the calls")
            return [fused]
        except Refused as refused:
            if extra:  # what follows may be what cannot be fused
                return [*self._recurrence(component, ()), *map(self._single, extra)]
            return [kept._replace(reason=refused.reason, line=refused.line or line)]

    def _single(self, q: int) -> Stage:
        one, kinds = self.loop.body[q], self.recording.kinds
        if q in self.final:
            return Stage("last", (q,), partial(stages.run_once, q, one, False))
        if one.call.function in INDEXING and (run := stages.make_slices(
                q, one, self.invariant, kinds[one.call.inputs[0]].shape)) is not None:
            return Stage("sliced", (q,), run)
        if any(isinstance(slot, Numbers) for slot in one.slots) and stages.takes_numbers(
                one, [kinds[value] for value in one.call.inputs]):
            return Stage("batched", (q,), partial(stages.run_with_numbers, q, one))
        read, last = self._outputs((q,))
        in_order = partial(stages.run_in_order, self.loop, (q,), read, last)
        reason = ("a random draw" if one.call.is_random else
                  "exact=True" if self.exact and one.call.name in PRODUCTS else
                  "a constant that changes with each iteration" if any(
                      isinstance(slot, Numbers) for slot in one.slots) else "")
        if reason:
            return Stage("in order", (q,), in_order, reason)
        made = [kinds[value] for value in self.loop.made[0][q]]
        return Stage("batched", (q,), Batched(q, one, in_order, made, is_pointwise(one.call)))

    def _written(self, component: tuple[int, ...]) -> Stage | None:
        """out[t] = z, once or more in each iteration, of which only the last out is read."""
        read, last = self._outputs(component)
        if read != last or not read <= {(component[-1], 0)}:
            return None
        calls = [self.loop.body[q] for q in component]
        if any(one.call.function is not Tensor.__setitem__ for one in calls):
            return None
        given = [pytree.tree_unflatten(one.slots, one.call.spec)[0] for one in calls]
        (first, *_), *_ = given
        if not isinstance(first, Before) or first.lag != 1:
            return None
        writes, times = [], set()
        for q, one, before, (target, index, z) in zip(
                component, calls, (component[-1], *component), given, strict=False):
            at = stages.find_time_index(index, self.recording.kinds[first.initial[0]].shape)
            is_next = target[:2] == (before, 0) and isinstance(target, Before) == (target is first)
            is_made = isinstance(z, Now | Before) and z.position in component
            if at is None or type(at[1][0]) is not int or not is_next or is_made or not isinstance(
                    z, Fixed | Now | Before | Varying):
                return None
            writes.append((q, one, z, at[2]))
            times.add(at[:2])
        (dim, indices), *others = times
        if others or len({*indices}) < len(indices):  # of two writes the later one is read
            return None
        return Stage("written", component, partial(
            stages.write_all, writes, first, dim, indices))


def _is_uniform(stage: Stage) -> bool:
    """Whether a component runs in a kernel, and all results have gradients of the same inputs."""
    return stage.kind == "fused" and not stage.run.reached  # type: ignore[attr-defined]


def is_live(call: Call, live: set[int]) -> bool:
    """Whether a result of a call is read, or the call draws random numbers."""
    return call.is_random or any(value in live for value in call.outputs)


def find_dead(loop: Loop, live: set[int]) -> set[int]:
    """Returns the positions of calls that are not live in any iteration."""
    return {q for q, one in enumerate(loop.body) if not one.call.is_random and not any(
        value in live for made in loop.made for value in made[q])}
