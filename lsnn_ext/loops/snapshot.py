"""Snapshot: all that a function can reach, at one time."""
import enum
import types
import weakref
from collections import deque
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from ..codegen.plain import (
    MISSING,
    SEQUENCES,
    Same,
    describe_tensor,
    find_oddity,
    get_attributes,
    make_key,
)
from ..codegen.user_code import find_names, is_user
from .ir import Refused
from .paths import SETS, Path, Step, format_path, is_opaque, is_read, is_walked, list_entries

MAX_NODES = 20_000
HOLDING = (enum.Enum, *SETS)  # plain values that hold others


def is_of_module(key: Any) -> bool:
    """Whether it is a weak reference to a module, the key of an entry that only code with this
    module reads, as of a library's WeakKeyDictionary of all models."""
    return isinstance(key, weakref.ref) and isinstance(key(), nn.Module)


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
    """

    def __init__(self, function: Any, codes: Container[types.CodeType] | None = None,
                 before: "Snapshot | None" = None) -> None:
        self.codes, self._before = codes, before
        self.nodes: list[Node] = []
        self.numbers: dict[int, int] = {}  # of nodes, by id of their object
        self.tensors: dict[int, tuple[Tensor, list[tuple[int, Step]]]] = {}  # and their places
        self.kinds: dict[int, tuple[Any, ...]] = {}  # of the tensors, by id
        self.names = {"forward"}  # what torch calls
        self.unread: dict[tuple[int, Step], Any] = {}  # entries of modules that are out of reach
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
                if isinstance(node.value, (type, types.ModuleType, Optimizer)) or (
                        isinstance(node.value, dict) and any(map(is_of_module, node.value))):
                    self._read(node)  # by the names and modules that are known now
        for node in self.nodes:  # in an order that no round of reading decides
            node.held.update({step: node.held.pop(step)
                              for step, _ in self.list_entries(node.value) if step in node.held})
        self._describe()
        self._before = None

    def node(self, value: Any) -> Node:
        return self.nodes[self.numbers[id(value)]]

    def _read(self, node: Node) -> None:
        if len(self.nodes) > MAX_NODES:
            raise Refused(f"{format_path(node.path)}: expected at most {MAX_NODES} Python objects "
                          f"in reach of the model; hold data and trainers elsewhere")
        value = node.value
        runs = True
        if isinstance(value, types.FunctionType):
            runs = self.codes is None or value.__code__ in self.codes
            self.names |= find_names(value.__code__) if runs else set()
        number = self.numbers[id(value)]
        is_made = id(value) in self._made
        for step, one in self.list_entries(value):
            if step in node.held or not is_read(value, step, one, self.names, is_made) or not (
                    runs or step[0] == "attribute"):
                continue
            if is_of_module(step[1]) and id(step[1]()) not in self.numbers:
                self.unread[number, step] = one
                continue
            node.held[step] = one
            if step[0] in ("global", "closure") and isinstance(one, type):
                self._made.add(id(one))
            if isinstance(one, Tensor):
                if odd := find_oddity(one):
                    raise Refused(f"{format_path((*node.path, step))}: expected a dense tensor, "
                                  f"got {odd}")
                self.tensors.setdefault(id(one), (one, []))[1].append((number, step))
                if get_attributes(one):
                    self._waiting.append(((*node.path, step), one))
                continue
            plain = make_key(one)
            if plain is not None:
                node.plain[step] = plain
            if (plain is None or hasattr(one, "__wrapped__") or isinstance(one, HOLDING)) and (
                    is_walked(one)):
                self._waiting.append(((*node.path, step), one))
            elif (self._before is not None or isinstance(one, Iterator)) and is_opaque(one):
                raise Refused(f"{format_path((*node.path, step))}: expected no iterator or other "
                              f"object whose state cannot be looked at, got a "
                              f"{type(one).__name__}")

    def list_entries(self, value: Any) -> Iterable[tuple[Step, Any]]:
        """Returns the entries of the value: of a module of others, those that code names."""
        if isinstance(value, types.ModuleType) and not is_user(value.__name__):  # a large one
            return [(("global", key), vars(value)[key])
                    for key in sorted(self.names & vars(value).keys())]
        if self._before is None:
            return list_entries(value)
        return self._before.node(value).held.items() if id(value) in self._before.numbers else ()

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
            head = Same(value.__code__ if isinstance(value, types.FunctionType) else
                        value if isinstance(value, (type, types.ModuleType)) else type(value))
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

    def list_held(self) -> Iterator[tuple[Path, Any]]:
        """Yields all that objects hold, with its path: also keys of dicts and elements of sets."""
        for node in self.nodes:
            for step, one in node.held.items():
                yield (*node.path, step), one
                for key in one if isinstance(one, (set, frozenset)) else ():
                    yield (*node.path, step), key
            for key in node.value if isinstance(node.value, dict) else ():
                yield node.path, key() if isinstance(key, weakref.ref) else key

    def name_modules(self) -> dict[int, str]:
        """Returns the names of modules by id; that of the model is empty."""
        return {id(node.value): format_path(node.path) for node in self.nodes
                if isinstance(node.value, nn.Module)}

    def find(self, path: Path) -> Node | None:
        return next((node for node in self.nodes if node.path == path), None)

    def held(self, path: Path) -> Any:
        """Returns the value at a path; MISSING: there was none."""
        node = self.find(path[:-1])
        return MISSING if node is None else node.held.get(path[-1], MISSING)

    def path_of(self, place: tuple[int, Step]) -> Path:
        number, step = place
        return (*self.nodes[number].path, step)


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
    return type(value), getattr(value, "maxlen", None), [
        (step, describe(one, before)) for step, one in _list_items(value, before).items()]


def _list_items(value: Any, before: Snapshot | None) -> dict[Step, Any]:
    """Returns the items of a container; before: what it held then."""
    is_known = before is not None and id(value) in before.numbers
    held = before.node(value).held if before is not None and is_known else dict(list_entries(value))
    return {step: one for step, one in held.items() if step[0] == "item"}


def identify(values: Iterable[Any], known: dict[int, int], before: Snapshot | None = None,
             ) -> list[int]:
    """Returns which tensors and containers of trees are known objects or one another: what `is`
    tells Python.

    known: places by id; before: containers with what they held then.
    """
    found: list[int] = []
    own: dict[int, int] = {}  # negative
    left = [*values]
    while left:
        one = left.pop()
        if not isinstance(one, (Tensor, dict, *SEQUENCES)):
            continue
        at = known.get(id(one), own.get(id(one)))
        found.append(-1 - len(own) if at is None else at)
        if at is None:
            own[id(one)] = found[-1]
        if at is None and not isinstance(one, Tensor):
            left += _list_items(one, before).values()
    return found
