"""The fingerprint of a recording: whether a later call would do the same."""
import threading
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.module import _has_any_global_hook

from ..codegen import plain
from ..codegen.user_code import find_globals
from . import paths
from .functions import PLAIN, Apply, find_file
from .ir import Leaf, Recording, Ref, Refused
from .origins import Origins, look_up
from .snapshot import Node, Snapshot, describe, identify, is_of_module

KIND = attrgetter("shape", "dtype", "device", "requires_grad")
EFFECTS = frozenset({"print", "open", "input"})
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


def describe_inputs(inputs: list[Any], are_read: bool = False) -> tuple[Any, ...] | None:
    """Returns the kinds of flattened arguments; None: not only tensors and plain values. are_read:
    those of torch.inference_mode count as others."""
    found: list[Any] = []
    for one in inputs:
        if type(one) is Tensor or type(one) is nn.Parameter:
            is_read = are_read and one.is_inference()
            if not is_read and plain.find_oddity(one) or plain.get_attributes(one):
                return None
            found.append((one.shape, one.dtype, one.device, one.requires_grad, one.stride()))
        else:
            key = plain.make_key(one)
            if key is None or plain.is_mutable(one):
                return None
            found.append(key)
    return tuple(found)


def check_hooks(model: nn.Module) -> None:
    """Raises Refused for hooks whose calls are not recorded."""
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        raise Refused("torch.nn.modules.module: expected no hooks of all modules")
    for name, module in model.named_modules():
        if module is not model and any(getattr(module, hooks) for hooks in BACKWARD_HOOKS):
            raise Refused(f"{name}: expected a module without backward hooks; register them with "
                          f"the converted model or with tensors")


def check_functional() -> None:
    """Raises Refused if a function of torch.nn.functional was replaced: under a mode, as a
    recording is, torch calls what it finds by the name of one once more."""
    for name, one in vars(F).items():
        if isinstance(one, FunctionType) and (file := find_file(one.__code__.co_filename)):
            raise Refused(f"torch.nn.functional.{name}: expected that of torch, got one of {file}")


class AnyNumber(NamedTuple):
    """A number, array or container, whatever it holds: what an Unread shows of it."""

    kind: type
    dtype: Any
    shape: Any

    @classmethod
    def of(cls, value: Any) -> "AnyNumber":
        return cls(type(value), getattr(value, "dtype", None), getattr(value, "shape", None))


class Guard:
    """The state of a function, and of all that it can reach, before a recorded call."""

    def __init__(self, function: Any, origins: Origins, recording: Recording,
                 codes: set[CodeType] | None) -> None:
        """codes: of all functions that ran; None: unknown."""
        self.function = function
        # what backward may call
        called = {id(one): one for call in recording.calls if isinstance(call.function, Apply)
                  for one in (call.function.function, *call.leaves)
                  if not isinstance(one, (Ref, *PLAIN))}
        snapshots = [Snapshot(one) for one in called.values()]
        self._states = [(one, snapshot.description) for one, snapshot in zip(
            called.values(), snapshots, strict=True)]
        for one, snapshot in zip(called.values(), snapshots, strict=True):
            for code in _list_codes(Snapshot(getattr(one, "backward", one))):
                for name in EFFECTS.intersection(find_globals(code)):
                    raise Refused(f"{_get_name(one)}: expected a backward that changes nothing, "
                                  f"got {name}")
            if snapshot.tensors and id(one) not in origins.snapshot.numbers:
                raise Refused(f"{_get_name(one)}: expected an autograd.Function of the model, or "
                              f"one without tensors")
            if codes is not None:
                codes |= _list_codes(snapshot)
        self.codes = codes
        before = Snapshot(function, codes, origins.snapshot)
        self.description = before.description
        self.leaves = recording.leaves
        self.changed = recording.changed
        self._read = [(recording.leaves[value], numbers)
                      for value, numbers in recording.read.items()]
        changed = [path[:-1] if path[-1][0] in ("contents", "more") else path
                   for path, _ in recording.changed]
        self.volatile = {path: describe(origins.snapshot.held(path), origins.snapshot)
                         for path in changed if before.find(path[:-1]) is not None}
        self.volatile.update((path, AnyNumber.of(origins.snapshot.held(path)))
                             for path in recording.attributes.keys() & self.volatile.keys())
        for path, _ in recording.changed:
            node = before.find(path[:-1])
            if node is not None and any(
                    id(node.value) in snapshot.numbers
                    and path[-1] in snapshot.node(node.value).held
                    for snapshot in snapshots):
                raise Refused(f"{paths.format_path(path)}: expected what an autograd.Function "
                              f"reads to stay in the call")
        # which functions may hold as constants
        self._tensors = [(snapshot.nodes[number].value, step, one)
                         for snapshot in snapshots
                         for one, places in snapshot.tensors.values() for number, step in places]
        self._others = [pair for pair in self._states if id(pair[0]) not in before.numbers]
        self._functional = [*vars(F).values()]  # what modules call, and a library may replace
        self._settle(before, origins.inputs)
        self._identity = identify(
            [*origins.inputs, *map(origins.snapshot.held, self.volatile)], self._known,
            origins.snapshot)

    def _is_loose(self, leaf: Leaf) -> bool:
        """Whether the next call may have another tensor there."""
        return leaf.kind == "input" or any(leaf.path[:end] in self.volatile
                                           for end in range(1, len(leaf.path) + 1))

    # ------------------------------------------------------------------------- the fast check
    def _settle(self, snapshot: Snapshot, inputs: list[Any]) -> None:
        """Stores the objects at all places, for comparisons by identity."""
        self._dicts: list[dict[Any, Any]] = []
        self._empty: list[Any] = []
        self._views: list[Iterable[Any]] = []
        self._sized: list[Any] = []
        self._lengths: list[int] = []
        self._functions: list[FunctionType] = []
        self._cells: list[tuple[Any, Any]] = []
        self._members: list[tuple[Any, paths.Step, Any]] = []
        self._mutable: list[tuple[Any, Any]] = []
        self._constants: list[Tensor] = []
        # Of dicts that are compared in part: the keys; a dict, a key and the object there.
        self._orders: list[tuple[dict[Any, Any], list[Any]]] = []
        self._items: dict[tuple[int, Any], tuple[Any, Any, Any]] = {}
        loose: dict[int, set[paths.Step]] = {}  # by node, in the order of the snapshot
        for path in self.volatile:
            node = snapshot.find(path[:-1])
            assert node is not None
            loose.setdefault(snapshot.numbers[id(node.value)], set()).add(path[-1])
        for number in _reachable(snapshot, loose):
            node = snapshot.nodes[number]
            steps = loose.get(number, set())
            held = {step: one for step, one in node.held.items()
                    if step not in steps and one is not plain.MISSING}
            self._settle_node(node, steps, held)
            self._constants += [one for one in held.values() if isinstance(one, Tensor)]
            self._mutable += [(one, node.plain[step]) for step, one in held.items()
                              if plain.is_mutable(one)]
        self._single = {id(one) for one, places in snapshot.tensors.values() if len(places) == 1}
        self._contents = [one for *_, one in self._items.values()]
        self._keys = list(chain.from_iterable(self._dicts))
        self._values = list(chain.from_iterable(self._views))
        # of those that stay alive: a new tensor may have the id of one that a call replaced
        alive = {*map(id, chain(self._values, self._contents, self._constants))}
        self._kinds_of = {key: kind for key, kind in snapshot.kinds.items() if key in alive}
        self._made_of = list(chain.from_iterable(map(plain.MADE_OF, self._functions)))
        self._kinds = self._list_kinds()
        self._nodes = [snapshot.nodes[number].value for number in _reachable(snapshot, loose)]
        self._number_known()
        self._places = [(self._container(path), path, wanted)
                        for path, wanted in self.volatile.items()]
        self._targets = [(self._container(path), path) for path, _ in self.changed]
        self._fixed = {value: look_up(leaf, self.function, inputs)
                       for value, leaf in self.leaves.items() if not self._is_loose(leaf)}
        self._loose = [(value, leaf) for value, leaf in self.leaves.items()
                       if value not in self._fixed]

    def _number_known(self) -> None:
        """Numbers the objects that no call changes, for identify."""
        self._known: dict[int, int] = {}
        for one in (*self._nodes, *self._constants):
            self._known.setdefault(id(one), len(self._known))

    def _container(self, path: paths.Path) -> Any:
        """What holds the last step of a path; MISSING: each call may set another one."""
        if any(path[:end] in self.volatile for end in range(1, len(path))):
            return plain.MISSING
        return paths.resolve(self.function, path[:-1])

    def _settle_node(self, node: Node, steps: set[paths.Step], held: dict[paths.Step, Any]) -> None:
        """Stores what an object holds; steps: entries that a call changes, held: the others."""
        value = node.value
        if isinstance(value, (FunctionType, ModuleType)):
            if isinstance(value, FunctionType):
                self._add_dict(vars(value))
                if value.__kwdefaults__:
                    self._add_dict(value.__kwdefaults__)
                self._functions.append(value)
            self._add_items(paths.find_holder(value, "global"), "global", held)
            self._cells += [(paths.find_cell(value, key), one) for (kind, key), one in held.items()
                            if kind == "closure"]
            return
        if isinstance(value, threading.local):  # each thread has other attributes
            self._members += [(value, step, one) for step, one in held.items()]
            return
        if isinstance(value, paths.IMMUTABLE) and not steps:
            return
        if isinstance(value, plain.SEQUENCES) and not isinstance(value, tuple):
            self._add(value, value)
        holder: Any = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        if holder is not None and steps:
            self._add_items(holder, "item" if holder is value else "attribute", held)
            if holder is value:
                self._orders.append((holder, [key for kind, key in node.held if kind == "item"]))
            self._sized.append(holder)
            present = {key for kind, key in steps if key in holder}
            before = {key for kind, key in steps if (kind, key) in node.held}
            self._lengths.append(len(holder) - len(present) + len(before))
        elif holder is value and any(map(is_of_module, holder)):
            self._add_items(holder, "item", held)
            self._add(holder, ())
        elif holder is not None:
            self._add_dict(holder)
        if isinstance(value, dict) and type(value) is not dict and hasattr(value, "__dict__"):
            self._add_dict(vars(value))
        self._members += [(value, step, one) for step, one in held.items()
                          if step[0] in ("member", "referent")]

    def _add(self, sized: Any, view: Iterable[Any]) -> None:
        self._sized.append(sized)
        self._lengths.append(len(sized))
        self._views.append(view)

    def _add_dict(self, holder: Any) -> None:
        if holder:
            self._dicts.append(holder)
            self._add(holder, holder.values())
        else:
            self._empty.append(holder)

    def _add_items(self, holder: Any, kind: str, held: dict[paths.Step, Any]) -> None:
        self._items |= {(id(holder), key): (holder, key, one) for (of, key), one in held.items()
                        if of == kind}

    def _list_kinds(self) -> list[Any]:
        return [*map(KIND, self._constants), *map(Tensor.stride, self._constants),
                *map(len, map(vars, self._constants))]

    def _is_settled(self) -> bool:
        """Whether all places that no call changes hold the same objects, which are as before."""
        try:
            return (
                not any(self._empty)
                and list(map(len, self._sized)) == self._lengths
                and plain.are_same(list(chain.from_iterable(self._views)), self._values)
                and list(chain.from_iterable(self._dicts)) == self._keys
                and plain.are_same([holder[key] for holder, key, _ in self._items.values()],
                             self._contents)
                and self._list_kinds() == self._kinds
                and all(map(is_, chain.from_iterable(map(plain.MADE_OF, self._functions)),
                            self._made_of))
                and all(cell.cell_contents is one for cell, one in self._cells)
                and all(paths.step_into(value, step) is one for value, step, one in self._members)
                and all(plain.make_key(value) == key for value, key in self._mutable)
                and all([*holder] == keys for holder, keys in self._orders))
        except (LookupError, AttributeError, ValueError):
            return False

    # ---------------------------------------------------------------------------- the checks
    def holds(self, inputs: list[Any]) -> bool:
        """Whether the fingerprint holds: the quick check, by identity of objects."""
        if not self._is_settled():
            return False
        values = self._list_volatile()
        return all(wanted == (AnyNumber.of if isinstance(wanted, AnyNumber) else describe)(value)
                   for value, (*_, wanted) in zip(values, self._places, strict=True)) and (
            self._is_identical(inputs, values) and self._rest_holds(inputs))

    def _is_identical(self, inputs: list[Any], values: list[Any]) -> bool:
        """Whether arguments and what is at places that a call changes are the same objects as
        others, or different ones, as in the recorded call."""
        return identify([*inputs, *values], self._known) == self._identity

    def _list_volatile(self) -> list[Any]:
        """Returns what is at the places that a call changes."""
        return [paths.step_into(paths.resolve(self.function, path[:-1])
                                if container is plain.MISSING else container, path[-1])
                for container, path, _ in self._places]

    def _rest_holds(self, inputs: list[Any]) -> bool:
        return (plain.are_same([*vars(F).values()], self._functional)
                and all(torch.equal(look_up(leaf, self.function, inputs), wanted)
                        for leaf, wanted in self._read)
                and all(paths.step_into(value, step) is one for value, step, one in self._tensors)
                and all(Snapshot(one).description == wanted for one, wanted in self._others))

    def check_backward(self) -> None:
        """Raises Refused if a backward pass has changed what its functions can reach."""
        for one, state in self._states:
            if Snapshot(one).description != state:
                raise Refused(f"{_get_name(one)}: expected a backward that changes nothing")

    def replace_tensors(self, inputs: list[Any]) -> bool:
        """Whether all places hold the same objects, or new tensors of the same kinds, as another
        model of a library leaves in its states; the quick check holds for these then."""
        try:
            pairs = [([*chain.from_iterable(self._views)], self._values),
                     ([holder[key] for holder, key, _ in self._items.values()], self._contents)]
        except LookupError:
            return False
        replaced: dict[int, Tensor] = {}
        kinds = {**self._kinds_of}
        for now, before in pairs:
            if len(now) != len(before):
                return False
            for one, other in zip(now, before, strict=True):
                if one is other:
                    continue
                if type(one) is not Tensor or id(one) in kinds or id(other) not in self._single or (
                        plain.find_oddity(one)) or plain.describe_tensor(one) != kinds[id(other)]:
                    return False
                replaced[id(other)] = one
                kinds[id(one)] = kinds.pop(id(other))
        self._values, self._contents = (now for now, _ in pairs)
        self._items = {place: (holder, key, one) for (place, (holder, key, _)), one in zip(
            self._items.items(), self._contents, strict=True)}
        self._constants = [replaced.get(id(one), one) for one in self._constants]
        self._number_known()
        self._single = {id(replaced[one]) if one in replaced else one
                        for one in self._single}
        self._kinds_of = kinds
        self._fixed = {value: look_up(self.leaves[value], self.function, inputs)
                       for value in self._fixed}
        return bool(replaced) and self.holds(inputs)

    def settle(self, inputs: list[Any]) -> bool:
        """Whether the fingerprint holds: the full check, after which the quick one holds, too."""
        try:
            snapshot = Snapshot(self.function, self.codes)
            if snapshot.description != self.description or not self._rest_holds(inputs):
                return False
        except Refused:
            return False
        self._settle(snapshot, inputs)
        return self._is_identical(inputs, self._list_volatile())

    def find_change(self) -> str:
        """Returns the first place that differs from the recorded call; empty: none was found."""
        try:
            snapshot = Snapshot(self.function, self.codes)
        except Refused as refused:
            return str(refused)
        for node, (_, now), (_, before) in zip(snapshot.nodes, snapshot.description,
                                               self.description, strict=False):
            for step in dict.fromkeys(one[0] for one in (*now, *before)):
                if ([one for one in now if one[0] == step]
                        != [one for one in before if one[0] == step]):
                    return paths.format_path((*node.path, step))
        return ""

    def look_up(self, inputs: list[Any]) -> dict[int, Tensor]:
        """Returns the tensors of the leaves, by value, if the fingerprint holds."""
        return self._fixed | {value: look_up(leaf, self.function, inputs)
                              for value, leaf in self._loose}

    def set_changed(self, trees: list[Any]) -> None:
        """Sets what the call changes to these values, in the order of Recording.changed."""
        containers = [
            paths.resolve(self.function, path[:-1]) if container is plain.MISSING else container
            for container, path in self._targets]
        for container, (_, path), new in zip(containers, self._targets, trees, strict=True):
            paths.set_step(container, path[-1], new)


def _get_name(one: Any) -> str:
    return str(getattr(one, "__qualname__", type(one).__qualname__))


def _list_codes(snapshot: Snapshot) -> set[CodeType]:
    return {node.value.__code__ for node in snapshot.nodes if isinstance(node.value, FunctionType)}


def _reachable(snapshot: Snapshot, loose: dict[int, set[paths.Step]]) -> list[int]:
    """Returns the nodes that are reached without a place that a call changes."""
    found = {0}
    waiting = [0]
    while waiting:
        number = waiting.pop()
        for step, one in snapshot.nodes[number].held.items():
            inside = snapshot.numbers.get(id(one))
            if inside is not None and inside not in found and step not in loose.get(number, ()):
                found.add(inside)
                waiting.append(inside)
    return sorted(found)
