"""convert, fuse, revert: a model or function that replays recordings of its calls."""
import copyreg
import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .._core.torch_internals import break_graph, makes_graph
from ..codegen.plain import MISSING
from .ir import Refused
from .origins import Origins
from .paths import ATTRIBUTE
from .replay import Options, Replayer
from .report import Report, Speed, describe, measure_speed

Model = TypeVar("Model", bound=nn.Module)


# ---------------------------------------------------------------------------------- subclasses
@functools.cache
def _make_metaclass(kind: Any) -> type:
    """Returns the metaclass of generated classes, which pickle as a call of make_subclass. What is
    set on them, as by type(model).threshold = 2.0, is set on the original class, until it is
    deleted."""
    before: dict[tuple[Any, str], Any] = {}  # what the original had

    def find_owner(cls: Any, name: str) -> Any:
        is_own = name in vars(cls) or name in vars(type)  # such as forward and __name__
        return cls if is_own else vars(cls).get("_lsnn_original", cls)

    def set_attribute(cls: Any, name: str, value: Any) -> None:
        owner = find_owner(cls, name)
        if owner is not cls:
            before.setdefault((cls, name), vars(owner).get(name, MISSING))
        kind.__setattr__(owner, name, value)

    def delete_attribute(cls: Any, name: str) -> None:
        owner, value = find_owner(cls, name), before.pop((cls, name), MISSING)
        if value is MISSING:
            kind.__delattr__(owner, name)
        else:
            kind.__setattr__(owner, name, value)

    made: type = type(kind.__name__, (kind,), {
        "__setattr__": set_attribute, "__delattr__": delete_attribute})
    copyreg.pickle(made, _reduce)
    return made


def _reduce(kind: type) -> Any:
    original = vars(kind).get("_lsnn_original")
    return kind.__qualname__ if original is None else (make_subclass, (original,))


@functools.cache
def make_subclass(original: type) -> type:
    """Returns the class of converted models of a class."""
    forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(forward)
    def replay(self: Any, *args: Any, **kwargs: Any) -> Any:
        if makes_graph():
            return break_graph(replay, self, *args, **kwargs)
        replayer, kind = self.__dict__.get(ATTRIBUTE), type(self)
        # parametrize and fully_shard give a model a subclass of its class
        if torch.compiler.is_compiling() or replayer is None or kind is not made:
            return forward(self, *args, **kwargs)
        if not replayer.is_of(self):
            if getattr(self, "_is_replica", False):  # of nn.DataParallel, made for one call
                return forward(self, *args, **kwargs)
            replayer = self.__dict__[ATTRIBUTE] = Replayer(replayer.options)  # a shallow copy

        def run(*args: Any, **kwargs: Any) -> Any:
            object.__setattr__(self, "__class__", original)  # which the program may look at
            try:
                # One that an instance has got since calls this one.
                return (original.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
                        if "forward" in vars(self) else self.forward(*args, **kwargs))
            finally:
                object.__setattr__(self, "__class__", made)

        return replayer.call(self, run, args, kwargs)

    is_noticed = hasattr(original.__init_subclass__, "__func__")  # which registers, or asks more
    made: type = _make_metaclass(type(original))(
        original.__name__, (nn.Module if is_noticed else original,), {
            "forward": replay, "_lsnn_original": original, "__module__": original.__module__,
            "__qualname__": original.__qualname__, "__doc__": original.__doc__})
    made.__bases__ = (original,)
    return made


class FusedFunction:
    """A function that replays recordings of its calls."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.function = function
        self.replayer = Replayer(options)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if makes_graph():
            return break_graph(self, *args, **kwargs)
        return self.replayer.call(self.function, self.function, args, kwargs)


# --------------------------------------------------------------------------- public functions
Inputs: TypeAlias = Tensor | tuple[Any, ...] | Callable[[Any], Any]


def convert(model: Model, x: Inputs, *, verify: bool = True, exact: bool = False,
            dynamic: bool = False, speed: bool = False) -> tuple[Model, Report]:
    """Fuses the recurrences in the loops over time of a model.

    Each call for new shapes, dtypes or settings is recorded once and returns the model's own
    result. Later calls replay the recording with its recurrences in kernels. A call that cannot be
    replayed faithfully runs the original.

    Args:
        model: a module with loops over time. It stays the same object with the same parameters;
            its class becomes a generated subclass.
        x: an input of the model: a tensor, a tuple of arguments, or a function that runs the model,
            such as `lambda model: model(x, state)`. The state of the model, gradients and
            generators are restored afterwards.
        verify: compare each recording with the original: outputs, states and gradients.
        exact: compute products outside of recurrences as the original does, those of a loop step
            by step. Default False: at once and without zeros, which rounds otherwise.
        dynamic: your promise that the model computes the same whatever the length of the sequence
            or the batch size. If the recording of a third size is what those of two others
            predict, sizes between these are not recorded. Default False: each size is.
        speed: time forward and backward passes on x, original and converted in turns, for the
            report. A model that is slower converted stays as it was.

    Returns:
        the model, and a Report.

    Raises:
        TypeError: model is no module, is not initialized, or is wrapped by torch.compile,
            TorchScript or DDP.

    Example:
        >>> model, report = lsnn_ext.convert(model, x)
        >>> print(report)
    """
    _check_options(verify=verify, exact=exact, dynamic=dynamic, speed=speed)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    wrappers = (torch.jit.ScriptModule, nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(model, wrappers) or type(model).__name__ == "OptimizedModule":
        is_script = isinstance(model, torch.jit.ScriptModule)
        raise TypeError(f"model: expected the module inside of the wrapper, got a "
                        f"{'torch.jit.ScriptModule' if is_script else type(model).__name__}; "
                        f"convert {'the nn.Module that it was made of' if is_script else 'it'} "
                        f"first")
    if "_modules" not in vars(model):
        raise TypeError(f"model: expected a module whose __init__ calls super().__init__(), got a "
                        f"{type(model).__name__}; lsnn_ext.fuse(model.forward, x) takes it")
    revert(model)
    if "forward" in vars(model):
        return model, Report(type(model).__name__, False,
                             "forward: expected a method, got an attribute of the model")
    replayer = Replayer(Options(verify, exact, dynamic))
    kind: Any = type(model)
    model.__class__ = make_subclass(kind)
    vars(model)[ATTRIBUTE] = replayer
    try:
        reason, measured = _try(model, replayer, x, speed)
    except BaseException:
        revert(model)
        raise
    entry = next((one for one in replayer.all() if one.plan is not None), None)
    if not reason and measured is not None and measured.ratio < 1:
        reason = f"expected a faster model, got {measured}"
    if reason:
        revert(model)
    if entry is None or entry.plan is None:
        return model, Report(type(model).__name__, False, reason)
    return model, Report(type(model).__name__, not reason, reason, describe(entry.plan),
                         entry.comparison, measured, len(entry.plan.recording.checked))


def fuse(function: Callable[..., Any], x: Inputs, *, verify: bool = True, exact: bool = False,
         dynamic: bool = False) -> Callable[..., Any]:
    """Fuses the recurrences in the loops of a function, or of a part of a model.

    Args:
        function: a function of tensors, or a module, which is converted.
        x: as of convert; a function of x receives the function.
        verify, exact, dynamic: as of convert.

    Returns:
        a function with the same arguments and results; of a module the module.

    Raises:
        Refused: nothing could be fused; with the reason and the line.
        TypeError: a wrong argument.

    Example:
        >>> run = lsnn_ext.fuse(run, (x, w1, w2))
    """
    if isinstance(function, nn.Module):
        model, report = convert(function, x, verify=verify, exact=exact, dynamic=dynamic)
        if not report.converted:
            raise Refused(report.reason)
        return model
    if not callable(function):
        raise TypeError(f"function: expected a callable, got {type(function).__name__}")
    _check_options(verify=verify, exact=exact, dynamic=dynamic)
    fused = FusedFunction(function, Options(verify, exact, dynamic))
    reason, _ = _try(fused, fused.replayer, x, False)
    if reason:
        raise Refused(reason)
    return fused


def revert(model: Any) -> Any:
    """Gives a model, its parts, or a function the original class again.

    Args:
        model: what convert or fuse returned, or a copy of it.

    Returns:
        the model itself, or the original function.
    """
    if isinstance(model, FusedFunction):
        return model.function
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in nn.Module.modules(model):  # which a class may override
        original = vars(type(module)).get("_lsnn_original")
        if original is not None:
            module.__class__ = original
        vars(module).pop(ATTRIBUTE, None)
    return model


def _check_options(**options: Any) -> None:
    for name, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def _try(function: Any, replayer: Replayer, x: Inputs,
         has_speed: bool) -> tuple[str, Speed | None]:
    """Runs the function on x and restores its state. Returns why nothing replays, and the speed."""
    args: tuple[Any, ...] = () if callable(x) and not isinstance(x, Tensor) else (
        x if isinstance(x, tuple) else (x,))
    root = function.function if isinstance(function, FusedFunction) else function
    try:
        origins = Origins(root, args, {}, has_copies=True)
    except Refused as refused:
        return str(refused), None
    tensors = [one for one, _ in origins.snapshot.tensors.values()]
    speed = None

    def run() -> Any:
        return x(function) if not args and callable(x) else function(*args)

    gradients = [(one, one.grad) for one in tensors if one.is_leaf]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    replayer.is_strict = True
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            for one, _ in gradients:
                one.grad = None
            left = 2
            while left:
                before = replayer.has_unread
                run()
                left -= 1
                if before != replayer.has_unread:
                    origins.restore()
                    left = 2
                elif not any(entry.plain for entry in replayer.all()):
                    break  # else again: a counter shows itself in the second call
            if has_speed and not replayer.reason():
                speed = measure_speed(lambda: replayer.pause(run), run, tensors, origins.restore)
        finally:
            replayer.is_strict = False
            origins.restore()
            for one, gradient in gradients:
                one.grad = gradient
    return replayer.reason(), speed
