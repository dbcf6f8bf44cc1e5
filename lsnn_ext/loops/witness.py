"""Witness: sees every operator of torch, and refuses those that no recorded call explains."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._core.torch_internals import DispatchMode
from ..codegen.plain import generator_states
from . import functions as of
from .ir import Refused
from .unread import add_mask


def find_constructor(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """Returns the call for what torch.FloatTensor makes of numbers or of a size, and Variable of a
    tensor. Refuses other operators, and arrays of NumPy, which may be written to."""
    if func is torch.ops.aten.detach.default:
        return Tensor.detach, args, kwargs
    if func is torch.ops.aten.lift_fresh.default:
        if not args[0].untyped_storage().resizable():
            raise Refused("torch.from_numpy: expected a buffer, or torch.tensor of an array")
        return torch.tensor, (args[0].tolist(),), {"dtype": args[0].dtype}
    if func is torch.ops.aten.empty.memory_format:
        return torch.empty, tuple(args), {"dtype": kwargs.get("dtype")}
    raise Refused(f"{func}: expected operators that are called from Python, got one of torch.jit "
                  f"or C++")


def is_size(tensor: Tensor, arguments: Sequence[Any]) -> bool:
    """Whether a tensor stands in a list or tuple among the arguments, as a size does."""
    lists = [one for one in arguments if isinstance(one, list | tuple)]
    return any(leaf is tensor for leaf in pytree.tree_leaves(lists))


def check_generators(before: Sequence[Tensor]) -> None:
    """Refuses where Python has set the state of a generator."""
    if any(not torch.equal(one, other) for one, other in zip(
            before, generator_states(), strict=True)):
        raise Refused("the state of a generator of torch was set during the call, as by "
                      "torch.manual_seed")


class Witness(DispatchMode):
    """Refuses operators that run outside of recorded calls."""

    def __init__(self, recorder: Any) -> None:
        super().__init__()
        self.recorder = recorder
        self.made: Tensor | None = None  # by the last constructor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.refused is not None:
            return func(*args, **kwargs)
        if not recorder.depth:
            with recorder.refusals():
                with recorder.inside():
                    made = find_constructor(func, args, kwargs)
                # kept: without a reference the program would get another object
                self.made = recorder.note_function(*made, lambda: func(*args, **kwargs),
                                                   lambda _: None)  # as C sets its version
                return self.made
        effects = of.find_effects(func)
        if effects.reads and not (
                recorder.masked.is_reading
                or recorder.name in of.FILLS and not is_size(args[0], recorder.arguments)
                or recorder.name == "__bool__"):
            with recorder.refusals():
                for one in of.list_masks(func, args):
                    add_mask(recorder, one, f"{func}: expected no shape and no branch that depends "
                                            f"on numbers, but for constant ones")
        if effects.writes:
            recorder.unversioned |= of.written_statistics(func, args)
        if not effects.draws:
            return func(*args, **kwargs)
        with recorder.refusals():
            check_generators(recorder.generators)
        out = func(*args, **kwargs)
        recorder.is_random = True
        recorder.generators = generator_states()
        return out
