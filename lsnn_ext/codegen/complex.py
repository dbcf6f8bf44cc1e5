"""Operators of complex rows as operators of their real and imaginary parts, rounded as the vector
kernels of torch for the CPU round them: products without fused operations, quotients with them."""
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    """A complex number of each row."""

    re: Any
    im: Any  # None: the number is real


ONE = Pair(1, None)


def _is_number(x: Any) -> bool:
    return not isinstance(x, Tensor)


def _ordered(a: Any, b: Any) -> tuple[Any, Any]:
    """The tensor first."""
    return (b, a) if _is_number(a) else (a, b)


def _sum(r: Any, a: Any, b: Any) -> Any:
    if b is None or a is None:
        return a if b is None else b
    if _is_number(a) and _is_number(b):
        return a + b
    if r.is_backward:  # where autograd adds zeros to a gradient
        for x, y in ((a, b), (b, a)):
            if not _is_number(y) and r.is_zero(x):
                return y
    return r.run_part("add", *_ordered(a, b))


def _negative(r: Any, a: Any) -> Any:
    return a if a is None else -a if _is_number(a) else r.run_part("neg", a)


def _difference(r: Any, a: Any, b: Any) -> Any:
    if b is None:
        return a
    if a is None:
        return _negative(r, b)
    if _is_number(a):
        return a - b if _is_number(b) else r.run_part("rsub", b, a)
    return r.run_part("sub", a, b)


def _product(r: Any, a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    return a * b if _is_number(a) and _is_number(b) else r.run_part("mul", *_ordered(a, b))


def _times(r: Any, a: Pair, b: Pair) -> Pair:
    return Pair(_difference(r, _product(r, a.re, b.re), _product(r, a.im, b.im)),
                _sum(r, _product(r, a.re, b.im), _product(r, a.im, b.re)))


def _add(r: Any, self: Pair, other: Pair, alpha: Pair = ONE, join: Any = _sum) -> Pair:
    other = other if alpha == ONE else _times(r, other, alpha)
    return Pair(join(r, self.re, other.re), join(r, self.im, other.im))


def _div(r: Any, self: Pair, other: Pair) -> Pair:
    """Smith's method: the smaller part of the divisor is divided by the larger."""
    a, b, c, d = *self, *other
    if d is None:
        scale = 1 / c if _is_number(c) else r.run_part("reciprocal", c)
        return Pair(_product(r, a, scale), _product(r, b, scale))
    if _is_number(c):
        c, d = (r.number_like(x, a) for x in (c, d))
    run = r.run_part
    by_real = run("ge", run("abs", c), run("abs", d))
    large, small = run("where", by_real, c, d), run("where", by_real, d, c)
    ratio = run("div", small, large)
    scale = run("reciprocal", run("addcmul", large, small, ratio))
    if r.is_backward:  # of a sum over the batch each factor is fixed
        # 1 / (c + i d) = (c - i d) / |.|^2
        p = run("where", by_real, scale, run("mul", ratio, scale))
        q = run("where", by_real, run("mul", ratio, scale), scale)
        return _times(r, self, Pair(p, run("neg", q)))
    a = a if isinstance(a, Tensor) else r.number_like(a, c)
    b = run("zeros_like", a) if b is None else b if isinstance(b, Tensor) else r.number_like(b, c)
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


def _choose(r: Any, mask: Tensor, a: Any, b: Any) -> Any:
    if a is None and b is None:
        return None
    like = a if isinstance(a, Tensor) else b
    a, b = (x if isinstance(x, Tensor) else r.number_like(0.0 if x is None else x, like)
            for x in (a, b))
    return r.run_part("where", mask, a, b)


def _where(r: Any, condition: Pair, self: Pair, other: Pair) -> Pair:
    if _is_number(self.re) and _is_number(other.re):
        self = Pair(r.number_like(self.re, condition.re), self.im)
    return Pair(_choose(r, condition.re, self.re, other.re),
                _choose(r, condition.re, self.im, other.im))


COMPLEX: dict[str, Callable[..., Pair]] = {
    "add": _add,
    "sub": partial(_add, join=_difference),
    "rsub": lambda r, self, other, alpha=ONE: _add(r, other, self, alpha, _difference),
    "mul": lambda r, self, other: _times(r, self, other),
    "div": _div,
    "neg": lambda r, self: Pair(_negative(r, self.re), _negative(r, self.im)),
    "complex": lambda r, real, imag: Pair(real.re, imag.re),
    "abs": lambda r, self: Pair(_size(r, self), None),
    "sgn": _sgn,
    "where": _where,
    "masked_fill": lambda r, self, mask, value: _where(r, mask, value, self),
}
