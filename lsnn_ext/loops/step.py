"""Step: the calls of a recurrent component as a function of one step."""
import inspect
from collections import deque
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .ir import Ref
from .reader import Name, StepCall
from .recurrence import Recurrence
from .reroll import make_constant_key


class Step:
    """The step of a component, for functional.recurrent."""

    def __init__(self, found: Recurrence) -> None:
        registers = found.registers
        self.dtype, self.line = found.dtype, ""
        # The kernels are traced anew when something behind the functions changes. Behind the
        # elements of a deque nothing is watched: calls do not change.
        self.functions = tuple(one.call.function for one in found.calls)
        self.calls = deque(found.calls)
        # a current with an axis of its own: one for each of its numbers
        self.parts = {name: tuple(f"{name}_{k}" for k in range(width))
                      for one, name in found.currents.items()
                      if (width := found.width(one.shape)) > 1}
        self.axes = {name: shape[2] for one, name in registers.items()
                     if len(shape := found.step_shape(one.place)) > 2}
        slots = found.list_slots()
        first = [found.currents[slot[0]] for slot in slots]
        currents = [name for one in first for name in self.parts.get(one, (one,))]
        # of populations of several sizes: which copies read a current; the others, where it means
        # nothing, must not give it a gradient that is NaN
        self.shared = tuple(
            (name, tuple((found.currents[one], tuple(
                k for k, size in enumerate(found.sizes) if size == found.size(one.shape)))
                for one in slot))
            for name, slot in zip(first, slots, strict=True) if len({*found.sizes}) > 1)
        constants = tuple(found.constants.values())
        self.inputs = (*currents, *registers.values(), *constants, "z")
        self.results = (
            *(found.name_result(one.place) if one.lag == 1 else found.name_register(one.after())
              for one in registers), *constants)
        self.emitted = tuple(map(found.name_result, found.emitted))
        # copies of a neuron, each with a part of the gradients, and a coefficient: which one it is
        self.needs_linear_backward = found.copies > 1
        copy = ("copy",) * self.needs_linear_backward
        self.key = (self.inputs, self.shared, tuple(self.axes.items()), self.results, self.emitted,
                    tuple(found.coefficients.values()), self.dtype,
                    tuple(map(_make_key, found.calls)))
        kind = inspect.Parameter
        self.__signature__ = inspect.Signature([
            *(kind(name, kind.POSITIONAL_OR_KEYWORD) for name in self.inputs),
            *(kind(name, kind.KEYWORD_ONLY) for name in (*found.coefficients.values(), *copy))])

    def __call__(self, *values: Tensor, **coefficients: Tensor) -> tuple[Tensor, ...]:
        made: dict[str, Tensor] = dict(zip(self.inputs, values, strict=True)) | coefficients
        for name, rows in self.parts.items():
            made[name] = torch.stack([made[row] for row in rows], -1)

        for slot, currents in self.shared:
            both = made[slot]
            for name, copies in currents:
                made[name] = torch.zeros_like(both)
                for k in copies:
                    made[name] = torch.where(made["copy"] == k, both, made[name])

        def read(leaf: Any) -> Any:
            if not isinstance(leaf, Name):
                return leaf
            one = made[leaf.name]
            if leaf.has_first_axis and one.dim() == 2:
                one = one.unsqueeze(0)
            if leaf.has_new_axis and one.dim():
                one = one.unsqueeze(-1)
            if one.dtype == leaf.dtype:
                return one
            return one != 0 if leaf.dtype == torch.bool else one.to(leaf.dtype)

        assert len(self.functions) == len(self.calls)  # named here, and so watched
        for call, leaves, names, is_copy, is_sum, widths, parts in self.calls:
            self.line = call.line
            given = [read(leaf) for leaf in leaves]
            if parts:
                results: Sequence[Tensor] = [
                    given[0][..., one.start] if one.stop - one.start == 1 else given[0][..., one]
                    for one in parts]
            elif is_sum:
                results = [reduce(torch.add, given)]
            elif is_copy:
                with torch.set_grad_enabled(call.mode.grad):
                    results = [next(one for one in given if isinstance(one, Tensor)).clone()]
            else:
                results = call.run(given)
            if any(isinstance(leaf, Name) and leaf.has_first_axis for leaf in leaves):
                results = [one.squeeze(0) if one.dim() == 3 else one for one in results]
            made.update(zip(names, map(_fit, results, widths), strict=True))
        z, *others = (made[name].to(self.dtype) for name in self.emitted)
        for k, other in enumerate(others, 1):
            z = torch.where(made["copy"] == k, other, z)
        return *(made[name].to(self.dtype) for name in self.results), z


def _fit(result: Tensor, width: int) -> Tensor:
    """Returns a result of shape (B, N), or (B, N, width) with its own axis."""
    if width == 1:
        return result.squeeze(-1) if result.dim() == 3 else result
    if result.dim() != 3 or result.shape[2] != width:
        raise ValueError(f"expected a value of shape (B, N, {width}), got {tuple(result.shape)}")
    return result


def _make_key(one: StepCall) -> tuple[Any, ...]:
    """Returns a key that is equal for equal calls."""
    call = one.call
    places = {value: k for k, value in enumerate(call.outputs)}
    results = tuple(places.get(ref.value) if isinstance(ref, Ref) else None
                    for ref in pytree.tree_leaves(call.results))
    leaves = tuple(leaf if isinstance(leaf, Name) else make_constant_key(leaf)
                   for leaf in one.leaves)
    written = tuple(call.leaves.index(Ref(before)) for before, _ in call.written)
    return (call.function, leaves, str(call.spec), results, written, call.mode, one.results,
            one.is_copy, one.is_sum, one.widths, str(one.parts))
