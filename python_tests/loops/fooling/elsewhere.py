"""What fooling.reach reads in another module."""
from collections.abc import Callable
from typing import Any

from torch import Tensor

GAIN = 1.0


def read_gain() -> float:
    return GAIN


def scaled(x: Tensor) -> Tensor:
    return read_gain() * x


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that scales by a global of this module."""
    def wrapper(*args: Any) -> Any:
        return function(*args) * GAIN
    return wrapper


class Scaler:
    """An object that is called."""

    gain = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.gain * x

    def method(self, x: Tensor) -> Tensor:
        return self(x)
