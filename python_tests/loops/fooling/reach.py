"""Numbers far away from forward that change between calls, in all the places of Python."""
import enum
import functools
import os
import sys
import threading
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD

from fooling import elsewhere
from fooling.base import N, Spike, add, fused, loop
from fooling.changes import Changed, Switched
from fooling.elsewhere import scaled

TENSOR = torch.full((N,), 0.5, dtype=torch.float64)
NUMBERS = {"gain": 1.0}


class Far(Changed):
    """Programs that scale their input by a number from far away."""

    def set(self, gain: float) -> None:
        elsewhere.GAIN = gain

    def change(self, call: int) -> None:
        self.set(2.0 if call > 1 else 1.0)

    @classmethod
    def reset(cls) -> None:
        elsewhere.GAIN = 1.0


add(fused, Far, "order",
    OfModule=lambda self, x: elsewhere.GAIN * x,
    OfFunctionOfFunction=lambda self, x: scaled(x))

add(loop, Far, "order", OfModules=lambda self, x: sys.modules["fooling.elsewhere"].GAIN * x)

add(fused, Far, "prepare order", OfLambda=(
    lambda self: setattr(self, "functions", [lambda x: scaled(x)]),
    lambda self, x: self.functions[0](x)))


@fused
class OfDecorator(Far):
    @elsewhere.decorated
    def order(self, x: Tensor) -> Tensor:
        return x


@fused
class OfObject(Far):
    def prepare(self) -> None:
        self.scaler = elsewhere.Scaler()

    def order(self, x: Tensor) -> Tensor:
        return self.scaler(x)

    def set(self, gain: float) -> None:
        self.scaler.gain = gain


@fused
class OfBoundMethod(OfObject):
    def prepare(self) -> None:
        super().prepare()
        self.method = self.scaler.method

    def order(self, x: Tensor) -> Tensor:
        return self.method(x)


# By a string.
add(loop, Switched, "order switch",
    OfGlobals=(lambda self, x: globals()["NUMBERS"]["gain"] * x,
               staticmethod(lambda number: NUMBERS.update(gain=number))),
    OfEnvironment=(lambda self, x: float(os.environ["FOOLING_GAIN"]) * x,
                   staticmethod(lambda number: os.environ.update(FOOLING_GAIN=str(number)))))


class OfAttribute(Far):
    """Programs with an attribute that is set anew."""

    def prepare(self) -> None:
        self.set(1.0)

    def set(self, gain: float) -> None:
        self.gain = gain


add(fused, OfAttribute, "order",
    OfVars=lambda self, x: vars(self)["gain"] * x,
    OfGetattr=lambda self, x: getattr(self, "ga" + "in") * x)


class Mode(enum.Enum):
    """A setting."""

    PLAIN = 1.0

    def __init__(self, gain: float) -> None:
        self.settings = {"gain": gain}


class Key:
    """Equal to all others, also with another state."""

    gain = 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key)

    def __hash__(self) -> int:
        return 1


class Named(set[str]):
    """A set with an attribute."""

    gain = 1.0


def scale_up(x: Tensor) -> Tensor:
    return 2 * x


scale_up.gain = 1.0  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Frozen:
    """Settings that are replaced as a whole."""

    gain: float = 1.0


add(fused, Far, "prepare order set",
    OfPartial=(lambda self: self.set(1.0),
               lambda self, x: self.partial(x),
               lambda self, gain: setattr(self, "partial", functools.partial(torch.mul, gain))),
    OfFrozen=(lambda self: setattr(self, "settings", Frozen()),
              lambda self, x: self.settings.gain * x,
              lambda self, gain: setattr(self, "settings", replace(self.settings, gain=gain))),
    # The order of a dictionary.
    OfOrder=(lambda self: setattr(self, "gains", {"a": 1.0, "b": 2.0}),
             lambda self, x: next(iter(self.gains.values())) * x,
             lambda self, gain: gain == 2 and self.gains.update(a=self.gains.pop("a"))),
    OfOrderMoved=(lambda self: setattr(self, "gains", OrderedDict(a=1.0, b=2.0)),
                  lambda self, x: next(iter(self.gains.values())) * x,
                  lambda self, gain: gain == 2 and self.gains.move_to_end("a")),
    OfKey=(lambda self: setattr(self, "table", {Key(): 0}),
           lambda self, x: next(iter(self.table)).gain * x,
           lambda self, gain: setattr(next(iter(self.table)), "gain", gain)),
    OfElement=(lambda self: setattr(self, "table", {Key()}),
               lambda self, x: min(self.table, key=id).gain * x,
               lambda self, gain: setattr(min(self.table, key=id), "gain", gain)),
    OfSetItself=(lambda self: setattr(self, "table", Named()),
                 lambda self, x: self.table.gain * x,
                 lambda self, gain: setattr(self.table, "gain", gain)),
    OfOwnOptimizer=(lambda self: vars(self).update(optimizer=SGD(self.parameters(), 1.0)),
                    lambda self, x: self.optimizer.param_groups[0]["lr"] * x,
                    lambda self, gain: self.optimizer.param_groups[0].update(lr=gain)))

# Of a member of an enumeration, a function that does not run, and an optimizer.
OPTIMIZER = SGD([torch.ones(1)], 1.0)
add(fused, Switched, "order switch",
    OfMember=(lambda self, x: Mode.PLAIN.settings["gain"] * x,
              staticmethod(lambda number: Mode.PLAIN.settings.update(gain=number))),
    OfFunction=(lambda self, x: scale_up.gain * x,
                staticmethod(lambda number: setattr(scale_up, "gain", number))),
    OfOptimizer=(lambda self, x: OPTIMIZER.param_groups[0]["lr"] * x,
                 staticmethod(lambda number: OPTIMIZER.param_groups[0].update(lr=number))))

# The slope of a surrogate, an attribute of its class.
add(fused, Switched, "switch numbers", OfSurrogate=(
    staticmethod(lambda number: setattr(Spike, "scale", number)), (4.0, 1.0)))

# What each thread or context has for itself.
LOCAL, CONTEXT, EVENT = threading.local(), ContextVar("gain", default=1.0), threading.Event()
add(fused, Switched, "order switch",
    OfThread=(lambda self, x: LOCAL.gain * x,
              staticmethod(lambda number: setattr(LOCAL, "gain", number))),
    OfContext=(lambda self, x: CONTEXT.get() * x, staticmethod(CONTEXT.set)),
    OfEvent=(lambda self, x: (1.0 + EVENT.is_set()) * x,
             staticmethod(lambda number: EVENT.set() if number == 2 else EVENT.clear())))


# An array of NumPy, written to in place, shares its memory with a tensor.
add(loop, Far, "prepare order set", OfArrayShared=(
    lambda self: setattr(self, "gains", np.ones(3)),
    lambda self, x: torch.from_numpy(self.gains)[1] * x,
    lambda self, gain: self.gains.__setitem__(1, gain)))


# Another tensor under the same name.
add(fused, Switched, "result switch numbers", OfGlobalTensor=(
    lambda self, x, spikes: spikes * TENSOR,
    staticmethod(lambda number: globals().update(
        TENSOR=torch.full((N,), number, dtype=torch.float64))), (0.5, 2.0)))
