"""Modes of torch, in some calls or in a part of the loop."""
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Net, Spike, add, fused, loop, refused


class Modes(Net):
    """Programs that run under another mode of torch in some calls."""

    replayed = (1, 4)

    @staticmethod
    def mode() -> AbstractContextManager[Any]:
        raise NotImplementedError

    @classmethod
    def around(cls, call: int) -> AbstractContextManager[Any]:
        return cls.mode() if call in (2, 5) else nullcontext()


add(fused, Modes, "mode",
    NoGradient=lambda: torch.no_grad(),
    Inference=lambda: torch.inference_mode(),
    Anomaly=lambda: torch.autograd.set_detect_anomaly(True))

# Saved tensors are packed by the caller.
add(loop, Modes, "mode",
    SavedTensorHooks=lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda one: one.clone(), lambda one: one))


add(loop, Modes, "mode rounds dtype",
    Autocast=(lambda: torch.autocast("cpu", torch.bfloat16), True, torch.float32))


@loop
class AutocastInside(Net):
    """A region of autocast in each step."""

    dtype = torch.float32

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            c = self.feed(x) + self.back(z)
        v = 0.5 * v + c.float() - z.detach()
        return v, Spike.apply(v - 1)


# The default device changes.
add(fused, Modes, "zeros mode", OnMeta=(
    lambda self, x: [torch.zeros(x.shape[1], N, dtype=x.dtype) for _ in range(2)],
    lambda: torch.device("meta")))


class Leaves(Net):
    """A setting changes for what comes after it."""

    @classmethod
    def reset(cls) -> None:
        torch.set_default_dtype(torch.float32)
        torch.autograd.set_detect_anomaly(False)


@loop
class DefaultDtype(Leaves):
    """New tensors have the default dtype."""

    def zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros(x.shape[1], N) + 1 / 3
        return v.to(x.dtype), torch.zeros(x.shape[1], N, dtype=x.dtype)

    def change(self, call: int) -> None:
        torch.set_default_dtype(torch.float64 if call in (2, 5) else torch.float32)

    changes = True


add(refused("leaves settings"), Leaves, "result",
    LeavesDtype=lambda self, x, z: (z, torch.set_default_dtype(torch.float64))[0],
    LeavesAnomaly=lambda self, x, z: (z, torch.autograd.set_detect_anomaly(True))[0])
