"""Operators that round to integers, against those of torch."""
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from traced_steps import check_step, values_of

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Bitwise equal below 2**22, in float64 2**51: torch loses digits of larger ones.
QUOTIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"div floor {b}": lambda v, b=b: torch.div(v, b, rounding_mode="floor")
       for b in (0, 3, -0.7, 1e-5, 1e30, math.inf, -math.inf)},
    "div floor tensor": lambda v: torch.div(v, v.abs() * 3 - 0.25, rounding_mode="floor")}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = QUOTIENTS | {
    "round": torch.round,
    "trunc": torch.trunc,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "frac": torch.frac,
    "div trunc": lambda v: torch.div(v, 0.3, rounding_mode="trunc"),
    "div trunc tensor": lambda v: torch.div(v, 0.25 + v.abs(), rounding_mode="trunc"),
    **{f"div floor {b}": lambda v, b=b: torch.div(v, b, rounding_mode="floor")
       for b in (1.0, -1, 0.125, -8)},
    "floor_divide": lambda v: v.detach() // 2.0,  # torch has no gradient of it
    "fix": torch.fix}


def numbers(dtype: torch.dtype) -> Tensor:
    """Halves and their neighbours, numbers of all sizes, and the special ones."""
    limits = torch.finfo(dtype)
    halves = torch.arange(-40, 41, dtype=dtype) / 2
    large = 2.0 ** torch.arange(-30, 60, dtype=dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, limits.max, limits.min,
                            limits.tiny, -limits.tiny, limits.smallest_normal / 2,
                            -limits.smallest_normal / 2, limits.eps], dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(torch.iinfo(bits).min, torch.iinfo(bits).max, (20_000,), dtype=bits,
                          generator=generator).view(dtype)
    around = 100 * torch.randn(20_000, dtype=dtype, generator=generator)
    near = torch.cat([halves, large, large + 0.5, -large, 0.5 - large])
    up, down = torch.tensor(torch.inf, dtype=dtype), torch.tensor(-torch.inf, dtype=dtype)
    return torch.cat([near, near.nextafter(up), near.nextafter(down), special, drawn, around])


def assert_same_bits(name: str, got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    bits, eps = torch.int32 if want.dtype == torch.float32 else torch.int64, torch.finfo(dtype).eps
    wrong = (got.view(bits) != want.view(bits)) & ~(got.isnan() & want.isnan())
    if name in QUOTIENTS:
        wrong &= (want.abs() < 0.5 / eps) | ~torch.isclose(got, want, 2 * eps, 0.0)
    assert not wrong.any(), (got[wrong][:5], want[wrong][:5])


@each_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_bitwise_equal(name: str, dtype: torch.dtype) -> None:
    v = numbers(dtype)
    assert_same_bits(name, values_of(FUNCTIONS[name], v), FUNCTIONS[name](v), dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_of_float32_in_a_step_of_float64(name: str) -> None:
    def wide(v: Tensor) -> Tensor:
        return FUNCTIONS[name](v.float()).double()

    v = torch.cat([numbers(torch.float32).double(), numbers(torch.float64)])
    assert_same_bits(name, values_of(wide, v), wide(v), torch.float32)


@each_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    function = FUNCTIONS[name]
    check_step(lambda c, v, z: (c * function(v) + v, z), dtype=dtype)
    program = check_step(lambda c, v, z: (function(v) + c, z), dtype=dtype).program
    # of tensors 0 times another one
    has_gradient = name in ("frac", "div trunc tensor", "div floor tensor")
    assert (program.d_states[0] is not None) == has_gradient


class Count(torch.autograd.Function):
    """Several spikes in a step, with a gradient of its own."""

    @staticmethod
    def forward(ctx, v, threshold):
        ctx.save_for_backward(v)
        return (v > 0) * torch.div(v, threshold, rounding_mode="trunc").float()

    @staticmethod
    def backward(ctx, gradient):
        (v,) = ctx.saved_tensors
        return gradient * (v > 0.5), None


@each_dtype
def test_several_spikes_in_a_step(dtype: torch.dtype) -> None:
    def step(c, v, z, *, threshold):
        v = 0.9 * v + c - threshold * z
        z = Count.apply(v, threshold).to(v.dtype)
        return v, z

    for threshold in (0.3, torch.tensor(0.3, dtype=dtype)):
        program = check_step(step, {"threshold": threshold}, dtype=dtype, batch=200).program
        assert not program.is_spike
