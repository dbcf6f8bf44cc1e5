"""Elementwise operators of ATen as nodes of a program: one function per operator, which rounds
where torch's kernels for the CPU round.

Functions get the graph and the arguments of the operator by name: tensors are places of nodes,
numbers are numbers. exp, log, tanh, sigmoid, sin, cos, atan, erf, pow, sqrt and what contains them
(silu, rsqrt) are within 2 units in the last place of torch's; all others are bitwise equal, large
quotients that are rounded down but for the last place.
"""
import math
from collections.abc import Callable

import torch

from .graph import Graph

Number = float | int | bool


# ------------------------------------------------------------------------------------- arithmetic
def _scaled_sum(g: Graph, a: int, b: int, factor: Number) -> int:
    """a + factor b: one rounding, unless the factor is 1 or -1."""
    if factor == 1:
        return g.add("add", a, b)
    return g.add("sub", a, b) if factor == -1 else g.multiply_add(b, g.constant(factor), a)


def _divide(g: Graph, self: int, other: int, rounding_mode: str | None = None) -> int:
    if rounding_mode == "floor":
        return _floor_divide(g, self, other)
    ratio = g.add("div", self, other)
    return ratio if rounding_mode is None else _trunc(g, ratio)


def _lerp(g: Graph, self: int, end: int, weight: int) -> int:
    half, difference = g.constant(0.5), g.add("sub", end, self)
    low = g.multiply_add(weight, difference, self)
    rest = g.add("sub", g.constant(1), weight)
    high = g.multiply_add(g.add("neg", difference), rest, end)
    return g.add("select", g.add("lt", g.add("abs", weight), half), low, high)


def _reciprocal(g: Graph, self: int) -> int:
    return g.add("div", g.constant(1), self)


def _pow(g: Graph, self: int, exponent: int, is_number: bool = False) -> int:
    """is_number: the exponent is a number, for some of which torch has kernels that multiply."""
    number = g.value(exponent) if is_number else None
    if number == 0:
        return g.constant(1)
    if number == 1:
        return self
    if number in (2, 3, -2):
        power = g.add("mul", self, self)
        power = g.add("mul", power, self) if number == 3 else power
        return _reciprocal(g, power) if number == -2 else power
    if number in (0.5, -0.5, -1):
        root = self if number == -1 else g.add("sqrt", self)
        return root if number == 0.5 else _reciprocal(g, root)
    return g.add("pow", self, exponent)


def _log1p(g: Graph, self: int) -> int:
    """log(1 + x): the rounding of 1 + x cancels in the ratio (Kahan)."""
    one = g.constant(1)
    whole = g.add("add", one, self)
    rest = g.add("sub", whole, one)
    ratio = g.add("mul", g.add("log", whole), g.add("div", self, rest))
    is_whole = g.add("or", g.add("eq", rest, g.constant(0)), g.add(
        "eq", whole, g.constant(math.inf)))
    return g.add("select", is_whole, self, ratio)


def _expm1(g: Graph, self: int) -> int:
    """exp(x) - 1 in the same way."""
    one, power = g.constant(1), g.add("exp", self)
    rest = g.add("sub", power, one)
    ratio = g.add("mul", rest, g.add("div", self, g.add("log", power)))
    is_far = g.add("gt", g.add("abs", self), g.constant(0.5))
    return g.add("select", is_far, rest, g.add("select", g.add("eq", power, one), self, ratio))


# --------------------------------------------------------------------------------------- rounding
def _nearest(g: Graph, size: int) -> int:
    """The integer next to a number >= 0, the even one of two: a sum with a number whose last place
    is 1 rounds to integers. Larger numbers are integers."""
    whole = g.constant(2.0 ** (23 if g.rounds_to_single or g.dtype == torch.float32 else 52))
    rounded = g.add("sub", g.add("add", size, whole), whole)
    return g.add("select", g.add("lt", size, whole), rounded, size)


def _with_sign(g: Graph, size: int, self: int) -> int:
    """A number >= 0 with the sign of self, where it is 0 and self is finite, too."""
    zero = g.constant(0)
    signed = g.add("select", g.add("lt", self, zero), g.add("neg", size), size)
    return g.add("select", g.add("eq", size, zero), g.add("mul", self, zero), signed)


def _trunc(g: Graph, self: int) -> int:
    size = g.add("abs", self)
    nearest = _nearest(g, size)
    return _with_sign(g, g.add("sub", nearest, g.add("gt", nearest, size)), self)


def _floor(g: Graph, self: int) -> int:
    whole = _trunc(g, self)
    return g.add("sub", whole, g.add("gt", whole, self))


def _floor_divide(g: Graph, self: int, other: int) -> int:
    """A rounded quotient may be the next integer, as the sign of what it leaves shows, which one
    rounding does not change. Beyond 2**22, in float64 2**51, torch may differ in the last place:
    it divides a difference, which it has rounded."""
    zero, whole = g.constant(0), _floor(g, g.add("div", self, other))
    left = g.add("fma", g.add("neg", whole), other, self)
    left = g.add("select", g.add("eq", whole, zero), self, left)  # other may be infinite
    is_past = g.add("or", *(g.add("and", g.add(one, left, zero), g.add(two, other, zero))
                            for one, two in (("lt", "gt"), ("gt", "lt"))))
    whole = g.add("select", is_past, g.add("sub", whole, g.constant(1)), whole)
    is_infinite = g.add("and", g.add("eq", g.add("abs", self), g.constant(math.inf)),
                        g.add("ne", other, zero))
    return g.add("select", is_infinite, g.add("sub", self, self), whole)  # NaN


def _remainder(g: Graph, self: int, other: int) -> int:
    """What fmod leaves has the sign of self; here it has that of other."""
    zero, left = g.constant(0), g.add("fmod", self, other)
    differs = g.add("ne", g.add("lt", other, zero), g.add("lt", left, zero))
    is_turned = g.add("and", g.add("ne", left, zero), differs)
    return g.add("select", is_turned, g.add("add", left, other), left)


# ------------------------------------------------------------------------------- limits and masks
def _clamp(g: Graph, self: int, min: int | None = None, max: int | None = None) -> int:
    low = self if min is None else g.add("maximum", self, min)
    return low if max is None else g.add("minimum", low, max)


# -------------------------------------------------------------------------------------- gradients
def _hardsigmoid_backward(g: Graph, grad_output: int, self: int) -> int:
    """torch's kernel has 1 / 6 in float32, in float64 too."""
    inside = g.add("lt", g.add("abs", self), g.constant(3))
    sixth = torch.tensor(1 / 6, dtype=torch.float32, device="cpu").item()
    return g.add("select", inside, g.add("mul", grad_output, g.constant(sixth)), g.constant(0))


def _shrink_backward(g: Graph, grad_out: int, self: int, lambd: int) -> int:
    return g.add("select", g.add("le", g.add("abs", self), lambd), g.constant(0), grad_out)


def _silu_backward(g: Graph, grad_output: int, self: int) -> int:
    one, y = g.constant(1), g.add("sigmoid", self)
    slope = g.add("add", one, g.add("mul", self, g.add("sub", one, y)))
    return g.add("mul", g.add("mul", grad_output, y), slope)


OPERATIONS: dict[str, Callable[..., int]] = {
    **{name: lambda g, self, name=name: g.add(name, self) for name in (
        "neg", "abs", "sign", "sqrt", "exp", "log", "tanh", "sigmoid", "sin", "cos", "atan",
        "erf")},
    **{name: lambda g, self, other, name=name: g.add(name, self, other) for name in (
        "mul", "fmod", "maximum", "minimum", "gt", "ge", "lt", "le", "eq", "ne")},
    **{f"{kind}_{name}": lambda g, self, other, operator=operator: g.add(
        operator, g.is_true(self), g.is_true(other)) for kind in ("logical", "bitwise")
       for name, operator in (("and", "and"), ("or", "or"), ("xor", "ne"))},
    **{f"{kind}_not": lambda g, self: g.add("not", g.is_true(self))
       for kind in ("logical", "bitwise")},
    "isnan": lambda g, self: g.add("ne", self, self),
    "add": lambda g, self, other, alpha=1: _scaled_sum(g, self, other, alpha),
    "sub": lambda g, self, other, alpha=1: _scaled_sum(g, self, other, -alpha),
    "rsub": lambda g, self, other, alpha=1: _scaled_sum(g, other, self, -alpha),
    "addcmul": lambda g, self, tensor1, tensor2, value=1: g.multiply_add(
        g.add("mul", g.constant(value), tensor1), tensor2, self),
    "div": _divide,
    "lerp": _lerp,
    "reciprocal": _reciprocal,
    "log1p": _log1p,
    "expm1": _expm1,
    "rsqrt": lambda g, self: _reciprocal(g, g.add("sqrt", self)),
    "pow": _pow,
    "round": lambda g, self: _with_sign(g, _nearest(g, g.add("abs", self)), self),
    "trunc": _trunc,
    "floor": _floor,
    "ceil": lambda g, self: g.add("neg", _floor(g, g.add("neg", self))),
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "where": lambda g, condition, self, other: g.add("select", g.is_true(condition), self, other),
    "masked_fill": lambda g, self, mask, value: g.add("select", g.is_true(mask), value, self),
    "heaviside": lambda g, self, values: g.add(
        "select", g.add("eq", self, g.constant(0)), values, g.add("gt", self, g.constant(0))),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamp),
    "relu": lambda g, self: g.add("maximum", self, g.constant(0)),
    "silu": lambda g, self: g.add(
        "div", self, g.add("add", g.constant(1), g.add("exp", g.add("neg", self)))),
    "sigmoid_backward": lambda g, grad_output, output: g.add(
        "mul", g.add("mul", grad_output, g.add("sub", g.constant(1), output)), output),
    "tanh_backward": lambda g, grad_output, output: g.add(
        "mul", grad_output, g.multiply_add(g.add("neg", output), output, g.constant(1))),
    "hardtanh_backward": lambda g, grad_output, self, min_val, max_val: g.add(
        "select", g.add("or", g.add("le", self, min_val), g.add("ge", self, max_val)),
        g.constant(0), grad_output),
    "silu_backward": _silu_backward,
    "hardsigmoid_backward": _hardsigmoid_backward,
    "hardshrink_backward": _shrink_backward,
    "softshrink_backward": lambda g, grad_output, self, lambd: _shrink_backward(
        g, grad_output, self, lambd),
}
