"""Builds a program node by node: shares equal nodes, folds constants, and analyses whether z is a
spike, and where dL/dz has no effect."""
import functools
import operator
import struct
from collections.abc import Callable, Sequence

import torch

from .._core.torch_internals import without_modes
from .program import OPERATORS, TRUTHS, Node, find_reachable

COMMUTATIVE = {"add", "mul", "eq", "ne", "and", "or"}
# Operators whose result is one of the arguments, up to the sign: they never round.
EXACT = {"neg", "abs", "sign", "maximum", "minimum", "float32", *TRUTHS}
_FOLDED: dict[str, Callable[..., float]] = {name: getattr(operator, name) for name in (
    "add", "sub", "mul", "neg", "gt", "ge", "lt", "le", "eq", "ne")}


def round_to_float32(value: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


@functools.cache
def has_fused_multiply_add() -> bool:
    """Whether the kernels of torch on this CPU fuse multiply and add."""
    with without_modes():
        a = torch.linspace(1, 2, 64)
        return bool((torch.addcmul(-a * a, a, a) != 0).any())


class Graph:
    """Nodes of a program before they are put in their final order.

    The nodes 0 ... forward_inputs - 1 are the currents, states' and z'; then come
    gradient_inputs nodes dL/dstates and dL/dz. Coefficients are inputs that are added later.
    """

    def __init__(self, dtype: torch.dtype, forward_inputs: int, gradient_inputs: int) -> None:
        self.dtype = dtype
        self.nodes: list[Node] = [Node("input")] * (forward_inputs + gradient_inputs)
        self.forward_inputs, self.gradient_inputs = forward_inputs, gradient_inputs
        self.coefficients: list[int] = []  # nodes
        self.fixed: set[int] = set()  # nodes that depend on coefficients and constants only
        self.of_gradients = set(range(forward_inputs, forward_inputs + gradient_inputs))
        self.zero_or_one: set[int] = set()
        # nodes that are integers in the step, and the error if they need not be exact
        self.integers: list[tuple[int, Exception]] = []
        self.single: set[int] = set()  # nodes whose values are float32 in a program of float64
        self.rounds_to_single = False  # while an operator of float32 is added
        self._places: dict[object, int] = {}

    # ------------------------------------------------------------------------------------ nodes
    def constant(self, value: float | bool) -> int:
        value = float(value)
        if self.dtype == torch.float32 or self.rounds_to_single:
            value = round_to_float32(value)
        key = struct.pack("d", value)  # tells -0.0 from 0.0
        if key not in self._places:
            self._places[key] = self._append(Node("constant", (), value))
            self.fixed.add(self._places[key])
            if str(value) in ("0.0", "1.0"):  # not -0.0
                self.zero_or_one.add(self._places[key])
        place = self._places[key]
        if round_to_float32(value) == value:
            self.single.add(place)
        return place

    def coefficient(self, key: object, is_single: bool, is_zero_or_one: bool) -> int:
        """Returns the node of a coefficient row; equal keys, equal rows."""
        if key not in self._places:
            place = self._places[key] = self._append(Node("input"))
            self.coefficients.append(place)
            self.fixed.add(place)
            self.single |= {place} if is_single else set()
            self.zero_or_one |= {place} if is_zero_or_one else set()
        return self._places[key]

    def add(self, operator: str, *arguments: int) -> int:
        """Returns a new node, or an equal one that exists, rounded to float32 if needed."""
        assert len(arguments) == OPERATORS[operator], operator
        place = self._simplify(operator, arguments)
        if place is None:
            ordered = tuple(sorted(arguments)) if operator in COMMUTATIVE else arguments
            node = Node(operator, ordered)
            if node not in self._places:
                self._places[node] = self._append(node)
            place = self._places[node]
        if self.rounds_to_single and place not in self.single:
            self.rounds_to_single = False
            place = self.add("float32", place)
            self.rounds_to_single = True
        return place

    def mean(self, a: int) -> int:
        """Returns the mean over the neurons."""
        node = Node("mean", (a,))
        if node not in self._places:
            self._places[node] = self._append(node)
        return self._places[node]

    def value(self, place: int) -> float | None:
        """Returns the value of a constant node, else None."""
        node = self.nodes[place]
        return node.value if node.operator == "constant" else None

    def multiply_add(self, a: int, b: int, c: int) -> int:
        """Returns a b + c as torch's kernels compute it: fused where the CPU can."""
        if has_fused_multiply_add():
            return self.add("fma", a, b, c)
        return self.add("add", self.add("mul", a, b), c)

    def is_true(self, a: int) -> int:
        """Returns a != 0 as 0 or 1."""
        return a if a in self.zero_or_one else self.add("ne", a, self.constant(0))

    def _append(self, node: Node) -> int:
        place = len(self.nodes)
        self.nodes.append(node)
        name, arguments = node.operator, node.arguments
        if arguments:
            self.fixed |= {place} if self.fixed.issuperset(arguments) else set()
            self.of_gradients |= set() if self.of_gradients.isdisjoint(arguments) else {place}
        values = arguments[1:] if name == "select" else arguments
        if name in TRUTHS or (
                name in ("select", "mul", "maximum", "minimum", "float32", "abs", "sign")
                and self.zero_or_one.issuperset(values)):
            self.zero_or_one.add(place)
        if name == "sub" and self.value(values[0]) == 1 and values[1] in self.zero_or_one:
            self.zero_or_one.add(place)
        if place in self.zero_or_one or name == "float32" or (
                name in (*EXACT, "select") and self.single.issuperset(values) and values):
            self.single.add(place)
        return place

    def _simplify(self, name: str, arguments: Sequence[int]) -> int | None:
        """Returns a node of the same value in every case, NaN and the sign of 0 included."""
        numbers = [self.value(i) for i in arguments]
        first = arguments[0]
        if name in _FOLDED and None not in numbers:
            return self.constant(_FOLDED[name](*numbers))
        if name in ("mul", "div") and numbers[1] == 1:
            return first
        if name == "mul" and numbers[0] == 1:
            return arguments[1]
        if name == "sub" and numbers[1] == 0 and str(numbers[1]) == "0.0":
            return first
        if name in ("ne", "gt") and first in self.zero_or_one and numbers[1] == 0:
            return first
        if name in ("eq", "ge") and first in self.zero_or_one and numbers[1] == 1:
            return first
        if name == "eq" and first in self.zero_or_one and numbers[1] == 0:
            return self.add("not", first)
        if name == "not" and self.nodes[first].operator == "not":
            return self.nodes[first].arguments[0]
        if name == "select":
            m, a, b = arguments
            if a == b:
                return a
            if numbers[0] is not None:
                return a if numbers[0] else b
            if numbers[1] == 1 and numbers[2] == 0 and str(numbers[2]) == "0.0":
                return m
        return None

    # --------------------------------------------------------------------------------- analysis
    def reachable(self, ends: Sequence[int | None]) -> set[int]:
        """Returns the nodes that `ends` depend on, with them."""
        return find_reachable((i for i in ends if i is not None),
                              lambda place: self.nodes[place].arguments)

    def _is_often_zero(self, place: int) -> bool:
        """Whether a factor has an interval of values where it is exactly 0, as a triangle has and
        a Gaussian has not. Of any other factor a test is slower."""
        operator, arguments, value = self.nodes[place]
        if operator in ("mul", "neg", "abs", "float32"):
            return any(map(self._is_often_zero, arguments))
        if operator == "div":
            return self._is_often_zero(arguments[0])
        if operator in ("maximum", "minimum", "select"):
            parts = arguments[operator == "select":]
            return any(self.value(i) == 0 or self._is_often_zero(i) for i in parts)
        return value == 0 if operator == "constant" else place in self.zero_or_one

    def find_slopes(self, dz: int, outputs: Sequence[int | None]) -> tuple[int, ...] | None:
        """Returns the factors by which dL/dz enters `outputs`, else None; see Program.slopes."""
        live = self.reachable(outputs)
        users: dict[int, list[int]] = {}
        for place in sorted(live):
            for argument in dict.fromkeys(self.nodes[place].arguments):
                users.setdefault(argument, []).append(place)
        slopes: list[int] = []
        left = [dz] if dz in live else []
        while left:
            x = left.pop()  # dL/dz times factors that are not 0
            if x in outputs:
                return None
            for place in users.get(x, ()):
                name, arguments = self.nodes[place].operator, self.nodes[place].arguments
                others = [i for i in arguments if i != x]
                if arguments.count(x) > 1:
                    return None
                if name in ("add", "sub"):  # what is added does not depend on dL/dz
                    left.append(place)
                elif not self.of_gradients.isdisjoint(others):
                    return None
                elif name == "mul" and self._is_often_zero(others[0]):
                    slopes.append(others[0])
                elif name in ("neg", "float32", "mul") or (name == "div" and arguments[0] == x):
                    left.append(place)
                elif name == "select" and arguments[0] != x and self.value(others[1]) == 0:
                    mask = arguments[0]
                    slopes.append(mask if arguments[1] == x else self.add("not", mask))
                else:
                    return None
        return tuple(dict.fromkeys(slopes))
