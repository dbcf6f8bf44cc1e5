"""Functions of autograd that do more than compute."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import Net, Spike, add, loop


@loop
class ClassInForward(Net):
    """Each call defines a class of its own, with the slope in its closure."""

    slope = 4.0
    changes = True

    def forward(self, x: Tensor) -> Any:
        slope = self.slope

        class Local(Spike):
            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return g / (slope * ctx.saved_tensors[0].abs() + 1) ** 2

        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            z = Local.apply(v - self.threshold)
            out.append(z)
        return torch.stack(out)

    def change(self, call: int) -> None:
        if call == 2:
            self.slope = 1.0


@loop
class ClassInStep(Net):
    """Each step defines a class of its own."""

    def spike(self, v: Tensor) -> Tensor:
        class Local(Spike):
            pass

        return Local.apply(v)


class Dirty(torch.autograd.Function):
    """Writes to its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.sign_().clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Same(torch.autograd.Function):
    """Returns its argument, with half of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / 2


class Noisy(Spike):
    """Escape noise: a draw inside of a function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (torch.rand_like(x) < torch.sigmoid(x)).to(x.dtype)


class Batchwise(Spike):
    """A function that is not elementwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > x.mean(0)).to(x.dtype)


class Branches(Spike):
    """A function that reads values of its own argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype) if x.max() > 1 else torch.zeros_like(x)


class BranchesBackward(Spike):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) if float(g.sum()) > 0 else g / (2 + x.abs())


class Counting(Spike):
    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Counting.calls += 1
        ctx.save_for_backward(x)
        return (x > (0.25 if Counting.calls % 5 == 0 else 0)).to(x.dtype)


@loop
class CountsInside(Net):
    """A function with a counter in its class, which it reads."""

    def change(self, call: int) -> None:
        Counting.calls = call

    def spike(self, v: Tensor) -> Tensor:
        return Counting.apply(v)

    @classmethod
    def reset(cls) -> None:
        Counting.calls = 0


class ThroughArray(Spike):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy((x.detach().numpy() > 0).astype("float64"))


class Closes(Spike):
    offset = torch.tensor(0.0, dtype=torch.float64)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > Closes.offset).to(x.dtype)


@loop
class TensorOfClass(Net):
    """A tensor that no argument shows, and that changes in place."""

    def change(self, call: int) -> None:
        Closes.offset.fill_(0.5 if call > 1 else 0)

    def spike(self, v: Tensor) -> Tensor:
        return Closes.apply(v)

    @classmethod
    def reset(cls) -> None:
        Closes.offset.fill_(0)

    changes = True


@loop
class StraightThrough(Net):
    """No function at all."""

    def spike(self, v: Tensor) -> Tensor:
        soft = torch.clamp(v + 0.5, 0, 1)
        return soft + ((v > 0).to(v.dtype) - soft).detach()


add(loop, Net, "spike",
    MarkDirty=lambda self, v: Dirty.apply(v),
    ReturnsArgument=lambda self, v: Same.apply(Spike.apply(Same.apply(v))),
    DrawsInside=lambda self, v: Noisy.apply(v),
    ReadsBatch=lambda self, v: Batchwise.apply(v),
    BranchesInside=lambda self, v: Branches.apply(v),
    BranchesInBackward=lambda self, v: BranchesBackward.apply(v),
    NumpyInside=lambda self, v: ThroughArray.apply(v))
