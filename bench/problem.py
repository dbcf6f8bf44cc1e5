"""Shapes, the yardsticks of all commands, and inputs and weights."""
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

TAU_MEM, TAU_ADAPT, BETA, THETA, DAMPENING = 20.0, 200.0, 1.8, 0.01, 0.3
ALPHA, RHO = math.exp(-1 / TAU_MEM), math.exp(-1 / TAU_ADAPT)
COEFFICIENTS: dict[str, Any] = {"alpha": ALPHA, "rho": RHO, "beta": BETA, "theta": THETA,
                                "dampening": DAMPENING}
INPUT_RATE = 0.05  # input spikes per input and step, where a yardstick says nothing else


class Shape(NamedTuple):
    """Steps, batch items, inputs, neurons."""

    T: int
    B: int
    I: int
    N: int

    def __str__(self) -> str:
        return f"T={self.T} B={self.B} I={self.I} N={self.N}"

    def describe(self) -> str:
        """The sizes in words."""
        return f"{self.T} steps, batch {self.B}, {self.I} inputs, {self.N} neurons"


@dataclass
class Sized:
    """The first columns of results: a yardstick and its shape."""

    yardstick: str
    T: int
    B: int
    I: int
    N: int

    @property
    def shape(self) -> Shape:
        return Shape(self.T, self.B, self.I, self.N)


@dataclass(frozen=True)
class Yardstick:
    """A shape with a name, and what else its cost depends on."""

    name: str
    shape: Shape
    input_rate: float = INPUT_RATE
    # whether ours is timed at all firing rates, or only at the one that ratios refer to
    every_rate: bool = True
    # whether the peak of memory is measured, in a fresh process for each contestant
    peak: bool = True
    quadratic: bool = True  # whether peers take part whose time grows with the square of the steps
    like_for_like: bool = True  # whether whole models are compared by default

    def problem(self, seed: int = 1) -> "Problem":
        return Problem.of(self.shape, input_rate=self.input_rate, seed=seed)


def custom(shape: Shape) -> Yardstick:
    """A yardstick for a shape that has no name."""
    return Yardstick(",".join(map(str, shape)), shape)


# P is the paper's sequential MNIST. SHD is the size at which the Spiking Heidelberg Digits are
# often learnt: a second in steps of 4 ms, 700 channels of sparse input, batches of 128, one layer
# of 256. `small` is spoken words in frames of 10 ms, where a step does little. In `long`, a
# recording of 20 s at 1 ms, nothing but the order of the steps is left: one item, so neither batch
# nor threads can hide it.
YARDSTICKS = {yardstick.name: yardstick for yardstick in (
    Yardstick("P", Shape(784, 64, 80, 220)),
    Yardstick("M", Shape(1000, 32, 100, 512)),
    Yardstick("L", Shape(250, 32, 700, 1024), peak=False),
    Yardstick("SHD", Shape(250, 128, 700, 256), input_rate=0.02, peak=False),
    Yardstick("small", Shape(60, 64, 40, 128), peak=False),
    Yardstick("long", Shape(20000, 1, 40, 1024), every_rate=False, quadratic=False,
              like_for_like=False),
)}


@dataclass(frozen=True)
class Problem:
    """Inputs and weights of every contestant.

    They follow from shape, input rate, device and seed, so that any process can draw them again.
    """

    x: Tensor  # (T, B, I) input spikes
    cotangent: Tensor  # (T, B, N) what a model above would send back: dense, the same for all
    w_in: Tensor  # (N, I)
    w_rec: Tensor  # (N, N), w_rec[j, k] from neuron j to neuron k

    @classmethod
    def of(cls, shape: Shape, device: torch.device | str = "cpu",
           input_rate: float = INPUT_RATE, seed: int = 1) -> "Problem":
        """Weights N(0, 1 / fan-in)."""
        T, B, I, N = shape
        random = torch.Generator(device).manual_seed(seed)
        x = (torch.rand(T, B, I, generator=random, device=device) < input_rate).float()
        w_in = torch.randn(N, I, generator=random, device=device) / math.sqrt(I)
        w_rec = torch.randn(N, N, generator=random, device=device) / math.sqrt(N)
        return cls(x, torch.randn(T, B, N, generator=random, device=device), w_in, w_rec)

    def scaled(self, scale: float) -> "Problem":
        """The input weights times scale, which sets the firing rate."""
        return replace(self, w_in=self.w_in * scale)

    def first(self, steps: int) -> "Problem":
        """The same layer on the beginning of the sequence."""
        return replace(self, x=self.x[:steps], cotangent=self.cotangent[:steps])
