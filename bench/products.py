"""The backward product of a step, by each algorithm and as the kernels choose.

    python -m bench.products          # times the grid, in about a minute, and prints what is lost
    python -m bench.products --fit    # also fits the constants of csrc/cpu/costs.h
    python -m bench.products --out products.csv

One thread; LSNN_CPU selects the instruction set. The loss is the time of the chosen algorithm over
that of the fastest one. Times are those of the kernels' counters, the least of four rounds.
"""
import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch

from bench import machine
from bench.arguments import make_parser
from bench.tables import write_csv
from lsnn_ext import _ops, functional
from lsnn_ext.tools.passes import counting

SIZES = 32, 64, 128, 220, 512, 1024
TILES = {1: 1, 2: 4, 4: 8, 16: 32}  # items of a tile, and a batch that has such tiles
SHARES = 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0
DENSITIES = 0.02, 0.05, 0.1, 0.2, 0.4, 1.0
ALGORITHMS = "dense", "active", "sparse"
CHOSEN = "automatic"


@dataclass
class Point:
    """One case: ns of a step and tile by each algorithm, and as the kernels choose."""

    N: int
    items: int  # of a tile
    density: float  # share of the weights that are not 0
    share: float  # of active neurons, as measured
    dense: float
    active: float
    sparse: float  # nan: not measured, since no weight is 0
    automatic: float
    chosen: str  # the algorithm of most steps

    def times(self) -> dict[str, float]:
        """Returns ns of the algorithms that were measured."""
        found = {name: float(getattr(self, name)) for name in ALGORITHMS}
        return {name: ns for name, ns in found.items() if not math.isnan(ns)}

    def loss(self) -> float:
        """Returns the time as chosen by that of the fastest algorithm; noise may make it < 1."""
        return self.automatic / min(self.times().values())


def measure(N: int, items: int, density: float, share: float, dtype: torch.dtype) -> Point:
    """Runs each algorithm in turns, and keeps the least time."""
    B = TILES[items]
    T = max(12, min(200, int(2e7 / (N * N * B))))
    torch.manual_seed(0)
    # no memory and almost no weights: current and threshold determine which neurons are active
    x = torch.where(torch.rand(T, B, N) < share, 0.2 + 1.6 * torch.rand(T, B, N), -5.0)
    w = torch.where(torch.rand(N, N) < density, 1e-6, 0.0)
    x, w = (one.to(dtype).requires_grad_() for one in (x, w))
    ns = dict.fromkeys((*ALGORITHMS, CHOSEN), math.inf)
    if density == 1:
        ns["sparse"] = math.nan
    active, chosen = 0.0, ""
    for _ in range(4):
        for algorithm in (name for name in ns if not math.isnan(ns[name])):
            with _ops.forced(product=algorithm), counting():
                z = functional.alif(x, w, alpha=1e-3, rho=0.9, beta=0.1, theta=1.0)[0]
                _ops._C.counters()
                z.backward(torch.ones_like(z))
                counted = _ops._C.counters()
            steps = {kind: counted[f"product_steps_{kind}"] for kind in ALGORITHMS}
            ns[algorithm] = min(ns[algorithm], sum(
                counted[f"ns_product_{kind}"] for kind in ALGORITHMS) / sum(steps.values()))
            active = counted["active"] / counted["replayed"]
            chosen = max(ALGORITHMS, key=steps.__getitem__)  # of the last one, CHOSEN
            x.grad = w.grad = None
    return Point(N, items, density, active, **ns, chosen=chosen)


def find_terms(point: Point, algorithm: str, lanes: int, overhead: float) -> list[float]:
    """Returns the terms of ProductCosts in csrc/cpu/costs.h that its constants multiply, for one
    neuron; the test compares the choice that they lead to with that of the kernels."""
    vectors = -(-point.N // 16) * 16 / lanes
    any_active = 1 - (1 - point.share) ** point.items
    if algorithm == "dense":
        return [vectors * point.items, vectors * overhead]
    if algorithm == "active":
        items = point.share * point.items
        return [any_active * vectors * overhead, any_active * overhead, items * vectors,
                items * overhead, overhead]
    return [overhead * any_active * point.density * point.N, overhead * any_active,
            overhead * any_active * point.items, overhead]


# The constants of costs.h, in the order of the terms; of the first one the unit.
NAMES = {"dense": ("", "dense_load"),
         "active": ("active_load", "active_row", "active_vector", "lane_sum", "sort"),
         "sparse": ("synapse", "sparse_row", "write", "test")}


def find_vector(dtype: torch.dtype) -> tuple[int, float]:
    """Returns the numbers in a vector of the instruction set, and the factor of the overhead."""
    size = {"avx512": 64, "avx2": 32}.get(_ops._C.instruction_set(), 16)
    return size // dtype.itemsize, 64 / size


def fit(points: Sequence[Point], lanes: int, overhead: float) -> dict[str, float]:
    """Returns the constants by least squares of relative errors, in units of a vector FMA of the
    dense product, and "" of that unit in ns."""
    found: dict[str, float] = {}
    for algorithm, names in NAMES.items():
        those = [point for point in points if algorithm in point.times()]
        ns = np.array([point.times()[algorithm] / point.N for point in those])
        terms = np.array([find_terms(point, algorithm, lanes, overhead) for point in those])
        solved = np.linalg.lstsq(terms / ns[:, None], np.ones(len(ns)), rcond=None)[0]
        if algorithm == "dense":
            found[""] = float(solved[0])
        found |= {name: float(one) / found[""] for name, one in zip(names, solved, strict=True)
                  if name}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("bench.products", __doc__)
    parser.add_argument("--fit", action="store_true", help="fit the constants")
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of neurons")
    parser.add_argument("--out", type=Path, help="a CSV file for the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dtype = torch.float64 if options.double else torch.float32
    points = []
    print("N items density share dense active sparse chosen ns  loss")
    for N in options.sizes:
        for items in TILES:
            for density in DENSITIES:
                for share in SHARES if density == 1 else (0.05, 0.3, 1.0):
                    point = measure(N, items, density, share, dtype)
                    points.append(point)
                    times = " ".join(f"{ns:.0f}" for ns in astuple(point)[4:8])
                    print(f"{N} {items} {density:g} {point.share:.2f} {times} {point.loss():.2f}")
    losses = [point.loss() for point in points]
    print(f"{len(points)} points, {_ops._C.instruction_set()}, {dtype}: "
          f"{statistics.geometric_mean(losses) - 1:.1%} lost on average, {max(losses):.2f} times "
          f"the fastest at worst")
    if options.fit:
        print(", ".join(f"{name or 'a vector FMA, ns'} {one:.2f}"
                        for name, one in fit(points, *find_vector(dtype)).items()))
    if options.out:
        facts = machine.facts(machine.command("bench.products", arguments))
        print(f"wrote {write_csv(options.out, facts, Point, points)}")


if __name__ == "__main__":
    main()
