"""Watch sees changes of what a step reads, and no others."""
import enum
import functools
import sys
import threading
from collections import ChainMap, OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from any_neurons import Spike
from lsnn_ext.codegen.closure import Watch

DECAY = 0.5
SETTINGS = SimpleNamespace(gain=1.0, unused=1.0)
SHOWN = {"a": 1.0}


def reads_global(c, v, z):
    return DECAY * v + c, Spike.apply(v)


def reads_function(c, v, z):
    return reads_global(c, v, z)


def reads_attribute(c, v, z):
    return v * SETTINGS.gain, torch.sigmoid(c)


def reads_default(c, v, z):
    def inner(v, k=1.0, *, j=2.0):
        return v * k * j
    return inner(v), z


class Cell(nn.Module):
    """A step that is a method, with numbers, a buffer and a module of its own."""

    scale: Any = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.unused = 0.5, 1.0
        self.register_buffer("offset", torch.zeros(()))
        self.spike = nn.Hardtanh(0.0, 1.0)

    def decay(self, v: Tensor) -> Tensor:
        return self.rate * v + self.offset

    def step(self, c: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.decay(v) + c * self.scale
        return v, self.spike(v)


def with_cell() -> tuple[Callable[..., Any], Callable[[Any], None]]:
    """A step that reads a variable, and what sets the variable."""
    number: Any = 1.0

    def step(c, v, z):
        return v * number, z

    def change(value: Any) -> None:
        nonlocal number
        number = value
    return step, change


def assert_seen(step: Callable[..., Any], change: Callable[[], Any]) -> None:
    watch = Watch(step)
    assert watch.is_current() and watch.is_current()
    change()
    assert not watch.is_current()


def test_a_change_of_what_it_reads_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (reads_global, reads_function):
        assert_seen(step, lambda: monkeypatch.setitem(globals(), "DECAY", 0.25))
        monkeypatch.setitem(globals(), "DECAY", 0.5)
    assert_seen(reads_function,
                lambda: monkeypatch.setattr(reads_global, "__code__", reads_default.__code__))
    monkeypatch.undo()
    assert_seen(reads_attribute, lambda: monkeypatch.setattr(SETTINGS, "gain", 2.0))
    assert_seen(reads_global, lambda: monkeypatch.setattr(Spike, "backward", staticmethod(print)))
    step, change = with_cell()
    for number in (2.0, -0.0, 0.0):
        assert_seen(step, lambda number=number: change(number))
    tensor = torch.zeros(3)
    change(tensor)
    assert_seen(step, lambda: tensor.add_(1.0))
    assert_seen(step, lambda: tensor.data.mul_(2.0))
    assert_seen(step, lambda: change(tensor.clone()))
    change([1.0, (2.0,)])
    assert_seen(step, lambda: change([1.0, (2.0,)]))
    step, change = with_cell()
    change(numbers := {"a": [1.0]})
    assert_seen(step, lambda: numbers["a"].append(2.0))
    assert_seen(step, lambda: numbers.update(b=2.0))
    assert_seen(functools.partial(step, z=numbers), lambda: numbers.update(b=3.0))


def test_a_change_of_a_method_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[Callable[[Cell], Any]] = [
        lambda cell: setattr(cell, "rate", 0.25), lambda cell: cell.offset.add_(1.0),
        lambda cell: setattr(cell, "scale", 2.0), lambda cell: setattr(cell.spike, "max_val", 2.0),
        lambda cell: setattr(cell, "spike", nn.Hardtanh(0.0, 1.0)),
        lambda cell: setattr(cell, "decay", torch.neg), lambda cell: cell.eval(),
        lambda cell: monkeypatch.setattr(Cell, "scale", 3.0),
        lambda cell: monkeypatch.setattr(Cell, "decay", Cell.step)]
    for change in changes:
        cell = Cell()
        assert_seen(cell.step, functools.partial(change, cell))
    cell = Cell()
    watch = Watch(cell.step)
    cell.unused = 3.0
    assert watch.is_current()


def test_what_it_does_not_read_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(reads_global)
    monkeypatch.setitem(globals(), "SETTINGS", None)
    assert watch.is_current()
    monkeypatch.undo()
    watch = Watch(reads_attribute)
    SETTINGS.unused += 1.0
    monkeypatch.setitem(globals(), "DECAY", float("0.50"))
    assert watch.is_current() and len(watch._places) < 40
    step, change = with_cell()
    change(torch.tensor([float("nan")]))
    assert Watch(step).is_current()
    change(float("nan"))
    watch = Watch(step)
    change(float("nan"))
    assert watch.is_current()


class Slots:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Named(NamedTuple):
    gain: float

    def scaled(self) -> float:
        return self.gain * DECAY


class Table:
    def __init__(self) -> None:
        self.rows = {"gain": 1.0}

    def __getitem__(self, key: str) -> float:
        return self.rows[key]

    def __getattr__(self, key: str) -> float:
        return self.__dict__["rows"][key]


def test_elements_and_attributes_of_every_kind_are_watched() -> None:
    numpy = pytest.importorskip("numpy")
    many, array, slots, table, named = [0.5] * 100, numpy.ones(3), Slots(), Table(), Named(1.0)
    by_name, few, last = {str(i): 0.5 for i in range(100)}, {1, 2}, deque([0.5])
    settings = SimpleNamespace(gain=1.0)
    steps: list[tuple[Callable[..., Any], Callable[[], Any]]] = [
        (lambda c, z: c * many[3], lambda: many.__setitem__(3, 0.25)),
        (lambda c, z: c * by_name["3"], lambda: by_name.update({"3": 0.25})),
        (lambda c, z: c * array[1], lambda: array.__setitem__(1, 0.25)),
        (lambda c, z: c * named.scaled(), lambda: setattr(Named, "scaled", lambda self: 1.0)),
        (lambda c, z: c * slots.gain, lambda: setattr(slots, "gain", 0.25)),
        (lambda c, z: c * getattr(settings, "gain"), lambda: setattr(settings, "gain", 0.25)),  # noqa: B009
        (lambda c, z: c * table["gain"], lambda: table.rows.update(gain=0.25)),
        (lambda c, z: c * table.gain, lambda: table.rows.update(gain=0.5)),
        (lambda c, z: c * len(few), lambda: few.add(3)),
        (lambda c, z: c * last[0], lambda: last.__setitem__(0, 0.25))]
    for step, change in steps:
        assert_seen(step, change)


class OfClass(type):
    @property
    def gain(cls) -> float:
        return cls.rate


class Rated(metaclass=OfClass):
    rate = 1.0


class Kind(enum.Enum):
    SLOW = SimpleNamespace(gain=1.0)


@pytest.mark.parametrize(("value", "change"), [
    (ContextVar("gain", default=1.0), lambda one: one.set(2.0)),
    (OrderedDict(a=1.0, b=2.0), lambda one: one.move_to_end("a")),
    (ChainMap({"a": 1.0}), lambda one: one.update(a=2.0)),
    (threading.Event(), lambda one: one.set()),
    (MappingProxyType(SHOWN), lambda one: SHOWN.update(a=2.0)),
    (Rated, lambda one: setattr(one, "rate", 2.0)),
    (Kind.SLOW, lambda one: setattr(one.value, "gain", 2.0))])
def test_a_change_of_what_it_looks_into_is_seen(value: Any, change: Callable[[Any], Any]) -> None:
    assert_seen(lambda v, z: (v * value.gain, z), lambda: change(value))


@pytest.mark.parametrize("name", ["numbers_of_a_user", "nturl2path"])  # one of Python's, too
def test_a_module_of_numbers_is_watched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(name)
    module.__file__ = f"/users/{name}.py"
    monkeypatch.setitem(sys.modules, name, module)
    vars(module).update(tau=1.0)
    space = {"module": module}
    exec("def step(c, v, z): return v * module.tau, z", space)
    assert_seen(space["step"], lambda: vars(module).update(tau=2.0))  # type: ignore[arg-type]
