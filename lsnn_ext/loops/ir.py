"""A recorded call of a model: calls of torch as pure functions of values, and the loops among them.

A value is a tensor at one time, named by an int. A call that writes to a tensor makes a new value
of it, so that no value ever changes.
"""
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import islice
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Refused(Exception):
    """A model, or a part of it, that is not converted, with the reason and the user's line."""

    def __init__(self, reason: str, line: str = "") -> None:
        self.reason, self.line = reason, line
        super().__init__(f"{line}: {reason}" if line else reason)


@dataclass(frozen=True, slots=True)
class Ref:
    """A value, in arguments and results."""

    value: int


@dataclass(frozen=True, slots=True)
class Later:
    """A number or array of Python, in results: what a step returns."""

    step: int


class Step(NamedTuple):
    """function(*args) in Python, after all calls."""

    function: Callable[..., Any]
    args: tuple[Any, ...]  # a Ref for a tensor, a Later, a Leaf for an attribute; plain values


class Kind(NamedTuple):
    """The properties of a value that do not depend on its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    is_contiguous: bool = True


DEVICES = ("cpu", "cuda")


class Mode(NamedTuple):
    """The state of torch during a call."""

    grad: bool
    autocast: tuple[torch.dtype | None, ...]  # for the CPU and CUDA; None: disabled

    @classmethod
    def now(cls) -> "Mode":
        grad = torch.is_grad_enabled()
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return _WITHOUT_AUTOCAST[grad]
        return cls(grad, tuple(
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            for device in DEVICES))

    def enter(self, stack: ExitStack) -> None:
        """Switches torch to this mode until the stack is closed."""
        now = Mode.now()
        if self == now:
            return
        stack.enter_context(torch.set_grad_enabled(self.grad))
        for device, dtype, other in zip(DEVICES, self.autocast, now.autocast, strict=True):
            if dtype != other:
                stack.enter_context(torch.autocast(device, dtype, enabled=dtype is not None))


_WITHOUT_AUTOCAST = [Mode(grad, (None, None)) for grad in (False, True)]
_LEAVES = (Tensor, int, float, str, type(None), slice, type(Ellipsis), torch.dtype, torch.device)
_specs: dict[str, pytree.TreeSpec] = {}  # one object for each structure
_names: dict[int, tuple[str, ...]] = {}  # by id: of arguments without lists, those with a name


@cache
def _make_flat_spec(n: int, names: tuple[str, ...]) -> pytree.TreeSpec:
    spec = pytree.tree_structure(((0,) * n, dict.fromkeys(names, 0)))
    spec = _specs.setdefault(str(spec), spec)
    _names[id(spec)] = names
    return spec


@dataclass(frozen=True, slots=True)
class Container:
    """A list or dict of the result, in attributes: its place among list_containers."""

    number: int


def list_containers(tree: Any) -> list[Any]:
    """Returns the lists, deques and dicts in a tree."""
    found: list[Any] = []

    def note(one: Any) -> bool:
        found.extend([one] * isinstance(one, list | deque | dict))
        return False

    pytree.tree_leaves(tree, is_leaf=note)
    return found


def flatten_arguments(args: Sequence[Any], kwargs: Mapping[str, Any],
                      ) -> tuple[list[Any], pytree.TreeSpec]:
    """Returns pytree.tree_flatten((args, kwargs)); of equal structures the same object."""
    leaves = [*args, *kwargs.values()]
    if all(isinstance(leaf, _LEAVES) for leaf in leaves):
        return leaves, _make_flat_spec(len(args), tuple(kwargs))
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    return leaves, _specs.setdefault(str(spec), spec)


@dataclass(frozen=True, eq=False)
class Call:
    """results = function(*args, **kwargs), where (args, kwargs) = unflatten(leaves, spec)."""

    function: Callable[..., Any]  # as it was called; of an autograd.Function an Apply
    leaves: tuple[Any, ...]  # a Ref for each tensor; constants
    spec: pytree.TreeSpec
    results: Any  # a tree with a Ref for each tensor
    written: tuple[tuple[int, int], ...]  # (value before, value after) of arguments written to
    mode: Mode
    is_random: bool  # draws from a generator of torch
    line: str  # of the user's file: "file.py:12"

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The values of the arguments, in the order of leaves."""
        return tuple(leaf.value for leaf in self.leaves if isinstance(leaf, Ref))

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """The values that the call makes: those of results, and what it has written."""
        leaves = [self.results] if isinstance(self.results, Ref) else pytree.tree_leaves(
            self.results)
        made = [leaf.value for leaf in leaves if isinstance(leaf, Ref)]
        made += [after for _, after in self.written]
        given = set(self.inputs)  # a result may be an argument
        return tuple(value for value in dict.fromkeys(made) if value not in given)

    @cached_property
    def name(self) -> str:
        """The name of its function; of an autograd.Function with ".apply", of an operator that is
        not torch's with its namespace."""
        if isinstance(self.function, torch._ops.OpOverloadPacket):
            return str(self.function).removeprefix("aten.")
        return getattr(self.function, "__name__", "")

    def replace(self, **changed: Any) -> "Call":
        return replace(self, **changed)

    @cached_property
    def _names(self) -> tuple[str, ...] | None:
        """The names of the last leaves, if the leaves are the arguments and one tensor results."""
        is_simple = not self.written and isinstance(self.results, Ref) and self.outputs
        return _names.get(id(self.spec)) if is_simple else None

    def run(self, leaves: Sequence[Any]) -> tuple[Tensor, ...]:
        """Returns the outputs for these leaves, with a tensor for each Ref."""
        names = self._names
        if names is None or self.mode != Mode.now():
            return self._run(leaves)
        if not names:
            return (self.function(*leaves),)
        n = len(leaves) - len(names)
        return (self.function(*leaves[:n], **dict(zip(names, leaves[n:], strict=True))),)

    def _run(self, leaves: Sequence[Any]) -> tuple[Tensor, ...]:
        leaves = list(leaves)
        copies = {before: leaves[self.leaves.index(Ref(before))].clone()
                  for before, _ in self.written}
        if copies:
            leaves = [copies.get(leaf.value, new) if isinstance(leaf, Ref) else new
                      for leaf, new in zip(self.leaves, leaves, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        with ExitStack() as stack:
            self.mode.enter(stack)
            results = self.function(*args, **kwargs)
        refs, found = pytree.tree_leaves(self.results), pytree.tree_leaves(results)
        if len(refs) != len(found):
            raise ValueError(f"{self.name}: expected {len(refs)} results, got {len(found)}")
        made = {ref.value: one for ref, one in zip(refs, found, strict=True)
                if isinstance(ref, Ref)}
        made.update((after, copies[before]) for before, after in self.written)
        return tuple(made[value] for value in self.outputs)


class Leaf(NamedTuple):
    """The origin of a value that no call makes."""

    kind: str  # "input": path is the place among the flattened arguments; else "attribute"
    path: tuple[Any, ...]  # see origins.py


@dataclass
class Recording:
    """One call of a function or a module."""

    calls: list[Call]
    leaves: dict[int, Leaf]  # by value
    kinds: dict[int, Kind]  # of every value
    result: Any  # a tree with a Ref for each tensor, and a Later for each number of one
    changed: list[tuple[tuple[Any, ...], Any]]  # attributes after the call: path, such a tree
    written: dict[int, int]  # buffers (values of leaves) and their values after the call
    # attributes (values of leaves) whose numbers Python reads, such as a size, and these
    read: dict[int, Tensor] = field(default_factory=dict, kw_only=True)
    # bools that Python reads, as for a branch or an assertion; a replay with others does not count
    checked: dict[int, bool] = field(default_factory=dict, kw_only=True)
    masks: set[int] = field(default_factory=set, kw_only=True)  # constant, as of add_mask
    # of results that are not contiguous, and of such arguments of draws
    strides: dict[int, tuple[int, ...]] = field(default_factory=dict, kw_only=True)
    steps: list[Step] = field(default_factory=list, kw_only=True)  # see unread.py
    # numbers and arrays of attributes that steps read, in the recorded call
    attributes: dict[Any, Any] = field(default_factory=dict, kw_only=True)
    # results in the memory of other ones: these, and whether detach() makes the ones of the others
    shared: dict[int, tuple[int, bool]] = field(default_factory=dict, kw_only=True)
    # the rest is for verify
    numbers: dict[int, Tensor]  # of values, detached; later writes show in those written to
    tensors: dict[int, Tensor] = field(default_factory=dict)  # of the leaves, themselves
    generators: list[Tensor] = field(default_factory=list)  # states before the call

    def add_value(self, kind: Kind) -> int:
        self.kinds[value := len(self.kinds)] = kind
        return value

    def release(self) -> None:
        """Frees what only verify reads."""
        self.calls.clear()
        self.numbers.clear()
        self.tensors.clear()
        self.generators.clear()
        self.attributes = dict.fromkeys(self.attributes)

    def find_results(self) -> set[int]:
        """Returns the values that outlive the call."""
        found = {leaf.value for leaf in pytree.tree_leaves(
            [self.result, [tree for _, tree in self.changed], [args for _, args in self.steps]])
            if isinstance(leaf, Ref)}
        return found.union(self.written.values(), self.checked)

    def is_one(self, value: int) -> bool:
        """Whether a value is the number 1 of an attribute, which each call compares from now on."""
        leaf, numbers, kind = self.leaves.get(value), self.numbers.get(value), self.kinds[value]
        if leaf is None or leaf.kind == "input" or kind.requires_grad or numbers is None:
            return False
        if kind.device.type != "cpu" or prod(kind.shape) != 1 or numbers.item() != 1:
            return False
        self.read[value] = numbers
        return True

    def find_maker(self, value: int, most: int = 0) -> Call | None:
        """Returns the call that makes a value, if it is one of the last `most`; 0: of all."""
        return next((call for call in islice(reversed(self.calls), most or None)
                     if value in call.outputs), None)

    def attributes_of(self, value: int, most: int, calls: int = 4) -> list[int] | None:
        """Returns the attributes of at most `most` numbers from which the last calls compute a
        value; None: it depends on something else."""
        leaf, kind = self.leaves.get(value), self.kinds[value]
        if leaf is not None:
            is_small = prod(kind.shape) <= most
            return [value] if leaf.kind != "input" and not kind.requires_grad and is_small else None
        call = self.find_maker(value, calls) if calls else None
        if call is None or call.is_random or call.written:
            return None
        found: list[int] = []
        for one in dict.fromkeys(call.inputs):
            if (part := self.attributes_of(one, most, calls - 1)) is None:
                return None
            found += part
        return found


# ------------------------------------------------------------------------------------- loops
class Fixed(NamedTuple):
    """An argument from before the loop, the same in each iteration."""

    value: int


class Now(NamedTuple):
    """An output of this iteration."""

    position: int  # in the body
    output: int  # in Call.outputs


class Before(NamedTuple):
    """An output of `lag` iterations before."""

    position: int
    output: int
    lag: int  # >= 1
    initial: tuple[int, ...]  # values from before the loop for the first `lag` iterations


class Varying(NamedTuple):
    """Another value from before the loop in each iteration."""

    values: tuple[int, ...]


class Numbers(NamedTuple):
    """A constant that changes with each iteration, such as the index of time."""

    values: tuple[Any, ...]


Slot: TypeAlias = Fixed | Now | Before | Varying | Numbers


def find_initial(slot: Any) -> tuple[int, ...]:
    """Returns the values from before the loop that a slot reads."""
    if isinstance(slot, Fixed):
        return (slot.value,)
    if isinstance(slot, Varying):
        return slot.values
    return slot.initial if isinstance(slot, Before) else ()


class BodyCall(NamedTuple):
    """A call of each iteration."""

    call: Call  # that of the first iteration
    slots: tuple[Any, ...]  # as call.leaves, with a Slot for each Ref and each varying constant


class Loop(NamedTuple):
    """Calls that are repeated."""

    iterations: int
    body: tuple[BodyCall, ...]
    made: tuple[tuple[tuple[int, ...], ...], ...]  # values by iteration, position, output

    def places(self) -> dict[int, tuple[int, int, int]]:
        """Returns iteration, position and output by value."""
        return {value: (t, position, k) for t, calls in enumerate(self.made)
                for position, values in enumerate(calls) for k, value in enumerate(values)}

    def list_places(self, positions: Iterable[int]) -> list[tuple[int, int]]:
        """Returns position and output of the results of calls."""
        return [(q, k) for q in positions for k in range(len(self.body[q].call.outputs))]

    def leaf(self, slot: Any, t: int) -> Any:
        """Returns what stands in the place of a slot in the recorded call of an iteration."""
        if isinstance(slot, Numbers):
            return slot.values[t]
        if isinstance(slot, Fixed):
            return Ref(slot.value)
        if isinstance(slot, Varying):
            return Ref(slot.values[t])
        if isinstance(slot, Before) and t < slot.lag:
            return Ref(slot.initial[t])
        if isinstance(slot, Now | Before):
            made = self.made[t - slot.lag if isinstance(slot, Before) else t]
            return Ref(made[slot.position][slot.output])
        return slot

    def expand(self, t: int, q: int) -> Call:
        """Returns the recorded call of an iteration and a position."""
        call, slots = self.body[q]
        leaves = tuple(self.leaf(slot, t) for slot in slots)
        names = dict(zip(call.outputs, self.made[t][q], strict=True))
        names.update((old.value, new.value) for old, new in zip(call.leaves, leaves, strict=True)
                     if isinstance(old, Ref))
        def rename(ref: Any) -> Any:
            return Ref(names[ref.value]) if isinstance(ref, Ref) else ref

        results = rename(call.results) if isinstance(call.results, Ref) else pytree.tree_map(
            rename, call.results)
        written = tuple((names[before], names[after]) for before, after in call.written)
        return call.replace(leaves=leaves, results=results, written=written)


Part: TypeAlias = Call | Loop
