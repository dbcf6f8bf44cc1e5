"""Models of other packages before and after lsnn_ext.convert.

    python -m bench.converted                            500 steps, batch 32, 256 neurons
    python -m bench.converted --shape 784,64,80,220 --pairs "norse LIFRecurrent"

The models of `python -m bench --like-for-like`, a projection, a recurrent layer, a linear readout
and its mean over time, are converted with verify: spikes, states and gradients have to be equal,
then forward and backward pass are timed before and after, in turns, with the model's own weights.
Where the model calls its layer once a step, as snnTorch's are called, the two lines of the report
are written into it, one call in place of the loop, and its layer alone is timed too.
"""
import argparse
from typing import Any

import torch
from torch import Tensor, nn

import lsnn_ext
from bench.__main__ import at_least_one, names_among, shape_of
from bench.like_for_like import MOST_DIFFERING, RATE, Model, steps_of
from bench.measure import bisect_scale, firing_rate
from bench.pairs import PAIRS
from bench.problem import Shape, Yardstick
from lsnn_ext.convert import Report, Speed
from lsnn_ext.convert.copies import duplicate
from lsnn_ext.convert.verification import in_turns, one_pass

NAMES = [name for name, kind in PAIRS.items() if not kind.is_loop]
FIRST_STEPS = 100  # in which the scale is looked for that gives the rate


class AtOnce(nn.Module):
    """A model of a pair whose layer takes the projected inputs of all steps in one call, in place
    of the loop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        pair: Any = model.pair
        self.project, self.layer, self.readout = pair.project, pair.layer, model.readout

    def spikes(self, x: Tensor) -> Tensor:
        """(T, B, N)"""
        found: Tensor = self.layer(self.project(x))[0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(B, CLASSES)"""
        out: Tensor = self.readout(self.spikes(x)).mean(0)
        return out


def at_once(model: Model, x: Tensor, repeats: int) -> Speed:
    """A model with a loop before, and after conversion with one call in its place."""
    converted, _ = lsnn_ext.convert(duplicate(model), verify=x, steps=True, repeats=0)
    after = AtOnce(converted)
    with torch.no_grad():
        want, got = model.spikes(x), after.spikes(x)
        differing, most = int((want != got).sum()), MOST_DIFFERING * want.numel()
        assert differing <= most, f"expected at most {most:.0f} other spikes, got {differing}"
    return in_turns([one_pass(model, x), one_pass(after, x)], repeats)


def report_of(name: str, shape: Shape, repeats: int) -> tuple[Report, Speed | None]:
    """Of the model of a pair at the firing rate of the comparisons; its speed where the report has
    that of its layer alone."""
    problem = Yardstick("converted", shape).problem()
    short = problem.first(FIRST_STEPS)

    def rate_of(scale: float) -> float:
        with torch.no_grad():
            return firing_rate(steps_of(name, short, scale)[None].module.spikes(short.x))  # type: ignore[operator]

    scale, _ = bisect_scale(rate_of, RATE / 100, tolerance=0.05, most=20)
    model = steps_of(name, problem, scale)[None].module
    assert isinstance(model, Model)
    _, report = lsnn_ext.convert(model, verify=problem.x, repeats=repeats)
    return report, at_once(model, problem.x, repeats) if report.in_loop else None


def told(name: str, report: Report, whole: Speed | None) -> str:
    """A line, or two: how much faster the model is, and its layer alone."""
    if whole is not None:
        (one,) = report.in_loop
        assert one.speed is not None, one.note
        return (f"{name:26} the model, one call:    {whole}\n"
                f"{name:26} its layer as one call:  {one.speed}")
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
        print(told(name, *report_of(name, shape, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
