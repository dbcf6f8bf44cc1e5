"""What lies between the recurrences, and what of them is read."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fooling.base import I, N, Net, Spike, add, fused, loop, numbers

add(loop, Net, "spike",
    Graded=lambda self, v: 0.5 * Spike.apply(v),
    Ternary=lambda self, v: Spike.apply(v) - Spike.apply(-v - 1.5),
    # As many spikes as the membrane has thresholds, at most 3.
    SpikesOfTwo=lambda self, v: sum(Spike.apply(v - k) for k in (0, 1, 2)))


class Rounds(Net):
    """Programs with results that may differ by rounding."""

    rounds = True


class SquareRounds(Rounds):
    """Steps, batch and neurons are of one size."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, N, N, I),)


def softmax(axis: int) -> Any:
    """An operator along an axis of the step, which is the axis of time for all steps at once."""
    return lambda self, t, x, v, z: torch.softmax(self.back(z), dim=axis)


def concatenate(axis: int) -> Any:
    return lambda self, t, x, v, z: torch.cat([z, x.repeat(1, 2)[:, :N]], axis)


add(loop, Rounds, "collect", SoftmaxOfBatch=softmax(0), SoftmaxOfNeurons=softmax(1))
add(loop, SquareRounds, "collect", SquareSoftmax=softmax(1))
add(loop, Net, "collect", Concatenated=concatenate(1), ConcatenatedByDefault=concatenate(0),
    ConcatenatedLast=concatenate(-1))
add(fused, Net, "collect",
    EveryThirdOutput=lambda self, t, x, v, z: z if t % 3 == 0 else None)
add(loop, Net, "step collect", NoSpikes=(
    lambda self, x, v, z: (0.5 * v + self.feed(x), z),
    lambda self, t, x, v, z: v))


@loop
class ConcatenatedBefore(Net):
    """cat of input and spikes before one product."""

    def prepare(self) -> None:
        self.both = nn.Linear(I + N, N)

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.both(torch.cat([x, z], 1)) - z.detach()
        return v, Spike.apply(v - 1)


@fused
class Readout(Net):
    """A leaky readout without spikes."""

    def prepare(self) -> None:
        self.out = nn.Linear(N, 4)

    def input(self, x: Tensor, y: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        y = x.new_zeros(x.shape[1], 4)
        out = []
        for x_t in x:
            v, z = self.step(self.input(x_t, y), v, z)
            y = 0.5 * y + self.out(z)
            out.append(y)
        return torch.stack(out)


@loop
class FedBack(Readout):
    """The readout is an input of the next step."""

    def input(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y.sum(1, keepdim=True) / 8


@loop
class LayersBackwards(Net):
    """The second layer runs before the first, and reads its spikes of the step before."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        w, y = self.zeros(x)
        out = []
        for x_t in x:
            w = 0.5 * w + self.back(z) - y.detach()
            y = Spike.apply(w - 1)
            v, z = self.step(x_t, v, y)
            out.append(z + 2 * y)
        return torch.stack(out)


class Folds(Net):
    """Programs that return one tensor for all steps."""

    def start(self, v: Tensor) -> Any:
        return torch.zeros_like(v)

    def fold(self, total: Any, v: Tensor, z: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        total = self.start(v)
        for x_t in x:
            v, z = self.step(x_t, v, z)
            total = self.fold(total, v, z)
        return self.total(total, x, v, z)

    def total(self, total: Tensor, x: Tensor, v: Tensor, z: Tensor) -> Any:
        return total


add(fused, Folds, "start fold total", RunningSum=(
    lambda self, v: 0,
    lambda self, total, v, z: total + z,
    lambda self, total, x, v, z: total / len(x)))

add(loop, Folds, "start fold", RunningMaximum=(
    lambda self, v: v,
    lambda self, best, v, z: torch.maximum(best, v)))

# A sum of thirds, which depends on its order.
add(loop, Folds, "fold total", SumOfRounded=(
    lambda self, total, v, z: total + v / 3,
    lambda self, total, x, v, z: (total, sum([total, z, v / 7, x[-1].sum() / 3]))))


@fused
class LastOnly(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        for x_t in x:
            v, z = self.step(x_t, v, z)
        return z, v


add(fused, Net, "result",
    SomeOutputs=lambda self, x, spikes: torch.stack([spikes.unbind(0)[t] for t in (7, 2, 2, -1)]))

add(loop, Net, "result",
    ConcatenatedOverTime=lambda self, x, spikes: (
        torch.cat(list(spikes), 0), torch.cat(list(spikes), 1)))


@fused
class AllStates(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append((v, z))
        return tuple(torch.stack(each) for each in zip(*out, strict=True))


@loop
class NotStacked(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(z)
        return out, {"v": v, "last": out[-1]}


@loop
class GrowingCat(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = z[None]
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out = torch.cat([out, z[None]])
        return out


@loop
class NoRecurrence(Net):
    """A loop that carries nothing."""

    def forward(self, x: Tensor) -> Any:
        return torch.stack([Spike.apply(self.feed(x_t) - 0.5) for x_t in x])


@loop
class NoInput(Net):
    """Only the weights drive the neurons."""

    def order(self, x: Tensor) -> Any:
        return range(9)

    def step(self, x: Any, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.feed.bias + self.back(z) - z.detach()
        return v, Spike.apply(v - 0.25)


@loop
class LayerNormInside(Net):
    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.feed(x) + self.back(z) - z.detach()
        v = F.layer_norm(v, (N,))
        return v, Spike.apply(v - 0.5)


@loop
class MeanOfBatchInside(Net):
    """The membrane is reset to the mean of the batch."""

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().step(x, v, z)
        return v - v.sum(0) / 8, z


add(loop, Net, "step_at",
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
class WeightsThatChange(Net):
    """A weight that each step makes anew from spikes: plasticity."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        w, out = self.back.weight, []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + F.linear(z, w) - z.detach()
            y = Spike.apply(v - 1)
            w = w + (y.t() @ z) / 16
            z = y
            out.append(z)
        return torch.stack(out)
