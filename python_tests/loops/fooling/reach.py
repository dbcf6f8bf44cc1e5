"""Numbers far away from forward that change between calls, in all the places of Python."""
import enum
import functools
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fooling import elsewhere
from fooling.base import N, Net, Spike, fused, loop
from fooling.changes import Changed
from fooling.elsewhere import scaled

SLOPE = 4.0
NUMBERS = {"gain": 1.0}


class Far(Changed):
    """Programs that scale their input by a number from far away."""

    def scale(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.over(x, self.scale(x))

    def set(self, gain: float) -> None:
        elsewhere.GAIN = gain

    def change(self, call: int) -> None:
        self.set(2.0 if call > 1 else 1.0)

    @classmethod
    def reset(cls) -> None:
        elsewhere.GAIN = elsewhere.Scaler.gain = 1.0


@fused
class OfModule(Far):
    def scale(self, x: Tensor) -> Tensor:
        return elsewhere.GAIN * x


@fused
class OfFunctionOfFunction(Far):
    def scale(self, x: Tensor) -> Tensor:
        return scaled(x)


@fused
class OfDecorator(Far):
    @elsewhere.decorated
    def scale(self, x: Tensor) -> Tensor:
        return x


@fused
class OfPartial(Far):
    def __init__(self) -> None:
        super().__init__()
        self.partial = functools.partial(torch.mul, 1.0)

    def scale(self, x: Tensor) -> Tensor:
        return self.partial(x)

    def set(self, gain: float) -> None:
        self.partial = functools.partial(torch.mul, gain)


@fused
class OfLambda(Far):
    def __init__(self) -> None:
        super().__init__()
        self.functions = [lambda x: scaled(x)]

    def scale(self, x: Tensor) -> Tensor:
        return self.functions[0](x)


@fused
class OfObject(Far):
    def __init__(self) -> None:
        super().__init__()
        self.scaler = elsewhere.Scaler()

    def scale(self, x: Tensor) -> Tensor:
        return self.scaler(x)

    def set(self, gain: float) -> None:
        self.scaler.gain = gain


@fused
class OfClassOfObject(OfObject):
    def set(self, gain: float) -> None:
        elsewhere.Scaler.gain = gain


@fused
class OfBoundMethod(OfObject):
    def __init__(self) -> None:
        super().__init__()
        self.method = self.scaler.method

    def scale(self, x: Tensor) -> Tensor:
        return self.method(x)


@loop
class OfGlobals(Far):
    """By a string."""

    def scale(self, x: Tensor) -> Tensor:
        return globals()["NUMBERS"]["gain"] * x

    def set(self, gain: float) -> None:
        NUMBERS["gain"] = gain

    @classmethod
    def reset(cls) -> None:
        NUMBERS["gain"] = 1.0


@loop
class OfModules(Far):
    def scale(self, x: Tensor) -> Tensor:
        return sys.modules["fooling.elsewhere"].GAIN * x


@loop
class OfEnvironment(Far):
    def scale(self, x: Tensor) -> Tensor:
        return float(os.environ.get("FOOLING_GAIN", "1")) * x

    def set(self, gain: float) -> None:
        os.environ["FOOLING_GAIN"] = str(gain)

    @classmethod
    def reset(cls) -> None:
        os.environ.pop("FOOLING_GAIN", None)


@fused
class OfVars(Far):
    def __init__(self) -> None:
        super().__init__()
        self.gain = 1.0

    def scale(self, x: Tensor) -> Tensor:
        return vars(self)["gain"] * x

    def set(self, gain: float) -> None:
        self.gain = gain


@fused
class OfGetattr(OfVars):
    def scale(self, x: Tensor) -> Tensor:
        return getattr(self, "ga" + "in") * x


class Mode(enum.Enum):
    """A setting."""

    PLAIN = 1.0
    DOUBLE = 2.0


@fused
class OfEnum(Far):
    mode = Mode.PLAIN

    def scale(self, x: Tensor) -> Tensor:
        return self.mode.value * x

    def set(self, gain: float) -> None:
        self.mode = Mode(gain)


@fused
class OfText(Far):
    mode = "plain"

    def scale(self, x: Tensor) -> Tensor:
        return 2 * x if self.mode.startswith("double") else x

    def set(self, gain: float) -> None:
        self.mode = "plain" if gain == 1 else "doubled"


@dataclass(frozen=True)
class Frozen:
    """Settings that are replaced as a whole."""

    gain: float = 1.0


@fused
class OfFrozen(Far):
    def __init__(self) -> None:
        super().__init__()
        self.settings = Frozen()

    def scale(self, x: Tensor) -> Tensor:
        return self.settings.gain * x

    def set(self, gain: float) -> None:
        self.settings = replace(self.settings, gain=gain)


@fused
class OfArray(Far):
    """An array of NumPy, written to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = np.ones(3)

    def scale(self, x: Tensor) -> Tensor:
        return float(self.gains[1]) * x

    def set(self, gain: float) -> None:
        self.gains[1] = gain


@loop
class OfArrayShared(OfArray):
    """The array shares its memory with a tensor."""

    def scale(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.gains)[1] * x


@fused
class OfSet(Far):
    def __init__(self) -> None:
        super().__init__()
        self.options = {"plain"}

    def scale(self, x: Tensor) -> Tensor:
        return 2 * x if "double" in self.options else x

    def set(self, gain: float) -> None:
        if gain == 2:
            self.options.add("double")


@fused
class OfOrder(Far):
    """The order of a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.order = {"a": 1.0, "b": 2.0}

    def scale(self, x: Tensor) -> Tensor:
        return next(iter(self.order.values())) * x

    def set(self, gain: float) -> None:
        if gain == 2:
            self.order["a"] = self.order.pop("a")


@fused
class OfBackward(Changed):
    """The backward of a class is replaced."""

    def change(self, call: int) -> None:
        slope = 1.0 if call > 1 else 4.0

        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g / (slope * ctx.saved_tensors[0].abs() + 1) ** 2

        Spike.backward = staticmethod(backward)  # type: ignore[method-assign]

    @classmethod
    def reset(cls) -> None:
        Spike.backward = ORIGINAL  # type: ignore[method-assign]


ORIGINAL = Spike.__dict__["backward"]


class Sloped(Spike):
    """A backward that reads a global."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / (SLOPE * ctx.saved_tensors[0].abs() + 1) ** 2


@fused
class OfGlobalOfBackward(Changed):
    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.feed(x) + self.back(z) - z.detach()
        return v, Sloped.apply(v - self.threshold)

    def change(self, call: int) -> None:
        global SLOPE
        SLOPE = 1.0 if call > 1 else 4.0

    @classmethod
    def reset(cls) -> None:
        global SLOPE
        SLOPE = 4.0


@fused
class OfBase(Changed):
    """A method of the base class is replaced."""

    def change(self, call: int) -> None:
        gain = 2.0 if call > 1 else 1.0
        Net.zeros = lambda self, x: tuple(  # type: ignore[method-assign]
            gain - 1 + x.new_zeros(x.shape[1], N) for _ in range(2))

    @classmethod
    def reset(cls) -> None:
        Net.zeros = ZEROS  # type: ignore[method-assign]


ZEROS = Net.zeros


@fused
class StepsOfAttribute(Changed):
    steps = 9

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in range(self.steps)))

    def to_change(self) -> None:
        self.steps = 7


@loop
class PartEvaluates(Changed):
    """Only a submodule goes to eval."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (self.drop(x_t) for x_t in x))

    def to_change(self) -> None:
        self.drop.eval()


@fused
class LayerDeleted(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(N, N) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        for layer in self.layers:
            spikes = layer(spikes)
        return spikes

    def to_change(self) -> None:
        del self.layers[1]


@fused
class LayersReversed(LayerDeleted):
    def to_change(self) -> None:
        self.layers[0], self.layers[2] = self.layers[2], self.layers[0]
