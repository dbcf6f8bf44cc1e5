"""What is expected of the machine code of the hot CUDA kernels, a part of machine_code.py. Each
function yields the errors of a kernel, and prints its counts."""
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chain import cycles
from multiprocessor import Load, cost, cycles_of_step
from sass import Kernel, Loop, Wanted, repeated

CUDA = Path(__file__).resolve().parents[2] / "cuda"
SHARED = (CUDA / "shared.h").read_text()
# A step of the paper's forward kernel, with eight spikes, or with 16 whose rows are not in shared
# memory; and of its backward kernel, with twelve active neurons of a warp: cycles at most, by the
# model of chain.py.
MOST_CYCLES, MOST_CYCLES_GATHER, MOST_CYCLES_BACKWARD = 650, 1000, 1100
# The same by matrices, of two items of a lane and 220 neurons.
MOST_CYCLES_MATRICES = {f"lsnn_matrix_kernel<7, {parts}>": 1000 for parts in (1, 2, 3)}
# The same of all warps of a multiprocessor, with what they share and with replays, by the model of
# multiprocessor.py: of two items with 220 neurons, or with 512 and rows in main memory; and by
# matrices of one of four blocks that share out 220 neurons, of eight with 512 or 448, eight items.
MOST_CYCLES_OF_ALL = {"lsnn_block_matrix_kernel<7, 2>": 2050,
                      "lsnn_block_matrix_kernel<7, 1>": 1300,
                      "lsnn_forward_kernel<2, true, true, float>": 700,
                      "lsnn_forward_kernel<4, false, true, float>": 2400,
                      "lsnn_backward_kernel<7>": 2700,
                      "lsnn_matrix_kernel<7, 3>": 1450,
                      "lsnn_matrix_kernel<7, 2>": 1330,
                      "lsnn_matrix_kernel<7, 1>": 1080,
                      "lsnn_matrix_kernel<14, 3>": 2500,
                      "lsnn_matrix_kernel<16, 2>": 1770,
                      "lsnn_matrix_kernel<16, 1>": 1300}
SPIKES = 0.02  # of a neuron and step, whose rows are read
STEPS_OF_REPLAY, SEGMENT, WORD = 8, 128, 32  # steps that are replayed together, and a word's
# What the formulas of cycles.cpp take for these steps, and how far it may be from what is counted
# here: another nvcc makes other code.
COUNTED = {"lsnn_forward_kernel<2, true, true, float>": "lsnn_step",
           "lsnn_forward_kernel<4, false, true, float>": "lsnn_gather_step",
           "lsnn_backward_kernel<7>": "lsnn_backward_step"}
OF_PARTS = {1: "medium", 2: "high"}  # by the parts of a factor
MOST_OFF = 0.05


def read(name: str, kernel: Kernel) -> Iterator[str]:
    """What is wrong with the code of a hot kernel; prints what was counted. Of each kernel a few
    features are known: four weights are loaded at once, from shared memory or as constants, for
    several rows in one loop; a step of the forward pass makes a word of spikes by three
    shuffles."""
    backward = name.startswith("backward")
    if kernel.find("LDL|STL"):
        yield f"{name}: uses local memory"
    if kernel.find("CALL") and not backward:  # backwards it divides
        yield f"{name}: calls a function"
    for what in ("LDG", "STG"):
        if not kernel.find(rf"{what}\.E\.128"):
            yield f"{name}: expected {what} of 16 bytes, for numbers of four neurons"

    row = r"LDS\.128" if name.endswith("true>") else r"LDG\.E\.128\.CONSTANT"
    at_once = 8 if backward else 4
    rows = next((loop for loop in kernel.loops() if len(kernel.find(row, loop)) >= at_once), None)
    if rows is None:
        yield f"{name}: expected a loop with {at_once} times {row}, for the weight rows"
        return
    wide, sums, barriers = (len(kernel.find(what, rows)) for what in (row, "FADD|FFMA", "BAR"))
    per_row = sums / 4 / at_once  # quads of a row that a round adds
    print(f"{name}\n    {len(kernel.code)} instructions; a round for {at_once} rows: "
          f"{rows.length}, of them {wide} wide loads and {sums} sums; for a row's quad "
          f"{rows.length / at_once / per_row:.1f}")
    if barriers:
        yield f"{name}: a barrier in the loop over weight rows"
    if not backward:
        yield from read_step(name, kernel, rows)


def read_step(name: str, kernel: Kernel, rows: Loop) -> Iterator[str]:
    """The loop over the steps of a forward kernel."""
    def within(pattern: str) -> Wanted:
        places = set(kernel.find(pattern, step))
        return lambda i: i in places

    enclosing = (loop for loop in kernel.loops() if loop.first < rows.first
                 and loop.last > rows.last)
    step = next((loop for loop in enclosing if len(kernel.find(r"SHFL\.BFLY", loop)) == 3), None)
    if step is None or not kernel.find(r"STS\.U16", step):
        yield f"{name}: expected a loop over steps that lists neurons"
        return
    if (found := len(kernel.find("BAR", step))) != 1:
        yield f"{name}: expected a barrier in a step, found {found}"
    on_the_way = ["POPC", *[r"STG\.E\.128"] * 2, *[r"SHFL\.BFLY"] * 3, "BAR"]
    silent = kernel.shortest(step, [within(what) for what in on_the_way])
    listing = [i for i in kernel.find(r"POPC|STS\.U16", step) if i < rows.first]
    words = len(kernel.find(r"STS\.U16", Loop(listing[0], listing[-1])))
    memory, floats = (len([i for i in silent if re.match(kind, kernel.code[i].name)])
                      for kind in ("LD|ST", "F(ADD|MUL|FMA|SETP|SEL)"))
    print(f"    a step without spikes has {len(silent)} at least, of them {memory} of memory, "
          f"{floats} of floats, some {listing[-1] - listing[0] + 1} for {words} words of spikes")


def read_lsnn(name: str, kernel: Kernel) -> Iterator[str]:
    """The kernels of the paper's network: a step is one loop around the loops over further rows."""
    if kernel.find("LDL|STL|CALL"):
        yield f"{name}: uses local memory or calls a function"
    if name.startswith("lsnn_backward"):
        yield from read_lsnn_backward(name, kernel)
        return
    if "matrix" in name:
        yield from read_lsnn_own_rows(name, kernel)
        return
    of = name[name.index("<") + 1:-1].split(", ")
    warps, in_shared, whole = int(of[0]), of[1] == "true", of[2:] == ["true", "float"]
    copies = r"LDGSTS\..*128" if whole else "LDGSTS"
    step = next((loop for loop in kernel.loops() if kernel.find("LDGDEPBAR", loop)
                 and len(kernel.find("VOTE", loop)) >= 4), None)
    if step is None or not kernel.find(copies, step):
        yield f"{name}: expected a loop over steps with {copies}"
        return
    if (found := len(kernel.find("BAR", step))) != (warps > 1):
        yield f"{name}: expected {int(warps > 1)} barriers in a step, found {found}"
    if not whole:
        return
    # Of a step that has as many spikes as are added at once: 20 sums of the neurons themselves,
    # and those of the rows.
    sums = frozenset(kernel.find("FADD", step))
    path = kernel.shortest(step, [lambda i: i in sums] * (20 + 16 * warps))
    on_path = Counter(kernel.code[i].name for i in path)
    rows = on_path["LDS.128"] - 1 - warps if in_shared else on_path["LDG.E.128.CONSTANT"]
    if rows != 4 * warps or on_path["STG.E.128"] != 2:
        yield (f"{name}: expected a path through a step that loads {4 * warps} rows and stores "
               f"z and y in 16 bytes, found {dict(on_path)}")
        return
    yield from walk(name, kernel, path, f"{4 * warps} spikes",
                    MOST_CYCLES if in_shared else MOST_CYCLES_GATHER)
    if name not in MOST_CYCLES_OF_ALL:
        return
    read = {} if in_shared else {
        i: 512 * SPIKES * 32 if "CONSTANT" in kernel.code[i].name else 512
        for i in path if re.match(r"LDG\.E\.128\.CONSTANT|LDGSTS", kernel.code[i].name)}
    yield from walk_all(name, cycles_of_step(kernel, [path], Load(2 * warps, 2, read)),
                        "two items")


def walk(name: str, kernel: Kernel, path: Sequence[int], given: str, most: int,
         warps: int = 1) -> Iterator[str]:
    """The cycles of a path through a step with what is given; warps: that a scheduler has, which
    issues their instructions one after the other."""
    of_chain, issued = cycles(kernel, path), warps * len(path)
    taken = max(of_chain, issued)
    print(f"{name}\n    {len(kernel.code)} instructions; a step with {given} has {len(path)}: "
          f"{of_chain} cycles by the model of chain.py" +
          (f", {issued} of a scheduler that has {warps} warps" if warps > 1 else "") +
          ", nothing measured")
    if taken > most:
        yield f"{name}: {taken} cycles a step by the model, {most} at most"
    if counted := COUNTED.get(name):
        yield from hold_against_costs(counted, cost(counted), taken)


def hold_against_costs(counted: str, stated: float, taken: float) -> Iterator[str]:
    """Compares the cycles of costs.h with the counted ones."""
    if abs(stated - taken) > MOST_OFF * taken:
        yield f"costs.h: expected {counted} to be near {taken:.0f}, found {stated:.0f}"


def walk_all(name: str, taken: float, given: str) -> Iterator[str]:
    """The cycles of a step of all warps of a multiprocessor."""
    most = MOST_CYCLES_OF_ALL.get(name, math.inf)
    print(f"    with {given} a multiprocessor takes {taken:.0f} cycles by the model of "
          f"multiprocessor.py, nothing measured")
    if taken > most:
        yield f"{name}: {taken:.0f} cycles of a multiprocessor by the model, {most} at most"


# The instructions that a path through a step has to meet, for each item of a lane, so that it
# replays steps, and before them so that it replays a segment: the stores of what is replayed, and
# the shuffles that transpose bits.
REPLAY, REPLAY_OF_SEGMENT = ["STS"] * STEPS_OF_REPLAY, ["SHFL"] * 5


def with_replays(kernel: Kernel, step: Loop, items: int, load: Load,
                 path_with: Callable[[list[str]], list[int]]) -> float:
    """Of a step, in the mean of a segment. path_with: the path that also meets what it is given."""
    def repeated_in(segment: list[int]) -> list[int]:
        loops = [loop for loop in kernel.loops()
                 if step.first < loop.first and loop.last < step.last and loop.first in segment
                 and len(kernel.find("SHFL", loop)) == 5 * items]
        for loop in loops:
            inner = next(of for of in kernel.loops()
                         if loop.first < of.first and of.last < loop.last)
            segment = repeated(segment, inner, WORD // STEPS_OF_REPLAY)
            segment = repeated(segment, loop, SEGMENT // WORD)
        return segment

    plain, replay, segment = (path_with(more) for more in (
        [], REPLAY * items, REPLAY_OF_SEGMENT * items + REPLAY * items))
    often, seldom = (cycles_of_step(kernel, [plain] * (STEPS_OF_REPLAY - 1) + [last], load)
                     for last in (replay, repeated_in(segment)))
    return often + (seldom - often) * STEPS_OF_REPLAY / SEGMENT


def read_spike_product(name: str, kernel: Kernel) -> Iterator[str]:
    """The weight gradient: a loop over the mma of a warp's tile, for 16 items of steps."""
    parts = int(name[name.index(",") + 2])  # of a float
    quads, rows = 4, 4  # of mma across and down
    loop = kernel.loop_with("HMMA")
    if loop is None or (found := len(kernel.find("HMMA", loop))) != parts * quads * rows:
        yield f"{name}: expected a loop with {parts * quads * rows} HMMA, found {loop and found}"
        return
    if kernel.find("LDL|STL|LDS|STS|BAR"):  # it divides before its loop
        yield f"{name}: expected only registers, found other memory or a barrier"
    if "<true" in name and len(kernel.find(r"LDG\.E\.128", loop)) != quads:
        yield f"{name}: expected {quads} loads of 16 bytes in a round"
    print(f"{name}\n    a round for 16 items of steps, 64 rows and 32 columns: {loop.length} "
          f"instructions, of them {found} of the tensor cores")


def read_linear(name: str, kernel: Kernel) -> Iterator[str]:
    """The projection of bits: the loop over the inputs of a word that are 1, two at a time."""
    quads = int(name[name.index("<") + 1])
    loop = kernel.loop_with("FADD")
    wide = loop and len(kernel.find(r"LDG\.E\.128\.CONSTANT", loop))
    if loop is None or wide != 2 * quads:
        yield f"{name}: expected a loop with {2 * quads} loads of 16 bytes, found {wide}"
        return
    if kernel.find("LDL|STL"):
        yield f"{name}: expected only registers, found local memory"
    print(f"{name}\n    two inputs that are 1 are {loop.length} instructions")


def read_lsnn_backward(name: str, kernel: Kernel) -> Iterator[str]:
    """Its backward kernel: the loop over the steps, with what a step copies for later ones."""
    quads = int(name[name.index("<") + 1])
    step = kernel.loop_with("LDGDEPBAR")
    if step is None or len(kernel.find("LDGSTS", step)) != 2:
        yield f"{name}: expected a loop over steps with two copies"
        return
    if (found := len(kernel.find("BAR", step))) != 1:
        yield f"{name}: expected a barrier in a step, found {found}"
    # Of a step in which a warp has more than eight active neurons, and twelve at most: the columns
    # of its rows.

    def path_with(more: list[str]) -> list[int]:
        return kernel.through(step, [*more, *["FFMA"] * (12 * quads), "VOTE"])

    path = path_with([])
    wide = Counter(kernel.code[i].name for i in path)["LDS.128"]
    if wide < 3 * quads:
        yield f"{name}: expected a path through a step with {3 * quads} wide loads, found {wide}"
        return
    yield from walk(name, kernel, path, "twelve active neurons of a warp", MOST_CYCLES_BACKWARD)
    taken = with_replays(kernel, step, 1, Load(2 * quads, 2), path_with)
    yield from walk_all(name, taken, "two items and replays")


class OwnRows(NamedTuple):
    """What a step has of a kernel whose warps have the weights of their own rows in registers."""

    mma: int
    counts: dict[str, int]  # of some other instructions
    stated: dict[str, int]  # the numbers of costs.h that make up its cycles, and how many times
    load: Load
    sends: int = 0  # how many times in a step a lane sends something


def own_rows(name: str) -> OwnRows:
    first, parts = (int(number) for number in re.findall(r"\d+", name))
    if name.startswith("lsnn_block"):  # the lower parts; dL/dc of a tile's columns; the barrier
        stated = f"lsnn_block_{OF_PARTS[parts]}"
        return OwnRows(4 * first * parts, {r"LDS\.128": 4 * first * (parts - 1),
                                           r"LDS\.64": 2 * first, "BAR": 1},
                       {f"{stated}_step": 1, f"{stated}_warp": first}, Load(first))
    # dL/dc of a word, or of half of the middle one, what is to be sent, and what registers do not
    # hold; the barrier of four warps; what is sent, to four blocks, one of which is its own, and to
    # four more where there are eight.
    held = re.search(r"most = parts < 3 \? (\d+) : of_kernel < 10 \? (\d+) : (\d+);", SHARED)
    assert held, "shared.h: expected how many fragments registers hold"
    beyond = max(first * parts - int(held[1 + (parts == 3) * (1 + (first >= 10))]), 0)
    blocks = 4 if first <= 8 else 8
    mma = first * parts * (parts + 1) // 2
    return OwnRows(mma,
                   {r"LDS\.128": (first // 2 + 1) * parts + beyond, r"LDS\.64": first % 2 * parts,
                    "BAR": 1, r"STAS\.128": 2 * parts},
                   {"lsnn_matrix_step": 1, "lsnn_matrix_word": 2, "lsnn_matrix_part": parts,
                    "lsnn_matrix_sent": parts * (blocks > 4), "lsnn_matrix_product": 2 * mma,
                    "lsnn_matrix_fragment": 2 * beyond},
                   Load(8, 2, sent=512 * (blocks - 1) / blocks), parts * blocks // 4)


def read_lsnn_own_rows(name: str, kernel: Kernel) -> Iterator[str]:
    """The same by matrices, in one block or a cluster: a step of two items of a lane, with all
    products of a warp, whose weights are in registers but for some parts."""
    of = own_rows(name)
    step = kernel.loop_with("LDGDEPBAR", "HMMA")
    if step is None:
        yield f"{name}: expected a loop over steps with matrices"
        return
    wanted = {"HMMA": of.mma, "LDGSTS": 4, **of.counts}
    counts = {what: len(kernel.find(what, step)) for what in wanted}
    if counts != wanted or kernel.find("CCTL", step):
        yield (f"{name}: expected a step with {wanted} that does not empty the first level cache, "
               f"found {counts}")
        return
    sent = [r"STAS\.128"] * of.sends

    def path_with(more: list[str]) -> list[int]:
        """Copies of y and dL/dz of both items for a later step, the product, and replays."""
        return kernel.through(step, [*sent, *["LDGSTS"] * 4, *["HMMA"] * of.mma,
                                     *(["BAR", *more] if sent else [*more, "BAR"])])

    path, load = path_with([]), of.load
    if not path:
        yield f"{name}: expected a path through a step that copies records of two items"
        return
    if sent:
        wait = next(i for i in path if kernel.code[i].name.startswith("SYNCS.PHASECHK"))
        load = load._replace(waits=wait, behind=1)
    latency, taken = cycles(kernel, path), cycles_of_step(kernel, [path], load)
    print(f"{name}\n    {len(kernel.code)} instructions; a step has {len(path)}: one warp takes "
          f"{latency} cycles by the model of chain.py, all warps {taken:.0f} by the model of "
          f"multiprocessor.py, nothing measured")
    if latency > (most := MOST_CYCLES_MATRICES.get(name, math.inf)):
        yield f"{name}: {latency} cycles of one warp by the model, {most} at most"
    if name in MOST_CYCLES_OF_ALL:
        stated = sum(cost(part) * times for part, times in of.stated.items())
        yield from hold_against_costs(name, stated, taken)
    yield from walk_all(name, with_replays(kernel, step, 2, load, path_with),
                        "replays of two items")
