"""Ours while one thing changes and all else stays: what the cost grows with, and how fast."""
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from bench.contestants import OURS, Contestant, Ours, TorchContestant, Within, make, warm_up
from bench.limits import NO_LIMITS, Limits
from bench.measure import PASSES, Say, alternate, quartiles
from bench.problem import Problem, Shape
from bench.rates import BASE_RATE, LONG_ENOUGH, active_share, find_scale

BASE = Shape(250, 32, 80, 256)


class Kind(NamedTuple):
    """What one sweep varies, and how its plot is read."""

    values: tuple[float, ...]
    title: str
    label: str
    log: bool  # on logarithmic axes, with the exponent as slope; else ms per unit


KINDS = {
    "N": Kind((32, 64, 128, 256, 512, 1024, 2048), "the number of neurons", "neurons N", True),
    "B": Kind((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024), "the batch size", "batch items B",
              True),
    "T": Kind((50, 100, 200, 400, 800, 1600, 3200, 6400), "the number of steps", "steps T", True),
    "rate": Kind((0.5, 1, 2, 3, 5, 7, 10, 15, 20), "the firing rate",
                 "neurons that fire in a step, %", False),
    "active": Kind((0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 4, 50), "the share of active neurons",
                   "neuron-steps with a surrogate that is not 0, %", False),
    "threads": Kind((), "the number of threads", "threads", True),  # values follow from the machine
}


@dataclass
class Point:
    """One line of a sweep's CSV."""

    sweep: str
    value: float  # what is varied; of `active` the width of the surrogate
    x: float  # what it is plotted over: the value, or what was measured
    T: int
    B: int
    I: int
    N: int
    rate_measured: float  # percent
    active_share: float  # percent
    timed: str = ""
    median_ms: float = math.nan
    min_ms: float = math.nan
    q1_ms: float = math.nan
    q3_ms: float = math.nan
    repeats: int = 0
    threads: int = 0


@contextmanager
def _on_threads(threads: int) -> Iterator[None]:
    torch.set_num_threads(threads)
    yield


def thread_counts(most: int) -> tuple[float, ...]:
    """Powers of two up to the most, and the most itself."""
    return tuple(sorted({2**k for k in range(most.bit_length())} | {most}))


def sweep(name: str, base: Shape = BASE, *, repeats: int, limits: Limits = NO_LIMITS,
          values: Sequence[float] | None = None, say: Say = print) -> list[Point]:
    """Time ours at each value; all values alternate in one run.

    One that needs too much memory is left out, aloud.
    """
    most = torch.get_num_threads()
    if values is None:
        values = thread_counts(most) if name == "threads" else KINDS[name].values
    say(f"sweep of {name}: {base}, {len(values)} values")
    warm_up(OURS, Problem.of(base._replace(T=4)))
    made = []
    for value in values:
        shape = base._replace(**{name: int(value)}) if name in Shape._fields else base
        # Saved, outputs, currents and their gradients, and what Problem and the cache of blocks
        # hold.
        needed = 40.0 * shape.T * shape.B * shape.N + 8.0 * shape.T * shape.B * shape.I
        if needed > limits.bytes:
            say(f"  left out {name}={value:g}: would need about {needed / 1e9:.1f} GB")
        else:
            made.append(_make(name, value, shape))
    try:
        times = alternate([contestant for contestant, _ in made], repeats, limits.seconds)
    finally:
        torch.set_num_threads(most)
    points = []
    for (_, point), both in zip(made, times, strict=True):
        for timed, ms in zip(PASSES, both, strict=True):
            q1, median, q3 = quartiles(ms)
            points.append(replace(point, timed=timed, median_ms=median, min_ms=min(ms), q1_ms=q1,
                                  q3_ms=q3, repeats=len(ms)))
    return points


def _make(name: str, value: float, shape: Shape) -> tuple[Contestant, Point]:
    problem = Problem.of(shape)
    requested = (value if name == "rate" else BASE_RATE) / 100
    scale, rate = find_scale(problem.first(LONG_ENOUGH), requested)
    problem = problem.scaled(scale)
    width = value if name == "active" else 1.0
    share = active_share(problem.first(LONG_ENOUGH), width)
    contestant: Contestant = make(OURS, problem)
    threads = torch.get_num_threads()
    if name == "active":  # the spikes stay the same, the share of active rows does not
        with warnings.catch_warnings(action="ignore"):  # of gradients that explode
            contestant = TorchContestant(OURS, Ours(problem, width=width), problem)
    elif name == "threads":
        threads = int(value)
        contestant = Within(contestant, partial(_on_threads, threads))
    x = {"rate": 100 * rate, "active": 100 * share}.get(name, value)
    return contestant, Point(name, value, x, *shape, 100 * rate, 100 * share, threads=threads)


def slope(points: Sequence[Point], timed: str) -> float:
    """The exponent of the time in x over the larger half of the values, or for rate and active ms
    per percent.

    Small sizes cost what a call costs; what grows is seen in the larger half.
    """
    chosen = sorted((p for p in points if p.timed == timed), key=lambda p: p.x)
    log = KINDS[chosen[0].sweep].log
    if log and len(chosen) > 3:
        chosen = chosen[len(chosen) // 2 - 1:]
    if len({p.x for p in chosen}) < 2:
        return math.nan
    scale = math.log if log else float
    return statistics.linear_regression([scale(p.x) for p in chosen],
                                        [scale(p.median_ms) for p in chosen]).slope


def slope_text(points: Sequence[Point], timed: str) -> str:
    value = slope(points, timed)
    kind = KINDS[points[0].sweep]
    if math.isnan(value):
        return "no slope: one value only"
    return f"~ {points[0].sweep}^{value:.2f}" if kind.log else f"{value:+.3f} ms per percent"
