"""Modules inside of the loop, hooks, and weights that are computed."""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fooling.base import I, N, Net, T, add, fused, loop
from fooling.changes import Changed


class Between(Net):
    """A module between the input and the neurons, in each step."""

    rounds = True

    def prepare(self) -> None:
        self.between = self.make()

    def make(self) -> nn.Module:
        raise NotImplementedError

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.fire(self.between(self.feed(x)) + self.back(z), v, z)


@loop
class BatchNorm(Between):
    def make(self) -> nn.Module:
        return nn.BatchNorm1d(N)


@loop
class Dropout(Between):
    def make(self) -> nn.Module:
        return nn.Dropout(0.5)


add(loop, Between, "make",
    # The running mean depends on the number of calls.
    BatchNormAverage=lambda self: nn.BatchNorm1d(N, momentum=None),
    BatchNormEval=lambda self: nn.BatchNorm1d(N).eval(),
    LayerNormBetween=lambda self: nn.LayerNorm(N),
    GroupNorm=lambda self: nn.GroupNorm(2, N),
    RandomRelu=lambda self: nn.RReLU())


def train_or_evaluate(self: Net, call: int) -> None:
    self.train(call not in (2, 5))


add(loop, BatchNorm, "change", BatchNormTrainThenEval=train_or_evaluate)
add(loop, Dropout, "change", DropoutTrainThenEval=train_or_evaluate)


add(loop, Dropout, "change changes", DropoutRate=(
    lambda self, call: setattr(self.between, "p", 0.25 if call > 1 else 0.5), True))


class BeforeNeurons(Between):
    """A module whose results are the input of the neurons."""

    step = Net.step


add(loop, BeforeNeurons, "make order",
    BatchNormPerStep=(
        lambda self: nn.ModuleList([nn.BatchNorm1d(N) for _ in range(T)]),
        lambda self, x: (norm(self.feed(x_t))[:, :I]
                         for norm, x_t in zip(self.between, x, strict=False))),
    # torch's own recurrent cell over the neurons of each step.
    Recurrent=(
        lambda self: nn.GRU(1, 1, batch_first=True),
        lambda self, x: (self.between(x_t[:, :, None])[0][:, :, 0] for x_t in x)),
    Convolution=(
        lambda self: nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.MaxPool1d(2), nn.Flatten()),
        lambda self, x: (self.between(self.feed(x_t)[:, None])[:, :I] for x_t in x)))


class Reparametrized(Net):
    """A layer whose weight is computed."""

    rounds = True


add(loop, Reparametrized, "prepare",
    # Its power iteration writes to buffers in each call of the layer.
    SpectralNorm=lambda self: parametrizations.spectral_norm(self.back),
    WeightNorm=lambda self: parametrizations.weight_norm(self.back),
    # A hook sets a plain attribute before each call of the layer.
    OldWeightNorm=lambda self: torch.nn.utils.weight_norm(self.back))


class Symmetric(nn.Module):
    """The parametrization of a weight."""

    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


def parametrize_weight(self: Net) -> None:
    parametrize.register_parametrization(self.back, "weight", Symmetric())


add(fused, Net, "prepare", Parametrized=parametrize_weight)
add(loop, Changed, "to_change", ParametrizedLater=parametrize_weight)


@loop
class ParametrizedCached(Net):
    prepare = parametrize_weight

    def forward(self, x: Tensor) -> Any:
        with parametrize.cached():
            return self.over(x, x)


add(loop, Net, "prepare", Pruned=lambda self: prune.random_unstructured(self.back, "weight", 0.5))


@fused
class Shared(Net):
    """One layer under two names, and one weight in two layers."""

    def prepare(self) -> None:
        self.again, self.tied = self.back, nn.Linear(N, N)
        self.tied.weight = self.back.weight

    def forward(self, x: Tensor) -> Any:
        return torch.stack([self.again(z) + self.tied(z) for _, _, _, z in self.run_steps(x)])


@loop
class Untied(Changed, Shared):
    """The weight of one of the layers is replaced."""

    def to_change(self) -> None:
        self.tied.weight = nn.Parameter(self.back.weight.detach() * 2)


class Cell(Net):
    """A layer that is a part of other models."""


@fused
class Inside(Net):
    """The loop is in a submodule, which runs twice."""

    def prepare(self) -> None:
        self.cell, self.other = Cell(), Cell()

    def forward(self, x: Tensor) -> Any:
        return self.cell(x), self.other(x), self.cell(x.flip(0))


# Layers whose forward is called directly, without hooks.
add(fused, Net, "step", CalledByForward=lambda self, x, v, z: self.fire(
    self.feed.forward(x) + self.back.forward(z), v, z))
