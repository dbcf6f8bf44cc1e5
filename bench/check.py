"""Whether ours is still much faster than a plain loop: python -m bench.check; exit status 1 if it is not.

Ours and the loop alternate in one process, so that a slow or busy machine slows both; one thread, so that a neighbour
on another core does not stop the one that waits for it.  Measured on one core of an AMD EPYC: 9.0 to 10.1 times with
AVX-512, 9.0 with AVX2, 5.0 with the portable kernels beside a loop that has its vectors.  The limit lies below all of
them, at less than half of the first: the mood of a machine does not reach it, a path that became slow does.
"""
import argparse
import statistics
import sys

import torch

from bench.contestants import OURS, make, warm_up
from bench.measure import PASSES, alternate, find_scale
from bench.problem import Problem, Shape

SHAPE = Shape(200, 16, 40, 128)
LOOP = "eager loop"
LEAST = 4.0  # forward+backward of the loop by that of ours


def ratios(shape: Shape, repeats: int) -> dict[str, float]:
    """By pass: the median of the loop by the median of ours; prints both."""
    problem = Problem.of(shape)
    scale, rate = find_scale(problem, 0.02)
    problem = problem.scaled(scale)
    for name in (OURS, LOOP):
        warm_up(name, problem)
    ours, loop = alternate([make(OURS, problem), make(LOOP, problem)], repeats)
    T, B, I, N = shape  # noqa: E741
    print(f"T={T} B={B} I={I} N={N}, {100 * rate:.1f} % spikes, {repeats} rounds, {torch.get_num_threads()} threads")
    found = {}
    for k, timed in enumerate(PASSES):
        mine, theirs = 1e3 * statistics.median(ours[k]), 1e3 * statistics.median(loop[k])
        found[timed] = theirs / mine
        print(f"  {timed}: {OURS} {mine:.2f} ms, {LOOP} {theirs:.2f} ms, {found[timed]:.1f} times")
    return found


def main(arguments: list[str] | None = None) -> int:
    """0 if the ratio of forward+backward is large enough, else 1."""
    parser = argparse.ArgumentParser("python -m bench.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--least", type=float, default=LEAST, help="smallest ratio that passes (default: %(default)g)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)d)")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error(f"--repeats: expected a whole number >= 1, got {given.repeats}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = ratios(SHAPE, given.repeats)[PASSES[1]]
    finally:
        torch.set_num_threads(threads)
    if found < given.least:
        print(f"bench.check: FAILED: forward+backward: expected at least {given.least:g} times faster than the "
              f"{LOOP}, got {found:.1f} times")
        return 1
    print(f"bench.check: passed: {found:.1f} times faster than the {LOOP}, at least {given.least:g} wanted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
