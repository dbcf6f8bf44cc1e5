"""Elementwise functions that PyTorch defines by others, against its own kernels."""
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from traced_steps import check_step, values_of

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
ULPS = 8  # of the larger one of argument and result
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, name) for name in (
        "softplus", "elu", "selu", "gelu", "mish", "logsigmoid", "hardsigmoid", "hardswish",
        "tanhshrink", "softsign")},
    "softplus of a slope": lambda v: F.softplus(v, 3.0, 10.0),
    "elu of a scale": lambda v: F.elu(v, 0.7),
    "elu in place": lambda v: F.elu(v * 1, inplace=True),
    "celu": lambda v: F.celu(v, 0.7),
    "gelu tanh": lambda v: F.gelu(v, approximate="tanh"),
    "hardshrink": lambda v: F.hardshrink(v, 0.3),
    "softshrink": lambda v: F.softshrink(v, 0.3),
    "log1p": lambda v: torch.log1p(v.abs()),
    "log1p below 0": lambda v: torch.log1p(-v.sigmoid()),
    "expm1": torch.expm1,
    "nan_to_num": torch.nan_to_num,
    "logaddexp": lambda v: torch.logaddexp(v, -v)}
each = pytest.mark.parametrize("name", FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", EPS, ids=str)


def numbers(dtype: torch.dtype) -> Tensor:
    """Numbers around 0 and 1, small and large ones, 0 and NaN; torch's own kernels disagree at
    infinity."""
    generator = torch.Generator().manual_seed(0)
    around = 4 * torch.randn(50_000, dtype=dtype, generator=generator)
    sizes = 2.0 ** torch.empty(50_000, dtype=dtype).uniform_(-40, 8, generator=generator)
    signs = torch.randn(50_000, generator=generator).sign().to(dtype)
    special = torch.tensor([0.0, -0.0, torch.nan, 0.3, -0.3, 1.0, 3.0, -3.0], dtype=dtype)
    return torch.cat([around, sizes * signs, special])


@each_dtype
@each
def test_values_are_close(name: str, dtype: torch.dtype) -> None:
    function, v = FUNCTIONS[name], numbers(dtype)
    got, want = values_of(function, v), function(v)
    same = (got == want) | (got.isnan() & want.isnan())
    largest = torch.maximum(want.abs(), v.abs().clamp(max=8))
    close = (got - want).abs() <= ULPS * EPS[dtype] * largest
    wrong = ~(same | close)
    assert not wrong.any(), (v[wrong][:5], got[wrong][:5], want[wrong][:5])


@each_dtype
@each
def test_gradients_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    function = FUNCTIONS[name]
    check_step(lambda c, v, z: (c * function(v) + v, z), dtype=dtype, is_exact=False)
