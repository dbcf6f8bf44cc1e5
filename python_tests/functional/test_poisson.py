"""Random spikes as bits: probabilities are exact."""
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext import functional


def _numbers(rates: Tensor, hold: int, seed: int = 0) -> Tensor:
    return functional.poisson(rates, hold, generator=torch.Generator().manual_seed(seed)).numbers()


@pytest.mark.parametrize("p", [0.0, 1e-5, 1 / 256, 0.05, 0.3, 0.5, 255 / 256, 0.9999, 1.0])
def test_chances(p: float) -> None:
    """Of 2 million draws, within five deviations; also where a byte of 256 could say it no more."""
    z = _numbers(torch.full((2, 20, 100), p, dtype=torch.float64), 500)
    n, mean = z.numel(), p * z.numel()
    assert abs(float(z.sum()) - mean) <= 5 * math.sqrt(n * p * (1 - p))
    assert z.dtype == torch.float64 and z.shape == (1000, 20, 100)


def test_each_entry_has_its_own_rate_for_its_own_steps() -> None:
    rates = torch.rand(3, 4, 37, generator=torch.Generator().manual_seed(1))
    hold = 20000
    z = _numbers(rates, hold).view(3, hold, 4, 37)
    deviation = (rates * (1 - rates) / hold).sqrt()
    assert float(((z.mean(1) - rates) / deviation).abs().max()) < 5


def test_bytes_that_do_not_decide_do_so_by_their_own_rate() -> None:
    """Rates that differ by less than a byte can say, in one part of the draws."""
    rates = torch.tensor([26.0, 26.9, 26.9, 26.0]).view(2, 1, 2) / 256
    rates = rates.repeat_interleave(500, -1)
    z, n = _numbers(rates, 1000).view(2, 1000, 1000), 500_000
    found, wanted = z.view(2, 1000, 2, 500).mean((1, 3)), rates[:, 0, ::500]
    assert float((found - wanted).abs().max()) < 4.5 * math.sqrt(0.1 * 0.9 / n) < 0.6 / 256


def test_draws_are_independent() -> None:
    """Spikes of two neurons, and of two steps, come together as often as chance has it."""
    p = 0.2
    z = _numbers(torch.full((1, 8, 64), p), 4000) - p
    n = z.numel()
    for other in (z.roll(1, 0), z.roll(1, 1), z.roll(1, 2), z.roll(8, 2), z.roll(32, 2)):
        assert abs(float((z * other).sum())) < 5 * p * (1 - p) * math.sqrt(n)


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 2, 31), (3, 1, 32), (2, 2, 33), (2, 3, 100),
                                   (0, 3, 5), (2, 0, 5), (2, 3, 0), (5, 40, 300)])
def test_bits_are_those_of_pack_spikes(shape: tuple[int, ...]) -> None:
    """Bits beyond the last neuron included; the last shape is drawn in parts."""
    packed = functional.poisson(torch.full(shape, 0.4), 70)
    assert packed.shape == (70 * shape[0], *shape[1:])
    again = functional.pack_spikes(packed.numbers())
    assert torch.equal(packed.bits, again.bits) and packed.bits.dtype == torch.int32
    assert packed.carrier.untyped_storage().nbytes() <= 8


def test_the_generator_decides() -> None:
    rates = torch.full((3, 4, 50), 0.3)
    assert torch.equal(_numbers(rates, 10, 1), _numbers(rates, 10, 1))
    assert not torch.equal(_numbers(rates, 10, 1), _numbers(rates, 10, 2))
    torch.manual_seed(5)
    first = functional.poisson(rates).bits
    torch.manual_seed(5)
    assert torch.equal(first, functional.poisson(rates).bits)


@pytest.mark.parametrize(("rates", "hold", "said"), [
    ([0.5], 1, "rates: expected a floating point tensor, got list"),
    (torch.ones(1, 1, 1, dtype=torch.int64), 1, "rates: expected .*got torch.int64"),
    (torch.ones(2, 3), 1, r"rates: expected shape \(S, B, I\), got \(2, 3\)"),
    (torch.full((1, 1, 1), 1.5), 1, "rates: expected probabilities from 0 to 1"),
    (torch.full((1, 1, 1), -0.1), 1, "rates: expected probabilities from 0 to 1"),
    (torch.full((1, 1, 1), float("nan")), 1, "rates: expected probabilities from 0 to 1"),
    (torch.ones(1, 1, 1), 0, "hold: expected a whole number >= 1, got 0"),
    (torch.ones(1, 1, 1), 2.0, "hold: expected a whole number >= 1, got 2.0"),
    (torch.ones(1, 1, 1, requires_grad=True), 1,
     "rates: expected a tensor that does not require grad")])
def test_bad_arguments_are_named(rates: Any, hold: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        functional.poisson(rates, hold)
