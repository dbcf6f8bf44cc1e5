"""The limits of this machine, measured by operations of torch that reach them, and what they say
about a layer.

The bound of a yardstick's forward+backward is the larger of two times, as if both ran at once:

* arithmetic: the backward product dL/dz[t] = W dL/dc[t+1], 2 T B N^2 flops if it is done densely,
  at the rate of a large float32 matrix product. Only neurons whose surrogate is not 0 make
  use of it: a pass that leaves out the others needs their share of the flops only: the second,
  lower bound.
* bytes: what must come from memory or go there once, at the bandwidths of a large sum and a large
  fill. Read: input spikes (in both passes), the gradient from outside, membranes and spike bits
  that were saved. Written: the spikes as float32, membranes and spike bits. What fits into the
  caches may move faster.

Not counted, so a real pass has more to do: the sums over events (spikes times rows of weights,
forward, and the gradients of both weights), which are given apart; the neurons' own equations; and
that steps follow each other.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.measure import Result, milliseconds

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

    product_gflop: float
    active_share: float  # percent
    read_mb: float
    written_mb: float
    dense_ms: float  # only the product
    active_ms: float  # only the product, of active rows
    bytes_ms: float
    events_ms: float  # not part of the bounds
    ours_ms: float

    @property
    def ours_by_dense(self) -> float:
        """Ours by the larger of the dense product and the bytes."""
        return self.ours_ms / max(self.dense_ms, self.bytes_ms)

    @property
    def ours_by_active(self) -> float:
        """Ours by the larger of the product of active rows and the bytes."""
        return self.ours_ms / max(self.active_ms, self.bytes_ms)


def rates(repeats: int = 7, mm_size: int = 1536, megabytes: int = 256) -> list[Rate]:
    """Multiply-adds, reads and writes of this machine: the best of several."""
    a, b = torch.randn(mm_size, mm_size), torch.randn(mm_size, mm_size)
    out = torch.empty(mm_size, mm_size)
    # touched here, so that no page is new when it is timed
    big = torch.ones(megabytes * 1_000_000 // FLOAT)
    nbytes = big.numel() * FLOAT
    mm = _best(lambda: torch.mm(a, b, out=out), repeats)
    read = min(_best(lambda: torch.sum(big), repeats), _best(lambda: torch.dot(big, big), repeats))
    write = _best(lambda: big.fill_(0.5), repeats)
    return [
        Rate("fma", 2 * mm_size**3 / mm / 1e6, "Gflop/s",
             f"torch.mm of {mm_size} x {mm_size}, an fma being 2 flops"),
        Rate("read", nbytes / read / 1e6, "GB/s", f"torch.sum or torch.dot of {megabytes} MB"),
        Rate("write", nbytes / write / 1e6, "GB/s", f"fill_ of {megabytes} MB"),
    ]


def _best(run: Callable[[], object], repeats: int) -> float:
    run()
    return min(milliseconds(run) for _ in range(repeats))


def bound(ours: Result, measured: list[Rate]) -> Bound:
    """How near this line is to what the machine can do."""
    per_ms = {rate.what: rate.value * 1e6 for rate in measured}
    steps = ours.T * ours.B * ours.N
    product = 2.0 * steps * ours.N
    # Each event adds a row of N numbers, forward and for the weight's gradient; an addition takes
    # the place of an fma.
    events = 4.0 * steps * (ours.rate_measured / 100 * ours.N + ours.input_rate / 100 * ours.I)
    read = ours.T * ours.B * ours.I * FLOAT * 2 + steps * (FLOAT + SAVED)
    written = steps * (FLOAT + SAVED)
    return Bound(
        product / 1e9, ours.active_share, read / 1e6, written / 1e6, product / per_ms["fma"],
        product * ours.active_share / 100 / per_ms["fma"], read / per_ms["read"] + written
        / per_ms["write"],
        events / per_ms["fma"], ours.median_ms)
