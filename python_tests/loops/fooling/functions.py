"""Functions of autograd, in all their forms."""
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from fooling.base import Net, Spike, add, fused, loop, refused, spike_by
from fooling.changes import Changed, Switched

early = Spike.apply  # before anything is recorded


def bind_spike(self: Net) -> None:
    self.function = Spike.apply


add(fused, Net, "spike", EarlyBound=lambda self, v: early(v))
add(fused, Net, "prepare spike", BoundByAttribute=(bind_spike, lambda self, v: self.function(v)))
add(loop, Changed, "prepare spike to_change rounds", BoundReplaced=(
    bind_spike, lambda self, v: self.function(v),
    lambda self: setattr(self, "function", torch.sigmoid), True))


class Scaled(torch.autograd.Function):
    """The slope is an argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, name: str = "") -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g / (ctx.slope * x.abs() + 1) ** 2, None, None


@fused
class NumberAsArgument(Net):
    slope = 4.0

    def spike(self, v: Tensor) -> Tensor:
        return Scaled.apply(v, self.slope, "text")


@fused
class NumberAsArgumentChanges(NumberAsArgument, Changed):
    """Only gradients change."""

    def to_change(self) -> None:
        self.slope = 1.0


@loop
class NumberOfTime(Net):
    """Another slope in each step."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, _ = self.step(x, v, z)
        return v, Scaled.apply(v - self.threshold, 1.0 + t)


class Several(torch.autograd.Function):
    """Two results, one of which has no gradient, and a tensor that gets none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale)
        sign = torch.sign(x)
        ctx.mark_non_differentiable(sign)
        return (x > 0).to(x.dtype), sign

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        return g / (scale * x.abs() + 1) ** 2, None


@loop
class SeveralResults(Net):
    def spike(self, v: Tensor) -> Tensor:
        z, sign = Several.apply(v, v.new_tensor(4.0))
        return z + (sign == 0) / 4


class SeveralGradients(torch.autograd.Function):
    """Membrane and spikes at once; the gradient of either may be missing."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        v = 0.5 * v + c
        z = (v > 1).to(v.dtype)
        ctx.save_for_backward(v)
        return v - z, z

    @staticmethod
    def backward(ctx: Any, gv: Tensor | None, gz: Tensor | None) -> Any:
        (v,) = ctx.saved_tensors
        g = torch.zeros_like(v)
        if gv is not None:
            g = g + gv
        if gz is not None:
            g = g + gz / (4 * (v - 1).abs() + 1) ** 2
        return 0.5 * g, g


# The whole neuron is one function.
add(loop, Net, "step", StepAsFunction=lambda self, x, v, z: SeveralGradients.apply(
    v, self.feed(x) + self.back(z)))


add(loop, Net, "spike",
    OnceDifferentiable=spike_by(backward=once_differentiable(
        lambda ctx, g: g * (ctx.saved_tensors[0].abs() < 0.5))),
    NeedsGradient=spike_by(backward=lambda ctx, g: (
        g / (1 + ctx.saved_tensors[0].abs()) if ctx.needs_input_grad[0] else None)))
add(loop, Net, "spike learns", NoneAsGradient=(spike_by(backward=lambda ctx, g: None), False))


class SetUp(torch.autograd.Function):
    """The form with setup_context."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g / (ctx.slope * x.abs() + 1) ** 2, None


add(loop, Net, "spike", SetUpContext=lambda self, v: SetUp.apply(v, 2.0))


class ClipsGradient(torch.autograd.Function):
    """Returns its argument, of which apply makes a view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-0.25, 0.25)


class ClipsInSetUp(ClipsGradient):
    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.size = inputs[0].abs() + 1


class Halves(torch.autograd.Function):
    """Writes to its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(0.5)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 0.25 * g


class Inner(torch.autograd.Function):
    """Calls another function, and operators with a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            ctx.save_for_backward(torch.autograd.grad(torch.sigmoid(leaf).sum(), leaf)[0])
        return Spike.apply(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class Named(Scaled):
    @classmethod
    def apply(cls, x: Tensor, *, slope: float) -> Any:  # type: ignore[override]
        return super().apply(x + 0, slope)


class Breaks(Halves):
    """Raises after forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(2.0)
        return 2 * x


clips, halves, set_up, breaks, several = (  # bound early, as C code
    one.apply for one in (ClipsGradient, Halves, SetUp, Breaks, Several))


@refused("expected no error, got TypeError")
class CaughtAfterForward(Net):
    def spike(self, v: Tensor) -> Tensor:
        try:
            return breaks(v)
        except TypeError:
            return early(v)


def call_in_turns(self: Net, v: Tensor) -> Tensor:
    """One instruction calls both."""
    for function in (early, ReadsNumbers()):
        v = function(*(v,))
    return v


class ReadsNumbers(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * (1.0 if sum(z.detach().flatten().tolist()) < 6 else 0.5)


add(refused("tolist|__iter__"), Net, "spike", InTurns=call_in_turns)
add(loop, Net, "spike",
    ReturnsItsArgumentInSetUp=lambda self, v: Spike.apply(ClipsInSetUp.apply(v)),
    SeveralEarly=lambda self, v: several(v, v.new_tensor(4.0))[0],
    ForwardItself=lambda self, v: SetUp.forward(v, 2.0) + v.relu() - v.relu().detach(),
    ForwardCompared=lambda self, v: early(v) * (Spike.forward is Spike.forward),
    FunctionInFunction=lambda self, v: Inner.apply(v))
add(fused, Net, "spike",
    DefaultArguments=lambda self, v: SetUp.apply(v, slope=2.0),
    EarlyInSetUp=lambda self, v: set_up(v, 2.0),
    ReturnsItsArgumentEarly=lambda self, v: early(clips(v)),
    WritesToItsArgumentEarly=lambda self, v: early(halves(v + 0)),
    CheckpointEarly=lambda self, v: checkpoint(lambda one: early(one) + 0, v, use_reentrant=False),
    EarlyTwice=lambda self, v: early(set_up(v, 2.0) - 0.5) * set_up(early(v), 2.0),
    ReturnsItsArgument=lambda self, v: ClipsGradient.apply(
        Spike.apply(ClipsGradient.apply(v))),
    WritesToItsArgument=lambda self, v: Spike.apply(Halves.apply(v + 0)),
    OwnApply=lambda self, v: Named.apply(v, slope=2.0))


@refused("saved_tensors_hooks")
class SavesOtherwise(Net):
    def spike(self, v: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: 2 * one):
            return Spike.apply(v)


class Outer(Spike):
    """Calls a function that is bound early, whose slope changes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return early(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(scaled(x, SLOPES[0]), x, g)[0]


class Takes(Spike):
    """Its backward calls an argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Any) -> Tensor:  # type: ignore[override]
        ctx.surrogate = surrogate
        return Spike.forward(ctx, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.surrogate(ctx.saved_tensors[0]), None


SLOPES = [4.0]
scaled = Scaled.apply


def surrogate(v: Tensor) -> Tensor:
    return 1 / (SLOPES[0] * v.abs() + 1)


def set_slope(number: float) -> None:
    SLOPES[0] = number


add(fused, Switched, "spike switch numbers",
    InnerFunctionChanges=(lambda self, v: Outer.apply(v), staticmethod(set_slope), (4.0, 1.0)),
    ArgumentChanges=(lambda self, v: Takes.apply(v, surrogate), staticmethod(set_slope),
                     (4.0, 1.0)))


class Reads(Spike):
    """Reads a tensor, and an attribute of its class, in the backward pass."""

    slope = torch.tensor(4.0, dtype=torch.float64)
    scale = 1.0

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return Reads.scale * g / (Reads.slope * ctx.saved_tensors[0].abs() + 1) ** 2


TOTAL = torch.zeros((), dtype=torch.float64)


def write_out_of_sight(ctx: Any, x: Tensor) -> Tensor:
    TOTAL.add_(1)
    return Spike.forward(ctx, x)


class RunsOnce(Spike):
    """Its backward uses up a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = torch.sigmoid(4 * ctx.x)
        return Spike.forward(ctx, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return torch.autograd.grad(ctx.y, ctx.x, g)[0]


class Clears(Spike):
    clear_saved_tensors_on_access = True


def set_scale(self: Net, x: Tensor, z: Tensor) -> Tensor:
    Reads.scale = 2.0 + len(x)
    return Reads.apply(z - 0.5)


add(loop, Switched, "spike switch numbers",
    TensorIsReplaced=(lambda self, v: Reads.apply(v), staticmethod(
        lambda number: setattr(Reads, "slope", torch.tensor(number, dtype=torch.float64))),
        (4.0, 1.0)))
add(refused("stay in the call"), Net, "result reset",
    SetsClass=(set_scale, staticmethod(lambda: setattr(Reads, "scale", 1.0))))
add(refused("can be seen"), Net, "spike", WritesOutOfSight=spike_by(forward=write_out_of_sight))
add(refused("saved tensors that stay"), Net, "spike", ClearsSaved=lambda self, v: Clears.apply(v))
add(refused("can run again"), Net, "spike", BackwardRunsOnce=lambda self, v: RunsOnce.apply(v))
