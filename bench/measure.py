"""Timing: all contestants alternate in one run, so that a busy machine slows all of them."""
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contestants import MAKERS, OURS, Contestant, make, warm_up
from bench.limits import NO_LIMITS, Limits, OverLimitError, Skip, describe_error, reason_of
from bench.memory import needed_bytes, peak_mib, saved_bytes
from bench.peers import INDEXED, LAYERS, WITH_INDEX
from bench.problem import Problem, Sized, Yardstick
from bench.rates import BASE_RATE, LONG_ENOUGH, active_share, find_scale, firing_rate

PASSES = ("forward", "forward+backward")
STEADY = 100.0  # ms
Say = Callable[[str], None]


@dataclass
class Result(Sized):
    """One line of the table: one contestant, one pass."""

    contestant: str
    rate_asked: float  # percent; nan: the peer fires as it does
    rate_measured: float  # percent; nan: it does not spike
    timed: str
    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    # of the medians; above 1 the contestant is slower than ours at the base rate
    ratio_to_ours: float
    saved_bytes: float  # kept for backward per neuron-step, without inputs and weights
    saved_beyond_output: float  # the same without the outputs, which the caller keeps anyway
    peak_mib: float  # most memory of one forward+backward beyond inputs and weights
    repeats: int
    threads: int
    base: bool  # the line of ours that ratios refer to
    input_rate: float = math.nan  # percent
    # percent of neuron-steps with a surrogate that is not 0; only of ours
    active_share: float = math.nan


@dataclass
class Entry:
    """A contestant in the run, with what is known before it is timed."""

    contestant: Contestant
    scale: float
    requested: float = math.nan  # percent
    measured: float = math.nan  # percent
    active: float = math.nan  # percent


def measure(yardstick: Yardstick, rates: list[float], *, peers: bool, repeats: int, memory: bool,
            limits: Limits = NO_LIMITS, say: Say = print) -> tuple[list[Result], list[Skip]]:
    """All on one yardstick: ours at each rate (percent), then the peers; and those that did not
    run."""
    base_rate = min(rates, key=lambda rate: abs(rate - BASE_RATE))
    rates = rates if yardstick.every_rate else [base_rate]
    problem = yardstick.problem()
    warm_up(OURS, problem)
    entries = [_ours(problem, rate, say) for rate in rates]
    base = rates.index(base_rate)
    skipped: list[Skip] = []
    if peers:
        torch.compiler.reset()  # it refuses to compile one function for more than a few shapes
        for name in (name for name in MAKERS if name != OURS):
            try:
                if name in WITH_INDEX and not yardstick.quadratic:
                    raise OverLimitError(INDEXED)
                entries.append(_peer(name, problem, entries[base], limits))
            except Exception as error:  # whatever stops a peer must not stop the others
                skipped.append(Skip(yardstick.name, name, reason_of(error)))
                say(f"  {name}: {skipped[-1].reason}")
    say(f"  timing {len(entries)} contestants, {repeats} rounds")
    times = alternate([entry.contestant for entry in entries], repeats, limits.seconds)
    base_median = [statistics.median(one) for one in times[base]]
    results: list[Result] = []
    for entry, both in zip(entries, times, strict=True):
        name, is_base = entry.contestant.name, entry is entries[base]
        saved = saved_bytes(entry.contestant) if memory else (math.nan, math.nan)
        peak = math.nan
        if memory and yardstick.peak and (is_base or name != OURS):
            peak = _peak(name, yardstick, entry.scale, say)
        for timed, ms, base_ms in zip(PASSES, both, base_median, strict=True):
            q1, median, q3 = quartiles(ms)
            results.append(Result(
                yardstick.name, *yardstick.shape, name, entry.requested, entry.measured, timed,
                median, min(ms), q1, q3, median / base_ms, *saved, peak, len(ms),
                torch.get_num_threads(), is_base, 100 * yardstick.input_rate, entry.active))
    return results, skipped


def _peak(name: str, yardstick: Yardstick, scale: float, say: Say) -> float:
    say(f"  peak memory of {name}")
    try:
        return peak_mib(name, yardstick, scale)
    except Exception as error:  # a process that was killed must not take the times with it
        say(f"  peak memory of {name}: not measured: {describe_error(error)}")
        return math.nan


def _ours(problem: Problem, rate: float, say: Say) -> Entry:
    scale, _ = find_scale(problem.first(LONG_ENOUGH), rate / 100)
    problem = problem.scaled(scale)
    contestant = make(OURS, problem)
    measured = 100 * firing_rate(contestant.forward())
    if abs(measured / rate - 1) > 0.1:
        say(f"  asked for {rate:g} % spikes, the nearest that the layer gives is {measured:.2f} %")
    return Entry(contestant, scale, rate, measured, 100 * active_share(problem.first(LONG_ENOUGH)))


def _peer(name: str, problem: Problem, ours: Entry, limits: Limits) -> Entry:
    """A peer ready to run, warmed up on a few steps; an error if it cannot run here or would take
    too much."""
    warm_up(name, problem)
    scale = ours.scale
    # it has equations of its own, and so a scale of its own for the same firing rate
    if name in LAYERS:
        scale, _ = find_scale(problem.first(100), ours.measured / 100, tolerance=0.2, name=name)
    problem = problem.scaled(scale)
    limits.check(needed_bytes(name, problem))
    contestant = make(name, problem)
    return Entry(contestant, scale, measured=100 * firing_rate(contestant.forward())
                 if contestant.spiking else math.nan)


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = run()  # so that what it takes to free the result is not timed
    end = time.perf_counter()
    del kept
    return 1e3 * (end - start)


def processor_ms(run: Callable[[], object]) -> float:
    """The processor time of this process, which other processes disturb less."""
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def steadily(run: Callable[[], object],
             timer: Callable[[Callable[[], object]], float] = milliseconds,
             steady: float = STEADY) -> float:
    """The median of as many calls as fill `steady` milliseconds."""
    found = [timer(run)]
    while sum(found) < steady:
        found.append(timer(run))
    return statistics.median(found)


def turns(contestants: int, rounds: int) -> Iterator[tuple[int, int]]:
    """Round and contestant of each turn, in another order each round; garbage is collected between
    turns only."""
    order = list(range(contestants))
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            shuffle(order)
            for contestant in order:
                yield turn, contestant
                gc.collect()
    finally:
        gc.enable()


def alternate(contestants: list[Contestant], repeats: int, seconds: float = math.inf,
              least: int = 1, timer: Callable[[Callable[[], object]], float] = milliseconds,
              steady: float = STEADY) -> list[tuple[list[float], list[float]]]:
    """Milliseconds of forward and of forward+backward, by contestant and round.

    A contestant whose rounds would take more than these seconds, by its untimed first one, takes
    part in as many as fit and in the least at least, spread over the run. The order changes from
    round to round, so that neighbours change. A turn begins with a short
    rest, in which the spinning threads of the neighbour go to sleep, and an untimed forward to wake
    its own. A pass is repeated within its turn until `steady` milliseconds are full, and its median
    counts: so a small model is timed as it runs in a training, not as it begins.
    """
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in contestants]
    first = [timer(contestant.forward_backward) / 1e3 for contestant in contestants]
    rounds = [repeats if one * repeats <= seconds else max(least, int(seconds // one))
              for one in first]
    for turn, c in turns(len(contestants), repeats):
        if turn * rounds[c] % repeats < rounds[c]:
            time.sleep(0.02)
            contestants[c].forward()
            times[c][0].append(steadily(contestants[c].forward, timer, steady))
            times[c][1].append(steadily(contestants[c].forward_backward, timer, steady))
    return times


def difference(wanted: Iterable[Tensor], got: Iterable[Tensor]) -> float:
    """The largest difference of gradients, each by the largest value of its own; NaN where there is
    one, and where all values are 0."""
    each = [(a - b).abs().max() / a.abs().max() for a, b in zip(wanted, got, strict=True)]
    return float(torch.stack(each).max())


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3
