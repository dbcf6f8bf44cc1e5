"""Where a surrogate without an end gets one: surrogate_cutoff of functional.alif."""
import math
from collections.abc import Callable

LARGEST = 0.01  # share of the height; beyond, a cutoff would be another surrogate


def _density(m: float) -> float:
    return math.exp(-m * m / 2)


def _valleys(m: float) -> float:
    """|psi| of multi_gaussian as a share of its height; it falls from 10 on, where the hill is
    gone."""
    def psi(m: float) -> float:
        return 1.15 * _density(m) - 0.025 * (_density((m - 1) / 6) + _density((m + 1) / 6))
    return abs(psi(m)) / psi(0.0)


def _bisected(c: float) -> float:
    below, above = 10.0, 1000.0
    while above - below > 1e-12 * above:
        middle = (below + above) / 2
        below, above = (middle, above) if _valleys(middle) > c else (below, middle)
    return above


# From the share c of the height to the |m| beyond which psi is smaller.
_ENDS: dict[str, Callable[[float], float]] = {
    "fast_sigmoid": lambda c: 1 / math.sqrt(c) - 1,
    "arctan": lambda c: math.sqrt(1 / c - 1),
    "sigmoid": lambda c: math.acosh(2 / c - 1),
    "exponential": lambda c: -math.log(c),
    "gaussian": lambda c: math.sqrt(-2 * math.log(c)),
    "multi_gaussian": _bisected,
}


def cutoff_of(surrogate: str, share: float, smooth: bool) -> float:
    """The |m| from which on psi of this surrogate counts as 0; infinity where the share of its
    height is 0. Raises TypeError or ValueError naming surrogate_cutoff."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"surrogate_cutoff: expected a number, got {type(share).__name__}")
    if not 0 <= share <= LARGEST:
        raise ValueError(f"surrogate_cutoff: expected a share of the surrogate's height from 0 to "
                         f"{LARGEST}, got {share}")
    if share == 0:
        return math.inf
    if surrogate not in _ENDS:
        raise ValueError(f"surrogate_cutoff: expected 0 with surrogate {surrogate!r}, which has an "
                         f"end of its own, got {share}")
    if smooth:
        raise ValueError(f"surrogate_cutoff: expected 0 with smooth=True, whose gradient is that "
                         f"of what it computes, got {share}")
    return _ENDS[surrogate](share)
