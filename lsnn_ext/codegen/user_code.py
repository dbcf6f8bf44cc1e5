"""What the code of users names: globals, attributes and imports."""
import dis
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import resolve_name
from types import CodeType

# einops: only computes with its arguments
FOREIGN = frozenset({"torch", "numpy", "lsnn_ext", "builtins", "einops"})


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


def _list_codes(code: CodeType) -> Iterator[CodeType]:
    """Yields the code of a function and of its inner functions."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _list_codes(one)


@functools.cache
def find_names(code: CodeType) -> frozenset[str]:
    """Returns the names of globals and attributes in a function and its inner functions."""
    return frozenset().union(*(one.co_names for one in _list_codes(code)))


@functools.cache
def find_words(code: CodeType) -> frozenset[str]:
    """Returns these names and the strings that may be names, as for getattr."""
    return find_names(code).union(word for one in _list_codes(code) for word in one.co_consts
                                  if isinstance(word, str) and word.isidentifier())


@functools.cache
def find_globals(code: CodeType) -> tuple[str, ...]:
    """Returns the names of globals among them."""
    return tuple(sorted({str(step.argval) for one in _list_codes(code)
                         for step in dis.get_instructions(one)
                         if step.opname.endswith(("_GLOBAL", "_NAME"))}))


@functools.cache
def find_imports(code: CodeType, package: str) -> tuple[str, ...]:
    """Returns the modules that a function imports when it runs."""
    found = set()
    for one in _list_codes(code):
        steps = list(dis.get_instructions(one))
        found |= {resolve_name("." * steps[k - 2].argval + str(step.argval), package)
                  for k, step in enumerate(steps) if step.opname == "IMPORT_NAME"}
    return tuple(sorted(found))
