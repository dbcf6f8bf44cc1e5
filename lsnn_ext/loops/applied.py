"""Calls that no mode of torch intercepts: of autograd.Functions and functions of TorchScript."""
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, FunctionMeta

from .functions import Apply, is_pure
from .ir import Refused
from .monitor import run_with_profile

_lock = threading.RLock()


@contextmanager
def intercept_functions(recorder: Any) -> Iterator[None]:
    """Records calls of the thread of a recorder.

    C code runs the apply of an autograd.Function, under whatever name a program calls it. It looks
    up setup_context, and forward in no_grad; attributes of the metaclass have precedence over
    these. What forward returns gets its gradient later.
    """
    meta: Any = FunctionMeta
    script: Any = torch.jit.ScriptFunction
    run_script = script.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return run_script(function, *args, **kwargs)

        if recorder.is_passive():
            return run()
        if not is_pure(function):
            with recorder.refusals():
                raise Refused(f"{function.name}: expected a function of TorchScript that does "
                              f"nothing but compute with its arguments")
        return recorder.note_function(function, args, kwargs, run)

    def begin(kind: Any, set_up: Any) -> Any:
        if torch.is_grad_enabled() and not recorder.is_passive():  # not after forward
            run_with_profile(None, recorder.complete)
        return set_up if set_up is default else _SetUp(recorder, kind, set_up)

    default = torch.autograd.Function.setup_context
    with _lock:
        meta.setup_context = _Method("setup_context", begin)
        meta.forward = _Method("forward", lambda *given: _Forward(recorder, *given))
        script.__call__ = call
        try:
            yield
        finally:
            del meta.forward, meta.setup_context
            script.__call__ = run_script


class _Method:
    """Replaces a method of autograd.Functions when it is looked up."""

    def __init__(self, name: str, replace: Callable[[Any, Any], Any]) -> None:
        self.name, self.replace = name, replace

    def __get__(self, kind: Any, meta: Any) -> Any:
        found = next(vars(one)[self.name] for one in kind.__mro__ if self.name in vars(one))
        return self.replace(kind, found.__get__(None, kind))

    def __set__(self, kind: Any, value: Any) -> None:
        raise AttributeError(f"{kind.__name__}.{self.name}: expected no new method during a "
                             f"recording")


class _Replaced:
    """What stands for a method, with its signature."""

    def __init__(self, recorder: Any, kind: Any, method: Any) -> None:
        self.recorder, self.kind, self.__wrapped__ = recorder, kind, method

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


class _Forward(_Replaced):
    """Records a call of forward as one of apply."""

    def __call__(self, *args: Any) -> Any:
        if self.recorder.is_passive():
            return self.__wrapped__(*args)
        profile = sys.getprofile()
        context = args[0] if args and isinstance(args[0], FunctionCtx) else None
        given = args if context is None else args[1:]

        def run() -> Any:
            unwritten = {id(one): one._version for one in given if isinstance(one, Tensor)}
            result = run_with_profile(profile, lambda: self.__wrapped__(*args))
            for one in getattr(context, "dirty_tensors", None) or ():
                unwritten.pop(id(one), None)

            def view(one: Any) -> Any:  # of an argument, which C code makes out of sight
                is_one = isinstance(one, Tensor) and unwritten.get(id(one)) == one._version
                return one.view_as(one) if is_one else one

            return tuple(map(view, result)) if type(result) is tuple else view(result)

        return self.recorder.note_function(Apply(self.kind), given, {}, run, True)


class _SetUp(_Replaced):
    """Runs setup_context after forward, as a part of the call."""

    def __call__(self, *args: Any) -> Any:
        if self.recorder.is_passive():
            return self.__wrapped__(*args)
        with self.recorder.inside():
            return self.__wrapped__(*args)
