"""Bounds of integers: which numbers the nodes of a step may be."""
import pytest
import torch

from lsnn_ext.codegen.graph import Graph
from lsnn_ext.codegen.integers import LIMIT, Range, check_integers
from lsnn_ext.codegen.values import StepError

MOST = LIMIT - 1
# the least and the largest a and b, an operator of them, and whether all results are exact
CASES: list[tuple[Range, Range, str, bool]] = [
    ((0, MOST - 1), (1, 1), "add", True), ((0, MOST), (0, 1), "add", False),
    ((1 - MOST, 0), (-1, 0), "add", True), ((-MOST, 0), (-1, 0), "add", False),
    ((0, 1), (2 - LIMIT, 0), "sub", True), ((0, 1), (1 - LIMIT, 0), "sub", False),
    ((1 - LIMIT, 0), (0, 0), "sub", True), ((1 - LIMIT, 0), (0, 1), "sub", False),
    ((-4096, 0), (-4095, 0), "mul", True), ((-4096, 0), (-4096, 0), "mul", False),
    ((-4096, 0), (0, 4096), "mul", False), ((0, 4096), (-4096, 4095), "mul", False),
    ((0, LIMIT), (0, 1), "minimum", False), ((0, 3), None, "maximum", False),
    ((0, 3), (0, 2), "div", False), ((0, 3), (0, 2), "gt", True), (None, None, "gt", True)]


@pytest.mark.parametrize(("a", "b", "operator", "is_exact"), CASES)
def test_bounds(a: Range, b: Range, operator: str, is_exact: bool) -> None:
    graph = Graph(torch.float32, 2, 0)
    graph.integers.append((graph.add(operator, 0, 1), StepError("no exact integer")))
    if is_exact:
        check_integers(graph, {0: a, 1: b}, {}, 1)
    else:
        with pytest.raises(StepError, match="no exact integer"):
            check_integers(graph, {0: a, 1: b}, {}, 1)


@pytest.mark.parametrize("value", [0.5, float("inf"), float("nan"), -LIMIT, LIMIT])
def test_constants_that_are_no_exact_integers(value: float) -> None:
    graph = Graph(torch.float32, 0, 0)
    graph.integers.append((graph.constant(value), StepError("no exact integer")))
    with pytest.raises(StepError, match="no exact integer"):
        check_integers(graph, {}, {}, 1)
