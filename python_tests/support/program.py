"""Evaluates a program of lsnn_ext/codegen/program.py with the operators of torch, node by node."""
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lsnn_ext.codegen.program import OPERATORS, Program


class Evaluated(NamedTuple):
    """Outputs of a program; None: always 0."""

    new_states: list[Tensor]
    z: Tensor
    slopes: list[Tensor] | None
    d_currents: list[Tensor | None]
    d_states: list[Tensor | None]
    d_z: Tensor | None
    gradients: list[Tensor | None]  # elementwise, before the sum over time and batch


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b without an error, as the rounded sum and the rest (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a b without an error, as the rounded product and the rest (Dekker); float64."""
    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        scaled = x * 134217729.0
        high = scaled - (scaled - x)
        return high, x - high

    p = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _round_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """a + b in float64, rounded to odd where the sum is not exact."""
    s, rest = _two_sum(a, b)
    even = (s.view(torch.int64) & 1) == 0
    toward = torch.where(rest > 0, math.inf, -math.inf).to(s)
    return torch.where((rest != 0) & even, torch.nextafter(s, toward), s)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c, rounded once (Boldo and Melquiond 2008); as a b + c where numbers overflow."""
    dtype = a.dtype
    a, b, c = (x.contiguous() for x in torch.broadcast_tensors(a.double(), b.double(), c.double()))
    plain = a * b + c
    if dtype == torch.float32:  # the product of two is exact in float64
        result = _round_to_odd(a * b, c)
    else:
        product, rest = _two_product(a, b)
        t, t_rest = _two_sum(c, rest)
        v, v_rest = _two_sum(product, t)
        result = v + _round_to_odd(t_rest, v_rest)
    return torch.where(result.isfinite(), result, plain).to(dtype)


def _number(condition: Tensor, like: Tensor) -> Tensor:
    return condition.to(like.dtype)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "fma": fma,
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "sqrt": torch.sqrt,
    "maximum": torch.maximum, "minimum": torch.minimum, "exp": torch.exp, "log": torch.log,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "sin": torch.sin, "cos": torch.cos,
    "atan": torch.atan, "erf": torch.erf, "pow": torch.pow, "fmod": torch.fmod,
    **{f.__name__: lambda a, b, f=f: _number(f(a, b), a)
       for f in (torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne)},
    "and": lambda a, b: _number((a != 0) & (b != 0), a),
    "or": lambda a, b: _number((a != 0) | (b != 0), a),
    "not": lambda a: _number(a == 0, a),
    "select": lambda m, a, b: torch.where(m != 0, a, b),
    "float32": lambda a: a.float().double(),
    "mean": lambda a: a.mean(-1, keepdim=True).expand_as(a)}
assert _FUNCTIONS.keys() == {*OPERATORS, "mean"}


def evaluate_nodes(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value of each node; inputs: of Program.dtype, (B, N) or what broadcasts to it."""
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    values: list[Tensor] = []
    for node in program.nodes:
        if node.operator == "input":
            assert len(values) < len(inputs) and inputs[len(values)].dtype == program.dtype
            value = inputs[len(values)].expand(shape).contiguous()
        elif node.operator == "constant":
            value = torch.full(shape, node.value, dtype=program.dtype)
        else:
            assert len(node.arguments) == OPERATORS.get(node.operator, 1)
            value = _FUNCTIONS[node.operator](*(values[i] for i in node.arguments))
        assert value.dtype == program.dtype
        values.append(value)
    return values


def evaluate(program: Program, currents: Sequence[Tensor], states: Sequence[Tensor], z: Tensor,
             coefficients: Sequence[Tensor], d_new_states: Sequence[Tensor] | None = None,
             d_new_z: Tensor | None = None) -> Evaluated:
    """Evaluates `program` once; gradients of the results that are left out are 0."""
    assert len(currents) == program.currents and len(states) == program.states
    assert len(coefficients) == program.coefficients
    zero = torch.zeros_like(z)
    values = evaluate_nodes(program, [
        *currents, *states, z, *coefficients, *(d_new_states or [zero] * program.states),
        zero if d_new_z is None else d_new_z])

    def read(places: Sequence[int | None]) -> list[Tensor | None]:
        return [None if i is None else values[i] for i in places]

    return Evaluated([values[i] for i in program.new_states], values[program.z],
                     None if program.slopes is None else [values[i] for i in program.slopes],
                     read(program.d_currents), read(program.d_states), *read([program.d_z]),
                     read(program.gradients))
