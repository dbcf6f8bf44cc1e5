"""Retiming: which calls of a component run ahead, and in how many groups the rows of a batch run.

A step of the kernels multiplies values of steps before it. Where a product reads a value of its
own iteration, the calls that this value depends on run ahead, in an earlier step (retiming). A
cycle of more products than iterations, as of layers with feedback, has too few steps for this. The
rows of the batch run in groups then, one after the other (C-slow retiming; Leiserson and Saxe,
1991): step groups * t + g is iteration t of group g. Each product has a step for itself, and no
step is idle:

    layer 1    t, group 0    t, group 1    t + 1, group 0
    layer 2                  t, group 0    t, group 1
"""
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from .nodes import MOST_EMITTED, Nodes


class Retiming(NamedTuple):
    """When the calls of a component run, in steps of the kernels."""

    groups: int
    ahead: dict[int, int]  # by position: how many steps earlier, at most `groups`; others: 0

    def find_lag(self, source: int, lag: int, ahead: int) -> int:
        """Returns the lag of a value in steps. source: the position of its call; lag: in
        iterations; ahead: of the call that reads it."""
        return self.groups * lag + self.ahead.get(source, 0) - ahead

    def locate(self, position: int, step: int) -> tuple[int, int]:
        """Returns the iteration and the group of a call in a step; before the loop: < 0."""
        return divmod(step + self.ahead.get(position, 0), self.groups)

    def count_rows(self, rows: int) -> int:
        return -(-rows // self.groups)

    def split(self, values: Tensor) -> Tensor:
        """Returns values (n, B, ...) as (n groups, b, ...); the last row is repeated."""
        if self.groups == 1:
            return values
        size = self.count_rows(values.shape[1])
        if missing := self.groups * size - values.shape[1]:
            values = torch.cat([values, values[:, -1:].expand(-1, missing, *values.shape[2:])], 1)
        return values.reshape(-1, size, *values.shape[2:])

    def join(self, values: Tensor, rows: int) -> Tensor:
        """Returns values (n groups, b, ...) as (n, B, ...)."""
        if self.groups == 1:
            return values
        return values.unflatten(0, (-1, self.groups)).flatten(1, 2)[:, :rows]


def find_retiming(nodes: Nodes) -> Retiming:
    """Returns the one of fewest groups: as many as a cycle of recurrent products needs."""
    edges = [(node.position, one.position, one.lag, False)
             for node in nodes.by_position.values() for one in nodes.list_operands(node)]
    edges += [(node.position, source.position, source.lag, True)
              for node, _, source in nodes.list_products()]
    # a cycle has at most MOST_EMITTED products, one of each value
    for groups in range(1, MOST_EMITTED + 1):
        ahead = _find_ahead(edges, groups)
        if ahead is not None:
            return Retiming(groups, {position: steps for position, steps in ahead.items() if steps})
    raise AssertionError


def _find_ahead(edges: Collection[tuple[int, int, int, bool]],
                groups: int) -> dict[int, int] | None:
    """Returns the least steps that calls run ahead, so that the lag of each product is at least 1;
    None: these are more than `groups`. edges: reader, source, lag, whether a product reads it."""
    ahead = dict.fromkeys({position for one in edges for position in one[:2]}, 0)
    while True:
        late: dict[int, int] = {}
        for reader, source, lag, is_product in edges:
            steps = ahead[reader] - groups * lag + is_product
            if steps > ahead[source]:
                late[source] = max(steps, late.get(source, 0))
        if not late:
            return ahead
        ahead |= late
        if max(late.values()) > groups:
            return None
