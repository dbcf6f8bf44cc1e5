"""A step of a neuron and its adjoint as a list of elementwise operators: what trace.py makes, and
what generate.py and the interpreter of the kernels run."""
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Node(NamedTuple):
    """One value of a step."""

    operator: str  # a name of OPERATORS, "input", "constant", or "mean": over the neurons
    arguments: tuple[int, ...] = ()  # places of earlier nodes
    value: float = 0.0  # of a constant


# Coefficients of a call, and its device -> the rows of the program, each () or (N,).
Prologue: TypeAlias = Callable[[Sequence[Tensor | float], torch.device], list[Tensor]]


class Program(NamedTuple):
    """(states..., z) = step(currents..., states'..., z', coefficients...) and its adjoint.

    The first nodes are the inputs, in this order: currents (K), states' (S), z', coefficients (C),
    dL/dstates (S), dL/dz. Outputs are places of nodes; None: always 0.
    """

    dtype: torch.dtype  # float32 or float64, of all numbers
    currents: int
    states: int
    coefficients: int
    nodes: tuple[Node, ...]
    # the step
    new_states: tuple[int, ...]
    z: int
    is_spike: bool  # z is always 0 or 1
    # of the step: dL/dz has no effect where all of them are 0; None: unknown, all count as active
    slopes: tuple[int, ...] | None
    # the adjoint; gradients: of what the caller gave as coefficients, summed over time and batch
    d_currents: tuple[int | None, ...]
    d_states: tuple[int | None, ...]
    d_z: int | None
    gradients: tuple[int | None, ...]

    @property
    def means(self) -> tuple[int, ...]:
        """The means over the neurons of each item, which its other functions read as inputs."""
        return tuple(i for i, node in enumerate(self.nodes) if node.operator == "mean")


# By name: the number of arguments. Numbers are those of Program.dtype; truth values are 0 and 1.
# Arithmetic rounds once, as IEEE says; fma(a, b, c) = a b + c rounds once, too, and fmod never.
# exp to pow: within 2 units in the last place. sign, maximum and minimum treat NaN as torch's
# kernels for the CPU do. select(m, a, b): a where m, else b.
# float32: rounds to float32, in a program of float64.
OPERATORS = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "neg": 1, "abs": 1, "sign": 1, "sqrt": 1,
    "maximum": 2, "minimum": 2,
    "exp": 1, "log": 1, "tanh": 1, "sigmoid": 1, "sin": 1, "cos": 1, "atan": 1, "erf": 1, "pow": 2,
    "fmod": 2,
    "gt": 2, "ge": 2, "lt": 2, "le": 2, "eq": 2, "ne": 2, "and": 2, "or": 2, "not": 1,
    "select": 3, "float32": 1,
}
TRUTHS = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"})  # make truth values
# Of neuron.h.
LIMITS = {"currents": 8, "means": 16, "states": 16, "coefficients": 64, "gradients": 32}


def find_reachable(ends: Iterable[int], arguments_of: Callable[[int], Iterable[int]]) -> set[int]:
    """Returns the places that `ends` depend on, with them."""
    found: set[int] = set()
    left = list(ends)
    while left:
        place = left.pop()
        if place not in found:
            found.add(place)
            left += arguments_of(place)
    return found


def is_linear(program: Program) -> bool:
    """Whether the adjoint is linear in the gradients, so that one of a sum is the sum of those of
    its terms. What clips, normalizes or casts a gradient is not."""
    first = program.currents + program.states + 1 + program.coefficients
    found = set(range(first, first + program.states + 1))  # proportional to the gradients

    def is_term(i: int) -> bool:
        node = program.nodes[i]
        return i in found or (node.operator, node.value) == ("constant", 0)

    outputs = [i for i in (*program.d_currents, *program.d_states, program.d_z, *program.gradients)
               if i is not None]
    for i in sorted(find_reachable(outputs, lambda i: program.nodes[i].arguments)):
        operator, arguments, _ = program.nodes[i]
        if found.isdisjoint(arguments):
            continue
        a, *others = (one in found for one in arguments)
        match operator:
            case "add" | "sub" | "neg" | "mean":
                fits = all(map(is_term, arguments))
            case "select":
                fits = all(map(is_term, arguments[1:]))  # a mask of them has ended it before
            case "mul":
                fits = a != others[0]
            case "div":
                fits = not others[0]
            case "fma":
                fits = a != others[0] and is_term(arguments[2])
            case _:
                fits = False
        if not fits:
            return False
        found.add(i)
    return all(map(is_term, outputs))
