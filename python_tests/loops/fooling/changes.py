"""What the user changes between calls: the third call and those after it must see it."""
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import N, Net, add, fused


class Changed(Net):
    """Programs that are changed before the third call."""

    changes = True
    replayed = (1,)

    def change(self, call: int) -> None:
        if call == 2:
            self.to_change()

    def to_change(self) -> None:
        raise NotImplementedError


class Switched(Changed):
    """Programs that read a number outside of the model: the first, and later the second."""

    numbers = 1.0, 2.0

    @staticmethod
    def switch(number: float) -> None:
        raise NotImplementedError

    def change(self, call: int) -> None:
        self.switch(self.numbers[call > 1])

    @classmethod
    def reset(cls) -> None:
        cls.switch(cls.numbers[0])


@fused
class Decay(Changed):
    def to_change(self) -> None:
        self.beta = 0.5


add(fused, Changed, "change replayed",
    # More often than recordings are made.
    DecayEveryCall=(lambda self, call: setattr(self, "beta", 0.75 - call / 16), ()),
    DecayAlternates=(lambda self, call: setattr(self, "beta", (0.75, 0.5)[call % 2]), (2, 5)))


def replace_parameter(self: Net) -> None:
    self.back.weight = nn.Parameter(self.back.weight.detach() * 2)


def replace_data(self: Net) -> None:
    """.data is another tensor."""
    self.back.weight.data = self.back.weight.data * 2


def halve_state(self: Net, **options: bool) -> None:
    self.load_state_dict({name: 0.5 * one for name, one in self.state_dict().items()}, **options)


def convert_to_single_and_back(self: Net) -> None:
    """The numbers do not fit into float32: they are rounded once."""
    self.back.weight.data += 1 / 3
    self.float().double()


def replace_layer(self: Net) -> None:
    new = nn.Linear(N, N, bias=False, dtype=self.dtype)
    with torch.no_grad():
        new.weight.copy_(self.back.weight.t())
    self.back = new


def replace_method(self: Net) -> None:
    """An attribute of the instance hides the method."""
    plain = self.step
    self.step = lambda x, v, z: plain(2 * x, v, z)  # type: ignore[method-assign]


add(fused, Changed, "to_change",
    ParameterReplaced=replace_parameter,
    ParameterData=replace_data,
    StateAssigned=lambda self: halve_state(self, assign=True),
    Frozen=lambda self: self.back.weight.requires_grad_(False),
    AllFrozen=lambda self: self.requires_grad_(False),
    SingleThenDouble=convert_to_single_and_back,
    BiasRemoved=lambda self: setattr(self.feed, "bias", None),
    LayerReplaced=replace_layer,
    MethodReplaced=replace_method)


class ChangedInPlace(Changed):
    """Nothing is recorded anew."""

    replayed = (1, 2, 4, 5)


def step_as_optimizer(self: Net) -> None:
    with torch.no_grad():
        self.back.weight.mul_(2)
        self.feed.bias.add_(0.5)


add(fused, ChangedInPlace, "to_change", OptimizerStep=step_as_optimizer, StateLoaded=halve_state)


def append_layers(self: Net) -> None:
    self.after = nn.Sequential(*[nn.Linear(N, N) for _ in range(3)])


add(fused, Changed, "prepare result to_change",
    LayerAdded=(append_layers, lambda self, x, spikes: self.after(spikes),
                lambda self: self.after.append(nn.Flatten(0))),
    LayerDeleted=(append_layers, lambda self, x, spikes: self.after(spikes),
                  lambda self: self.after.pop(1)))
add(fused, Changed, "prepare to_change", Thawed=(
    lambda self: self.back.weight.requires_grad_(False),
    lambda self: self.back.weight.requires_grad_(True)))

add(fused, Changed, "order to_change", TrainingOnly=(
    lambda self, x: x if self.training else 2 * x, lambda self: self.eval()))


@fused
class PlainTensor(Changed):
    """An attribute that is neither parameter nor buffer, replaced."""

    def prepare(self) -> None:
        self.gain = torch.ones(N, dtype=self.dtype)

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes * self.gain

    def to_change(self) -> None:
        self.gain = self.gain * 2


add(fused, PlainTensor, "to_change replayed", PlainTensorWritten=(
    lambda self: self.gain[0].fill_(2), ChangedInPlace.replayed))
