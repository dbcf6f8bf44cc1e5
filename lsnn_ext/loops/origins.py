"""Origins: the tensors that exist before a call, and the attributes that the call changes."""
import random
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from .._core.torch_internals import find_storage
from ..codegen import plain
from .ir import Container, Leaf, Recording, Refused, list_containers
from .paths import Path, Step, format_path, is_read, resolve, set_step
from .snapshot import Node, Snapshot

SETTABLE = ("attribute", "item", "member", "closure", "global", "contents", "more")
TREES = (tuple, list, dict, OrderedDict, defaultdict, deque)


class Origins:
    """A function and its arguments, as they are before a call.

    A Leaf of kind "input" has as its path the place among the flattened arguments; of kind
    "attribute" the steps from the function, see paths.py.
    """

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
                 has_copies: bool = False) -> None:
        """has_copies: keep copies of all tensors, for restore."""
        self._arguments = args, kwargs
        self.inputs, self._spec = pytree.tree_flatten(self._arguments)
        self.snapshot = Snapshot(function)
        self._inputs: dict[int, tuple[Tensor, int]] = {}  # by id, and the first place
        for number, one in enumerate(self.inputs):
            if isinstance(one, Tensor):
                if odd := plain.find_oddity(one):
                    raise Refused(f"x: expected dense tensors, got {odd}")
                self._inputs.setdefault(id(one), (one, number))
        self.versions = {id(one): (one, one._version) for one in self.list_tensors()}
        self._generators = _get_random_states()
        self._copies = [(one, one.data, one.detach().clone(), one.requires_grad)
                        for one in self.list_tensors()] if has_copies else []
        self._restores = [back for node in self.snapshot.nodes for one in node.held.values()
                          if (back := plain.make_restore(one)) is not None] if has_copies else []

    def list_tensors(self) -> list[Tensor]:
        """Returns the tensors that the function can reach, and its arguments."""
        return [one for one, _ in (*self._inputs.values(), *self.snapshot.tensors.values())]

    def find(self, tensor: Tensor) -> Leaf | None:
        """Returns where the tensor was before the call; None: at no place that can be looked up."""
        if id(tensor) in self._inputs:
            return Leaf("input", (self._inputs[id(tensor)][1],))
        _, places = self.snapshot.tensors.get(id(tensor), (None, []))
        return Leaf("attribute", self.snapshot.path_of(places[0])) if places else None

    def is_constant(self, value: Any) -> bool:
        """Whether the fingerprint has this object, and its plain values are unchanged."""
        if id(value) not in self.snapshot.numbers:
            return False
        node = self.snapshot.node(value)
        return not self._changes(node) and all(
            step in node.plain or isinstance(one, type)
            or (type(one) in (tuple, list, dict) and self.is_constant(one))
            for step, one in node.held.items())

    # ------------------------------------------------------------------------- after the call
    def changed(self, reference: Callable[[Any], Any],
                result: Any = None) -> list[tuple[Path, Any]]:
        """What the call has left at other places than before: for each its path, and a tree with a
        Ref for each tensor, or MISSING.

        Args:
            result: of the call.

        Raises:
            Refused: a change that a later call could not repeat, or a container that was there
                before among the results.
        """
        if _get_random_states() != self._generators:
            raise Refused("random: expected draws from generators of torch, got a change of the "
                          "state of Python's or NumPy's")
        now, spec = pytree.tree_flatten(self._arguments)
        if spec != self._spec or any(one is not two for one, two in zip(
                now, self.inputs, strict=True)):
            raise Refused("arguments: expected no change of a list or dict among them in the call")
        for tensor, places in self.snapshot.tensors.values():
            if plain.get_attributes(tensor) and id(tensor) not in self.snapshot.numbers:
                name = format_path(self.snapshot.path_of(places[0]))
                raise Refused(f"{name}: expected no new attributes of a tensor, got "
                              f"{[*plain.get_attributes(tensor)]}")
        found = []
        self._new: dict[int, str] = {}
        self._results = {id(one): k for k, one in enumerate(list_containers(result))}
        for name in (format_path(node.path) for node in self.snapshot.nodes
                     if id(node.value) in self._results):
            raise Refused(f"result: expected new lists and dicts, got {name}")
        for node in self.snapshot.nodes:
            before, now = _list_orders(node)
            if now != before:
                raise Refused(f"{format_path(node.path)}: expected a dict whose keys stay in their "
                              f"order")
            for step, value in self._changes(node):
                path = (*node.path, step)
                tree = value if value is plain.MISSING else self._tree(value, path, reference)
                found.append((path, tree))
        return found

    def list_changes_of(self, other: "Origins") -> list[str]:
        """Returns what the call has changed of objects that another function reaches, too."""
        return [format_path((*node.path, step)) for node in self.snapshot.nodes
                if id(node.value) in other.snapshot.numbers for step, _ in self._changes(node)]

    def _changes(self, node: Node) -> list[tuple[Step, Any]]:
        found = self._differences(node)
        if not found or not isinstance(node.value, plain.SEQUENCES):
            return found
        now = plain.list_elements(node.value)
        before = [one for (kind, _), one in node.held.items() if kind == "item"]
        if type(node.value) is list and len(now) == len(before):
            return found
        if len(now) > len(before) and all(map(plain.is_same, before, now)):
            return [(("more", None), now[len(before):])]
        return [(("contents", None), now)]

    def _differences(self, node: Node) -> list[tuple[Step, Any]]:
        number = self.snapshot.numbers[id(node.value)]
        now = {step: one for step, one in self.snapshot.list_entries(node.value)
               if step in node.held or step[0] != "element" and is_read(
                   node.value, step, one, self.snapshot.names, False)
               and self.snapshot.unread.get((number, step), plain.MISSING) is not one}
        found = []
        for step, one in now.items():
            before = node.held.get(step, plain.MISSING)
            key = node.plain.get(step)
            if before is one:
                if plain.is_mutable(one) and plain.make_key(one) != key:
                    found.append((step, one))
            elif before is plain.MISSING and isinstance(one, ModuleType):
                continue  # imported for the first time
            elif before is plain.MISSING or key is None or plain.make_key(one) != key:
                found.append((step, one))
        return [*found, *((step, plain.MISSING) for step in node.held if step not in now
                          and step[0] != "element")]

    def _tree(self, value: Any, path: Path, reference: Callable[[Any], Any]) -> Any:
        """Returns the value with a Ref for each tensor. Each call makes new containers."""
        if isinstance(value, Tensor | plain.Stand):
            return reference(value)
        name = format_path(path)
        is_known = isinstance(value, weakref.ref) and id(value()) in self.snapshot.numbers
        is_plain = plain.make_key(value) is not None and not plain.is_mutable(value)
        if (is_plain or is_known) and path[-1][0] in SETTABLE:
            return value
        if id(value) in self._results:
            return Container(self._results[id(value)])
        is_tree = type(value) in TREES or (isinstance(value, tuple) and hasattr(value, "_fields"))
        if not is_tree or id(value) in self.snapshot.numbers:
            raise Refused(f"{name}: expected tensors and plain values, and new tuples, lists and "
                          f"dicts of them, to be set in the call, got a {type(value).__name__}")
        if self._new.setdefault(id(value), name) != name and not isinstance(value, tuple):
            raise Refused(f"{name}: expected another {type(value).__name__} than "
                          f"{self._new[id(value)]}, got the same")
        children, spec = pytree.tree_flatten(value, is_leaf=lambda one: one is not value)
        return pytree.tree_unflatten([self._tree(one, path, reference) for one in children], spec)

    def find_shared(self, results: Sequence[Tensor], states: Sequence[Tensor],
                    changed: Sequence[tuple[Path, Any]],
                    value_of: Callable[[Tensor], int]) -> dict[int, tuple[int, bool]]:
        """Returns values of results and states in the memory of another one or of an attribute, but
        of no input: the value of that, and whether detach() makes the one of the other.

        Refuses states that a later write to an attribute would change, such as the step of an
        optimizer: the next call may read a copy. A replay drops attributes of Python.
        """
        paths = {path[:-1] if path[-1][0] == "contents" else path for path, _ in changed}
        held = {find_storage(one): (one, path) for one, places in self.snapshot.tensors.values()
                for path in map(self.snapshot.path_of, places)
                if not any(path[:end] in paths for end in range(1, len(path) + 1))}
        made = [one for one in (*results, *states) if id(one) not in self.snapshot.tensors]
        for one in made:
            if found := plain.get_attributes(one):
                raise Refused(f"result: expected tensors without attributes, got {[*found]}")
        for one in states:
            if id(one) not in self.snapshot.tensors and find_storage(one) in held:
                path = held[find_storage(one)][1]
                raise Refused(f"{format_path(path)}: expected states in other memory, got a view; "
                              f"clone it")
        inputs = {find_storage(one) for one, _ in self._inputs.values()}
        first = {storage: one for storage, (one, _) in held.items()}
        for one in sorted((*results, *states), key=lambda one: not one.requires_grad):
            first.setdefault(find_storage(one), one)
        pairs = [(first[find_storage(one)], one) for one in (*results, *states)]
        return {value_of(other): (value_of(one), not other.requires_grad
                                  and plain.find_layout(one) == plain.find_layout(other))
                for one, other in pairs if one is not other and find_storage(one) not in inputs}

    def plain_changes(self, recording: Recording) -> dict[Path, tuple[Any, Any]]:
        """Returns the plain values that the call has changed: before and after."""
        return {path: (before, after) for path, after in recording.changed
                if plain.make_key(before := self.snapshot.held(path)) is not None
                and plain.make_key(after) is not None}

    def restore(self) -> None:
        """Restores attributes, tensors and generators to their state before the call."""
        for node in self.snapshot.nodes:
            for step, _ in self._changes(node):
                if step[0] in ("more", "contents"):
                    set_step(node.value, ("contents", None),
                             [one for (kind, _), one in node.held.items() if kind == "item"])
                elif isinstance(node.value, ContextVar) and step in node.held:
                    node.value.set(node.held[step])
                elif step[0] in SETTABLE:
                    set_step(node.value, step, node.held.get(step, plain.MISSING))
            before, now = _list_orders(node)
            for step in [("item", key) for key in before] if now != before else ():
                set_step(node.value, step, plain.MISSING)
                set_step(node.value, step, node.held[step])
        for back in self._restores:
            back()
        for tensor, data, numbers, requires_grad in self._copies:
            if find_storage(tensor) != find_storage(data) or tensor.shape != data.shape:
                tensor.data = data
            # not each write increments the version
            if not plain.has_equal_numbers(tensor, numbers):
                tensor.data.copy_(numbers)
            if tensor.requires_grad != requires_grad:
                if tensor.grad_fn is not None and not tensor._is_view():
                    tensor.detach_()  # such as a buffer that was written to with a gradient
                tensor.requires_grad_(requires_grad)
        random.setstate(self._generators[0])
        name, numbers, *rest = self._generators[1]
        np.random.set_state((  # noqa: NPY002
            name, np.frombuffer(numbers, np.uint32), *rest))


def _list_orders(node: Node) -> tuple[list[Any], list[Any]]:
    """Returns the keys that a dict has had before the call and has now, in the order of before and
    of now; of another object none."""
    if not isinstance(node.value, dict):
        return [], []
    of: Any = OrderedDict if isinstance(node.value, OrderedDict) else dict  # of no class of a user
    now = [key for key in of.keys(node.value) if ("item", key) in node.held]
    return [key for kind, key in node.held if kind == "item" and dict.__contains__(
        node.value, key)], now


def look_up(leaf: Leaf, function: Any, inputs: list[Any]) -> Tensor:
    """Returns the tensor of a leaf, as it is now.

    Args:
        inputs: the flattened arguments.

    Raises:
        LookupError: there is no tensor.
    """
    is_input = leaf.kind == "input"
    value = inputs[leaf.path[0]] if is_input else resolve(function, leaf.path)
    if not isinstance(value, Tensor):
        name = f"input {leaf.path[0]}" if is_input else format_path(leaf.path)
        got = "none" if value is plain.MISSING else type(value).__name__
        raise LookupError(f"{name}: expected a tensor, got {got}")
    return value


def _get_random_states() -> tuple[Any, tuple[Any, ...]]:
    """Returns the states of the generators of Python and NumPy, comparable."""
    name, numbers, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, np.asarray(numbers).tobytes(), *rest)
