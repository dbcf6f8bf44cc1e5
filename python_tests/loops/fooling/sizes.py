"""Several inputs, lengths, and sizes of zero and one."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import B, I, N, Net, Spike, fused, loop, numbers


@fused
class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.over(x, (x_t + y_t for x_t, y_t in zip(x, y, strict=True)))

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return x, numbers(call + 50, *x.shape)


@loop
class OneInputTwice(TwoInputs):
    """Both arguments are one tensor in the first calls, and two later."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        x, y = super().inputs(call)
        return (x, x) if call < 2 else (x, y)


@loop
class ShorterSecond(TwoInputs):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.over(x, (x[t] + y[t % len(y)] for t in range(len(x))))

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        x, y = super().inputs(call)
        return x, y[:5]


@loop
class NothingToDo(Net):
    """T = 0 in one call."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        for x_t in x:
            v, z = self.step(x_t, v, z)
        return v, z

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one[:0] if call in (1, 2) else one for one in super().inputs(call))


@loop
class OneStep(NothingToDo):
    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one[:1] for one in Net.inputs(call))


@loop
class TwoSteps(NothingToDo):
    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one[:2] for one in Net.inputs(call))


@loop
class NoSequences(NothingToDo):
    """B = 0 in one call."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one[:, :0] if call in (1, 2) else one for one in Net.inputs(call))


@loop
class OneSequence(NothingToDo):
    """B = 1 in some calls: broadcasting."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one[:, :1] if call in (1, 2) else one for one in Net.inputs(call))


@loop
class StepsOfLength(Net):
    """The decay depends on the length of the sequence."""

    def forward(self, x: Tensor) -> Any:
        self_beta = 1 - 1 / len(x)
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self_beta * v + self.feed(x_t) + self.back(z)
            z = Spike.apply(v - 1)
            v = v - z.detach()
            out.append(z)
        return torch.stack(out)


@loop
class Square(Net):
    """Steps, batch and neurons are of one size."""

    def forward(self, x: Tensor) -> Any:
        return torch.softmax(self.over(x, x), 0), self.over(x, x).sum(0)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, N, N, I),)


@loop
class LengthsOfSequences(Net):
    """A mask from lengths; after its end a sequence keeps its state."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t in range(len(x)):
            is_on = (t < lengths).unsqueeze(1)
            v_next, z_next = self.step(x[t], v, z)
            v, z = torch.where(is_on, v_next, v), torch.where(is_on, z_next, z)
            out.append(z)
        return torch.stack(out), v

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return x, torch.arange(x.shape[1]) * 3 + call % 3 + (B if call > 2 else 1)
