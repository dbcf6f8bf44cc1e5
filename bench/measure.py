"""How it is timed: all contestants alternate in one run, so that a busy machine disturbs them alike."""
import ctypes
import gc
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contestants import (
    OURS,
    Contestant,
    JaxContestant,
    Problem,
    Shape,
    TorchContestant,
    make,
    make_peers,
    warm_up,
)

PASSES = ("forward", "forward+backward")
BASE_RATE = 2.0  # percent: the firing rate of ours that ratios refer to


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


def measure(yardstick: str, shape: Shape, rates: list[float], *, peers: bool, repeats: int, memory: bool,
            say: Callable[[str], None] = print) -> list[Result]:
    """All contestants on one shape: ours at each rate (percent), then the peers."""
    base_rate = min(rates, key=lambda rate: abs(rate - BASE_RATE))
    problem = Problem.of(shape)
    warm_up(OURS, problem)
    asked: list[float] = []
    measured: list[float] = []
    scales: list[float] = []
    contestants: list[Contestant] = []
    for rate in rates:
        scale, got = find_scale(problem, rate / 100)
        if abs(100 * got / rate - 1) > 0.1:
            say(f"  asked for {rate:g} % spikes, the nearest that the layer gives is {100 * got:.2f} %")
        contestants.append(make(OURS, problem.scaled(scale)))
        asked.append(rate)
        measured.append(100 * got)
        scales.append(scale)
    if peers:
        scale = scales[rates.index(base_rate)]
        ready, skipped = make_peers(problem.scaled(scale))
        for name, reason in skipped.items():
            say(f"  skipped {name}: {reason}")
        for peer in ready:
            contestants.append(peer)
            asked.append(float("nan"))
            measured.append(100 * firing_rate(peer.forward()) if peer.spiking else float("nan"))
            scales.append(scale)

    say(f"  timing {len(contestants)} contestants, {repeats} rounds")
    seconds = alternate(contestants, repeats)
    base = rates.index(base_rate)
    base_median = [statistics.median(seconds[base][k]) for k in range(len(PASSES))]
    results: list[Result] = []
    for c, contestant in enumerate(contestants):
        is_ours = contestant.name == OURS
        saved, beyond, peak = float("nan"), float("nan"), float("nan")
        if memory:
            saved, beyond = saved_bytes(contestant)
            if c == base or not is_ours:
                say(f"  peak memory of {contestant.name}")
                peak = peak_mib(contestant.name, shape, scales[c])
        for k, timed in enumerate(PASSES):
            ms = sorted(1e3 * s for s in seconds[c][k])
            q1, median, q3 = quartiles(ms)
            ratio = median / (1e3 * base_median[k])
            results.append(Result(yardstick, *shape, contestant.name, asked[c], measured[c], timed, median, ms[0],
                                  q1, q3, ratio, saved, beyond, peak, repeats, torch.get_num_threads(), c == base))
    return results


def firing_rate(spikes: Tensor) -> float:
    """Spikes per neuron-step."""
    return float((spikes != 0).float().mean())


def find_scale(problem: Problem, rate: float, tolerance: float = 0.01, most: int = 40) -> tuple[float, float]:
    """The scale of the input weights at which ours fires at this rate, and the rate it gives: bisection of the log."""
    best = (1.0, 0.0)
    low, high = 0.0, float("inf")
    scale = 1.0
    for _ in range(most):
        got = firing_rate(make(OURS, problem.scaled(scale)).forward())
        if abs(got - rate) <= abs(best[1] - rate):
            best = (scale, got)
        if abs(got / rate - 1) <= tolerance:
            break
        low, high = (scale, high) if got < rate else (low, scale)
        scale = 4 * low if high == float("inf") else high / 4 if low == 0 else (low * high) ** 0.5
    return best


def alternate(contestants: list[Contestant], repeats: int) -> list[tuple[list[float], list[float]]]:
    """Seconds of forward and of forward+backward, by contestant and round.

    The order changes from round to round, so that nobody always follows the same neighbour.  A turn begins with a
    short rest, in which the spinning threads of the neighbour go to sleep, and an untimed forward to wake its own.
    """
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in contestants]
    order = list(range(len(contestants)))
    shuffle = random.Random(0).shuffle
    for contestant in contestants:
        contestant.forward_backward()
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            shuffle(order)
            for c in order:
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


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, q2, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q2, q3


def saved_bytes(contestant: Contestant) -> tuple[float, float]:
    """Bytes kept for backward per neuron-step without inputs and weights; the same without the outputs."""
    if isinstance(contestant, JaxContestant):
        T, B, N = contestant.cotangent.shape
        nbytes = sum(size for _, size in contestant.residuals())
        # jax keeps a copy of its own and never the array that the caller has, so nothing is taken off.
        return nbytes / (T * B * N), nbytes / (T * B * N)
    assert isinstance(contestant, TorchContestant)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no later storage gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = contestant.module(contestant.problem.x)
    for tensor in _context_tensors(out.grad_fn):
        keep(tensor)
    given = [contestant.problem.x, *contestant.module.parameters(), *contestant.module.buffers()]
    for tensor in given:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    kept.pop(0, None)  # empty tensors
    total = sum(storage.nbytes() for storage in kept.values())
    kept.pop(out.untyped_storage().data_ptr(), None)
    beyond = sum(storage.nbytes() for storage in kept.values())
    return total / out.numel(), beyond / out.numel()


def _context_tensors(root: Any) -> Iterator[Tensor]:
    """What custom Functions hold as attributes of their ctx, which the hooks do not see."""
    seen, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [parent for parent, _ in node.next_functions]
        yield from _tensors_in(getattr(node, "__dict__", {}))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def peak_mib(name: str, shape: Shape, scale: float) -> float:
    """The most resident memory of the first full forward+backward of a fresh process, above what stood before it.

    A fresh process, because memory that an allocator or a cache kept from an earlier pass would hide what this uses.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, name, shape, scale, torch.get_num_threads()).result()


def _peak_here(name: str, shape: Shape, scale: float, threads: int) -> float:
    torch.set_num_threads(threads)
    problem = Problem.of(shape).scaled(scale)
    warm_up(name, problem)
    contestant = make(name, problem)
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # makes VmHWM start again from what is resident now
    except (AttributeError, OSError):
        return float("nan")  # only Linux with glibc can tell
    before = _resident_kib("VmRSS")
    contestant.forward_backward()
    return (_resident_kib("VmHWM") - before) / 1024


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
