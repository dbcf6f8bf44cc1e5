"""Unread: stands for a number or an array of Python while a call is recorded.

    n, log = 0, []
    for x in xs:                      steps, which a replay runs after the calls of torch:
        z = cell(x)
        n += z.sum().item()           k = item(z.sum()), k + 1 = add(n, k)
        log.append(z.numpy())         k + 2 = numpy(z)
    return n / len(xs), log           the last = truediv(n, 100); Later objects in the result

Python may keep an Unread, ask for its class and compute with it. All else that depends on its
number raises Refused, which is noted, so that code that catches it is refused, too: the code that
runs is the same for all numbers of a class. Only a copy of the model holds an Unread, see twin.py.
"""
import functools
import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..codegen.plain import Stand
from .functions import MOST_CALLS, MOST_MASKED, MOST_READ, PLAIN, find_line
from .ir import Later, Leaf, Ref, Refused, Step
from .paths import Path

NUMBERS = (int, float, np.integer, np.floating)
KINDS = (*NUMBERS, np.ndarray)
READS: dict[str, Callable[..., Any]] = {
    "item": Tensor.item, "numpy": Tensor.numpy, "tolist": Tensor.tolist}
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod")
UNARY: dict[str, Callable[..., Any]] = {
    "__neg__": operator.neg, "__pos__": operator.pos, "__abs__": abs, "__round__": round}
METHODS = frozenset({  # of arrays, and of NumPy's numbers
    "item", "mean", "sum", "std", "var", "max", "min", "copy", "round", "tolist", "flatten",
    "astype"})
SHAPES = frozenset({"shape", "dtype", "ndim", "size"})
# Of NumPy: rounded correctly, so that they give what the operators of its numbers give.
UFUNCS = frozenset({np.add, np.subtract, np.multiply, np.divide, np.absolute, np.negative})
KEPT = frozenset({  # what an Unread has in common with other objects
    "__class__", "__new__", "__init__", "__init_subclass__", "__subclasshook__",
    "__class_getitem__", "__getattribute__", "__setattr__", "__array_function__"})


class Content(NamedTuple):
    """The result of a step."""

    steps: "Steps"
    number: int  # of the step
    value: Any  # in the recorded call


class Unread(Stand):
    """A number, array or list, whose class has the special methods of that of its value."""

    __slots__ = ("_content",)

    def __getattribute__(self, name: str) -> Any:
        steps, _, value = get_content(self)
        if not steps.is_running:
            return object.__getattribute__(self, name)
        if name == "__class__":
            return type(value)
        if name.startswith("__array"):  # NumPy looks for it
            _refuse(self, name)
        if not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        is_array = isinstance(value, np.ndarray)
        if is_array and name in SHAPES:
            return getattr(value, name)
        if name not in METHODS or not (is_array or isinstance(value, np.generic)):
            _refuse(self, name)

        def call(*args: Any, **kwargs: Any) -> Unread:
            if not all(is_constant(one, (*PLAIN, type)) for one in (*args, *kwargs.values())):
                _refuse(self, name)
            return steps.compute(operator.methodcaller(name, *args, **kwargs), self)

        return call


get_content: Callable[[Any], Content] = vars(Unread)["_content"].__get__


def is_unread(value: Any) -> bool:
    return issubclass(type(value), Unread)  # as isinstance, which asks for __class__, does not


def _refuse(one: Any, name: str) -> NoReturn:
    get_content(one).steps.refuse(f"{name}: expected no number of a tensor or counter in Python, "
                                  f"except to keep it or to add and multiply")


def _make_refusal(name: str) -> Callable[..., Any]:
    return lambda self, *_args, **_kwargs: _refuse(self, name)


def _make_operator(function: Callable[..., Any], is_reflected: bool = False) -> Callable[..., Any]:
    def operate(self: Unread, *others: Any) -> Any:
        given = (*others, self) if is_reflected else (self, *others)
        return get_content(self).steps.compute(function, *given)

    return operate


def _power(self: Unread, power: Any) -> Any:
    if not is_constant(power, int) or power < 0:  # else its class depends on the number
        _refuse(self, "__pow__")
    return get_content(self).steps.compute(operator.pow, self, power)


def _apply(self: Unread, ufunc: Any, method: str, *given: Any, **others: Any) -> Any:
    if ufunc not in UFUNCS or method != "__call__" or others:
        _refuse(self, ufunc.__name__)
    return get_content(self).steps.compute(ufunc, *given)


ALLOWED = {
    "__pow__": _power, "__array_ufunc__": _apply,
    **{name: _make_operator(function) for name, function in UNARY.items()},
    **{f"__{name}__": _make_operator(getattr(operator, name)) for name in BINARY},
    **{f"__r{name}__": _make_operator(getattr(operator, name), True) for name in BINARY}}


@functools.cache
def _make_class(kind: type) -> type[Unread]:
    """Returns the class for values of a class."""
    members: dict[str, Any] = {"__slots__": (), "__array_ufunc__": _apply}
    for name in ("__copy__", "__deepcopy__", *dir(kind)):
        one = getattr(kind, name, len)
        if one is None:  # as __hash__ of arrays
            members[name] = None
        elif name.startswith("__") and name not in KEPT and callable(one):
            members[name] = ALLOWED.get(name) or _make_refusal(name)
    made = type(kind.__name__, (Unread,), members)
    for base in (Sequence, Mapping):  # which pattern matching asks for
        if issubclass(kind, base):
            base.register(made)
    return made


class Steps:
    """The steps of a recording.

    Args:
        is_active: whether item, numpy and tolist return an Unread. Else is_wanted says that one
            did not.
    """

    def __init__(self, is_active: bool) -> None:
        self.is_active, self.is_wanted = is_active, False
        self.steps: list[Step] = []
        self.attributes: dict[Path, Any] = {}  # numbers and arrays, and their paths
        self.arrays: list[tuple[Tensor, int]] = []  # tensors in whose memory they are, and values
        self.is_running = False  # whether the program runs
        self.refused: Refused | None = None

    @contextmanager
    def run(self) -> Iterator[None]:
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False

    def check(self, args: Any, kwargs: Any) -> None:
        """Refuses arguments of a function of torch."""
        if self.is_active:
            for one in pytree.tree_leaves((args, kwargs)):
                if is_unread(one):
                    _refuse(one, "an argument")

    def get(self, path: Path, value: Any) -> Unread:
        self.attributes[path] = value
        return self._add(Step(_return, (Leaf("attribute", path),)), value)

    def read(self, recorder: Any, name: str, args: Any, kwargs: Any) -> tuple[Unread] | None:
        """Calls item or numpy; None: another function, or one whose result is read."""
        self.check(args, kwargs)
        if name not in READS or len(args) != 1 or kwargs or args[0].dtype == torch.bool:
            return None
        tensor, = args
        with recorder.refusals():
            with recorder.inside():
                value = recorder.value_of(tensor)
            if name != "numpy" and recorder.recording.attributes_of(value, MOST_READ):
                return None
            if not self.is_active:
                self.is_wanted = True
                return None
            recorder.name = "__bool__"
            with recorder.inside():
                result = READS[name](tensor)
            if name == "numpy":
                self.arrays.append((tensor, value))
            return self._add(Step(READS[name], (Ref(value),)), result),
        return None

    def compute(self, function: Callable[..., Any], *given: Any) -> Unread:
        """Adds function(*given), of numbers and of arrays that are unread."""
        if not all(isinstance(get_value(one), KINDS if is_unread(one) else NUMBERS)
                   for one in given):
            self.refuse("expected numbers of Python, got another object")
        value = function(*map(get_value, given))
        return self._add(Step(function, tuple(map(to_later, given))), value)

    def _add(self, step: Step, value: Any) -> Unread:
        if not is_number(value):
            self.refuse(f"expected numbers or an array, got {type(value).__name__}")
        self.steps.append(step)
        kind: Any = type(value)
        made = object.__new__(_make_class(kind))
        vars(Unread)["_content"].__set__(made, Content(self, len(self.steps) - 1, value))
        return made

    def refuse(self, reason: str) -> NoReturn:
        """Raises Refused, and notes it for code that catches it."""
        self.refused = self.refused or Refused(reason, find_line())
        raise self.refused


def _return(value: Any) -> Any:
    return value


def get_value(value: Any) -> Any:
    """Returns what an Unread is in the recorded call, else the value itself."""
    return get_content(value).value if is_unread(value) else value


def is_number(value: Any) -> bool:
    """Whether a value is a number, but no flag, or an array, or a container."""
    return type(value) in (int, float) or isinstance(value, (
        np.integer, np.floating, np.ndarray, list, tuple, dict, deque))


def is_constant(value: Any, kinds: Any) -> bool:
    """Whether a value is of these kinds, and no Unread that looks like one."""
    return not is_unread(value) and isinstance(value, kinds)


def to_later(value: Any) -> Any:
    """Returns the Later of an Unread, else the value itself."""
    return Later(get_content(value).number) if is_unread(value) else value


def run_steps(steps: list[Step], get: Callable[[Any, bool], Any]) -> list[Any]:
    """Returns the results of the steps.

    get: returns the tensor of a Ref, where True one whose memory an array takes, the number or
        array of a Leaf, and others as they are.
    """
    found: list[Any] = []
    for function, args in steps:
        is_array = function is READS["numpy"]
        found.append(function(*(found[one.step] if isinstance(one, Later) else get(one, is_array)
                                for one in args)))
    return found


def add_read(recorder: Any, tensor: Any, reason: str, result: Any = None) -> None:
    """Notes that Python reads numbers: of small attributes, or a bool, the result."""
    value = _find_value(recorder, tensor, reason)
    if _add_attributes(recorder, recorder.recording.attributes_of(value, MOST_READ)):
        return
    if not isinstance(result, bool):
        raise Refused(reason)
    recorder.recording.checked[value] = result


def add_mask(recorder: Any, tensor: Any, reason: str) -> None:
    """Notes that a shape depends on numbers: of attributes, or of constants."""
    value, recording = _find_value(recorder, tensor, reason), recorder.recording
    if value in recording.masks:
        return
    found = recording.attributes_of(value, MOST_MASKED, MOST_CALLS)
    if found != [] and not _add_attributes(recorder, found):
        raise Refused(reason)
    recording.masks.add(value)


def _find_value(recorder: Any, tensor: Any, reason: str) -> int:
    known = recorder.tensors.get(id(tensor))  # perhaps of one that is gone
    if (known is None or known.tensor() is not tensor) and recorder.origins.find(tensor) is None:
        raise Refused(reason)  # such as one inside of a function of TorchScript
    value: int = recorder.value_of(tensor)
    return value


def _add_attributes(recorder: Any, found: list[int] | None) -> bool:
    """Notes that each call compares the numbers of these attributes; False: there are none."""
    read = recorder.recording.read
    new = set(found or ()) - read.keys()
    live = {known.value: one for known in (recorder.tensors.values() if new else ())
            if known.value in new and (one := known.tensor()) is not None}
    if not found or new != live.keys():
        return False
    read.update((key, one.detach().clone()) for key, one in live.items())
    return True
