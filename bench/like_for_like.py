"""Whole models with the neuron of another package, against the same model with its row of ours.

A model is a projection, the recurrent layer, a linear readout, its mean over time and the cross
entropy; a step sets the gradients to none and makes them anew, without an optimizer. Both sides
have the same equations, surrogates and weights, and learn the same. Weights are multiples of few
bits and inputs 0 or 1, so that sums are exact in any order: before anything is timed the spikes of
both sides have to be equal, and their gradients equal to rounding. Where a package evaluates a
neuron in another order than ours, its membranes round otherwise and a spike at the very threshold
may differ: at most 1 of 100,000 may, and how many do is told. Where more do, since one leads to
others, other weights are drawn, at most four times.
"""
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.contestants import TorchContestant
from bench.measure import (
    NO_LIMITS,
    PASSES,
    Limits,
    OverLimitError,
    Say,
    Skip,
    alternate,
    bisect_scale,
    firing_rate,
    reason_of,
)
from bench.memory import BYTES_BEYOND_SAVED, GB, saved_bytes
from bench.pairs import PAIRS, Pair
from bench.peers import INDEXED
from bench.problem import Problem, Yardstick
from lsnn_ext import functional
from lsnn_ext.functional import PackedSpikes

WAYS = {"layer": "functional.layer, whose spikes functional.linear takes as bits",
        "alif": "functional.alif with w_in, and functional.linear",
        "Linears": "functional.alif between two Linears of torch"}
RATE = 3.0  # percent of neuron-steps with a spike
CLASSES = 20
SEEDS = range(1, 6)  # of weights and inputs
FIRST_STEPS = 300  # in which the scale is looked for that gives the rate
MOST_DIFFERING = 1e-5  # of all spikes
MOST_OF_A_GRADIENT = 1e-2  # largest difference by the largest value of the same gradient


class NotAlikeError(AssertionError):
    """The two sides of a pair do not compute the same."""


@dataclass
class Alike:
    """One line: a pair, one way of ours, one pass."""

    yardstick: str
    T: int
    B: int
    I: int  # noqa: E741
    N: int
    pair: str
    row: str
    learned: str  # of the neuron's coefficients, beside all weights
    way: str  # how ours is written, see WAYS
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
    """A whole model; way: of WAYS, or None for theirs. Pair and readout are shared."""

    def __init__(self, pair: Pair, readout: nn.Linear, way: str | None) -> None:
        super().__init__()
        self.pair, self.readout, self.way = pair, readout, way

    def hidden(self, x: Tensor) -> Tensor | PackedSpikes:
        """The spikes of the recurrent layer, (T, B, N): numbers, or bits from functional.layer."""
        pair = self.pair
        if self.way is None:
            return pair.theirs(x)
        w_in, w_rec, bias = pair.weights()
        neuron = {"dynamics": pair.row, **pair.coefficients()}
        if self.way == "Linears":
            return functional.alif(pair.current(x), w_rec, **neuron)[0]
        if self.way == "alif":
            return functional.alif(pair.inputs(x), w_rec, w_in=w_in, bias=bias, **neuron)[0]
        packed = functional.layer(pair.inputs(x), w_in, w_rec, bias=bias, spikes="bits",
                                  **neuron).packed
        assert packed is not None
        return packed

    def spikes(self, x: Tensor) -> Tensor:
        """The same as numbers."""
        found = self.hidden(x)
        return found.numbers() if isinstance(found, PackedSpikes) else found

    def forward(self, x: Tensor) -> Tensor:
        """(B, CLASSES)"""
        spikes, readout = self.hidden(x), self.readout
        linear: Callable[..., Tensor] = (
            functional.linear if self.way in ("layer", "alif") else nn.functional.linear)
        return linear(spikes, readout.weight, readout.bias).mean(0)


class Step(TorchContestant):
    """A model with its inputs and labels; forward_backward is a step of training."""

    def __init__(self, name: str, model: Model, problem: Problem) -> None:
        super().__init__(name, model, problem)
        random = torch.Generator().manual_seed(4)
        self.labels = torch.randint(CLASSES, (problem.x.shape[1],), generator=random)

    def forward_backward(self) -> list[Tensor]:
        self.module.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.module(self.problem.x), self.labels).backward()
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def gradients(self) -> dict[str, Tensor]:
        """Of all parameters that have one, and every one that should have."""
        self.forward_backward()
        found = {name: p.grad for name, p in self.module.named_parameters()}
        unused = {f"pair.{name}" for name in self.module.pair.unused}  # type: ignore[union-attr]
        missing = {name for name, gradient in found.items() if gradient is None}
        if missing != unused:
            raise NotAlikeError(f"{self.name}: expected no gradient of {sorted(unused)} alone, got "
                                f"none of {sorted(missing)} ({self.module.way or 'theirs'})")
        return {name: gradient for name, gradient in found.items() if gradient is not None}


def steps_of(name: str, problem: Problem, scale: float) -> dict[str | None, Step]:
    """Theirs (None) and ours by way, with the same parameters."""
    torch.manual_seed(5)  # of the readout
    pair = PAIRS[name](problem, scale)
    if torch.is_grad_enabled() and not all(w.requires_grad for w in pair.weights()[:2]):  # type: ignore[union-attr]
        raise NotAlikeError(f"{name}: expected weights that learn, got weights that do not")
    readout = nn.Linear(pair.size, CLASSES)
    return {way: Step(name, Model(pair, readout, way), problem) for way in (None, *WAYS)}


def difference(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """The largest difference of gradients, each by the largest value of its own gradient."""
    each = [(theirs[name] - ours[name]).abs().max() / theirs[name].abs().max() for name in theirs]
    return float(torch.stack(each).max())  # NaN where there is one, and where all values are 0


def prepared(name: str, yardstick: Yardstick, limits: Limits, say: Say,
             ) -> tuple[dict[str | None, Step], int, float, float, int]:
    """Contestants, differing spikes, difference of gradients, firing rate in percent, seed."""
    kind = PAIRS[name]
    if kind.indexed and not yardstick.quadratic:
        raise OverLimitError(INDEXED)
    for seed in SEEDS:
        problem = yardstick.problem(seed)
        if (needed := _needed_bytes(name, problem)) > limits.bytes:
            raise OverLimitError(f"would need about {needed / GB:.1f} GB, the limit is "
                                 f"{limits.bytes / GB:.1f} GB")
        short = problem.first(FIRST_STEPS)

        def rate_of(scale: float, short: Problem = short) -> float:
            with torch.no_grad():
                return firing_rate(steps_of(name, short, scale)["layer"].module.spikes(short.x))  # type: ignore[operator]

        scale, _ = bisect_scale(rate_of, RATE / 100, tolerance=0.05, most=20)
        steps = steps_of(name, problem, scale)
        differing, rate = _differing(steps)
        entries = problem.cotangent.numel()
        if differing > MOST_DIFFERING * entries:
            say(f"    weights of seed {seed}: {differing} of {entries:,} spikes differ")
            continue
        theirs = steps[None].gradients()
        gradient = max((difference(theirs, steps[way].gradients()) for way in WAYS),
                       key=lambda value: (math.isnan(value), value))
        if gradient < MOST_OF_A_GRADIENT:
            return steps, differing, gradient, 100 * rate, seed
        if not differing:  # then nothing excuses it
            raise NotAlikeError(f"{name} on {yardstick.name}: expected equal gradients, got a "
                                f"relative difference of {gradient:.2g}")
        say(f"    weights of seed {seed}: {differing} of {entries:,} spikes differ, and gradients "
            f"by {gradient:.2g}")
    raise NotAlikeError(f"{name} on {yardstick.name}: expected equal spikes, got {differing} that "
                        f"differ of {entries:,}")


def _differing(steps: dict[str | None, Step]) -> tuple[int, float]:
    """How many spikes differ between theirs and any way of ours, the larger of the two; the
    firing rate of theirs."""
    x = steps[None].problem.x
    with torch.no_grad():
        want, *got = (step.module.spikes(x) for step in steps.values())  # type: ignore[operator]
    return max(int((want != spikes).sum()) for spikes in got), firing_rate(want)


def _needed_bytes(name: str, problem: Problem, steps: int = 32) -> float:
    """About what a step of training takes beyond inputs and weights."""
    short = problem.first(steps)
    saved, _ = saved_bytes(steps_of(name, short, 1.0)[None])
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
        except (ImportError, OverLimitError) as error:
            skipped.append(Skip(yardstick.name, name, reason_of(error)))
            say(f"    {skipped[-1].reason}")
            continue
        theirs, *ours = alternate(list(steps.values()), repeats, limits.seconds)
        pair = PAIRS[name]
        entries = steps[None].problem.cotangent.numel()
        for way, times in zip(WAYS, ours, strict=True):
            for timed, mine, other in zip(PASSES, times, theirs, strict=True):
                a, b = statistics.median(mine), statistics.median(other)
                lines.append(Alike(
                    yardstick.name, *yardstick.shape, name, pair.row,
                    ", ".join(pair.learned) or "none", way, timed, a, min(mine), b, min(other),
                    b / a, min(other) / min(mine), rate, 100 * yardstick.input_rate, differing,
                    entries, gradient, seed, len(other), torch.get_num_threads()))
        say(told(lines[-2 * len(WAYS):]))
    return lines, skipped


def told(lines: Sequence[Alike]) -> str:
    """A pair on a yardstick, as it is printed."""
    first = lines[0]
    text = [f"    {first.rate_measured:.1f} % spikes, {first.differing} of {first.entries:,} "
            f"differ, gradients differ by {first.gradient_difference:.1e}, seed {first.seed}, "
            f"{first.repeats} rounds"]
    for line in lines:
        text.append(f"    {line.way:8}{line.timed:17} ours {line.median_ms:8.2f} "
                    f"({line.min_ms:8.2f})  theirs {line.theirs_median_ms:9.2f} "
                    f"({line.theirs_min_ms:9.2f})  {line.times_faster:6.1f} times faster "
                    f"({line.times_faster_min:.1f})")
    return "\n".join(text)


def names_of(peers: bool) -> list[str]:
    """All pairs, or those that need no other package: the loops."""
    return [name for name, kind in PAIRS.items() if peers or kind.is_loop]

