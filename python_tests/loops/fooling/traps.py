"""Bodies whose calls look alike and are not."""
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fooling.base import I, N, Net, OwnLoop, Spike, T, add, fused, loop, numbers


class Between(Net):
    """Programs that do something to the input of each step."""

    def each(self, t: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def order(self, x: Tensor) -> Any:
        return (self.each(t, x[t]) for t in range(len(x)))


class Square(Between):
    """Batch and inputs are of one size."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return (numbers(call, T, I, I),)


def true_or_one(self: Net, t: int, x: Tensor) -> Tensor:
    """True and 1 are equal numbers, and other dtypes."""
    return x + torch.full((1,), True if t % 3 == 1 else 1).to(x.dtype) * (
        2.0 if torch.tensor(True if t % 3 == 1 else 1).dtype is torch.bool else 1.0)


def subtract_in_turn(self: Net, t: int, x: Tensor) -> Tensor:
    """The arguments of a difference change places."""
    y = 1 - x
    return (x - y) if t == 5 else (y - x)


def use_other_operand(self: Net, t: int, x: Tensor) -> Tensor:
    """Another value of the same iteration."""
    y, w = x + 1, x + 2
    return x * (w if t == 5 else y)


def detach_once(self: Net, t: int, x: Tensor) -> Tensor:
    """Only the gradient differs."""
    y = x * self.feed.bias[:I]
    return y.detach() if t == 5 else y.clone()


def draw_unused(self: Net, t: int, x: Tensor) -> Tensor:
    torch.rand(3)
    return x + torch.rand(1, dtype=x.dtype)


def call_unused(self: Net, t: int, x: Tensor) -> Tensor:
    torch.sqrt(x - 7)
    self.back(x.new_zeros(N))
    return x


add(loop, Square, "each",
    AxisAlternates=lambda self, t, x: x.sum(t % 2, keepdim=True) / 4 + x,
    TransposedOnce=lambda self, t, x: x.t() if t == 6 else x.clone())

add(loop, Between, "each",
    # 0.0 and -0.0 are equal numbers.
    SignedZeros=lambda self, t, x: torch.copysign(
        x, torch.full_like(x, -0.0 if t % 3 == 1 else 0.0)),
    TrueAndOne=true_or_one,
    KeywordOnce=lambda self, t, x: torch.add(x, x, alpha=2) if t == 5 else torch.add(x, x),
    OrderOnce=subtract_in_turn,
    OperandOnce=use_other_operand,
    DetachedOnce=detach_once,
    UnusedDraw=draw_unused,
    UnusedCalls=call_unused,
    # Powers of t, of a base of 2, and logarithms of tensors made in the loop.
    Powers=lambda self, t, x: x * 2.0**-t + torch.arange(t + 1).sum() / 16,
    # A shape that grows with t.
    ShapeOfTime=lambda self, t, x: x + torch.ones(t + 1, 1, dtype=x.dtype).sum() / 16)


# One step rounds to float32.
add(loop, Between, "each rounds", DtypeOnce=(
    lambda self, t, x: (x / 3).to(torch.float32 if t == 5 else torch.float64).double(), True))


def copy_layer(self: Net, x: Tensor) -> Any:
    layer = copy.deepcopy(self.feed)
    return (x_t + layer(x_t)[:, :I].detach() for x_t in x)


def make_layer(self: Net, x: Tensor) -> Any:
    """A layer of each call's own, with random weights."""
    layer = nn.Linear(I, I, dtype=x.dtype)
    return (layer(x_t) for x_t in x)


add(loop, Net, "order",
    # One step reads an older input.
    LagOnce=lambda self, x: (
        x[t] + x[t - 2 if t == 5 else t - 1] for t in range(2, len(x))),
    CopyOfModule=copy_layer,
    NewLayer=make_layer)


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
class LongDelay(OwnLoop):
    """A delay longer than the sequence."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        past = [z + k / 16 for k in range(40)]
        for x_t in x:
            v, z = self.fire(self.feed(x_t) + self.back(past.pop(0)), v, z)
            past.append(z)
        yield from past


@loop
class BatchNormRead(Net):
    """The running mean, which batch norm writes to, is read in each step."""

    rounds = True

    def prepare(self) -> None:
        self.norm = nn.BatchNorm1d(I)

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(self.norm(x), v, z)

    def forward(self, x: Tensor) -> Any:
        out = [z + self.norm.running_mean.sum() for _, _, _, z in self.run_steps(x)]
        return torch.stack(out), self.norm.running_mean * 2


@loop
class MaximumNorm(Net):
    """An embedding that scales its own weight."""

    rounds = True

    def prepare(self) -> None:
        self.embedding = nn.Embedding(3, I, max_norm=0.5)

    def order(self, x: Tensor) -> Any:
        return (x_t + self.embedding((2 * x_t[:, 0]).long()) for x_t in x)


@loop
class Rounding(Net):
    """Numbers of many bits."""

    rounds = True

    def prepare(self) -> None:
        self.beta, self.threshold = 0.9, 0.7

    def forward(self, x: Tensor) -> Any:
        _, _, membranes, spikes = zip(*self.run_steps(x, (x_t / 3 for x_t in x)), strict=True)
        return torch.stack(membranes), spikes[-1]


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


def keep_result(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
    self.last = spikes
    return spikes


# One tensor as result and as attribute, and views of one another, which the caller writes to.
add(loop, Net, "result spoils",
    ResultIsAttribute=(keep_result, True),
    ViewsOfResult=(lambda self, x, spikes: (spikes, spikes[2], spikes[3:5], spikes.detach()), True))


@loop
class ResultIsRead(Net):
    """The next call reads what the caller has written to the last result."""

    spoils = True

    def prepare(self) -> None:
        self.last: Any = None

    def forward(self, x: Tensor) -> Any:
        gain = 1.0 if self.last is None else self.last.detach().sum() / 4096
        self.last = self.over(x, x * gain)
        return self.last


# The input is the result of something that learns.
add(fused, Net, "given", InputOfGraph=lambda x, call: (x.requires_grad_() * 2,))


@loop
class ParameterAsInput(Net):
    """An argument is a parameter of the model in some calls."""

    def forward(self, x: Tensor, w: Tensor | None = None) -> Any:
        return self.over(x, x) * (self.feed.bias if w is None else w)

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x, *((self.feed.bias,) if x.shape[1] == 4 else ()))
