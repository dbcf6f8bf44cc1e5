"""spread_sums: sums over the neurons of a recurrence as products, which kernels have.

A sum of shape (B, 1), and what is computed of it, is there for each neuron instead:

    inhibition = 0.1 * z.sum(1, keepdim=True)    0.1 * (z @ ones), of shape (B, N)
"""
from collections.abc import Sequence
from typing import Any

import torch

from .functions import is_pointwise
from .ir import Call, Kind, Loop, Recording, Ref
from .rewrite import make_call
from .stages import Stage
from .values import SUMS


def spread_sums(recording: Recording, loops: Sequence[tuple[Loop, list[Stage]]]) -> bool:
    """Adds products in the place of sums over spikes, in recurrences that stay loops. Returns
    whether there are some. Sums of other numbers are left, as they depend on their order."""
    kinds, found = recording.kinds, set[int]()
    for loop, stages in loops:
        for q in (q for stage in stages if stage.kind == "loop" for q in stage.positions):
            if _is_sum(loop.expand(loop.iterations // 2, q), recording):
                found.update(made[q][0] for made in loop.made)
    if not found:
        return False
    spread: dict[int, Ref] = {}  # what is there for each neuron, by the value for all of them
    before: list[Call] = []
    calls: list[Call] = []
    ones: dict[Any, Ref] = {}

    def add(call: Call, kind: Kind, function: Any, *given: Any, **named: Any) -> Ref:
        result = Ref(recording.add_value(kind))
        calls.append(make_call(function, given, result, call.mode, call.line, **named))
        return result

    for call in recording.calls:
        calls.append(call)
        value = call.outputs[0] if len(call.outputs) == 1 else -1
        if value in found:
            source, = call.inputs
            kind = kinds[source]._replace(requires_grad=kinds[value].requires_grad)
            size, key = kind.shape[1], (kind.shape[1], kind.dtype, kind.device)
            if key not in ones:
                ones[key] = add(call, Kind((size, size), *kind[1:3], False, True), torch.ones,
                                [size, size], dtype=kind.dtype, device=kind.device)
                before.append(calls.pop())
            spread[value] = add(call, kind, torch.matmul, Ref(source), ones[key])
            if call.name == "mean":
                spread[value] = add(call, kind, torch.div, spread[value], size)
        elif not spread.keys().isdisjoint(call.inputs) and is_pointwise(call) and (
                spread.keys().isdisjoint(old for old, _ in call.written)):
            leaves = tuple(spread.get(leaf.value, leaf) if isinstance(leaf, Ref) else leaf
                           for leaf in call.leaves)
            shape = torch.broadcast_shapes(*(kinds[leaf.value].shape for leaf in leaves
                                             if isinstance(leaf, Ref)))
            if shape == kinds[value].shape:
                calls[-1] = call.replace(leaves=leaves)
            elif call.results == Ref(value):
                spread[value] = Ref(recording.add_value(kinds[value]._replace(shape=shape)))
                calls.append(call.replace(leaves=leaves, results=spread[value]))
    recording.calls[:] = [*before, *calls]
    return True


def _is_sum(call: Call, recording: Recording) -> bool:
    """Whether a call adds whole numbers (B, N) to (B, 1)."""
    if call.name not in SUMS or len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    shape, numbers = recording.kinds[call.inputs[0]].shape, recording.numbers.get(call.inputs[0])
    return (len(shape) == 2 and shape[1] > 1
            and recording.kinds[call.outputs[0]].shape == (shape[0], 1)
            and recording.kinds[call.outputs[0]].dtype == recording.kinds[call.inputs[0]].dtype
            and numbers is not None and torch.equal(numbers, numbers.round()))
