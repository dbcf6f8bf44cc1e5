"""Which input a step reads, and how many steps there are."""
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import I, Net, T, fused, loop


@fused
class Plain(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out.append(z)
        return torch.stack(out)


@fused
class Reversed(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in reversed(range(len(x)))))


@fused
class ReversedOutput(Net):
    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, (x[len(x) - 1 - t] for t in range(len(x))))
        return torch.stack(list(spikes.unbind(0))[::-1])


@fused
class Flipped(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, x.flip(0))


@fused
class EverySecondInput(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[2 * t] for t in range(len(x) // 2)))


@fused
class EverySecondFromOne(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in range(1, len(x), 2)))


@fused
class FirstInput(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[0] for _ in range(len(x))))


@fused
class LastInput(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[-1] for _ in range(len(x))))


@fused
class FixedSteps(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in range(6)))


@fused
class AllButLast(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in range(len(x) - 1)))


@fused
class Part(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in range(3, 9)))


@loop
class Permuted(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in (3, 0, 7, 1, 1, 5, 2, 10, 9, 4)))


@loop
class AlmostInOrder(Net):
    """The steps 6 and 7 are swapped."""

    def forward(self, x: Tensor) -> Any:
        order = [*range(6), 7, 6, *range(8, len(x))]
        return self.over(x, (x[t] for t in order))


@loop
class Twice(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t // 2] for t in range(len(x))))


@loop
class Modulo(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t % 4] for t in range(len(x))))


@fused
class Negative(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[-1 - t] for t in range(len(x))))


@loop
class AcrossZero(Net):
    """x[t - 4], which for t < 4 counts from the end."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t - 4] for t in range(len(x))))


@fused
class WithNext(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] - x[t + 1] for t in range(len(x) - 1)))


@loop
class WithPrevious(Net):
    """The first step reads x[-1]."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] - x[t - 1] for t in range(len(x))))


@fused
class WithMirrored(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] + x[len(x) - 1 - t] for t in range(len(x))))


@fused
class Unbound(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, x.unbind(0))


@fused
class UnboundBackwards(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, reversed(x.unbind(0)))


@loop
class SplitInput(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (part.squeeze(0) for part in x.split(1)))


@loop
class SplitUnevenly(Net):
    """The sum over parts of 3, 3, ... and the rest."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (part.sum(0) for part in x.split(3)))


@loop
class Chunked(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (part[0] for part in x.chunk(5)))


@fused
class Iterated(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)


@fused
class BatchFirst(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x.transpose(0, 1))
        out = []
        for t in range(x.size(1)):
            v, z = self.step(x[:, t], v, z)
            out.append(z)
        return torch.stack(out, 1)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one.transpose(0, 1).contiguous() for one in super().inputs(call))


@fused
class TimeLast(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x.permute(2, 0, 1), (x[..., t] for t in range(x.shape[-1])))

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one.permute(1, 2, 0).contiguous() for one in super().inputs(call))


@fused
class Transposed(Net):
    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1)
        return self.over(x, x)

    inputs = BatchFirst.inputs


@loop
class TensorIndex(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[torch.tensor(t)] for t in range(len(x))))


@loop
class OverArange(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in torch.arange(len(x))))


@fused
class Selected(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x.select(0, t) for t in range(len(x))))


@fused
class Sliced(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t:t + 1].squeeze(0) for t in range(len(x))))


@loop
class Narrowed(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x.narrow(0, t, 1)[0] for t in range(len(x))))


@loop
class Window(Net):
    """A sum over a window, which is shorter at the end."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t:t + 3].sum(0) for t in range(len(x))))


@loop
class GrowingWindow(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[:t + 1].sum(0) for t in range(len(x))))


@loop
class TwoAxes(Net):
    """The column moves with the step."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] + x[t, :, t % I, None] for t in range(len(x))))


@loop
class DiagonalIndex(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] + x[t, 0, t] for t in range(min(x.shape))))


@fused
class WhileCounts(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        t, out = 0, []
        while t < len(x):
            v, z = self.step(x[t], v, z)
            out.append(z)
            t += 1
        return torch.stack(out)


@fused
class Recursive(Net):
    def go(self, x: Tensor, t: int, v: Tensor, z: Tensor) -> list[Tensor]:
        if t == len(x):
            return []
        v, z = self.step(x[t], v, z)
        return [z, *self.go(x, t + 1, v, z)]

    def forward(self, x: Tensor) -> Any:
        return torch.stack(self.go(x, 0, *self.zeros(x)))


@fused
class Accumulated(Net):
    def forward(self, x: Tensor) -> Any:
        states = itertools.accumulate(x, lambda state, x_t: self.step(x_t, *state),
                                      initial=self.zeros(x))
        return torch.stack([z for _, z in states][1:])


@loop
class BiasOverTime(Net):
    """A parameter with a row for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(T + 2, I))

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] + self.bias[t] for t in range(len(x))))


@loop
class LayerOverTime(Net):
    """Another layer at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(I, I) for _ in range(T)])

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (layer(x_t) for layer, x_t in zip(self.layers, x, strict=False)))
