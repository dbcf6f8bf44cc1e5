"""Calls that no mode of torch intercepts: of autograd.Functions and functions of TorchScript,
copy.copy of tensors, and those of modules, which give lines the names of layers."""
import copy
import dis
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, FunctionMeta, _SingleLevelFunction
from torch.utils import _pytree as pytree

from ..codegen.plain import MISSING, Same, get_attributes, make_key
from . import ir
from .functions import APPLY, Apply, get_name, get_property_name, is_pure, is_static
from .ir import Mode, Recording, Ref, Refused
from .monitor import run_with_profile

_lock = threading.RLock()


@contextmanager
def intercept_functions(recorder: Any) -> Iterator[None]:
    """Records calls of the thread of a recorder."""
    is_python = isinstance(APPLY, classmethod)  # before torch 2.15, also where a program bound it
    base: Any = _SingleLevelFunction if is_python else Function
    meta: Any = FunctionMeta
    script: Any = torch.jit.ScriptFunction
    run_script = script.__call__

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return super(_SingleLevelFunction, cls).apply(*args, **kwargs)

        if recorder.is_passive():
            return run()
        profile = sys.getprofile()
        return recorder.note_function(_make_apply(recorder, cls), args, kwargs,
                                      lambda: run_with_profile(profile, run))

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

    def share(tensor: Tensor) -> Any:
        def run() -> Any:  # as copy.copy does without __copy__
            return copy._reconstruct(tensor, None, *tensor.__reduce_ex__(4))  # type: ignore[attr-defined]

        if recorder.is_passive():
            return run()
        if type(tensor) is Tensor and not get_attributes(tensor):
            return recorder.note_function(share_memory, (tensor,), {}, run)
        with recorder.refusals():
            raise Refused(f"copy: expected a tensor without attributes, got a "
                          f"{type(tensor).__name__}")
        return run()

    run_module = nn.Module.__call__

    def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = recorder.layers.get(id(module))
        if name is None or threading.get_ident() != recorder.thread:
            return run_module(module, *args, **kwargs)
        recorder.running.append(name)
        try:
            return run_module(module, *args, **kwargs)
        finally:
            recorder.running.pop()

    with _lock:
        base.apply, script.__call__ = classmethod(apply), call
        nn.Module.__call__ = call_module  # type: ignore[method-assign]
        Tensor.__copy__ = share  # type: ignore[attr-defined]
        if not is_python:
            recorder.bound = Bound(recorder)
            meta.__getattribute__ = recorder.bound.make_look_up()
        try:
            yield
        finally:
            script.__call__ = run_script
            nn.Module.__call__ = run_module  # type: ignore[method-assign]
            del Tensor.__copy__  # type: ignore[attr-defined]
            if is_python:
                del base.apply
            else:
                base.apply = APPLY
                del meta.__getattribute__


def share_memory(tensor: Tensor) -> Tensor:
    """Returns copy.copy(tensor): another tensor of the same memory, without history."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _make_apply(recorder: Any, kind: type) -> Apply:
    """Returns the apply of a class, or of an equal one that was recorded before."""
    return Apply(recorder.classes.setdefault(_describe_class(kind), kind))


def _describe_class(kind: type) -> tuple[Any, ...]:
    """Returns what is equal for classes that the same code has made with equal values."""
    if "<locals>" not in kind.__qualname__:
        return (kind,)
    held = {name: _describe_member(kind, one) for name, one in vars(kind).items()
            if name not in ("__dict__", "__weakref__", "_backward_cls")}
    return type(kind), kind.__name__, kind.__qualname__, kind.__bases__, *sorted(held.items())


def _describe_member(kind: type, one: Any) -> Any:
    function = getattr(one, "__func__", one)
    if not isinstance(function, FunctionType):
        return make_key(one) or Same(one)
    parts = (function.__name__, function.__doc__, function.__globals__,
             *(getattr(cell, "cell_contents", MISSING) for cell in function.__closure__ or ()),
             *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(),
             *vars(function).items())
    return type(one), function.__code__, tuple(
        None if part is kind else make_key(part) or Same(part) for part in parts)


def check_results(recorder: Any, begun: Any, found: Sequence[Any]) -> None:
    """Refuses older tensors, except arguments, as results of a Function: their history changes; and
    objects that it keeps for its backward pass and that the program may change, if they may hold
    tensors. Notes the tensors that it keeps without a check of their version."""
    for made in found:
        for one in getattr(getattr(made, "grad_fn", None), "__dict__", {}).values():
            kept = pytree.tree_leaves(one)
            tensors = [leaf for leaf in kept if isinstance(leaf, Tensor)]
            recorder.memory.keep(tensors)
            if (tensors and ir.list_containers(one)) or any(
                    map(get_attributes, tensors)) or not all(
                    isinstance(leaf, Tensor) or is_static(leaf)
                    or make_key(leaf) is not None and not isinstance(leaf, set | frozenset)
                    or recorder.origins.is_constant(leaf)
                    or any(leaf is argument for argument in begun.leaves) for leaf in kept):
                raise Refused(f"{begun.function.__name__}: expected tensors in "
                              f"ctx.save_for_backward and plain values in ctx, got a "
                              f"{type(one).__name__}")
    if getattr(begun.function.function, "clear_saved_tensors_on_access", False):
        raise Refused(f"{begun.function.__name__}: expected saved tensors that stay")
    refs = [leaf for leaf in begun.leaves if isinstance(leaf, Ref)]
    args = pytree.tree_unflatten(begun.leaves, begun.spec)[0]
    given = {id(one) for ref, one in zip(refs, begun.tensors, strict=True) if ref in args}
    for one in found:
        if isinstance(one, Tensor) and id(one) not in given:
            known = recorder.tensors.get(id(one))
            if known is not None and known.tensor() is one or recorder.origins.find(one):
                raise Refused(f"{begun.function.__name__}: expected new tensors, or arguments, as "
                              f"results")


def check_copies(recording: Recording, results: Sequence[int]) -> None:
    """Refuses copies of tensors with a gradient among the results: they are leaves."""
    copies = {value for call in recording.calls if call.function is share_memory
              for value in call.outputs}
    if any(recording.kinds[value].requires_grad and value in copies for value in results):
        raise Refused("result: expected no copy.copy of a tensor that requires a gradient")


class Bound:
    """Records calls of an apply that a program has bound before the recording, and that is C code.

    It looks up _backward_cls of its class, which nothing else does, and forward, which it runs
    without gradients; then setup_context, if there is one. Its result, which it makes of that of
    forward, is recorded when the next call begins. Calls of torch that it makes are not recorded:
    view_as, for a result that is an argument, that of hooks of one that was written to, and those
    of hooks of saved tensors. Meanwhile the frame that has called it stays at its instruction.
    Refuses where it may raise after forward.
    """

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self.begun: Any = None  # the class whose forward is looked up next
        self.run_class: Any = None  # the class whose forward has run
        self.context: Any = None
        self.marked: set[int] = set()  # results without gradient, by id
        self.mode = Mode.now()
        self.frame: tuple[FrameType, int] | None = None  # that has called it, and where

    def make_look_up(self) -> Any:
        """Returns __getattribute__ of the classes of autograd.Functions."""
        def look_up(kind: Any, name: str) -> Any:
            found = type.__getattribute__(kind, name)
            if name not in ("_backward_cls", "forward", "setup_context") or (
                    self.recorder.is_passive()):
                return found
            if name == "_backward_cls":
                frame = sys._getframe(1)
                if dis.opname[frame.f_code.co_code[frame.f_lasti]] == "LOAD_ATTR":
                    return found  # for the program
                run_with_profile(None, self.recorder.complete)
                self.begun, self.mode = kind, Mode.now()
            elif name == "forward" and self.begun is kind:
                self.begun = None
                return lambda *args: self._forward(kind, found, args, sys._getframe(1))
            elif name == "setup_context" and self.run_class is kind:
                self.run_class = None
                return lambda *args: self._set_up(found, args)
            return found

        return look_up

    def is_running(self, function: Any, args: Any) -> bool:
        """Whether this C code makes a call."""
        if self.frame is None or self.recorder.unfinished is None:
            return False
        autograd: Any = torch._C._autograd
        hooks = autograd._top_saved_tensors_default_hooks(True)
        code = getattr(hooks[0], "__code__", None) if hooks else None
        is_own = get_property_name(function) == "_backward_hooks" or (
            get_name(function) == "view_as" and args[0] is args[1] and any(
                one is args[0] for one in pytree.tree_leaves(self.recorder.unfinished[1])))
        caller, instruction = self.frame
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not caller:
            is_own |= frame.f_code is code
            frame = frame.f_back
        return is_own and frame is caller and caller.f_lasti == instruction

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        recorder = self.recorder
        with recorder.inside():
            made = function(*args, **kwargs)
        if get_name(function) == "view_as":
            begun, result, check = recorder.unfinished
            leaves, spec = pytree.tree_flatten(result)
            leaves[next(k for k, one in enumerate(leaves) if one is args[0])] = made
            recorder.unfinished = begun, pytree.tree_unflatten(leaves, spec), check
        return made

    def _forward(self, kind: Any, forward: Any, args: tuple[Any, ...], caller: FrameType) -> Any:
        profile = sys.getprofile()
        has_context = bool(args) and isinstance(args[0], FunctionCtx)
        given = args[1:] if has_context else args
        apply = _make_apply(self.recorder, kind)
        result = self.recorder.note_function(apply, given, {}, lambda: run_with_profile(
            profile, lambda: forward(*args)), self._check, self.mode)
        self.frame = caller, caller.f_lasti
        if has_context:
            self._keep(args[0])
        else:
            self.run_class = kind
        return result

    def _set_up(self, set_up: Any, args: tuple[Any, ...]) -> Any:
        try:
            with self.recorder.inside():
                set_up(*args)
        except Exception:
            self.recorder.refuse(Refused("setup_context: expected no error"))
            raise
        self._keep(args[0])

    def _keep(self, context: Any) -> None:
        self.context = context
        self.marked = {id(one) for one in context.non_differentiable or ()}

    def _check(self, result: Any) -> None:
        """Refuses the result of a call whose C code has raised."""
        context, self.context, self.run_class, self.frame = self.context, None, None, None
        found = result if type(result) is tuple else (result,)
        has_gradient = context and any(context.needs_input_grad) and self.mode.grad
        if context is None or has_gradient and any(
                isinstance(one, Tensor) and one.is_floating_point() and id(one) not in self.marked
                and one.grad_fn is not context for one in found):
            raise Refused("apply: expected a new tensor, and no error that the caller catches")
