"""Whether ours is still much faster than a plain loop; exit status 1 if it is not.

    python -m bench.check

Ours and the loop alternate in one process, so that a slow or busy machine slows both; one thread,
so that a neighbour on another core does not stop the one that waits for it. Measured on one core of
an AMD EPYC: 9.0 to 10.1 times with AVX-512, 9.0 with AVX2, 5.0 with the portable kernels beside a
loop that has its vectors. The limit lies below all of them, at less than half of the first, so that
only a path that became slow fails.
"""
import statistics
import sys

import torch

from bench.arguments import at_least_one, make_parser
from bench.contestants import OURS, make, warm_up
from bench.measure import PASSES, alternate
from bench.problem import Problem, Shape
from bench.rates import find_scale

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
    print(f"{shape}, {100 * rate:.1f} % spikes, {repeats} rounds, {torch.get_num_threads()} "
          "threads")
    found = {}
    for timed, our_ms, loop_ms in zip(PASSES, ours, loop, strict=True):
        mine, theirs = statistics.median(our_ms), statistics.median(loop_ms)
        found[timed] = theirs / mine
        print(f"  {timed}: {OURS} {mine:.2f} ms, {LOOP} {theirs:.2f} ms, {found[timed]:.1f} times")
    return found


def main(arguments: list[str] | None = None) -> int:
    """0 if the ratio of forward+backward is large enough, else 1."""
    parser = make_parser("bench.check", __doc__)
    parser.add_argument("--least", type=float, default=LEAST,
                        help="smallest ratio that passes (default: %(default)g)")
    parser.add_argument("--repeats", type=at_least_one, default=9,
                        help="rounds (default: %(default)d)")
    given = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = ratios(SHAPE, given.repeats)[PASSES[1]]
    finally:
        torch.set_num_threads(threads)
    verdict = "passed" if found >= given.least else "FAILED"
    print(f"bench.check: {verdict}: forward+backward: expected at least {given.least:g} times "
          f"faster than the {LOOP}, got {found:.1f} times")
    return int(found < given.least)


if __name__ == "__main__":
    sys.exit(main())
