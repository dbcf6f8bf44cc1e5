"""How often a layer fires: the scale of its input weights sets the rate."""
import math
from collections.abc import Callable

import torch
from torch import Tensor

from bench.contestants import OURS, make
from bench.problem import COEFFICIENTS, Problem
from lsnn_ext import functional

BASE_RATE = 2.0  # percent: the firing rate of ours that ratios refer to
MOST_TRIALS = 30  # of bisect_scale
LONG_ENOUGH = 2000  # steps after which a longer sequence would not tell another firing rate


def active_share(problem: Problem, width: float = 1.0) -> float:
    """Share of the neuron-steps whose surrogate is not 0: only there the backward product is of
    use."""
    with torch.no_grad():
        current = functional.linear(problem.x, problem.w_in)
        *_, traces = functional.alif(current, problem.w_rec, **COEFFICIENTS, width=width,
                                     trace=True)
    # `lsnn` tests the old membrane
    before = torch.cat([torch.zeros_like(traces.v[:1]), traces.v[:-1]])
    return float(((before - traces.threshold).abs() < width * traces.threshold).float().mean())


def firing_rate(spikes: Tensor) -> float:
    """Spikes per neuron-step."""
    return float((spikes != 0).float().mean())


def find_scale(problem: Problem, rate: float, tolerance: float = 0.02,
               name: str = OURS) -> tuple[float, float]:
    """The scale of the input weights at which it fires at this rate, and the rate it gives."""
    return bisect_scale(lambda scale: firing_rate(make(name, problem.scaled(scale)).forward()),
                        rate, tolerance)


def bisect_scale(rate_of: Callable[[float], float], rate: float,
                 tolerance: float = 0.02) -> tuple[float, float]:
    """The scale whose firing rate is nearest to this one, and the rate it gives: bisection of the
    logarithm, until the rate differs by this share or MOST_TRIALS are over."""
    best = (1.0, 0.0)
    low, high = 0.0, math.inf
    scale = 1.0
    for _ in range(MOST_TRIALS):
        got = rate_of(scale)
        if abs(got - rate) <= abs(best[1] - rate):
            best = (scale, got)
        if abs(got / rate - 1) <= tolerance:
            break
        low, high = (scale, high) if got < rate else (low, scale)
        scale = 4 * low if high == math.inf else high / 4 if low == 0 else math.sqrt(low * high)
    return best
