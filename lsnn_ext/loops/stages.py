"""Planner: cuts the body of a loop into stages, each of which runs for all iterations."""
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import functional
from .component import fuse_component
from .frame import Frame, Place
from .functions import Apply
from .ir import Before, BodyCall, Call, Fixed, Loop, Now, Numbers, Recording, Varying
from .refused import Refused

CHUNK = 64  # iterations at once under no_grad
INDEXING = (Tensor.__getitem__, Tensor.select, torch.select)
PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "einsum", "__matmul__", "tensordot",
                      "__rmatmul__", "conv1d", "conv2d", "conv3d", "bilinear", "baddbmm", "inner"})
_OTHER_NAMES = {"__add__": "add", "__sub__": "sub", "__mul__": "mul", "__truediv__": "div",
                "float": "_to_copy", "double": "_to_copy", "to": "_to_copy", "type": "_to_copy"}


class Stage(NamedTuple):
    """Some calls of a loop's body, and how they run."""

    kind: str  # "invariant", "sliced", "drawn", "batched", "in order", "written", "fused", "loop"
    positions: tuple[int, ...]
    run: Callable[[Frame], None]
    reason: str = ""  # why a component is a loop
    line: str = ""


class Planner:
    """The stages of a loop. Raises Refused where calls must stay in their order."""

    def __init__(self, loop: Loop, recording: Recording, read: set[int], live: set[int],
                 exact: bool) -> None:
        """read: values that are read outside of the loop; live: that anything reads."""
        self.loop, self.recording, self.exact = loop, recording, exact
        self.last: set[Place] = set()  # read after the loop, the last iteration only
        self.read: set[Place] = set()  # read after the loop
        self.dead = find_dead(loop, live)
        for value, (t, q, k) in loop.places().items():
            if value in read:
                self.read.add((q, k))
                if t < loop.iterations - 1:
                    self.last.discard((q, k))
                elif all(made[q][k] not in read for made in loop.made[:-1]):
                    self.last.add((q, k))
        self.readers: dict[Place, set[int]] = {}
        for q, one in enumerate(loop.body):
            for slot in () if q in self.dead else one.slots:
                if isinstance(slot, Now | Before):
                    self.readers.setdefault(slot[:2], set()).add(q)

    def stages(self) -> list[Stage]:
        """In the order in which they run."""
        body = self.loop.body
        invariant = self._invariant()
        found = [Stage("invariant", (q,), _Invariant(q, body[q])) for q in sorted(invariant)]
        drawn = [q for q, one in enumerate(body) if one.call.is_random and not any(
            isinstance(slot, Before | Varying) or (isinstance(slot, Now)
                                                   and slot.position not in invariant)
            for slot in one.slots)]
        others = [q for q, one in enumerate(body) if one.call.is_random and q not in drawn]
        if len(others) > 1 or (others and drawn):
            raise Refused("random draws that depend on numbers of the loop stay in their order",
                          body[others[0]].call.line)
        if drawn:
            found.append(Stage("drawn", tuple(drawn), _InOrder(
                self.loop, drawn, {(q, k) for q in drawn
                                   for k in range(len(body[q].call.outputs))}, set())))
        before = invariant | set(drawn) | self.dead
        components = self._components(before)
        absorbed = self._absorb([one for one in components if self._is_recurrent(one)], before)
        taken = {q for extra in absorbed.values() for q in extra}
        for component in components:
            if self._is_recurrent(component):
                found += self._recurrence(component, absorbed[component])
            elif component[0] not in taken:
                found.append(self._single(component[0]))
        return found

    # -------------------------------------------------------------------------- structure
    def _invariant(self) -> set[int]:
        found: set[int] = set()
        for q, one in enumerate(self.loop.body):
            if q not in self.dead and not one.call.is_random and not any(
                    isinstance(slot, Before | Varying | Numbers) or (
                        isinstance(slot, Now) and slot.position not in found)
                    for slot in one.slots):
                found.add(q)
        return found

    def _needed(self, q: int, without: set[int]) -> set[int]:
        return {slot.position for slot in self.loop.body[q].slots
                if isinstance(slot, Now | Before) and slot.position not in without}

    def _components(self, without: set[int]) -> list[tuple[int, ...]]:
        """Strongly connected components, each after those that it reads (Tarjan)."""
        index: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        found: list[tuple[int, ...]] = []
        for root in range(len(self.loop.body)):
            if root in index or root in without:
                continue
            work: list[tuple[int, Iterator[int]]] = []

            def enter(q: int, work: list[tuple[int, Iterator[int]]] = work) -> None:
                index[q] = low[q] = len(index)
                stack.append(q)
                work.append((q, iter(sorted(self._needed(q, without)))))

            enter(root)
            while work:
                q, rest = work[-1]
                for other in rest:
                    if other not in index:
                        enter(other)
                        break
                    if other in stack:
                        low[q] = min(low[q], index[other])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[q])
                    if low[q] == index[q]:
                        at = stack.index(q)
                        found.append(tuple(sorted(stack[at:])))
                        del stack[at:]
        return found

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
        """What of these calls is read outside of them, and of which only the last."""
        places = {(q, k) for q in positions for k in range(len(self.loop.body[q].call.outputs))}
        inside = set(positions)
        outside = {place for place in places if self.readers.get(place, set()) - inside}
        found = (places & self.read) | outside
        return found, (found & self.last) - outside

    def _recurrence(self, component: tuple[int, ...], extra: tuple[int, ...]) -> list[Stage]:
        positions = tuple(sorted(component + extra))
        if (stage := self._written(component)) is not None:
            return [stage]
        read, last = self._outputs(positions)
        try:
            fused = fuse_component(self.loop, positions, read, self.recording.kinds)
            return [Stage("fused", positions, fused.run)]
        except Refused as refused:
            if extra:  # what follows may be what cannot be fused
                return [*self._recurrence(component, ()), *map(self._single, extra)]
            run = _InOrder(self.loop, component, read, last)
            line = refused.line or self.loop.body[component[0]].call.line
            return [Stage("loop", component, run, refused.reason, line)]

    def _single(self, q: int) -> Stage:
        one = self.loop.body[q]
        if one.call.function in INDEXING and (sliced := _Sliced.of(q, one)) is not None:
            return Stage("sliced", (q,), sliced)
        read, last = self._outputs((q,))
        in_order = _InOrder(self.loop, (q,), read, last)
        is_product = getattr(one.call.function, "__name__", "") in PRODUCTS
        if one.call.is_random or (self.exact and is_product) or any(
                isinstance(slot, Numbers) for slot in one.slots):
            return Stage("in order", (q,), in_order)
        return Stage("batched", (q,), _Batched(q, one, in_order, [
            self.recording.kinds[value].dtype for value in self.loop.made[0][q]]))

    def _written(self, component: tuple[int, ...]) -> Stage | None:
        """out[t] = z of which only the last out is read."""
        q = component[0]
        one = self.loop.body[q]
        read, last = self._outputs(component)
        if len(component) > 1 or one.call.function is not Tensor.__setitem__ or read != last:
            return None
        target, index, given = pytree.tree_unflatten(one.slots, one.call.spec)[0]
        where = _time_index(index)
        if where is not None and isinstance(target, Before):
            size = self.recording.kinds[target.initial[0]].shape[where[0]]
            where = where[0], [i % size for i in where[1]]
        if (where is None or not isinstance(target, Before) or target.lag != 1
                or len(set(where[1])) < len(where[1])
                or not isinstance(given, Fixed | Now | Before | Varying) or given[:2] == (q, 0)):
            return None
        return Stage("written", (q,), _Written(q, one, target, given, *where))


def is_live(call: Call, live: set[int]) -> bool:
    """Whether something reads what a call makes, or a generator counts it."""
    return call.is_random or any(value in live for value in call.outputs)


def find_dead(loop: Loop, live: set[int]) -> set[int]:
    """Positions of calls that are not live in any iteration."""
    return {q for q, one in enumerate(loop.body) if not one.call.is_random and not any(
        value in live for made in loop.made for value in made[q])}


def is_elementwise(call: Call) -> bool:
    """Whether a function is elementwise by its name, or an autograd.Function, which may be."""
    if isinstance(call.function, Apply):
        return True
    name = getattr(call.function, "__name__", "")
    name = _OTHER_NAMES.get(name, name.strip("_"))
    packet = getattr(torch.ops.aten, name, None)
    if name in ("_to_copy", "detach", "clone", "contiguous"):
        return True
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, overload).tags
                                      for overload in packet.overloads())


def _time_index(index: Any) -> tuple[int, list[int]] | None:
    """The dimension and the numbers of an index such as t, or (:, t)."""
    entries = index if isinstance(index, tuple) and not isinstance(index, Numbers) else (index,)
    at = [d for d, one in enumerate(entries) if isinstance(one, Numbers)]
    if len(at) != 1 or any(type(i) is not int for i in entries[at[0]].values):
        return None
    before, after = entries[: at[0]], entries[at[0] + 1 :]
    if any(one != slice(None) for one in before) or any(
            one != slice(None) and one is not Ellipsis for one in after):
        return None
    return at[0], list(entries[at[0]].values)


class _Invariant:
    """A call with the same arguments in each iteration, run once."""

    def __init__(self, q: int, one: BodyCall) -> None:
        self.q, self.one = q, one

    def __call__(self, frame: Frame) -> None:
        leaves = [slot if (fixed := frame.fixed(slot)) is None else fixed
                  for slot in self.one.slots]
        for k, tensor in enumerate(self.one.call.run(leaves)):
            frame.invariant[self.q, k] = tensor


class _Sliced:
    """x[t] of an x from before the loop."""

    def __init__(self, q: int, slot: Any, dim: int, indices: list[int]) -> None:
        self.q, self.slot, self.dim, self.indices = q, slot, dim, indices

    @classmethod
    def of(cls, q: int, one: BodyCall) -> "_Sliced | None":
        """None: an index of another kind."""
        args, kwargs = pytree.tree_unflatten(one.slots, one.call.spec)
        if kwargs or not isinstance(args[0], Fixed):
            return None
        if one.call.function is Tensor.__getitem__:
            found = _time_index(args[1])
        else:
            found = args[1], _numbers(args[2])
        return None if found is None or not found[1] else cls(q, args[0], *found)

    def __call__(self, frame: Frame) -> None:
        tensor = frame.fixed(self.slot)
        assert tensor is not None
        moved = tensor.movedim(self.dim, 0)
        indices = [i % len(moved) for i in self.indices]
        first, step = indices[0], indices[1] - indices[0]
        if step > 0 and indices == list(range(first, first + step * len(indices), step)):
            frame.sequences[self.q, 0] = moved[first : indices[-1] + 1 : step]
        else:
            frame.sequences[self.q, 0] = moved[indices]


def _numbers(slot: Any) -> list[int]:
    return list(slot.values) if isinstance(slot, Numbers) else []


class _Written:
    """out[t] = z in all iterations, as one write."""

    def __init__(self, q: int, one: BodyCall, target: Before, given: Any, dim: int,
                 indices: list[int]) -> None:
        self.q, self.one, self.target, self.given = q, one, target, given
        self.dim, self.indices = dim, indices

    def __call__(self, frame: Frame) -> None:
        out = frame.initial(self.target)[0].clone()
        values = frame.sequence(self.given)
        moved = out.movedim(self.dim, 0)
        missing = moved.dim() - values.dim()
        if missing > 0:
            values = values.reshape(len(values), *[1] * missing, *values.shape[1:])
        with torch.set_grad_enabled(self.one.call.mode.grad):
            moved[self.indices] = values.to(out.dtype)
        frame.last[self.q, 0] = out


class _InOrder:
    """Some calls, iteration by iteration."""

    def __init__(self, loop: Loop, positions: Sequence[int], read: set[Place],
                 last: set[Place]) -> None:
        self.loop, self.positions, self.read, self.last = loop, positions, read, last

    def __call__(self, frame: Frame) -> None:
        made: dict[Place, list[Tensor]] = {}
        inside = set(self.positions)
        calls = []
        for q in self.positions:
            one = self.loop.body[q]
            calls.append((q, one.call.run, [_argument(slot, frame, inside, made)
                                        for slot in one.slots]))
            made.update(((q, k), []) for k in range(len(one.call.outputs)))
        for t in range(self.loop.iterations):
            for q, run, arguments in calls:
                for k, tensor in enumerate(run([one(t) for one in arguments])):
                    made[q, k].append(tensor)
        for place in self.read:
            if place in self.last:
                frame.last[place] = made[place][-1]
            else:
                frame.sequences[place] = torch.stack(made[place])


def _argument(slot: Any, frame: Frame, inside: set[int],
              made: dict[Place, list[Tensor]]) -> Callable[[int], Any]:
    """The argument by iteration."""
    if isinstance(slot, Now | Before) and slot.position in inside:
        place = slot[:2]
        if isinstance(slot, Now):
            return lambda t: made[place][t]
        initial, lag = frame.initial(slot), slot.lag
        return lambda t: initial[t] if t < lag else made[place][t - lag]
    each = frame.arguments(slot)
    if each is not None:
        return each.__getitem__
    fixed = frame.fixed(slot)
    constant = slot if fixed is None else fixed
    return lambda t: constant


class _Batched:
    """One call for all iterations by torch.vmap, else in order."""

    def __init__(self, q: int, one: BodyCall, in_order: _InOrder,
                 dtypes: Sequence[torch.dtype]) -> None:
        self.q, self.one, self.in_order, self.dtypes = q, one, in_order, dtypes
        self.has_rule = True
        args, kwargs = pytree.tree_unflatten(one.slots, one.call.spec)
        self.is_linear = (one.call.function is torch.nn.functional.linear and len(args) > 1
                          and kwargs.keys() <= {"bias"})

    def __call__(self, frame: Frame) -> None:
        if not self.has_rule:
            self.in_order(frame)
            return
        slots = self.one.slots
        leaves = [slot if (fixed := frame.fixed(slot)) is None else fixed for slot in slots]
        varying = [i for i, slot in enumerate(slots) if isinstance(slot, Now | Before | Varying)
                   and frame.fixed(slot) is None]

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            inner = list(leaves)
            for i, tensor in zip(varying, given, strict=True):
                inner[i] = tensor
            return self.one.call.run(inner)

        if self.is_linear and varying == [0] and not any(self.one.call.mode.autocast):
            weight: Any = leaves[1]
            bias: Any = leaves[2] if len(leaves) > 2 else None
            with torch.set_grad_enabled(self.one.call.mode.grad):  # by events, if mostly zero
                frame.sequences[self.q, 0] = functional.linear(frame.sequence(slots[0]), weight, bias)
            return
        chunk = None if torch.is_grad_enabled() else CHUNK
        try:
            found = torch.vmap(run, randomness="error", chunk_size=chunk)(
                *(frame.sequence(slots[i]) for i in varying))
        except (RuntimeError, ValueError, NotImplementedError):  # such as Functions without a rule
            self.has_rule = False
            self.in_order(frame)
            return
        if [tensor.dtype for tensor in found] != self.dtypes:  # a bias under autocast: float32
            self.has_rule = False
            self.in_order(frame)
            return
        for k, tensor in enumerate(found):
            frame.sequences[self.q, k] = tensor
