"""What lies between the recurrences, and what of them is read."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fooling.base import I, N, Net, Spike, fused, loop, numbers


@loop
class Graded(Net):
    """Spikes of 1/2."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            z = 0.5 * Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@loop
class Ternary(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            z = Spike.apply(v - 1) - Spike.apply(-v - 0.5)
            out.append(z)
        return torch.stack(out)


@loop
class SpikesOfTwo(Net):
    """As many spikes as the membrane has thresholds, at most 3."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            z = sum(Spike.apply(v - k) for k in (1, 2, 3))
            out.append(z)
        return torch.stack(out)


@loop
class SoftmaxOfBatch(Net):
    """An operator along an axis of the step, which is the axis of time for all steps at once."""

    axis = 0

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(torch.softmax(self.back(z), dim=self.axis))
        return torch.stack(out)

    rounds = True


@loop
class SoftmaxOfNeurons(SoftmaxOfBatch):
    axis = 1


@loop
class SquareSoftmax(SoftmaxOfBatch):
    axis = 1

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, N, N, I),)


@loop
class Concatenated(Net):
    axis = 1

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(torch.cat([z, x_t.repeat(1, 2)[:, :N]], self.axis))
        return torch.stack(out)


@loop
class ConcatenatedByDefault(Concatenated):
    axis = 0


@loop
class ConcatenatedLast(Concatenated):
    axis = -1


@loop
class ConcatenatedBefore(Net):
    """cat of input and spikes before one product."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(I + N, N)

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.both(torch.cat([x_t, z], 1)) - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@fused
class Readout(Net):
    """A leaky readout without spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(N, 4)

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        y = x.new_zeros(x.shape[1], 4)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            y = 0.5 * y + self.out(z)
            out.append(y)
        return torch.stack(out)


@loop
class FedBack(Readout):
    """The readout is an input of the next step."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        y = x.new_zeros(x.shape[1], 4)
        out = []
        for x_t in x:
            v, z = self.step(x_t + y.sum(1, keepdim=True) / 8, v, z)
            y = 0.5 * y + self.out(z)
            out.append(y)
        return torch.stack(out)


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
    def forward(self, x: Tensor) -> Any:
        out = list(self.over(x, x).unbind(0))
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
    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
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

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for _ in range(9):
            v = self.beta * v + self.feed.bias + self.back(z) - z.detach()
            z = Spike.apply(v - 0.25)
            out.append(z)
        return torch.stack(out)


@loop
class LayerNormInside(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            v = F.layer_norm(v, (N,))
            z = Spike.apply(v - 0.5)
            out.append(z)
        return torch.stack(out)


@loop
class MeanOfBatchInside(Net):
    """The membrane is reset to the mean of the batch."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            v = v - v.sum(0) / 8
            out.append(z)
        return torch.stack(out)


@loop
class NeighboursInside(Net):
    """Each neuron reads its neighbour's membrane."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v + torch.roll(v, 1, dims=1) / 4, z)
            out.append(z)
        return torch.stack(out)


@loop
class SequencesInside(NeighboursInside):
    """Each sequence reads the next one's membrane, through a broadcast and a transpose."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v + torch.roll(v, 1, dims=0) / 4 + v[:1] / 8, z)
            out.append(z)
        return torch.stack(out)


@loop
class MaskedWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", 1 - torch.eye(N, dtype=self.dtype))

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + F.linear(z, self.back.weight * self.mask)
            z = Spike.apply(v - 1)
            v = v * (1 - z)
            out.append(z)
        return torch.stack(out)


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
