"""Indexing: parts of a tensor by a mask, and parts that the program has just written.

    x[mask] = 2 * y[mask]             where_(x, mask, 2 * y)
    x[:, t] = z; y = x[:, t]          y = z.clone()
    x[:, t + d] = z; y = x[:, t]      y = the z of d iterations before
    v, z = torch.stack([v, z])        v, z = v.clone(), z.clone()
    x = torch.cat([z[None], x[:-1]])  x = torch.stack([z, z of the iteration before, ...])
    x = x.clone(); x[t % d] = z       x[(t + 1) % d] is the z of d - 1 iterations before
    y[1:] = x[:-1]; y[0] = z          y[k] is x[k - 1]
"""
import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .functions import find_line
from .ir import Call, Mode, Recording, Ref, Refused
from .products import bind, list_entries
from .rewrite import make_call

SHIFTS = frozenset({"cat", "concat", "concatenate", "roll"})
PARTS = SHIFTS | {"__getitem__", "__setitem__", "clone", "stack", "unbind"}  # of interest to Writes
MOST_PARTS = 8  # of a stack; a sequence has more
MOST_INDICES = 64  # of a range of delays
MOST_SHIFTED = 32  # parts of a tensor that cat or roll shifts
MOST_CALLS = 16  # among which a mask or a part is looked for
# Functions of a part and a number: where the gradient of the result is 0, so is that of the part.
_LINEAR = frozenset({"add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "neg",
                     "div", "truediv", "idiv", "itruediv"})


def where_(target: Tensor, mask: Tensor, source: Tensor) -> None:
    """target[mask] = source[mask]."""
    target.copy_(torch.where(mask, source, target))


class _Part(NamedTuple):
    """x[mask], whose shape depends on numbers."""

    tensor: "weakref.ref[Tensor]"
    whole: Tensor  # with all entries; those of the mask are equal
    mask: int  # a value


class MaskedReads:
    """Parts by masks, which only writes by the same mask may read."""

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self.parts: dict[int, _Part] = {}  # by id
        self.is_reading = False

    def run(self, function: Any, name: str, args: Any, kwargs: Any) -> tuple[Any] | None:
        """Runs and records a call that makes or takes a part; None: it does neither."""
        parts = [self._find(one) for one in args] if self.parts else []
        part = next(filter(None, parts), None)
        is_by_mask = name in ("__getitem__", "__setitem__") and isinstance(
            args[1], Tensor) and args[1].dtype == torch.bool and args[1].shape == args[0].shape
        if part is None and not (is_by_mask and len(args) == 2):
            return None
        note = self.recorder.note
        with self.recorder.refusals():
            mask = self.recorder.value_of(args[1]) if is_by_mask else part.mask  # type: ignore[union-attr]
            base = name.strip("_")
            is_sum = base.endswith(("add", "sub"))
            terms = [one for one, known in zip(args, parts, strict=False) if (
                self._are_equal(mask, known.mask) if known else _is_factor(one, base)
                or is_sum and isinstance(one, Tensor) and not one.dim())]
            if part is None:
                whole = note(Tensor.clone, args[:1], {}, args[0].clone)
            elif is_by_mask and parts[-1] and args[0].dtype == part.whole.dtype and (
                    self._are_equal(mask, part.mask)):
                return (note(where_, (*args[:2], part.whole), {}, lambda: function(*args)),)
            elif base in _LINEAR and not kwargs and len(terms) == len(args) and (
                    is_sum or parts.count(None) == len(args) - 1):
                given = [one.whole if one else x for one, x in zip(parts, args, strict=True)]
                whole = note(function, given, {}, lambda: function(*given))
            else:
                raise Refused(f"{name}: expected x[mask] = y[mask] with one mask, got another "
                              f"function of y[mask], whose shape depends on numbers")
            self.is_reading = True
            try:
                with self.recorder.inside():
                    made = function(*args)
            finally:
                self.is_reading = False
            key = id(made)
            self.parts[key] = _Part(weakref.ref(made, lambda _: self.parts.pop(key, None)), whole,
                                    mask)
            return (made,)
        return (function(*args, **kwargs),)

    def _are_equal(self, one: int, other: int) -> bool:
        """Whether two masks are one value, or the results of equal calls."""
        calls = self.recorder.recording.calls[-MOST_CALLS:]
        keys = [(call.function, call.leaves, id(call.spec), call.outputs.index(value))
                for value in {one, other} for call in calls if value in call.outputs
                and not call.is_random and not call.written]
        return one == other or (len(keys) == 2 and keys[0] == keys[1])

    def _find(self, one: Any) -> _Part | None:
        part = self.parts.get(id(one))
        return part if part is not None and part.tensor() is one else None


def _is_factor(one: Any, base: str) -> bool:
    """Whether a part times this number, or divided by it, has a finite gradient."""
    if not isinstance(one, int | float) or not math.isfinite(one):
        return False
    return not (base.endswith("mul") and abs(one) > 1e30 or base.endswith("div")
                and abs(one) < 1e-30)


class Index(NamedTuple):
    """An index by integers along some axes."""

    numbers: dict[int, list[int]]  # by axis
    axis: int | None  # along which there may be several parts

    @classmethod
    def of(cls, index: Any, shape: Sequence[int]) -> "Index | None":
        """Returns None for an index of another kind."""
        entries = list_entries(index, len(shape))
        has_new_axes = None in entries
        entries = [one for one in entries if one is not None]
        found: dict[int, list[int]] = {}
        axis = None
        others = [one for one in entries if one != slice(None)]
        for d, one in enumerate(entries):
            if one == slice(None):
                continue
            numbers = range(*one.indices(shape[d])) if isinstance(one, slice) else one
            if type(one) is int:
                numbers = [one]
            elif axis is None and not has_new_axes and (isinstance(one, slice) or len(others) == 1):
                axis = d  # a list and an integer would be one index
            else:
                return None
            if not isinstance(numbers, range | list) or not 0 < len(numbers) <= MOST_INDICES or any(
                    type(i) is not int for i in numbers):
                return None
            found[d] = [i % shape[d] for i in numbers]
        return cls(found, axis) if found else None

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(self.numbers)

    @property
    def dim(self) -> int | None:
        """The axis of the result along which the parts are stacked."""
        before = [d for d in self.numbers if self.axis is not None and d < self.axis]
        return None if self.axis is None else self.axis - len(before)

    @property
    def places(self) -> list[tuple[int, ...]]:
        """The indices of all parts, in their order."""
        return [*itertools.product(*self.numbers.values())]


class _Parts(NamedTuple):
    """What is known of the parts of a tensor, each at one index of some axes."""

    axes: tuple[int, ...]
    values: dict[tuple[int, ...], int | None]  # written; None: the value is unknown
    first: int | None  # the value of the tensor before them; None: all parts are written
    is_register: bool = False  # whether a part was written over another one


class Writes:
    """Values that x[:, t] = z has written, or torch.stack."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.kinds = recording, recording.kinds
        self.parts: dict[int, _Parts] = {}  # by the value of x
        self.starts: dict[Any, int] = {}  # parts of tensors before all writes
        self.copied: dict[int, int] = {}  # of copies, the values with the same numbers

    def note(self, name: str, args: Any, kwargs: Any, value: int) -> None:
        """Notes the parts of what clone or stack makes."""
        if name == "stack":
            self.note_stack(args, kwargs, value)
        elif name == "clone":
            one = (args[0] if args else kwargs["input"]).value
            if self.kinds[one].requires_grad == self.kinds[value].requires_grad:
                self.copied[value] = self.copied.get(one, one)
                self.note_values(one, value)

    def note_stack(self, args: Any, kwargs: Any, value: int) -> None:
        """Notes the parts of a stack of a few values, as states are kept."""
        named = dict(zip(("tensors", "dim"), args, strict=False)) | kwargs
        tensors, dim, kind = named["tensors"], named.get("dim", 0), self.kinds[value]
        if isinstance(dim, int) and len(tensors) <= MOST_PARTS and all(
                isinstance(one, Ref) and self.kinds[one.value].dtype == kind.dtype
                for one in tensors):
            self.parts[value] = _Parts((dim % len(kind.shape),), {
                (k,): one.value for k, one in enumerate(tensors)}, None)

    def find(self, name: str, args: Any, kwargs: Any, written: Any,
             results: Any) -> list[int | tuple[list[int], int]] | None:
        """Returns the values that a call reads, one for each result, or several and the dimension
        along which they are stacked; None: not all of them are known, or it is another call. Notes
        what it writes."""
        if name == "unbind":
            named = dict(zip(("input", "dim"), args, strict=False)) | kwargs
            x, dim = named["input"], named.get("dim", 0)
            if not isinstance(dim, int):
                return None
            before = (slice(None),) * (dim % len(self.kinds[x.value].shape))
            found = [self._find((x, (*before, k)), written, one) for k, one in enumerate(results)]
        elif name in SHIFTS:
            values = self._shift(name, args, kwargs)
            has_grad = values is not None and any(self.kinds[one].requires_grad
                                                  for one in values[0])
            found = [None if has_grad and not results[0].requires_grad else values]
        else:
            is_other = name in ("clone", "stack")
            found = [] if is_other else [self._find(args, written, results[0])]
        return None if None in found else found  # type: ignore[return-value]

    def _find(self, args: Any, written: Any, result: Any) -> int | tuple[list[int], int] | None:
        """Returns what x[index] reads, None if it is not known; notes x[index] = given."""
        x, index, *given = args
        if not isinstance(x, Ref) or (given and not written):
            return None
        at, has_grad = Index.of(index, self.kinds[x.value].shape), torch.is_grad_enabled()
        parts = self.parts.get(x.value)
        if not given:
            if parts is None or at is None or parts.axes != at.axes or (
                    result.requires_grad and not has_grad):
                return None
            values = [self._find_part(parts, one) for one in at.places]
            if None in values or (not result.requires_grad and any(
                    self.kinds[one].requires_grad for one in values)):  # type: ignore[index]
                return None
            if at.dim is not None:
                return values, at.dim  # type: ignore[return-value]
            # its gradient, if any, is that of the value
            is_written = values[0] not in self.starts.values() and at.places[0] in parts.values
            if is_written and result.requires_grad != self.kinds[values[0]].requires_grad:  # type: ignore[index]
                return None
            return values[0]
        self.parts.pop(x.value, None)
        if at is None:
            return None
        if parts is None or parts.axes != at.axes:
            parts = _Parts(at.axes, {}, self.copied.get(x.value, x.value))
        written_over = not parts.values.keys().isdisjoint(at.places)
        parts.values.update(zip(at.places, self._list_given(given[0], at, x), strict=True))
        self.parts[written[0][1]] = parts._replace(
            is_register=parts.is_register or written_over)
        return None

    def _list_given(self, given: Any, at: Index, x: Ref) -> Sequence[int | None]:
        """Returns the values of the parts that x[index] = given writes."""
        unknown = [None] * len(at.places)
        if not isinstance(given, Ref) or len({*at.places}) < len(at.places):
            return unknown
        kind, (shape, *others) = self.kinds[given.value], self.kinds[x.value][:3]
        part = tuple(len(at.numbers[d]) if d == at.axis else size
                     for d, size in enumerate(shape) if d == at.axis or d not in at.axes)
        if kind[:3] != (part, *others) or (kind.requires_grad and not torch.is_grad_enabled()):
            return unknown
        if at.axis is None:
            return [given.value]
        found = self._list_slice(given.value, at.axis) if at.axes == (at.axis,) else None
        maker = self.recording.find_maker(given.value, MOST_CALLS)
        return found if found and self._has_gradients(given.value, maker, found) else unknown

    def note_values(self, values: int | tuple[list[int], int], value: int) -> None:
        """Notes the parts of a value that is what `find` has found: a stack, or part of one."""
        if isinstance(values, tuple):
            self.parts[value] = _Parts((values[1],), {(k,): one for k, one in enumerate(
                values[0])}, None)
        elif values in self.parts and self.kinds[values].shape == self.kinds[value].shape:
            parts = self.parts[values]
            self.parts[value] = parts._replace(values=dict(parts.values))

    def find_register(self, value: int) -> tuple[list[int], int] | None:
        """Returns the values that are left in a register, and the dimension along which they are
        stacked; None: it is none, or not all are known. Its writes are not needed then."""
        parts, (shape, *_, has_grad, _) = self.parts.get(value), self.kinds[value]
        if parts is None or not parts.is_register or len(parts.axes) > 1 or (
                has_grad and not torch.is_grad_enabled()):
            return None
        dim, = parts.axes
        found = None if shape[dim] > MOST_SHIFTED else self._list_parts(value, dim,
                                                                        range(shape[dim]))
        if found is None or has_grad != any(self.kinds[one].requires_grad for one in found):
            return None
        return found, dim

    def _shift(self, name: str, args: Any, kwargs: Any) -> tuple[list[int], int] | None:
        """Returns the values of which cat([z[None], x[:-1]]) or roll(x, 1, 0) is the stack."""
        if name == "roll":
            given = bind(args, kwargs, "input", "shifts", "dims")
            if given is None or [type(one) for one in given[1:]] != [int, int]:
                return None
            x, shift, dim = given
            shape = self.kinds[x.value].shape
            dim, n = dim % len(shape), shape[dim]
            values = self._list_parts(x.value, dim, range(n)) if 1 < n <= MOST_SHIFTED else None
            return None if values is None else ([values[(k - shift) % n] for k in range(n)], dim)
        given = bind(args, kwargs, "tensors", "dim") or [()]
        parts, dim = given[0], given[1] if len(given) > 1 else 0
        shapes = [self.kinds[one.value].shape for one in parts if isinstance(one, Ref)]
        if len(parts) < 2 or len(shapes) < len(parts) or type(dim) is not int or len(
                {len(shape) for shape in shapes}) > 1:
            return None
        dim %= len(shapes[0])
        if sum(shape[dim] for shape in shapes) > MOST_SHIFTED:
            return None
        makers = [self.recording.find_maker(one.value, MOST_CALLS) for one in parts]
        found: list[int] = []
        has_new = False
        for one, maker in zip(parts, makers, strict=True):
            new = None if maker is None else self.find_new(maker, dim)
            has_new |= new is not None
            values = [new] if new is not None else self._list_slice(one.value, dim)
            if values is None or not self._has_gradients(one.value, maker, values):
                return None
            found += values
        is_stack = has_new and len({self.kinds[one].dtype for one in found}) == 1
        return (found, dim) if is_stack else None

    def find_new(self, maker: Call, dim: int) -> int | None:
        """Returns the z of z[None] or z.unsqueeze(0), with the new axis in this place."""
        args, kwargs = pytree.tree_unflatten(maker.leaves, maker.spec)
        if maker.name == "unsqueeze":
            given = bind(args, kwargs, "input", "dim")
            shape = self.kinds[maker.outputs[0]].shape
            return given[0].value if given and given[1] % len(shape) == dim else None
        if maker.name != "__getitem__":
            return None
        entries = list_entries(args[1], len(self.kinds[args[0].value].shape))
        others = entries[:dim] + entries[dim + 1 :]
        is_new = entries[dim : dim + 1] == [None] and all(one == slice(None) for one in others)
        return args[0].value if is_new else None

    def _has_gradients(self, value: int, maker: Call | None, parts: Sequence[int]) -> bool:
        """Whether a value has the gradients of its parts, as a view under no_grad has not."""
        has_grad = torch.is_grad_enabled() if maker is None else maker.mode.grad
        return has_grad == torch.is_grad_enabled() and (
            self.kinds[value].requires_grad
            or not any(self.kinds[one].requires_grad for one in parts))

    def _list_slice(self, value: int, dim: int) -> list[int] | None:
        """Returns the parts of x[a:b], or of what is known to be a stack."""
        maker = self.recording.find_maker(value, MOST_CALLS)
        if value in self.parts:
            return self._list_parts(value, dim, range(self.kinds[value].shape[dim]))
        if maker is None or maker.name != "__getitem__":
            return None
        x, index = pytree.tree_unflatten(maker.leaves, maker.spec)[0]
        at = Index.of(index, self.kinds[x.value].shape)
        return None if at is None or (at.axes, at.dim) != ((dim,), dim) else self._list_parts(
            x.value, dim, at.numbers[dim])

    def _list_parts(self, value: int, dim: int, numbers: Sequence[int]) -> list[int] | None:
        """Returns the values x[k] for these k along a dimension; None: not all are known."""
        if value not in self.parts and not self._is_start(value):
            return None
        parts = self.parts.get(value, _Parts((dim,), {}, value))
        found = [self._find_part(parts, (k,)) for k in numbers] if parts.axes == (dim,) else [None]
        return None if None in found else found  # type: ignore[return-value]

    def _is_start(self, value: int) -> bool:
        """Whether a value may be the first one of a register: what a factory has made, or what is
        there before the call; not x[t] of each iteration, which would be cut into its numbers."""
        for _ in range(0 if self.kinds[value].requires_grad else MOST_CALLS):
            maker = self.recording.find_maker(value)
            if maker is None or not maker.inputs or maker.name.startswith("new_") or (
                    maker.name.endswith("_like")):
                return True
            if len(maker.inputs) > 1 or maker.name == "__getitem__" or len(maker.outputs) > 1:
                return False
            value, = maker.inputs
        return False

    def _find_part(self, parts: _Parts, index: tuple[int, ...]) -> int | None:
        """Returns the value of a part; one from before all writes is read before them all, so that
        each iteration reads a value of an earlier one."""
        if index in parts.values or parts.first is None:
            return parts.values.get(index)
        kind = self.kinds[parts.first]
        key = parts.first, parts.axes, index
        if key not in self.starts and not kind.requires_grad:
            at = dict(zip(parts.axes, index, strict=True))
            entries = tuple(at.get(d, slice(None)) for d in range(len(kind.shape)))
            shape = tuple(size for d, size in enumerate(kind.shape) if d not in at)
            value = self.recording.add_value(kind._replace(shape=shape, is_contiguous=False))
            calls = self.recording.calls
            where = next((i + 1 for i in reversed(range(len(calls)))
                          if parts.first in calls[i].outputs), 0)
            calls.insert(where, make_call(Tensor.__getitem__, (Ref(parts.first), entries),
                                          Ref(value), Mode.now(), find_line()))
            self.starts[key] = value
        return self.starts.get(key)
