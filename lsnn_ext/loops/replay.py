"""Replayer: replays the recording of a function that holds, else records the call."""
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..codegen.plain import generator_states, is_mutable, make_key, set_generator_states
from . import modes
from .guards import Guard, check_functional, check_hooks, describe_inputs
from .ir import Later, Recording, Refused
from .modes import NotReplayed, OnTheSide, copy_inference_states, prepare_recording, run_aside
from .monitor import Monitor
from .origins import Origins
from .paths import Path, format_path, resolve
from .plan import OtherBranchError, Plan, make_plan
from .record import record
from .rounding import VerificationError
from .sizes import Sizes
from .twin import Twin, restored_modes
from .unread import Steps, is_number
from .verify import Comparison, verify

CHANGES = 8  # recordings for inputs of the same shapes
EARNED = 64  # replays after which a recording may make room for another one
SHAPES = 64  # of inputs that are recorded
RARE = 1 / 8  # calls with other branches for each call with those of the plan
_recording_lock = threading.Lock()


class Options(NamedTuple):
    verify: bool
    exact: bool
    dynamic: bool


class Entry(NamedTuple):
    """A recorded call."""

    guard: Guard
    plan: Plan | None  # None: the original runs
    reason: str  # why the original runs
    plain: dict[Path, tuple[Any, Any]]  # plain values that changed: before and after
    comparison: Comparison | None = None  # None: not verified


class Replayer:
    """The recordings of one function. Copies and pickles of them are empty."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.owner: weakref.ref[Any] | None = None
        self.entries: dict[Any, list[Entry]] = {}
        self.sizes = Sizes()  # of entries that are made without a recording
        self.stopped: dict[Any, str] = {}  # by key, the reason why recording has stopped
        self.has_unread = False  # whether calls are recorded with numbers that Python does not read
        self.counters: set[Path] = set()  # attributes that calls compute of their former values
        self.others: list[str] = []  # types of arguments of a call that was not recorded
        # calls with others than those of a plan, less a share of the calls with these
        self.branches: defaultdict[Plan, float] = defaultdict(float)
        self.hooked: set[Any] = set()  # keys of calls that ran inside of hooks of saved tensors
        self.is_paused = False  # whether the original runs
        self.is_strict = False  # whether a difference that verify finds raises
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Replayer, (self.options,)

    def is_of(self, root: Any) -> bool:
        """Whether the recordings belong to this model, the first that called, or to a function."""
        if not isinstance(root, nn.Module):
            return True
        if self.owner is None:
            self.owner = weakref.ref(root)
        return self.owner() is root

    def call(self, root: Any, original: Callable[..., Any], args: tuple[Any, ...],
             kwargs: dict[str, Any]) -> Any:
        """Returns what original(*args, **kwargs) returns.

        Args:
            root: the model or function, from which leaves are looked up.
        """
        if self.is_paused or not self.is_of(root) or modes.must_run_original(self.is_strict):
            return original(*args, **kwargs)
        if not torch.is_inference_mode_enabled():
            return self._call(root, original, args, kwargs)
        for _ in range(2):  # a recording of torch.no_grad is made on the side, and replayed
            with torch.inference_mode(False), torch.no_grad(), suppress(NotReplayed):
                copy_inference_states(root)
                return self._call(root, OnTheSide(original), args, kwargs)
        return original(*args, **kwargs)

    def _call(self, root: Any, original: Any, args: tuple[Any, ...],
              kwargs: dict[str, Any]) -> Any:
        inputs: list[Any] = list(args)
        spec: Any = len(args)
        if kwargs or any(type(one) is not Tensor for one in args):
            inputs, spec = pytree.tree_flatten((args, kwargs))
        kinds = describe_inputs(inputs, isinstance(original, OnTheSide))
        if kinds is None:
            self.others = sorted({type(one).__name__ for one in inputs if not isinstance(
                one, Tensor) and (make_key(one) is None or is_mutable(one))})
            return original(*args, **kwargs)
        key = (spec, kinds, modes.read_flags())
        try:
            entries = self.entries.get(key, ())
        except TypeError:  # arguments without a hash
            return original(*args, **kwargs)
        if key in self.hooked and modes.has_saved_tensor_hooks():
            return original(*args, **kwargs)
        for entry in entries:
            if entry.guard.holds(inputs):
                return self._replay(root, entry, original, inputs, args, kwargs)
        if key in self.stopped:
            return original(*args, **kwargs)
        if modes.has_saved_tensor_hooks():  # those of a checkpoint run the call once more, as here
            self.hooked.add(key)
            reason = ("torch.utils.checkpoint: expected a first call with inputs of these shapes "
                      "outside of it and of other hooks of saved tensors")
            self._warn(reason, f"{reason}; inside of them the original runs", UserWarning)
            return original(*args, **kwargs)
        if not _recording_lock.acquire(blocking=False):
            return original(*args, **kwargs)
        try:
            copy_inference_states(root)
            for check in (Guard.replace_tensors, Guard.settle):
                for entry in entries:
                    if check(entry.guard, inputs):
                        return self._replay(root, entry, original, inputs, args, kwargs)
            if self.options.dynamic and self.sizes.predict(self.entries, key, inputs,
                                                           self.options.exact):
                entry = self.entries[key][-1]
                return self._replay(root, entry, original, inputs, args, kwargs)
            with prepare_recording():
                if not isinstance(original, OnTheSide):
                    return self._record(root, original, key, args, kwargs)
                run = partial(self._record, root, original.function, key)
                if reason := run_aside(run, root, args, kwargs):
                    self._stop(key, reason)
                raise NotReplayed
        finally:
            _recording_lock.release()

    def pause(self, run: Callable[[], Any]) -> Any:
        """Returns the result of run, in which the original runs."""
        self.is_paused = True
        try:
            return run()
        finally:
            self.is_paused = False

    def all(self) -> list[Entry]:
        return [entry for entries in self.entries.values() for entry in entries]

    def _is_replayed(self, key: Any) -> bool:
        """Whether calls are replayed that differ from those of a key in flags alone."""
        return any(entry.plan is not None for (spec, kinds, _), entries in self.entries.items()
                   if (spec, kinds) == key[:2] for entry in entries)

    def reason(self) -> str:
        """Returns why no call is replayed; empty: some are."""
        if self.stopped:
            return next(iter(self.stopped.values()))
        if self.hooked and not self.entries:
            return "a call inside of hooks of saved tensors, which is not recorded"
        entries = self.all()
        if any(entry.plan is not None for entry in entries):
            return ""
        if not entries and self.others:
            return (f"x: expected dense tensors and plain values, got {', '.join(self.others)}; "
                    f"put other objects into the function: fuse(lambda x: run(net, x), x)")
        return entries[0].reason if entries else (
            "x: expected a call of the model, got none; another method is one for lsnn_ext.fuse")

    def _record(self, root: Any, original: Callable[..., Any], key: Any, args: tuple[Any, ...],
                kwargs: dict[str, Any]) -> Any:
        inputs = pytree.tree_leaves((args, kwargs))
        entries = self.entries.get(key, [])
        if len(entries) >= CHANGES:  # such as a schedule changes a number after each epoch
            entries[:] = [one for one in entries if one.plan is None or one.plan.replays < EARNED]
        shapes = len(self.entries.keys() - {one for one, *_ in self.sizes.predicted})
        if len(entries) >= CHANGES or (not entries and shapes >= SHAPES):
            what = (f"the model changes between calls ({entries[-1].guard.find_change()})"
                    if entries else f"inputs of more than {SHAPES} shapes")
            self._stop(key, f"{what}; the original runs where no recording holds")
            return original(*args, **kwargs)
        self.sizes.begin(inputs)
        reason = ""
        try:
            if isinstance(root, nn.Module):
                check_hooks(root)
            check_functional()
            origins = Origins(root, args, kwargs)
            if self.has_unread:
                while found := self._record_twin(root, key, origins, args, kwargs):
                    self.counters |= found
        except Refused as refused:
            reason = str(refused)
        if self.has_unread or reason:
            result = original(*args, **kwargs)  # which may raise what the twin did
            if reason:
                self._stop(key, reason)
            return result
        monitor = Monitor(original)
        steps = Steps(False)
        result, recording = record(monitor, args, kwargs, origins, self.options.verify, steps)
        recording = monitor.refused or recording
        if isinstance(root, nn.Module):
            if counters := self._find_counters(key, origins, recording):
                self.counters |= counters
                self.entries.pop(key, None)  # which have their former values
            self.has_unread = steps.is_wanted or bool(counters)
        if not self.has_unread:  # else the next call is recorded
            self._add_entry(root, key, origins, recording, monitor.codes, result)
        return result

    def _record_twin(self, root: nn.Module, key: Any, origins: Origins, args: tuple[Any, ...],
                     kwargs: dict[str, Any]) -> set[Path]:
        """Records a call of a copy, with an Unread for each number of a tensor and each counter.
        Returns counters that were found; empty: the call is recorded."""
        with restored_modes():  # a __deepcopy__ may draw parameters
            twin = Twin(root, args, kwargs, origins)
        steps = Steps(True)
        for path in self.counters:
            if is_number(origins.snapshot.held(path)):
                twin.set_unread(path, steps)
        monitor = Monitor(twin.run, True)
        before = Origins(twin.model, twin.args, twin.kwargs, has_copies=True)
        try:
            with restored_modes():
                try:
                    result, recording = record(monitor, twin.args, twin.kwargs, before,
                                               self.options.verify, steps)
                except Exception as error:
                    if not steps.refused and not monitor.refused:
                        # perhaps because C code expects a number
                        raise Refused(f"{type(error).__name__}: expected no number of a tensor in "
                                      f"Python, got {error}") from None
                    result, recording = None, Refused("expected no error")
            recording = (monitor.refused or steps.refused or monitor.caught
                         or twin.find_difference(before, monitor.codes) or recording)
            found = self._find_counters(key, origins, recording) - self.counters
            if not found:
                self._add_entry(root, key, origins, recording, monitor.codes, result)
        finally:
            before.restore()
        return found

    def _find_counters(self, key: Any, origins: Origins,
                       recording: Recording | Refused) -> set[Path]:
        """Returns numbers that a call has changed to what may depend on numbers: of tensors, or of
        the call before."""
        if isinstance(recording, Refused):
            return set()
        found = {path for path, tree in recording.changed
                 if any(isinstance(one, Later) for one in pytree.tree_leaves(tree))
                 and is_number(origins.snapshot.held(path))}
        plain = origins.plain_changes(recording)
        return found | {path for path in self._find_changing(key, plain)
                        if is_number(plain[path][0])}

    def _find_changing(self, key: Any, plain: dict[Path, tuple[Any, Any]]) -> list[Path]:
        """Returns plain values that each call changes."""
        return [path for entry in self.entries.get(key, ())
                for path in entry.plain.keys() & plain.keys()
                if make_key(entry.plain[path][1]) == make_key(plain[path][0])
                != make_key(plain[path][1])]

    def _add_entry(self, root: Any, key: Any, origins: Origins, recording: Recording | Refused,
                   codes: set[CodeType] | None, result: Any) -> None:
        if isinstance(recording, Refused) and modes.is_profiling() and not self.is_strict:
            return
        try:
            entry = self._entry(root, key, origins, recording, codes, result)
            self.entries.setdefault(key, []).append(entry)
            if self.options.dynamic:
                self.sizes.add(self.entries, key, entry)
        except Exception as error:
            if self.is_strict and not isinstance(error, Refused):
                raise
            what = "" if isinstance(error, Refused) else f"{type(error).__name__} of lsnn_ext: "
            self._stop(key, f"{what}{error}")

    def _entry(self, root: Any, key: Any, origins: Origins, recording: Recording | Refused,
               codes: set[CodeType] | None, result: Any) -> Entry:
        plan, reason = None, ""
        plain: dict[Path, tuple[Any, Any]] = {}
        if isinstance(recording, Refused):
            reason = str(recording)
            recording = Recording([], {}, {}, None, [], {}, {})
        else:
            plain = origins.plain_changes(recording)
            try:
                self._check(key, recording, plain)
                plan = make_plan(recording, self.options.exact)
                recording, reason = plan.recording, plan.reason
            except Refused as refused:
                reason = str(refused)
        if reason:
            # without gradients a call may be too short for what pays off with them
            if plan is None or not plan.has_kernel or not self._is_replayed(key):
                self._warn(reason, f"{reason}; the original runs", UserWarning)
            plan = None
        guard = Guard(root, origins, recording, codes)
        comparison = None
        if plan is not None and self.options.verify:
            try:
                comparison = verify(plan, result)
                guard.check_backward()
            except Refused:
                raise
            except Exception as error:  # also of the program's backward
                if self.is_strict and isinstance(error, VerificationError):
                    raise
                reason = f"verify: {error}"
                self._stop(key, reason)
                plan = None
        recording.release()
        return Entry(guard, plan, reason, plain, comparison)

    def _check(self, key: Any, recording: Recording, plain: dict[Path, tuple[Any, Any]]) -> None:
        """Raises Refused for effects that a replay would not have."""
        for leaf, value in recording.written.items():
            if recording.kinds[value].requires_grad and not recording.kinds[leaf].requires_grad:
                name = format_path(recording.leaves[leaf].path)
                raise Refused(f"{name}: expected a write without gradient")
        for path in self._find_changing(key, plain):
            reason = (f"{format_path(path)}: expected a value that each call sets anew, got "
                      f"{plain[path][0]!r}, then {plain[path][1]!r}, as a counter has")
            self._stop(key, reason)
            raise Refused(reason)

    def _replay(self, root: Any, entry: Entry, original: Callable[..., Any], inputs: list[Any],
                args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if entry.plan is None:
            return original(*args, **kwargs)
        leaves = entry.guard.look_up(inputs)
        written = entry.plan.recording.written
        storages = [one.untyped_storage().data_ptr() for one in leaves.values()] if written else []
        # a tensor that is written to shares its memory with another leaf
        if any(storages.count(leaves[leaf].untyped_storage().data_ptr()) > 1 for leaf in written):
            return original(*args, **kwargs)
        states = generator_states() if entry.plan.is_random else []
        try:
            result, changed, values = entry.plan(leaves, {
                path: resolve(root, path) for path in entry.plan.recording.attributes})
        except OtherBranchError:
            set_generator_states(states)
            return self._run_branch(root, entry, original, args, kwargs)
        except Exception as error:  # the original may catch it, as that of a singular matrix
            if modes.has_saved_tensor_hooks():  # which raise themselves, as to end a recomputation
                raise
            reason = f"{type(error).__name__}: {error}"
        else:
            with torch.no_grad():
                for leaf, value in values.items():
                    one = leaves[leaf]
                    is_data = one.requires_grad or leaf in entry.plan.unversioned
                    (one.data if is_data else one).copy_(value)
            entry.guard.set_changed(changed)
            entry.plan.replays += 1
            if self.branches.get(entry.plan, 0) > 0:
                self.branches[entry.plan] -= RARE
            return result
        set_generator_states(states)
        result = original(*args, **kwargs)  # outside of the except clause: it may raise, too
        name = getattr(root, "__name__", type(root).__name__)
        self._warn("replay", f"{name}: expected a replay without errors, got {reason}; the "
                             f"original ran instead, as in each such call", RuntimeWarning)
        return result

    def _run_branch(self, root: Any, entry: Entry, original: Callable[..., Any],
                    args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the original, whose branches are others than those recorded."""
        assert entry.plan is not None
        self.branches[entry.plan] += 1
        if self.branches[entry.plan] >= CHANGES:
            name = getattr(root, "__name__", type(root).__name__)
            reason = (f"{name}: expected the branches and ranges of the recorded call, got others "
                      f"in {CHANGES} calls; the original runs from now on")
            for entries in self.entries.values():
                entries[:] = [one._replace(plan=None, reason=reason) if one is entry else one
                              for one in entries]
            self._warn(reason, reason, UserWarning)
        return original(*args, **kwargs)

    def _stop(self, key: Any, reason: str) -> None:
        self.stopped[key] = reason
        self._warn(reason, reason, UserWarning)

    def _warn(self, key: str, text: str, category: type[Warning]) -> None:
        """Warns once for each key."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"lsnn_ext: {text}", category, stacklevel=3)
