"""Models of other packages before and after lsnn_ext.convert.

    python -m bench.converted                            500 steps, batch 32, 256 neurons
    python -m bench.converted --shape 784,64,80,220 --pairs "norse LIFRecurrent"

The models of `python -m bench --like-for-like`, a projection, a recurrent layer, a linear readout
and its mean over time, are converted with verify: spikes, states and gradients have to be equal,
then forward and backward pass are timed before and after, in turns, with the model's own weights.
Where the model calls its layer once a step, as snnTorch's are called, it stays as it is, and the
layer alone is timed, in its loop and as one call.
"""
import argparse

import torch

import lsnn_ext
from bench.__main__ import at_least_one, names_among, shape_of
from bench.like_for_like import RATE, Model, steps_of
from bench.measure import bisect_scale, firing_rate
from bench.pairs import PAIRS
from bench.problem import Shape, Yardstick
from lsnn_ext.convert import Report

NAMES = [name for name, kind in PAIRS.items() if not kind.is_loop]
FIRST_STEPS = 100  # in which the scale is looked for that gives the rate


def report_of(name: str, shape: Shape, repeats: int) -> Report:
    """Of the model of a pair at the firing rate of the comparisons."""
    problem = Yardstick("converted", shape).problem()
    short = problem.first(FIRST_STEPS)

    def rate_of(scale: float) -> float:
        with torch.no_grad():
            return firing_rate(steps_of(name, short, scale)[None].module.spikes(short.x))  # type: ignore[operator]

    scale, _ = bisect_scale(rate_of, RATE / 100, tolerance=0.05, most=20)
    model = steps_of(name, problem, scale)[None].module
    assert isinstance(model, Model)
    return lsnn_ext.convert(model, verify=problem.x, repeats=repeats)[1]


def told(name: str, report: Report) -> str:
    """A line: what is equal, and how much faster."""
    if report.in_loop:
        (one,) = report.in_loop
        assert one.speed is not None, one.note
        return f"{name:26} its layer as one call:  {one.speed}"
    assert report.speed is not None and len(report.replaced) == 1, str(report)
    return f"{name:26} the model:              {report.speed}"


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser("python -m bench.converted", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=names_among(NAMES), default=NAMES,
                        help=f"with commas: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--shape", type=shape_of, default=Shape(500, 32, 80, 256),
                        metavar="T,B,I,N")
    parser.add_argument("--repeats", type=at_least_one, default=5, help="rounds")
    given = parser.parse_args(arguments)
    shape = given.shape
    print(f"T={shape.T} B={shape.B} I={shape.I} N={shape.N}, {torch.get_num_threads()} threads, "
          f"forward and backward, {given.repeats} rounds in turns", flush=True)
    for name in given.pairs:
        print(told(name, report_of(name, shape, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
