"""Unread: stands for a number or an array of Python while a call is recorded.

    n, log = 0, []
    for x in xs:                      steps, which a replay runs after the calls of torch:
        z = cell(x)
        n += z.sum().item()           k = item(z.sum()), k + 1 = add(n, k)
        log.append(z.numpy())         k + 2 = numpy(z)
    return n / len(xs), log           the last = truediv(n, 100); Later objects in the result

Python may keep an Unread, ask for its class and compute with it. All else that depends on its
number raises Refused, which is noted, so that code that catches it is refused, too: the code that
runs is the same for all numbers. A recording with an Unread is not the program's own call. What it
changes is restored, and the original runs.
"""
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..codegen.plain import ANY, Stand, make_key
from .functions import MOST_READ, PLAIN, find_line
from .ir import Later, Leaf, Ref, Refused, Step
from .paths import Path

NUMBERS = (int, float, np.integer, np.floating)
KINDS = (*NUMBERS, np.ndarray)
READS: dict[str, Callable[..., Any]] = {
    "item": Tensor.item, "numpy": Tensor.numpy, "tolist": Tensor.tolist}
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
METHODS = frozenset({  # of arrays, and of NumPy's numbers
    "item", "mean", "sum", "std", "var", "max", "min", "copy", "round", "tolist", "flatten",
    "astype"})
SHAPES = frozenset({"shape", "dtype", "ndim", "size"})
# Of NumPy: rounded correctly, so that they give what the operators of its numbers give.
UFUNCS = frozenset({np.add, np.subtract, np.multiply, np.divide, np.absolute, np.negative, np.sqrt})
_KEPT = frozenset({  # what an Unread has in common with other objects
    "__class__", "__new__", "__init__", "__init_subclass__", "__subclasshook__", "__doc__",
    "__class_getitem__", "__getattribute__", "__setattr__", "__array_function__"})


class Unread(Stand):
    """A number or array that is the result of a step."""

    __slots__ = ("_steps", "_number", "_value")

    def __init__(self, steps: "Steps", number: int, value: Any) -> None:
        self._steps, self._number, self._value = steps, number, value

    @property
    def _key(self) -> tuple[Any, ...]:
        """A key that is equal to those of all values of the same class, dtype and shape."""
        key = make_key(self._value)
        assert key is not None
        return *key[:-1], ANY

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._value) if self._steps.is_running else Unread

    def __getattr__(self, name: str) -> Any:
        value = self._value
        if not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        if isinstance(value, np.ndarray) and name in SHAPES:
            return getattr(value, name)
        if name not in METHODS or not isinstance(value, np.ndarray | np.generic):
            self._refuse(name)

        def call(*args: Any, **kwargs: Any) -> Unread:
            if not all(is_constant(one, (*PLAIN, type)) for one in (*args, *kwargs.values())):
                self._refuse(name)
            return self._steps.compute(methodcaller(name, *args, **kwargs), self)

        return call

    def __array_ufunc__(self, ufunc: Any, method: str, *given: Any, **others: Any) -> "Unread":
        if ufunc not in UFUNCS or method != "__call__" or others:
            self._refuse(ufunc.__name__)
        return self._steps.compute(ufunc, *given)

    def _refuse(self, name: str) -> NoReturn:
        self._steps.refuse(f"{name}: expected no number of a tensor in Python, except to keep it "
                           f"or to add and multiply")


def _add_special_methods() -> None:
    def make_operator(function: Callable[..., Any], is_reflected: bool) -> Any:
        def operate(self: Unread, *others: Any) -> Any:
            return self._steps.compute(function, *((*others, self) if is_reflected
                                                   else (self, *others)))
        return operate

    def operate_in_place(self: Unread, other: Any) -> Any:
        if isinstance(self._value, np.ndarray):
            self._refuse("an operator in place")
        return NotImplemented  # that of a number makes another one

    def make_refusal(name: str) -> Any:
        return lambda self, *_args, **_kwargs: self._refuse(name)

    for name in OPERATORS:
        setattr(Unread, f"__{name}__", make_operator(getattr(operator, name), False))
        setattr(Unread, f"__r{name}__", make_operator(getattr(operator, name), True))
        setattr(Unread, f"__i{name}__", operate_in_place)
    for name in ("neg", "pos", "abs", "round"):
        setattr(Unread, f"__{name}__", make_operator(getattr(operator, name, round), False))
    for kind in (int, float, np.float64, np.ndarray):
        for name in {*dir(kind), "__copy__", "__deepcopy__"} - vars(Unread).keys() - _KEPT:
            if name.startswith("__") and callable(getattr(kind, name, None) or len):
                setattr(Unread, name, make_refusal(name))


_add_special_methods()


class Steps:
    """The steps of a recording.

    Args:
        is_active: whether item and numpy return an Unread. Else is_wanted says that one did not.
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
                if type(one) is Unread:
                    one._refuse("an argument")

    def get(self, path: Path, value: Any) -> Unread:
        """Returns the number or array of an attribute."""
        self.attributes[path] = value
        return self._add(Step(_return, (Leaf("attribute", path),)), value)

    def read(self, recorder: Any, name: str, args: Any, kwargs: Any) -> tuple[Unread] | None:
        """Calls item or numpy; None: another function, or one whose result is read."""
        if name not in READS or len(args) != 1 or kwargs or args[0].dtype == torch.bool:
            return None
        tensor, = args
        with recorder.refusals():
            value = recorder.value_of(tensor)
            if name == "item" and recorder.recording.attributes_of(value, MOST_READ):
                return None
            if not self.is_active:
                self.is_wanted = True
                return None
            recorder.depth += 1
            recorder.name = "__bool__"
            try:
                result = READS[name](tensor)
            finally:
                recorder.depth -= 1
            if name == "numpy":
                self.arrays.append((tensor, value))
            return self._add(Step(READS[name], (Ref(value),)), result),
        return None

    def compute(self, function: Callable[..., Any], *given: Any) -> Unread:
        """Adds function(*given), of numbers and of arrays that are unread."""
        if not all(isinstance(get_value(one), KINDS if type(one) is Unread else NUMBERS)
                   for one in given):
            self.refuse(f"{function.__name__}: expected a number of Python, got another object")
        value = function(*map(get_value, given))
        return self._add(Step(function, tuple(map(to_later, given))), value)

    def _add(self, step: Step, value: Any) -> Unread:
        if not isinstance(value, (*KINDS, list)):
            self.refuse(f"expected numbers or an array, got {type(value).__name__}")
        self.steps.append(step)
        return Unread(self, len(self.steps) - 1, value)

    def refuse(self, reason: str) -> NoReturn:
        """Raises Refused, and notes it for code that catches it."""
        self.refused = self.refused or Refused(reason, find_line())
        raise self.refused


def get_value(value: Any) -> Any:
    """Returns what an Unread is in the recorded call, else the value itself."""
    return value._value if type(value) is Unread else value


def is_constant(value: Any, kinds: Any) -> bool:
    """Whether a value is of these kinds, and no Unread that looks like one."""
    return type(value) is not Unread and isinstance(value, kinds)


def _return(value: Any) -> Any:
    return value


def to_later(value: Any) -> Any:
    """Returns the Later of an Unread, else the value itself."""
    return Later(value._number) if type(value) is Unread else value


def run_steps(steps: list[Step], get: Callable[[Any], Any]) -> list[Any]:
    """Returns the results of the steps.

    get: returns the tensor of a Ref, the number or array of a Leaf, and others as they are.
    """
    found: list[Any] = []
    for function, args in steps:
        found.append(function(*(found[one.step] if isinstance(one, Later) else get(one)
                                for one in args)))
    return found


def add_read(recorder: Any, tensor: Any, reason: str, result: Any = None) -> None:
    """Notes that Python reads numbers: of small attributes, or a bool, the result."""
    tensors, recording = recorder.tensors, recorder.recording
    if id(tensor) not in tensors and recorder.origins.find(tensor) is None:
        raise Refused(reason)  # such as one inside of a function of TorchScript
    value = recorder.value_of(tensor)
    found = recording.attributes_of(value, MOST_READ)
    new = set(found) - recording.read.keys()
    live = {known.value: one for known in tensors.values()
            if known.value in new and (one := known.tensor()) is not None}
    if found and new == live.keys():
        recording.read.update((key, one.detach().clone()) for key, one in live.items())
    elif isinstance(result, bool):
        recording.checked[value] = result
    else:
        raise Refused(reason)
