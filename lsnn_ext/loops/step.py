"""Step: the calls of a recurrent component as a function of one step."""
import inspect
from collections import deque
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.utils import _pytree as pytree

from ..codegen.integers import Range
from .integers import BEFORE, find_number
from .ir import Numbers, Ref
from .reader import Name, StepCall
from .recurrence import Recurrence
from .reroll import make_constant_key


class Step:
    """The step of a component, for functional.recurrent."""

    def __init__(self, found: Recurrence) -> None:
        self.dtype, self.line = found.dtype, ""
        # The kernels are traced anew when something behind the functions changes. Behind the
        # elements of a deque nothing is watched: calls do not change.
        self.functions = tuple(one.call.function for one in found.calls)
        self.calls = deque(found.calls)
        # a current with an axis of its own: one for each of its numbers
        self.parts = {name: tuple(f"{name}_{k}" for k in range(width))
                      for one, name in found.currents.items() if name in found.shared_currents
                      if (width := found.width(one.shape)) > 1}
        self.axes = {name: shape[2] for one, name in found.registers.items()
                     if name in found.shared_states
                     and len(shape := found.step_shape(one.place)) > 2}
        populations = found.populations
        currents = [name for one in found.shared_currents for name in self.parts.get(one, (one,))]
        self.inputs = (*currents, *found.shared_states, "z")
        # a result for each state, by population, and its copies
        results = {name: found.name_result(one.place) if one.lag == 1 else
                   found.name_register(one.after()) for one, name in found.registers.items()}
        results |= {name: name for name in found.constants.values()}
        self.results = tuple(tuple((results[name], populations.list_copies(key))
                                   for key, name in names.items())
                             for names in found.shared_states.values())
        # Copies of a population that holds no such value read 0: where it means nothing, it must
        # not get a gradient that is NaN.
        shared = {**found.shared_currents, **found.shared_states,
                  "z": {key: f"z{k}" for k, key in enumerate(populations.of_copy)}}
        self.shared = tuple((one, tuple((name, populations.list_copies(key))
                                        for key, name in names.items()))
                            for one, names in shared.items() if populations.are_several)
        known, self.bounded = _find_ranges(found)
        steps = found.loop.iterations * found.retiming.groups
        # of trace(); a power of two, so that other lengths share the kernels
        self.integers = {"ranges": tuple(map(known.get, self.inputs)),
                         "steps": 1 << steps.bit_length()} if known else {}
        self.emitted = tuple(map(found.name_result, found.emitted))
        # copies of a neuron, each with a part of the gradients, and a coefficient: which one it is
        self.needs_linear_backward = found.copies > 1
        copy = ("copy",) * self.needs_linear_backward
        self.key = (self.inputs, self.shared, tuple(self.axes.items()), self.results, self.emitted,
                    tuple(found.coefficients.values()), self.dtype, tuple(self.integers.items()),
                    tuple(map(_make_key, found.calls)))
        kind = inspect.Parameter
        self.__signature__ = inspect.Signature([
            *(kind(name, kind.POSITIONAL_OR_KEYWORD) for name in self.inputs),
            *(kind(name, kind.KEYWORD_ONLY) for name in (*found.coefficients.values(), *copy))])

    def __call__(self, *values: Tensor, **coefficients: Tensor) -> tuple[Tensor, ...]:
        made: dict[str, Tensor] = dict(zip(self.inputs, values, strict=True)) | coefficients
        for name, rows in self.parts.items():
            made[name] = torch.stack([made[row] for row in rows], -1)

        def choose(copies: Sequence[int], one: Tensor, other: Tensor) -> Tensor:
            copy = made["copy"].unsqueeze(-1) if one.dim() == 3 else made["copy"]
            for k in copies:
                other = torch.where(copy == k, one, other)
            return other

        for shared, names in self.shared:
            both = made[shared]
            for own, copies in names:
                made[own] = choose(copies, both, torch.zeros_like(both))

        def read(leaf: Any) -> Any:
            if not isinstance(leaf, Name):
                return leaf
            if leaf.number is not None:
                return torch.tensor(leaf.number, dtype=leaf.dtype)
            one = made[leaf.name]
            if leaf.has_first_axis and one.dim() == 2:
                one = one.unsqueeze(0)
            if leaf.has_new_axis and one.dim():
                one = one.unsqueeze(-1)
            return one.to(leaf.dtype)

        assert len(self.functions) == len(self.calls)  # named here, and so watched
        for call, leaves, found, is_copy, is_sum, widths, parts in self.calls:
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
            elif call.function is batch_norm:
                args, kwargs = pytree.tree_unflatten(given, call.spec)
                results = [_normalize(*args, **kwargs)]
            else:
                if call.name == "layer_norm":
                    sizes = given[0].shape[-1:]
                    given[1] = sizes if isinstance(given[1], torch.Size) else sizes[0]
                results = call.run(given)
            if any(isinstance(leaf, Name) and leaf.has_first_axis for leaf in leaves):
                results = [one.squeeze(0) if one.dim() == 3 else one for one in results]
            made.update(zip(found, map(_fit, results, widths), strict=True))
        z, *others = (made[name].to(self.dtype) for name in self.emitted)
        for k, other in enumerate(others, 1):
            z = choose((k,), other, z)
        states = []
        for (name, _), *shared_with in self.results:
            state = made[name].to(self.dtype)
            for own, copies in shared_with:
                state = choose(copies, made[own].to(self.dtype), state)
            states.append(state)
        return *states, z


def _normalize(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-5) -> Tensor:
    """Returns what a batch_norm of (B, N) returns that does not train."""
    factor = (variance + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor
    return x * factor + (shift if bias is None else shift + bias)


def _find_ranges(found: Recurrence) -> tuple[dict[str, Range], list[int]]:
    """Returns the least and the largest integer of currents, and of states before the first step,
    which are integers, and the values that have to be in the range BEFORE."""
    known: dict[str, Range] = {}
    bounded: list[int] = []
    recording = found.reader.recording
    if found.populations.are_several:  # whose neurons read 0 of others
        return known, bounded
    for current, name in found.currents.items():
        terms = *current.products, *current.others
        if len(terms) == 1 and isinstance(terms[0], Numbers):
            numbers = terms[0].values
            known |= {name: (min(numbers), max(numbers))} if {*map(type, numbers)} == {int} else {}
    for register, name in found.registers.items():
        iteration, _ = found.retiming.locate(register.place[0], -register.lag)
        if not register.initial or iteration >= 0 or (
                found.reader.kind(*register.place).dtype not in (torch.int32, torch.int64)):
            continue
        number = find_number(recording, register.initial[0])
        if number is None:
            bounded.append(register.initial[0])
        known[name] = (BEFORE[0], BEFORE[-1]) if number is None else (number, number)
    return known, bounded


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
