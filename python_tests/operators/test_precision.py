"""torch's precisions of products in float32, in the kernels of a GPU and of the CPU."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from layers import NEURON
from lsnn_ext import _ops, functional
from operator_calls import Calls
from rounding import rounded

T, B, N = 20, 9, 65
TOLERANCE = {"high": 1e-4, "medium": 5e-3}  # of the largest gradient; see kernel_routes.h


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
    on_cpu = _ops.has_cpu_kernels(torch.empty(0))
    with _ops.forced() if on_cpu else _ops.forced(design=design):
        z, exact = gradients("highest")
    with _ops.forced() if on_cpu else _ops.forced(design=design, kernels="matrices"):
        rounded_z, rounded = gradients(precision)
    assert torch.equal(rounded_z, z) and 0 < z.mean() < 0.5
    for got, wanted in zip(rounded, exact, strict=True):
        assert (got - wanted).abs().max() <= TOLERANCE[precision] * float(wanted.abs().max())
        if on_cpu and precision == "high":
            assert torch.equal(got, wanted)
        if not on_cpu:
            assert not torch.equal(got, wanted)


# --------------------------------------------------------------------------------- torch's products
@pytest.mark.skipif(not _ops.available or not _ops.has_cpu_kernels(torch.empty(0)),
                    reason="the CPU kernels do not run here")
@pytest.mark.parametrize(("steps", "share", "projected_inside"), [
    (20, 1.0, False), (500, 1.0, False), (500, 0.1, True)], ids=["short", "dense", "mostly-zero"])
def test_projection(steps: int, share: float, projected_inside: bool) -> None:
    """After "medium" torch's product, which makes the current of dense inputs, rounds the weights
    to bfloat16; a projection inside the recurrence, and the recurrence, do not. Inputs are small
    integers and weights multiples of 2^-10, so that sums in any order agree."""
    random = torch.Generator().manual_seed(3)
    x = torch.randint(1, 4, (steps, B, 20), generator=random).float()
    x = x * (torch.rand(x.shape, generator=random) < share)
    w_in, w_rec = ((scale * torch.randn(N, n, generator=random)).round() / 1024
                   for n, scale in ((20, 1024 * 0.3 / share**0.5), (N, 1024 * 0.1)))

    def spikes(precision: str, weights: Tensor) -> Tensor:
        torch.set_float32_matmul_precision(precision)
        with Calls() as calls:
            found = functional.layer(x, weights, w_rec, **NEURON).spikes
        assert (calls.forward[0].given["w_in"] is not None) == projected_inside
        return found

    exact, seen = spikes("highest", w_in), spikes("medium", w_in)
    assert 0.01 < float(exact.mean()) < 0.5
    assert not torch.equal(spikes("highest", rounded(w_in)), exact)
    assert torch.equal(seen, spikes("highest", w_in if projected_inside else rounded(w_in)))


@pytest.mark.parametrize("product", [
    lambda x, w, b: linear(x, w, b), lambda x, w, b: linear(x, w) + b,
    lambda x, w, b: torch.mm(x, w.t()) + b, lambda x, w, b: x @ w.t() + b,
    lambda x, w, b: torch.addmm(b, x, w.t()), lambda x, w, b: b.repeat(9, 1).addmm_(x, w.t()),
    lambda x, w, b: torch.bmm(x[None], w.t()[None])[0] + b,
    lambda x, w, b: torch.baddbmm(b[None, None], x[None], w.t()[None])[0],
    lambda x, w, b: torch.einsum("bi,ni->bn", x, w) + b])
def test_products_of_torch_round_in_tests(product: Callable[..., Tensor]) -> None:
    """On every processor, and to the last digits as one with matrix tiles does."""
    random = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=random) for shape in ((9, 30), (7, 30), (7,)))
    exact = product(x, w, b)
    torch.set_float32_matmul_precision("medium")
    got = product(x, w, b)
    torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(product(x, w, b), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(got, product(rounded(x), rounded(w), b), rtol=0, atol=1e-5)
    assert (got - exact).abs().max() > 1e-3
