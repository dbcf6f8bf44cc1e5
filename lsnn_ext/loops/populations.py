"""Populations: calls of a component that act on each other only by products.

One value z is what the products read; a step of the kernels ends with z. Where they read several,
each neuron has a copy for each of these, which ends with this one. The copies of a population hold
the same states. Those of other populations hold others in the same places, and may be of another
size: each reads its own, and 0 of what it does not hold.
"""
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from .ir import Refused
from .nodes import Nodes


class Populations:
    """The populations of a component, by number. Raises Refused."""

    def __init__(self, nodes: Nodes, sizes: Sequence[int]) -> None:
        """sizes: N of each copy."""
        self.sizes = tuple(sizes)
        self.of_call = _find_populations(nodes)  # by position
        self.of_copy = tuple(self.of_call[position] for position, _ in nodes.emitted)
        for one, size in zip(self.of_copy, sizes, strict=True):
            if size != sizes[self.of_copy.index(one)]:
                raise Refused(f"expected values of one size between products, got {size} and "
                              f"{sizes[self.of_copy.index(one)]}", nodes.line(nodes.emitted[0][0]))

    @property
    def copies(self) -> int:
        return len(self.sizes)

    @property
    def are_several(self) -> bool:
        return len({*self.of_copy}) > 1

    def list_copies(self, population: int) -> tuple[int, ...]:
        return tuple(k for k, one in enumerate(self.of_copy) if one == population)

    def share(self, values: Iterable[tuple[str, int, int]]) -> dict[str, dict[int, str]]:
        """Returns which values are one for the kernels, by the name of the first: at most one of
        each population. values: name, population, width."""
        found: dict[int, dict[int, list[str]]] = {}
        for name, population, width in values:
            found.setdefault(width, {}).setdefault(population, []).append(name)
        shared = {}
        for each in found.values():
            for names in zip_longest(*each.values()):
                one = {key: name for key, name in zip(each, names, strict=True) if name}
                shared[next(iter(one.values()))] = one
        return shared

    def join(self, parts: Mapping[int, Tensor], dim: int) -> Tensor:
        """Returns numbers of all copies along this dimension. parts: by population; of others 0."""
        if self.copies == 1:
            return parts[self.of_copy[0]]
        one = next(iter(parts.values()))
        return torch.cat([parts[key] if key in parts else one.new_zeros(()).expand(
            *one.shape[:dim], size, *one.shape[dim:][1:])
            for key, size in zip(self.of_copy, self.sizes, strict=True)], dim)

    def join_coefficient(self, tensor: Tensor, population: int) -> Tensor:
        """Returns a coefficient of a population, () or (N, ...), for all copies. Of others it has
        no gradient, which may be NaN there."""
        if self.copies == 1 or not (tensor.dim() or (self.are_several and tensor.requires_grad)):
            return tensor
        if not tensor.dim():
            tensor = tensor.expand(self.sizes[self.of_copy.index(population)])
        last = len(tensor) - 1
        return torch.cat([tensor if one == population else tensor.detach().index_select(
            0, torch.arange(size, device=tensor.device).clamp(max=last))
            for one, size in zip(self.of_copy, self.sizes, strict=True)])

    def take(self, copy: int, values: Tensor, dim: int) -> Tensor:
        """Returns the numbers of a copy along this dimension."""
        return values.narrow(dim, sum(self.sizes[:copy]), self.sizes[copy])


def _find_populations(nodes: Nodes) -> dict[int, int]:
    """Returns the population of each call: those that read each other's results as they are."""
    joined: dict[int, int] = {position: position for position in nodes.by_position}

    def find(position: int) -> int:
        while joined[position] != position:
            position = joined[position]
        return position

    for node in nodes.by_position.values():
        for one in nodes.list_operands(node):
            joined[find(one.position)] = find(node.position)
    return {position: find(position) for position in joined}
