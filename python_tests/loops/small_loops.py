"""Loops of small recorded functions, and their runs with fused components, for the tests."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lsnn_ext.loops.calls import SLOTS, execute, find_invariants, run_calls
from lsnn_ext.loops.component import Component, fuse_component
from lsnn_ext.loops.ir import Before, BodyCall, Fixed, Leaf, Loop, Now, Numbers, Ref, Varying
from lsnn_ext.loops.record import record


class Inputs:
    """Origins of the arguments."""

    def __init__(self, args: Sequence[Tensor]) -> None:
        self.leaves = {id(one): k for k, one in enumerate(args)}

    def find(self, tensor: Tensor) -> Leaf | None:
        return Leaf("input", (self.leaves[id(tensor)],)) if id(tensor) in self.leaves else None

    def changed(self, reference: Any) -> list[Any]:
        return []


class Rolled:
    """A recorded function(*args) of `iterations` equal iterations behind a start, which returns
    lists of what is made in each of them."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Tensor], iterations: int,
                 start: int) -> None:
        self.result, recording = record(function, tuple(args), {}, Inputs(args))
        if isinstance(recording, Exception):
            raise recording
        self.recording, self.start = recording, start
        calls = recording.calls[start:]
        size, rest = divmod(len(calls), iterations)
        assert not rest, f"{len(calls)} calls of {iterations} iterations"
        rows = [calls[t * size : t * size + size] for t in range(iterations)]
        made = tuple(tuple(call.outputs for call in row) for row in rows)
        place = {value: (t, p, k) for t, row in enumerate(made) for p, values in enumerate(row)
                 for k, value in enumerate(values)}
        body = []
        for position, call in enumerate(rows[0]):
            slots = []
            for w, leaf in enumerate(call.leaves):
                each = [row[position].leaves[w] for row in rows]
                slots.append(self._slot(leaf, each, place))
            body.append(BodyCall(call, tuple(slots)))
        self.loop = Loop(iterations, tuple(body), made)

    @staticmethod
    def _slot(leaf: Any, each: list[Any], place: dict[int, tuple[int, int, int]]) -> Any:
        if not isinstance(leaf, Ref):
            return leaf if all(one == leaf for one in each) else Numbers(tuple(each))
        values = [one.value for one in each]
        if values[-1] not in place:
            return Fixed(values[0]) if len(set(values)) == 1 else Varying(tuple(values))
        t, position, k = place[values[-1]]
        lag = len(each) - 1 - t
        for i, value in enumerate(values[lag:]):
            assert place[value] == (i, position, k)
        return Before(position, k, lag, tuple(values[:lag])) if lag else Now(position, k)

    def component(self) -> list[int]:
        """The calls that depend on themselves, and those that follow only these."""
        size = len(self.loop.body)
        behind = [set() for _ in range(size)]
        for position, (_, slots) in enumerate(self.loop.body):
            for slot in slots:
                if isinstance(slot, Now | Before):
                    behind[position].add(slot.position)
        for _ in range(size):
            behind = [one.union(*(behind[k] for k in one)) for one in behind]
        cyclic = [p for p in range(size) if p in behind[p]]
        assert all(q in behind[p] for p in cyclic for q in cyclic), "several components"
        return [p for p in range(size) if p in cyclic or behind[p] & set(cyclic)]

    def run(self, args: Sequence[Tensor]) -> tuple[Any, Component]:
        """The result with the component fused."""
        loop, recording = self.loop, self.recording
        inside = self.component()
        values = {value: args[leaf.path[0]] for value, leaf in recording.leaves.items()}
        for call in recording.calls[: self.start]:
            leaves = [values[x.value] if isinstance(x, Ref) else x for x in call.leaves]
            values |= zip(call.outputs, execute(call, leaves), strict=True)
        before = [p for p in range(len(loop.body)) if p not in inside]
        places = loop.places()
        wanted = {places[one.value][1:] for one in pytree.tree_leaves(recording.result)}
        fused = fuse_component(loop, inside, {one for one in wanted if one[0] in inside},
                               recording.kinds)
        invariant = find_invariants(loop)

        def outside(slot: Any, t: int) -> Any:
            if isinstance(slot, Numbers):
                return slot.values[t]
            return values[slot.value if isinstance(slot, Fixed) else slot.values[t]]

        made = run_calls(loop, before, loop.iterations, outside, values)

        def sequence(slot: Any) -> Tensor:
            assert isinstance(slot, SLOTS)
            if isinstance(slot, Varying):
                return torch.stack([values[one] for one in slot.values])
            each = [one[slot.position, slot.output] for one in made]
            if isinstance(slot, Before):
                each = [values[one] for one in slot.initial] + each[: -slot.lag]
            return torch.stack(each)

        def fixed(slot: Any) -> Tensor:
            if isinstance(slot, Fixed):
                return values[slot.value]
            assert slot.position in invariant
            return made[0][slot.position, slot.output]

        found = fused([sequence(one) for one in fused.inputs.sequences],
                      [fixed(one) for one in fused.inputs.fixed],
                      [values[one] for one in fused.inputs.initial])

        def look_up(ref: Ref) -> Tensor:
            t, position, k = places[ref.value]
            if position in inside:
                return found[position, k][t]
            return made[t][position, k]

        return pytree.tree_map(look_up, recording.result), fused


def compare(function: Callable[..., Any], args: Sequence[Tensor], iterations: int, start: int = 0,
            tolerance: float = 1e-9) -> Component:
    """Fails unless results and all gradients of both runs agree."""
    args = [one.detach().requires_grad_(one.is_floating_point()) for one in args]
    rolled = Rolled(function, args, iterations, start)
    got, fused = rolled.run(args)
    gradients = []
    for result in (rolled.result, got):
        leaves = pytree.tree_leaves(result)
        assert all(one.dtype == other.dtype and one.shape == other.shape
                   for one, other in zip(leaves, pytree.tree_leaves(rolled.result), strict=True))
        weights = torch.Generator().manual_seed(1)
        total = sum((one.double() * torch.randn(one.shape, generator=weights,
                                                dtype=torch.float64)).sum() for one in leaves)
        wanted = [one for one in args if one.requires_grad]
        gradients.append(torch.autograd.grad(total, wanted, allow_unused=True)
                         if total.requires_grad else [])
    for one, other in zip(pytree.tree_leaves(rolled.result), pytree.tree_leaves(got), strict=True):
        close(other.detach().double(), one.detach().double(), tolerance)
    for k, (want, have) in enumerate(zip(*gradients, strict=True)):
        assert (want is None) == (have is None), f"gradient {k}: {want} and {have}"
        if want is not None:
            close(have, want, tolerance, f"gradient {k}")
    return fused


def close(got: Tensor, want: Tensor, tolerance: float, what: str = "result") -> None:
    largest = want.abs().max().item()
    error = (got - want).abs().max().item()
    assert error <= tolerance * largest, f"{what}: {error} of {largest}"
