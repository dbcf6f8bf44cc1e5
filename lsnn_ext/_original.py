"""What the layers share that stand for a layer of another package: lsnn_ext.norse, .snntorch,
.sinabs, .spikingjelly, .yin, .sparch and .se_adlif.

Such a layer has the arguments, the parameters and the call of the original, and computes its whole
sequence with functional.alif. None of them imports the package that it stands for.
"""
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._core.arguments import readable
from ._core.surrogates import SURROGATES
from ._core.torch_internals import assert_on_device
from .functional import State

__all__ = ["Original", "Refused", "Shape", "Stateful", "refuse"]


class Refused(ValueError):  # noqa: N818  a name for callers
    """What the fused operator cannot compute exactly; the message names the layer, the argument,
    what was given and what is supported."""


def refuse(layer: str, argument: str, given: object, supported: str) -> NoReturn:
    """Raises Refused."""
    raise Refused(f"{layer}: {argument}: expected {supported}, got {given}")


class Shape(NamedTuple):
    """The derivative of a spike over the distance u to the threshold, dampening / width times
    psi(u / width)."""

    surrogate: str
    dampening: float
    width: float

    def of(self, u: Tensor) -> Tensor:
        """The derivative at u."""
        return self.dampening / self.width * SURROGATES[self.surrogate].psi(u / self.width)


def measured(shape: Shape, spike: Callable[[Tensor], Tensor], layer: str, argument: str,
             ge: bool = False) -> Shape:
    """The shape, once spike has been seen to have it: the test and its derivative on a grid.

    spike: from distances to the threshold to spikes, with a derivative of its own; ge: whether it
    is 1 at 0. Raises Refused where a value or a derivative is another one.
    """
    corners = shape.width * torch.tensor([0.5, 1.0])
    away = torch.cat([torch.logspace(-4, 2, 61), torch.linspace(0.013, 5.017, 401), corners])
    u = torch.cat([-away, torch.zeros(1), away]).requires_grad_()
    with torch.enable_grad():
        z = spike(u)
        (got,) = torch.autograd.grad(z.sum(), u) if z.requires_grad else (torch.zeros_like(u),)
    fired = (u >= 0 if ge else u > 0).to(z.dtype)
    if not torch.equal(z.detach(), fired):
        refuse(layer, argument, "a function with other values",
               f"0 below the threshold and 1 above, {1 if ge else 0} at it")
    want = shape.of(u.detach())
    error = (got - want).abs()
    wrong = ~(error <= 1e-5 * want.abs().max() + 1e-30)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        refuse(layer, argument,
               f"{float(got[at]):.6g} at a distance of {float(u.detach()[at]):.6g} to the "
               f"threshold",
               f"the derivative of surrogate {shape.surrogate!r}, {float(want[at]):.6g} there")
    return shape


def enclosed(function: Callable[..., Any], name: str) -> Any:
    """The value that a function has kept of the call that made it; None where there is none."""
    return inspect.getclosurevars(function).nonlocals.get(name)


def qualified(kind: type) -> str:
    """The full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def watched(module: nn.Module) -> bool:
    """Whether more than the forward of its class runs when a module is called: hooks, another
    forward, a compiled call."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or "forward" in module.__dict__
        or module._compiled_call_impl is not None
    )


def plain_linear(layer: str, name: str, module: object) -> nn.Linear:
    """The module, which has to be an nn.Linear whose call nobody watches: its weights are read,
    and it is not called. Raises Refused for all else."""
    if type(module) is not nn.Linear and not (
        isinstance(module, nn.Linear) and parametrize.is_parametrized(module)
    ):
        refuse(layer, name, type(module).__name__, "a torch.nn.Linear")
    if watched(module):
        refuse(layer, name, "one with hooks or a forward of its own",
               "a torch.nn.Linear whose call is its own, as its weights are read and it is not "
               "called")
    return module


def unwatched(layer: str, name: str, module: nn.Module) -> None:
    """Raises Refused for a module that is not called, where somebody watches calls of it or of
    its parts."""
    if any(watched(part) for part in module.modules()):
        refuse(layer, name, "one with hooks or a forward of its own", "one without")


def as_steps(x: Tensor) -> Tensor:
    """(T, ..., F) as (T, B, F)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def state_of(v: Tensor, z: Tensor, a: Tensor | None = None, i: Tensor | None = None) -> State:
    """A State, of zeros where nothing is given, in float32 for smaller types, in which autocast
    hands on currents. No tensor is in it twice: torch.compile does not trace that."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    v = v.to(dtype)
    a, i = (torch.zeros_like(v) if leaf is None else leaf.to(dtype) for leaf in (a, i))
    return State(v, a, i, torch.zeros_like(v), z.to(dtype))


def in_range(layer: str, names: dict[str, Tensor | float]) -> None:
    """Raises Refused for a decay that is not from 0 to 1."""
    for name, value in names.items():
        each = torch.as_tensor(value).detach()
        inside = (each >= 0) & (each <= 1)
        if not bool(inside.all()):
            refuse(layer, name, float(each[~inside].reshape(-1)[0]), "a decay from 0 to 1")


def never_negative(name: str, value: Tensor, must: bool) -> bool:
    """Whether no number is below 0; must: raises ValueError for one that is. Where numbers cannot
    be looked at here they must not be either, and are compared where they lie."""
    if readable(value):
        good = bool((value.detach() >= 0).all())
        if must and not good:
            raise ValueError(f"{name}: expected numbers >= 0, got {float(value.detach().min())}")
        return good
    if not value.is_meta:
        assert_on_device((value.detach() >= 0).all(), f"{name}: expected numbers >= 0")
    return True


def all_ones(layer: str, name: str, value: Tensor) -> None:
    """Raises Refused for a factor other than 1; where it lies, if it cannot be looked at here."""
    if readable(value):
        if not bool((value.detach() == 1).all()):
            refuse(layer, name, value.detach(), "1")
    elif not value.is_meta:
        assert_on_device((value.detach() == 1).all(), f"{name}: expected 1")


class Stateful(nn.Module):
    """A module that keeps states, with their graph, from call to call.

    unread   settings of the original that are read when the layer is made and have no attribute
    once     the same of those that have one, which is not looked at again
    """

    unread: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises Refused for a setting that the original would follow, and the layer not."""
        if name in self.unread or name in self.once and name in self.__dict__:
            refuse(type(self).__name__, name, "it set afterwards, which would change nothing",
                   "to be given when the layer is made, or to the original before lsnn_ext.convert")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle goes on from the same states, without their graph."""
        def bare(values: dict[str, Any]) -> dict[str, Any]:
            return {name: value.detach() if isinstance(value, Tensor) and value.grad_fn is not None
                    else value for name, value in values.items()}

        state = bare(self.__dict__)
        return state | {"_buffers": bare(state["_buffers"])}


class Original(Stateful):
    """A layer that stands for one of another package.

    original   the full name of the original class
    registry   all such classes by that name; a class is there once its module has been imported
    """

    original: ClassVar[str] = ""
    registry: ClassVar[dict[str, type["Original"]]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "original" in cls.__dict__:
            Original.registry[cls.original] = cls

    @classmethod
    def from_original(cls, module: nn.Module) -> Self:
        """A layer that computes what module, one of the original class, computes.

        It shares the module's Parameters and submodules, so an optimizer of the one trains the
        other, and the original can take its place again. Raises Refused for whatever the fused
        operator cannot compute exactly.
        """
        found = qualified(type(module))
        if found != cls.original:
            refuse(cls.__name__, "module", f"one of class {found}", f"one of class {cls.original}")
        if watched(module):
            refuse(cls.__name__, "module", "one with hooks or a forward of its own",
                   "one without, as they would see another module")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(module)
        layer.training = module.training
        return layer

    def _adopt(self, module: Any) -> None:
        """Takes all from the original module; raises Refused."""
        raise NotImplementedError
