"""Hooks of modules, parameters and tensors."""
from typing import Any

from torch import Tensor, nn

from fooling.base import Net, loop


@loop
class HookBefore(Net):
    def prepare(self) -> None:
        self.feed.register_forward_hook(lambda module, args, result: result * 2)


@loop
class HookLater(Net):
    def change(self, call: int) -> None:
        if call == 2:
            self.feed.register_forward_hook(lambda module, args, result: result * 2)

    changes = True


@loop
class HookRemoved(Net):
    def prepare(self) -> None:
        self.handle = self.feed.register_forward_pre_hook(lambda module, args: args[0] * 2)

    def change(self, call: int) -> None:
        if call == 2:
            self.handle.remove()

    changes = True


@loop
class HookOfModel(Net):
    """Hooks of the model itself, before and after its forward."""

    def prepare(self) -> None:
        self.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
        self.register_forward_hook(lambda module, args, result: result * 2)


@loop
class HookOfGradients(Net):
    def prepare(self) -> None:
        self.back.register_full_backward_hook(
            lambda module, incoming, outgoing: (incoming[0] / 2,) if incoming[0] is not None
            else None)


@loop
class HookOfAll(Net):
    """A hook of all modules, which is set for some calls."""

    handle: Any = None

    def change(self, call: int) -> None:
        if call in (2, 3, 5):
            HookOfAll.handle = nn.modules.module.register_module_forward_hook(
                lambda module, args, result: result / 2 if type(module) is nn.Linear else None)

    @classmethod
    def reset(cls) -> None:
        if HookOfAll.handle is not None:
            HookOfAll.handle.remove()
            HookOfAll.handle = None

    changes = True


@loop
class HookThatRecords(Net):
    """A hook keeps what a layer returns, as tools do that plot spikes."""

    def prepare(self) -> None:
        self.seen: list[Tensor] = []
        self.back.register_forward_hook(
            lambda module, args, result: self.seen.append(args[0].detach()))


@loop
class HookOfTensor(Net):
    """A hook of a tensor, in each step: gradients are clipped."""

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().step(x, v, z)
        if v.requires_grad:
            v.register_hook(lambda g: g.clamp(-0.25, 0.25))
        return v, z


@loop
class HookOfParameter(Net):
    def prepare(self) -> None:
        self.back.weight.register_hook(lambda g: g * 2)


@loop
class RetainedGradient(Net):
    """The gradient of a value inside, which is kept as an attribute."""

    def forward(self, x: Tensor) -> Any:
        self.spikes = self.over(x, x)
        if self.spikes.requires_grad:
            self.spikes.retain_grad()
        return self.spikes * 2
