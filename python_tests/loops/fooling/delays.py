"""Values of iterations before the last one."""
from collections import deque
from typing import Any

import torch
from torch import Tensor

from fooling.base import Net, Spike, loop


@loop
class DelayOfTwo(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        old, out = z, []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(old) - z.detach()
            old, z = z, Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@loop
class DelayByDeque(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        past = deque([z] * 5, maxlen=5)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(past[0]) - z.detach()
            z = Spike.apply(v - 1)
            past.append(z)
            out.append(z)
        return torch.stack(out)


@loop
class OutputOfThreeBefore(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out: list[Tensor] = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, out[t - 3] if t >= 3 else z)
            out.append(z)
        return torch.stack(out)


@loop
class OutputOfTheFirst(Net):
    """From step 1 on, all read the spikes of step 0."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out: list[Tensor] = []
        for x_t in x:
            v, z = self.step(x_t, v, out[0] if out else z)
            out.append(z)
        return torch.stack(out)


@loop
class OutputOfHalf(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = [z]
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, out[t // 2])
            out.append(z)
        return torch.stack(out)


@loop
class AllOutputs(Net):
    """Each step reads the mean of all spikes so far."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = [z]
        for x_t in x:
            v, z = self.step(x_t, v, torch.stack(out).sum(0) / 4)
            out.append(z)
        return torch.stack(out)


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
