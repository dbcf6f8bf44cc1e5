"""convert, fuse, revert: a model or function whose calls replay recordings of its own."""
import copyreg
import functools
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._core import torch_internals
from .guards import Guard, check_hooks, describe_inputs, flags
from .ir import Recording
from .origins import Origins
from .places import MISSING, OWN, Path, exact, name_of
from .record import record
from .refused import Refused
from .report import Report
from .run import Plan
from .verify import check

CHANGES = 8  # recordings for inputs of the same shapes
SHAPES = 64  # of inputs that are recorded
Model = TypeVar("Model", bound=nn.Module)
_recording = threading.Lock()


class Options(NamedTuple):
    verify: bool
    exact: bool


class Entry(NamedTuple):
    """A recorded call."""

    guard: Guard
    plan: Plan | None  # None: the original runs
    reason: str  # why the original runs
    plain: dict[Path, tuple[Any, Any]]  # plain values that changed: before and after


class Recordings:
    """The recordings of one function. Copies and pickles of them are empty."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.owner: weakref.ref[Any] | None = None
        self.entries: dict[Any, list[Entry]] = {}
        self.stopped: dict[Any, str] = {}  # by key, why no more is recorded
        self.reports: list[Report] = []
        self.is_strict = False  # whether a difference that verify finds raises
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, (self.options,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recordings":
        return Recordings(self.options)

    def call(self, root: Any, original: Callable[..., Any], args: tuple[Any, ...],
             kwargs: dict[str, Any]) -> Any:
        """What original(*args, **kwargs) returns.

        Args:
            root: the model or function, from which leaves are looked up.
        """
        if self.owner is None:
            self.owner = weakref.ref(root)
        if self.owner() is not root or _must_run_original():
            return original(*args, **kwargs)
        inputs, spec = pytree.tree_flatten((args, kwargs))
        kinds = describe_inputs(inputs)
        if kinds is None:
            return original(*args, **kwargs)
        key = (spec, kinds, flags())
        try:
            entries = self.entries.get(key, ())
        except TypeError:  # arguments without a hash
            return original(*args, **kwargs)
        for entry in entries:
            if entry.guard.holds(inputs):
                return _replay(entry, original, inputs, args, kwargs)
        if key in self.stopped or _has_saved_tensor_hooks():
            return original(*args, **kwargs)
        if not _recording.acquire(blocking=False):
            return original(*args, **kwargs)
        try:
            return self._record(root, original, key, inputs, args, kwargs)
        finally:
            _recording.release()

    def all(self) -> list[Entry]:
        return [entry for entries in self.entries.values() for entry in entries]

    def reason(self) -> str:
        """Why no call is replayed; empty: some are."""
        if self.stopped:
            return next(iter(self.stopped.values()))
        entries = self.all()
        if any(entry.plan is not None for entry in entries):
            return ""
        return entries[0].reason if entries else "x: expected a call of the model, got none"

    def _record(self, root: Any, original: Callable[..., Any], key: Any, inputs: list[Any],
                args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entries = self.entries.get(key, [])
        try:
            if isinstance(root, nn.Module):
                check_hooks(root)
            origins = Origins(root, args, kwargs)
        except Refused as refused:
            self._stop(key, str(refused))
            return original(*args, **kwargs)
        for entry in entries:
            if entry.guard.settle(origins.snapshot, inputs):
                return _replay(entry, original, inputs, args, kwargs)
        if len(entries) >= CHANGES or (not entries and len(self.entries) >= SHAPES):
            what = ("the model changes between calls" if entries else
                    f"inputs of more than {SHAPES} shapes")
            self._stop(key, f"{what}; the original runs where no recording holds")
            return original(*args, **kwargs)
        result, recording = record(original, args, kwargs, origins, self.options.verify)
        entry = self._entry(root, key, origins, recording, inputs)
        self.entries.setdefault(key, []).append(entry)
        return result

    def _entry(self, root: Any, key: Any, origins: Origins, recording: Recording | Refused,
               inputs: list[Any]) -> Entry:
        plan, reason = None, ""
        plain: dict[Path, tuple[Any, Any]] = {}
        if isinstance(recording, Refused):
            reason = str(recording)
            recording = Recording([], {}, {}, None, [], {}, {})
        else:
            plain = _plain_changes(origins, recording)
            try:
                self._check(key, recording, plain)
                plan = Plan(recording, self.options.exact)
                if not plan.is_useful:
                    plan, reason = None, "no recurrence that runs in a kernel"
            except Refused as refused:
                plan, reason = None, str(refused)
        guard = Guard(root, origins, recording)
        if plan is not None and self.options.verify:
            check(plan)
        recording.numbers.clear()
        return Entry(guard, plan, reason, plain)

    def _check(self, key: Any, recording: Recording, plain: dict[Path, tuple[Any, Any]]) -> None:
        """Raises Refused for what a replay would do otherwise."""
        for leaf, value in recording.written.items():
            if recording.kinds[value].requires_grad:
                raise Refused(f"{name_of(recording.leaves[leaf].path)}: expected a write without "
                              f"gradient")
        for entry in self.entries.get(key, ()):
            for path in entry.plain.keys() & plain.keys():
                before, after = plain[path]
                if exact(entry.plain[path][1]) == exact(before) != exact(after):
                    reason = (f"{name_of(path)}: expected a value that each call sets anew, got "
                              f"{before!r}, then {after!r}, as a counter has")
                    self._stop(key, reason)
                    raise Refused(reason)

    def _stop(self, key: Any, reason: str) -> None:
        self.stopped[key] = reason
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"lsnn_ext: {reason}", UserWarning, stacklevel=2)


def _replay(entry: Entry, original: Callable[..., Any], inputs: list[Any], args: tuple[Any, ...],
            kwargs: dict[str, Any]) -> Any:
    if entry.plan is None:
        return original(*args, **kwargs)
    leaves = entry.guard.look_up(inputs)
    written = entry.plan.recording.written
    if written and _share_memory(leaves, written):
        return original(*args, **kwargs)
    result, changed, values = entry.plan(leaves)
    with torch.no_grad():
        for leaf, value in values.items():
            leaves[leaf].copy_(value)
    entry.guard.put(changed)
    return result


def _plain_changes(origins: Origins, recording: Recording) -> dict[Path, tuple[Any, Any]]:
    found = {}
    for path, after in recording.changed:
        before = origins.held(path)
        if before is not MISSING and exact(before) is not None and exact(after) is not None:
            found[path] = before, after
    return found


def _share_memory(leaves: dict[int, Tensor], written: dict[int, int]) -> bool:
    """Whether a tensor that is written to shares its memory with another leaf."""
    storages = [one.untyped_storage().data_ptr() for one in leaves.values()]
    return any(storages.count(leaves[leaf].untyped_storage().data_ptr()) > 1 for leaf in written)


def _must_run_original() -> bool:
    """Whether something else looks at the calls of torch, or does not run them."""
    return (torch.compiler.is_compiling() or torch_internals.is_mode_active()
            or torch_internals.is_transforming() or torch_internals.is_forward_mode()
            or torch._C._get_tracing_state() is not None)


def _has_saved_tensor_hooks() -> bool:
    """As inside of torch.utils.checkpoint, which compares what two calls save."""
    autograd: Any = torch._C._autograd
    return autograd._top_saved_tensors_default_hooks(True) is not None


# ---------------------------------------------------------------------------------- subclasses
@functools.cache
def _metaclass(kind: type) -> type:
    """Of generated classes, which pickle as a call of subclass."""
    made: type = type(kind.__name__, (kind,), {})
    copyreg.pickle(made, _reduce)
    return made


def _reduce(kind: type) -> Any:
    original = vars(kind).get("_lsnn_original")
    return kind.__qualname__ if original is None else (subclass, (original,))


@functools.cache
def subclass(original: type) -> type:
    """The class of converted models of a class."""
    forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(forward)
    def replay(self: Any, *args: Any, **kwargs: Any) -> Any:
        recordings = self.__dict__.get(OWN)
        if torch.compiler.is_compiling() or recordings is None:
            return forward(self, *args, **kwargs)
        return recordings.call(self, functools.partial(forward, self), args, kwargs)

    made: type = _metaclass(type(original))(original.__name__, (original,), {
        "forward": replay, "_lsnn_original": original, "__module__": original.__module__,
        "__qualname__": original.__qualname__, "__doc__": original.__doc__})
    return made


class Fused:
    """A function whose calls replay recordings."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.function = function
        self.recordings = Recordings(options)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.recordings.call(self.function, self.function, args, kwargs)


# --------------------------------------------------------------------------- public functions
Given: TypeAlias = Tensor | tuple[Any, ...] | Callable[[Any], Any]


def convert(model: Model, x: Given, *, verify: bool = True, exact: bool = False,
            dynamic: bool = False) -> tuple[Model, Report]:
    """Fuses the recurrences in the loops over time of a model.

    Each call for new shapes, dtypes or settings is recorded once and returns the model's own
    result. Later calls replay the recording with its recurrences in kernels. A call that cannot be
    replayed exactly runs the original.

    Args:
        model: a module with loops over time. It stays the same object with the same parameters;
            its class becomes a generated subclass.
        x: an input of the model: a tensor, a tuple of arguments, or a function that runs the model,
            such as `lambda model: model(x, state)`. The state of the model, gradients and
            generators are restored afterwards.
        verify: compare each recording with the original: outputs, states and gradients.
        exact: compute products between recurrences step by step, as the original does. Default
            False: at once, which rounds otherwise.
        dynamic: not yet supported.

    Returns:
        the model, and a Report.

    Raises:
        TypeError: model is no module or is wrapped by torch.compile, TorchScript or DDP.

    Example:
        >>> model, report = lsnn_ext.loops.convert(model, x)
        >>> print(report)
    """
    _check_options(verify=verify, exact=exact, dynamic=dynamic)
    _check_model(model)
    revert(model)
    if "forward" in vars(model):
        return model, Report(type(model).__name__, False,
                             "forward: expected a method, got an attribute of the model")
    recordings = Recordings(Options(verify, exact))
    kind: Any = type(model)
    model.__class__ = subclass(kind)
    vars(model)[OWN] = recordings
    try:
        reason = _try(model, recordings, x)
    except BaseException:
        revert(model)
        raise
    if reason:
        revert(model)
    return model, Report(type(model).__name__, not reason, reason)


def fuse(function: Callable[..., Any], x: Given, *, verify: bool = True, exact: bool = False,
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
        >>> run = lsnn_ext.loops.fuse(run, (x, w1, w2))
    """
    if isinstance(function, nn.Module):
        model, report = convert(function, x, verify=verify, exact=exact, dynamic=dynamic)
        if not report.converted:
            raise Refused(report.reason)
        return model
    if not callable(function):
        raise TypeError(f"function: expected a callable, got {type(function).__name__}")
    _check_options(verify=verify, exact=exact, dynamic=dynamic)
    fused = Fused(function, Options(verify, exact))
    reason = _try(fused, fused.recordings, x)
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
    if isinstance(model, Fused):
        return model.function
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        original = vars(type(module)).get("_lsnn_original")
        if original is not None:
            module.__class__ = original
        vars(module).pop(OWN, None)
    return model


def _check_options(**options: Any) -> None:
    for name, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    if options["dynamic"]:
        raise ValueError("dynamic: expected False, got True, which is not yet supported; each "
                         "length is recorded once")


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    wrappers = (torch.jit.ScriptModule, nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(model, wrappers) or type(model).__name__ == "OptimizedModule":
        raise TypeError(f"model: expected the module inside of the wrapper, got a "
                        f"{type(model).__name__}; convert it first")


def _try(function: Any, recordings: Recordings, x: Given) -> str:
    """Runs the function on x, without a trace; the reason why nothing is replayed."""
    args: tuple[Any, ...] = () if callable(x) and not isinstance(x, Tensor) else (
        x if isinstance(x, tuple) else (x,))
    root = function.function if isinstance(function, Fused) else function
    try:
        origins = Origins(root, args, {}, is_kept=True)
    except Refused as refused:
        return str(refused)
    gradients = [(one, one.grad) for one, _ in origins.snapshot.tensors.values() if one.is_leaf]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    recordings.is_strict = True
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            for one, _ in gradients:
                one.grad = None
            for _ in range(2):
                x(function) if not args and callable(x) else function(*args)
                if not any(entry.plain for entry in recordings.all()):
                    break  # else again: a counter shows itself in the second call
        finally:
            recordings.is_strict = False
            origins.restore()
            for one, gradient in gradients:
                one.grad = gradient
    return recordings.reason()
