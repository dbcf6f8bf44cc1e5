"""Sizes: entries for sizes of the inputs that were not recorded, with dynamic=True.

Recordings of two sizes, such as lengths of the sequence, that differ in integers only define a
template. It is used once it predicts a third recording exactly, and between the sizes of these.
Shapes that are no linear functions of the size, as of a part of the input, show in the first run.
"""
from collections.abc import Iterator
from contextlib import suppress
from math import gcd
from typing import Any, NamedTuple

import torch

from ..codegen.plain import generator_states, set_generator_states
from .guards import Guard
from .ir import Call
from .paths import resolve
from .plan import Plan
from .plan_trees import Builder, Description
from .trees import Linear, Tree, UnpredictableError, fit, list_integers, make_atom, set_size
from .values import Values

MOST_RECORDED = 16  # recordings of which any two may define a template
MOST_PREDICTED = 64  # entries that are kept


class Recorded(NamedTuple):
    """A recording from which others may be made."""

    key: Tree
    tree: Tree
    entry: Any  # of the replayer


def describe_key(key: Any) -> Tree:
    """Returns the tree of what tells inputs apart: shapes, and all else in nested tuples."""
    shapes = [tuple(kind[0]) for kind in key[1] if isinstance(kind[0], torch.Size)]
    return tuple(shapes), _describe(key)


def _describe(key: Any) -> Tree:
    if isinstance(key, tuple):
        return tuple(map(_describe, key))
    return key if type(key) is int else make_atom(key)


class Template:
    """What the recordings of two sizes have in common."""

    def __init__(self, one: Recorded, other: Recorded) -> None:
        """Raises UnpredictableError: they differ in more than integers, or in no shape."""
        sizes = zip(list_integers(one.key[0]), list_integers(other.key[0]), strict=False)
        size, other_size = next(((a, b) for a, b in sizes if a != b), (0, 0))
        if size == other_size:
            raise UnpredictableError
        self.entry = other.entry
        self.key = fit(one.key, other.key, size, other_size)
        self.tree = fit(one.tree, other.tree, size, other_size)
        self.sizes = [size, other_size]  # of the recordings that agree
        self.is_confirmed = False

    def find_size(self, key: Tree) -> int | None:
        """Returns the size for which inputs have this key."""
        size = next(_find_sizes(self.key, key), None)
        return size if size is not None and set_size(self.key, size) == key else None

    def agrees(self, recorded: list[Recorded]) -> bool:
        """Whether it predicts those of these recordings that are between its sizes."""
        sizes = [self.find_size(one.key) for one in recorded]
        return all(set_size(self.tree, size) == one.tree for one, size in zip(
            recorded, sizes, strict=True)
            if size is not None and min(self.sizes) <= size <= max(self.sizes))

    def covers(self, size: int) -> bool:
        """Whether a size is between those of the recordings, and differs from them by multiples of
        what divides their differences: sizes that are all even tell nothing about odd ones."""
        first = self.sizes[0]
        return min(self.sizes) <= size <= max(self.sizes) and (
            (size - first) % gcd(*(one - first for one in self.sizes)) == 0)

    def make_entry(self, size: int, inputs: list[Any], exact: bool) -> Any:
        """Returns the entry of a size, whose plan has run on these inputs. Raises what it does."""
        guard, base = self.entry.guard, self.entry.plan.recording
        recording, parts = Builder(base).make(set_size(self.tree, size))
        leaves = guard.look_up(inputs)
        recording.numbers.update((value, one.detach()) for value, one in leaves.items())
        plan = Plan(recording, exact, parts)
        recording.release()
        if recording.read.keys() != base.read.keys():  # which the guard would not compare
            raise UnpredictableError
        if [one.kind for one in plan.stages] != [one.kind for one in self.entry.plan.stages]:
            raise UnpredictableError  # such as a recurrence that is no kernel for this size
        states = generator_states() if plan.is_random else []
        values = Values(leaves, plan.layout)
        try:
            _, values = plan.run(leaves, True, {
                path: resolve(guard.function, path) for path in recording.attributes})
            _check_shapes(plan, values)
        finally:
            values.frames.clear()  # they have the values, which would stay alive
            set_generator_states(states)
        return self.entry._replace(plan=plan, plain={}, comparison=None)


def _find_sizes(template: Tree, tree: Tree) -> Iterator[int]:
    """Yields the integers in the places of a template that are the size itself."""
    if type(template) is Linear:
        yield from [tree] if template == Linear(1, 0) and type(tree) is int else []
    elif type(template) is type(tree) is tuple:
        for one, other in zip(template, tree, strict=False):
            yield from _find_sizes(one, other)


def _check_shapes(plan: Plan, values: Values) -> None:
    """Raises UnpredictableError unless a run has made values of the predicted shapes."""
    kinds = plan.recording.kinds
    loops = [part[0] for part in plan.parts if not isinstance(part, Call)]
    for number, frame in values.frames.items():
        for place in [*frame.products]:
            frame.whole(place)
        for (q, k), tensor in frame.sequences.items():
            wanted = (tensor.shape[1:] if number < 0 else
                      kinds[loops[number].made[0][q][k]].shape)
            if tensor.shape != (frame.iterations, *wanted):
                raise UnpredictableError
    for value in [*values.tensors, *values.products]:
        if values.get(value).shape != kinds[value].shape:
            raise UnpredictableError


def _holds(guard: Guard, inputs: list[Any]) -> bool:
    return guard.holds(inputs) or guard.settle(inputs)


class Sizes:
    """The templates of a replayer."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []
        self.templates: list[Template] = []
        # those that hold for the call that is being recorded
        self.holding: tuple[list[Recorded], list[Template]] = [], []
        # entries made from templates, the latest last: key, entry, template
        self.predicted: list[tuple[Any, Any, Template]] = []

    def begin(self, inputs: list[Any]) -> None:
        """Notes, before a call is recorded, what holds but for the size of the inputs."""
        self.holding = ([one for one in self.recorded if _holds(one.entry.guard, inputs)],
                        [one for one in self.templates if _holds(one.entry.guard, inputs)])

    def add(self, entries: dict[Any, list[Any]], key: Any, entry: Any) -> None:
        """Adds a recording: it confirms templates, or makes new ones with those that hold."""
        if entry.plan is None:
            return
        new = Recorded(describe_key(key), Description(entry.plan).tree, entry)
        matching = [(one, size) for one in self.holding[1]
                    if (size := one.find_size(new.key)) is not None]
        for one, size in matching:
            one.sizes.append(size)
            one.is_confirmed = one.agrees([new, *self.holding[0]])
            if one.is_confirmed:
                one.entry = entry
            else:
                self.templates.remove(one)
                self._forget(entries, [each for each in self.predicted if each[2] is one])
        if not any(one.is_confirmed for one, _ in matching):
            for other in self.holding[0]:
                with suppress(UnpredictableError):
                    template = Template(other, new)
                    if template.agrees(self.holding[0]):
                        self.templates.append(template)
        self.recorded = [*self.recorded, new][-MOST_RECORDED:]

    def predict(self, entries: dict[Any, list[Any]], key: Any, inputs: list[Any],
                exact: bool) -> bool:
        """Adds an entry for inputs of a size between those that agree. Returns whether it did."""
        tree = describe_key(key)
        for one in self.templates:
            size = one.find_size(tree) if one.is_confirmed else None
            if size is None or not one.covers(size) or not _holds(one.entry.guard, inputs):
                continue
            try:
                entry = one.make_entry(size, inputs, exact)
            except Exception:  # of any operator, as the original perhaps
                continue
            self._forget(entries, self.predicted[: 1 - MOST_PREDICTED])
            self.predicted.append((key, entry, one))
            entries.setdefault(key, []).append(entry)
            return True
        return False

    def _forget(self, entries: dict[Any, list[Any]], which: list[Any]) -> None:
        for each in which:
            key, entry, _ = each
            self.predicted = [one for one in self.predicted if one is not each]
            left = [one for one in entries.pop(key, []) if one is not entry]
            if left:
                entries[key] = left
