"""Loops whose iterations are unlike each other, and values that cross iterations in other ways."""
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import N, Net, OwnLoop, Spike, add, fused, loop


def step_without_gradient(self: Net, t: int, *args: Tensor) -> Any:
    with torch.set_grad_enabled(t % 3 == 0):
        return self.step(*args)


add(loop, Net, "step_at",
    # Every second step has no recurrence.
    Alternating=lambda self, t, x, v, z: self.step(x, v, torch.zeros_like(z) if t % 2 else z),
    LateReset=lambda self, t, x, v, z: self.step(x, torch.zeros_like(v) if t == 9 else v, z),
    OtherNumberOnce=lambda self, t, x, v, z: self.step(x, v * (0.5 if t == 10 else 1.0), z),
    DecayByTime=lambda self, t, x, v, z: self.step(x, v * (1 - t / 16), z),
    ListOfDecays=lambda self, t, x, v, z: self.step(x, [0.5, 0.75, 0.75, 0.875][t % 4] * v, z),
    Skipping=lambda self, t, x, v, z: (v, z) if t % 3 == 1 else self.step(x, v, z),
    TwoFirstDiffer=lambda self, t, x, v, z: self.step(x if t > 1 else 2 * x, v, z),
    GradientInEveryThird=step_without_gradient)

add(loop, Net, "order",
    ScaledByTime=lambda self, x: (x[t] * (1 + t / 16) for t in range(len(x))),
    PowersInPython=lambda self, x: (0.875**t * x_t * math.cos(t) for t, x_t in enumerate(x)))


@loop
class DetachedInBetween(Net):
    """Truncated backpropagation: every four steps."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        if t % 4 == 3:
            v, z = v.detach(), z.detach()
        return self.step(x, v, z)


@loop
class AlternatingWeights(Net):
    """The same functions with other weights in every second step."""

    def prepare(self) -> None:
        self.other = nn.Linear(N, N, bias=False)

    def choose(self, t: int) -> nn.Module:
        return self.back if t % 2 else self.other

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.fire(self.feed(x) + self.choose(t)(z), v, z)


add(loop, AlternatingWeights, "choose",
    OtherWeightsOnce=lambda self, t: self.other if t == 7 else self.back)


@loop
class OldMembraneOnce(OwnLoop):
    """Step 3 reads the membrane of two steps before."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        old = v
        for t, x_t in enumerate(x):
            previous = v
            v, z = self.step(x_t, old if t == 3 else v, z)
            old = previous
            yield z


@loop
class IntegersAndFloats(Net):
    """1 and 1.0 are equal in Python, and are other types for torch."""

    def forward(self, x: Tensor) -> Any:
        out, counts = [], torch.zeros(x.shape[1], N, dtype=torch.int64)
        for t, _, _, z in self.run_steps(x):
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


@fused
class FirstDiffers(Net):
    def zeros(self, x: Tensor) -> Any:
        return None, None

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        if t == 0:
            v = self.feed(x)
        else:
            v = self.beta * v + self.feed(x) + self.back(z) - z.detach()
        return v, Spike.apply(v - 1)


def exit_early(self: Net, x: Tensor) -> Any:
    *out, z = (step[3] for step in itertools.islice(self.run_steps(x), len(x) - 2))
    return torch.stack(out), z


add(loop, Net, "forward",
    EarlyExit=exit_early,
    LastDiffers=lambda self, x: torch.stack(
        [z if t < len(x) - 1 else v for t, _, v, z in self.run_steps(x)]))


@loop
class WarmUp(OwnLoop):
    """The first steps have no gradient."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        with torch.no_grad():
            for x_t in x[:4]:
                v, z = self.step(x_t, v, z)
        for x_t in x[4:]:
            v, z = self.step(x_t, v, z)
            yield z


@loop
class NoGradientOfDecay(Net):
    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            decayed = self.beta * v
        v = decayed + self.feed(x) + self.back(z) - z.detach()
        return v, Spike.apply(v - 1)


def multiply_parts(self: Net, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Excitatory and inhibitory neurons."""
    w = self.back.weight.t()
    v = self.beta * v + self.feed(x) + z[:, :5] @ w[:5].abs() - z[:, -3:] @ w[-3:].abs()
    return v, self.spike(v - self.threshold)


def start_with_spikes(self: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_zeros(x.shape[1], N), x.new_ones(x.shape[1], N)


add(fused, Net, "step", Parts=multiply_parts)
add(fused, Net, "step zeros", PartsOfStart=(multiply_parts, start_with_spikes))
