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
import sys
import sysconfig
import types
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Container, Iterator, MappingView
from importlib.util import resolve_name
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .ir import Refused
from .plain import make_key

Step: TypeAlias = tuple[str, Any]
Path: TypeAlias = tuple[Step, ...]
MISSING = object()
ATTRIBUTE = "_lsnn_replayer"  # the attribute that holds the recordings of a converted model
FOREIGN = frozenset({"torch", "numpy", "lsnn_ext", "builtins"})
# Of the standard library, and walked; the state of the others is out of reach.
OPEN = (types.SimpleNamespace, argparse.Namespace, UserDict, UserList, ChainMap, weakref.ref,
        weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
OPAQUE = (Iterator, MappingView, types.MappingProxyType, bytearray, memoryview)
OPAQUE_MODULES = frozenset({"array", "ctypes", "multiprocessing", "queue"})
SEQUENCES = (list, tuple, deque)
IMMUTABLE = (tuple, types.MethodType, property, staticmethod, classmethod, functools.partial)
STATE_DICTS = frozenset({  # of a module; nothing that forward reads
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_non_persistent_buffers_set", ATTRIBUTE})
CLASS_DETAILS = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__",
                           "__qualname__", "__abstractmethods__", "__slots__", "__match_args__"})


@functools.cache
def is_user(module: str) -> bool:
    """Whether a module is user code: not torch, NumPy, lsnn_ext or the standard library."""
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
def find_names(code: types.CodeType) -> frozenset[str]:
    """Returns the names of globals and attributes in a function and its inner functions."""
    inside = [find_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return frozenset(code.co_names).union(*inside)


@functools.cache
def find_globals(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names of globals among them."""
    found = {str(one.argval) for one in dis.get_instructions(code)
             if one.opname.endswith(("_GLOBAL", "_NAME"))}
    inside = [find_globals(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return tuple(sorted(found.union(*inside)))


@functools.cache
def find_imports(code: types.CodeType, package: str) -> tuple[str, ...]:
    """Returns the modules that a function imports when it runs."""
    steps = list(dis.get_instructions(code))
    found = [resolve_name("." * steps[k - 2].argval + str(one.argval), package)
             for k, one in enumerate(steps) if one.opname == "IMPORT_NAME"]
    inside = [find_imports(one, package) for one in code.co_consts
              if isinstance(one, types.CodeType)]
    return tuple(sorted({*found}.union(*inside)))


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
    if isinstance(value, (nn.Module, dict, types.MethodType, property, staticmethod, classmethod,
                          functools.partial, *SEQUENCES)):
        return type(value) is not torch.Size
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
    return isinstance(value, Tensor) or make_key(value) is not None


def list_entries(value: Any) -> Iterator[tuple[Step, Any]]:
    """Yields the entries of the value: step and content."""
    if isinstance(value, types.FunctionType):
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield ("closure", key), cell.cell_contents
            except ValueError:  # not yet set
                yield ("closure", key), MISSING
        yield from ((("default", key), one) for key, one in enumerate(value.__defaults__ or ()))
        yield from ((("keyword", key), one) for key, one in (value.__kwdefaults__ or {}).items())
        yield from ((("global", key), value.__globals__[key])
                    for key in find_globals(value.__code__) if key in value.__globals__)
        yield from ((("attribute", key), one) for key, one in vars(value).items())
        yield from ((("module", key), sys.modules[key])
                    for key in find_imports(value.__code__, str(value.__globals__.get(
                        "__package__"))) if key in sys.modules)
    elif isinstance(value, types.ModuleType):
        yield from ((("global", key), one) for key, one in vars(value).items())
    elif isinstance(value, type):
        yield from ((("attribute", key), one) for key, one in vars(value).items()
                    if key not in CLASS_DETAILS)
        yield from ((("base", key), one) for key, one in enumerate(value.__bases__))
        yield ("class", None), type(value)
    elif isinstance(value, weakref.ref):
        yield ("referent", None), value()
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


def list_elements(value: Any) -> list[Any]:
    """Returns the elements of a sequence, even if its class overrides __iter__."""
    kind = next(one for one in SEQUENCES if isinstance(value, one))
    return [*kind.__iter__(value)]


def _parts(value: Any) -> Iterator[tuple[Step, Any]]:
    for name in ("maxlen",) * isinstance(value, deque) + ("default_factory",) * isinstance(
            value, defaultdict):
        yield ("member", name), getattr(value, name)
    if isinstance(value, dict):
        if any(isinstance(key() if isinstance(key, weakref.ref) else key, Tensor) for key in value):
            raise Refused("expected no dict with tensors as keys")
        yield from ((("item", key), one) for key, one in dict.items(value))
    elif isinstance(value, SEQUENCES):
        yield from ((("item", key), one) for key, one in enumerate(list_elements(value)))
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
    """Returns the entry at a step. Raises LookupError, AttributeError or ValueError without one."""
    kind, key = step
    if kind == "attribute":
        return vars(value)[key]
    if kind == "item":
        return dict.__getitem__(value, key) if isinstance(value, dict) else value[key]
    if kind == "member":
        return getattr(value, key)
    if kind == "closure":
        return find_cell(value, key).cell_contents
    if kind == "global":
        return (vars(value) if isinstance(value, types.ModuleType) else value.__globals__)[key]
    if kind == "class":
        return type(value)
    if kind == "module":
        return sys.modules[key]
    if kind == "referent":
        return value()
    where = {"default": "__defaults__", "keyword": "__kwdefaults__", "base": "__bases__"}[kind]
    return getattr(value, where)[key]


def set_step(value: Any, step: Step, new: Any) -> None:
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
        cell = find_cell(value, key)
        if new is MISSING:
            del cell.cell_contents
        else:
            cell.cell_contents = new
    elif kind == "global":
        _set(vars(value) if isinstance(value, types.ModuleType) else value.__globals__, key, new)
    else:
        raise Refused(f"{format_path((step,))}: changed in the call")


def _set(where: dict[Any, Any], key: Any, new: Any) -> None:
    kind: Any = OrderedDict if isinstance(where, OrderedDict) else dict  # of no class of a user
    if new is not MISSING:
        kind.__setitem__(where, key, new)
    elif key in where:
        kind.__delitem__(where, key)


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
