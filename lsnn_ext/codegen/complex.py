"""Operators of complex rows as operators of their real and imaginary parts, rounded as the vector
kernels of torch for the CPU round them: products without fused operations, quotients with them."""
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    """A complex number of each row."""

    re: Tensor
    im: Tensor | None  # None: the number is real


def _sum(r: Any, a: Tensor | None, b: Tensor | None) -> Any:
    if b is None or a is None:
        return a if b is None else b
    if r.is_backward:  # where autograd adds zeros to a gradient
        for x, y in ((a, b), (b, a)):
            if r.is_zero(x):
                return y
    return r.run_part("add", a, b)


def _difference(r: Any, a: Tensor | None, b: Tensor | None) -> Any:
    if b is None:
        return a
    return r.run_part("neg", b) if a is None else r.run_part("sub", a, b)


def _product(r: Any, a: Tensor | None, b: Tensor | None) -> Any:
    return None if a is None or b is None else r.run_part("mul", a, b)


def _mul(r: Any, self: Pair, other: Pair) -> Pair:
    return Pair(_difference(r, _product(r, self.re, other.re), _product(r, self.im, other.im)),
                _sum(r, _product(r, self.re, other.im), _product(r, self.im, other.re)))


def _add(r: Any, self: Pair, other: Pair, alpha: Pair | None = None, join: Any = _sum) -> Pair:
    other = other if alpha is None else _mul(r, other, alpha)
    return Pair(join(r, self.re, other.re), join(r, self.im, other.im))


def _div(r: Any, self: Pair, other: Pair) -> Pair:
    """Smith's method: the smaller part of the divisor is divided by the larger."""
    a, b, c, d = *self, *other
    run = r.run_part
    if d is None:
        scale = run("reciprocal", c)
        return Pair(_product(r, a, scale), _product(r, b, scale))
    by_real = run("ge", run("abs", c), run("abs", d))
    large, small = run("where", by_real, c, d), run("where", by_real, d, c)
    ratio = run("div", small, large)
    scale = run("reciprocal", run("addcmul", large, small, ratio))
    if r.is_backward:  # of a sum over the batch each factor is fixed
        # 1 / (c + i d) = (c - i d) / |.|^2
        p = run("where", by_real, scale, run("mul", ratio, scale))
        q = run("where", by_real, run("mul", ratio, scale), scale)
        return _mul(r, self, Pair(p, run("neg", q)))
    b = run("zeros_like", a) if b is None else b
    re = run("where", by_real, run("addcmul", a, b, ratio), run("addcmul", b, a, ratio))
    im = run("where", by_real, run("addcmul", b, run("neg", a), ratio),
             run("addcmul", run("neg", a), b, ratio))
    return Pair(run("mul", re, scale), run("mul", im, scale))


def _size(r: Any, a: Pair) -> Tensor:
    """|a| without overflow: the larger part times sqrt(1 + ratio^2)."""
    run = r.run_part
    re, im = run("abs", a.re), run("abs", a.im)
    large, small = run("maximum", re, im), run("minimum", re, im)
    ratio = run("div", small, run("masked_fill", large, run("eq", large, 0), 1))
    return run("mul", large, run("sqrt", run("addcmul", run("ones_like", ratio), ratio, ratio)))


def _sgn(r: Any, self: Pair) -> Pair:
    run, size = r.run_part, _size(r, self)
    size = run("masked_fill", size, run("eq", size, 0), 1)
    return Pair(run("div", self.re, size), run("div", self.im, size))


def _choose(r: Any, mask: Tensor, a: Tensor | None, b: Tensor | None) -> Any:
    if a is None and b is None:
        return None
    a, b = (r.run_part("zeros_like", y) if x is None else x for x, y in ((a, b), (b, a)))
    return r.run_part("where", mask, a, b)


def _where(r: Any, condition: Pair, self: Pair, other: Pair) -> Pair:
    return Pair(_choose(r, condition.re, self.re, other.re),
                _choose(r, condition.re, self.im, other.im))


COMPLEX: dict[str, Callable[..., Pair]] = {
    "add": _add,
    "sub": partial(_add, join=_difference),
    "rsub": lambda r, self, other, alpha=None: _add(r, other, self, alpha, _difference),
    "mul": _mul,
    "div": _div,
    "neg": lambda r, self: Pair(_difference(r, None, self.re), _difference(r, None, self.im)),
    "complex": lambda r, real, imag: Pair(real.re, imag.re),
    "abs": lambda r, self: Pair(_size(r, self), None),
    "sgn": _sgn,
    "where": _where,
    "masked_fill": lambda r, self, mask, value: _where(r, mask, value, self),
}
