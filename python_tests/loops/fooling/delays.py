"""Values of iterations before the last one."""
from collections import deque
from typing import Any

import torch
from torch import Tensor

from fooling.base import Net, OwnLoop, Spike, add, loop


@loop
class DelayByDeque(OwnLoop):
    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        past = deque([z] * 5, maxlen=5)
        for x_t in x:
            v, z = self.fire(self.feed(x_t) + self.back(past[0]), v, z)
            past.append(z)
            yield z


class ReadsOutputs(Net):
    """Programs whose steps read earlier spikes, of which the first are those before the loop."""

    def read(self, t: int, out: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = [z]
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, self.read(t, out))
            out.append(z)
        return torch.stack(out), torch.stack(out[1:])


add(loop, ReadsOutputs, "read",
    OutputOfThreeBefore=lambda self, t, out: out[t - 2] if t >= 3 else out[-1],
    OutputOfTheFirst=lambda self, t, out: out[1] if t else out[0],  # of step 0, from step 1 on
    OutputOfHalf=lambda self, t, out: out[t // 2],
    AllOutputs=lambda self, t, out: torch.stack(out).sum(0) / 4)


@loop
class EarlierLoop(Net):
    """The second loop reads outputs of the first, two steps later."""

    def forward(self, x: Tensor) -> Any:
        first = self.over(x, x)
        v, z = self.zeros(x)
        out = []
        for t in range(2, len(x)):
            v = self.beta * v + first[t - 2] + self.back(z)
            z = Spike.apply(v - 1)
            out.append(z)
        return first, torch.stack(out)
