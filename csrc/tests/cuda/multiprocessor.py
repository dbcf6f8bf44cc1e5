"""A MODEL of the cycles of a step: all warps of one multiprocessor, walked along a path through
their machine code.

Each of four schedulers issues an instruction a cycle, of the warp that has been ready for longest.
A warp waits for what it waits for in chain.py, and for what it shares with others: the units of its
scheduler, shared memory together with the first level cache, what the second level cache delivers,
and the other blocks of its cluster. How long these are busy is in NVIDIA's table of throughputs for
compute capability 9.0, or in costs.h. No two lanes meet in a bank of shared memory, what lanes
load from main memory lies side by side, and instructions are there when they are wanted. Nothing
here was measured by this project.
"""
import heapq
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from chain import BARRIER, NO_BARRIER, OPERANDS_READ, TAKEN, latency
from sass import Kernel

COSTS = (Path(__file__).resolve().parents[2] / "cuda" / "costs.h").read_text()
SCHEDULERS = 4
PRODUCTS_OF_MMA = 16 * 8 * 16
ROUNDS = 6  # all steps over and over; the first time tells of the start only
# Cycles for which an instruction of a warp keeps a unit of its scheduler busy; others are those of
# integers, comparisons and moves.
UNITS = {"FADD": ("floats", 1), "FMUL": ("floats", 1), "FFMA": ("floats", 1),
         "IMAD": ("integer products", 2),
         **dict.fromkeys(("MUFU", "POPC", "FLO", "I2F", "F2I", "F2F"), ("special", 8)),
         **dict.fromkeys(("BRA", "BAR", "SYNCS", "NOP", "WARPSYNC", "BSSY", "BSYNC"), ("none", 0))}
# What goes through shared memory and the first level cache, 128 bytes a cycle.
IN_MEMORY = {"LDS", "STS", "SHFL", "LDG", "STG", "LDGSTS", "STAS"}


@cache
def cost(name: str) -> float:
    """A number of costs.h."""
    found = re.search(rf"X\({name}, ([\d.]+),", COSTS)
    if not found:
        raise SystemExit(f"costs.h: expected {name}")
    return float(found[1])


class Load(NamedTuple):
    """What a multiprocessor runs at a time."""

    warps: int
    groups: int = 1  # the warps of each meet in its barriers
    read: Mapping[int, float] = {}  # bytes from the second level cache, by an instruction's index
    sent: float = 0  # bytes that an instruction STAS sends to other blocks
    waits: int = -1  # the index of that which waits for what all blocks have sent in a step,
    behind: int = 0  # of this step, or of that many steps before


class _Op(NamedTuple):
    """An instruction on its path."""

    stall: int  # the next three are numbers of barriers, see chain.py
    sets: int
    reads: int
    waits: tuple[int, ...]
    latency: int
    unit: str
    busy: float
    in_memory: int  # cycles
    read: float  # bytes
    meets: bool
    sends: bool
    awaits: bool


def _decoded(kernel: Kernel, i: int, following: int, load: Load) -> _Op:
    at = kernel.code[i]
    head = at.name.split(".")[0]
    wide = 4 if ".128" in at.name else 2 if ".64" in at.name else 1
    unit, busy = UNITS.get(head, ("uniform" if head.startswith("U") else "integers", 2.0))
    if head == "HMMA":
        unit, busy = "tensor", SCHEDULERS * PRODUCTS_OF_MMA / cost("mma_macs")
    if head in IN_MEMORY:
        unit, busy = "none", 0
    return _Op(max(at.control & 15, 1) + (TAKEN if following != i + 1 else 0),
               at.control >> 5 & 7, at.control >> 8 & 7,
               tuple(s for s in range(6) if at.control >> 11 + s & 1), latency(at.name), unit,
               busy, wide if head in IN_MEMORY else 0, load.read.get(i, 0), head == "BAR",
               head == "STAS", i == load.waits)


class _Warp:
    def __init__(self) -> None:
        self.at = 0  # instructions done
        self.free = [0.0] * 8
        self.awaited = 0  # steps of the other blocks
        self.sent = 0  # how many times it has sent something


class _Run:
    """Some warps that go through a program together."""

    def __init__(self, program: Sequence[_Op], load: Load) -> None:
        self.program, self.load = program, load
        self.warps = [_Warp() for _ in range(load.warps)]
        # when, since when it is ready, which
        self.queue = [(0.0, 0.0, w) for w in range(load.warps)]
        self.issued = [0.0] * SCHEDULERS  # the next cycle of each
        self.units: dict[tuple[int, str], float] = {}  # free again; so the next three
        self.memory = self.level2 = self.link = 0.0
        self.met: list[list[int]] = [[] for _ in range(load.groups)]
        steps = max(sum(op.awaits for op in program), 1)
        self.sends = sum(op.sends for op in program) // steps  # of a warp in a step
        self.sent: list[int] = []  # in a step, by all warps
        self.arrived: list[float] = []  # when what was sent in a step has come
        self.waiting: list[int] = []  # warps, for the next of these
        self.ends = [0.0] * (ROUNDS + 1)

    def wake(self, warps: Sequence[int], at: float) -> None:
        for w in warps:
            heapq.heappush(self.queue, (at, at, w))

    def go(self) -> None:
        while self.queue:
            now, since, w = heapq.heappop(self.queue)
            warp = self.warps[w]
            op = self.program[warp.at % len(self.program)]
            ready = max([now, *(warp.free[s] for s in op.waits)])
            scheduler = w % SCHEDULERS
            free = max(self.issued[scheduler], self.units.get((scheduler, op.unit), 0.0))
            if ready > now:
                heapq.heappush(self.queue, (ready, ready, w))
            elif free > now:
                heapq.heappush(self.queue, (free, since, w))
            else:
                self.issued[scheduler] = now + 1
                self.units[scheduler, op.unit] = now + op.busy
                self.issue(op, now, w)

    def issue(self, op: _Op, now: float, w: int) -> None:
        warp, done = self.warps[w], now
        if op.in_memory:
            done = max(now, self.memory)
            self.memory = done + op.in_memory
        if op.read:
            done = self.level2 = max(done, self.level2) + op.read / cost("l2_bytes")
        warp.free[op.sets] = max(warp.free[op.sets], done + op.latency)
        warp.free[op.reads] = max(warp.free[op.reads], done + OPERANDS_READ)
        warp.free[NO_BARRIER] = 0
        warp.at += 1
        times, rest = divmod(warp.at, len(self.program))
        if rest == 0:
            self.ends[times] = max(self.ends[times], now)
        if op.sends:
            self.send(now, warp)
        if op.meets:
            self.meet(now + op.stall, w)
        elif op.awaits and warp.awaited - self.load.behind == len(self.arrived):
            self.waiting.append(w)
        elif times < ROUNDS:
            waits = op.awaits and warp.awaited >= self.load.behind
            came = self.arrived[warp.awaited - self.load.behind] if waits else now
            self.wake([w], max(now + op.stall, came))
        warp.awaited += op.awaits

    def meet(self, now: float, w: int) -> None:
        group = self.met[w * self.load.groups // self.load.warps]
        group.append(w)
        if len(group) == self.load.warps // self.load.groups:
            self.wake(group, now + BARRIER)
            group.clear()

    def send(self, now: float, warp: _Warp) -> None:
        """All blocks are alike: when all of this one have sent, so have the others."""
        self.link = max(self.link, now) + self.load.sent / cost("cluster_bytes")
        step, warp.sent = warp.sent // self.sends, warp.sent + 1
        if step == len(self.sent):
            self.sent.append(0)
        self.sent[step] += 1
        if self.sent[step] == self.sends * self.load.warps:
            self.arrived.append(self.link + cost("exchange"))
            self.wake(self.waiting, self.arrived[-1])
            self.waiting.clear()


def cycles_of_step(kernel: Kernel, steps: Sequence[Sequence[int]], load: Load) -> float:
    """Of a step, in the mean of some that may differ, of each of which the indices of its
    instructions."""
    path = [i for step in steps for i in step]
    program = [_decoded(kernel, i, following, load)
               for i, following in zip(path, [*path[1:], path[0]], strict=True)]
    run = _Run(program, load)
    run.go()
    return (run.ends[ROUNDS] - run.ends[1]) / (ROUNDS - 1) / len(steps)
