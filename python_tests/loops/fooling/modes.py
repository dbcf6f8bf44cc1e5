"""Modes of torch, in some calls or in a part of the loop."""
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Net, Spike, fused, loop


class Modes(Net):
    """Programs that run under another mode of torch in some calls."""

    replayed = (1, 4)

    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        raise NotImplementedError

    @classmethod
    def around(cls, call: int) -> AbstractContextManager[Any]:
        return cls.mode() if call in (2, 5) else nullcontext()


@fused
class NoGradient(Modes):
    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        return torch.no_grad()


@fused
class Inference(Modes):
    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        return torch.inference_mode()


@loop
class Autocast(Modes):
    rounds = True

    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16)

    dtype = torch.float32


@loop
class AutocastInside(Net):
    """A region of autocast in each step."""

    dtype = torch.float32

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            with torch.autocast("cpu", torch.bfloat16):
                c = self.feed(x_t) + self.back(z)
            v = 0.5 * v + c.float() - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@fused
class OnMeta(Modes):
    """The default device changes."""

    replayed = (1, 4)

    def zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros(x.shape[1], N, dtype=x.dtype)
        return v, v.clone()

    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        return torch.device("meta")


@loop
class DefaultDtype(Net):
    """New tensors have the default dtype."""

    def zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros(x.shape[1], N) + 1 / 3
        return v.to(x.dtype), torch.zeros(x.shape[1], N, dtype=x.dtype)

    def change(self, call: int) -> None:
        torch.set_default_dtype(torch.float64 if call in (2, 5) else torch.float32)

    @classmethod
    def reset(cls) -> None:
        torch.set_default_dtype(torch.float32)

    changes = True


@fused
class Anomaly(Modes):
    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        return torch.autograd.set_detect_anomaly(True)

    replayed = (1, 4)


@loop
class SavedTensorHooks(Modes):
    """Saved tensors are packed by the caller."""

    @classmethod
    def mode(cls) -> AbstractContextManager[Any]:
        return torch.autograd.graph.saved_tensors_hooks(lambda one: one.clone(), lambda one: one)
