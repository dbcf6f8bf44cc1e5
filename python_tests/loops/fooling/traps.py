"""Bodies whose calls look alike and are not."""
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fooling.base import I, N, Net, Spike, T, fused, loop, numbers


class Between(Net):
    """Programs that do something to the input of each step."""

    def each(self, t: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (self.each(t, x[t]) for t in range(len(x))))


class Square(Between):
    """Batch and inputs are of one size."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, T, I, I),)


@loop
class AxisAlternates(Square):
    def each(self, t: int, x: Tensor) -> Tensor:
        return x.sum(t % 2, keepdim=True) / 4 + x


@loop
class TransposedOnce(Square):
    def each(self, t: int, x: Tensor) -> Tensor:
        return x.t() if t == 6 else x.clone()


@loop
class SignedZeros(Between):
    """0.0 and -0.0 are equal numbers."""

    def each(self, t: int, x: Tensor) -> Tensor:
        return torch.copysign(x, torch.full_like(x, -0.0 if t % 3 == 1 else 0.0))


@loop
class TrueAndOne(Between):
    """True and 1 are equal numbers, and other dtypes."""

    def each(self, t: int, x: Tensor) -> Tensor:
        return x + torch.full((1,), True if t % 3 == 1 else 1).to(x.dtype) * (
            2.0 if torch.tensor(True if t % 3 == 1 else 1).dtype is torch.bool else 1.0)


@loop
class DtypeOnce(Between):
    """One step rounds to float32."""

    def each(self, t: int, x: Tensor) -> Tensor:
        return (x / 3).to(torch.float32 if t == 5 else torch.float64).to(torch.float64)

    rounds = True


@loop
class KeywordOnce(Between):
    def each(self, t: int, x: Tensor) -> Tensor:
        return torch.add(x, x, alpha=2) if t == 5 else torch.add(x, x)


@loop
class OrderOnce(Between):
    """The arguments of a difference change places."""

    def each(self, t: int, x: Tensor) -> Tensor:
        y = 1 - x
        return (x - y) if t == 5 else (y - x)


@loop
class OperandOnce(Between):
    """Another value of the same iteration."""

    def each(self, t: int, x: Tensor) -> Tensor:
        y, w = x + 1, x + 2
        return x * (w if t == 5 else y)


@loop
class LagOnce(Net):
    """One step reads an older input."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] + x[t - 2 if t == 5 else t - 1] for t in range(2, len(x))))


@loop
class DetachedOnce(Between):
    """Only the gradient differs."""

    def each(self, t: int, x: Tensor) -> Tensor:
        y = x * self.feed.bias[:I]
        return y.detach() if t == 5 else y.clone()


@loop
class UnusedDraw(Between):
    """A draw that nothing reads."""

    def each(self, t: int, x: Tensor) -> Tensor:
        torch.rand(3)
        return x + torch.rand(1, dtype=x.dtype)


@loop
class UnusedCalls(Between):
    def each(self, t: int, x: Tensor) -> Tensor:
        torch.sqrt(x - 7)
        self.back(x.new_zeros(N))
        return x


@loop
class Middle(Net):
    """Values of the middle of one iteration are read after the loop."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        kept = []
        for t, x_t in enumerate(x):
            c = self.feed(x_t) + self.back(z)
            v = self.beta * v + c
            z = Spike.apply(v - 1)
            if t in (3, 4, 8):
                kept += [c, v]
            v = v - z.detach()
        return kept, c, v


@loop
class LongDelay(Net):
    """A delay longer than the sequence."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        past = [z + k / 16 for k in range(40)]
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(past.pop(0)) - z.detach()
            z = Spike.apply(v - 1)
            past.append(z)
        return torch.stack(past)


@loop
class BatchNormRead(Net):
    """The running mean, which batch norm writes to, is read in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(I)

    def forward(self, x: Tensor) -> Any:
        out = []
        v, z = self.zeros(x)
        for x_t in x:
            v, z = self.step(self.norm(x_t), v, z)
            out.append(z + self.norm.running_mean.sum())
        return torch.stack(out), self.norm.running_mean * 2

    rounds = True


@loop
class InstanceNormRead(BatchNormRead):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(I, affine=False, momentum=0.5)


@loop
class MaximumNorm(Net):
    """An embedding that scales its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, I, max_norm=0.5)

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x_t + self.embedding((2 * x_t[:, 0]).long()) for x_t in x))

    rounds = True


@loop
class Powers(Net):
    """Powers of t, of a base of 2, and logarithms of tensors made in the loop."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x_t * 2.0**-t + torch.arange(t + 1).sum() / 16
                             for t, x_t in enumerate(x)))


@loop
class ShapeOfTime(Net):
    """A shape that grows with t."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x_t + torch.ones(t + 1, 1, dtype=x.dtype).sum() / 16
                             for t, x_t in enumerate(x)))


@loop
class CopyOfModule(Net):
    """Each call runs on a copy of a layer."""

    def forward(self, x: Tensor) -> Any:
        layer = copy.deepcopy(self.feed)
        return self.over(x, (x_t + layer(x_t)[:, :I].detach() for x_t in x))


@loop
class NewLayer(Net):
    """Each call makes a layer of its own, with random weights."""

    def forward(self, x: Tensor) -> Any:
        layer = nn.Linear(I, I, dtype=x.dtype)
        return self.over(x, (layer(x_t) for x_t in x))


@loop
class Rounding(Net):
    """Numbers of many bits."""

    rounds = True

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.threshold = 0.9, 0.7

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t / 3, v, z)
            out.append(v)
        return torch.stack(out), z


@loop
class TimesSpikes(Net):
    """A reset by a product, with the gradient of the spikes, and a refractory count."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        count = torch.zeros_like(v)
        out = []
        for x_t in x:
            v = self.beta * v * (1 - z) + self.feed(x_t) + self.back(z)
            z = Spike.apply(v - 1) * (count == 0)
            count = torch.where(z > 0, 3.0, F.relu(count - 1).to(v.dtype))
            out.append(z)
        return torch.stack(out), count


@loop
class ResultIsAttribute(Net):
    """One tensor as result and as attribute, which the caller writes to."""

    spoils = True

    def forward(self, x: Tensor) -> Any:
        self.last = self.over(x, x)
        return self.last


@loop
class ResultIsRead(Net):
    """The next call reads what the caller has written to the last result."""

    spoils = True

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None

    def forward(self, x: Tensor) -> Any:
        gain = 1.0 if self.last is None else self.last.detach().sum() / 4096
        self.last = self.over(x, x * gain)
        return self.last


@loop
class ViewsOfResult(Net):
    """Views of one another, which the caller writes to."""

    spoils = True

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return spikes, spikes[2], spikes[3:5], spikes.detach()


@fused
class InputOfGraph(Net):
    """The input is the result of something that learns."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return (x.requires_grad_() * 2,)


@loop
class ParameterAsInput(Net):
    """An argument is a parameter of the model in some calls."""

    def forward(self, x: Tensor, w: Tensor | None = None) -> Any:
        return self.over(x, x) * (self.feed.bias if w is None else w)

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x, *((self.feed.bias,) if x.shape[1] == 4 else ()))
