"""Sizes: recordings for sizes of the inputs that were not recorded, with dynamic=True.

A recording becomes a tree of integers and other atoms, in which ranges of values are compressed.
The trees of two lengths of the sequence, or of two batch sizes, define a template: each integer,
such as a dimension or a number of iterations, is a linear function of the size, and all else is
equal. A template is used once it equals the tree of a third recording.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils import _pytree as pytree

from .guards import Guard
from .ir import (
    Before,
    BodyCall,
    Call,
    Container,
    Fixed,
    Kind,
    Later,
    Leaf,
    Loop,
    Now,
    Numbers,
    Part,
    Recording,
    Ref,
    Step,
    Varying,
    flatten_arguments,
)
from .plan import Plan
from .reroll import make_constant_key

MOST_PERIOD = 8  # of items that repeat
FEW = 4  # runs that need no shorter description
MOST_RECORDED = 8  # recordings of which any two may define a template
SLOTS = (Fixed, Now, Before, Varying, Numbers)
Tree: TypeAlias = Any  # an int, an Atom, a str, a Linear, or a tuple of trees


class UnpredictableError(Exception):
    """No template describes the recording."""


@dataclass(frozen=True)
class Atom:
    """Anything but an integer."""

    key: Any  # equal for equal values
    value: Any = field(compare=False)


class Linear(NamedTuple):
    """slope * size + offset."""

    slope: int
    offset: int


def fit(one: Tree, other: Tree, size: int, other_size: int) -> Tree:
    """Returns the tree with a Linear for each integer that differs. Raises UnpredictableError."""
    if type(one) is type(other) is tuple and len(one) == len(other):
        return tuple(fit(a, b, size, other_size) for a, b in zip(one, other, strict=True))
    if one == other:
        return one
    if type(one) is type(other) is int:
        slope, rest = divmod(other - one, other_size - size)
        if not rest:
            return Linear(slope, one - slope * size)
    raise UnpredictableError


def set_size(tree: Tree, size: int) -> Tree:
    """Returns the tree of a size."""
    if type(tree) is Linear:
        return tree.slope * size + tree.offset
    return tuple(set_size(one, size) for one in tree) if type(tree) is tuple else tree


def _list_integers(tree: Tree) -> Iterator[int]:
    if type(tree) is tuple:
        yield from chain.from_iterable(map(_list_integers, tree))
    elif type(tree) is int:
        yield tree


def _move(tree: Tree, steps: Iterator[int]) -> Tree:
    """Returns the tree with each integer moved by the next step, or by 0."""
    if type(tree) is tuple:
        return tuple(_move(one, steps) for one in tree)
    return tree + next(steps, 0) if type(tree) is int else tree


def compress(items: Sequence[Tree]) -> Tree:
    """Returns the runs of items 0, p, 2 p, ..., of items 1, p + 1, ... and so on, for the period p
    that gives the fewest."""
    found: list[Tree] = [_find_runs(items)]
    for period in range(2, min(MOST_PERIOD, len(items) // 2) + 1):
        if sum(map(len, found)) <= FEW:
            break
        found = min(found, [_find_runs(items[k::period]) for k in range(period)],
                    key=lambda columns: sum(map(len, columns)))
    return tuple(found)


def expand(columns: Tree) -> list[Tree]:
    """Returns the items of compress."""
    found = [[*_list_runs(one)] for one in columns]
    lengths = [*map(len, found)]
    if lengths != sorted(lengths, reverse=True) or lengths[0] - lengths[-1] > 1:
        raise UnpredictableError
    return [one[k] for k in range(lengths[0]) for one in found if k < len(one)]


def _find_runs(items: Sequence[Tree]) -> Tree:
    """Returns runs of items whose integers grow by constant steps: (first, steps, length) each."""
    found = []
    i = 0
    while i < len(items):
        integers = [*_list_integers(items[i])]
        steps, length = (0,) * len(integers), 1
        if len(items) > FEW and i + 1 < len(items):
            after = [*_list_integers(items[i + 1])]
            ahead = tuple(b - a for a, b in zip(integers, after, strict=False))
            while i + length < len(items) and items[i + length] == _move(
                    items[i], iter([length * step for step in ahead])):
                steps, length = ahead, length + 1
        found.append((items[i], steps, length))
        i += length
    return tuple(found)


def _list_runs(runs: Tree) -> Iterator[Tree]:
    """Yields the trees of runs."""
    for first, steps, length in runs:
        if length < 0:
            raise UnpredictableError
        for k in range(length):
            yield _move(first, iter([k * step for step in steps]))


# ------------------------------------------------------------------------------------ from a plan
def _atom(value: Any) -> Atom:
    return Atom(value, value)


def describe_key(key: Any) -> Tree:
    """Returns the tree of what tells inputs apart, nested tuples."""
    if isinstance(key, tuple):
        return tuple(map(describe_key, key))
    return key if type(key) is int else _atom(key)


def _describe_kinds(kinds: Iterable[Kind]) -> Tree:
    return tuple((tuple(kind.shape), _atom(kind[1:]), len(list(group)))
                 for kind, group in groupby(kinds))


def _make_kinds(tree: Tree) -> list[Kind]:
    return [kind for shape, rest, length in tree
            for kind in [Kind(shape, *rest.value)] * length]


class _Description:
    """The tree of a plan."""

    def __init__(self, plan: Plan) -> None:
        recording = self.recording = plan.recording
        self.addresses: dict[int, Tree] = {
            value: ("leaf", i) for i, value in enumerate(recording.leaves)}
        parts = [part if isinstance(part, Call) else part[0] for part in plan.parts]
        for p, part in enumerate(parts):
            if isinstance(part, Call):
                self.addresses.update((value, ("call", p, k))
                                      for k, value in enumerate(part.outputs))
            else:
                self.addresses.update((value, ("loop", p, q, k, t))
                                      for value, (t, q, k) in part.places().items())
        self.tree = (
            _atom(tuple(recording.leaves.values())),
            _describe_kinds(recording.kinds[value] for value in recording.leaves),
            tuple(map(self._describe_part, parts)),
            self._describe(recording.result),
            tuple((_atom(path), self._describe(tree)) for path, tree in recording.changed),
            self._describe_values(chain.from_iterable(recording.written.items())),
            self._describe_values(recording.checked),
            compress([*map(_atom, recording.checked.values())]),
            self._describe_values(recording.strides),
            compress([*recording.strides.values()]),
            compress([(_atom(step.function), self._describe(step.args))
                      for step in recording.steps]),
            _atom(tuple(recording.attributes)),
            self._describe_values(chain.from_iterable(
                (one, first) for one, (first, _) in recording.shared.items())),
            compress([_atom(is_detached) for _, is_detached in recording.shared.values()]))

    def _describe_values(self, values: Iterable[int]) -> Tree:
        return compress([self.addresses[value] for value in values])

    def _describe(self, one: Any) -> Tree:
        """Returns the tree of arguments or results."""
        if isinstance(one, Ref):
            return "ref", self.addresses[one.value]
        if isinstance(one, SLOTS):
            return self._describe_slot(one)
        if type(one) is int:
            return one
        if isinstance(one, slice):
            return "slice", *map(self._describe, (one.start, one.stop, one.step))
        if isinstance(one, Later):
            return "later", one.step
        if isinstance(one, Container):
            return "container", one.number
        if isinstance(one, Leaf):
            return _atom(one)
        if type(one) in (list, tuple, torch.Size):
            return "sequence", _atom(type(one)), compress([*map(self._describe, one)])
        leaves, spec = pytree.tree_flatten(one)
        if spec.is_leaf():
            return Atom(make_constant_key(one), one)
        return "tree", _atom(spec), tuple(map(self._describe, leaves))

    def _describe_slot(self, slot: Any) -> Tree:
        if isinstance(slot, Fixed):
            return "fixed", self.addresses[slot.value]
        if isinstance(slot, Now):
            return "now", *slot
        if isinstance(slot, Before):
            return "before", *slot[:3], self._describe_values(slot.initial)
        if isinstance(slot, Varying):
            return "varying", self._describe_values(slot.values)
        return "numbers", compress([*map(self._describe, slot.values)])

    def _describe_call(self, call: Call, leaves: Sequence[Any]) -> Tree:
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        return (_atom(call.function), tuple(map(self._describe, args)), _atom(tuple(kwargs)),
                tuple(map(self._describe, kwargs.values())), self._describe(call.results),
                self._describe_values(chain.from_iterable(call.written)), _atom(call.mode),
                _atom(call.is_random), _atom(call.line))

    def _describe_part(self, part: Part) -> Tree:
        kinds = self.recording.kinds
        if isinstance(part, Call):
            return (self._describe_call(part, part.leaves),
                    _describe_kinds(kinds[value] for value in part.outputs))
        outputs = [len(values) for values in part.made[0]]
        return (part.iterations,
                tuple(self._describe_call(one.call, one.slots) for one in part.body),
                tuple(tuple(_describe_kinds(kinds[made[q][k]] for made in part.made)
                            for k in range(length)) for q, length in enumerate(outputs)))


# -------------------------------------------------------------------------------------- to a plan
class _Builder:
    """Makes the recording of a tree, with the leaves of a recording of another size."""

    def __init__(self, base: Recording) -> None:
        self.base = base
        self.leaves = list(base.leaves)
        self.kinds: dict[int, Kind] = {}
        self.next = max(self.leaves, default=-1) + 1
        self.made: list[Any] = []  # values by part; of a loop as Loop.made

    def make(self, tree: Tree) -> tuple[Recording, list[Part]]:
        (_, kinds, parts, result, changed, written, checked, read, strided, strides, steps, _,
         shared, detached) = tree
        self.kinds.update(zip(self.leaves, _make_kinds(kinds), strict=True))
        made = [self._make_loop(*part) if len(part) == 3 else self._make_single(*part)
                for part in parts]
        pairs = self._make_pairs(shared)
        recording = Recording(
            [one.call for part in made for one in (
                part.body if isinstance(part, Loop) else [BodyCall(part, ())])],
            self.base.leaves, self.kinds, self._make(result),
            [(path.value, self._make(one)) for path, one in changed],
            dict(self._make_pairs(written)), {}, read=self.base.read,
            checked=dict(zip(self._find_all(checked), [one.value for one in expand(read)],
                             strict=True)),
            strides=dict(zip(self._find_all(strided), expand(strides), strict=True)),
            steps=[Step(function.value, self._make(args)) for function, args in expand(steps)],
            attributes=self.base.attributes,
            shared={one: (first, is_detached.value) for (one, first), is_detached in zip(
                pairs, expand(detached), strict=True)})
        return recording, made

    def _find(self, address: Tree) -> int:
        """Returns the value at an address."""
        if min(address[1:]) < 0:
            raise UnpredictableError
        try:
            if address[0] == "leaf":
                return self.leaves[address[1]]
            if address[0] == "call":
                return self.made[address[1]][address[2]]  # type: ignore[no-any-return]
            _, p, q, k, t = address
            return self.made[p][t][q][k]  # type: ignore[no-any-return]
        except IndexError:
            raise UnpredictableError from None

    def _find_all(self, runs: Tree) -> tuple[int, ...]:
        return tuple(map(self._find, expand(runs)))

    def _make_pairs(self, runs: Tree) -> list[tuple[int, int]]:
        values = self._find_all(runs)
        return [*zip(values[::2], values[1::2], strict=True)]

    def _add(self, kind: Kind) -> int:
        self.kinds[self.next] = kind
        self.next += 1
        return self.next - 1

    def _make(self, tree: Tree) -> Any:
        """Returns the arguments or results of a tree."""
        match tree:
            case Atom():
                return tree.value
            case int():
                return tree
            case "ref", address:
                return Ref(self._find(address))
            case "sequence", kind, items:
                return kind.value(map(self._make, expand(items)))
            case "tree", spec, items:
                return pytree.tree_unflatten([*map(self._make, items)], spec.value)
            case "slice", start, stop, step:
                return slice(*map(self._make, (start, stop, step)))
            case "later", step:
                return Later(step)
            case "container", number:
                return Container(number)
            case "fixed", address:
                return Fixed(self._find(address))
            case "now", position, output:
                return Now(position, output)
            case "before", position, output, lag, runs:
                return Before(position, output, lag, self._find_all(runs))
            case "varying", runs:
                return Varying(self._find_all(runs))
            case "numbers", runs:
                return Numbers(tuple(map(self._make, expand(runs))))
        raise AssertionError(tree)

    def _make_call(self, tree: Tree, get_first: Callable[[Any], Any]) -> BodyCall:
        """get_first: of an argument its value in the first iteration."""
        function, args, names, values, results, written, mode, is_random, line = tree
        arguments = (tuple(map(self._make, args)),
                     dict(zip(names.value, map(self._make, values), strict=True)))
        first_args, first_kwargs = pytree.tree_map(get_first, arguments, is_leaf=_is_slot)
        leaves, spec = flatten_arguments(first_args, first_kwargs)
        slots = pytree.tree_leaves(arguments, is_leaf=_is_slot)
        call = Call(function.value, tuple(leaves), spec, self._make(results),
                    tuple(self._make_pairs(written)), mode.value, is_random.value, line.value)
        return BodyCall(call, tuple(slots))

    def _make_single(self, call: Tree, kinds: Tree) -> Call:
        self.made.append([*map(self._add, _make_kinds(kinds))])
        return self._make_call(call, lambda one: one).call

    def _make_loop(self, iterations: int, body: Tree, kinds: Tree) -> Loop:
        columns = [[_make_kinds(one) for one in each] for each in kinds]
        if iterations < 1 or any(len(one) != iterations for each in columns for one in each):
            raise UnpredictableError
        made = tuple(tuple(tuple(self._add(one[t]) for one in each) for each in columns)
                     for t in range(iterations))
        self.made.append(made)

        def get_first(slot: Any) -> Any:
            if isinstance(slot, Now):
                return Ref(made[0][slot.position][slot.output])
            if isinstance(slot, Fixed):
                return Ref(slot.value)
            if isinstance(slot, Numbers):
                return slot.values[0]
            if isinstance(slot, Before):
                return Ref(slot.initial[0])
            return Ref(slot.values[0]) if isinstance(slot, Varying) else slot

        return Loop(iterations, tuple(self._make_call(one, get_first) for one in body), made)


def _is_slot(one: Any) -> bool:
    return isinstance(one, SLOTS)


# -------------------------------------------------------------------------------------- templates
class Recorded(NamedTuple):
    """A recording from which others may be made."""

    key: Tree
    tree: Tree
    entry: Any  # of the replayer


class Template:
    """What the recordings of two sizes have in common."""

    def __init__(self, one: Recorded, other: Recorded) -> None:
        """Raises UnpredictableError: nothing that predicts a third one."""
        size, other_size = next(((a, b) for a, b in zip(
            _list_integers(one.key), _list_integers(other.key), strict=False) if a != b), (0, 0))
        if size == other_size:
            raise UnpredictableError
        self.entry = other.entry
        self.key = fit(one.key, other.key, size, other_size)
        self.tree = fit(one.tree, other.tree, size, other_size)
        self.least = min(size, other_size)
        self.is_confirmed = False

    def find_size(self, key: Tree) -> int | None:
        """Returns the size for which inputs have this key."""
        sizes = _find_sizes(self.key, key)
        size = next(sizes, None)
        return size if size is not None and set_size(self.key, size) == key else None


def _find_sizes(template: Tree, tree: Tree) -> Iterator[int]:
    """Yields the size that each Linear tells, of which the first is the size itself."""
    if type(template) is Linear:
        if type(tree) is int:
            yield (tree - template.offset) // template.slope
    elif type(template) is type(tree) is tuple:
        for one, other in zip(template, tree, strict=False):
            yield from _find_sizes(one, other)


def _holds(guard: Guard, inputs: list[Any]) -> bool:
    return guard.holds(inputs) or guard.settle(inputs)


class Sizes:
    """The templates of a replayer."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []
        self.templates: list[Template] = []

    def find_holding(self, inputs: list[Any]) -> list[Recorded]:
        """Returns the recordings that hold, but for the size of the inputs."""
        return [one for one in self.recorded if _holds(one.entry.guard, inputs)]

    def add(self, key: Any, entry: Any, others: Sequence[Recorded]) -> None:
        """Adds a recording: it confirms templates, or makes new ones with others, which held
        before the recorded call."""
        if entry.plan is None:
            return
        new = Recorded(describe_key(key), _Description(entry.plan).tree, entry)
        matching = [(one, size) for one in self.templates
                    if (size := one.find_size(new.key)) is not None]
        for one, size in matching:
            one.is_confirmed = set_size(one.tree, size) == new.tree
            one.entry, one.least = entry, min(one.least, size)
            if not one.is_confirmed:
                self.templates.remove(one)
        if not any(one.is_confirmed for one, _ in matching):
            for other in others:
                try:
                    self.templates.append(Template(other, new))
                except UnpredictableError:
                    continue
        self.recorded = [*self.recorded, new][-MOST_RECORDED:]

    def predict(self, key: Any, inputs: list[Any], exact: bool) -> Any:
        """Returns an entry for inputs that were not recorded, of which the replayer has recorded
        three other sizes, the smallest at most this one; None: there is none."""
        tree = describe_key(key)
        for one in self.templates:
            size = one.find_size(tree) if one.is_confirmed else None
            if size is None or size < one.least or not _holds(one.entry.guard, inputs):
                continue
            try:
                base = one.entry.plan.recording
                recording, parts = _Builder(base).make(set_size(one.tree, size))
            except UnpredictableError:
                continue
            leaves = one.entry.guard.look_up(inputs)
            recording.numbers.update((value, tensor.detach()) for value, tensor in leaves.items())
            plan = Plan(recording, exact, parts)
            recording.release()
            return one.entry._replace(plan=plan, plain={}, comparison=None)
        return None
