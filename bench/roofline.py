"""The limits of this machine, measured by operations of torch that reach them, and what they say about a layer.

The bound of a yardstick's forward+backward is the larger of two times, as if both ran at once:

* arithmetic: the backward product dL/dz[t] = W dL/dc[t+1], 2 T B N^2 flops if it is done densely, at the rate of a
  large float32 matrix product.  Only neurons whose pseudo-derivative is not 0 make use of it: a pass that leaves out
  the others needs their share of the flops only: the second, lower bound.
* bytes: what must come from memory or go there once, at the bandwidths of a large sum and a large fill.  Read: input
  spikes (in both passes), the gradient from outside, membranes and spike bits that were saved.  Written: the spikes
  as float32, membranes and spike bits.  What fits into the caches may move faster.

Not counted, so a real pass has more to do: the sums over events (spikes times rows of weights, forward, and the
gradients of both weights), which are given apart; the neurons' own equations; and that steps follow each other.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.measure import PASSES, Result

FLOAT = 4  # bytes
SAVED = FLOAT + 1 / 8  # the membrane and a bit for the spike


@dataclass
class Rate:
    """What this machine reaches, with the threads of the run."""

    what: str
    value: float
    unit: str
    how: str


@dataclass
class Bound:
    """One yardstick against the limits; ours is the forward+backward at the base rate."""

    yardstick: str
    product_gflop: float
    active_share: float  # percent
    events_gflop: float
    read_mb: float
    written_mb: float
    dense_ms: float  # the product alone
    active_ms: float  # the product for active rows alone
    events_ms: float  # not part of the bounds
    bytes_ms: float
    bound_dense_ms: float
    bound_active_ms: float
    ours_ms: float
    ours_by_dense: float
    ours_by_active: float


def rates(repeats: int = 7, mm_size: int = 1536, megabytes: int = 256) -> list[Rate]:
    """Multiply-adds, reads and writes of this machine: the best of several."""
    a, b = torch.randn(mm_size, mm_size), torch.randn(mm_size, mm_size)
    out = torch.empty(mm_size, mm_size)
    big = torch.ones(megabytes * 1_000_000 // FLOAT)  # touched here, so that no page is new when it is timed
    nbytes = big.numel() * FLOAT
    mm = _best(lambda: torch.mm(a, b, out=out), repeats)
    read = min(_best(lambda: torch.sum(big), repeats), _best(lambda: torch.dot(big, big), repeats))
    write = _best(lambda: big.fill_(0.5), repeats)
    return [
        Rate("fma", 2 * mm_size**3 / mm / 1e9, "Gflop/s", f"torch.mm of {mm_size} x {mm_size}, an fma being 2 flops"),
        Rate("read", nbytes / read / 1e9, "GB/s", f"torch.sum or torch.dot of {megabytes} MB"),
        Rate("write", nbytes / write / 1e9, "GB/s", f"fill_ of {megabytes} MB"),
    ]


def _best(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def bounds(results: list[Result], measured: list[Rate]) -> list[Bound]:
    """The bound of each yardstick, from the line of ours that ratios refer to."""
    return [bound(r, measured) for r in results if r.base and r.timed == PASSES[1]]


def bound(ours: Result, measured: list[Rate]) -> Bound:
    """How near this line is to what the machine can do."""
    rate = {r.what: r.value * 1e9 for r in measured}
    T, B, I, N = ours.T, ours.B, ours.I, ours.N  # noqa: E741
    steps, share = T * B * N, ours.active_share / 100
    product = 2.0 * steps * N
    # Each event adds a row of N numbers, forward and for the weight's gradient; an addition takes the place of an fma.
    per_step = 2 * (ours.rate_measured / 100 * N + ours.input_rate / 100 * I)
    events = 2.0 * steps * per_step
    read = T * B * I * FLOAT * 2 + steps * (FLOAT + SAVED)
    written = steps * (FLOAT + SAVED)
    dense, active = product / rate["fma"], product * share / rate["fma"]
    moved = read / rate["read"] + written / rate["write"]
    best, best_active = max(dense, moved), max(active, moved)
    ms = ours.median_ms
    return Bound(ours.yardstick, product / 1e9, ours.active_share, events / 1e9, read / 1e6, written / 1e6, 1e3 * dense,
                 1e3 * active, 1e3 * events / rate["fma"], 1e3 * moved, 1e3 * best, 1e3 * best_active, ms,
                 ms / (1e3 * best), ms / (1e3 * best_active))
