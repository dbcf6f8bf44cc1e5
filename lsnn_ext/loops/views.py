"""Views: a write to a part of a tensor, where the tensor is still there, is one to the tensor.

    x.select(1, t)         x[:, t]
    x[:, t] += z           x[:, t] = x[:, t] + z
    y = x[0]; y[mask] = 1  y = x[0].clone(); y[mask] = 1; x[0] = y
"""
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .functions import FLAGS, REFUSED, may_write
from .products import bind

_OTHERS = FLAGS | REFUSED | {"bernoulli_"}  # what writes no numbers, or other ones


class ViewWrites:
    """Writes to x[index], as calls that write to x."""

    def __init__(self, recorder: Any) -> None:
        self.recorder, self.memory = recorder, recorder.memory

    def run(self, name: str, args: Any, kwargs: Any) -> tuple[Any] | None:
        """Runs and records a call that makes or writes to x[index]; None: it is another one."""
        if (part := _find_part(name, args, kwargs)) is not None:
            return (self._note(Tensor.__getitem__, *part),)
        if not args or not may_write(name) or name in _OTHERS:
            return None
        if name == "__setitem__" and (known := self.memory.find_whole(args[2])) is not None and (
                known[0] is args[0] and _is_equal(known[1], args[1])):
            return (None,)  # the last part of x[index] += y
        if self.memory.find_whole(args[0]) is None:
            return None
        made = self._compute(name, args, kwargs)
        if made is None:
            return None
        self._write(args[0], made)
        return (None if name == "__setitem__" else args[0],)

    def _note(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self._record(function, args, kwargs, lambda: function(*args, **kwargs))

    def _record(self, function: Any, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        if self.recorder.refused is None:
            return self.recorder.note(function, args, kwargs, run)
        with self.recorder.inside():
            return run()

    def _compute(self, name: str, args: Any, kwargs: Any) -> Any:
        """Returns what a call writes to its first argument; None: that is not known."""
        base = name.strip("_")
        function = getattr(Tensor, f"__{base[1:]}__" if name.startswith("__i") else base, None)
        if name in ("__setitem__", "copy_", "fill_", "zero_"):
            made = self._note(Tensor.clone, args[0])
            self._note(getattr(Tensor, name), made, *args[1:], **kwargs)
        elif function is not None:
            made = self._note(function, self._note(Tensor.clone, args[0]), *args[1:], **kwargs)
        else:
            return None
        return made if (made.shape, made.dtype) == (args[0].shape, args[0].dtype) else None

    def _write(self, view: Tensor, made: Any) -> None:
        """Records x[index] = made and view = x[index]."""
        whole, index = self.memory.find_whole(view)
        self.memory.forget(view)
        if self.memory.find_whole(whole) is None:
            self._note(Tensor.__setitem__, whole, index, made)
        else:
            one = self._note(Tensor.clone, whole)
            self._note(Tensor.__setitem__, one, index, made)
            self._write(whole, one)
        self._record(Tensor.__getitem__, (whole, index), {}, lambda: view)


def _find_part(name: str, args: Any, kwargs: Any) -> tuple[Tensor, Any] | None:
    """Returns x and the index of what select or narrow makes; None: it is another call."""
    names = {"select": ("index",), "narrow": ("start", "length")}.get(name, ())
    given = bind(args, kwargs, "input", "dim", *names) if names else None
    if given is None or [type(one) for one in given[1:]] != [int] * (1 + len(names)):
        return None
    x, dim, first, *lengths = given
    if not -x.dim() <= dim < x.dim():
        return None
    part: Any = first
    for length in lengths:
        first += x.shape[dim] if first < 0 else 0
        if not 0 <= first <= first + length <= x.shape[dim]:
            return None
        part = slice(first, first + length)
    return x, (*(slice(None),) * (dim % x.dim()), part)


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two indices are equal. one: of numbers only."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return isinstance(other, int | slice | type(None) | type(Ellipsis)) and bool(one == other)
