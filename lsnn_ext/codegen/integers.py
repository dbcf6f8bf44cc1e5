"""Integers of a step, which the kernels hold as floating-point numbers: whether all are exact."""
from .graph import Graph
from .program import TRUTHS

LIMIT = 1 << 24  # below it float32 holds each integer
Range = tuple[float, float] | None  # the least and the largest integer; None: other numbers


def check_integers(graph: Graph, inputs: dict[int, Range], results: dict[int, int],
                   steps: int) -> None:
    """Bounds integers by interval arithmetic. Raises the StepError of one that may be no integer,
    or beyond the limit.

    Args:
        inputs: by node, ranges before the first step; of the others nothing is known.
        results: by node of a state, its node after a step.
        steps: number of steps, at most.
    """
    live = sorted(graph.reachable([*(place for place, _ in graph.integers), *(
        results[place] for place, known in inputs.items() if known and place in results)]))
    known = {place: one and _limit(*one) for place, one in inputs.items()}
    for _ in range(steps if graph.integers else 0):
        found: dict[int, Range] = {}
        for place in live:
            found[place] = known.get(place) or _find_range(graph, place, found)
        for place, error in graph.integers:
            if found[place] is None:
                raise error
        before = dict(known)
        for place, after in results.items():
            if known.get(place):
                known[place] = _join(known[place], found[after])
        if known == before:
            break


def _find_range(graph: Graph, place: int, found: dict[int, Range]) -> Range:
    """Returns the integers that a node may be, from those of its arguments."""
    name, arguments, value = graph.nodes[place]
    if name == "constant":
        return _limit(value, value) if value.is_integer() else None
    if place in graph.zero_or_one or name in TRUTHS:
        return 0, 1
    given = [found[one] for one in (arguments[1:] if name == "select" else arguments)]
    ranges = [one for one in given if one is not None]
    if not ranges or len(ranges) < len(given):
        return None
    (low, high), (low_2, high_2) = ranges[0], ranges[-1]
    match name:
        case "add":
            return _limit(low + low_2, high + high_2)
        case "sub":
            return _limit(low - high_2, high - low_2)
        case "mul":
            products = low * low_2, low * high_2, high * low_2, high * high_2
            return _limit(min(products), max(products))
        case "neg":
            return -high, -low
        case "abs":
            return max(low, -high, 0), max(-low, high)
        case "maximum":
            return max(low, low_2), max(high, high_2)
        case "minimum":
            return min(low, low_2), min(high, high_2)
        case "select":
            return _join(*ranges)
        case "float32":
            return low, high
    return None


def _limit(low: float, high: float) -> Range:
    return (low, high) if -LIMIT < low <= high < LIMIT else None


def _join(one: Range, other: Range) -> Range:
    if one is None or other is None:
        return None
    return min(one[0], other[0]), max(one[1], other[1])
