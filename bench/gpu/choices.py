"""Each possible route of a layer, forced, against the one that the plan selects.

    python -m bench.gpu.choices --csv choices.csv --seconds 900

Writes the milliseconds of each route, the regret of the plan, that is how much longer its choice
takes than the fastest route, and for each route the factor by which its formula (csrc/cuda/costs.h)
is off, relative to the others: a least-squares fit of logarithms. The regret with these factors
shows what they would gain.
"""
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.arguments import make_parser
from bench.contestants import OURS, Contestant, Within
from bench.gpu.contestants import make
from bench.gpu.layers import Bench, find_plan, forced
from bench.gpu.suite import PRECISIONS
from bench.measure import alternate
from bench.problem import Problem, Shape
from bench.rates import BASE_RATE
from bench.tables import MEASUREMENTS, write_table
from lsnn_ext import _ops

STEPS, INPUTS = 200, 80
BATCHES, NEURONS = (256, 1, 128, 64, 512, 16, 248), (220, 512, 1024, 128, 256, 448)
DIRECTIONS = "forward", "backward"
ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """One direction of a route on a layer."""

    layer: str
    direction: str
    route: str  # by its name in _C.plan
    ms: float
    cost: float  # of the plan
    is_chosen: bool = False


def fit_factors(timings: Iterable[Timing]) -> dict[tuple[str, str], float]:
    """By direction and route: measured over planned cost, relative to the geometric mean of all
    routes of the direction. The least-squares fit of log ms = log cost + log factor + constant."""
    logs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in timings:
        if one.ms > 0 and one.cost > 0:
            logs[one.direction, one.route].append(math.log(one.ms / one.cost))
    means = {key: statistics.fmean(values) for key, values in logs.items()}
    centers = {direction: statistics.fmean(mean for (of, _), mean in means.items()
                                           if of == direction)
               for direction, _ in means}
    return {key: math.exp(mean - centers[key[0]]) for key, mean in means.items()}


def find_regrets(timings: Sequence[Timing],
                 factors: dict[tuple[str, str], float] | None = None) -> list[tuple[str, float]]:
    """For each layer and direction: the time of the choice over that of the fastest route. factors:
    of the costs; None: the choice of the plan."""
    found = []
    for layer, direction in dict.fromkeys((one.layer, one.direction) for one in timings):
        routes = [one for one in timings if (one.layer, one.direction) == (layer, direction)]
        if factors is None:
            choice = next((one for one in routes if one.is_chosen), None)
        else:
            choice = min(routes, key=lambda one: one.cost * factors.get((direction, one.route), 1))
        if choice is not None:
            found.append((f"{layer} {direction}", choice.ms / min(one.ms for one in routes)))
    return found


def _plan(B: int, N: int, options: dict[str, str], device: str | None = None) -> dict[str, Any]:
    with _ops.forced(**options):
        return find_plan(STEPS, B, N, device)


def find_routes(B: int, N: int, device: str | None = None,
                ) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Options that force different kernels, and the route of each direction; the plan's own choice
    is the first. Routes that are not enabled, because they round, are left out."""
    automatic = {"design": "automatic", "kernels": "automatic"}
    chosen = _plan(B, N, automatic, device)
    costs = {of: _costs(chosen[of]) for of in DIRECTIONS}
    found = [(automatic, {of: str(chosen[of]["route"]) for of in DIRECTIONS})]
    for kernels in _ops._C.kernels[1:]:
        for design in _ops._C.designs[1:]:
            options = {"design": design, "kernels": kernels}
            try:
                forced_plan = _plan(B, N, options, device)
            except ValueError:  # the design cannot run this layer
                continue
            routes = {of: str(forced_plan[of]["route"]) for of in DIRECTIONS}
            known = all(routes[of] in costs[of] for of in DIRECTIONS)
            if known and routes not in [other for _, other in found]:
                found.append((options, routes))
    return found


def _costs(launch: dict[str, Any]) -> dict[str, float]:
    return {name: cost for name, cost in launch["considered"].items() if isinstance(cost, float)}


def time_layer(bench: Bench, problem: Problem, B: int, N: int, precision: str,
               seconds: float) -> list[Timing]:
    """All routes of a layer, which alternate."""
    routes, layer = find_routes(B, N), f"N={N} B={B} {precision}"
    costs = {of: _costs(_plan(B, N, routes[0][0])[of]) for of in DIRECTIONS}
    contestants: list[Contestant] = [
        Within(make(OURS, "float32", problem), partial(_ops.forced, **options))
        for options, _ in routes]
    times = alternate(contestants, ROUNDS, seconds / len(routes), 2, bench._ms, steady=0.0)
    found: dict[tuple[str, str], Timing] = {}
    for k, ((_, names), (forward, both)) in enumerate(zip(routes, times, strict=True)):
        ms = statistics.median(forward), statistics.median(both) - statistics.median(forward)
        for of, value in zip(DIRECTIONS, ms, strict=True):
            if names[of] in costs[of]:
                found.setdefault((of, names[of]), Timing(layer, of, names[of], value,
                                                         costs[of][names[of]], k == 0))
    return list(found.values())


def rows_of(timings: Sequence[Timing]) -> Iterable[tuple[str, str, float, str]]:
    for one in timings:
        yield ("route", f"{one.layer} {one.direction} {one.route}" + " (chosen)" * one.is_chosen,
               one.ms, "ms")
    factors = fit_factors(timings)
    for (direction, route), factor in factors.items():
        yield "factor of a formula", f"{direction} {route}", factor, "measured/planned"
    for kind, regrets in (("regret", find_regrets(timings)),
                          ("regret with the factors", find_regrets(timings, factors))):
        for name, ratio in regrets:
            yield kind, name, ratio, "of the fastest"
        if regrets:
            yield (kind, "geometric mean",
                   statistics.geometric_mean(max(ratio, 1e-9) for _, ratio in regrets),
                   "of the fastest")


def main(arguments: list[str] | None = None) -> int:
    """Measures until the time is over; 2 without a device."""
    parser = make_parser("bench.gpu.choices", __doc__)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=900.0)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"bench.gpu.choices: torch {torch.__version__} sees no CUDA device")
        return 2
    device, deadline = torch.device("cuda", 0), time.monotonic() + given.seconds
    shapes = {f"{N} {B}": Shape(STEPS, B, INPUTS, N) for N in NEURONS for B in BATCHES}
    bench, timings = Bench(device, deadline, lambda row: None, shapes), list[Timing]()
    for number, (name, shape) in enumerate(shapes.items()):
        if time.monotonic() > deadline:
            print(f"no time for {len(shapes) - number} of {len(shapes)} layers")
            break
        problem = bench.problem(name).scaled(bench.scale(name, BASE_RATE)[0])
        for precision in PRECISIONS:
            left = (deadline - time.monotonic()) / len(PRECISIONS) / (len(shapes) - number)
            with forced(precision):
                timings += time_layer(bench, problem, shape.B, shape.N, precision, max(left, 1))
        # what is known is kept if the rest is cut off
        write_table(given.csv, MEASUREMENTS, rows_of(timings))
    return 0 if timings else 1


if __name__ == "__main__":
    sys.exit(main())
