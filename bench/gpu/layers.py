"""The microbenchmark on a card: one recurrent layer over a whole sequence, in groups that alternate among themselves.

    python -m bench.gpu.layers --seconds 120 --rows rows.jsonl

A process of its own, which the suite can stop; every finished group is in the file by then, one JSON object a line.
"""
import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.contestants import OURS, Contestant, Problem, Shape, TorchContestant
from bench.gpu.card import Monitor, plan
from bench.gpu.contestants import COMPILED, EAGER, GRAPHED, make, precision
from bench.gpu.suite import DESIGNS
from bench.measure import BASE_RATE, PASSES, Result, find_scale, firing_rate, quartiles, saved_bytes

# As many inputs as cuDNN's fastest kernels ask for (a multiple of 128), except on P, which is the paper's.
YARDSTICKS = {"P256": Shape(784, 256, 80, 220), "M256": Shape(1000, 256, 128, 512), "L128": Shape(1000, 128, 128, 1024)}
RATES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
FEWEST, MOST = 3, 15  # rounds


@dataclass(frozen=True)
class Entry:
    """One contestant of a group."""

    name: str
    dtype: str = "float32"
    rate: float = BASE_RATE  # percent, of ours
    design: str = ""  # forced on ours; '': what it chooses itself


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
    """A contestant that is ready, and its times by pass in ms."""

    entry: Entry
    contestant: Contestant
    rate: float
    plan: str
    peak_mib: float
    saved: tuple[float, float]
    ms: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def groups(designs: tuple[str, ...] = DESIGNS) -> list[Group]:
    """All groups, the most telling first: when time runs out the rest is left out."""
    ours, names = Entry(OURS), list(YARDSTICKS)
    layers = (ours, Entry(OURS, "float16"), *(Entry(name, dtype) for name in ("nn.LSTM", "nn.RNN")
                                              for dtype in ("float32", "float16")))
    rates = (ours, *(Entry(OURS, rate=rate) for rate in RATES if rate != BASE_RATE))
    forced = (ours, *(Entry(OURS, design=design) for design in designs))
    return [
        *(Group("layers", name, layers, 10, 6) for name in names),
        Group("loops", names[0], (ours, Entry(GRAPHED), Entry(EAGER)), 8, 12),
        *(Group("designs", name, forced, 6, 5) for name in names),
        *(Group("rates", name, rates, 6, 6) for name in names),
        Group("compiled", names[0], (ours, Entry(COMPILED)), 6, 60),
        *(Group("loops", name, (ours, Entry(GRAPHED), Entry(EAGER)), 8, 15) for name in names[1:]),
        *(Group("compiled", name, (ours, Entry(COMPILED)), 6, 60) for name in names[1:]),
    ]


@contextmanager
def forced(design: str) -> Iterator[None]:
    """LSNN_CUDA names the design while this lasts; the kernels read it at every call."""
    before = os.environ.pop("LSNN_CUDA", None)
    if design:
        os.environ["LSNN_CUDA"] = design
    try:
        yield
    finally:
        os.environ.pop("LSNN_CUDA", None)
        if before:
            os.environ["LSNN_CUDA"] = before


class Bench:
    """What the groups share: the device, the deadline, where rows go, and the scales that give the firing rates."""

    def __init__(self, device: torch.device, deadline: float, emit: Callable[[dict[str, Any]], None],
                 yardsticks: dict[str, Shape] | None = None, say: Callable[[str], None] = print) -> None:
        self.device, self.deadline, self.emit, self.say = device, deadline, emit, say
        self.yardsticks = YARDSTICKS if yardsticks is None else yardsticks
        self._scales: dict[tuple[str, float], tuple[float, float]] = {}
        self._problem: tuple[str, Problem] | None = None

    def note(self, text: str) -> None:
        """Said, and kept for the summary."""
        self.say(f"  {text}")
        self.emit({"note": text})

    def problem(self, yardstick: str) -> Problem:
        """Kept for the groups that follow on the same yardstick, as drawing hundreds of megabytes takes a while."""
        if self._problem is None or self._problem[0] != yardstick:
            self._problem = None
            self._problem = yardstick, Problem.of(self.yardsticks[yardstick], self.device)
        return self._problem[1]

    def scale(self, yardstick: str, rate: float) -> tuple[float, float]:
        """The scale of the input weights for a firing rate in percent, and the rate that it gives."""
        if (yardstick, rate) not in self._scales:
            scale, got = find_scale(self.problem(yardstick), rate / 100, tolerance=0.02, most=25)
            self._scales[yardstick, rate] = scale, 100 * got
        return self._scales[yardstick, rate]

    def run(self, group: Group) -> None:
        """Times a group and emits its rows; a contestant that fails is named and left out."""
        left = self.deadline - time.monotonic()
        if left < group.least:
            self.note(f"dropped {group.kind} on {group.yardstick}: {max(left, 0):.0f} s are left")
            return
        self.say(f"{group.kind} on {group.yardstick}")
        self._free()
        if group.kind == "compiled":
            torch.compiler.reset()  # it refuses to compile one function for more than a few shapes
        ready = [measured for entry in group.entries if (measured := self._prepare(group, entry)) is not None]
        if not ready or ready[0].entry != group.entries[0]:
            self.note(f"left out {group.kind} on {group.yardstick}: ours did not run, to which all are compared")
            return
        with Monitor(self._uuid()) as monitor:
            rounds = self._alternate(ready, min(group.seconds, self.deadline - time.monotonic()))
        for k, timed in enumerate(PASSES):
            base = quartiles(sorted(ready[0].ms[k]))[1]
            for measured in ready:
                self.emit(self._row(group, measured, k, timed, base, rounds, monitor))

    def _prepare(self, group: Group, entry: Entry) -> Measured | None:
        label = f"{entry.name} {entry.dtype} {entry.design}".strip()
        try:
            scale, got = self.scale(group.yardstick, entry.rate)
            with forced(entry.design):
                contestant = make(entry.name, entry.dtype, self.problem(group.yardstick).scaled(scale))
                spikes = firing_rate(contestant.forward()) if entry.name != OURS and contestant.spiking else got / 100
                contestant.forward_backward()
                T, B, _, N = self.yardsticks[group.yardstick]
                chosen = plan(T, B, N) if entry.name == OURS else ""
                peak = self._peak(contestant)
            plain = isinstance(contestant, TorchContestant)
            saved = saved_bytes(contestant) if plain and entry.design == "" else (float("nan"), float("nan"))
            rate = 100 * spikes if contestant.spiking else float("nan")
            return Measured(entry, contestant, rate, chosen, peak, saved)
        except Exception as reason:  # whatever stops one must not stop the others
            lines = str(reason).strip().splitlines() or ["no message"]
            self.note(f"left out {label} on {group.yardstick}: {type(reason).__name__}: {lines[0][:200]}")
        self._free()
        return None

    def _free(self) -> None:
        """Memory of contestants that are gone; raises after an illegal access, as no later number could be believed."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _peak(self, contestant: Contestant) -> float:
        if self.device.type != "cuda" or not isinstance(contestant, TorchContestant):
            return float("nan")  # a graph has taken its memory before
        contestant.module.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contestant.forward_backward()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _uuid(self) -> str:
        return str(getattr(torch.cuda.get_device_properties(0), "uuid", "")) if self.device.type == "cuda" else ""

    def _alternate(self, ready: list[Measured], seconds: float) -> int:
        """Rounds in changing order, as many as there is time for; the first warms up and says how long they take."""
        order, shuffle, rounds = list(range(len(ready))), random.Random(0).shuffle, FEWEST
        gc.collect()
        gc.disable()
        try:
            begun, done = time.monotonic(), 0
            while done <= rounds:
                shuffle(order)
                for c in order:
                    with forced(ready[c].entry.design):
                        for k, run in enumerate((ready[c].contestant.forward, ready[c].contestant.forward_backward)):
                            ms = self._ms(run)
                            if done:
                                ready[c].ms[k].append(ms)
                if done == 0:
                    rounds = int(min(MOST, max(FEWEST, seconds / max(time.monotonic() - begun, 1e-6) - 1)))
                done += 1
                gc.collect(0)
        finally:
            gc.enable()
        return rounds

    def _ms(self, run: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        result = run()
        last.record()
        last.synchronize()
        del result
        return float(first.elapsed_time(last))

    def _row(self, group: Group, measured: Measured, k: int, timed: str, base: float, rounds: int,
             monitor: Monitor) -> dict[str, Any]:
        entry, ms = measured.entry, sorted(measured.ms[k])
        q1, median, q3 = quartiles(ms)
        asked = entry.rate if entry.name == OURS else float("nan")
        result = Result(group.yardstick, *self.yardsticks[group.yardstick], entry.name, asked, measured.rate, timed,
                        median, ms[0], q1, q3, median / base, *measured.saved, measured.peak_mib, rounds,
                        torch.get_num_threads(), entry == group.entries[0])
        return {"group": group.kind, "design": entry.design, "plan": measured.plan,
                "dtype": precision(entry.name, entry.dtype), "sm_mhz": monitor.sm_mhz, "power_w": monitor.power_w,
                **asdict(result)}


def main(arguments: list[str] | None = None) -> int:
    """Runs the groups in their order for so many seconds; 1 when ours gave no row at all."""
    parser = argparse.ArgumentParser("python -m bench.gpu.layers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rows", type=Path, required=True, help="file for one JSON object a line")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"bench.gpu.layers: torch {torch.__version__} sees no CUDA device")
        return 2
    deadline, rows = time.monotonic() + given.seconds, 0
    designs = DESIGNS if torch.cuda.get_device_capability(0) >= (9, 0) else tuple(d for d in DESIGNS if d != "cluster")
    with given.rows.open("a") as file:
        def emit(row: dict[str, Any]) -> None:
            nonlocal rows
            rows += "note" not in row
            print(json.dumps(row), file=file, flush=True)

        bench = Bench(torch.device("cuda", 0), deadline, emit, say=lambda text: print(text, flush=True))
        for group in groups(designs):
            bench.run(group)
    print(f"{rows} rows")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
