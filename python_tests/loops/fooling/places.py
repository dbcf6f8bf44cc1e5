"""Numbers in places that no attribute shows, tensors of other kinds, and memory that is shared."""
import array
import ctypes
import datetime
import operator
import queue
import sys
import time
import types
import weakref
from collections import ChainMap, UserDict, UserList, defaultdict, deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fooling import elsewhere
from fooling.base import N, Net, add, fused, loop, refused
from fooling.changes import Switched
from fooling.reach import Far


# ------------------------------------------------------------------------------ of other modules
def import_module(self: Net, x: Tensor) -> Tensor:
    from fooling import late
    return late.GAIN * x


def import_name(self: Net, x: Tensor) -> Tensor:
    from fooling.late import GAIN
    return GAIN * x


def import_relative(self: Net, x: Tensor) -> Tensor:
    from .late import GAIN
    return GAIN * x


def import_lazy(self: Net, x: Tensor) -> Tensor:
    from fooling import late
    return late.LAZY * x


class OfLateModule(Switched):
    """Programs with a number of a module that only forward imports."""

    @staticmethod
    def switch(number: float) -> None:
        from fooling import late
        late.GAIN = number


add(fused, OfLateModule, "order", ImportInForward=import_module, ImportOfName=import_name,
    ImportRelative=import_relative, OfLazyName=import_lazy)
add(fused, Far, "order",
    OfNameOfModule=lambda self, x: getattr(elsewhere, "GA" + "IN") * x,
    OfVarsOfModule=lambda self, x: vars(elsewhere)["GAIN"] * x)
add(refused("attrgetter|f_globals|_getframe|__globals__|import"), Far, "order",
    OfAttrgetter=lambda self, x: operator.attrgetter("GA" + "IN")(elsewhere) * x,
    OfFrame=lambda self, x: sys._getframe().f_globals["elsewhere"].GAIN * x,
    OfGlobalsOfFunction=lambda self, x: import_name.__globals__["elsewhere"].GAIN * x,
    OfImportByName=lambda self, x: __import__("fooling.elsewhere").elsewhere.GAIN * x)


# -------------------------------------------------------------------------------- of other objects
class Holder:
    """What weak references refer to."""

    gain = 1.0


class Meta(type):
    """A class of classes, with a number."""

    gain = 1.0


class OfMeta(metaclass=Meta):
    """Its class has the number."""


class Number(float):
    """A number with a representation of its own, and attributes."""

    def __repr__(self) -> str:
        return "a number"


def make_number(self: Net) -> Number:
    number = Number(1.0)
    number.gain = 1.0  # type: ignore[attr-defined]
    return number


class Boxed(Far):
    """Programs with an object that holds the number."""

    def prepare(self) -> None:
        self.strong = Holder()
        self.box = self.make()

    def make(self) -> Any:
        raise NotImplementedError

    @classmethod
    def reset(cls) -> None:
        super().reset()
        Meta.gain = 1.0


def replace(make: Any) -> Any:
    """A method that sets another object."""
    return lambda self, gain: setattr(self, "box", make(gain))


add(fused, Boxed, "make order set",
    OfWeakReference=(lambda self: weakref.ref(self.strong), lambda self, x: self.box().gain * x,
                     lambda self, gain: setattr(self.strong, "gain", gain)),
    OfUserDict=(lambda self: UserDict(gain=1.0), lambda self, x: self.box["gain"] * x,
                lambda self, gain: self.box.update(gain=gain)),
    OfUserList=(lambda self: UserList([1.0]), lambda self, x: self.box[0] * x,
                lambda self, gain: self.box.__setitem__(0, gain)),
    OfChainMap=(lambda self: ChainMap({}, {"gain": 1.0}), lambda self, x: self.box["gain"] * x,
                lambda self, gain: self.box.update(gain=gain)),
    OfNumPy=(lambda self: np.float32(1.0), lambda self, x: x * self.box, replace(np.float32)),
    OfIntegerOfNumPy=(lambda self: np.int64(1), lambda self, x: self.box * x, replace(np.int64)),
    OfMetaclass=(lambda self: OfMeta, lambda self, x: self.box.gain * x,
                 lambda self, gain: setattr(Meta, "gain", gain)),
    OfRepresentation=(lambda self: Number(1.0), lambda self, x: float(self.box) * x,
                      replace(Number)),
    OfMaximumLength=(lambda self: deque([1.0], maxlen=1), lambda self, x: self.box.maxlen * x,
                     replace(lambda gain: deque([1.0], maxlen=int(gain)))),
    OfOrderOfSet=(lambda self: {0, 8}, lambda self, x: (1 + next(iter(self.box))) * x,
                  replace(lambda gain: {0, 8} if gain == 1 else {8, 0})),
    OfFactory=(lambda self: defaultdict(float), lambda self, x: (
                   self.box.default_factory() if self.box.default_factory else 1.0) * x,
               lambda self, gain: setattr(self.box, "default_factory", lambda: gain)))

add(refused("state cannot be looked at|tensors as keys"), Boxed, "make order set",
    OfBytes=(lambda self: bytearray(b"\x01"), lambda self, x: self.box[0] * x,
             lambda self, gain: self.box.__setitem__(0, int(gain))),
    OfArrayModule=(lambda self: array.array("d", [1.0]), lambda self, x: self.box[0] * x,
                   lambda self, gain: self.box.__setitem__(0, gain)),
    OfC=(lambda self: ctypes.c_double(1.0), lambda self, x: self.box.value * x,
         lambda self, gain: setattr(self.box, "value", gain)),
    OfProxy=(lambda self: types.MappingProxyType(vars(self.strong)),
             lambda self, x: self.box.get("gain", 1.0) * x,
             lambda self, gain: setattr(self.strong, "gain", gain)),
    OfQueue=(lambda self: queue.Queue(), lambda self, x: (1.0 + self.box.qsize()) * x,
             lambda self, gain: self.box.put(0) if gain == 2 and self.box.empty() else None),
    OfAttributeOfNumber=(make_number, lambda self, x: self.box.gain * x,
                         lambda self, gain: setattr(self.box, "gain", gain)))


class Descriptor:
    """Keeps numbers by object, and not in the object."""

    def __init__(self) -> None:
        self.kept: Any = weakref.WeakKeyDictionary()

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return float(self.kept.get(owner, 1.0))

    def __set__(self, owner: Any, value: float) -> None:
        self.kept[owner] = value


class Described(Far):
    """A program with a descriptor."""

    gain = Descriptor()


add(fused, Described, "order set", OfDescriptor=(
    lambda self, x: self.gain * x, lambda self, gain: setattr(self, "gain", gain)))
add(loop, Far, "order set",
    OfAttributeOfParameter=(lambda self, x: getattr(self.feed.weight, "gain", 1.0) * x,
                            lambda self, gain: setattr(self.feed.weight, "gain", gain)))


# --------------------------------------------------------------------------- the class of the model
@fused
class TypeOfModel(Net):
    def order(self, x: Tensor) -> Tensor:
        return x if type(self) is TypeOfModel else 2 * x


@fused
class SuperOfType(Net):
    """What works as long as nothing is derived from the class."""

    def order(self, x: Tensor) -> Any:
        return super(type(self), self).order(x)


class Registered(Net):
    """A class that notes what is derived from it."""

    names: list[str] = []

    def __init_subclass__(cls, *, name: str = "", **_: Any) -> None:
        Registered.names.append(name)


@fused
class Registers(Registered, name="one"):
    """The number of names is read."""

    def order(self, x: Tensor) -> Tensor:
        return len(self.names) * x


# ---------------------------------------------------------------------------- functions of others
def patch(owner: Any, name: str) -> Any:
    """A switch between a function and twice what it returns."""
    function = getattr(owner, name)
    return staticmethod(lambda number: setattr(
        owner, name, function if number == 1 else lambda *args: 2 * function(*args)))


# A method of torch, one of the base class, and a function of torch.
add(fused, Switched, "switch", LinearPatched=patch(nn.Linear, "forward"),
    OfBase=patch(Net, "spike"))
add(fused, Switched, "order switch", FunctionPatched=(
    lambda self, x: torch.relu(x - 0.5), patch(torch, "relu")))


# ------------------------------------------------------------------------------- kinds of tensors
def in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


add(loop, Net, "order given",
    OfAttributeOfInput=(lambda self, x: getattr(x, "gain", 1.0) * x, lambda x, call: (
        setattr(x, "gain", 2.0) if call > 1 else None, x)[1:]))
add(refused("storage_offset|is_leaf|is_neg|attributes"), Net, "order given",
    OfOffset=(lambda self, x: (1 + x.storage_offset()) * x,
              lambda x, call: (torch.cat([x, x])[len(x) * (call > 1):][:len(x)],)),
    OfLeaf=(lambda self, x: x * 2 if x.is_leaf else x,
            lambda x, call: (x.requires_grad_() if call > 1 else x.requires_grad_() * 1,)),
    OfNegation=(lambda self, x: x * 2 if x.is_neg() else x,
                lambda x, call: (torch.complex(x, -x).conj().imag if call > 1 else x,)))
add(refused("attributes"), Net, "result",
    AttributeOfResult=lambda self, x, spikes: (setattr(spikes, "tag", "spikes"), spikes)[1])


add(refused("dense"), Net, "forward given",
    SparseInput=(lambda self, x: self.over(x.to_dense()), lambda x, call: (x.to_sparse(),)),
    NestedInput=(lambda self, x: self.over(x.to_padded_tensor(0.0)),
                 lambda x, call: (torch.nested.nested_tensor(list(x)),)))
add(loop, Net, "given",
    InferenceInput=lambda x, call: (in_inference_mode(x) if call in (2, 5) else x,))


@refused("inference_mode")
class InferenceInside(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            spikes = self.over(x, x)
        return spikes.clone() * self.feed.bias.sum()


# ------------------------------------------------------------------------------- clocks and seeds
def note_time(clock: Any) -> Any:
    """Notes a time in each call."""
    def order(self: Net, x: Tensor) -> Tensor:
        clock()
        return x
    return order


def seed_torch(self: Net, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x + torch.rand_like(x).round()


def seed_numpy(self: Net, x: Tensor) -> Tensor:
    np.random.seed(5)  # noqa: NPY002
    return x + float(np.random.rand() > 0.5)  # noqa: NPY002


add(refused("expected a call that does nothing but compute"), Net, "order",
    ClockOfNanoseconds=note_time(time.perf_counter_ns),
    ClockOfDate=note_time(datetime.datetime.now),
    WritesToFile=note_time(lambda: sys.__stdout__.write("")),
    InitialSeed=lambda self, x: (1 + torch.initial_seed() % 2) * x)


class Seeded(Net):
    """Programs that set the seed that the generators have when they are recorded."""

    @classmethod
    def around(cls, call: int) -> AbstractContextManager[Any]:
        torch.manual_seed(3)
        np.random.seed(5)  # noqa: NPY002
        np.random.rand()  # noqa: NPY002
        return nullcontext()


add(refused("seed"), Seeded, "order", SeedOfTorch=seed_torch, SeedOfNumpy=seed_numpy)


# ---------------------------------------------------------------------------- memory that is shared
class Spoiled(Net):
    """Programs whose caller writes to the results."""

    spoils = True


@loop
class BufferAsResult(Spoiled):
    def prepare(self) -> None:
        self.register_buffer("trace", torch.zeros(N, dtype=self.dtype))

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().step(x, v, z)
        self.trace.mul_(0.5).add_(z.detach().sum(0))
        return v, z

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes, self.trace


@loop
class DetachedState(Spoiled):
    """The state has the memory of a result."""

    def forward(self, x: Tensor) -> Any:
        membranes = [v for _, _, v, _ in self.run_steps(x)]
        self.v = membranes[-1].detach()
        return membranes


# A result is a view of another one, which a step makes.
add(refused("share"), Spoiled, "forward", ViewsInLoop=lambda self, x: [
    (v, v.view(-1)) for _, _, v, _ in self.run_steps(x)][-1])


@fused
class PartsOfInput(Spoiled):
    def forward(self, x: Tensor) -> Any:
        _, parts, _, spikes = zip(*self.run_steps(x), strict=True)
        return spikes[-1], list(parts)


add(loop, Net, "step_at", WrittenInList=lambda self, t, x, v, z: (
    torch._foreach_mul_([x := x.clone()], 0.5), self.step(x, v, z))[1])
