"""Monitor: sees which functions of Python run in a call, and refuses effects."""
import _thread
import builtins
import datetime
import importlib
import inspect
import io
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FrameType
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from ..codegen.user_code import find_globals, find_names, is_user
from .functions import find_line
from .ir import Refused

_start_thread = getattr(_thread, "start_joinable_thread", None)  # of Python 3.13
IMPURE = frozenset({
    print, input, open, os.urandom, os.mkdir, os.remove, os.unlink, os.rename, os.replace, os.rmdir,
    os.system, os.write, _thread.start_new_thread, _start_thread, globals, eval, exec, __import__,
    sys._getframe, datetime.datetime.now, datetime.datetime.utcnow, datetime.date.today,
    *(one for one in vars(time).values() if isinstance(one, BuiltinFunctionType))})
FILE: Any = io.IOBase.__base__  # without the slow isinstance of an abstract class
IMPURE_CODES = {id(inspect.unwrap(one).__code__): name for one, name in (
    (logging.Logger._log, "logging"), (type(os.environ).__getitem__, "os.environ"),
    (importlib.import_module, "import_module"), (torch.manual_seed, "manual_seed"),
    (torch.initial_seed, "initial_seed"), (saved_tensors_hooks.__enter__, "saved_tensors_hooks"),
    (random.Random.seed, "seed"))}
# With numbers that are not read: the second pass of a checkpoint, modes of NumPy's operators, what
# depends on a class, and what has another order of additions for floats.
CHECKPOINT = inspect.unwrap(torch.utils.checkpoint.checkpoint).__code__
NUMERIC = frozenset({"errstate", "seterr", "catch_warnings", "simplefilter", "filterwarnings",
                     "tree_map", "tree_flatten", "tree_leaves", "tree_map_only", "pytree"})
BUILTIN = (type, id, builtins, *([sum] if sys.version_info >= (3, 12) else []))
HARMLESS = (AttributeError, LookupError, ImportError, StopIteration, StopAsyncIteration,
            GeneratorExit, Refused)  # exceptions that no number raises
# Names in code that reaches what its other names do not show, or sets NumPy's generator.
HIDDEN = ("sys.modules", "f_globals", "__globals__", "attrgetter", "random.seed")


class Monitor:
    """A function whose calls record which code runs, and side effects.

    is_unread: refuse also what depends on the class of a number, as type does and exceptions of C
        code that expects a float; and end where something is refused, since the function runs once
        more.
    """

    def __init__(self, function: Callable[..., Any], is_unread: bool = False) -> None:
        self.function, self.is_unread = function, is_unread
        self.refused: Refused | None = None
        self.caught: Refused | None = None  # an exception
        self._before: Any = sys.getprofile()
        is_other = self._before is not None and not callable(self._before)  # such as cProfile
        self.codes: set[CodeType] | None = None if is_other else set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_unread and sys.gettrace() is not None:
            self.refused = Refused("sys.settrace: expected no debugger and no coverage")
        if self.codes is None:
            return self.function(*args, **kwargs)
        before = self._before
        seen: dict[int, CodeType] = {}  # by id: the hash of code is slow

        def note(frame: FrameType, event: str, called: Any) -> None:
            if before is not None:
                before(frame, event, called)
            if event == "call":
                code = frame.f_code
                if id(code) in seen:
                    return
                what = IMPURE_CODES.get(id(code))
                if what is not None:
                    self._refuse(what, frame.f_back)
                elif self.is_unread and code is CHECKPOINT:
                    self._refuse("checkpoint", _find_user(frame))
                else:
                    seen[id(code)] = code
                    if not is_user(str(frame.f_globals.get("__name__"))):
                        return
                    for names in HIDDEN:
                        if find_names(code).issuperset(names.split(".")):
                            self._refuse(names, frame)
                    if self.is_unread:
                        for name in NUMERIC & find_names(code):
                            self._refuse(name, frame)
                        for name in find_globals(code):
                            one = frame.f_globals.get(name, getattr(builtins, name, None))
                            if any(one is other for other in BUILTIN):
                                self._refuse(name, frame)
            elif event == "c_call" and (
                    called in IMPURE
                    or isinstance(getattr(called, "__self__", None), FILE)):
                self._refuse(called.__name__, frame)

        sys.setprofile(note)
        trace = sys.gettrace()
        if self.is_unread:
            sys.settrace(self._trace)
        try:
            return self.function(*args, **kwargs)
        finally:
            sys.settrace(trace)
            sys.setprofile(before)
            self.codes.update(seen.values())

    def _trace(self, frame: FrameType, event: str, raised: Any) -> Any:
        """Refuses an exception, also one that is caught."""
        frame.f_trace_lines = False
        if event == "exception" and not issubclass(raised[0], HARMLESS) and self.caught is None:
            self.caught = Refused(f"{raised[0].__name__}: expected no error that the caller "
                                  f"catches", find_line())
        return self._trace

    def _refuse(self, what: str, frame: FrameType | None) -> None:
        """Refuses a call by user code, except during an import, which happens once."""
        above = frame
        while above is not None and above.f_code is not Monitor.__call__.__code__:
            if above.f_code.co_filename.startswith("<frozen importlib"):
                return
            above = above.f_back
        while frame is not None and (name := str(frame.f_globals.get("__name__", ""))) and (
                name.partition(".")[0] in sys.stdlib_module_names and not is_user(name)):
            frame = frame.f_back
        if frame is not None and is_user(name) and self.refused is None:
            line = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            self.refused = Refused(f"{what}: expected a call that does nothing but compute with "
                                   f"its arguments and the model", line)
            if self.is_unread:
                raise self.refused


def run_with_profile(profile: Any, run: Callable[[], Any]) -> Any:
    """Returns run(), during which sys.setprofile has this function."""
    before = sys.getprofile()
    if before is not None and not callable(before):  # cProfile, which cannot be set again
        return run()
    sys.setprofile(profile)
    try:
        return run()
    finally:
        sys.setprofile(before)


def _find_user(frame: FrameType | None) -> FrameType | None:
    """Returns the frame of user code that has led to a call."""
    while frame is not None and not is_user(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return frame
