"""The backward product of a step, by each algorithm and as the kernels choose.

    python -m bench.products          # times the grid, in about a minute, and prints what is lost
    python -m bench.products --fit    # also fits the constants of csrc/cpu/costs.h

One thread; LSNN_CPU selects the instruction set. The loss is the time of the chosen algorithm over
that of the fastest one.
"""
import argparse
import math
from typing import NamedTuple

import numpy as np
import torch

from lsnn_ext import _ops, functional
from lsnn_ext.tools.profiler import counting

SIZES = 32, 64, 128, 220, 512, 1024
TILES = {1: 1, 2: 4, 4: 8, 16: 32}  # items of a tile, and a batch that has such tiles
SHARES = 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0
DENSITIES = 0.02, 0.05, 0.1, 0.2, 0.4, 1.0
ALGORITHMS = "dense", "active", "sparse"
CHOSEN = "automatic"


class Point(NamedTuple):
    """One case; share: of active neurons, as measured; ns: of a step and tile, by algorithm."""

    N: int
    items: int
    density: float
    share: float
    ns: dict[str, float]

    def loss(self) -> float:
        return self.ns[CHOSEN] / min(self.ns.values())


def measure(N: int, items: int, density: float, share: float, dtype: torch.dtype) -> Point:
    """Runs each algorithm in turns, and keeps the least time."""
    B = TILES[items]
    T = max(12, min(200, int(2e7 / (N * N * B))))
    torch.manual_seed(0)
    # no memory and almost no weights: current and threshold determine which neurons are active
    x = torch.where(torch.rand(T, B, N) < share, 0.2 + 1.6 * torch.rand(T, B, N), -5.0)
    w = torch.where(torch.rand(N, N) < density, 1e-6, 0.0)
    x, w = (one.to(dtype).requires_grad_() for one in (x, w))
    found: dict[str, list[float]] = {}
    active = 0.0
    for _ in range(4):
        for algorithm in (*ALGORITHMS, CHOSEN):
            if algorithm == "sparse" and density == 1:
                continue
            with _ops.forced(product=algorithm), counting():
                z = functional.alif(x, w, alpha=1e-3, rho=0.9, beta=0.1, theta=1.0)[0]
                _ops._C.counters()
                z.backward(torch.ones_like(z))
                counted = _ops._C.counters()
            ns, steps = (sum(counted[f"{what}_{kind}"] for kind in ALGORITHMS)
                         for what in ("ns_product", "product_steps"))
            found.setdefault(algorithm, []).append(ns / steps)
            active = counted["active"] / counted["replayed"]
            x.grad = w.grad = None
    return Point(N, items, density, active, {name: min(ns) for name, ns in found.items()})


def features(point: Point, algorithm: str, lanes: int, overhead: float) -> list[float]:
    """The terms of ProductCosts, whose constants are to be found."""
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


NAMES = {"dense": ("a vector of an item", "dense_load"),
         "active": ("active_load", "active_row", "active_vector", "lane_sum", "sort"),
         "sparse": ("synapse", "sparse_row", "write", "test")}


def fit(points: list[Point], dtype: torch.dtype) -> None:
    """Least squares of relative errors, in units of a vector FMA of the dense product."""
    vector = {"avx512": 64, "avx2": 32}.get(_ops._C.instruction_set(), 16)
    lanes, overhead, unit = vector // dtype.itemsize, 64 / vector, 1.0
    for algorithm, names in NAMES.items():
        those = [point for point in points if algorithm in point.ns]
        ns = np.array([point.ns[algorithm] / point.N for point in those])
        terms = np.array([features(point, algorithm, lanes, overhead) for point in those])
        found = np.linalg.lstsq(terms / ns[:, None], np.ones(len(ns)), rcond=None)[0]
        if algorithm == "dense":
            unit = float(found[0])
            print(f"a vector FMA: {unit:.3f} ns")
        print(algorithm, ", ".join(f"{name} {one / unit:.2f}"
                                   for name, one in zip(names, found, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the constants")
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of neurons")
    options = parser.parse_args()
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
                    times = " ".join(f"{point.ns.get(name, math.nan):.0f}"
                                     for name in (*ALGORITHMS, CHOSEN))
                    print(f"{N} {items} {density:g} {point.share:.2f} {times} {point.loss():.2f}")
    losses = sorted(point.loss() for point in points)
    mean = math.exp(sum(map(math.log, losses)) / len(losses))
    print(f"{len(points)} points, {_ops._C.instruction_set()}, {dtype}: {mean - 1:.1%} lost on "
          f"average, {losses[-1]:.2f} times the fastest at worst")
    if options.fit:
        fit(points, dtype)


if __name__ == "__main__":
    main()
