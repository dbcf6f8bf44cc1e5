"""What a function can reach: tensors, plain values and the objects that hold them, each by a path.

A path is a sequence of steps (kind, key) from the function. Only the code of users is read: its
names say which globals and class attributes matter.
"""
import argparse
import dis
import enum
import functools
import io
import os
import random
import struct
import sys
import sysconfig
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .refused import Refused

Step: TypeAlias = tuple[str, Any]
Path: TypeAlias = tuple[Step, ...]
MISSING = object()
OWN = "_lsnn_recordings"  # the attribute that holds the recordings of a converted model
MAX_NODES = 20_000
SIMPLE = frozenset({bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout,
                    torch.memory_format, torch.Size, range, type(Ellipsis), slice})
FOREIGN = frozenset({"torch", "numpy", "lsnn_ext", "builtins"})
OPEN = (types.SimpleNamespace, argparse.Namespace)  # of the standard library, and walked
SEQUENCES = (list, tuple, deque)
IMMUTABLE = (tuple, types.MethodType, property, staticmethod, classmethod, functools.partial)
STATE_DICTS = frozenset({  # of a module; nothing that forward reads
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_non_persistent_buffers_set", OWN})
CLASS_DETAILS = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__",
                           "__qualname__", "__abstractmethods__", "__slots__", "__match_args__"})


class Same:
    """An object that is equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def kind_of(tensor: Tensor) -> tuple[Any, ...]:
    return (type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad,
            tensor.layout)


def exact(value: Any) -> tuple[Any, ...] | None:
    """What two plain values share only if they are the same: 1, 1.0 and True are not, nor 0.0 and
    -0.0; NaN is itself. None: not plain."""
    kind = type(value)
    if kind in SIMPLE:
        return kind, value
    if kind is float:
        return kind, struct.pack("d", value)
    if kind is complex:
        return kind, struct.pack("dd", value.real, value.imag)
    if isinstance(value, enum.Enum):
        return kind, Same(value)
    if isinstance(value, (int, float, str)):  # of a class of the user
        return kind, repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object or isinstance(value, np.generic):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (set, frozenset)):
        parts = [exact(one) or Same(one) for one in value]
        return kind, frozenset(parts)
    if isinstance(value, random.Random):
        return kind, value.getstate()
    if isinstance(value, np.random.Generator):
        return kind, repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return kind, repr(value.get_state(legacy=False))
    if isinstance(value, functools._lru_cache_wrapper):
        return kind, Same(value), value.cache_info().misses
    return None


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one object or equal plain values."""
    return one is other or (exact(one) is not None and exact(one) == exact(other))


def keep(value: Any) -> Callable[[], object] | None:
    """What puts the value back as it is now; None: it cannot change in place, or not be put
    back."""
    if isinstance(value, np.ndarray):
        return functools.partial(np.copyto, value, value.copy(), "no")
    if isinstance(value, set):
        held = value.copy()
        return lambda: value.symmetric_difference_update(value ^ held)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        state = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", state)
    return None


def is_mutable(value: Any) -> bool:
    """Whether a plain value can change and stay the same object."""
    return isinstance(value, (np.ndarray, set, random.Random, np.random.Generator,
                              np.random.RandomState, functools._lru_cache_wrapper))


@functools.cache
def is_user(module: str) -> bool:
    """Whether a module is neither torch, NumPy, lsnn_ext nor of the standard library."""
    root = module.partition(".")[0]
    if root in FOREIGN:
        return False
    if root not in sys.stdlib_module_names:
        return True
    path = getattr(sys.modules.get(root), "__file__", None)  # users name files so, too
    if path is None:
        return False
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return "site-packages" not in path and not path.startswith(
        tuple(folder + os.sep for folder in folders))


@functools.cache
def names_of(code: types.CodeType) -> frozenset[str]:
    """Names of globals and attributes in a function and in those written inside of it."""
    inside = [names_of(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return frozenset(code.co_names).union(*inside)


@functools.cache
def globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The names among them that are globals."""
    found = {str(one.argval) for one in dis.get_instructions(code)
             if one.opname.endswith(("_GLOBAL", "_NAME"))}
    inside = [globals_of(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return tuple(sorted(found.union(*inside)))


def module_name(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "")


def is_walked(value: Any) -> bool:
    """Whether what the value holds is looked at."""
    if isinstance(value, (nn.Module, dict, types.MethodType, property, staticmethod, classmethod,
                          functools.partial, *SEQUENCES)):
        return type(value) is not torch.Size
    if isinstance(value, types.FunctionType):
        return is_user(str(value.__globals__.get("__name__", "")))
    if isinstance(value, type):
        return is_user(module_name(value))
    if isinstance(value, types.ModuleType):
        return is_user(value.__name__)
    return isinstance(value, OPEN) or is_user(module_name(type(value)))


# ------------------------------------------------------------------------------------- steps
def is_read(value: Any, step: Step, one: Any, names: Container[str], is_made: bool) -> bool:
    """Whether the code may read what the value holds.

    Args:
        names: in the code. Of a Python module only these are read, and of a class only these,
            plain values and special methods.
        is_made: the class may be called.
    """
    kind, key = step
    if isinstance(value, types.ModuleType):
        return key in names
    if not isinstance(value, type) or kind == "base" or issubclass(value, torch.autograd.Function):
        return True
    if key.startswith("__") and key.endswith("__"):
        return is_made or key not in ("__init__", "__new__")
    return key in names or isinstance(one, Tensor) or exact(one) is not None


def entries(value: Any) -> Iterator[tuple[Step, Any]]:
    """What the value holds, by steps."""
    if isinstance(value, types.FunctionType):
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield ("closure", key), cell.cell_contents
            except ValueError:  # not yet set
                yield ("closure", key), MISSING
        yield from ((("default", key), one) for key, one in enumerate(value.__defaults__ or ()))
        yield from ((("keyword", key), one) for key, one in (value.__kwdefaults__ or {}).items())
        yield from ((("global", key), value.__globals__[key])
                    for key in globals_of(value.__code__) if key in value.__globals__)
        yield from ((("attribute", key), one) for key, one in vars(value).items())
    elif isinstance(value, types.ModuleType):
        yield from ((("global", key), one) for key, one in vars(value).items())
    elif isinstance(value, type):
        yield from ((("attribute", key), one) for key, one in vars(value).items()
                    if key not in CLASS_DETAILS)
        yield from ((("base", key), one) for key, one in enumerate(value.__bases__))
    elif isinstance(value, types.MethodType):
        yield from ((("member", key), getattr(value, key)) for key in ("__self__", "__func__"))
    elif isinstance(value, property):
        yield from ((("member", key), getattr(value, key)) for key in ("fget", "fset"))
    elif isinstance(value, (staticmethod, classmethod)):
        yield ("member", "__func__"), value.__func__
    elif isinstance(value, functools.partial):
        yield from ((("member", key), getattr(value, key)) for key in ("func", "args", "keywords"))
    else:
        yield from _parts(value)


def elements(value: Any) -> list[Any]:
    """Of a sequence, whatever its class makes of iterating."""
    kind = next(one for one in SEQUENCES if isinstance(value, one))
    return [*kind.__iter__(value)]


def _parts(value: Any) -> Iterator[tuple[Step, Any]]:
    if isinstance(value, dict):
        yield from ((("item", key), one) for key, one in dict.items(value)
                    if not isinstance(key, Tensor))
    elif isinstance(value, SEQUENCES):
        yield from ((("item", key), one) for key, one in enumerate(elements(value)))
    elif isinstance(value, functools._lru_cache_wrapper):
        yield ("member", "__wrapped__"), value.__wrapped__
    is_module = isinstance(value, nn.Module)
    if type(value) not in (dict, *SEQUENCES):
        for key, one in getattr(value, "__dict__", {}).items():
            if not (is_module and key in STATE_DICTS):
                yield ("attribute", key), one
        for kind in type(value).__mro__:
            for key in [vars(kind).get("__slots__", ())]:
                for name in (key,) if isinstance(key, str) else key:
                    if name not in ("__dict__", "__weakref__"):
                        yield ("member", name), getattr(value, name, MISSING)
        yield ("class", None), type(value)


def step_into(value: Any, step: Step) -> Any:
    """Raises LookupError, AttributeError or ValueError where nothing is there any more."""
    kind, key = step
    if kind == "attribute":
        return vars(value)[key]
    if kind == "item":
        return dict.__getitem__(value, key) if isinstance(value, dict) else value[key]
    if kind == "member":
        return getattr(value, key)
    if kind == "closure":
        return cell_of(value, key).cell_contents
    if kind == "global":
        return (vars(value) if isinstance(value, types.ModuleType) else value.__globals__)[key]
    if kind == "class":
        return type(value)
    where = {"default": "__defaults__", "keyword": "__kwdefaults__", "base": "__bases__"}[kind]
    return getattr(value, where)[key]


def put(value: Any, step: Step, new: Any) -> None:
    """Sets what step_into gets. Of the step ("contents", None): all that a sequence holds; of
    ("more", None): what is appended."""
    kind, key = step
    if kind == "contents":
        value.clear()
        value.extend(new)
    elif kind == "more":
        value.extend(new)
    elif kind == "item" and isinstance(value, dict):
        _set(value, key, new)
    elif kind == "attribute" and isinstance(value, type):
        delattr(value, key) if new is MISSING else setattr(value, key, new)
    elif kind == "attribute":
        _set(vars(value), key, new)
    elif kind == "member":
        delattr(value, key) if new is MISSING else setattr(value, key, new)
    elif kind == "closure":
        cell = cell_of(value, key)
        if new is MISSING:
            del cell.cell_contents
        else:
            cell.cell_contents = new
    elif kind == "global":
        _set(vars(value) if isinstance(value, types.ModuleType) else value.__globals__, key, new)
    else:
        raise Refused(f"{name_of((step,))}: changed in the call")


def _set(where: dict[Any, Any], key: Any, new: Any) -> None:
    kind: Any = OrderedDict if isinstance(where, OrderedDict) else dict  # of no class of a user
    if new is not MISSING:
        kind.__setitem__(where, key, new)
    elif key in where:
        kind.__delitem__(where, key)


def cell_of(function: Any, key: str) -> types.CellType:
    cell: types.CellType = function.__closure__[function.__code__.co_freevars.index(key)]
    return cell


def name_of(path: Path) -> str:
    """The path as a user writes it: that of a parameter is its qualified name."""
    parts = []
    for kind, key in path:
        hidden = ("_modules", "_parameters", "_buffers", "__self__", "__func__", "func")
        if kind in ("class", "base", "contents", "more") or key in hidden:
            continue
        parts.append(f"{kind} {key}" if kind in ("closure", "default", "global") else str(key))
    return ".".join(parts)


# ---------------------------------------------------------------------------------- snapshot
class Node(NamedTuple):
    """An object that holds others, and what it held."""

    value: Any
    path: Path
    held: dict[Step, Any]
    plain: dict[Step, tuple[Any, ...]]  # exact() of the plain values among them


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
        self._describe()
        self._before = None

    def node(self, value: Any) -> Node:
        """That of an object."""
        return self.nodes[self.numbers[id(value)]]

    def _read(self, node: Node) -> None:
        if len(self.nodes) > MAX_NODES:
            raise Refused(f"{name_of(node.path)}: expected at most {MAX_NODES} Python objects in "
                          f"reach of the model; hold data and trainers elsewhere")
        value = node.value
        if isinstance(value, types.FunctionType):
            if self.codes is not None and value.__code__ not in self.codes:
                return
            self.names |= names_of(value.__code__)
        number = self.numbers[id(value)]
        is_made = id(value) in self._made
        held = entries(value) if self._before is None else self._before.node(value).held.items()
        for step, one in held:
            if step in node.held or not is_read(value, step, one, self.names, is_made):
                continue
            node.held[step] = one
            if step[0] in ("global", "closure") and isinstance(one, type):
                self._made.add(id(one))
            if isinstance(one, Tensor):
                self.tensors.setdefault(id(one), (one, []))[1].append((number, step))
                continue
            plain = exact(one)
            if plain is not None:
                node.plain[step] = plain
            if (plain is None or hasattr(one, "__wrapped__")) and is_walked(one):
                self._waiting.append(((*node.path, step), one))
            elif plain is None and isinstance(one, Iterator) and not isinstance(one, io.IOBase):
                raise Refused(f"{name_of((*node.path, step))}: expected no iterator, whose state "
                              f"cannot be looked at, got a {type(one).__name__}")

    def _describe(self) -> None:
        """What two snapshots share if the function does the same: structure and plain values,
        kinds of tensors, and which places hold the same object."""
        order = {key: number for number, key in enumerate(self.tensors)}
        self.description: list[Any] = []
        for node in self.nodes:
            value = node.value
            head: Any = Same(type(value))
            if isinstance(value, types.FunctionType):
                head = Same(value.__code__)
            elif isinstance(value, (type, types.ModuleType)):
                head = Same(value)
            parts: list[Any] = []
            for step, one in node.held.items():
                if isinstance(one, Tensor):
                    parts.append((step, "tensor", order[id(one)], kind_of(one)))
                elif step in node.plain:
                    parts.append((step, "plain", node.plain[step]))
                else:
                    number = self.numbers.get(id(one))
                    parts.append((step, "node", Same(one) if number is None else number))
            self.description.append((head, parts))

    def node_of(self, path: Path) -> int:
        """The number of the node at a path."""
        return next(number for number, node in enumerate(self.nodes) if node.path == path)

    def has(self, path: Path) -> bool:
        return any(node.path == path for node in self.nodes)

    def held(self, path: Path) -> Any:
        """What was at a path; MISSING: nothing."""
        return self.nodes[self.node_of(path[:-1])].held.get(path[-1], MISSING)

    def path_of(self, place: tuple[int, Step]) -> Path:
        number, step = place
        return (*self.nodes[number].path, step)


def describe(value: Any, before: Snapshot | None = None) -> Any:
    """The part of a description that a tree of tensors and plain values has by itself.

    before: with what its containers held then.
    """
    if isinstance(value, Tensor):
        return "tensor", kind_of(value)
    plain = exact(value)
    if plain is not None:
        return plain
    if not isinstance(value, (dict, *SEQUENCES)):
        return Same(value)
    is_known = before is not None and id(value) in before.numbers
    held = before.node(value).held if before is not None and is_known else dict(entries(value))
    return type(value), [(step, describe(one, before)) for step, one in held.items()
                         if step[0] == "item"]
