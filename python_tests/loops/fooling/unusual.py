"""Functions of autograd that do more than compute."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fooling.base import Net, OwnLoop, Spike, add, fused, loop, refused, spike_by
from fooling.changes import Changed, Switched


def define_spike(slope: Any) -> Callable[[Tensor], Tensor]:
    """A new class of surrogates, with the slope in its closure."""
    class Local(Spike):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g / (slope * ctx.saved_tensors[0].abs() + 1) ** 2

    return Local.apply


@loop
class ClassInForward(Changed, OwnLoop):
    """Each call defines a class of its own."""

    slope = 4.0

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        spike = define_spike(self.slope)
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + self.back(z) - z.detach()
            z = spike(v - self.threshold)
            yield z

    def to_change(self) -> None:
        self.slope = 1.0


@loop
class ClassOfTime(Net):
    """Each step defines a class with another slope."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.feed(x) + self.back(z) - z.detach()
        return v, define_spike(t)(v - self.threshold)


add(fused, Net, "spike", ClassInStep=lambda self, v: define_spike(4.0)(v))
# The slope of the class is a tensor of the call.
add(refused("without tensors"), Net, "spike",
    ClassWithTensor=lambda self, v: define_spike(v.detach().abs().amax() + 4)(v))


class Counting(Spike):
    calls = 0
    passes = 0
    offset = torch.tensor(0.0, dtype=torch.float64)


def count_and_read(x: Tensor) -> Tensor:
    Counting.calls += 1
    return x > (0.25 if Counting.calls % 5 == 0 else 0)


def estimate_straight_through(self: Net, v: Tensor) -> Tensor:
    """No function at all."""
    soft = torch.clamp(v + 0.5, 0, 1)
    return soft + ((v > 0).to(v.dtype) - soft).detach()


def fires_where(condition: Callable[[Tensor], Tensor]) -> Any:
    """A surrogate with spikes where the condition holds."""
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return condition(x).to(x.dtype)

    return spike_by(forward=forward)


def branch_on_gradient(ctx: Any, g: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return g / (1 + x.abs()) if float(g.sum()) > 0 else g / (2 + x.abs())


add(loop, Net, "spike",
    # Escape noise: a draw inside of a function.
    DrawsInside=fires_where(lambda x: torch.rand_like(x) < torch.sigmoid(x)),
    ReadsBatch=fires_where(lambda x: x > x.mean(0)),  # not elementwise
    # A function that reads values of its own argument.
    BranchesInside=fires_where(lambda x: x > 0 if x.max() > 1 else torch.zeros_like(x)),
    BranchesInBackward=spike_by(backward=branch_on_gradient),
    StraightThrough=estimate_straight_through,
    NumpyInside=fires_where(lambda x: torch.from_numpy(x.detach().numpy() > 0)))


add(loop, Switched, "spike switch numbers",
    # A function with a counter in its class, which it reads.
    CountsInside=(fires_where(count_and_read),
                  staticmethod(lambda number: setattr(Counting, "calls", number)), (0, 2)),
    # A tensor that no argument shows, and that changes in place.
    TensorOfClass=(fires_where(lambda x: x > Counting.offset),
                   staticmethod(Counting.offset.fill_), (0.0, 0.5)))


class Chooses(Spike):
    """Returns an element of an argument, whose history is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, others: list[Tensor]) -> Tensor:  # type: ignore[override]
        return others[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g / 2, None


add(refused("new tensors, or arguments"), Net, "spike",
    ElementOfList=lambda self, v: Spike.apply(Chooses.apply(v, [v * 2])))


def print_backward(ctx: Any, g: Tensor) -> Tensor:
    print(end="")
    return Spike.backward(ctx, g)


def count_backward(ctx: Any, g: Tensor) -> Tensor:
    Counting.passes += 1
    return Spike.backward(ctx, g)


PRINTS, COUNTS = spike_by(backward=print_backward), spike_by(backward=count_backward)
add(refused("changes nothing"), Net, "result",
    PrintsInBackward=lambda self, x, z: PRINTS(self, z - 0.5),
    CountsInBackward=lambda self, x, z: COUNTS(self, z - 0.5))
