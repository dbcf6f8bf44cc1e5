"""What a model reads outside of itself, and what changes there between calls."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Spike, add, fused
from fooling.changes import Changed, Switched

GAIN = 1.0
TENSOR = torch.full((N,), 0.5, dtype=torch.float64)
TABLE = {"gain": {"of": [1.0, 1.0]}}


@fused
class ClassOfFunction(Switched):
    """The slope of a surrogate is an attribute of its class."""

    numbers = 4.0, 1.0

    @staticmethod
    def switch(number: float) -> None:
        Spike.scale = number


@fused
class GlobalNumber(Switched):
    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return super().step(GAIN * x, v, z)

    @staticmethod
    def switch(number: float) -> None:
        global GAIN
        GAIN = number


@fused
class GlobalTensor(Switched):
    """Another tensor under the same name."""

    numbers = 0.5, 2.0

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes * TENSOR

    @staticmethod
    def switch(number: float) -> None:
        global TENSOR
        TENSOR = torch.full((N,), number, dtype=torch.float64)


@fused
class GlobalTensorWritten(GlobalTensor):
    replayed = (1, 2)

    def change(self, call: int) -> None:
        TENSOR.fill_(self.numbers[call > 1])


# A number in a list in a dictionary in a dictionary.
add(fused, Switched, "order switch", GlobalTable=(
    lambda self, x: x * TABLE["gain"]["of"][1],
    staticmethod(lambda number: TABLE["gain"]["of"].__setitem__(1, number))))


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
class MethodOfClass(Switched):
    """The class gets another method."""

    def gain(self) -> float:
        return 1.0

    def order(self, x: Tensor) -> Any:
        return x * self.gain()

    @staticmethod
    def switch(number: float) -> None:
        MethodOfClass.gain = lambda self: number

    @classmethod
    def reset(cls) -> None:
        MethodOfClass.gain = lambda self: 1.0


@fused
class ClassAttribute(Switched):
    gain = 1.0

    def order(self, x: Tensor) -> Any:
        return x * self.gain

    @staticmethod
    def switch(number: float) -> None:
        ClassAttribute.gain = number


@fused
class DefaultArgument(Switched):
    def scaled(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return gain * x

    def order(self, x: Tensor) -> Any:
        return self.scaled(x)

    @staticmethod
    def switch(number: float) -> None:
        DefaultArgument.scaled.__defaults__ = (number,)
