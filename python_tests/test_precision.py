"""torch's precisions of products in float32: what the kernels of a GPU, and of the CPU, make of
them."""
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lsnn_ext import _ops, functional

T, B, N = 20, 9, 65
TOLERANCE = {"high": 1e-4, "medium": 5e-3}  # of the largest gradient; see csrc/tests/routes.h


@pytest.fixture(autouse=True)
def same_precision() -> Iterator[None]:
    """torch's switch is put back."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def gradients(precision: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Spikes, and gradients of currents and weights, of the paper's network."""
    random = torch.Generator().manual_seed(4)
    x = torch.randn(T, B, N, generator=random).requires_grad_()
    w = (0.3 * torch.randn(N, N, generator=random)).requires_grad_()
    weight = torch.randn(T, B, N, generator=random)
    torch.set_float32_matmul_precision(precision)
    z, _ = functional.alif(x, w, alpha=0.9, rho=0.99, beta=1.7, theta=0.2, refractory=2)
    return z, torch.autograd.grad((z * weight).sum(), (x, w))


@pytest.mark.parametrize("design", ["block", "cluster"])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_precision(precision: str, design: str) -> None:
    """Spikes are those of "highest". Gradients of a GPU's kernels by matrices are as near as
    bfloat16 numbers let them; those of the CPU are the same where two of them would do."""
    on_cpu = _ops.cpu_kernels(torch.empty(0))
    with _ops.forced() if on_cpu else _ops.forced(design=design):
        z, exact = gradients("highest")
    with _ops.forced() if on_cpu else _ops.forced(design=design, kernels="matrices"):
        rounded_z, rounded = gradients(precision)
    assert torch.equal(rounded_z, z) and 0 < z.mean() < 0.5
    for got, wanted in zip(rounded, exact, strict=True):
        largest = float(wanted.abs().max())
        assert (got - wanted).abs().max() <= TOLERANCE[precision] * largest
        if on_cpu and precision == "high":
            assert torch.equal(got, wanted)
        if not on_cpu:
            assert not torch.equal(got, wanted)


def test_numbers_of_a_factor() -> None:
    found = []
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        found.append(_ops.bf16_parts())
    assert found == [0, 2, 1]
