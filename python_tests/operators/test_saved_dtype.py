"""saved_dtype=torch.bfloat16: membranes in half the memory, rounded to nearest even."""
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import Case, build
from compare import assert_same, assert_same_runs, outputs_and_gradients, saved_tensors
from lsnn_ext import ALIF, LSNN, _ops, functional
from operator_calls import DEVICE, needs_cuda_kernels

BUSY = Case("busy", T=40, delay="each", refractory=2, state="real")


@pytest.mark.parametrize("network", [False, True])
def test_membranes_in_half_the_memory(network: bool) -> None:
    """saved_dtype changes no spike, halves what is kept, and rounds gradients."""
    torch.manual_seed(0)
    x = (torch.rand(50, 8, 40) < 0.1).float()
    kinds: list[dict[str, Any]] = [{}, {"saved_dtype": torch.bfloat16}]
    results, kept = [], []
    for more in kinds:
        torch.manual_seed(1)
        net: nn.Module = LSNN(40, 64, 64, 3, **more) if network else ALIF(40, 128, **more)
        sizes = {tensor.data_ptr(): tensor.nbytes if tensor.dim() == 3 else 0
                 for tensor in saved_tensors(lambda net=net: net(x))}
        kept.append(sum(sizes.values()))
        results.append(outputs_and_gradients(lambda x, net=net: net(x)[0], net.parameters(), x))
    want, got = results
    assert_same("out", got[0], want[0])
    assert kept[0] - kept[1] >= 50 * 8 * 128 * 2
    assert_same("gradients", got, want, tolerance=0.03)
    assert not all(map(torch.equal, got, want))


def test_saved_dtype_is_named() -> None:
    wanted = "saved_dtype: expected None, torch.bfloat16 or torch.float32, got torch.float16"
    with pytest.raises(ValueError, match=wanted):
        functional.alif(torch.zeros(2, 1, 3), torch.zeros(3, 3), alpha=0.9, theta=1.0,
                        saved_dtype=torch.float16)


# ------------------------------------------------------------------------------------ what is saved
def test_membranes_are_rounded_to_nearest_even() -> None:
    """As torch rounds. Without a decay and with a gain of 1, y of (5) is the current."""
    # numbers halfway between two of bfloat16, next to that, of every size
    upper = torch.tensor([0, 1, 2, 0x7F, 0x80, 0x81, 0x3F7F, 0x3F80, 0x3F81, 0x3FFF, 0x4049, 0x4B7F,
                          0x7E7E, 0x7F7E])
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    x = ((upper[:, None] << 16) + lower).flatten().to(torch.int32).view(torch.float32)
    x = torch.stack([x, -x])[:, None]
    saved = saved_tensors(lambda: functional.alif(
        x.requires_grad_(), torch.zeros(x.shape[2], x.shape[2]), alpha=0.0, kappa=1.0, theta=1.0,
        dynamics="srnn", saved_dtype=torch.bfloat16))
    (y,) = (tensor for tensor in saved if tensor.dtype == torch.bfloat16)
    want = x.detach().bfloat16()
    halfway = (want.float() - x.detach()).abs() == (
        want.float() - torch.nextafter(want, -want)).abs() / 2
    assert int(halfway.sum()) > 10 and int((want.float().abs() > x.detach().abs()).sum()) > 20
    assert_same("y", y, want)


NO_EFFECT = {"float64": (torch.float64, None), "float64-checkpoints": (torch.float64, 16),
             "checkpoints": (torch.float32, 16)}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_no_effect(name: str) -> None:
    """Bitwise identical in float64, and where no membranes are saved."""
    dtype, checkpoint_every = NO_EFFECT[name]
    if dtype == torch.float32 and not _ops.has_cpu_kernels(torch.empty(0)):
        pytest.skip("other kernels than those of the CPU save all membranes")
    problem = build(BUSY, dtype)
    problem.fixed["checkpoint_every"] = checkpoint_every
    want = problem.run(functional.alif)
    problem.fixed["saved_dtype"] = torch.bfloat16
    assert any(value.any() for value in want[1].values())
    assert_same_runs(problem.run(functional.alif), want)


@needs_cuda_kernels
@pytest.mark.parametrize(("design", "kernels"), [
    ("automatic", "automatic"), ("block", "automatic"), ("block", "general"), ("gather", "general"),
    ("step", "general")])
def test_weights_of_the_backward_pass_in_bfloat16(design: str, kernels: str) -> None:
    """After set_float32_matmul_precision("medium") spikes stay. The kernels of the paper's network
    round weights and dL/dc in their product; the general ones round nothing."""
    generator = torch.Generator().manual_seed(6)
    T, B, N = 40, 3, 70
    x = (torch.randn(T, B, N, generator=generator) * 2).to(DEVICE)
    w = (torch.randn(N, N, generator=generator) / 8).to(DEVICE)

    def run(weights: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        torch.set_float32_matmul_precision(precision)
        with _ops.forced(design=design, kernels=kernels):
            spikes, _ = functional.alif(leaf, weights, alpha=0.9, theta=0.4, beta=0.5, rho=0.9)
            (found,) = torch.autograd.grad((spikes * x).sum(), leaf)
        return spikes.detach(), found

    spikes, exact = run(w, "highest")
    got_spikes, got = run(w, "medium")
    assert bool(spikes.any()) and bool(exact.any())
    assert_same("spikes", got_spikes, spikes)
    assert_same("dL/dx", got, exact, tolerance=0.02)
    if kernels == "general":
        assert_same("dL/dx", got, exact)
    else:
        assert not torch.equal(got, exact)
    rounded = w.bfloat16().float()  # weights that rounding does not change
    assert_same("dL/dx", run(rounded, "medium")[1], run(rounded, "highest")[1],
                tolerance=0.02 if kernels == "automatic" else 2e-6)
