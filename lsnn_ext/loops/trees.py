"""Trees of integers and other atoms, of which two sizes define all others.

Each integer of a tree is a linear function of the size, all else is the same for each size. Lists
whose items grow with their place, such as the values of a loop, are compressed to runs.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

MOST_PERIOD = 8  # of items that repeat
FEW = 4  # items or runs that need no shorter description
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


def make_atom(value: Any) -> Atom:
    """Returns the atom of a value that == compares."""
    return Atom(value, value)


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


def list_integers(tree: Tree) -> Iterator[int]:
    if type(tree) is tuple:
        yield from chain.from_iterable(map(list_integers, tree))
    elif type(tree) is int:
        yield tree


def _move(tree: Tree, steps: Iterator[int]) -> Tree:
    """Returns the tree with each integer moved by the next step, or by 0."""
    if type(tree) is tuple:
        return tuple(_move(one, steps) for one in tree)
    return tree + next(steps, 0) if type(tree) is int else tree


def compress(items: Sequence[Tree]) -> Tree:
    """Returns the runs of items k, k + p, k + 2 p, ... for the period p that gives the fewest."""
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
        integers = [*list_integers(items[i])]
        steps, length = (0,) * len(integers), 1
        if len(items) > FEW and i + 1 < len(items):
            after = [*list_integers(items[i + 1])]
            ahead = tuple(b - a for a, b in zip(integers, after, strict=False))
            while i + length < len(items) and items[i + length] == _move(
                    items[i], iter([length * step for step in ahead])):
                steps, length = ahead, length + 1
        found.append((items[i], steps, length))
        i += length
    return tuple(found)


def _list_runs(runs: Tree) -> Iterator[Tree]:
    for first, steps, length in runs:
        if length < 0:
            raise UnpredictableError
        for k in range(length):
            yield _move(first, iter([k * step for step in steps]))
