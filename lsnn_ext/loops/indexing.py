"""Indexing: parts of a tensor by a mask, and parts that the program has just written.

    x[mask] = 2 * y[mask]             where_(x, mask, 2 * y)
    x[:, t] = z; y = x[:, t]          y = z.clone()
    v, z = torch.stack([v, z])        v, z = v.clone(), z.clone()
"""
import math
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ir import Kind, Ref, Refused

PARTS = frozenset({"__getitem__", "__setitem__", "stack", "unbind"})  # of interest to Writes
MOST_PARTS = 8  # of a stack; a sequence has more
# Functions of a part and a number: where the gradient of the result is 0, so is that of the part.
_LINEAR = frozenset({"add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "neg"})


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
            numbers = [one for one in args if isinstance(one, int | float) and math.isfinite(one)]
            if part is None:
                whole = note(Tensor.clone, args[:1], {}, args[0].clone)
            elif is_by_mask and parts[-1] and (mask, args[0].dtype) == (
                    part.mask, part.whole.dtype):
                return (note(where_, (*args[:2], part.whole), {}, lambda: function(*args)),)
            elif name.strip("_") in _LINEAR and not kwargs and len(numbers) == len(args) - 1:
                given = [part.whole if one else x for one, x in zip(parts, args, strict=True)]
                whole = note(function, given, {}, lambda: function(*given))
            else:
                raise Refused(f"{name}: expected x[mask] = y[mask] with one mask, got another "
                              f"function of y[mask], whose shape depends on numbers")
            self.recorder.depth += 1
            self.is_reading = True
            try:
                made = function(*args)
            finally:
                self.recorder.depth -= 1
                self.is_reading = False
            key = id(made)
            self.parts[key] = _Part(weakref.ref(made, lambda _: self.parts.pop(key, None)), whole,
                                    mask)
            return (made,)
        return (function(*args, **kwargs),)

    def _find(self, one: Any) -> _Part | None:
        part = self.parts.get(id(one))
        return part if part is not None and part.tensor() is one else None


class Writes:
    """Values that x[:, t] = z has written, or torch.stack."""

    def __init__(self, kinds: dict[int, Kind]) -> None:
        self.kinds = kinds
        # by the value of x: axes that are indexed, and the value of each part
        self.parts: dict[int, tuple[tuple[int, ...], dict[tuple[int, ...], int]]] = {}

    def note_stack(self, args: Any, kwargs: Any, value: int) -> None:
        """Notes the parts of a stack of a few values, as states are kept."""
        named = dict(zip(("tensors", "dim"), args, strict=False)) | kwargs
        tensors, dim, kind = named["tensors"], named.get("dim", 0), self.kinds[value]
        if isinstance(dim, int) and len(tensors) <= MOST_PARTS and all(
                isinstance(one, Ref) and self.kinds[one.value].dtype == kind.dtype
                for one in tensors):
            self.parts[value] = (dim % len(kind.shape),), {
                (k,): one.value for k, one in enumerate(tensors)}

    def find(self, name: str, args: Any, kwargs: Any, written: Any,
             results: Any) -> list[int] | None:
        """Returns the values that a call reads, one for each result; None: not all of them are
        known, or it is another call. Notes what it writes."""
        if name == "unbind":
            named = dict(zip(("input", "dim"), args, strict=False)) | kwargs
            x, dim = named["input"], named.get("dim", 0)
            if not isinstance(dim, int):
                return None
            before = (slice(None),) * (dim % len(self.kinds[x.value].shape))
            found = [self._find((x, (*before, k)), written, one) for k, one in enumerate(results)]
        else:
            found = [] if name == "stack" else [self._find(args, written, results[0])]
        return None if None in found else found  # type: ignore[return-value]

    def _find(self, args: Any, written: Any, result: Any) -> int | None:
        """Returns the value of x[index], None if it is not known; notes x[index] = given."""
        x, index, *given = args
        if not isinstance(x, Ref) or (given and not written):
            return None
        (shape, *others), has_grad = self.kinds[x.value][:3], torch.is_grad_enabled()
        axes, indices = _split(index, shape)
        known, parts = self.parts.get(x.value, (axes, {}))
        if not given:
            value = parts.get(indices) if axes == known else None
            is_same = value is not None and self.kinds[value].requires_grad == result.requires_grad
            return value if is_same and (has_grad or not result.requires_grad) else None
        parts = self.parts.pop(x.value, (axes, {}))[1] if axes == known else {}
        parts.pop(indices, None)
        kind = self.kinds[given[0].value] if isinstance(given[0], Ref) else None
        part = tuple(size for d, size in enumerate(shape) if d not in axes)
        if axes and kind is not None and kind[:3] == (part, *others) and (
                has_grad or not kind.requires_grad):
            parts[indices] = given[0].value
        self.parts[written[0][1]] = axes, parts
        return None


def _split(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of an index by integers, and these; empty: it is of another kind."""
    entries = [*index] if isinstance(index, tuple) else [index]
    if Ellipsis in entries:
        k = entries.index(Ellipsis)
        entries[k : k + 1] = [slice(None)] * (len(shape) - len(entries) + 1)
    found = {d: one % shape[d] for d, one in enumerate(entries) if type(one) is int}
    are_known = all(type(one) is int or one == slice(None) for one in entries)
    return (tuple(found), tuple(found.values())) if are_known else ((), ())
