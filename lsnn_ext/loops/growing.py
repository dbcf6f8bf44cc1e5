"""Growing: a tensor that torch.cat makes longer in each iteration is a stack where it is read.

    for x_t in x:
        z = ...
        seq = torch.cat([seq, z[None]])     waits
    return seq                              torch.stack([z of the first iteration, ...])
"""
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .indexing import MOST_CALLS, Writes
from .ir import Call, Recording, Ref
from .products import bind
from .rewrite import make_call, make_copy

CATS = frozenset({"cat", "concat", "concatenate"})
FEW = 4  # parts that one iteration may join, of which a kernel takes products
# What makes parts that a cat may shift, see Writes.
SLICES = frozenset({"__getitem__", "stack", "split", "chunk", "index_select"})


class _Waiting(NamedTuple):
    """A call of torch.cat that nothing has read, along dim."""

    call: Call
    dim: int
    # values, each with the z where it is z[None], with the new axis in the place of dim
    parts: list[tuple[int, int | None]]


class Growing:
    """The calls of torch.cat that wait."""

    def __init__(self, recording: Recording, writes: Writes) -> None:
        self.recording, self.kinds, self.writes = recording, recording.kinds, writes
        self.waiting: dict[int, _Waiting] = {}  # by value

    def take(self, name: str, args: Any, kwargs: Any, result: Any, leaves: Sequence[Any],
             ) -> tuple[int, list[tuple[int, int | None]]] | None:
        """Returns the dimension and the parts of a call that waits; None: it reads its arguments,
        so that what makes them is recorded."""
        found = self._parse(args, kwargs, result) if name in CATS else None
        if found is None:
            self.read(leaves)
        return found

    def _parse(self, args: Any, kwargs: Any, result: Tensor,
               ) -> tuple[int, list[tuple[int, int | None]]] | None:
        parts, dim = (*(bind(args, kwargs, "tensors", "dim") or [()]), 0)[:2]
        if not isinstance(parts, tuple | list) or type(dim) is not int or torch.is_autocast_enabled(
                result.device.type):
            return None
        dim %= result.dim()
        found = []
        is_longer = any(one.value in self.waiting for one in parts)
        for one in parts:
            kind = self.kinds[one.value]
            maker = self.recording.find_maker(one.value, MOST_CALLS)
            new = None if maker is None else self.writes.find_new(maker, dim)
            is_slice = maker is not None and maker.name in SLICES and new is None
            if kind.dtype != result.dtype or (is_slice and not is_longer):
                return None
            # torch.cat takes torch.tensor([]) beside tensors of any shape
            is_empty = kind.shape == (0,) or 0 in kind.shape[dim : dim + 1]
            if kind.requires_grad or not is_empty:
                is_equal = new is not None and (
                    self.kinds[new].requires_grad == kind.requires_grad)
                found.append((one.value, new if is_equal else None))
        return (dim, found) if found else None

    def add(self, call: Call, dim: int, parts: list[tuple[int, int | None]]) -> None:
        self.waiting[call.outputs[0]] = _Waiting(call, dim, parts)
        for value, _ in parts:
            if value in self.waiting:  # it is shorter; all of them would take quadratic memory
                self.recording.numbers.pop(value, None)

    def find_result(self, recorder: Any, tensor: Tensor) -> int:
        """Returns the value of a result; of a register that of a stack, which no write of each
        iteration makes."""
        value: int = recorder.value_of(tensor)
        found = self.writes.find_register(value)
        if found is None:
            return value
        self.read(map(Ref, found[0]))
        made: int = recorder.add(tensor)
        self.recording.calls.append(make_copy(found, made, "", self.kinds))
        return made

    def update_written(self, recorder: Any) -> None:
        """Gives attributes that are written to the values of find_result."""
        written = self.recording.written
        live = {known.value: one for known in [*recorder.tensors.values()]
                if (one := known.tensor()) is not None}
        for leaf, value in [*written.items()]:
            if value in live:
                recorder.parameters.set_written(leaf, self.find_result(recorder, live[value]))

    def read(self, leaves: Iterable[Any]) -> None:
        """Records the calls that wait and make these arguments."""
        for leaf in leaves if self.waiting else ():
            if isinstance(leaf, Ref) and leaf.value in self.waiting:
                self._record(leaf.value)

    def _record(self, value: int) -> None:
        call, dim, own = self.waiting[value]
        is_longer = any(part in self.waiting for part, _ in own)
        parts = [*self._list_parts(value)]
        runs = [[*run] for _, run in itertools.groupby(
            parts, lambda one: (one[1] is not None, self.kinds[one[0]].shape))]
        del self.waiting[value]
        if None in [new for _, new in parts] and (not is_longer or len(parts) <= FEW):
            self._add(torch.cat, ([Ref(part) for part, _ in parts], dim), value, call)
            return
        if len(runs) == 1 and len(runs[0]) > 1:
            self._stack(runs[0], dim, call, value)
            return
        joined = [run[0][0] if len(run) == 1 else self._stack(run, dim, call) for run in runs]
        self._add(torch.cat, ([*map(Ref, joined)], dim), value, call)

    def _list_parts(self, value: int) -> Iterator[tuple[int, int | None]]:
        """Yields the parts, without those that wait and are joined along the same dimension."""
        call, dim, parts = self.waiting[value]
        left = parts[::-1]
        while left:
            part, new = left.pop()
            one = self.waiting.get(part)
            if one is None:
                yield part, new
            elif one.dim == dim and one.call.mode == call.mode:
                left += one.parts[::-1]
            else:
                self._record(part)
                yield part, new

    def _stack(self, parts: Sequence[tuple[int, int | None]], dim: int, call: Call,
               to: int | None = None) -> int:
        """Records a stack of parts of one shape. Returns its value."""
        values = [value if new is None else new for value, new in parts]
        is_new = parts[0][1] is not None
        one = self.kinds[values[0]]
        kind = one._replace(shape=(*one.shape[:dim], len(values), *one.shape[dim:]),
                            requires_grad=call.mode.grad and any(
                                self.kinds[value].requires_grad for value in values),
                            is_contiguous=True)
        made = self.recording.add_value(kind) if to is None or not is_new else to
        given = [*map(Ref, values)], dim
        self._add(torch.stack, given, made, call)
        self.writes.note_stack(given, {}, made)
        if is_new:
            return made
        if to is None:
            shape = (*kind.shape[:dim], len(values) * one.shape[dim], *one.shape[dim + 1 :])
            to = self.recording.add_value(kind._replace(shape=shape))
        self._add(torch.flatten, (Ref(made), dim, dim + 1), to, call)
        return to

    def _add(self, function: Any, given: Sequence[Any], value: int, call: Call) -> None:
        self.recording.calls.append(make_call(function, given, Ref(value), call.mode, call.line))
