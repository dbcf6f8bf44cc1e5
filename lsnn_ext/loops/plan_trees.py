"""Plans as trees, and recordings made from trees.

A value is named by the part of the plan that makes it and, in a loop, by position, output and
iteration: an argument or result then depends on the size by its integers only.
"""
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, groupby
from typing import Any

import torch
from torch.utils import _pytree as pytree

from . import ir
from .ir import Before, Call, Fixed, Kind, Loop, Now, Numbers, Part, Recording, Ref, Varying
from .plan import Plan
from .reroll import make_constant_key
from .trees import Atom, Tree, UnpredictableError, compress, expand, make_atom

# What stands in arguments and results: its fields, which are a value, values, or anything.
FIELDS: dict[type, dict[str, str]] = {
    Ref: {"value": "value"}, Fixed: {"value": "value"}, Varying: {"values": "values"},
    Now: {"position": "any", "output": "any"},
    Before: {"position": "any", "output": "any", "lag": "any", "initial": "values"},
    Numbers: {"values": "any"}, ir.Later: {"step": "any"}, ir.Container: {"number": "any"},
    slice: {"start": "any", "stop": "any", "step": "any"}}


def _describe_kinds(kinds: Iterable[Kind]) -> Tree:
    return tuple((tuple(kind.shape), make_atom(kind[1:]), len(list(group)))
                 for kind, group in groupby(kinds))


def _make_kinds(tree: Tree) -> list[Kind]:
    return [kind for shape, rest, length in tree
            for kind in [Kind(shape, *rest.value)] * length]


class Description:
    """The tree of the calls and loops of a plan, and of what its recording changes."""

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
            make_atom(tuple(recording.leaves.values())),
            _describe_kinds(recording.kinds[value] for value in recording.leaves),
            tuple(map(self._describe_part, parts)),
            self._describe(recording.result),
            tuple((make_atom(path), self._describe(tree)) for path, tree in recording.changed),
            self._describe_values(chain.from_iterable(recording.written.items())),
            self._describe_values(recording.checked),
            compress([*map(make_atom, recording.checked.values())]),
            self._describe_values(recording.strides),
            compress([*recording.strides.values()]),
            compress([(make_atom(step.function), self._describe(step.args))
                      for step in recording.steps]),
            make_atom(tuple(recording.attributes)),
            self._describe_values(chain.from_iterable(
                (one, first) for one, (first, _) in recording.shared.items())),
            compress([make_atom(is_detached) for _, is_detached in recording.shared.values()]))

    def _describe_values(self, values: Iterable[int]) -> Tree:
        return compress([self.addresses[value] for value in values])

    def _describe(self, one: Any) -> Tree:
        if type(one) in FIELDS:
            return "object", make_atom(type(one)), tuple(
                self._describe_field(kind, getattr(one, name))
                for name, kind in FIELDS[type(one)].items())
        if type(one) is int:
            return one
        if isinstance(one, ir.Leaf):
            return make_atom(one)
        if type(one) in (list, tuple, torch.Size):
            return "sequence", make_atom(type(one)), compress([*map(self._describe, one)])
        leaves, spec = pytree.tree_flatten(one)
        if spec.is_leaf():
            return Atom(make_constant_key(one), one)
        return "tree", make_atom(spec), tuple(map(self._describe, leaves))

    def _describe_field(self, kind: str, field: Any) -> Tree:
        if kind == "any":
            return self._describe(field)
        return self.addresses[field] if kind == "value" else self._describe_values(field)

    def _describe_call(self, call: Call, leaves: Sequence[Any]) -> Tree:
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        return (make_atom(call.function), tuple(map(self._describe, args)),
                make_atom(tuple(kwargs)), tuple(map(self._describe, kwargs.values())),
                self._describe(call.results),
                self._describe_values(chain.from_iterable(call.written)), make_atom(call.mode),
                make_atom(call.is_random), make_atom(call.line))

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


# ---------------------------------------------------------------------------------- to a recording
class Builder:
    """Makes the recording of a tree, with the leaves of a recording of another size."""

    def __init__(self, base: Recording) -> None:
        self.base = base
        self.leaves = list(base.leaves)
        self.kinds: dict[int, Kind] = {}
        self.next = max(self.leaves, default=-1) + 1
        self.made: list[Any] = []  # values by part; of a loop as Loop.made

    def make(self, tree: Tree) -> tuple[Recording, list[Part]]:
        """Returns the recording and its calls and loops. Raises UnpredictableError."""
        (_, kinds, parts, result, changed, written, checked, read, strided, strides, steps, _,
         shared, detached) = tree
        self.kinds.update(zip(self.leaves, _make_kinds(kinds), strict=True))
        made = [self._make_loop(*part) if len(part) == 3 else self._make_single(*part)
                for part in parts]
        pairs = self._make_pairs(shared)
        recording = Recording(
            [one.call for part in made for one in (
                part.body if isinstance(part, Loop) else [ir.BodyCall(part, ())])],
            self.base.leaves, self.kinds, self._make(result),
            [(path.value, self._make(one)) for path, one in changed],
            dict(self._make_pairs(written)), {}, read={**self.base.read},
            checked=dict(zip(self._find_all(checked), [one.value for one in expand(read)],
                             strict=True)),
            strides=dict(zip(self._find_all(strided), expand(strides), strict=True)),
            steps=[ir.Step(function.value, self._make(args)) for function, args in expand(steps)],
            attributes=self.base.attributes,
            shared={one: (first, is_detached.value) for (one, first), is_detached in zip(
                pairs, expand(detached), strict=True)})
        return recording, made

    def _find(self, address: Tree) -> int:
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
        match tree:
            case Atom():
                return tree.value
            case int():
                return tree
            case "object", kind, fields:
                return kind.value(*map(self._make_field, FIELDS[kind.value].values(), fields))
            case "sequence", kind, items:
                return kind.value(map(self._make, expand(items)))
            case "tree", spec, items:
                return pytree.tree_unflatten([*map(self._make, items)], spec.value)
        raise AssertionError(tree)

    def _make_field(self, kind: str, tree: Tree) -> Any:
        if kind == "any":
            return self._make(tree)
        return self._find(tree) if kind == "value" else self._find_all(tree)

    def _make_call(self, tree: Tree, get_first: Callable[[Any], Any]) -> ir.BodyCall:
        """get_first: of an argument its value in the first iteration."""
        function, args, names, values, results, written, mode, is_random, line = tree
        arguments = (tuple(map(self._make, args)),
                     dict(zip(names.value, map(self._make, values), strict=True)))
        first_args, first_kwargs = pytree.tree_map(get_first, arguments, is_leaf=_is_slot)
        leaves, spec = ir.flatten_arguments(first_args, first_kwargs)
        slots = pytree.tree_leaves(arguments, is_leaf=_is_slot)
        call = Call(function.value, tuple(leaves), spec, self._make(results),
                    tuple(self._make_pairs(written)), mode.value, is_random.value, line.value)
        return ir.BodyCall(call, tuple(slots))

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

        loop = Loop(iterations, (), made)
        return loop._replace(body=tuple(
            self._make_call(one, lambda slot: loop.leaf(slot, 0)) for one in body))


def _is_slot(one: Any) -> bool:
    return isinstance(one, ir.Slot)
