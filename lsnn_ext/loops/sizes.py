"""Sizes: entries for sizes of the inputs that were not recorded, with dynamic=True.

Recordings of two sizes, such as lengths of the sequence, that differ in integers only define a
template. It is used once it predicts a third recording exactly.
"""
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from .guards import Guard
from .ir import Refused
from .plan import Plan
from .plan_trees import Builder, describe_plan
from .trees import Linear, Tree, UnpredictableError, fit, list_integers, make_atom, set_size

MOST_RECORDED = 8  # recordings of which any two may define a template
MOST_PREDICTED = 64  # entries that are kept


def describe_key(key: Any) -> Tree:
    """Returns the tree of what tells inputs apart, nested tuples."""
    if isinstance(key, tuple):
        return tuple(map(describe_key, key))
    return key if type(key) is int else make_atom(key)


class Recorded(NamedTuple):
    """A recording from which others may be made."""

    key: Tree
    tree: Tree
    entry: Any  # of the replayer


class Template:
    """What the recordings of two sizes have in common."""

    def __init__(self, one: Recorded, other: Recorded) -> None:
        """Raises UnpredictableError: they differ in more than integers."""
        sizes = zip(list_integers(one.key), list_integers(other.key), strict=False)
        size, other_size = next(((a, b) for a, b in sizes if a != b), (0, 0))
        if size == other_size:
            raise UnpredictableError
        self.entry = other.entry
        self.key = fit(one.key, other.key, size, other_size)
        self.tree = fit(one.tree, other.tree, size, other_size)
        self.least = min(size, other_size)
        self.is_confirmed = False

    def find_size(self, key: Tree) -> int | None:
        """Returns the size for which inputs have this key."""
        size = next(_find_sizes(self.key, key), None)
        return size if size is not None and set_size(self.key, size) == key else None

    def make_entry(self, size: int, inputs: list[Any], exact: bool) -> Any:
        """Returns the entry of a size. Raises UnpredictableError or Refused."""
        guard = self.entry.guard
        recording, parts = Builder(self.entry.plan.recording).make(set_size(self.tree, size))
        recording.numbers.update((value, tensor.detach())
                                 for value, tensor in guard.look_up(inputs).items())
        plan = Plan(recording, exact, parts)
        recording.release()
        return self.entry._replace(plan=plan, plain={}, comparison=None)


def _find_sizes(template: Tree, tree: Tree) -> Iterator[int]:
    """Yields the integers in the places of a template that are the size itself."""
    if template == Linear(1, 0) and type(template) is Linear:
        yield from [tree] if type(tree) is int else []
    elif type(template) is type(tree) is tuple:
        for one, other in zip(template, tree, strict=False):
            yield from _find_sizes(one, other)


def _holds(guard: Guard, inputs: list[Any]) -> bool:
    return guard.holds(inputs) or guard.settle(inputs)


class Sizes:
    """The templates of a replayer."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []
        self.holding: list[Recorded] = []  # those that hold for the call that is being recorded
        self.templates: list[Template] = []
        self.predicted: list[Any] = []  # keys of the entries made from templates, the latest last

    def begin(self, inputs: list[Any]) -> None:
        """Notes, before a call is recorded, which recordings hold but for the size of inputs."""
        self.holding = [one for one in self.recorded if _holds(one.entry.guard, inputs)]

    def add(self, key: Any, entry: Any) -> None:
        """Adds a recording: it confirms templates, or makes new ones with those that hold."""
        if entry.plan is None:
            return
        new = Recorded(describe_key(key), describe_plan(entry.plan), entry)
        matching = [(one, size) for one in self.templates
                    if (size := one.find_size(new.key)) is not None]
        for one, size in matching:
            one.is_confirmed = set_size(one.tree, size) == new.tree
            one.entry, one.least = entry, min(one.least, size)
            if not one.is_confirmed:
                self.templates.remove(one)
        if not any(one.is_confirmed for one, _ in matching):
            for other in self.holding:
                with suppress(UnpredictableError):
                    self.templates.append(Template(other, new))
        self.recorded = [*self.recorded, new][-MOST_RECORDED:]

    def predict(self, entries: dict[Any, list[Any]], key: Any, inputs: list[Any],
                exact: bool) -> bool:
        """Adds an entry for inputs that were not recorded, if a template is confirmed by three
        recordings and the size is not below theirs. Returns whether there is one."""
        tree = describe_key(key)
        for one in self.templates:
            size = one.find_size(tree) if one.is_confirmed else None
            if size is None or size < one.least or not _holds(one.entry.guard, inputs):
                continue
            with suppress(UnpredictableError, Refused):
                entry = one.make_entry(size, inputs, exact)
                if len(self.predicted) == MOST_PREDICTED:
                    del entries[self.predicted.pop(0)]
                self.predicted.append(key)
                entries.setdefault(key, []).append(entry)
                return True
        return False
