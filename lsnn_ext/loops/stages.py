"""Stages: calls of a loop, and how they run for all iterations."""
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .ir import Before, BodyCall, Fixed, Kind, Loop, Now, Numbers, Varying
from .products import find_operands, list_entries
from .values import Frame, Place

CHUNK = 64  # iterations at once under no_grad


class Stage(NamedTuple):
    """Some calls of a loop's body, and how they run."""

    # "invariant", "sliced", "drawn", "batched", "last", "in order", "written", "fused", "loop"
    kind: str
    positions: tuple[int, ...]
    run: Callable[[Frame], None]
    reason: str = ""  # why its calls run for each iteration
    line: str = ""
    freed: tuple[Place, ...] = ()  # results that nothing reads afterwards


def find_time_index(index: Any, shape: Sequence[int],
                    ) -> tuple[int, tuple[Any, ...], tuple[Any, ...]] | None:
    """Returns the dimension of t in an index of a tensor such as t, (..., t) or (:, t, k); its
    integers, which are counted from the front, slices or ranges; and the entries of the other
    dimensions, integers and slices. None: no entry changes, several do, or it is another index."""
    entries = list_entries(index, len(shape))
    at = [d for d, one in enumerate(entries) if isinstance(one, Numbers)]
    if len(at) != 1:
        return None
    indices = entries.pop(at[0]).values
    if any(type(one) not in (int, slice, range) for one in indices) or any(
            type(one) not in (int, slice) for one in entries):
        return None
    steps = range(shape[at[0]])
    return at[0], tuple(steps[i] if type(i) is int else i for i in indices), tuple(entries)


def run_once(q: int, one: BodyCall, is_invariant: bool, frame: Frame) -> None:
    """Runs a call of equal arguments in each iteration, or of which only the last is read."""
    leaves = [frame.at_last(slot) for slot in one.slots]
    made = frame.invariant if is_invariant else frame.last
    for k, tensor in enumerate(one.call.run(leaves)):
        made[q, k] = tensor


def make_slices(q: int, one: BodyCall, invariant: Set[int],
                shape: Sequence[int]) -> Callable[[Frame], None] | None:
    """Returns a function that takes x[t] or x[t:t + n] of an x from before the loop; None: the call
    has an index of another kind. invariant: positions of calls that are the same in each iteration;
    shape: of x."""
    args, kwargs = pytree.tree_unflatten(one.slots, one.call.spec)
    is_fixed = isinstance(args[0], Fixed) or (
        isinstance(args[0], Now) and args[0].position in invariant)
    if kwargs or not is_fixed:
        return None
    index = args[1]
    if one.call.function is not Tensor.__getitem__:  # select
        index = *[slice(None)] * (args[1] % len(shape)), args[2]
    found = find_time_index(index, shape)
    if found is None or any(other != slice(None) for other in found[2]):
        return None
    dim, indices, _ = found
    return lambda frame: frame.take_view((q, 0), args[0], partial(_slice, dim, indices),
                                         one.call.mode.grad, dim)


def _slice(dim: int, indices: tuple[Any, ...], tensor: Tensor) -> Tensor:
    moved = tensor.movedim(dim, 0)
    if isinstance(indices[0], int):
        taken = find_slice(indices)
        # a slice of all steps would copy the gradient
        return moved if taken == slice(0, len(moved), 1) else moved[taken]
    rows = [[*(range(len(moved))[one] if isinstance(one, slice) else one)] for one in indices]
    return _take_rows(moved, rows).movedim(1, dim + 1).contiguous()


def find_slice(indices: tuple[int, ...]) -> slice | list[int]:
    """Returns equidistant, ascending indices as a slice, which takes no copy."""
    first, step = indices[0], indices[1] - indices[0] if len(indices) > 1 else 1
    if step > 0 and indices == tuple(range(first, first + step * len(indices), step)):
        return slice(first, indices[-1] + 1, step)
    return [*indices]


def _take_rows(values: Tensor, rows: list[list[int]]) -> Tensor:
    """Returns values[rows], (n, steps, ...); a view where the distances of the rows are one number,
    and those in a row are."""
    (first, *others), n, k = rows[0], len(rows), len(rows[0])
    step, between = others[0] - first if others else 1, rows[1][0] - first if n > 1 else 1
    if step < 1 or between < 1 or rows != [
            [first + i * between + j * step for j in range(k)] for i in range(n)]:
        return values[torch.tensor(rows, device=values.device)]
    windows = values[first:].unfold(0, (k - 1) * step + 1, between)  # (n or more, ..., length)
    return windows[:n, ..., ::step].movedim(-1, 1)


def write_all(writes: Sequence[tuple[int, BodyCall, Any, tuple[Any, ...]]], target: Before,
              dim: int, indices: tuple[int, ...], frame: Frame) -> None:
    """Runs out[t] = z of all iterations as one write, for each of some calls, of which writes has
    the position, the call, z, and the others of find_time_index. target: out."""
    out = frame.initial(target)[0].clone()
    moved = out.movedim(dim, 0)
    for _, one, given, others in writes:
        values, part = frame.sequence(given), moved[(slice(None), *others)]
        missing = part.dim() - values.dim()  # < 0: z has axes of 1 in front
        values = values.reshape(len(values), *[1] * missing, *values.shape[1 + max(-missing, 0):])
        with torch.set_grad_enabled(one.call.mode.grad):
            part[find_slice(indices)] = values.to(out.dtype)
    frame.last[writes[-1][0], 0] = out


def run_in_order(loop: Loop, positions: Sequence[int], read: set[Place], last: set[Place],
                 frame: Frame) -> None:
    """Runs some calls iteration by iteration."""
    made: dict[Place, list[Tensor]] = {place: [] for place in loop.list_places(positions)}
    inside = set(positions)
    calls = []
    for q in positions:
        one = loop.body[q]
        calls.append((q, one.call.run, [_make_getter(slot, frame, inside, made)
                                        for slot in one.slots]))
    for t in range(loop.iterations):
        for q, run, arguments in calls:
            given = [get(t) for get in arguments]
            if loop.body[q].call.is_random:
                given = [frame.values.match(value, loop.leaf(slot, t))
                         for value, slot in zip(given, loop.body[q].slots, strict=True)]
            for k, tensor in enumerate(run(given)):
                made[q, k].append(tensor)
    for place in read:
        if place in last:
            frame.last[place] = made[place][-1]
        else:
            frame.sequences[place] = torch.stack(made[place])


def _make_getter(slot: Any, frame: Frame, inside: set[int],
                 made: dict[Place, list[Tensor]]) -> Callable[[int], Any]:
    """Returns a function of the iteration that returns the argument."""
    if isinstance(slot, Now | Before) and slot.position in inside:
        place = slot[:2]
        if isinstance(slot, Now):
            return lambda t: made[place][t]
        initial, lag = frame.initial(slot), slot.lag
        return lambda t: initial[t] if t < lag else made[place][t - lag]
    if isinstance(slot, Numbers):
        return slot.values.__getitem__
    fixed = frame.fixed(slot)
    if fixed is not None or not isinstance(slot, Now | Before | Varying):
        constant = slot if fixed is None else fixed
        return lambda t: constant
    each = frame.elements(slot[:2]) if isinstance(slot, Now) else frame.sequence(slot).unbind(0)
    return each.__getitem__


# Functions of a tensor and a number that give the same for a tensor of the number.
_OF_NUMBERS = frozenset({"add", "sub", "rsub", "mul", "rmul", "radd", "div", "truediv",
                         "rtruediv", "lt", "le", "gt", "ge", "eq", "ne"})


def takes_numbers(one: BodyCall, kinds: Sequence[Kind]) -> bool:
    """Whether a call may take constants that change with each iteration as one tensor. kinds: of
    the tensors that it reads."""
    types = {type(value) for slot in one.slots if isinstance(slot, Numbers)
             for value in slot.values}
    dtypes = {kind.dtype for kind in kinds}
    return one.call.name.strip("_") in _OF_NUMBERS and len(kinds) == 1 and len(one.slots) == 2 and (
        types <= {int, float} and dtypes <= {torch.float32, torch.float64}
        or types == {int} and dtypes == {torch.int64})


def run_with_numbers(q: int, one: BodyCall, frame: Frame) -> None:
    """Runs a call of a tensor and a number for all iterations at once."""
    (tensor,) = (frame.sequence(slot) for slot in one.slots if not isinstance(slot, Numbers))
    each = tensor.shape[0], *[1] * (tensor.dim() - 1)
    frame.sequences[q, 0], = one.call.run([
        tensor if not isinstance(slot, Numbers) else
        torch.tensor(slot.values, dtype=tensor.dtype, device=tensor.device).reshape(each)
        for slot in one.slots])


class Batched:
    """One call for all iterations by torch.vmap, else in order."""

    def __init__(self, q: int, one: BodyCall, in_order: Callable[[Frame], None],
                 kinds: Sequence[Kind], is_elementwise: bool) -> None:
        """kinds: of the results."""
        self.q, self.one, self.in_order = q, one, in_order
        self.dtypes = [kind.dtype for kind in kinds]
        # of a call that may run on sequences themselves: the dimensions of its result, else 0
        self.dims = len(kinds[0].shape) if is_elementwise and not one.call.written else 0
        self.has_rule = not isinstance(one.call.function, torch.jit.ScriptFunction)

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

        product = find_operands(self.one.call, leaves) if len(varying) == 1 else None
        if product is not None and not isinstance(product.source, Tensor):
            product = product._replace(source=frame.sequence(product.source))
            if product.fits() and (not product.is_vector or product.source.dim() == 2):
                frame.products[self.q, 0] = product
                return
        given = [frame.sequence(slots[i]) for i in varying]
        is_direct = self.dims > 0 and all(one.dim() == self.dims + 1 for one in given)
        chunk = None if torch.is_grad_enabled() else CHUNK
        try:
            found = run(*given) if is_direct else torch.vmap(
                run, randomness="error", chunk_size=chunk)(*given)
            # a bias under autocast is float32
            self.has_rule = [tensor.dtype for tensor in found] == self.dtypes
        except (RuntimeError, ValueError, NotImplementedError):  # such as Functions without a rule
            self.has_rule = False
        if not self.has_rule:
            self.in_order(frame)
            return
        for k, tensor in enumerate(found):
            frame.sequences[self.q, k] = tensor
