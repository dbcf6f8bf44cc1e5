"""record: runs a model and records each call of torch, as a pure function of values.

Invariants while a recording is made and nothing is refused:

    I1  Each live tensor of `tensors` has the numbers of its value, as long as its _version is the
        one that was noted.
    I2  The call that makes a value is in `calls`, after those that make its inputs; other values
        are leaves: inputs, attributes, closures and globals as they were before the model ran.
    I3  A call depends on nothing but its values, constants, the mode of torch and, if is_random,
        the state of the generators.

    x, w                      leaves: values 0, 1
    u = x @ w                 2 = matmul(0, 1)
    u.mul_(0.5)               3 = mul_(2, 0.5)             the same tensor, a new value
    if u.sum() > 0:           refused: a number of a tensor in Python
    y = u.view(-1)            4 = view(3)
    u.add_(1)                 refused: y shares the memory of u, and value 4 would change

Proof that calling `calls` in their order, with the same leaves, gives the result of the model:
    Every operator is seen: it runs in a call that _Recorder or intercept_functions note, or
    outside of all of them, where Witness notes a constructor, and refuses others.
    I1. A call that writes to its arguments changes their _version, or writes statistics that
    Witness adds to `unversioned`; _after gives these tensors new values. Memory refuses a write to
    memory that another live tensor has, as x.data or a view of the same part, also where autograd
    alone keeps it; is_outdated does so for a tensor that is met later. A write that no call reports
    changes _version: value_of refuses the next use, and finish the tensors that are left. Functions
    of REFUSED are refused. A write to the data of a parameter that no call has read gives it a new
    value, which is written at the end.
    I2. An argument has a value of `tensors`, or is found by its origin; others are refused.
    I3. Arguments without a tensor are plain, static or constants of the fingerprint. Python cannot
    branch on numbers: results that are no tensors are refused, unless each is an Unread or depends
    on small attributes, whose numbers `read` keeps and the fingerprint compares. check_generators
    refuses what sets the state of a generator.
    By induction over the calls, each value has the same numbers in both runs.
"""
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .._core import torch_internals as internals
from .._core.torch_internals import find_storage
from ..codegen.plain import find_oddity, generator_states, set_generator_states
from . import functions as of
from .applied import Bound, check_copies, check_results, intercept_functions
from .functions import Apply, find_line, get_name, get_property_name, is_static
from .growing import Growing
from .indexing import PARTS, MaskedReads, Writes
from .ir import Call, Kind, Later, Mode, Recording, Ref, Refused, flatten_arguments
from .memory import UNSEEN_WRITE, Memory, check_backward, find_version
from .modes import read_settings
from .monitor import run_with_profile
from .origins import Origins
from .parameters import Parameters
from .rewrite import make_copy, rewrite
from .unread import Steps, add_read, to_later
from .values import find_turned
from .views import ViewWrites
from .witness import Witness, check_generators


def record(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
           origins: Origins, keep_numbers: bool = False,
           steps: Steps | None = None) -> tuple[Any, Recording | Refused]:
    """Calls function(*args, **kwargs) once.

    Returns:
        its result, and the recording or why there is none. What the function raises is raised.
    """
    recorder = _Recorder(origins, steps or Steps(False), keep_numbers)
    settings = read_settings()
    with intercept_functions(recorder), Witness(recorder), recorder, recorder.steps.run():
        result = function(*args, **kwargs)
        recorder.complete()
    try:
        if read_settings() != settings:
            raise Refused("torch: expected a call that leaves settings as they are")
        return result, recorder.steps.refused or recorder.refused or recorder.finish(result)
    except Refused as refused:
        return result, refused
    except RecursionError:
        return result, Refused("result: expected no container that holds itself")
    finally:
        recorder.thread = -1  # what a program has kept of it passes calls through
        del recorder.masked, recorder.parameters  # cycles, which would be found late


class _Begun(NamedTuple):
    """A call that has not run."""

    function: Any
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    tensors: list[Tensor]
    versions: list[tuple[int, bool]]
    mode: Mode
    line: str  # of the program


class _Recorder(TorchFunctionMode):
    """Records calls until something is refused; from then on passes them through."""

    def __init__(self, origins: Origins, steps: Steps, keep_numbers: bool) -> None:
        super().__init__()
        self.origins, self.steps, self.keep_numbers = origins, steps, keep_numbers
        self.recording = Recording([], {}, {}, None, [], {}, {}, steps=steps.steps,
                                   attributes=steps.attributes)
        self.layers, self.running = origins.snapshot.name_modules(), [""]  # names of modules
        self.refused: Refused | None = None
        self.depth = 0  # of noted calls; what they call themselves is not noted
        self.thread = threading.get_ident()
        self.is_random, self.name = False, ""  # the call at hand, and its function
        self.arguments: tuple[Any, ...] = ()
        self.unfinished: Any = None  # a call, its result and their check
        self.bound: Bound | None = None  # where an apply is C code
        self.classes: dict[Any, type] = {}  # of autograd.Functions that are equal
        self.unversioned: set[int] = set()  # storages that the call at hand writes to
        self.generators = self.recording.generators = generator_states()
        self.memory = Memory()
        self.tensors = self.memory.tensors
        self.masked, self.writes = MaskedReads(self), Writes(self.recording)
        self.growing = Growing(self.recording, self.writes)
        self.parameters, self.views = Parameters(self), ViewWrites(self)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.depth or self.refused:
            return func(*args, **kwargs)
        return run_with_profile(None, lambda: self._intercept(func, args, kwargs))

    def _intercept(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Records a call of a function of torch, unless it makes no tensor."""
        if self.bound is not None and self.bound.is_running(func, args):
            return self.bound.run(func, args, kwargs)
        self.complete()
        name = get_name(func)
        if made := (self.steps.read(self, name, args, kwargs)
                    or self.masked.run(func, name, args, kwargs)
                    or self.views.run(name, args, kwargs)):
            return made[0]
        if of.is_read(name, args, kwargs):
            return func(*args, **kwargs)
        if name == "tensor":
            args, kwargs = of.list_numbers(*args, **kwargs)
        if name == "__deepcopy__" and type(args[0]) is Tensor and not args[0].requires_grad:
            return self.note(Tensor.clone, args[:1], {}, lambda: func(*args, **kwargs))
        if name == "__setitem__" and isinstance(args[2], Tensor) and (
                args[2].dtype != args[0].dtype):
            one = args[2], args[0].dtype
            args = *args[:2], self.note(Tensor.to, one, {}, lambda: Tensor.to(*one))
        return self.note(func, args, kwargs, lambda: func(*args, **kwargs))

    def is_passive(self) -> bool:
        """Whether calls pass through: of other threads, in noted calls, and after a refusal."""
        return threading.get_ident() != self.thread or self.depth > 0 or self.refused is not None

    def note_function(self, function: Any, args: Any, kwargs: Any, run: Callable[[], Any],
                      check: Callable[[Any], None] | None = None, mode: Mode | None = None) -> Any:
        """Records what no mode intercepts."""
        def note() -> Any:
            self.complete()
            self.steps.check(args, kwargs)
            with internals.without_function_mode(self):  # as in calls that it intercepts
                return self.note(function, args, kwargs, run, check, mode)

        return run_with_profile(None, note)

    # ----------------------------------------------------------------------------- calls
    def note(self, function: Any, args: Any, kwargs: Any, run: Callable[[], Any],
             check: Callable[[Any], None] | None = None, mode: Mode | None = None) -> Any:
        """Runs a call and records it. A refusal never changes the result.

        check, mode: of the result, when the next call begins, and of torch before the call, if C
            code goes on with it.
        """
        with self.inside():
            before = None
            self.is_random, self.name, self.unversioned = False, get_name(function), set()
            self.arguments = *args, *kwargs.values()
            try:
                before = self._before(function, args, kwargs, mode or Mode.now())
            except Refused as refused:
                self.refuse(refused)
            try:
                result = run()
                self.arguments = ()
            except Exception as error:  # the caller may catch it
                self.refuse(Refused(f"{self.name}: expected no error, got {error!r}"))
                raise
            self.unfinished = before and (before, result, check)
            if check is None:
                self.complete()
            return result

    def complete(self) -> None:
        """Records the result of the last call, unless this is done."""
        if self.unfinished is not None:
            (begun, result, check), self.unfinished = self.unfinished, None
            with self.inside():
                try:
                    if check is not None and self.refused is None:
                        check(result)
                    self._after(begun, result)
                except Refused as refused:
                    self.refuse(refused, begun.line)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Notes no calls meanwhile."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    @contextmanager
    def refusals(self) -> Iterator[None]:
        try:
            yield
        except Refused as refused:
            self.refuse(refused)

    def find_line(self) -> str:
        """Returns the line of the program that runs, and its layer: "lif.py:34 (lif1)"."""
        line, layer = find_line(), self.running[-1]
        return f"{line} ({layer})" if line and layer else line

    def refuse(self, refused: Refused, line: str = "") -> None:
        self.refused = Refused(refused.reason, refused.line or line or self.find_line())

    def _before(self, function: Any, args: Any, kwargs: Any, mode: Mode) -> "_Begun":
        name = self.name
        if name == "__set__" and (changed := get_property_name(function)) != "requires_grad" and (
                changed != "data" or self.parameters.find(args[0]) is not args[0]):
            raise Refused(f"{changed}: expected no assignment to this attribute of a tensor")
        if name in of.REFUSED:
            raise Refused(f"{name}: expected calls that make tensors of tensors")
        leaves, spec = flatten_arguments(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        refs = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                leaf = Ref(self.value_of(leaf))
            elif isinstance(leaf, np.integer | np.floating):
                leaf = leaf.item()  # which torch takes it for
            elif not (isinstance(leaf, of.PLAIN) or is_static(leaf)
                      or self.origins.is_constant(leaf) and not self.steps.is_active):
                raise Refused(f"{name}: expected tensors and plain arguments, got "
                              f"{type(leaf).__name__}")
            refs.append(leaf)
        if self.keep_numbers and of.may_write(name):
            self.parameters.copy_numbers(tensors if name.startswith("_foreach") else tensors[:1])
        return _Begun(function, tuple(refs), spec, tensors, list(map(find_version, tensors)),
                      mode, self.find_line())

    def _after(self, begun: "_Begun", result: Any) -> None:
        if result is NotImplemented:  # such as tensor == None
            return
        function, leaves, spec, tensors, versions, mode, line = begun
        name, kinds = self.name, self.recording.kinds
        written = []
        if name == "__set__" and get_property_name(function) == "data":
            self.parameters.set_data(tensors[0], tensors[1], line)
            return
        changed = {id(one): one for one, version in zip(tensors, versions, strict=True)
                   if find_version(one) != version
                   and (name != "__setitem__" or one is tensors[0])  # not in a part of the same
                   or self.unversioned and find_storage(one) in self.unversioned}
        if not changed and name in of.FLAGS:
            return
        args, kwargs = pytree.tree_unflatten(leaves, spec) if name in PARTS else ((), {})
        parameters = []
        for one in changed.values():
            before = self.tensors[id(one)].value
            parameter = None if name in of.FLAGS else self.parameters.find(one)
            self.parameters.check_write(name, one, before, args, parameter)
            if parameter is not None:
                parameters.append((parameter, self.tensors[id(parameter)].value, len(kinds)))
            written.append((before, self.add(one)))  # the value len(kinds)
        found, tree = ([result], None) if isinstance(result, Tensor) else (
            pytree.tree_flatten(result))
        others = [one for one in found if one is not None and not isinstance(one, Tensor)]
        if others and not written and name in of.VALUE_READS and len(tensors) == 1:
            add_read(self, tensors[0], f"{name}: expected no number of a tensor in Python", result)
            return
        if others or (not written and not any(isinstance(one, Tensor) for one in found)):
            what = f"a result {type(others[0]).__name__ if others else 'None'}"
            raise Refused(f"{name}: expected calls that make tensors of tensors, got {what}; "
                          f"what depends on numbers of a tensor in Python cannot be repeated")
        given = {id(one) for one in tensors}
        parts = self.growing.take(name, args, kwargs, result, leaves)
        if parts is None and name in PARTS and (
                values := self.writes.find(name, args, kwargs, written, found)):
            for value, one in zip(values, found, strict=True):
                made = self.add(one)
                self.recording.calls.append(make_copy(value, made, line, kinds))
                self.writes.note_values(value, made)
            self.memory.note_parts(name, args, tensors, found)
            return
        if isinstance(function, Apply):
            check_results(self, begun, found)
        if not written and all(id(one) in given for one in found):
            return  # such as contiguous() of a contiguous tensor
        refs = [None if one is None else Ref(
            self.tensors[id(one)].value if id(one) in given else self.add(one)) for one in found]
        self.memory.note_parts(name, args, tensors, [one for one in found if id(one) not in given])
        results = refs[0] if tree is None else pytree.tree_unflatten(refs, tree)
        call = Call(function, leaves, spec, results, tuple(written), mode, self.is_random, line)
        if parts is not None:
            self.growing.add(call, *parts)
            return
        if self.is_random:
            self.recording.strides.update(find_turned(zip(call.inputs, tensors, strict=True)))
        if isinstance(results, Ref):
            self.writes.note(name, args, kwargs, results.value)
        self.recording.calls += rewrite(call, self.recording)
        for parameter, old, numbers in parameters:
            self.parameters.assign(parameter, old, numbers, line)

    # ----------------------------------------------------------------------------- values
    def add(self, tensor: Tensor) -> int:
        """Returns a new value for the tensor as it is now."""
        odd = find_oddity(tensor)
        if odd or type(tensor) not in (Tensor, torch.nn.Parameter):
            raise Refused(f"expected dense tensors, got {odd or type(tensor).__name__}")
        value = self.recording.add_value(Kind(tuple(tensor.shape), tensor.dtype, tensor.device,
                                     tensor.requires_grad, tensor.is_contiguous()))
        self.memory.add(tensor, value)
        if self.keep_numbers:
            with internals.without_dispatch_modes():
                self.recording.numbers[value] = tensor.detach()
        return value

    def value_of(self, tensor: Tensor) -> int:
        known = self.tensors.get(id(tensor))
        if known is not None and known.tensor() is tensor:
            if known.version != tensor._version:
                raise Refused(UNSEEN_WRITE, self.find_line())
            return known.value
        leaf = self.origins.find(tensor)
        if leaf is None:
            raise Refused("a tensor of unknown origin: expected inputs, attributes, closures, "
                          "globals, and what torch makes of them, no new Parameter or ScriptModule")
        is_written = self.origins.versions[id(tensor)][1] != tensor._version
        if is_written or self.memory.is_outdated(tensor):
            raise Refused("a tensor was written to through another one that shares its memory")
        value = self.add(tensor)
        self.recording.leaves[value] = leaf
        if self.keep_numbers:
            self.recording.tensors[value] = tensor
        is_constant = leaf.kind == "attribute" and not tensor.requires_grad
        if is_constant and (self.keep_numbers or tensor.numel() == 1):  # may be written to
            self.recording.numbers[value] = tensor.detach().clone()
        return value

    def finish(self, result: Any) -> Recording:
        """Returns the recording. Raises Refused."""
        recording = self.recording
        outputs: list[Tensor] = []

        def reference(one: Any) -> Any:
            if isinstance(one, Tensor):
                outputs.append(one)
                ref = Ref(self.growing.find_result(self, one))
                if not one.is_contiguous():
                    recording.strides[ref.value] = one.stride()
                return ref
            one = to_later(one)
            if not isinstance(one, (*of.PLAIN, Later)):
                raise Refused(f"result: expected tensors in tuples, lists and dicts, got "
                              f"{type(one).__name__}")
            return one

        self.growing.update_written(self)
        recording.result = pytree.tree_map(reference, result)
        check_copies(recording, [self.value_of(one) for one in outputs])
        for tensor, value in self.steps.arrays:
            if self.value_of(tensor) != value or value in recording.written.values():
                raise Refused("numpy: expected no write to a tensor whose array is kept")
            reference(tensor)
        n = len(outputs)
        recording.changed = self.origins.changed(reference, result)
        self.growing.read(map(Ref, recording.find_results()))
        recording.shared = self.origins.find_shared(outputs[:n], outputs[n:], recording.changed,
                                                    self.value_of)
        self.memory.check_versions(self.origins.versions)
        check_generators(self.generators)
        if self.memory.has_new_versions or any(call.written for call in recording.calls):
            live = [one for known in self.tensors.values()
                    if self.parameters.find_leaf(known.value) in recording.leaves
                    and (one := known.tensor()) is not None]
            check_backward([one for one in outputs if one.requires_grad], live)
            set_generator_states(self.generators)
        return recording
