"""Hooks of modules, parameters and tensors."""
from typing import Any

from torch import Tensor

from fooling.base import Net, add, loop
from fooling.changes import Changed


def hook_model(self: Net) -> None:
    """Hooks of the model itself, before and after its forward."""
    self.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    self.register_forward_hook(lambda module, args, result: result * 2)


def hook_and_record(self: Any) -> None:
    """A hook keeps what a layer receives, as tools do that plot spikes."""
    self.seen = []
    self.back.register_forward_hook(
        lambda module, args, result: self.seen.append(args[0].detach()))


add(loop, Net, "prepare",
    HookBefore=lambda self: self.feed.register_forward_hook(
        lambda module, args, result: result * 2),
    HookOfModel=hook_model,
    HookThatRecords=hook_and_record,
    HookOfGradients=lambda self: self.back.register_full_backward_hook(
        lambda module, incoming, outgoing: (
            None if incoming[0] is None else (incoming[0] / 2,))),
    HookOfParameter=lambda self: self.back.weight.register_hook(lambda g: g * 2))

add(loop, Changed, "to_change",
    HookLater=lambda self: self.feed.register_forward_hook(
        lambda module, args, result: result * 2))

add(loop, Changed, "prepare to_change", HookRemoved=(
    lambda self: setattr(self, "handle", self.feed.register_forward_pre_hook(
        lambda module, args: args[0] * 2)),
    lambda self: self.handle.remove()))


@loop
class HookOfTensor(Net):
    """A hook of a tensor, in each step: gradients are clipped."""

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = super().step(x, v, z)
        if v.requires_grad:
            v.register_hook(lambda g: g.clamp(-0.25, 0.25))
        return v, z


@loop
class RetainedGradient(Net):
    """The gradient of a value inside, which is kept as an attribute."""

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.spikes = spikes
        if self.spikes.requires_grad:
            self.spikes.retain_grad()
        return self.spikes * 2
