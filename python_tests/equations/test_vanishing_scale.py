"""Thresholds of exactly 0 in models whose surrogate is as wide as the threshold."""
import pytest
import torch
from torch import Tensor

from compare import assert_all_same
from lsnn_ext import functional, reference
from lsnn_ext.models import MODELS

SCALED = [name for name, model in MODELS.items() if model.scale == "A"]


def _run(alif: object, theta: Tensor, beta: float, smooth: bool,
         dynamics: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(30, 3, 6, generator=generator, dtype=torch.float64) * 1024).round() / 1024
    x[:5] = 0  # the membrane is exactly at the threshold
    leaves = {"x": x.requires_grad_(), "theta": theta.clone().requires_grad_(),
              "w": (torch.randn(6, 6, generator=generator,
                                dtype=torch.float64) * 64).round().div(256).requires_grad_(),
              "width": torch.ones(6, dtype=torch.float64, requires_grad=True)}
    spikes, state, traces = alif(  # type: ignore[operator]
        leaves["x"], leaves["w"], alpha=0.75, theta=leaves["theta"], rho=0.5, beta=beta,
        width=leaves["width"], R=0.5, dynamics=dynamics, smooth=smooth, trace=True)
    loss = spikes.sum() + traces.v.square().sum() + state.a.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True,
                                    materialize_grads=True)
    found = {"spikes": spikes.detach(), "v": traces.v.detach(),
             "threshold": traces.threshold.detach()}
    return found | {f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("dynamics", SCALED)
def test_a_threshold_of_zero(dynamics: str, beta: float, smooth: bool) -> None:
    """As in the reference: no gradient passes the test where the threshold is 0."""
    theta = torch.tensor([0.0, 0.0, 0.5, -0.25, 1e-310, 0.0], dtype=torch.float64)
    got, want = (
        _run(alif, theta, beta, smooth, dynamics) for alif in (functional.alif, reference.alif))
    assert bool((want["threshold"] == 0).any()) and bool(want["spikes"].any())
    assert_all_same(got, want, tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_widths_that_are_no_normal_numbers(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).tiny
    x, w = torch.ones(3, 2, 4, dtype=dtype), torch.zeros(4, 4, dtype=dtype)
    functional.alif(x, w, alpha=0.9, theta=0.5, width=torch.full((4,), least, dtype=dtype))
    with pytest.raises(RuntimeError, match="width: expected a normal number of its dtype, got .* "
                                           "at neuron 0"):
        functional.alif(x, w, alpha=0.9, theta=0.5, width=torch.full((4,), least / 2, dtype=dtype))
