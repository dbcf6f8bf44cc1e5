"""Hooks of modules, parameters and tensors."""
from typing import Any

from torch import Tensor, nn

from fooling.base import Net, add, loop
from fooling.changes import Changed

add(loop, Net, "prepare",
    HookBefore=lambda self: self.feed.register_forward_hook(
        lambda module, args, result: result * 2))

add(loop, Changed, "to_change",
    HookLater=lambda self: self.feed.register_forward_hook(
        lambda module, args, result: result * 2))

add(loop, Changed, "prepare to_change", HookRemoved=(
    lambda self: setattr(self, "handle", self.feed.register_forward_pre_hook(
        lambda module, args: args[0] * 2)),
    lambda self: self.handle.remove()))


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


add(loop, Net, "prepare",
    HookOfParameter=lambda self: self.back.weight.register_hook(lambda g: g * 2))


@loop
class RetainedGradient(Net):
    """The gradient of a value inside, which is kept as an attribute."""

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.spikes = spikes
        if self.spikes.requires_grad:
            self.spikes.retain_grad()
        return self.spikes * 2
