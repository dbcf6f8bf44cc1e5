"""The surrogates of the kernels to the last places, the end of surrogate_cutoff, and thresholds of
exactly 0 in models whose surrogate is as wide as the threshold."""
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same, run_on_copies
from lsnn_ext import ALIF, LSNN, functional, reference
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import MODELS

ENDLESS = ("fast_sigmoid", "arctan", "sigmoid", "exponential", "gaussian", "multi_gaussian")


def psi_of_kernels(m: Tensor, surrogate: str, **more: float) -> Tensor:
    """psi(m) (N,): the gradient of one step whose membrane is its input, threshold 0."""
    x = m[None, None].clone().requires_grad_()
    z, _ = functional.alif(x, None, alpha=0.0, kappa=1.0, theta=0.0, width=1.0, R=0.0,
                           dynamics="snntorch_sub", surrogate=surrogate, dampening=1.0, **more)
    z.sum().backward()
    return x.grad[0, 0]


def places(got: Tensor, exact: Tensor) -> Tensor:
    """How many units in the last place of exact, as float32, each number is away from it."""
    size = exact.abs().clamp(min=torch.finfo(torch.float32).smallest_normal)
    return (got.double() - exact).abs() / torch.exp2(torch.floor(torch.log2(size)) - 23)


@pytest.mark.parametrize(("surrogate", "most"), [
    ("exponential", 1.0), ("sigmoid", 2.5), ("fast_sigmoid", 2.5), ("arctan", 2.0)])
def test_values_to_the_last_places(surrogate: str, most: float) -> None:
    random = torch.Generator().manual_seed(0)
    m = torch.cat([torch.linspace(-110, 110, 300_001),
                   torch.exp(torch.empty(100_000).uniform_(-30, 5, generator=random))])
    exact = SURROGATES[surrogate].psi(m.double())
    if surrogate == "sigmoid":  # s(m) s(-m) of the reference cancels nothing, but rounds s to 1
        exact = 1 / (2 + 2 * torch.cosh(m.double()))
    assert 0 < places(psi_of_kernels(m, surrogate), exact).max() <= most


@pytest.mark.parametrize("surrogate", ["gaussian", "multi_gaussian"])
def test_values_of_bells(surrogate: str) -> None:
    """The exponent is rounded by half a unit of m^2 / 2, relative to the height of each part."""
    m = torch.linspace(-30, 30, 200_001)
    exact = SURROGATES[surrogate].psi(m.double())
    bells = 1.15 * torch.exp(-m.double()**2 / 2) * (2 + m.double()**2 / 2)
    if surrogate == "multi_gaussian":
        bells += 0.05 * torch.exp(-(m.double().abs() - 1)**2 / 72) * (2 + m.double()**2 / 72)
    error = (psi_of_kernels(m, surrogate).double() - exact).abs()
    assert bool((error <= bells * 2.0**-23 + 2.0**-149).all()) and bool(error.any())


@pytest.mark.parametrize("surrogate", ENDLESS)
def test_values_far_out(surrogate: str) -> None:
    far = torch.tensor([1e3, -1e4, 1e18, -3e38, math.inf, -math.inf])
    exact = SURROGATES[surrogate].psi(far.double()).float()
    # of what is infinite the chain rule makes infinity times 0
    torch.testing.assert_close(psi_of_kernels(far[:4], surrogate), exact[:4], rtol=1e-6, atol=1e-38)
    assert bool(psi_of_kernels(torch.tensor([math.nan]), surrogate).isnan())


@pytest.mark.parametrize("share", [1e-8, 1e-4, 1e-2])
@pytest.mark.parametrize("surrogate", ENDLESS)
def test_cutoff_ends_where_the_share_is_reached(surrogate: str, share: float) -> None:
    psi = SURROGATES[surrogate].psi
    m = torch.exp(torch.linspace(-3, 10, 20_001, dtype=torch.float64))
    m = torch.cat([m, -m])
    relative = (psi(m) / psi(torch.zeros(1, dtype=torch.float64))).abs()
    got = psi_of_kernels(m, surrogate, surrogate_cutoff=share)
    # multi_gaussian is 0 once between its hill and its valley, and has no end there
    tail = m.abs() > 4 if surrogate == "multi_gaussian" else m.abs() > 0
    assert not bool(got[tail & (relative < share * (1 - 1e-9))].any())
    kept = ~(tail & (relative < share * (1 + 1e-9)))
    torch.testing.assert_close(got[kept], psi(m)[kept])


def recurrent(surrogate: str, share: float, dtype: torch.dtype, of: object) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    B, N = 20, 41
    x = torch.randn(30, B, N, generator=random, dtype=dtype)
    w = torch.randn(N, N, generator=random, dtype=dtype) / math.sqrt(N)
    return run_on_copies(lambda x, w: of.alif(
        x, w, alpha=0.9, rho=0.95, beta=0.5, theta=0.4, dynamics="srnn", width=0.2,
        surrogate=surrogate, surrogate_cutoff=share)[0], x, w)


@pytest.mark.parametrize("share", [1e-8, 1e-2])
@pytest.mark.parametrize("surrogate", ENDLESS)
def test_cutoff_as_in_the_reference(surrogate: str, share: float) -> None:
    got, wanted = (recurrent(surrogate, share, torch.float64, module)
                   for module in (functional, reference))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_cutoff_of_what_rounding_loses_changes_nothing_that_counts() -> None:
    whole, cut = (recurrent("gaussian", share, torch.float32, functional) for share in (0.0, 1e-8))
    assert torch.equal(whole[0], cut[0])
    assert not torch.equal(whole[1], cut[1])
    for got, wanted in zip(cut[1:], whole[1:], strict=True):
        assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_which_surrogates_end() -> None:
    far = torch.tensor([-20.0, 20.0], dtype=torch.float64)
    for name, surrogate in SURROGATES.items():
        assert surrogate.has_bounded_support is (name not in ENDLESS)
        assert surrogate.has_bounded_support is not bool(surrogate.psi(far).any())


def test_cutoff_of_modules() -> None:
    layer = ALIF(3, 4, dynamics="srnn", tau_mem=20.0, tau_adapt=200.0, beta=1.8, threshold=0.01,
                 refractory=0, autapses=True, surrogate_cutoff=1e-8)
    x = torch.randn(5, 2, 3)
    gradients = []
    for share in (1e-8, 0.0):
        layer.surrogate_cutoff = share
        layer.zero_grad()
        layer(x)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
    torch.testing.assert_close(*gradients)
    assert LSNN(3, 2, 2, 1, surrogate="gaussian",
                surrogate_cutoff=1e-3).neurons.surrogate_cutoff == 1e-3


@pytest.mark.parametrize(("arguments", "said"), [
    ({"surrogate_cutoff": True}, "surrogate_cutoff: expected a number, got bool"),
    ({"surrogate_cutoff": "1e-8"}, "surrogate_cutoff: expected a number, got str"),
    ({"surrogate_cutoff": -1.0, "surrogate": "gaussian"}, "from 0 to 0.01, got -1.0"),
    ({"surrogate_cutoff": 0.02, "surrogate": "gaussian"}, "from 0 to 0.01, got 0.02"),
    ({"surrogate_cutoff": math.nan, "surrogate": "gaussian"}, "from 0 to 0.01, got nan"),
    ({"surrogate_cutoff": 1e-8}, "expected 0 with surrogate 'triangle', which has bounded"),
    ({"surrogate_cutoff": 1e-8, "surrogate": "gaussian", "smooth": True},
     "expected 0 with smooth=True")])
def test_cutoffs_that_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        functional.alif(torch.zeros(2, 1, 3), None, alpha=0.9, theta=1.0, **arguments)
    if "smooth" not in arguments:
        with pytest.raises((TypeError, ValueError), match=said):
            ALIF(3, 4, **arguments)


SCALED = [name for name, model in MODELS.items() if model.scale == "A"]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("dynamics", SCALED)
def test_a_threshold_of_zero(dynamics: str, beta: float, smooth: bool) -> None:
    """As in the reference: no gradient passes the test where the threshold is 0."""
    theta = torch.tensor([0.0, 0.0, 0.5, -0.25, 1e-310, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(30, 3, 6, generator=generator, dtype=torch.float64) * 1024).round() / 1024
    x[:5] = 0  # the membrane is exactly at the threshold
    w = (torch.randn(6, 6, generator=generator, dtype=torch.float64) * 64).round().div(256)

    def run(module: Any) -> list[Tensor]:
        def call(x: Tensor, w: Tensor, theta: Tensor, width: Tensor) -> list[Tensor]:
            spikes, state, traces = module.alif(
                x, w, alpha=0.75, theta=theta, rho=0.5, beta=beta, width=width, R=0.5,
                dynamics=dynamics, smooth=smooth, trace=True)
            return [spikes, traces.threshold, traces.v, state.a]

        return run_on_copies(call, x, w, theta, torch.ones_like(theta))

    got, want = run(functional), run(reference)
    assert bool((want[1] == 0).any()) and bool(want[0].any())
    assert_same("results", got, want, tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_widths_that_are_no_normal_numbers(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).tiny
    x, w = torch.ones(3, 2, 4, dtype=dtype), torch.zeros(4, 4, dtype=dtype)
    functional.alif(x, w, alpha=0.9, theta=0.5, width=torch.full((4,), least, dtype=dtype))
    with pytest.raises(RuntimeError, match="width: expected a normal number of its dtype, got .* "
                                           "at neuron 0"):
        functional.alif(x, w, alpha=0.9, theta=0.5, width=torch.full((4,), least / 2, dtype=dtype))
