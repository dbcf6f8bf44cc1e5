"""Elementwise operators of ATen as nodes of a program: one function per operator, which rounds
where torch's kernels for the CPU round.

Functions get the graph and the arguments of the operator by name: tensors are places of nodes,
numbers are numbers. exp, log, tanh, sigmoid, sin, cos, atan, erf, pow, sqrt and what contains them
(silu, rsqrt) are within 2 units in the last place of torch's; all others are bitwise equal.
"""
import math
from collections.abc import Callable

import torch

from .graph import Graph

Number = float | int | bool
OPERATIONS: dict[str, Callable[..., int]] = {}


def _operation(function: Callable[..., int]) -> Callable[..., int]:
    OPERATIONS[function.__name__.removeprefix("_")] = function
    return function


for _name in ("neg", "abs", "sqrt", "exp", "log", "tanh", "sigmoid", "sin", "cos", "atan", "erf"):
    OPERATIONS[_name] = lambda g, self, name=_name: g.add(name, self)
for _name in ("sign", "sgn"):
    OPERATIONS[_name] = lambda g, self: g.add("sign", self)
for _name in ("mul", "maximum", "minimum", "gt", "ge", "lt", "le", "eq", "ne"):
    OPERATIONS[_name] = lambda g, self, other, name=_name: g.add(name, self, other)
for _name in ("and", "or"):
    OPERATIONS[f"logical_{_name}"] = OPERATIONS[f"bitwise_{_name}"] = (
        lambda g, self, other, name=_name: g.add(name, g.is_true(self), g.is_true(other)))
OPERATIONS["logical_xor"] = OPERATIONS["bitwise_xor"] = (
    lambda g, self, other: g.add("ne", g.is_true(self), g.is_true(other)))
OPERATIONS["logical_not"] = OPERATIONS["bitwise_not"] = (
    lambda g, self: g.add("not", g.is_true(self)))
OPERATIONS["isnan"] = lambda g, self: g.add("ne", self, self)
OPERATIONS["square"] = lambda g, self: g.add("mul", self, self)


# ------------------------------------------------------------------------------------- arithmetic
def _scaled_sum(g: Graph, a: int, b: int, factor: Number) -> int:
    """a + factor b: one rounding, unless the factor is 1 or -1."""
    if factor == 1:
        return g.add("add", a, b)
    if factor == -1:
        return g.add("sub", a, b)
    return g.multiply_add(b, g.constant(factor), a)


@_operation
def _add(g: Graph, self: int, other: int, alpha: Number = 1) -> int:
    return _scaled_sum(g, self, other, alpha)


@_operation
def _sub(g: Graph, self: int, other: int, alpha: Number = 1) -> int:
    return _scaled_sum(g, self, other, -alpha)


@_operation
def _rsub(g: Graph, self: int, other: int, alpha: Number = 1) -> int:
    return _scaled_sum(g, other, self, -alpha)


@_operation
def _div(g: Graph, self: int, other: int, rounding_mode: str | None = None) -> int:
    if rounding_mode == "floor":
        return _floor_divide(g, self, other)
    ratio = g.add("div", self, other)
    return ratio if rounding_mode is None else _trunc(g, ratio)


@_operation
def _addcmul(g: Graph, self: int, tensor1: int, tensor2: int, value: Number = 1) -> int:
    return g.multiply_add(g.add("mul", g.constant(value), tensor1), tensor2, self)


@_operation
def _addcdiv(g: Graph, self: int, tensor1: int, tensor2: int, value: Number = 1) -> int:
    return g.add("add", self, g.add("div", g.add("mul", g.constant(value), tensor1), tensor2))


@_operation
def _lerp(g: Graph, self: int, end: int, weight: int) -> int:
    half, difference = g.constant(0.5), g.add("sub", end, self)
    low = g.multiply_add(weight, difference, self)
    rest = g.add("sub", g.constant(1), weight)
    high = g.multiply_add(g.add("neg", difference), rest, end)
    return g.add("select", g.add("lt", g.add("abs", weight), half), low, high)


@_operation
def _reciprocal(g: Graph, self: int) -> int:
    return g.add("div", g.constant(1), self)


@_operation
def _rsqrt(g: Graph, self: int) -> int:
    return g.add("div", g.constant(1), g.add("sqrt", self))


@_operation
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
        return g.add("div", g.constant(1), power) if number == -2 else power
    if number in (0.5, -0.5, -1):
        return {0.5: OPERATIONS["sqrt"], -0.5: _rsqrt, -1: _reciprocal}[number](g, self)
    return g.add("pow", self, exponent)


# --------------------------------------------------------------------------------------- rounding
def _nearest(g: Graph, size: int) -> int:
    """The integer next to a number >= 0, the even one of two: a sum with a number whose last place
    is 1 rounds to integers. Larger numbers are integers."""
    is_single = g.rounds_to_single or g.dtype == torch.float32
    whole = g.constant(2.0 ** (23 if is_single else 52))
    rounded = g.add("sub", g.add("add", size, whole), whole)
    return g.add("select", g.add("lt", size, whole), rounded, size)


def _with_sign(g: Graph, size: int, self: int) -> int:
    """A number >= 0 with the sign of self, where it is 0 and self is finite, too."""
    zero = g.constant(0)
    signed = g.add("select", g.add("lt", self, zero), g.add("neg", size), size)
    return g.add("select", g.add("eq", size, zero), g.add("mul", self, zero), signed)


@_operation
def _round(g: Graph, self: int) -> int:
    return _with_sign(g, _nearest(g, g.add("abs", self)), self)


@_operation
def _trunc(g: Graph, self: int) -> int:
    size = g.add("abs", self)
    nearest = _nearest(g, size)
    return _with_sign(g, g.add("sub", nearest, g.add("gt", nearest, size)), self)


@_operation
def _floor(g: Graph, self: int) -> int:
    whole = _trunc(g, self)
    return g.add("sub", whole, g.add("gt", whole, self))


@_operation
def _ceil(g: Graph, self: int) -> int:
    return g.add("neg", _floor(g, g.add("neg", self)))


@_operation
def _floor_divide(g: Graph, self: int, other: int) -> int:
    """Of a constant power of 2. torch divides what fmod leaves, which is exact then; without fmod
    underflow and infinity need a rule of their own."""
    zero, whole = g.constant(0), _floor(g, g.add("div", self, other))
    is_below = g.add("lt" if (g.value(other) or 0) > 0 else "gt", self, zero)
    whole = g.add("select", g.add("and", is_below, g.add("eq", whole, zero)), g.constant(-1), whole)
    is_infinite = g.add("eq", g.add("abs", self), g.constant(math.inf))
    return g.add("select", is_infinite, g.add("sub", self, self), whole)  # NaN


OPERATIONS["frac"] = lambda g, self: g.add("sub", self, _trunc(g, self))


# ------------------------------------------------------------------------------- limits and masks
@_operation
def _where(g: Graph, condition: int, self: int, other: int) -> int:
    return g.add("select", g.is_true(condition), self, other)


@_operation
def _masked_fill(g: Graph, self: int, mask: int, value: int) -> int:
    return g.add("select", g.is_true(mask), value, self)


@_operation
def _heaviside(g: Graph, self: int, values: int) -> int:
    zero = g.constant(0)
    return g.add("select", g.add("eq", self, zero), values, g.add("gt", self, zero))


@_operation
def _clamp(g: Graph, self: int, min: int | None = None, max: int | None = None) -> int:
    low = self if min is None else g.add("maximum", self, min)
    return low if max is None else g.add("minimum", low, max)


OPERATIONS["clamp_min"] = OPERATIONS["clamp_max"] = _clamp
OPERATIONS["relu"] = lambda g, self: g.add("maximum", self, g.constant(0))


@_operation
def _hardtanh(g: Graph, self: int, min_val: int, max_val: int) -> int:
    return _clamp(g, self, min_val, max_val)


@_operation
def _threshold(g: Graph, self: int, threshold: int, value: int) -> int:
    return g.add("select", g.add("le", self, threshold), value, self)


@_operation
def _leaky_relu(g: Graph, self: int, negative_slope: int) -> int:
    positive = g.add("gt", self, g.constant(0))
    return g.add("select", positive, self, g.add("mul", self, negative_slope))


@_operation
def _silu(g: Graph, self: int) -> int:
    return g.add("div", self, g.add("add", g.constant(1), g.add("exp", g.add("neg", self))))


# -------------------------------------------------------------------------------------- gradients
@_operation
def _sigmoid_backward(g: Graph, grad_output: int, output: int) -> int:
    rest = g.add("sub", g.constant(1), output)
    return g.add("mul", g.add("mul", grad_output, rest), output)


@_operation
def _tanh_backward(g: Graph, grad_output: int, output: int) -> int:
    return g.add("mul", grad_output, g.multiply_add(g.add("neg", output), output, g.constant(1)))


@_operation
def _threshold_backward(g: Graph, grad_output: int, self: int, threshold: int) -> int:
    return g.add("select", g.add("le", self, threshold), g.constant(0), grad_output)


@_operation
def _hardtanh_backward(g: Graph, grad_output: int, self: int, min_val: int, max_val: int) -> int:
    outside = g.add("or", g.add("le", self, min_val), g.add("ge", self, max_val))
    return g.add("select", outside, g.constant(0), grad_output)


@_operation
def _leaky_relu_backward(g: Graph, grad_output: int, self: int, negative_slope: int,
                         self_is_result: int) -> int:
    assert g.value(self_is_result) == 0  # only in place, which has been replaced
    positive = g.add("gt", self, g.constant(0))
    return g.add("select", positive, grad_output, g.add("mul", grad_output, negative_slope))


@_operation
def _silu_backward(g: Graph, grad_output: int, self: int) -> int:
    one, y = g.constant(1), g.add("sigmoid", self)
    slope = g.add("add", one, g.add("mul", self, g.add("sub", one, y)))
    return g.add("mul", g.add("mul", grad_output, y), slope)
