"""Snapshot: all that a function can reach, at one time."""
import types
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..codegen.plain import (
    MISSING,
    SEQUENCES,
    Same,
    describe_tensor,
    find_oddity,
    is_mutable,
    is_same,
    list_elements,
    make_key,
    make_restore,
)
from ..codegen.user_code import find_names, is_user
from .ir import Refused
from .paths import (
    Path,
    Step,
    format_path,
    is_opaque,
    is_read,
    is_walked,
    list_entries,
    set_step,
)

MAX_NODES = 20_000
SETTABLE = ("attribute", "item", "member", "closure", "global", "contents", "more")


class Node(NamedTuple):
    """An object that holds others, and these."""

    value: Any
    path: Path
    held: dict[Step, Any]
    plain: dict[Step, tuple[Any, ...]]  # make_key() of the plain values among them


class Snapshot:
    """All that a function can reach, as it is now.

    Args:
        codes: of functions that run; None: all that are reached may.
        before: take what objects held then.
        without: places to leave out.
    """

    def __init__(self, function: Any, codes: Container[types.CodeType] | None = None,
                 before: "Snapshot | None" = None, without: Container[Path] = ()) -> None:
        self.codes, self._before, self._without = codes, before, without
        self.nodes: list[Node] = []
        self.numbers: dict[int, int] = {}  # of nodes, by id of their object
        self.tensors: dict[int, tuple[Tensor, list[tuple[int, Step]]]] = {}  # and their places
        self.kinds: dict[int, tuple[Any, ...]] = {}  # of the tensors, by id
        self.names = {"forward"}  # what torch calls
        self._waiting: deque[tuple[Path, Any]] = deque([((), function)])
        self._made: set[int] = set()
        count = -1
        while count != len(self.names) or self._waiting:
            count = len(self.names)
            while self._waiting:
                path, value = self._waiting.popleft()
                if id(value) not in self.numbers:
                    self.numbers[id(value)] = len(self.nodes)
                    self.nodes.append(Node(value, path, {}, {}))
                    self._read(self.nodes[-1])
            for node in self.nodes:
                if isinstance(node.value, (type, types.ModuleType)):
                    self._read(node)
        for node in self.nodes:  # in an order that no round of reading decides
            node.held.update({step: node.held.pop(step)
                              for step, _ in self._entries(node.value) if step in node.held})
        self._describe()
        self._before = None

    def node(self, value: Any) -> Node:
        """Returns the node of an object."""
        return self.nodes[self.numbers[id(value)]]

    def _read(self, node: Node) -> None:
        if len(self.nodes) > MAX_NODES:
            raise Refused(f"{format_path(node.path)}: expected at most {MAX_NODES} Python objects "
                          f"in reach of the model; hold data and trainers elsewhere")
        value = node.value
        if isinstance(value, types.FunctionType):
            if self.codes is not None and value.__code__ not in self.codes:
                return
            self.names |= find_names(value.__code__)
        number = self.numbers[id(value)]
        is_made = id(value) in self._made
        for step, one in self._entries(value):
            if step in node.held or not is_read(value, step, one, self.names, is_made) or (
                    self._without and (*node.path, step) in self._without):
                continue
            node.held[step] = one
            if step[0] in ("global", "closure") and isinstance(one, type):
                self._made.add(id(one))
            if isinstance(one, Tensor):
                if odd := find_oddity(one):
                    raise Refused(f"{format_path((*node.path, step))}: expected a dense tensor, "
                                  f"got {odd}")
                self.tensors.setdefault(id(one), (one, []))[1].append((number, step))
                if vars(one):
                    self._waiting.append(((*node.path, step), one))
                continue
            plain = make_key(one)
            if plain is not None:
                node.plain[step] = plain
            if (plain is None or hasattr(one, "__wrapped__")) and is_walked(one):
                self._waiting.append(((*node.path, step), one))
            elif (self._before is not None or isinstance(one, Iterator)) and is_opaque(one):
                raise Refused(f"{format_path((*node.path, step))}: expected no iterator or other "
                              f"object whose state cannot be looked at, got a "
                              f"{type(one).__name__}")

    def _entries(self, value: Any) -> Iterable[tuple[Step, Any]]:
        if isinstance(value, types.ModuleType) and not is_user(value.__name__):  # a large one
            return [(("global", key), vars(value)[key])
                    for key in sorted(self.names & vars(value).keys())]
        return (list_entries(value) if self._before is None
                else self._before.node(value).held.items())

    def _describe(self) -> None:
        """Sets a description, equal if the function does the same: structure and plain values,
        kinds of tensors, and which places hold the same object."""
        order = {key: number for number, key in enumerate(self.tensors)}
        known = {} if self._before is None else self._before.kinds  # detach_() changes them
        self.kinds = {key: known.get(key) or describe_tensor(one)
                      for key, (one, _) in self.tensors.items()}
        self.description: list[Any] = []
        for node in self.nodes:
            value = node.value
            is_itself = isinstance(value, (type, types.ModuleType))
            head = Same(value.__code__ if isinstance(value, types.FunctionType) else
                        value if is_itself else type(value))
            parts: list[Any] = []
            for step, one in node.held.items():
                if isinstance(one, Tensor):
                    parts.append((step, "tensor", order[id(one)], self.kinds[id(one)]))
                elif step in node.plain:
                    parts.append((step, "plain", node.plain[step]))
                else:
                    number = self.numbers.get(id(one))
                    parts.append((step, "node", Same(one) if number is None else number))
            self.description.append((head, parts))

    def find(self, path: Path) -> Node | None:
        """Returns the node at a path."""
        return next((node for node in self.nodes if node.path == path), None)

    def held(self, path: Path) -> Any:
        """Returns the value at a path; MISSING: there was none."""
        node = self.find(path[:-1])
        return MISSING if node is None else node.held.get(path[-1], MISSING)

    def path_of(self, place: tuple[int, Step]) -> Path:
        number, step = place
        return (*self.nodes[number].path, step)


def find_changes(node: Node, names: Container[str]) -> list[tuple[Step, Any]]:
    """Returns the places of a node that hold something else now, and what, or MISSING; of a list
    all that was appended to it, or all that it holds now."""
    value = node.value
    now = {step: one for step, one in list_entries(value) if step in node.held or is_read(
        value, step, one, names, False)}
    found = []
    for step, one in now.items():
        before = node.held.get(step, MISSING)
        plain = node.plain.get(step)
        if before is one:
            if is_mutable(one) and make_key(one) != plain:
                found.append((step, one))
        elif before is MISSING and isinstance(one, types.ModuleType):
            continue  # imported for the first time
        elif before is MISSING or plain is None or make_key(one) != plain:
            found.append((step, one))
    found += [(step, MISSING) for step in node.held if step not in now]
    if not found or not isinstance(value, SEQUENCES):
        return found
    elements = list_elements(value)
    held = [one for (kind, _), one in node.held.items() if kind == "item"]
    if len(elements) > len(held) and all(map(is_same, held, elements)):
        return [(("more", None), elements[len(held):])]
    return [(("contents", None), elements)]


def restore_node(node: Node, names: Container[str], kept: Container[Step] = ()) -> None:
    """Restores what a node held; kept: places that stay as they are."""
    for step, _ in find_changes(node, names):
        if step[0] in ("more", "contents"):
            set_step(node.value, ("contents", None),
                     [one for (kind, _), one in node.held.items() if kind == "item"])
        elif step[0] in SETTABLE and step not in kept:
            set_step(node.value, step, node.held.get(step, MISSING))


def make_restores(values: Iterable[Any], seen: set[int] | None = None) -> list[Any]:
    """Returns functions that restore what containers and other mutable values hold."""
    found: list[Any] = []
    seen = set() if seen is None else seen
    for value in values:
        if type(value) in (float, int) or id(value) in seen:
            continue
        seen.add(id(value))
        held: Iterable[Any] = ()
        if isinstance(value, SEQUENCES):
            held = list_elements(value)
            if not isinstance(value, tuple):
                found.append(partial(set_step, value, ("contents", None), held))
        elif isinstance(value, dict):
            kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
            items = dict(kind.items(value))
            found += [partial(kind.update, value, items), partial(kind.clear, value)]
            held = items.values()
        elif (back := make_restore(value)) is not None:
            found.append(back)
        found += make_restores(held, seen)
    return found


def describe(value: Any, before: Snapshot | None = None) -> Any:
    """Returns a description of a tree of tensors and plain values.

    before: with what its containers held then.
    """
    if isinstance(value, Tensor):
        kind = None if before is None else before.kinds.get(id(value))
        return "tensor", kind or describe_tensor(value)
    plain = make_key(value)
    if plain is not None:
        return plain
    if not isinstance(value, (dict, *SEQUENCES)):
        return Same(value)
    is_known = before is not None and id(value) in before.numbers
    held = before.node(value).held if before is not None and is_known else dict(list_entries(value))
    return type(value), getattr(value, "maxlen", None), [
        (step, describe(one, before)) for step, one in held.items() if step[0] == "item"]
