"""What lies between the recurrences, and what of them is read."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fooling.base import I, N, Net, OwnLoop, Spike, add, fused, loop, numbers

add(loop, Net, "spike",
    Graded=lambda self, v: 0.5 * Spike.apply(v),
    Ternary=lambda self, v: Spike.apply(v) - Spike.apply(-v - 1.5),
    # As many spikes as the membrane has thresholds, at most 3.
    SpikesOfTwo=lambda self, v: sum(Spike.apply(v - k) for k in (0, 1, 2)))


class Rounds(Net):
    """Programs with results that may differ by rounding."""

    rounds = True


class Square(Net):
    """Steps, batch and neurons are of one size."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, N, N, I),)


class SquareRounds(Rounds, Square):
    """The same, with results that may differ by rounding."""


def softmax(axis: int) -> Any:
    """An operator along an axis of the step, which is the axis of time for all steps at once."""
    return lambda self, x: torch.stack(
        [torch.softmax(self.back(z), dim=axis) for _, _, _, z in self.run_steps(x)])


def concatenate(axis: int) -> Any:
    return lambda self, x: torch.stack(
        [torch.cat([z, x_t.repeat(1, 2)[:, :N]], axis) for _, x_t, _, z in self.run_steps(x)])


def maximum(self: Net, x: Tensor) -> Tensor:
    best, _ = self.zeros(x)
    for _, _, v, _ in self.run_steps(x):
        best = torch.maximum(best, v)
    return best


def sum_rounded(self: Net, x: Tensor) -> Any:
    """A sum of thirds, which depends on its order."""
    total = torch.zeros_like(self.zeros(x)[0])
    for step in self.run_steps(x):
        total = total + step[2] / 3
    _, x_t, v, z = step
    return total, sum([total, z, v / 7, x_t.sum() / 3])


def not_stacked(self: Net, x: Tensor) -> Any:
    *out, (_, _, v, z) = self.run_steps(x)
    return [*(one[-1] for one in out), z], {"v": v, "last": z}


def growing_cat(self: Net, x: Tensor) -> Tensor:
    out = self.zeros(x)[1][None]
    for _, _, _, z in self.run_steps(x):
        out = torch.cat([out, z[None]])
    return out


add(loop, Rounds, "forward", SoftmaxOfBatch=softmax(0), SoftmaxOfNeurons=softmax(1))
add(loop, SquareRounds, "forward", SquareSoftmax=softmax(1))
add(loop, Square, "forward", SquareSoftmaxOfTime=lambda self, x: (
    torch.softmax(self.over(x, x), 0), self.over(x, x).sum(0)))
add(loop, Net, "forward",
    Concatenated=concatenate(1),
    ConcatenatedByDefault=concatenate(0),
    ConcatenatedLast=concatenate(-1),
    RunningMaximum=maximum,
    SumOfRounded=sum_rounded,
    NotStacked=not_stacked,
    GrowingCat=growing_cat,
    # A loop that carries nothing.
    NoRecurrence=lambda self, x: torch.stack([Spike.apply(self.feed(x_t) - 0.5) for x_t in x]))
add(loop, Net, "step forward", NoSpikes=(
    lambda self, x, v, z: (0.5 * v + self.feed(x), z),
    lambda self, x: torch.stack([v for _, _, v, _ in self.run_steps(x)])))
add(fused, Net, "forward",
    RunningSum=lambda self, x: sum(z for _, _, _, z in self.run_steps(x)) / len(x),
    EveryThirdOutput=lambda self, x: torch.stack(
        [z for t, _, _, z in self.run_steps(x) if t % 3 == 0]))


@fused
class LastOnly(Net):
    def forward(self, x: Tensor) -> Any:
        *_, (_, _, v, z) = self.run_steps(x)
        return z, v


@fused
class AllStates(Net):
    def forward(self, x: Tensor) -> Any:
        *_, membranes, spikes = zip(*self.run_steps(x), strict=True)
        return torch.stack(membranes), torch.stack(spikes)


# cat of input and spikes before one product.
add(loop, Net, "prepare step", ConcatenatedBefore=(
    lambda self: setattr(self, "both", nn.Linear(I + N, N)),
    lambda self, x, v, z: self.fire(self.both(torch.cat([x, z], 1)), v, z)))


@fused
class Readout(OwnLoop):
    """A leaky readout without spikes."""

    def prepare(self) -> None:
        self.out = nn.Linear(N, 4)

    def input(self, x: Tensor, y: Tensor) -> Tensor:
        return x

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        y = x.new_zeros(x.shape[1], 4)
        for x_t in x:
            v, z = self.step(self.input(x_t, y), v, z)
            y = 0.5 * y + self.out(z)
            yield y


# The readout is an input of the next step.
add(loop, Readout, "input", FedBack=lambda self, x, y: x + y.sum(1, keepdim=True) / 8)


@loop
class LayersBackwards(OwnLoop):
    """The second layer runs before the first, and reads its spikes of the step before."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        w, y = self.zeros(x)
        for x_t in x:
            w, y = self.fire(self.back(z), w, y)
            v, z = self.step(x_t, v, y)
            yield z + 2 * y


add(fused, Net, "result",
    SomeOutputs=lambda self, x, spikes: torch.stack([spikes.unbind(0)[t] for t in (7, 2, 2, -1)]))

add(loop, Net, "result",
    ConcatenatedOverTime=lambda self, x, spikes: (
        torch.cat(list(spikes), 0), torch.cat(list(spikes), 1)))


# Only the weights drive the neurons.
add(loop, Net, "order step", NoInput=(
    lambda self, x: range(9),
    lambda self, x, v, z: self.fire(2 * self.feed.bias + self.back(z), v, z)))


add(loop, Net, "step_at",
    LayerNormInside=lambda self, t, x, v, z: self.step(x, F.layer_norm(v, (N,)), z),
    MeanOfBatchInside=lambda self, t, x, v, z: self.step(x, v - v.sum(0) / 8, z),
    # Each neuron reads its neighbour's membrane.
    NeighboursInside=lambda self, t, x, v, z: self.step(x, v + torch.roll(v, 1, dims=1) / 4, z),
    # Each sequence reads the next one's membrane, through a broadcast and a transpose.
    SequencesInside=lambda self, t, x, v, z: self.step(
        x, v + torch.roll(v, 1, dims=0) / 4 + v[:1] / 8, z))


@loop
class MaskedWeights(Net):
    def prepare(self) -> None:
        self.register_buffer("mask", 1 - torch.eye(N, dtype=self.dtype))

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.feed(x) + F.linear(z, self.back.weight * self.mask)
        z = Spike.apply(v - 1)
        return v * (1 - z), z


@loop
class WeightsThatChange(OwnLoop):
    """A weight that each step makes anew from spikes: plasticity."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        w = self.back.weight
        for x_t in x:
            v, y = self.fire(self.feed(x_t) + F.linear(z, w), v, z)
            w = w + (y.t() @ z) / 16
            z = y
            yield z
