"""What a model reads outside of itself, and what changes there between calls."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Spike, fused
from fooling.changes import Changed

GAIN = 1.0
TENSOR = torch.full((N,), 0.5, dtype=torch.float64)
TABLE = {"gain": {"of": [1.0, 1.0]}}


@fused
class ClassOfFunction(Changed):
    """The slope of a surrogate is an attribute of its class."""

    def change(self, call: int) -> None:
        Spike.scale = 1.0 if call > 1 else 4.0

    @classmethod
    def reset(cls) -> None:
        Spike.scale = 4.0


@fused
class GlobalNumber(Changed):
    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return super().step(GAIN * x, v, z)

    def change(self, call: int) -> None:
        global GAIN
        GAIN = 2.0 if call > 1 else 1.0

    @classmethod
    def reset(cls) -> None:
        global GAIN
        GAIN = 1.0


@fused
class GlobalTensor(Changed):
    """Another tensor under the same name."""

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes * TENSOR

    def change(self, call: int) -> None:
        global TENSOR
        TENSOR = torch.full((N,), 2.0 if call > 1 else 0.5, dtype=torch.float64)

    @classmethod
    def reset(cls) -> None:
        global TENSOR
        TENSOR = torch.full((N,), 0.5, dtype=torch.float64)


@fused
class GlobalTensorWritten(GlobalTensor):
    replayed = (1, 2)

    def change(self, call: int) -> None:
        TENSOR.fill_(2.0 if call > 1 else 0.5)


@fused
class GlobalTable(Changed):
    """A number in a list in a dictionary in a dictionary."""

    def order(self, x: Tensor) -> Any:
        return x * TABLE["gain"]["of"][1]

    def change(self, call: int) -> None:
        TABLE["gain"]["of"][1] = 2.0 if call > 1 else 1.0

    @classmethod
    def reset(cls) -> None:
        TABLE["gain"]["of"][1] = 1.0


@fused
class Closure(Changed):
    """A variable that functions share."""

    def prepare(self) -> None:
        gain = 1.0

        def scaled(x: Tensor) -> Tensor:
            return gain * x

        def set_gain(value: float) -> None:
            nonlocal gain
            gain = value

        self.scaled, self.set_gain = scaled, set_gain

    def order(self, x: Tensor) -> Any:
        return self.scaled(x)

    def to_change(self) -> None:
        self.set_gain(2.0)


@fused
class MethodOfClass(Changed):
    """The class gets another method."""

    def gain(self) -> float:
        return 1.0

    def order(self, x: Tensor) -> Any:
        return x * self.gain()

    def change(self, call: int) -> None:
        value = 2.0 if call > 1 else 1.0
        type.__setattr__(MethodOfClass, "gain", lambda self: value)

    @classmethod
    def reset(cls) -> None:
        type.__setattr__(MethodOfClass, "gain", lambda self: 1.0)


@fused
class ClassAttribute(Changed):
    gain = 1.0

    def order(self, x: Tensor) -> Any:
        return x * self.gain

    def change(self, call: int) -> None:
        ClassAttribute.gain = 2.0 if call > 1 else 1.0

    @classmethod
    def reset(cls) -> None:
        ClassAttribute.gain = 1.0


@fused
class DefaultArgument(Changed):
    def scaled(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return gain * x

    def order(self, x: Tensor) -> Any:
        return self.scaled(x)

    def change(self, call: int) -> None:
        DefaultArgument.scaled.__defaults__ = (2.0 if call > 1 else 1.0,)

    @classmethod
    def reset(cls) -> None:
        DefaultArgument.scaled.__defaults__ = (1.0,)
