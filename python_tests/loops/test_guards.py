"""A recording holds for the model, the settings and the shapes with which it was made."""
import copy
import enum
import gc
import math
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsnn_ext.loops.guards import Guard, check_hooks, describe_inputs
from lsnn_ext.loops.ir import Refused
from lsnn_ext.loops.modes import read_flags
from lsnn_ext.loops.monitor import Monitor
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.record import record
from lsnn_ext.loops.snapshot import Snapshot

GAIN, SLOPE = 2.0, 2.0
UNUSED = 3.0
SETTINGS = {"tau": 5.0, "names": ["a"]}
OFFSETS: Any = weakref.WeakKeyDictionary()  # by model, as libraries keep them
OTHERS = []


class Reset(enum.Enum):
    ZERO = 0
    SUBTRACT = 1


class Surrogate(torch.autograd.Function):
    slope = 10.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * SLOPE


class Slots:
    __slots__ = ("__tau",)

    def __init__(self) -> None:
        self.set_tau(1.0)

    def set_tau(self, tau: float) -> None:
        self.__tau = tau  # has the name of the class in front


class Object:
    limit = 4

    def __init__(self) -> None:
        self.slots, self.objects = Slots(), np.array([1.0, None])
        self.theta = 1.0
        self.inside = types.SimpleNamespace(a=[1, 2])


def _helper(x: Tensor) -> Tensor:
    return x * GAIN + len(SETTINGS["names"])  # type: ignore[arg-type]


_helper.unit = "mV"  # type: ignore[attr-defined]


def _with_default(x: Tensor, scale: Any = {"x": 1.0}, *, shift: float = 0.5) -> Tensor:  # noqa: B006
    return x * scale["x"] + shift


def _make_inner() -> Any:
    offset = 1.0

    def inner(x: Tensor) -> Tensor:
        return x + offset

    def set_offset(new: float) -> None:
        nonlocal offset
        offset = new

    return inner, set_offset


class Model(nn.Module):
    level = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("trace", torch.zeros(3))
        self.beta: Any = 0.9
        self.object = Object()
        self.reset = Reset.ZERO
        self.kind = torch.float32
        self.array, self.names = np.ones(3), {"a", "b"}
        self.inner, self.set_offset = _make_inner()
        self.constant = torch.ones(3)
        self.layers = [self.first, self.second]
        self.state: Any = None
        self.log: Any = []
        self.pair = (1.0, (2.0, "a"))
        OFFSETS[self] = [1.0]

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(3) if self.state is None else self.state
        self.log = []
        for t in range(len(x)):
            state = self.beta * state + self.second(self.first(x[t])) + self.trace + self.constant
            state = _with_default(_helper(self.inner(Surrogate.apply(state))))
            self.log.append(state * 1)
        self.state = state
        return torch.stack(self.log) + self.level + self.object.limit + OFFSETS[self][0]


class Watched:
    """A model, and the guard of a call."""

    def __init__(self, model: Any = None, calls: int = 2) -> None:
        if model is None:
            OFFSETS.clear()  # a model of an earlier test would leave when it is collected
            model = Model().eval()
        self.model = model
        self.x = torch.rand(4, 2, 3)
        for _ in range(calls):
            origins = Origins(self.model, (self.x,), {})
            ran = Monitor(self.model)
            self.result, recording = record(ran, (self.x,), {}, origins)
            assert not isinstance(recording, Refused), recording
        self.guard = Guard(self.model, origins, recording, ran.codes)
        self.recording = recording

    def holds(self) -> tuple[bool, bool]:
        """By objects, but for tensors of the same kinds, and by all that there is."""
        return (self.guard.holds([self.x]) or copy.copy(self.guard).replace_tensors([self.x]),
                copy.copy(self.guard).settle([self.x]))


def test_a_recording_holds_while_nothing_changes() -> None:
    watched = Watched()
    assert watched.holds() == (True, True)
    watched.model(watched.x)  # sets state and log
    assert watched.holds() == (True, True)


CHANGES: dict[str, Any] = {
    "float": lambda m: setattr(m, "beta", 0.8),
    "int for float": lambda m: setattr(m.object, "theta", 1),
    "bool for float": lambda m: setattr(m.object, "theta", True),
    "NaN": lambda m: setattr(m.object, "theta", math.nan),
    "object": lambda m: setattr(m.object, "theta", 2.0),
    "new attribute": lambda m: setattr(m, "other", 1),
    "no attribute": lambda m: delattr(m, "kind"),
    "attribute of another name": lambda m: (delattr(m, "kind"), setattr(m, "sort", torch.float32)),
    "enum": lambda m: setattr(m, "reset", Reset.SUBTRACT),
    "dtype": lambda m: setattr(m, "kind", torch.float64),
    "list in an object": lambda m: m.object.inside.a.append(3),
    "value in a list": lambda m: m.object.inside.a.__setitem__(0, 9),
    "array": lambda m: m.array.__setitem__(0, 9),
    "set": lambda m: m.names.add("c"),
    "array of objects": lambda m: m.object.objects.__setitem__(1, 2.0),
    "private slot": lambda m: m.object.slots.set_tau(2.0),
    "closure": lambda m: m.set_offset(2.0),
    "function": lambda m: setattr(m, "inner", _make_inner),
    "training of a part": lambda m: m.drop.train(),
    "requires_grad": lambda m: m.first.weight.requires_grad_(False),
    "shape of a constant": lambda m: setattr(m, "constant", torch.ones(1)),
    "dtype of a parameter": lambda m: m.first.double(),
    "no parameter": lambda m: m.first.register_parameter("bias", None),
    "tensor for a number": lambda m: setattr(m, "beta", torch.tensor(0.9)),
    "shape of the state": lambda m: setattr(m, "state", torch.zeros(1, 3)),
    "no state": lambda m: setattr(m, "state", None),
    "length of a log": lambda m: m.log.append(m.log[0]),
    "submodule": lambda m: setattr(m, "drop", nn.Identity()),
    "order of parts": lambda m: m.layers.reverse(),
    "hook": lambda m: m.first.register_forward_hook(lambda *_: None),
    "hook before": lambda m: m.first.register_forward_pre_hook(lambda *_: None),
    "hook of backward": lambda m: m.first.register_full_backward_hook(lambda *_: None),
    "tied": lambda m: setattr(m.second, "weight", m.first.weight),
    "forward": lambda m: setattr(m, "forward", lambda x: x),
    "one constant for two": lambda m: setattr(m, "constant", m.trace),
    "a new constant for two": lambda m: (setattr(m, "constant", torch.ones(3)),
                                         m.register_buffer("trace", m.constant)),
    "strides of a constant": lambda m: setattr(m, "constant", torch.ones(3, 2)[:, 0]),
    "attribute of a constant": lambda m: setattr(m.constant, "scale", 2.0),
    "entry of a registry": lambda m: OFFSETS[m].__setitem__(0, 2.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str) -> None:
    watched = Watched()
    CHANGES[name](watched.model)
    assert watched.holds() == (False, False)


ELSEWHERE: dict[str, tuple[Any, Any, Any]] = {
    "global": (globals(), "GAIN", 3.0), "global of a backward": (globals(), "SLOPE", 3.0),
    "dict in a global": (SETTINGS, "tau", 6.0),
    "list in a global": (SETTINGS, "names", ["a", "b"]),
    "function": (globals(), "_helper", lambda x: x),
    "class": (Model, "level", 2), "class of an object": (Object, "limit", 5),
    "new in a class": (Object, "theta", 5), "Function": (Surrogate, "slope", 5.0),
    "method": (Surrogate, "backward", staticmethod(lambda ctx, gradient: gradient)),
    "default": (_with_default, "__defaults__", ({"x": 2.0},)),
    "dict in a default": (_with_default.__defaults__[0], "x", 2.0),  # type: ignore[index]
    "default of a keyword": (_with_default.__kwdefaults__, "shift", 2.0),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_change_elsewhere_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    where, key, value = ELSEWHERE[name]
    if isinstance(where, dict):
        monkeypatch.setitem(where, key, value)
    else:
        monkeypatch.setattr(where, key, value, raising=False)
    assert watched.holds() == (False, False)
    monkeypatch.undo()
    assert watched.holds() == (True, True)


def test_negative_zero_is_noticed() -> None:
    model = Model()
    model.beta = 0.0
    watched = Watched(model)
    model.beta = -0.0
    assert watched.holds() == (False, False)
    model.beta = 0.0 * 1.0
    assert watched.holds()[1]


SAME: dict[str, Any] = {
    "numbers of a parameter": lambda m: m.first.weight.data.zero_(),
    "equal float": lambda m: setattr(m, "beta", float("0.9")),
    "equal tuple": lambda m: setattr(m, "pair", (1.0, (float("2"), "a"))),
    "equal list": lambda m: setattr(m.object.inside, "a", [1, 2]),
    "other parameter": lambda m: setattr(m.first, "weight", nn.Parameter(torch.rand(3, 3))),
    "other constant": lambda m: setattr(m, "constant", torch.zeros(3)),
    "other state": lambda m: setattr(m, "state", torch.zeros(2, 3, requires_grad=True) * 1),
    "other log": lambda m: setattr(m, "log", [one + 0 for one in m.log]),
    "gradients": lambda m: m(torch.rand(4, 2, 3)).sum().backward(),
    "another model in a registry": lambda m: OTHERS.append(Model()),
}


@pytest.mark.parametrize("name", SAME)
def test_what_leaves_are_looked_up_for_may_change(name: str) -> None:
    watched = Watched()
    SAME[name](watched.model)
    assert watched.guard.holds([watched.x]) or watched.guard.settle([watched.x])
    assert watched.guard.holds([watched.x])
    found = watched.guard.look_up([watched.x])
    tensors = [one for one, _ in Snapshot(watched.model).tensors.values()]
    assert len(found) == len(watched.recording.leaves)
    assert all(one is watched.x or any(one is other for other in tensors) for one in found.values())


def test_new_tensors_of_the_same_kinds_are_taken() -> None:
    """As states of another model, which a library keeps with those of this one."""
    gc.collect()  # models of other tests, whose entries in the registry vanish with them
    watched = Watched()
    alive = {id(one) for one in gc.get_objects() if isinstance(one, Tensor)}
    assert watched.guard._kinds_of.keys() <= alive  # a new tensor may have the id of a dead one
    watched.model.constant = torch.zeros(3)
    assert not watched.guard.holds([watched.x])
    assert watched.guard.replace_tensors([watched.x])
    assert any(one is watched.model.constant
               for one in watched.guard.look_up([watched.x]).values())
    watched.model.constant = torch.zeros(3).double()
    assert not watched.guard.replace_tensors([watched.x])
    watched.model.constant = torch.zeros(3)
    watched.model.constant.scale = 2.0  # type: ignore[attr-defined]
    assert not watched.guard.replace_tensors([watched.x])


def test_globals_that_no_function_names_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setitem(globals(), "UNUSED", 4.0)
    assert watched.holds() == (True, True)


def test_the_state_is_set_again() -> None:
    watched = Watched()
    values = [torch.ones(2, 3) * k for k in range(len(watched.recording.changed))]
    assert len(values) == 2
    watched.guard.set_changed([values[0], [values[1]] * 4])
    names = [path[-1][1] for path, _ in watched.recording.changed]
    assert names == ["state", "log"]
    assert watched.model.state is values[0] and watched.model.log == [values[1]] * 4


class Appends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside: Any = {"log": []}

    def forward(self, x: Tensor) -> Tensor:
        self.inside["log"].append(x * 2)
        return x


def test_a_list_is_appended_to_in_place() -> None:
    watched = Watched(Appends(), calls=1)
    assert watched.holds() == (False, False)
    log = watched.model.inside["log"]
    log.clear()
    assert watched.holds() == (True, True)
    watched.guard.set_changed([[watched.x]])
    assert watched.model.inside["log"] is log and log[0] is watched.x
    other = watched.model.inside["log"] = []
    assert watched.holds()[1]
    watched.guard.settle([watched.x])
    watched.guard.set_changed([[watched.x]])
    assert other and len(log) == 1


class TakesState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = torch.ones(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.state


def test_an_input_that_is_an_attribute_must_be_so_again() -> None:
    model = TakesState()
    origins = Origins(model, (model.state,), {})
    _, recording = record(model, (model.state,), {}, origins)
    assert not isinstance(recording, Refused)
    guard = Guard(model, origins, recording, None)
    assert guard.holds([model.state]) and not guard.holds([torch.ones(2, 3)])


@contextmanager
def _set(change: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    change(value)
    yield
    change(before)


@pytest.mark.parametrize("setting", [
    torch.no_grad(), torch.autocast("cpu"), torch.autocast("cpu", dtype=torch.float16),
    _set(torch.set_default_dtype, torch.float64, torch.float32),
    _set(torch.use_deterministic_algorithms, True, False)],
    ids=["no_grad", "autocast", "autocast float16", "default dtype", "deterministic"])
def test_settings_of_torch_are_flags(setting: AbstractContextManager[None]) -> None:
    before = read_flags()
    with setting:
        found = read_flags()
    assert found != before == read_flags()


def test_inputs_differ_by_what_does_not_depend_on_their_numbers() -> None:
    x = torch.rand(4, 2, 3)
    inputs: list[Any] = [x, x[:3], x.double(), x.clone().requires_grad_(),
                         x.mT.contiguous().mT, 1, 1.0, True, None, "a"]
    found = [describe_inputs([one]) for one in inputs]
    assert None not in found and len(set(found)) == len(inputs)
    assert describe_inputs([x]) == describe_inputs([torch.zeros(4, 2, 3)])
    assert describe_inputs([x, object()]) is None


def test_hooks_of_backward_and_of_all_modules_are_refused() -> None:
    model = Model()
    model.register_full_backward_hook(lambda *_: None)
    check_hooks(model)
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        with pytest.raises(Refused, match="no hooks of all modules"):
            check_hooks(model)
    CHANGES["hook of backward"](model)
    with pytest.raises(Refused, match="first: expected a module without backward hooks"):
        check_hooks(model)
