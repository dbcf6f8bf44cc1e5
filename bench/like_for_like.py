"""Whole models with the neuron of another package, and the same models with lsnn_ext.

A model is a projection, the recurrent layer, a linear readout, its mean over time and the cross
entropy; a step sets the gradients to none and makes them anew, without an optimizer. Weights are
multiples of few bits and inputs 0 or 1, so that sums are exact in any order: before anything is
timed the spikes of both sides have to be equal, and their gradients equal to rounding. A spike at
the very threshold may differ: at most 1 of 100,000, and the page counts them. If more differ,
since one leads to others, other weights are drawn, at most four times.
"""
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.contestants import TorchContestant
from bench.limits import NO_LIMITS, Limits, OverLimitError, Skip, reason_of
from bench.measure import PASSES, Say, alternate, difference
from bench.memory import BYTES_BEYOND_SAVED, saved_bytes
from bench.pairs import PAIRS, Pair
from bench.peers import INDEXED
from bench.problem import Problem, Sized, Yardstick
from bench.rates import bisect_scale, firing_rate
from lsnn_ext.loops import convert

WAY = "converted"
RATE = 3.0  # percent of neuron-steps with a spike
CLASSES = 20
SEEDS = range(1, 6)  # of weights and inputs
FIRST_STEPS = 300  # in which the scale is looked for that gives the rate
MOST_DIFFERING = 1e-5  # of all spikes
MOST_OF_A_GRADIENT = 1e-2  # largest difference by the largest value of the same gradient


class NotAlikeError(AssertionError):
    """The two sides of a pair do not compute the same."""


class NotFusedError(Exception):
    """The recurrence of a model stays a loop."""


@dataclass
class Alike(Sized):
    """One line: a pair, one pass."""

    pair: str
    row: str
    learned: str  # of the neuron's coefficients, beside all weights
    way: str  # "converted"; others in files of earlier versions
    timed: str
    median_ms: float
    min_ms: float
    theirs_median_ms: float
    theirs_min_ms: float
    times_faster: float  # of the medians
    times_faster_min: float  # of the minima
    rate_measured: float  # percent
    input_rate: float  # percent
    differing: int  # spikes
    entries: int
    gradient_difference: float  # largest, by the largest value of the same gradient
    seed: int  # of the weights
    repeats: int  # of theirs
    threads: int


class Model(nn.Module):
    def __init__(self, pair: Pair, readout: nn.Linear) -> None:
        super().__init__()
        self.pair, self.readout = pair, readout

    def forward(self, x: Tensor, return_spikes: bool = False) -> Tensor:
        """(B, CLASSES), or the spikes of the recurrent layer (T, B, N)."""
        spikes = self.pair.theirs(x)
        out: Tensor = self.readout(spikes).mean(0)
        return spikes if return_spikes else out


class Step(TorchContestant):
    """A model with its inputs and labels; forward_backward is a step of training."""

    def __init__(self, name: str, model: Model, problem: Problem) -> None:
        super().__init__(name, model, problem)
        self.pair = model.pair
        random = torch.Generator().manual_seed(4)
        self.labels = torch.randint(CLASSES, (problem.x.shape[1],), generator=random)

    def forward(self, return_spikes: bool = False) -> Tensor:
        self.pair.reset()
        with torch.no_grad():
            found: Tensor = self.module(self.problem.x, return_spikes)
        return found

    def spikes(self) -> Tensor:
        """(T, B, N)"""
        return self.forward(return_spikes=True)

    def forward_backward(self) -> list[Tensor]:
        self.pair.reset()
        self.module.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.module(self.problem.x), self.labels).backward()
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def gradients(self) -> dict[str, Tensor]:
        """Of all parameters that have one, and every one that should have."""
        self.forward_backward()
        found = {name: p.grad for name, p in self.module.named_parameters()}
        unused = {f"pair.{name}" for name in self.pair.unused}
        missing = {name for name, gradient in found.items() if gradient is None}
        if missing != unused:
            raise NotAlikeError(f"{self.name}: expected no gradient of {sorted(unused)} alone, got "
                                f"none of {sorted(missing)}")
        return {name: gradient for name, gradient in found.items() if gradient is not None}


def step_of(name: str, problem: Problem, scale: float) -> Step:
    """Of the package's own model."""
    torch.manual_seed(5)  # of the readout
    pair = PAIRS[name](problem, scale)
    return Step(name, Model(pair, nn.Linear(pair.size, CLASSES)), problem)


def converted(name: str, problem: Problem, scale: float) -> Step:
    """Of a model that is made as that of step_of, and converted."""
    step = step_of(name, problem, scale)
    _, report = convert(step.module, problem.x)
    if not report.fused:
        raise NotFusedError(report.reason or str(report))
    # States that a call leaves count as inputs: each order of two passes is recorded.
    for run in (step.forward, step.forward, step.forward_backward, step.forward_backward,
                step.forward):
        run()
    return step


def prepared(name: str, yardstick: Yardstick, limits: Limits, say: Say,
             ) -> tuple[tuple[Step, Step], int, float, float, int]:
    """Theirs and ours, differing spikes, difference of gradients, firing rate in percent, seed."""
    kind = PAIRS[name]
    if kind.indexed and not yardstick.quadratic:
        raise OverLimitError(INDEXED)
    for seed in SEEDS:
        problem = yardstick.problem(seed)
        limits.check(_needed_bytes(name, problem))
        short = problem.first(FIRST_STEPS)

        def rate_of(scale: float, short: Problem = short) -> float:
            return firing_rate(step_of(name, short, scale).spikes())

        scale, _ = bisect_scale(rate_of, RATE / 100, tolerance=0.05)
        steps = step_of(name, problem, scale), converted(name, problem, scale)
        differing, rate = _differing(*steps)
        entries = problem.cotangent.numel()
        if differing > MOST_DIFFERING * entries:
            say(f"    weights of seed {seed}: {differing} of {entries:,} spikes differ")
            continue
        theirs, ours = (step.gradients() for step in steps)
        gradient = difference(theirs.values(), (ours[key] for key in theirs))
        if gradient < MOST_OF_A_GRADIENT:
            return steps, differing, gradient, 100 * rate, seed
        if not differing:  # then nothing excuses it
            raise NotAlikeError(f"{name} on {yardstick.name}: expected equal gradients, got a "
                                f"relative difference of {gradient:.2g}")
        say(f"    weights of seed {seed}: {differing} of {entries:,} spikes differ, and gradients "
            f"by {gradient:.2g}")
    raise NotAlikeError(f"{name} on {yardstick.name}: expected equal spikes, got {differing} that "
                        f"differ of {entries:,}")


def _differing(theirs: Step, ours: Step) -> tuple[int, float]:
    """How many spikes differ; the firing rate of theirs."""
    want = theirs.spikes()
    return int((want != ours.spikes()).sum()), firing_rate(want)


def _needed_bytes(name: str, problem: Problem, steps: int = 32) -> float:
    """About what a step of training takes beyond inputs and weights."""
    short = problem.first(steps)
    saved, _ = saved_bytes(step_of(name, short, 1.0))
    by_step = saved * short.x.shape[1] * CLASSES / len(short.x)
    return len(problem.x) * by_step + BYTES_BEYOND_SAVED * problem.cotangent.numel()


def measure(yardstick: Yardstick, names: Sequence[str], *, repeats: int,
            limits: Limits = NO_LIMITS, say: Say = print) -> tuple[list[Alike], list[Skip]]:
    """The pairs one after the other, the two sides of each in turn; and those that cannot run."""
    lines: list[Alike] = []
    skipped: list[Skip] = []
    for name in names:
        say(f"  {name}")
        try:
            steps, differing, gradient, rate, seed = prepared(name, yardstick, limits, say)
        except (ImportError, NotFusedError, OverLimitError) as error:
            skipped.append(Skip(yardstick.name, name, reason_of(error)))
            say(f"    {skipped[-1].reason}")
            continue
        theirs, ours = alternate(list(steps), repeats, limits.seconds)
        pair = PAIRS[name]
        entries = steps[0].problem.cotangent.numel()
        for timed, mine, other in zip(PASSES, ours, theirs, strict=True):
            a, b = statistics.median(mine), statistics.median(other)
            lines.append(Alike(
                yardstick.name, *yardstick.shape, name, pair.row,
                ", ".join(pair.learned) or "none", WAY, timed, a, min(mine), b, min(other),
                b / a, min(other) / min(mine), rate, 100 * yardstick.input_rate, differing,
                entries, gradient, seed, len(other), torch.get_num_threads()))
        say(told(lines[-len(PASSES):]))
    return lines, skipped


def told(lines: Sequence[Alike]) -> str:
    first = lines[0]
    text = [f"    {first.rate_measured:.1f} % spikes, {first.differing} of {first.entries:,} "
            f"differ, gradients differ by {first.gradient_difference:.1e}, seed {first.seed}, "
            f"{first.repeats} rounds"]
    for line in lines:
        text.append(f"    {line.timed:17} ours {line.median_ms:8.2f} "
                    f"({line.min_ms:8.2f})  theirs {line.theirs_median_ms:9.2f} "
                    f"({line.theirs_min_ms:9.2f})  {line.times_faster:6.1f} times faster "
                    f"({line.times_faster_min:.1f})")
    return "\n".join(text)


def names_of(peers: bool) -> list[str]:
    """All pairs, or those that need no other package: the loops."""
    return [name for name, kind in PAIRS.items() if peers or kind.is_loop]

