"""What a function can reach: tensors, plain values and the objects that hold them, each by a path.

A path is a sequence of steps (kind, key) from the function. Only the code of users is read: its
names say which globals and class attributes matter.
"""
import argparse
import enum
import functools
import io
import sys
import threading
import types
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Container, Iterator, MappingView
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..codegen import plain
from ..codegen.user_code import find_globals, find_imports, is_user
from .ir import Refused

Step: TypeAlias = tuple[str, Any]
Path: TypeAlias = tuple[Step, ...]
ATTRIBUTE = "_lsnn_replayer"  # the attribute that holds the recordings of a converted model
# Of the standard library, and walked; the state of the others is out of reach.
OPEN = (types.SimpleNamespace, argparse.Namespace, UserDict, UserList, ChainMap, weakref.ref,
        weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet, ContextVar,
        threading.local, threading.Event)
OPAQUE = (Iterator, MappingView, types.MappingProxyType, bytearray, memoryview)
OPAQUE_MODULES = frozenset({"array", "ctypes", "multiprocessing", "queue"})
SETS = (set, frozenset)
WALKED = (nn.Module, torch.optim.Optimizer, dict, *plain.WRAPPERS, *plain.SEQUENCES, *SETS)
IMMUTABLE = (tuple, *plain.WRAPPERS)
HOLDERS = {"attribute": "__dict__", "global": "__globals__", "default": "__defaults__",
           "keyword": "__kwdefaults__", "base": "__bases__"}
STATE_DICTS = frozenset({  # of a module; nothing that forward reads
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_non_persistent_buffers_set", ATTRIBUTE})
CLASS_DETAILS = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__",
                           "__qualname__", "__abstractmethods__", "__slots__", "__match_args__",
                           "__slotnames__"})


def get_module_name(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "")


def is_opaque(value: Any) -> bool:
    """Whether a value has a state that cannot be looked at."""
    if isinstance(value, (int, float, str)):
        return bool(getattr(value, "__dict__", None)) and not isinstance(value, enum.Enum)
    return (isinstance(value, OPAQUE) and not isinstance(value, io.IOBase)) or (
        get_module_name(type(value)).partition(".")[0] in OPAQUE_MODULES)


def is_walked(value: Any) -> bool:
    """Whether the contents of the value are part of the fingerprint."""
    if isinstance(value, WALKED):
        return type(value) is not torch.Size
    if plain.is_apply(value):
        return True
    if isinstance(value, enum.Enum):
        return is_user(get_module_name(type(value)))
    if isinstance(value, types.FunctionType):
        return is_user(str(value.__globals__.get("__name__", "")))
    if isinstance(value, type):
        return is_user(get_module_name(value)) or issubclass(value, nn.Module)
    if isinstance(value, types.ModuleType):  # functions of torch may be replaced
        return is_user(value.__name__) or value.__name__.startswith("torch")
    return isinstance(value, OPEN) or is_user(get_module_name(type(value)))


# ------------------------------------------------------------------------------------- steps
def is_read(value: Any, step: Step, one: Any, names: Container[str], is_made: bool) -> bool:
    """Whether the code may read an entry of the value.

    Args:
        names: in the code. Of a Python module only these are read, and of a class only these,
            plain values and special methods.
        is_made: the class may be called.
    """
    kind, key = step
    if isinstance(value, torch.optim.Optimizer) and not is_user(get_module_name(type(value))):
        return key == "param_groups" and key in names
    is_module = isinstance(value, types.ModuleType)
    if not is_module and not isinstance(value, type) or kind in ("base", "class") or (
            isinstance(value, type) and issubclass(value, torch.autograd.Function)):
        return True
    if is_module and not is_user(value.__name__):
        return key in names and (key in ("nn", "functional") or not isinstance(
            one, types.ModuleType))
    if key in names and (is_module or is_user(get_module_name(value))):
        return True
    if is_module:
        return key == "__getattr__" or ("getattr" in names or "vars" in names) and is_plain(one)
    if not is_user(get_module_name(value)):
        return bool(key == "forward")
    if key.startswith("__") and key.endswith("__"):
        return is_made or key not in ("__init__", "__new__")
    return is_plain(one)


def is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) or plain.make_key(value) is not None


def list_entries(value: Any) -> Iterator[tuple[Step, Any]]:
    """Yields the entries of the value: step and content."""
    if isinstance(value, types.FunctionType):
        yield from ((step, step_into(value, step)) for step in (
            ("closure", key) for key in value.__code__.co_freevars))
        yield from _list_held(value, "default")
        yield from _list_held(value, "keyword")
        yield from ((("global", key), value.__globals__[key])
                    for key in find_globals(value.__code__) if key in value.__globals__)
        yield from _list_held(value, "attribute")
        yield from ((("module", key), sys.modules[key])
                    for key in find_imports(value.__code__, str(value.__globals__.get(
                        "__package__"))) if key in sys.modules)
    elif isinstance(value, types.ModuleType):
        yield from _list_held(value, "global")
    elif isinstance(value, type):
        yield from (entry for entry in _list_held(value, "attribute")
                    if entry[0][1] not in CLASS_DETAILS)
        yield from _list_held(value, "base")
        yield ("class", None), type(value)
    elif isinstance(value, weakref.ref | ContextVar):
        yield ("referent", None), plain.find_referent(value)
    elif members := plain.list_members(value):
        yield from ((("member", key), one) for key, one in members.items())
    else:
        yield from _parts(value)


def _list_held(value: Any, kind: str) -> list[tuple[Step, Any]]:
    held = find_holder(value, kind) or ()
    entries = enumerate(held) if isinstance(held, tuple) else held.items()
    return [((kind, key), one) for key, one in entries]


def _parts(value: Any) -> Iterator[tuple[Step, Any]]:
    for name in ("maxlen",) * isinstance(value, deque) + ("default_factory",) * isinstance(
            value, defaultdict):
        yield ("member", name), getattr(value, name)
    if isinstance(value, dict):
        if any(isinstance(key() if isinstance(key, weakref.ref) else key, Tensor) for key in value):
            raise Refused("expected no dict with tensors as keys")
        of: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # of no class of a user
        yield from ((("item", key), one) for key, one in of.items(value))
        yield from _list_elements(value)
    elif isinstance(value, SETS):
        yield from _list_elements(value)
    elif isinstance(value, plain.SEQUENCES):
        yield from ((("item", key), one) for key, one in enumerate(plain.list_elements(value)))
    elif isinstance(value, functools._lru_cache_wrapper):
        yield ("member", "__wrapped__"), value.__wrapped__
    if type(value) not in (dict, *plain.SEQUENCES, *SETS):
        for key, one in getattr(value, "__dict__", {}).items():
            if not (key in STATE_DICTS and isinstance(value, nn.Module)):
                yield ("attribute", key), one
        for kind in type(value).__mro__:
            if "__slots__" in vars(kind):
                yield from ((("member", key), getattr(value, key, plain.MISSING)) for key, one in
                            vars(kind).items() if isinstance(one, types.MemberDescriptorType))
        yield ("class", None), type(value)


def _list_elements(value: Any) -> Iterator[tuple[Step, Any]]:
    """Yields keys of a dict or elements of a set that may have a state."""
    yield from ((("element", one), one) for one in value
                if plain.make_key(one) is None and not isinstance(one, (Tensor, weakref.ref)))


def step_into(value: Any, step: Step) -> Any:
    """Returns the entry at a step; MISSING: there is none."""
    kind, key = step
    if value is plain.MISSING:
        return plain.MISSING
    try:
        if kind in HOLDERS:
            return find_holder(value, kind)[key]
        if kind == "item":
            return dict.__getitem__(value, key) if isinstance(value, dict) else value[key]
        if kind == "member":
            return getattr(value, key)
        if kind == "closure":
            return find_cell(value, key).cell_contents
        if kind == "module":
            return sys.modules[key]
        if kind == "element":
            return key
        return type(value) if kind == "class" else plain.find_referent(value)
    except (LookupError, AttributeError, ValueError, TypeError):
        return plain.MISSING


def resolve(value: Any, path: Path) -> Any:
    """Returns the entry at a path; MISSING: there is none."""
    return functools.reduce(step_into, path, value)


def set_step(value: Any, step: Step, new: Any) -> None:
    """Sets what step_into gets. Of the step ("contents", None): all that a sequence holds; of
    ("more", None): what is appended."""
    kind, key = step
    if kind in ("contents", "more"):
        if kind == "contents":
            value.clear()
        value.extend(new)
    elif kind == "item" and isinstance(value, list):
        list.__setitem__(value, key, new)
    elif kind in ("member", "closure") or kind == "attribute" and isinstance(value, type):
        where = find_cell(value, key) if kind == "closure" else value
        name = "cell_contents" if kind == "closure" else key
        delattr(where, name) if new is plain.MISSING else setattr(where, name, new)
    elif kind in ("attribute", "global") or kind == "item" and isinstance(value, dict):
        where = value if kind == "item" else find_holder(value, kind)
        of: Any = OrderedDict if isinstance(where, OrderedDict) else dict  # of no class of a user
        if new is not plain.MISSING:
            of.__setitem__(where, key, new)
        elif key in where:
            of.__delitem__(where, key)
    else:
        raise Refused(f"{format_path((step,))}: changed in the call")


def find_holder(value: Any, kind: str) -> Any:
    """Returns the dict or tuple that holds the entries of a kind."""
    return getattr(value, "__dict__" if isinstance(value, types.ModuleType) else HOLDERS[kind])


def find_cell(function: Any, key: str) -> types.CellType:
    cell: types.CellType = function.__closure__[function.__code__.co_freevars.index(key)]
    return cell


def format_path(path: Path) -> str:
    """Returns the path as a user writes it: the qualified name of a parameter."""
    parts = []
    for kind, key in path:
        hidden = ("_modules", "_parameters", "_buffers", "__self__", "__func__", "func", None)
        if kind in ("class", "base") or key in hidden:
            continue
        parts.append(f"{kind} {key}" if kind in ("closure", "default", "global") else str(key))
    return ".".join(parts)
