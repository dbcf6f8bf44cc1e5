"""Several inputs, lengths, and sizes of zero and one."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import B, Net, OwnLoop, add, fused, loop, numbers


@fused
class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.over(x, (x_t + y_t for x_t, y_t in zip(x, y, strict=True)))

    @staticmethod
    def given(x: Tensor, call: int) -> tuple[Any, ...]:
        return x, numbers(call + 50, *x.shape)


# Both arguments are one tensor in the first calls, and two later.
add(loop, TwoInputs, "given",
    OneInputTwice=lambda x, call: (x, x) if call < 2 else TwoInputs.given(x, call))

add(loop, Net, "forward given",
    ShorterSecond=(lambda self, x, y: self.over(x, (x[t] + y[t % len(y)] for t in range(len(x)))),
                   lambda x, call: (x, numbers(call + 50, *x.shape)[:5])))


class LastStates(Net):
    """Programs with sequences of other sizes, in some calls."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        for x_t in x:
            v, z = self.step(x_t, v, z)
        return v, z


add(loop, LastStates, "given",
    NothingToDo=lambda x, call: (x[:0] if call in (1, 2) else x,),
    OneStep=lambda x, call: (x[:1],),
    TwoSteps=lambda x, call: (x[:2],),
    NoSequences=lambda x, call: (x[:, :0] if call in (1, 2) else x,),
    OneSequence=lambda x, call: (x[:, :1] if call in (1, 2) else x,))  # broadcasting


@loop
class StepsOfLength(OwnLoop):
    """The decay depends on the length of the sequence."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        for x_t in x:
            v, z = self.step(x_t, (1 - 1 / len(x)) * v, z)
            yield z


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

    @staticmethod
    def given(x: Tensor, call: int) -> tuple[Any, ...]:
        return x, torch.arange(x.shape[1]) * 3 + call % 3 + (B if call > 2 else 1)
