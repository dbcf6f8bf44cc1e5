"""Modules inside of the loop, hooks, and weights that are computed."""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fooling.base import I, N, Net, Spike, T, fused, loop


class Between(Net):
    """A module between the input and the neurons, in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.between = self.make()

    def make(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.between(self.feed(x_t)) + self.back(z) - z.detach()
            z = Spike.apply(v - self.threshold)
            out.append(z)
        return torch.stack(out)

    rounds = True


@loop
class BatchNorm(Between):
    def make(self) -> nn.Module:
        return nn.BatchNorm1d(N)


@loop
class BatchNormAverage(Between):
    """The running mean depends on the number of calls."""

    def make(self) -> nn.Module:
        return nn.BatchNorm1d(N, momentum=None)


@loop
class BatchNormTrainThenEval(BatchNorm):
    def change(self, call: int) -> None:
        self.train(call not in (2, 5))


@loop
class BatchNormEval(Between):
    def make(self) -> nn.Module:
        return nn.BatchNorm1d(N).eval()


@loop
class BatchNormPerStep(Between):
    """Another batch norm for each step."""

    def make(self) -> nn.Module:
        return nn.ModuleList([nn.BatchNorm1d(N) for _ in range(T)])

    def forward(self, x: Tensor) -> Any:
        norms = iter(self.between)
        return self.over(x, (next(norms)(self.feed(x_t))[:, :I] for x_t in x))


@loop
class Dropout(Between):
    def make(self) -> nn.Module:
        return nn.Dropout(0.5)


@loop
class DropoutTrainThenEval(Dropout):
    def change(self, call: int) -> None:
        self.train(call not in (2, 5))


@loop
class DropoutRate(Dropout):
    """The rate changes between calls."""

    def change(self, call: int) -> None:
        self.between.p = 0.25 if call > 1 else 0.5

    changes = True


@loop
class LayerNormBetween(Between):
    def make(self) -> nn.Module:
        return nn.LayerNorm(N)


@loop
class GroupNorm(Between):
    def make(self) -> nn.Module:
        return nn.GroupNorm(2, N)


@loop
class RandomRelu(Between):
    def make(self) -> nn.Module:
        return nn.RReLU()


@loop
class Recurrent(Between):
    """torch's own recurrent cell over the neurons of each step."""

    def make(self) -> nn.Module:
        return nn.GRU(1, 1, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (self.between(x_t[:, :, None])[0][:, :, 0] for x_t in x))


@loop
class Convolution(Between):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.MaxPool1d(2), nn.Flatten())

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (self.between(self.feed(x_t)[:, None])[:, :I] for x_t in x))


@loop
class LayerNormOfMembrane(Between):
    def make(self) -> nn.Module:
        return nn.LayerNorm(N)

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            v = self.between(v)
            out.append(z)
        return torch.stack(out)


@loop
class SpectralNorm(Net):
    """Its power iteration writes to buffers in each call of the layer."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.back)

    rounds = True


@loop
class WeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.back)

    rounds = True


@loop
class OldWeightNorm(Net):
    """A hook sets a plain attribute before each call of the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.utils.weight_norm(self.back)

    rounds = True


class Symmetric(nn.Module):
    """The parametrization of a weight."""

    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


@fused
class Parametrized(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.back, "weight", Symmetric())


@loop
class ParametrizedLater(Net):
    def change(self, call: int) -> None:
        if call == 2:
            parametrize.register_parametrization(self.back, "weight", Symmetric())

    changes = True


@loop
class ParametrizedCached(Parametrized):
    def forward(self, x: Tensor) -> Any:
        with parametrize.cached():
            return self.over(x, x)


@loop
class Pruned(Net):
    def __init__(self) -> None:
        super().__init__()
        prune.random_unstructured(self.back, "weight", 0.5)


@fused
class Shared(Net):
    """One layer under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.tied = self.back, nn.Linear(N, N)
        self.tied.weight = self.back.weight

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            out.append(self.again(z) + self.tied(z))
        return torch.stack(out)


@loop
class Untied(Net):
    """The weight of one of two names is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(N, N, bias=False)
        self.tied.weight = self.back.weight

    def change(self, call: int) -> None:
        if call == 2:
            self.tied.weight = nn.Parameter(self.back.weight.detach() * 2)

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return self.tied(spikes)

    changes = True


class Cell(Net):
    """A layer that is a part of other models."""


@fused
class Inside(Net):
    """The loop is in a submodule, which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.other = Cell(), Cell()

    def forward(self, x: Tensor) -> Any:
        return self.cell(x), self.other(x), self.cell(x.flip(0))


@fused
class CalledByForward(Net):
    """Layers whose forward is called directly, without hooks."""

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.feed.forward(x) + self.back.forward(z) - z.detach()
        return v, Spike.apply(v - self.threshold)
