"""Speculation: a plan runs ahead of Python, which then runs on its results.

A model that reads numbers of tensors in Python, as for a log, cannot be replayed without Python:
nobody sees what it does with them. Its calls of torch are seen. So the plan computes the results of
all recorded calls, then the model runs once more, and its calls return at once: of a tensor that
outlives the model what the plan computed, of others an empty one of their kind. Numbers that it
reads are those of the plan.

    rate += z.sum().item()            sum: an empty tensor; item: a number, of the sum of the plan
    self.state = v * decay            the product of the plan
    if rate > 9: v = v.clamp(max=1)   taken: another call than the recorded one, OtherBranchError

Proof that the model does what it would do without a plan, unless OtherBranchError is raised:
    The k-th call is the recorded one with the arguments of the recorded one, or an error is raised.
    By induction over the calls, Python has then met the same tensors and numbers before it, since
    what it can meet of a tensor is its kind, its identity and numbers that are calls themselves. A
    call that the recording does not have is refused, also one that Python does not name (_Refuse).
    At the end no empty tensor is left: nobody but the script holds one.
"""
import itertools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from math import prod
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .._core import torch_internals
from ..codegen.plain import make_key
from .functions import READS, VALUE_READS, get_name, intercept_functions
from .ir import Kind, Recording, Ref, Refused


class OtherBranchError(BaseException):
    """Python would have read other bools, or called other functions, than in the recorded call. The
    model does not catch it by Exception."""


class Event(NamedTuple):
    """What the model asks of torch. Its tensors are Refs, the empty ones themselves."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: Any  # a tree of results, or a Reading


class Reading:
    """A call that runs, to read numbers or to switch torch: its arguments, with values as Refs."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


END = Event(None, (), {}, None)


class Script:
    """The calls of a recording, as the model makes them.

    A tensor that is written to has several values. Its number is the first of them.
    """

    def __init__(self, reason: Refused | None = None) -> None:
        """reason: why Python has to run; None: it need not, unless it reads a number."""
        self.reason = reason
        self.events: list[Event] = []
        self.calls: list[tuple[Any, ...]] = []  # of which they are made
        self.numbers: dict[int, int] = {}  # of tensors, by value
        self.strides: dict[int, tuple[int, ...]] = {}  # of those that are not contiguous
        self.read: dict[int, None] = {}  # values
        self.is_complete = True
        self.arrays: list[tuple[Any, Any]] = []  # what numpy() returned, and copies
        self.outputs: list[Tensor] = []  # the tensors that outlive the recorded call
        self.results: list[int] = []  # and their values
        self.empty: list[Tensor] = []
        self.holders: list[int] = []  # their counts of references
        self.unsteady: list[Any] = []  # tensors whose kind changes

    # -------------------------------------------------------------------------- the recording
    def add(self, value: int, tensor: Tensor, before: int | None, is_contiguous: bool) -> None:
        """Adds a value; before: another one of this tensor."""
        self.numbers[value] = value if before is None else self.numbers[before]
        if not is_contiguous:
            self.strides[value] = tensor.stride()

    def note_switch(self, function: Any, args: Any, kwargs: Any) -> None:
        """Adds a call that switches torch."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        self.calls.append((function, leaves, spec, Reading(args, kwargs)))

    def note(self, function: Any, leaves: Sequence[Any], spec: pytree.TreeSpec,
             tensors: Sequence[Tensor], result: Any, find: Callable[[Tensor], int]) -> None:
        """Adds a call; find: returns the value of a tensor."""
        made: Any = None
        if isinstance(result, Tensor):
            made = Ref(find(result))
        elif get_name(function) in VALUE_READS:
            made = Reading(*pytree.tree_unflatten(leaves, spec))
            self.read.update((find(one), None) for one in tensors)
            if isinstance(result, np.ndarray):
                self.arrays.append((result, result.copy()))
        else:
            made = pytree.tree_map_only(Tensor, lambda one: Ref(find(one)), result)
        self.calls.append((function, leaves, spec, made))

    def finish(self, outputs: list[Tensor], results: list[int], recording: Recording) -> None:
        """Ends the recording, whose results become a list.

        Args:
            outputs: tensors that outlive the call.
            results: their values.
            recording: that of the call.
        """
        if self.reason is not None and not self.is_complete:
            raise self.reason
        if any(not np.array_equal(one, copy, one.dtype.kind in "fc") for one, copy in self.arrays):
            raise Refused("numpy: expected no write to an array in the memory of a tensor")
        self.arrays.clear()
        self.outputs, self.results = outputs, results
        recording.script, recording.result = self, list(map(Ref, results))
        recording.checked.clear()  # Python reads them
        kinds = recording.kinds
        real = {self.numbers[value] for value in (*recording.leaves, *results)}
        memory: dict[Any, Tensor] = {}
        empty: dict[int, Tensor] = {
            one: _make_empty(kinds[one], self.strides.get(one), memory)
            for one in set(self.numbers.values()) - real}

        def find(ref: Ref) -> Any:
            number = self.numbers[ref.value]
            return empty.get(number, Ref(number))

        def make_event(function: Any, leaves: Any, spec: pytree.TreeSpec, made: Any) -> Event:
            args, kwargs = pytree.tree_unflatten(
                [find(leaf) if isinstance(leaf, Ref) else leaf for leaf in leaves], spec)
            return Event(function, args, kwargs, pytree.tree_map_only(Ref, find, made))

        self.events = [*itertools.starmap(make_event, self.calls), END]
        self.calls.clear()
        self.unsteady = [find(Ref(value)) for value, one in self.numbers.items()
                         if kinds[value] != kinds[one]]
        self.empty = [*empty.values()]
        empty.clear()
        self.holders = list(map(sys.getrefcount, self.empty))

    # -------------------------------------------------------------------------------- a run
    def run(self, function: Callable[[], Any], leaves: Mapping[int, Tensor],
            results: Sequence[Tensor], read: Mapping[int, Tensor]) -> Any:
        """Returns what the function returns, on results of the plan.

        Args:
            leaves: the tensors of the leaves.
            results: the tensors that outlive the call.
            read: those whose numbers are read, by value.

        Raises:
            OtherBranchError: the calls are not the recorded ones, or it raises itself.
        """
        made = dict(zip(self.results, results, strict=True)) | dict(leaves)
        run = _Run(self, {self.numbers[value]: one for value, one in made.items()},
                   dict(read) | made)
        try:
            with intercept_functions(run.note_function), _Refuse(run), run:
                result = function()
        except Exception as error:
            raise OtherBranchError from error
        if run.is_other or self.events[run.k] is not END or any(map(vars, self.empty)) or (
                list(map(sys.getrefcount, self.empty)) != self.holders):
            raise OtherBranchError
        return result


class _Run(TorchFunctionMode):
    """One run of the model."""

    def __init__(self, script: Script, tensors: dict[int, Tensor],
                 read: Mapping[int, Tensor]) -> None:
        """tensors: by number; read: by value."""
        super().__init__()
        self.events, self.tensors, self.read = script.events, tensors, read
        self.unsteady = {id(self._find(one, tensors)) for one in script.unsteady}
        self.k = 0  # events so far
        self.is_other = self.is_reading = False
        self.thread = threading.get_ident()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function, wanted, options, made = self.events[self.k]
        if (func is function or func == function) and len(args) == len(wanted) and (
                not (kwargs or options) or self._is_same(kwargs or {}, options)):
            for one, other in zip(args, wanted):  # noqa: B905 (strict takes longer)
                if one is not other and not self._is_same(one, other):
                    break
            else:
                self.k += 1
                if type(made) is Ref:
                    return self.tensors[made.value]
                if isinstance(made, Tensor):
                    return made
                return self._read(func, made) if type(made) is Reading else self._find(
                    made, self.tensors)
        if get_name(func) in READS and self.unsteady.isdisjoint(map(id, args)):
            return func(*args, **(kwargs or {}))
        raise self.refuse()

    def note_function(self, function: Any, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        """Takes calls of autograd.Functions and functions of TorchScript in this thread."""
        if threading.get_ident() != self.thread:
            return run()
        with torch_internals.without_function_mode(self):
            return self.__torch_function__(function, (), args, kwargs)

    def refuse(self) -> OtherBranchError:
        """Returns an error; where the model catches it, each later call raises it again."""
        self.is_other, self.events, self.k = True, [END], 0
        return OtherBranchError()

    def _is_same(self, got: Any, want: Any) -> bool:
        kind = type(want)
        if kind is Ref:
            return got is self.tensors[want.value]
        if got is want:
            return True
        if kind in (tuple, list):
            return type(got) is kind and len(got) == len(want) and all(
                map(self._is_same, got, want))
        if kind is dict:
            return type(got) is kind and got.keys() == want.keys() and all(
                self._is_same(got[key], one) for key, one in want.items())
        key = make_key(want)
        return key is not None and key == make_key(
            got.item() if isinstance(got, np.generic) else got)

    def _find(self, tree: Any, tensors: Mapping[int, Tensor]) -> Any:
        """Returns a tree with a tensor for each Ref."""
        if type(tree) is Ref:
            return tensors[tree.value]
        return pytree.tree_map_only(Ref, lambda one: tensors[one.value], tree)

    def _read(self, function: Any, reading: Reading) -> Any:
        args = [self._find(one, self.read) for one in reading.args]
        kwargs = self._find(reading.kwargs, self.read) if reading.kwargs else {}
        self.is_reading = True
        try:
            return function(*args, **kwargs)
        finally:
            self.is_reading = False


class _Refuse(TorchDispatchMode):
    """Refuses operators that run outside of reads."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to ask whether a compiler is active takes longer than a small operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch.autograd.Variable calls detach, which the mode of functions sees next
        if self.run.is_reading or func is torch.ops.aten.detach.default:
            return func(*args, **(kwargs or {}))
        raise self.run.refuse()


def _make_empty(kind: Kind, strides: tuple[int, ...] | None, memory: dict[Any, Tensor]) -> Tensor:
    """Returns a tensor of a kind in memory that all have; strides: None: contiguous."""
    shape, key = kind.shape, kind[1:4]
    if strides is None:
        strides = tuple(itertools.accumulate(shape[:0:-1], mul, initial=1))[::-1][:len(shape)]
    size = 1 + sum(s * (n - 1) for s, n in zip(strides, shape, strict=True)) if prod(shape) else 0
    if key not in memory or memory[key].numel() < size:
        memory[key] = torch.empty(size, dtype=kind.dtype, device=kind.device,
                                  requires_grad=kind.requires_grad)
    return memory[key].as_strided(shape, strides)
