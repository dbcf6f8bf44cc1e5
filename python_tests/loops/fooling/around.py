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


class Mapped(Net):
    """Programs whose output is a function of the spikes and inputs of the step."""

    def map(self, x: Tensor, z: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(self.map(x_t, z))
        return torch.stack(out)


@loop
class SoftmaxOfBatch(Mapped):
    """An operator along an axis of the step, which is the axis of time for all steps at once."""

    axis = 0
    rounds = True

    def map(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.softmax(self.back(z), dim=self.axis)


@loop
class SoftmaxOfNeurons(SoftmaxOfBatch):
    axis = 1


@loop
class SquareSoftmax(SoftmaxOfNeurons):
    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, N, N, I),)


def concatenate(axis: int) -> Any:
    return lambda self, x, z: torch.cat([z, x.repeat(1, 2)[:, :N]], axis)


add(loop, Mapped, "map", Concatenated=concatenate(1), ConcatenatedByDefault=concatenate(0),
    ConcatenatedLast=concatenate(-1))


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


@fused
class RunningSum(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        total: Any = 0
        for x_t in x:
            v, z = self.step(x_t, v, z)
            total = total + z
        return total / len(x)


@loop
class RunningMaximum(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        best = v
        for x_t in x:
            v, z = self.step(x_t, v, z)
            best = torch.maximum(best, v)
        return best


@loop
class SumOfRounded(Net):
    """A sum of thirds, which depends on its order."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        total = torch.zeros_like(v)
        for x_t in x:
            v, z = self.step(x_t, v, z)
            total = total + v / 3
        return total, sum([total, z, v / 7, x_t.sum() / 3])


@fused
class LastOnly(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        for x_t in x:
            v, z = self.step(x_t, v, z)
        return z, v


@fused
class EveryThirdOutput(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v, z)
            if t % 3 == 0:
                out.append(z)
        return torch.stack(out)


@fused
class SomeOutputs(Net):
    def result(self, x: Tensor, spikes: Tensor) -> Any:
        out = list(spikes.unbind(0))
        return torch.stack([out[7], out[2], out[2], out[-1]])


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
class ConcatenatedOverTime(Net):
    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return torch.cat(list(spikes), 0), torch.cat(list(spikes), 1)


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
class NoSpikes(Net):
    def forward(self, x: Tensor) -> Any:
        v, _ = self.zeros(x)
        out = []
        for x_t in x:
            v = 0.5 * v + self.feed(x_t)
            out.append(v)
        return torch.stack(out)


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
