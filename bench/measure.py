"""How it is timed: all contestants alternate in one run, so that a busy machine disturbs them alike."""
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contestants import MAKERS, OURS, Contestant, make, warm_up
from bench.memory import GB, needed_bytes, peak_mib, saved_bytes
from bench.peers import INDEXED, LAYERS, WITH_INDEX
from bench.problem import ALPHA, BETA, RHO, THETA, Problem, Yardstick
from lsnn_ext import functional

PASSES = ("forward", "forward+backward")
BASE_RATE = 2.0  # percent: the firing rate of ours that ratios refer to
LONG_ENOUGH = 2000  # steps after which a longer sequence would not tell another firing rate


@dataclass
class Result:
    """One line of the table: one contestant, one pass."""

    yardstick: str
    T: int
    B: int
    I: int  # noqa: E741
    N: int
    contestant: str
    rate_asked: float  # percent; nan: the peer fires as it does
    rate_measured: float  # percent; nan: it does not spike
    timed: str
    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    ratio_to_ours: float  # of the medians; above 1 the contestant is slower than ours at the base rate
    saved_bytes: float  # kept for backward per neuron-step, without inputs and weights
    saved_beyond_output: float  # the same without the outputs, which the caller keeps anyway
    peak_mib: float  # most memory of one forward+backward beyond inputs and weights
    repeats: int
    threads: int
    base: bool  # the line of ours that ratios refer to
    input_rate: float = math.nan  # percent
    active_share: float = math.nan  # percent of the neuron-steps with a pseudo-derivative that is not 0; ours alone


@dataclass(frozen=True)
class Limits:
    """What a contestant may take, so that neither the machine nor the patience runs out."""

    seconds: float = math.inf  # of forward+backward on one yardstick, all rounds together
    bytes: float = math.inf  # of memory beyond inputs and weights


NO_LIMITS = Limits()


@dataclass
class Skip:
    """A contestant that did not run on a yardstick, and why."""

    yardstick: str
    contestant: str
    reason: str


@dataclass
class Entry:
    """A contestant in the run, with what is known before it is timed."""

    contestant: Contestant
    scale: float
    asked: float = math.nan  # percent
    measured: float = math.nan  # percent
    active: float = math.nan  # percent
    rounds: int = 1


def measure(yardstick: Yardstick, rates: list[float], *, peers: bool, repeats: int, memory: bool,
            limits: Limits = NO_LIMITS, say: Callable[[str], None] = print) -> tuple[list[Result], list[Skip]]:
    """All contestants on one yardstick: ours at each rate (percent), then the peers; and the peers that did not run."""
    base_rate = min(rates, key=lambda rate: abs(rate - BASE_RATE))
    if not yardstick.every_rate:
        rates = [base_rate]
    problem = yardstick.problem()
    warm_up(OURS, problem)
    entries = [_ours(problem, rate, limits, repeats, say) for rate in rates]
    base = rates.index(base_rate)
    skipped: list[Skip] = []
    if peers:
        torch.compiler.reset()  # it refuses to compile one function for more than a few shapes
        for name in MAKERS:
            if name == OURS:
                continue
            try:
                if name in WITH_INDEX and not yardstick.quadratic:
                    raise OverLimitError(f"not run: {INDEXED}")
                entries.append(_peer(name, problem, entries[base], limits, repeats, say))
            except Exception as reason:  # whatever stops a peer must not stop the others
                lines = str(reason).strip().splitlines() or ["no message"]
                kind = "" if isinstance(reason, OverLimitError) else f"skipped: {type(reason).__name__}: "
                skipped.append(Skip(yardstick.name, name, kind + lines[0]))
                say(f"  {name}: {kind}{lines[0]}")

    say(f"  timing {len(entries)} contestants, {repeats} rounds")
    seconds = alternate([entry.contestant for entry in entries], repeats, [entry.rounds for entry in entries])
    base_median = [statistics.median(seconds[base][k]) for k in range(len(PASSES))]
    results: list[Result] = []
    for c, entry in enumerate(entries):
        name = entry.contestant.name
        saved, beyond, peak = math.nan, math.nan, math.nan
        if memory:
            saved, beyond = saved_bytes(entry.contestant)
            if yardstick.peak and (c == base or name != OURS):
                say(f"  peak memory of {name}")
                try:
                    peak = peak_mib(name, yardstick, entry.scale)
                except Exception as reason:  # a process that was killed must not take the times with it
                    say(f"  peak memory of {name}: not measured: {type(reason).__name__}: {reason}")
        for k, timed in enumerate(PASSES):
            ms = sorted(1e3 * s for s in seconds[c][k])
            q1, median, q3 = quartiles(ms)
            ratio = median / (1e3 * base_median[k])
            results.append(Result(yardstick.name, *yardstick.shape, name, entry.asked, entry.measured, timed, median,
                                  ms[0], q1, q3, ratio, saved, beyond, peak, entry.rounds, torch.get_num_threads(),
                                  c == base, 100 * yardstick.input_rate, entry.active))
    return results, skipped


class OverLimitError(Exception):
    """A contestant would take more than it may."""


def _ours(problem: Problem, rate: float, limits: Limits, repeats: int, say: Callable[[str], None]) -> Entry:
    scale, got = find_scale(problem.first(LONG_ENOUGH), rate / 100)
    problem = problem.scaled(scale)
    contestant = make(OURS, problem)
    if len(problem.x) > LONG_ENOUGH:
        got = firing_rate(contestant.forward())
    if abs(100 * got / rate - 1) > 0.1:
        say(f"  asked for {rate:g} % spikes, the nearest that the layer gives is {100 * got:.2f} %")
    rounds = _rounds(expected_seconds(OURS, problem), limits, repeats)
    active = 100 * active_share(problem.first(LONG_ENOUGH))
    return Entry(contestant, scale, rate, 100 * got, active, rounds)


def _peer(name: str, problem: Problem, ours: Entry, limits: Limits, repeats: int, say: Callable[[str], None]) -> Entry:
    """A peer ready to run, warmed up on a few steps; an error if it cannot run here or would take too much."""
    warm_up(name, problem)
    scale = ours.scale
    if name in LAYERS:  # it has equations of its own, and so a scale of its own for the same firing rate
        beginning = problem.first(100)
        scale, _ = find_scale(beginning, ours.measured / 100, tolerance=0.2, most=12, name=name)
    problem = problem.scaled(scale)
    if (needed := needed_bytes(name, problem)) > limits.bytes:
        raise OverLimitError(f"not run: would need about {needed / GB:.1f} GB, the limit is {limits.bytes / GB:.1f} GB")
    expected = expected_seconds(name, problem)
    if expected > limits.seconds:
        raise OverLimitError(f"not run: one forward+backward would take about {expected:.0f} s, the limit is "
                             f"{limits.seconds:.0f} s")
    rounds = _rounds(expected, limits, repeats)
    if rounds < repeats:
        say(f"  {name}: {rounds} of {repeats} rounds, since one takes about {expected:.1f} s")
    contestant = make(name, problem)
    measured = 100 * firing_rate(contestant.forward()) if contestant.spiking else math.nan
    return Entry(contestant, scale, measured=measured, rounds=rounds)


def _rounds(expected: float, limits: Limits, repeats: int) -> int:
    return int(max(1, min(repeats, limits.seconds // max(expected, 1e-9))))


def expected_seconds(name: str, problem: Problem) -> float:
    """Of one forward+backward, from short runs: time grows with the number of steps, or faster where it is seen to."""
    steps = max(64, len(problem.x) // 20)
    half, whole = (_best_of_two(make(name, problem.first(many))) for many in (steps // 2, steps))
    times = max(1.0, len(problem.x) / steps)
    # Proportional, up to noise; else the part beyond it, whole - 2 half, is taken to grow with the square.
    beyond = whole - 2 * half if whole > 2.3 * half else 0.0
    return (whole - 2 * beyond) * times + 2 * beyond * times**2


def _best_of_two(contestant: Contestant) -> float:
    best = math.inf
    for _ in range(2):
        start = time.perf_counter()
        contestant.forward_backward()
        best = min(best, time.perf_counter() - start)
    return best


def active_share(problem: Problem, width: float = 1.0) -> float:
    """Share of the neuron-steps whose pseudo-derivative is not 0: only there the backward product is of use."""
    with torch.no_grad():
        current = functional.linear(problem.x, problem.w_in)
        out = functional.alif(current, problem.w_rec, alpha=ALPHA, theta=THETA, rho=RHO, beta=BETA, width=width,
                              trace=True)
    traces = out[2]  # type: ignore[misc]  # trace=True
    before = torch.cat([torch.zeros_like(traces.v[:1]), traces.v[:-1]])  # the row `lsnn` tests the old membrane
    return float(((before - traces.threshold).abs() < width * traces.threshold).float().mean())


def firing_rate(spikes: Tensor) -> float:
    """Spikes per neuron-step."""
    return float((spikes != 0).float().mean())


def find_scale(problem: Problem, rate: float, tolerance: float = 0.01, most: int = 40,
               name: str = OURS) -> tuple[float, float]:
    """The scale of the input weights at which it fires at this rate, and the rate it gives: bisection of the log."""
    best = (1.0, 0.0)
    low, high = 0.0, float("inf")
    scale = 1.0
    for _ in range(most):
        got = firing_rate(make(name, problem.scaled(scale)).forward())
        if abs(got - rate) <= abs(best[1] - rate):
            best = (scale, got)
        if abs(got / rate - 1) <= tolerance:
            break
        low, high = (scale, high) if got < rate else (low, scale)
        scale = 4 * low if high == float("inf") else high / 4 if low == 0 else (low * high) ** 0.5
    return best


def alternate(contestants: list[Contestant], repeats: int,
              rounds: list[int] | None = None) -> list[tuple[list[float], list[float]]]:
    """Seconds of forward and of forward+backward, by contestant and round.

    A contestant whose number of rounds is below repeats takes part in so many of them, spread over the run.
    The order changes from round to round, so that nobody always follows the same neighbour.  A turn begins with a
    short rest, in which the spinning threads of the neighbour go to sleep, and an untimed forward to wake its own.
    """
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in contestants]
    order = list(range(len(contestants)))
    parts = [repeats] * len(contestants) if rounds is None else rounds
    shuffle = random.Random(0).shuffle
    for contestant in contestants:
        contestant.forward_backward()
    gc.collect()
    gc.disable()
    try:
        for turn in _progress(repeats):
            shuffle(order)
            for c in (c for c in order if turn * parts[c] % repeats < parts[c]):
                time.sleep(0.02)
                contestants[c].forward()
                for k, run in enumerate((contestants[c].forward, contestants[c].forward_backward)):
                    start = time.perf_counter()
                    result = run()
                    seconds[c][k].append(time.perf_counter() - start)
                    del result
                gc.collect()
    finally:
        gc.enable()
    return seconds


def _progress(rounds: int) -> Iterable[int]:
    """The rounds, with a bar on a terminal; it moves between rounds only, never while something is timed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return range(rounds)
    tqdm.monitor_interval = 0  # no thread of its own
    return tqdm(range(rounds), "rounds", leave=False, disable=None)  # type: ignore[no-any-return]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, q2, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q2, q3
