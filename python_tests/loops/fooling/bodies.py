"""Loops whose iterations are unlike each other, and values that cross iterations in other ways."""
import math
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import N, Net, Spike, fused, loop


@loop
class Alternating(Net):
    """Every second step has no recurrence."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, z if t % 2 == 0 else torch.zeros_like(z))
            out.append(z)
        return torch.stack(out)


@loop
class AlternatingWeights(Net):
    """The same functions with other weights in every second step."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(N, N, bias=False)

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            layer = self.back if t % 2 else self.other
            v = self.beta * v + self.feed(x_t) + layer(z) - z.detach()
            z = Spike.apply(v - self.threshold)
            out.append(z)
        return torch.stack(out)


@loop
class OtherWeightsOnce(AlternatingWeights):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            layer = self.other if t == 7 else self.back
            v = self.beta * v + self.feed(x_t) + layer(z) - z.detach()
            z = Spike.apply(v - self.threshold)
            out.append(z)
        return torch.stack(out)


@loop
class LateReset(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            if t == 9:
                v = torch.zeros_like(v)
            v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)


@loop
class OldMembraneOnce(Net):
    """Step 3 reads the membrane of two steps before."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        old, out = v, []
        for t, x_t in enumerate(x):
            previous = v
            v, z = self.step(x_t, old if t == 3 else v, z)
            old = previous
            out.append(z)
        return torch.stack(out)


@loop
class OtherNumberOnce(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v = v * (0.5 if t == 10 else 1.0)
            v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)


@loop
class DetachedInBetween(Net):
    """Truncated backpropagation: every four steps."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            if t % 4 == 3:
                v, z = v.detach(), z.detach()
            v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)


@loop
class ScaledByTime(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] * (1 + t / 16) for t in range(len(x))))


@loop
class DecayByTime(Net):
    """A number in the recurrent part that is another one in each step."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v * (1 - t / 16), z)
            out.append(z)
        return torch.stack(out)


@loop
class PowersInPython(Net):
    def forward(self, x: Tensor) -> Any:
        gain = 1.0
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(gain * x_t * math.cos(t), v, z)
            gain *= 0.875
            out.append(z)
        return torch.stack(out)


@loop
class ListOfDecays(Net):
    def forward(self, x: Tensor) -> Any:
        betas = [0.5, 0.75, 0.75, 0.875] * 4
        v, z = self.zeros(x)
        out = []
        for beta, x_t in zip(betas, x, strict=False):
            v, z = self.step(x_t, beta * v, z)
            out.append(z)
        return torch.stack(out)


@loop
class IntegersAndFloats(Net):
    """1 and 1.0 are equal in Python, and are other types for torch."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out, counts = [], torch.zeros(x.shape[1], N, dtype=torch.int64)
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, z)
            out.append(counts + (1 if t % 2 else 1.0) * z.detach().long())
        return torch.stack(out), z


@loop
class SwappedStates(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        w, out = torch.zeros_like(v), []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            v, w = w, v
            out.append(z)
        return torch.stack(out), v, w


@loop
class StateOfTheFirst(Net):
    """The states begin as one tensor, and then part."""

    def forward(self, x: Tensor) -> Any:
        v = w = z = self.zeros(x)[0]
        out = []
        for x_t in x:
            w = 0.5 * w + self.back(z)
            v = self.beta * v + self.feed(x_t) + w - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out), w


@loop
class EarlyExit(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, z)
            if t == len(x) - 3:
                break
            out.append(z)
        return torch.stack(out), z


@loop
class Skipping(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            if t % 3 == 1:
                out.append(z)
                continue
            v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)


@fused
class FirstDiffers(Net):
    def forward(self, x: Tensor) -> Any:
        v = z = None
        out = []
        for t, x_t in enumerate(x):
            if t == 0:
                v = self.feed(x_t)
            else:
                v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@loop
class TwoFirstDiffer(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t if t > 1 else 2 * x_t, v, z)
            out.append(z)
        return torch.stack(out)


@loop
class LastDiffers(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, z)
            out.append(z if t < len(x) - 1 else v)
        return torch.stack(out)


@loop
class WarmUp(Net):
    """The first steps have no gradient."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        with torch.no_grad():
            for x_t in x[:4]:
                v, z = self.step(x_t, v, z)
        for x_t in x[4:]:
            v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)


@loop
class NoGradientOfDecay(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            with torch.no_grad():
                decayed = self.beta * v
            v = decayed + self.feed(x_t) + self.back(z) - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@loop
class GradientInEveryThird(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            with torch.set_grad_enabled(t % 3 == 0):
                v, z = self.step(x_t, v, z)
            out.append(z)
        return torch.stack(out)
