"""A MODEL of the time of the CUDA kernels, step by step: `python -m bench.gpu_model` prints it as Markdown.

Nothing here was measured. For each part of a training step there are three times:

  floor       what must cross the card's main memory, each byte once, at the bandwidth of a copy
  throughput  the busiest of memory, shared memory, second level cache and the arithmetic of matrix products, if no
              latency showed
  expected    the longest chain of dependent instructions of a step, or the throughput where that is longer

The chain is counted by bench/chain.py in the machine code for compute capability 9.0 (CUDA 13.0, alif_f32.cu): one
warp is walked along the path of the paper's network, instruction after instruction as the hardware issues them. It
waits for the stall counts that the compiler has written into each instruction, and for latencies that others have
measured. Warps that work beside it are taken not to slow it down. docs/kernels.md says what each part is, and how far
to trust all this.
"""
import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Card:
    """What the model takes a card to be."""

    clock: float = 1.755e9  # cycles a second, under load
    processors: int = 132  # multiprocessors
    shared: float = 128  # bytes a cycle that shared memory gives a multiprocessor
    cache: float = 28.7  # bytes a cycle from the second level cache to a multiprocessor, all of them reading
    memory: float = 3.0e12  # bytes a second of main memory, read and written
    fp32: float = 0.6 * 67e12  # floating-point operations a second of a float32 matrix product, without TF32
    launch: float = 2.1e-6  # seconds from one kernel of a stream to the next


CARDS = {"h100": Card(), "h200": Card(memory=4.3e12)}
PLANNED_AS = {"h200": "h100"}  # the names that lsnn_ext._C.plan knows


@dataclass(frozen=True)
class Counted:
    """Cycles of one warp, as `python -m bench.chain` finds them; it also has the latencies that are in them."""

    # Forward, a step.
    step: float = 987  # all but the two below: addresses, loads, step(), stores, the word of spikes, barrier
    list_forward: float = 292  # eight words of 32 spikes, turned into a list of rows
    four: float = 164  # rows added together, from shared memory
    # Backward, a step.
    record: float = 573  # addresses and loads for the adjoint, set on their way
    list_backward: float = 350  # eight words of the neurons whose pseudo-derivative is not 0
    eight: float = 584  # rows multiplied together: their list, sums over the lanes, the result
    lap: float = 128  # of 128 numbers of these rows
    adjoint: float = 598  # coefficients, step_adjoint(), stores
    barriers: float = 446  # two, and the end of the step
    replay_segment: float = 540  # a step of four that are replayed together; the words of spikes come from main memory
    replay_chunk: float = 576  # the same, with stores; all comes from the second level cache
    # Weight gradient.
    weight_list: float = 1133  # a warp lists the spikes of an item of a step; the words come from main memory
    weight_rest: float = 197  # for sixteen items of steps: two barriers, a division
    item: float = 161  # an item of a step, without its spikes; eight gradients are loaded together from main memory
    item_four: float = 275  # four of its spikes: read, added, written
    item_one: float = 135  # one that is left over
    # Assumed.
    far: float = 257  # that a load takes longer from the second level cache than from shared memory
    exchange: float = 200  # a word's way to another block of the cluster
    receive: float = 70  # a lane takes one number out of the inbox


COUNTED = Counted()


class Work(NamedTuple):
    """A layer and what its neurons do."""

    T: int
    B: int
    N: int
    inputs: int
    spikes: float = 0.02  # share of the neurons that fire in a step
    active: float = 0.31  # share whose pseudo-derivative is not 0


class Part(NamedTuple):
    """One line of the table, in seconds."""

    name: str
    design: str
    floor: float
    throughput: float
    expected: float
    cycles: float  # of a step; nan where there is none
    note: str


WORK = {"P": Work(784, 256, 220, 80), "512": Work(1000, 256, 512, 100), "1024": Work(1000, 128, 1024, 100)}
GOAL = 1.1e-3  # seconds of a training step of P, forward and backward, all parts


def average(neurons: float, share: float, of: Callable[[int], float]) -> float:
    """The mean of something that depends on how many of so many neurons fire."""
    n = round(neurons)
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) * of(k) for k in range(n + 1))


def listed(word_count: int, neurons: int) -> Iterator[int]:
    """A warp lists eight words at a time: how many neurons each time."""
    for first in range(0, word_count, 8):
        yield min(256, neurons - 32 * first)


def rounds(launch: dict[str, Any], B: int) -> int:
    """How many items the busiest group works on, one after the other."""
    teams = launch["blocks"] // launch["blocks of a cluster"]
    return math.ceil(B / (teams * launch["items of a block"]))


def in_rounds(again: int) -> str:
    """For a note, where the items are too many to be worked on at once."""
    return f"; {again} rounds" if again > 1 else ""


def steps_of_the_library(card: Card, w: Work, kernels: float) -> float:
    """Seconds of a step of the design `step`: a matrix product and so many kernels, and the time between them."""
    return (1 + kernels) * card.launch + 2 * w.B * w.N**2 / card.fp32


def forward(card: Card, w: Work, launch: dict[str, Any]) -> Part:
    """x is read; the spikes as numbers, y, the bits and every 128th state are written."""
    c, design, ranks = COUNTED, launch["design"], launch["blocks of a cluster"]
    words, items = math.ceil(w.N / 32), launch["items of a block"]
    floor = w.T * w.B * w.N * (3 * 4 + 1 / 8 + 16 / 128) / card.memory
    if design == "step":
        step = steps_of_the_library(card, w, 2)
        product = 2 * w.T * w.B * w.N**2 / card.fp32
        return Part("forward", design, floor, max(floor, product), w.T * step, math.nan, f"{step * 1e6:.1f} us a step")
    lists = math.ceil(words / 8) * c.list_forward
    groups = sum(average(n, w.spikes, lambda k: math.ceil(k / 4)) for n in listed(words, w.N))
    chain = c.step + lists + groups * (c.four + (c.far if design == "gather" else 0))
    if design == "cluster":
        chain += c.exchange
    row_bytes = items * w.spikes * w.N * 4 * w.N / ranks
    unit = row_bytes / (card.cache if design == "gather" else card.shared)
    again = rounds(launch, w.B)
    cycles = max(chain, unit)
    note = f"list {lists:.0f}, rows {groups * c.four:.0f}, the rest {c.step:.0f}" + in_rounds(again)
    return Part("forward", design, floor, max(floor, again * w.T * unit / card.clock),
                max(floor, again * w.T * cycles / card.clock), cycles, note)


def backward(card: Card, w: Work, launch: dict[str, Any]) -> Part:
    """dL/dz, y and the bits are read, dL/dx is written. y is read again, which the floor does not count."""
    c, design, ranks = COUNTED, launch["design"], launch["blocks of a cluster"]
    floor = w.T * w.B * w.N * (3 * 4 + 1 / 8 + 16 / 128) / card.memory
    if design == "step":
        step = steps_of_the_library(card, w, 4)
        product = 2 * w.T * w.B * w.N**2 / card.fp32
        return Part("backward", design, floor, max(floor, product), w.T * step, math.nan, f"{step * 1e6:.1f} us a step")
    words, items = math.ceil(math.ceil(w.N / 32) / ranks), launch["items of a block"]
    rows = w.active * min(w.N, 32 * words)
    eights, warps, laps = math.ceil(rows / 8), launch["threads of an item"] // 32, math.ceil(w.N / 128)
    product = math.ceil(eights / warps) * (c.eight + laps * (c.lap + (c.far if design == "gather" else 0)))
    replay = c.replay_segment + c.replay_chunk
    lists = math.ceil(words / 8) * c.list_backward
    chain = c.record + lists + product + c.adjoint + c.barriers + replay
    received = 0.0
    if design == "cluster":
        received = c.exchange + math.ceil(w.N / launch["threads of an item"]) * c.receive
    lines = math.ceil(w.N * 4 / 128)  # 128 bytes of shared memory a cycle; eight rows and dL/dc, then nine shuffles
    unit = items * eights * (9 * lines + 9)
    if design == "gather":
        unit = items * eights * 8 * w.N * 4 / card.cache
    again = rounds(launch, w.B)
    cycles = max(chain + received, unit)
    read_twice = w.T * w.B * w.N * 4 / card.memory
    note = (f"replay {replay:.0f}, list {lists:.0f}, product {product:.0f}, "
            f"adjoint {c.adjoint:.0f}, loads {c.record:.0f}, barriers {c.barriers:.0f}"
            + f", received {received:.0f}" * (received > 0) + in_rounds(again))
    return Part("backward", design, floor, max(floor + read_twice, again * w.T * unit / card.clock),
                max(floor + read_twice, again * w.T * cycles / card.clock), cycles, note)


def weight_gradient(card: Card, w: Work, tiles: dict[str, Any]) -> Part:
    """dL/dx and the bits are read, the parts written and read."""
    c, rows, warps = COUNTED, min(tiles["rows"], w.N), math.ceil(tiles["columns"] / 32)
    parts = 2 * tiles["parts"] * w.N**2 * 4
    floor = w.T * w.B * w.N * (4 + 1 / 8) / card.memory
    items = w.T * w.B / tiles["parts"]  # of a block, one after the other; a block to a multiprocessor
    lists = (c.weight_rest + math.ceil(16 / warps) * c.weight_list) / 16
    sums = average(rows, w.spikes, lambda k: k // 4 * c.item_four + k % 4 * c.item_one)
    cycles = lists + c.item + sums
    unit = w.spikes * rows * 2 * warps  # a warp reads and writes 128 bytes for each
    seconds = items * cycles / card.clock
    blocks = f"{tiles['tiles']} x {tiles['parts']} blocks"
    note = f"{cycles:.0f} cycles an item of a step: lists {lists:.0f}, sums {sums:.0f}, the rest {c.item:.0f}"
    return Part("weight gradient", blocks, floor, max(floor, items * unit / card.clock),
                max(floor, seconds) + parts / card.memory, math.nan, note)


def projection(card: Card, w: Work, name: str) -> Part:
    """A float32 matrix product of the caller's library, (T B) x inputs x N."""
    floor = w.T * w.B * (w.inputs + w.N) * 4 / card.memory
    flops = 2 * w.T * w.B * w.inputs * w.N / card.fp32
    return Part(name, "library", floor, max(floor, flops), max(floor, flops), math.nan, "")


def model(card: Card, w: Work, plan: dict[str, Any]) -> list[Part]:
    """All parts of one training step of a layer; plan: what lsnn_ext._C.plan says of it."""
    return [projection(card, w, "input currents"), forward(card, w, plan["forward"]),
            backward(card, w, plan["backward"]), weight_gradient(card, w, plan["weight gradient"]),
            projection(card, w, "input weight gradient")]


def table(parts: list[Part]) -> str:
    """Markdown, milliseconds."""
    lines = ["| part | design | floor | throughput | expected | cycles of a step | of these |",
             "|---|---|---|---|---|---|---|"]
    total = Part("**all**", "", sum(p.floor for p in parts), sum(p.throughput for p in parts),
                 sum(p.expected for p in parts), math.nan, "")
    for p in [*parts, total]:
        milliseconds = " | ".join(f"{1e3 * seconds:.2f}" for seconds in (p.floor, p.throughput, p.expected))
        cycles = "" if math.isnan(p.cycles) else f"{p.cycles:,.0f}"
        lines.append(f"| {p.name} | {p.design} | {milliseconds} | {cycles} | {p.note} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    import lsnn_ext

    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--card", choices=CARDS, default="h100")
    parser.add_argument("--shape", help="T,B,inputs,N in place of the three that docs/kernels.md shows")
    given = parser.parse_args()
    card, shapes = CARDS[given.card], WORK
    if given.shape:
        sizes = given.shape.split(",")
        if len(sizes) != 4 or not all(n.isdigit() and int(n) > 0 for n in sizes):
            parser.error(f"--shape: expected four sizes T,B,inputs,N, got {given.shape}")
        T, B, inputs, N = map(int, sizes)
        shapes = {"given": Work(T, B, N, inputs)}
    for name, w in shapes.items():
        plan = lsnn_ext._ops._C.plan(w.T, w.B, w.N, spikes=w.spikes, active=w.active,
                                         card=PLANNED_AS.get(given.card, given.card))
        print(f"**{name}**: {w.T} steps, batch {w.B}, {w.inputs} inputs, {w.N} neurons, {100 * w.spikes:g} % firing, "
              f"{100 * w.active:g} % active; {given.card}, ms, MODEL, not measured\n\n{table(model(card, w, plan))}\n")
        if name == "P":
            print(f"Goal: {1e3 * GOAL:g} ms for all of it.\n")


if __name__ == "__main__":
    main()
