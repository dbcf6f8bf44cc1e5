"""The microbenchmark on a card: one recurrent layer over a whole sequence, in groups that alternate
among themselves.

    python -m bench.gpu.layers --seconds 120 --rows rows.jsonl

A process of its own, which the suite can stop; every finished group is in the file by then, one
JSON object a line.
"""
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import torch

from bench.arguments import make_parser
from bench.contestants import OURS, Contestant, TorchContestant, Within, rounding
from bench.gpu.card import Sample
from bench.gpu.contestants import COMPILED, EAGER, GRAPHED, OURS_BITS, OURS_GRAPHED, make, precision
from bench.gpu.suite import PRECISIONS, designs
from bench.limits import describe_error
from bench.measure import PASSES, Result, Say, alternate, milliseconds, quartiles
from bench.memory import saved_bytes
from bench.problem import Problem, Shape
from bench.rates import BASE_RATE, find_scale, firing_rate
from lsnn_ext import _ops

# As many inputs as cuDNN's fastest kernels ask for (a multiple of 128), except on P, which is the
# paper's.
YARDSTICKS = {"P256": Shape(784, 256, 80, 220), "M256": Shape(1000, 256, 128, 512),
              "L128": Shape(1000, 128, 128, 1024)}
RATES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
FEWEST, MOST = 3, 15  # rounds
GENERAL = "general"  # beside the designs: no kernels for one model, and no tensor cores


@dataclass
class Row(Result):
    group: str = ""
    design: str = ""  # forced on ours, GENERAL or a precision; '': its own choice
    plan: str = ""  # what that was
    dtype: str = ""
    sm_mhz: float = nan  # clock and power in the middle of the run
    power_w: float = nan


@dataclass(frozen=True)
class Entry:
    name: str
    dtype: str = "float32"
    rate: float = BASE_RATE  # percent, of ours
    design: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.design}".strip()


@dataclass(frozen=True)
class Group:
    """Contestants that alternate; ratios are to the first, ours in float32 at 2 %."""

    kind: str
    yardstick: str
    entries: tuple[Entry, ...]
    seconds: float  # at most, and without warm-up
    least: float  # seconds that must be left to begin


@dataclass
class Measured:
    """A contestant that is ready, and what is known of it before it is timed."""

    entry: Entry
    contestant: Contestant
    rate: float
    plan: str
    peak_mib: float
    saved: tuple[float, float]


def groups(designs: Sequence[str]) -> list[Group]:
    """All groups, the most telling first: when time runs out the rest is left out."""
    ours, names = Entry(OURS), list(YARDSTICKS)
    layers = (ours, Entry(OURS_GRAPHED), Entry(OURS_BITS), Entry(OURS, "float16"),
              *(Entry(name, dtype) for name in ("nn.LSTM", "nn.RNN")
                for dtype in ("float32", "float16")))
    rates = (ours, *(Entry(OURS, rate=rate) for rate in RATES if rate != BASE_RATE))
    by_design = (ours, *(Entry(OURS, design=design) for design in (GENERAL, *designs)))
    rounded = (ours, *(Entry(OURS, design=name) for name in PRECISIONS[1:]))
    return [
        *(Group("layers", name, layers, 10, 6) for name in names),
        Group("loops", names[0], (ours, Entry(GRAPHED), Entry(EAGER)), 8, 12),
        *(Group("designs", name, by_design, 6, 5) for name in names),
        *(Group("precisions", name, rounded, 4, 4) for name in names),
        *(Group("rates", name, rates, 6, 6) for name in names),
        Group("compiled", names[0], (ours, Entry(COMPILED)), 6, 60),
        *(Group("loops", name, (ours, Entry(GRAPHED), Entry(EAGER)), 8, 15) for name in names[1:]),
        *(Group("compiled", name, (ours, Entry(COMPILED)), 6, 60) for name in names[1:]),
    ]


def forced(design: str) -> AbstractContextManager[Any]:
    """Our kernels take this design, or the general ones, or products may round as torch's precision
    of that name lets them, while this lasts; '': as the library chooses."""
    if not _ops.available:
        return nullcontext()
    if design == GENERAL:
        return _ops.forced(kernels=GENERAL)
    if design in PRECISIONS:
        return rounding(design)
    return _ops.forced(design=design or "automatic")


def find_plan(T: int, B: int, N: int, device: str | None = None) -> dict[str, Any]:
    """The kernels that run a shape with the options that are forced now."""
    return _ops._C.plan(T, B, N, options=list(_ops.forced_options()),
                        bf16_parts=_ops.count_bf16_parts(), device=device)


def describe_plan(T: int, B: int, N: int) -> str:
    """find_plan in one line without commas; '' where there are no CUDA kernels."""
    try:
        said = find_plan(T, B, N)
    except Exception:  # a build without CUDA kernels: the rows are worth having without this
        return ""
    return "; ".join(f"{key} {value}" for key, value in said.items()).replace(",", ";")[:160]


class Bench:
    """What the groups share: the device, the deadline, where rows go, and the scales that give the
    firing rates."""

    def __init__(self, device: torch.device, deadline: float,
                 emit: Callable[[dict[str, Any]], None],
                 yardsticks: dict[str, Shape] = YARDSTICKS, say: Say = print) -> None:
        self.device, self.deadline, self.emit, self.say = device, deadline, emit, say
        self.yardsticks = yardsticks
        self._scales: dict[tuple[str, float], tuple[float, float]] = {}
        self._problem: tuple[str, Problem] | None = None

    def note(self, text: str) -> None:
        """Prints a text, and emits it for the summary."""
        self.say(f"  {text}")
        self.emit({"note": text})

    def problem(self, yardstick: str) -> Problem:
        """Kept for the groups that follow on the same yardstick, as drawing hundreds of megabytes
        takes a while."""
        if self._problem is None or self._problem[0] != yardstick:
            self._problem = None
            self._problem = yardstick, Problem.of(self.yardsticks[yardstick], self.device)
        return self._problem[1]

    def scale(self, yardstick: str, rate: float) -> tuple[float, float]:
        """The scale of the input weights for a firing rate in percent, and the rate that it
        gives."""
        if (yardstick, rate) not in self._scales:
            scale, got = find_scale(self.problem(yardstick), rate / 100)
            self._scales[yardstick, rate] = scale, 100 * got
        return self._scales[yardstick, rate]

    def run(self, group: Group) -> None:
        """Times a group and emits its rows; a contestant that fails is named and left out."""
        left = self.deadline - time.monotonic()
        if left < group.least:
            self.note(f"dropped {group.kind} on {group.yardstick}: {max(left, 0):.0f} s are left")
            return
        self.say(f"{group.kind} on {group.yardstick}")
        if group.kind == "compiled":
            torch.compiler.reset()  # it refuses to compile one function for more than a few shapes
        ready: list[Measured] = []
        for entry in group.entries:
            self._free()
            try:
                ready.append(self._prepare(group.yardstick, entry))
            except Exception as error:  # whatever stops one must not stop the others
                self.note(f"left out {entry} on {group.yardstick}: {describe_error(error)[:200]}")
        if not ready or ready[0].entry != group.entries[0]:
            self.note(
                f"left out {group.kind} on {group.yardstick}: ours did not run, to which all are "
                "compared")
            return
        cuda = self.device.type == "cuda"
        uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", "")) if cuda else ""
        sample = Sample(uuid, "clocks.sm", "power.draw")
        seconds = min(group.seconds, self.deadline - time.monotonic()) / len(ready)
        inside = [Within(one.contestant, partial(forced, one.entry.design)) for one in ready]
        times = alternate(list(inside), MOST, seconds, FEWEST, self._ms, steady=0.0)
        clock, power = (float(text) if text.replace(".", "").isdigit() else nan
                        for text in sample.read())
        for k, timed in enumerate(PASSES):
            base = quartiles(times[0][k])[1]
            for one, ms in zip(ready, times, strict=True):
                self.emit(asdict(self._row(group, one, timed, ms[k], base, clock, power)))

    def _prepare(self, yardstick: str, entry: Entry) -> Measured:
        scale, rate = self.scale(yardstick, entry.rate)
        with forced(entry.design):
            contestant = make(entry.name, entry.dtype, self.problem(yardstick).scaled(scale))
            if entry.name != OURS:
                rate = 100 * firing_rate(contestant.forward()) if contestant.spiking else nan
            contestant.forward_backward()
            T, B, _, N = self.yardsticks[yardstick]
            chosen = describe_plan(T, B, N) if entry.name == OURS else ""
            peak = self._peak(contestant)
        known = isinstance(contestant, TorchContestant) and not entry.design
        saved = saved_bytes(contestant) if known else (nan, nan)
        return Measured(entry, contestant, rate, chosen, peak, saved)

    def _free(self) -> None:
        """Memory of contestants that are gone; raises after an illegal access, as no later number
        could be believed."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _peak(self, contestant: Contestant) -> float:
        if self.device.type != "cuda" or not isinstance(contestant, TorchContestant):
            return nan  # a graph has taken its memory before
        contestant.module.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contestant.forward_backward()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _ms(self, run: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            return milliseconds(run)
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        result = run()
        last.record()
        last.synchronize()
        del result
        return float(first.elapsed_time(last))

    def _row(self, group: Group, one: Measured, timed: str, ms: list[float], base: float,
             clock: float, power: float) -> Row:
        entry, (q1, median, q3) = one.entry, quartiles(ms)
        return Row(group.yardstick, *self.yardsticks[group.yardstick], entry.name, entry.rate
                   if entry.name == OURS else nan, one.rate, timed, median, min(ms), q1, q3,
                   median / base, *one.saved, one.peak_mib, len(ms), torch.get_num_threads(),
                   entry == group.entries[0], group=group.kind, design=entry.design, plan=one.plan,
                   dtype=precision(entry.name, entry.dtype), sm_mhz=clock, power_w=power)


def main(arguments: list[str] | None = None) -> int:
    """Runs the groups in their order for so many seconds; 1 when ours gave no row at all."""
    parser = make_parser("bench.gpu.layers", __doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rows", type=Path, required=True, help="file for one JSON object a line")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"bench.gpu.layers: torch {torch.__version__} sees no CUDA device")
        return 2
    deadline, rows = time.monotonic() + given.seconds, 0
    with given.rows.open("a") as file:
        def emit(row: dict[str, Any]) -> None:
            nonlocal rows
            rows += "note" not in row
            print(json.dumps(row), file=file, flush=True)

        bench = Bench(torch.device("cuda", 0), deadline, emit, say=partial(print, flush=True))
        for group in groups(designs(torch.cuda.get_device_capability(0))):
            bench.run(group)
    print(f"{rows} rows")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
