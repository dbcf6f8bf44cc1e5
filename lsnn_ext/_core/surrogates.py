"""The surrogates psi(m) of equation (7) in plain torch, and the cutoffs of surrogate_cutoff."""
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .torch_internals import mark_constant

# A share of the height. A larger one would be another surrogate.
LARGEST_CUTOFF = 0.01


class Surrogate(NamedTuple):
    """A surrogate, dz/dm := dampening * psi(m); its integral rises from 0 or 1/2."""

    psi: Callable[[Tensor], Tensor]
    integral: Callable[[Tensor], Tensor]
    has_bounded_support: bool = False  # psi is 0 beyond some |m|; as in csrc/surrogate.h


def _density(m: Tensor) -> Tensor:
    return torch.exp(-m * m / 2) / math.sqrt(2 * math.pi)


def _cumulative(m: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.erf(m / math.sqrt(2.0))


def _triangle_integral(m: Tensor) -> Tensor:
    inside = m.clamp(-1, 1)
    return 0.5 + inside - inside * inside.abs() / 2


SURROGATES: dict[str, Surrogate] = {
    "triangle": Surrogate(lambda m: torch.relu(1 - m.abs()), _triangle_integral,
                          has_bounded_support=True),
    "boxcar": Surrogate(lambda m: ((m > -0.5) & (m <= 0.5)).to(m.dtype),
                        lambda m: m.clamp(-0.5, 0.5) + 0.5, has_bounded_support=True),
    "fast_sigmoid": Surrogate(lambda m: 1 / ((1 + m.abs()) * (1 + m.abs())),
                              lambda m: 1 + m / (1 + m.abs())),
    "arctan": Surrogate(lambda m: 1 / (1 + m * m), lambda m: math.pi / 2 + torch.atan(m)),
    "sigmoid": Surrogate(lambda m: torch.sigmoid(m) * torch.sigmoid(-m), torch.sigmoid),
    "exponential": Surrogate(lambda m: torch.exp(-m.abs()),
                             lambda m: 1 - torch.sign(m) * torch.expm1(-m.abs())),
    "gaussian": Surrogate(_density, _cumulative),
    # A bell of width 1 minus two low ones of width 6 at -1 and 1 (Yin et al.), each of area
    # 0.15 = 0.025 * 6.
    "multi_gaussian": Surrogate(
        lambda m: 1.15 * _density(m) - 0.025 * (_density((m - 1) / 6) + _density((m + 1) / 6)),
        lambda m: 1.15 * _cumulative(m) - 0.15 * (_cumulative((m - 1) / 6)
                                                  + _cumulative((m + 1) / 6))),
}


def find_cutoff(surrogate: str, share: float, smooth: bool) -> float:
    """The |m| beyond which psi counts as 0; the largest float where the share of its height is 0,
    since AOTInductor reads no infinity. Raises TypeError or ValueError naming surrogate_cutoff."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"surrogate_cutoff: expected a number, got {type(share).__name__}")
    if not 0 <= share <= LARGEST_CUTOFF:
        raise ValueError(f"surrogate_cutoff: expected a share of the surrogate's height from 0 to "
                         f"{LARGEST_CUTOFF}, got {share}")
    if share == 0:
        return 1.7976931348623157e308  # a literal: torch.compile makes a variable of any other
    if SURROGATES[surrogate].has_bounded_support:
        raise ValueError(f"surrogate_cutoff: expected 0 with surrogate {surrogate!r}, which has "
                         f"bounded support, got {share}")
    if smooth:
        raise ValueError(f"surrogate_cutoff: expected 0 with smooth=True, whose gradient is "
                         f"exact, got {share}")
    return _find_end(surrogate, share)


def _find_end(surrogate: str, share: float) -> float:
    return _search_end(surrogate, share)


mark_constant(_find_end)


@functools.lru_cache
def _search_end(surrogate: str, share: float) -> float:
    """The |m| beyond which |psi| is smaller than this share of its height.

    The search starts from large |m|: psi may also be small further in, as where multi_gaussian
    changes its sign.
    """
    psi = SURROGATES[surrogate].psi

    def is_small(m: float) -> bool:
        hill, here = psi(torch.tensor([0.0, m], dtype=torch.float64, device="cpu")).abs().tolist()
        return bool(here < share * hill)

    above = 2.0**500
    while is_small(above / 2):
        above /= 2
    below = above / 2
    while above - below > 1e-12 * above:
        middle = (below + above) / 2
        below, above = (below, middle) if is_small(middle) else (middle, above)
    return above
