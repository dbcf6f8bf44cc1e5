"""What the user changes between calls: the third call and those after it must see it."""
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fooling.base import N, Net, fused


class Changed(Net):
    """Programs that are changed before the third call."""

    changes = True
    replayed = (1,)

    def change(self, call: int) -> None:
        if call == 2:
            self.to_change()

    def to_change(self) -> None:
        raise NotImplementedError


@fused
class Decay(Changed):
    def to_change(self) -> None:
        self.beta = 0.5


@fused
class DecayEveryCall(Changed):
    """More often than recordings are made."""

    replayed = ()

    def change(self, call: int) -> None:
        self.beta = 0.75 - call / 16


@fused
class DecayAlternates(Changed):
    replayed = (2, 5)

    def change(self, call: int) -> None:
        self.beta = 0.75 if call % 2 == 0 else 0.5


@fused
class TypeOfNumber(Changed):
    """1.0 becomes True: equal, yet other types."""

    changes = False

    def to_change(self) -> None:
        self.threshold = True  # type: ignore[assignment]


@fused
class NotANumber(Changed):
    def to_change(self) -> None:
        self.threshold = math.nan


@fused
class SignOfZero(Changed):
    changes = False
    offset = 0.0

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().step(x, v, z)
        return v.clamp(max=2.0) * 0.75, z

    def forward(self, x: Tensor) -> Any:
        return math.copysign(1.0, self.offset) * self.over(x, x)

    def to_change(self) -> None:
        self.offset = -0.0


@fused
class ParameterReplaced(Changed):
    def to_change(self) -> None:
        self.back.weight = nn.Parameter(self.back.weight.detach() * 2)


@fused
class ParameterData(Changed):
    """.data is another tensor."""

    def to_change(self) -> None:
        self.back.weight.data = self.back.weight.data * 2


@fused
class OptimizerStep(Changed):
    """The weights change in place: nothing is recorded anew."""

    replayed = (1, 2, 4, 5)

    def to_change(self) -> None:
        with torch.no_grad():
            self.back.weight.mul_(2)
            self.feed.bias.add_(0.5)


@fused
class StateLoaded(Changed):
    replayed = (1, 2, 4, 5)

    def to_change(self) -> None:
        self.load_state_dict({name: 0.5 * one for name, one in self.state_dict().items()})


@fused
class StateAssigned(Changed):
    def to_change(self) -> None:
        self.load_state_dict({name: 0.5 * one for name, one in self.state_dict().items()},
                             assign=True)


@fused
class Frozen(Changed):
    def to_change(self) -> None:
        self.back.weight.requires_grad_(False)


@fused
class AllFrozen(Changed):
    def to_change(self) -> None:
        self.requires_grad_(False)


@fused
class Thawed(Changed):
    """A weight learns from the third call on."""

    def __init__(self) -> None:
        super().__init__()
        self.back.weight.requires_grad_(False)

    def to_change(self) -> None:
        self.back.weight.requires_grad_(True)


@fused
class SingleThenDouble(Changed):
    """The numbers do not fit into float32: they are rounded once."""

    def to_change(self) -> None:
        self.back.weight.data += 1 / 3
        self.float().double()


@fused
class BiasRemoved(Changed):
    def to_change(self) -> None:
        self.feed.bias = None


@fused
class LayerReplaced(Changed):
    def to_change(self) -> None:
        new = nn.Linear(N, N, bias=False, dtype=self.dtype)
        with torch.no_grad():
            new.weight.copy_(self.back.weight.t())
        self.back = new


@fused
class LayerAdded(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.after = nn.ModuleList()

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        for layer in self.after:
            spikes = layer(spikes)
        return spikes

    def to_change(self) -> None:
        self.after.append(nn.Flatten(1))
        self.after.append(nn.Flatten(0))


@fused
class ListOfNumbers(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.gains = [1.0, [1.0, 1.0]]

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x * self.gains[1][0])  # type: ignore[index]

    def to_change(self) -> None:
        self.gains[1][0] = 2.0  # type: ignore[index]


@fused
class Settings(Changed):
    """An object with settings, which is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = SimpleNamespace(inner=SimpleNamespace(gain=1.0))

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x * self.settings.inner.gain)

    def to_change(self) -> None:
        self.settings.inner.gain = 2.0


@fused
class PlainTensor(Changed):
    """An attribute that is neither parameter nor buffer, replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.ones(N, dtype=self.dtype)

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x) * self.gain

    def to_change(self) -> None:
        self.gain = self.gain * 2


@fused
class PlainTensorWritten(PlainTensor):
    replayed = (1, 2, 4, 5)

    def to_change(self) -> None:
        self.gain[0] = 2


@fused
class PlainTensorOfOtherShape(PlainTensor):
    def to_change(self) -> None:
        self.gain = torch.tensor(2.0, dtype=self.dtype)


@fused
class MethodReplaced(Changed):
    """An attribute of the instance hides the method."""

    def to_change(self) -> None:
        plain = self.step
        self.step = lambda x, v, z: plain(2 * x, v, z)  # type: ignore[method-assign]


@fused
class Appears(Changed):
    """An attribute that is not there at first."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x * getattr(self, "gain", 1.0))

    def to_change(self) -> None:
        self.gain = 2.0


@fused
class Property(Changed):
    """A property that computes from an attribute with another name."""

    hidden = 4

    @property
    def gain(self) -> float:
        return self.hidden / 4

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x * self.gain)

    def to_change(self) -> None:
        self.hidden = 8


@fused
class TrainingOnly(Changed):
    """A branch on self.training."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x if self.training else 2 * x)

    def to_change(self) -> None:
        self.eval()


@fused
class Renamed(Changed):
    """Two layers change places."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(N, 3), nn.Linear(N, 3)

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return self.left(spikes) - 2 * self.right(spikes)

    def to_change(self) -> None:
        self.left, self.right = self.right, self.left
