"""Where bench/gpu_model.py has its cycles from: one warp, walked through the machine code of a step.

  nvcc -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -gencode=arch=compute_90,code=sm_90 \\
      -cubin csrc/cuda/alif_f32.cu -o alif_f32.cubin
  python -m bench.chain alif_f32.cubin

prints the numbers of `Counted`, and some counts of instructions. That needs no card, but nvdisasm: on PATH, or by
`pip install nvidia-cuda-nvdisasm`.

A path through a step is the cheapest one that passes given landmarks in order: the loads, stores, shuffles and barriers
that the step cannot do without. Along it, instructions issue one after the other. Each waits for the stall count that
the compiler wrote into the one before, and for the barriers of its own wait mask, which loads and the like set free
after the latencies below. Nothing here was measured; no other warp takes part.
"""
import argparse
import heapq
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import NamedTuple

# Cycles until the result of an instruction without a fixed latency is there, on an H100, as others have measured or as
# assumed. Global memory: what the landmarks say; L1 where they say nothing.
LATENCY = {"LDS.128": 33, "LDS": 30, "LDG": 38, "POPC": 16, "SHFL": 24, "LDC": 30, "MUFU": 22, "S2R": 25, "S2UR": 25,
           "I2F": 16, "F2I": 16, "F2F": 16, "R2UR": 12, "STS": 20, "STG": 20, "CCTL": 20}
OTHER, L2, MEMORY = 20, 290, 650
NOT_DONE = 2  # a load under a condition that does not hold: one that no landmark asks for
BARRIER, TAKEN, OPERANDS_READ = 26, 10, 12  # a barrier; a branch that is taken; until a register may be written again


class Instruction(NamedTuple):
    name: str            # with its dots
    predicated: bool
    target: int | None   # of a branch, as an index
    stall: int           # cycles until the next one may issue
    sets: int            # barrier that its result frees, 7: none
    reads: int           # barrier that its operands free
    waits: int           # mask of barriers


class Mark(NamedTuple):
    """What a path must pass: an instruction whose name a pattern fits, or the one at an index."""

    what: str | int
    latency: int | None = None

    def met(self, i: int, at: Instruction) -> bool:
        return i == self.what if isinstance(self.what, int) else bool(re.fullmatch(self.what, at.name))


def marks(text: str, latency: int | None = None) -> list[Mark]:
    """'LDS.128*4 BAR' and the like; other forms of a name, as LDS.64 for LDS, are told apart."""
    found = []
    for word in text.split():
        name, _, times = word.partition("*")
        pattern = re.escape(name) + (r"(\..*)?" if name in ("SHFL", "BAR", "CCTL", "POPC", "MUFU", "F2F") else "")
        found += [Mark(pattern, latency)] * int(times or 1)
    return found


class Kernel:
    def __init__(self, text: str) -> None:
        labels: dict[str, int] = {}
        lines: list[tuple[str, str, int]] = []
        for line in text.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(lines)
            elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?(.*?)\s*;", line):
                lines.append((found[1] or "", found[2], 0))
            elif (upper := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)) and lines:
                lines[-1] = (*lines[-1][:2], int(upper[1], 16) >> 41)
        self.code = []
        for predicate, rest, control in lines:
            name = rest.split()[0]
            to = re.search(r"`\((\.L_x_\d+)\)", rest) if name.startswith("BRA") and name != "BRA.DIV" else None
            conditional = bool(predicate) or bool(re.match(r"BRA\S*\s+!?U?P\d", rest)) or name == "BRA.DIV"
            self.code.append(Instruction(name, conditional, labels[to[1]] if to else None, max(control & 15, 1),
                                         control >> 5 & 7, control >> 8 & 7, control >> 11 & 63))

    def find(self, pattern: str, loop: range) -> list[int]:
        return [i for i in loop if re.fullmatch(pattern, self.code[i].name)]

    def loops(self) -> list[range]:
        """What a conditional branch backwards repeats, the shortest ones first."""
        found = [range(at.target, i + 1) for i, at in enumerate(self.code)
                 if at.target is not None and at.target < i and at.predicated]
        return sorted(found, key=len)

    def loop(self, inside: range | None = None, **counts: int) -> range:
        """The shortest loop around another one that has at least so many of an instruction; _ stands for a dot."""
        for loop in self.loops():
            around = inside is None or (inside[0] in loop and inside[-1] in loop and len(loop) > len(inside))
            if around and all(len(self.find(re.escape(name.replace("_", ".")) + r"(\..*)?", loop)) >= n
                              for name, n in counts.items()):
                return loop
        raise SystemExit(f"expected a loop with {counts}; has the kernel changed?")

    def _next(self, i: int) -> Iterable[int]:
        at = self.code[i]
        if at.target is not None:
            yield at.target
        if at.name.startswith(("CALL", "EXIT", "RET")) and not at.predicated:
            return
        if at.target is None or at.predicated:
            yield i + 1

    def path(self, loop: range, wanted: Sequence[Mark]) -> list[tuple[int, int | None]]:
        """A round of a loop, the cheapest by stall counts that passes all that is wanted; with latencies."""
        start = (loop[0], 0)
        cost = {start: 0}
        before: dict[tuple[int, int], tuple[int, int]] = {}
        queue = [(0, start)]
        while queue:
            so_far, state = heapq.heappop(queue)
            i, met = state
            if so_far > cost[state]:
                continue
            met += met < len(wanted) and wanted[met].met(i, self.code[i])
            if i == loop[-1] and met == len(wanted):
                states = [state]
                while states[-1] in before:
                    states.append(before[states[-1]])
                states.reverse()
                after = [k for _, k in states[1:]] + [met]
                return [(j, wanted[k].latency if k < now else None)
                        for (j, k), now in zip(states, after, strict=True)]
            for j in self._next(i) if i != loop[-1] else ():
                to = so_far + self.code[i].stall + (TAKEN if j != i + 1 else 0)
                if j in loop and to < cost.get((j, met), 1 << 30):
                    cost[j, met] = to
                    before[j, met] = state
                    heapq.heappush(queue, (to, (j, met)))
        raise SystemExit(f"expected a path through {len(wanted)} landmarks, found none; has the kernel changed?")

    def times(self, path: Sequence[tuple[int, int | None]], rounds: int = 3) -> list[int]:
        """When each instruction of the last round issues, counted from its first; last: when the next round begins."""
        now, free, issued = 0, [0] * 8, [0]
        for _ in range(rounds):
            issued = []
            for (i, latency), (following, _) in zip(path, [*path[1:], path[0]], strict=True):
                at = self.code[i]
                now = max([now, *(free[s] for s in range(6) if at.waits >> s & 1)])
                issued.append(now)
                family = at.name.split(".")[0]
                known = LATENCY.get(at.name, LATENCY.get(family, OTHER))
                if family == "LDG" and at.predicated and latency is None:
                    known = NOT_DONE
                free[at.sets] = max(free[at.sets], now + (latency or known))
                free[at.reads] = max(free[at.reads], now + OPERANDS_READ)
                now += at.stall + (BARRIER if family == "BAR" else 0) + (TAKEN if following != i + 1 else 0)
        return [*(t - issued[0] for t in issued), now - issued[0]]

    def cycles(self, loop: range, wanted: Sequence[Mark]) -> tuple[int, int]:
        """Of a round, and how many instructions it has."""
        path = self.path(loop, wanted)
        return self.times(path)[-1], len(path)


# ------------------------------------------------------------------------------------------------------------ the steps
def forward(kernel: Kernel) -> dict[str, float]:
    rows = kernel.loop(LDS_128=4, FADD=16)
    step = kernel.loop(rows, SHFL_BFLY=3, STG_E_128=2)

    def whole(fours: int, lists: int = 1) -> tuple[int, int]:
        wanted = marks("LDG.E.128", L2) + marks("CCTL") + marks("LDS*8 POPC*8") * lists
        wanted += marks("LDS.64 LDS.128*4 FADD*16") * fours
        return kernel.cycles(step, wanted + marks("STG.E.128*2 SHFL*3 STS STG.E IMAD.WIDE.U32 BAR"))

    one, instructions = whole(1)
    listing, four = whole(1, 2)[0] - one, (whole(5)[0] - one) / 4
    return {"step": one - four - listing, "list_forward": listing, "four": four, "instructions": instructions}


def backward(kernel: Kernel) -> dict[str, float]:
    rows = kernel.loop(LDS_128=9, FFMA=32)
    step = kernel.loop(rows, STG_E_128=1, MUFU_RCP=4)
    record, listing = marks("LDG.E.128 LDG.E LDG.E.128*3", L2) + marks("CCTL*2"), marks("LDS*8 POPC*8 STS.U16")
    adjoint = marks("LDS*5 LDG.E.128*7 MUFU*4 STG.E.128 F2F")

    def product(laps: int) -> list[Mark]:  # of sixteen rows
        return listing + (marks("LDS.128") + marks("LDS.128*9 FFMA*32") * laps + marks("SHFL*9 STS")) * 2 + marks("BAR")

    def whole(laps: int) -> tuple[list[int], list[str]]:
        path = kernel.path(step, record + product(laps) + adjoint + marks("BAR"))
        return kernel.times(path), [kernel.code[i].name for i, _ in path]

    times, names = whole(2)
    first_list = next(i for i, name in enumerate(names) if name == "LDS")
    first_eight = names.index("LDS.128")
    barriers = [i for i, name in enumerate(names) if name.startswith("BAR")]
    marked = next(i for i in range(barriers[0], len(names)) if names[i] == "LDS")
    computed = max(i for i, name in enumerate(names) if name == "FMUL")
    last_result = max(i for i in range(barriers[0]) if names[i] == "STS")
    two_laps = whole(3)[0][-1] - times[-1]
    found = {"record": times[first_list], "list_backward": times[first_eight] - times[first_list],
             "eight": (times[last_result] - times[first_eight]) / 2 - two_laps, "lap": two_laps / 2,
             "adjoint": times[computed] - times[marked],
             "barriers": times[-1] - times[computed] + times[marked] - times[last_result],
             "instructions, with neurons": len(names),
             "instructions, without": kernel.cycles(step, product(2) + marks("BAR"))[1]}
    again, once_more = replay(kernel, False), replay(kernel, True)
    return found | {"replay_segment": again[0], "replay_chunk": once_more[0],
                    "instructions, replayed": again[1] + once_more[1]}


def replay(kernel: Kernel, chunk: bool) -> tuple[float, float]:
    """Cycles and instructions of one of four steps replayed together. The words of a segment come from main memory."""
    loop = kernel.loop(STG_E_128=12, SHFL_BFLY=12) if chunk else kernel.loop(STG_E_128=3, LDG_E_128=8, FMUL=16)
    stored = marks("STG.E.128*3") if chunk else []
    loads = [Mark(i, L2 if chunk or kernel.code[i].name.endswith("128") else MEMORY)
             for i in kernel.find(r"LDG\.E(\.128)?", loop) if i < kernel.find(r"STG\.E\.128", loop)[0]]
    sums = kernel.find("FMUL", loop)
    wanted = list(loads)
    per_step = len(sums) // 4
    for step in range(4):
        wanted += stored + [Mark(i) for i in sums[step * per_step:(step + 1) * per_step]]
        wanted += marks("SHFL*3 STS") if chunk else []
    cycles, instructions = kernel.cycles(loop, wanted)
    return cycles / 4, instructions / 4


def weight_gradient(kernel: Kernel) -> dict[str, float]:
    listing = kernel.loop(POPC=8, STS_U16=8)
    items = kernel.loop(listing, BAR=2)
    half = kernel.loop(LDG_E=8, LDS_64=8)

    def listed(rounds: int) -> int:
        wanted = marks("BAR") + (marks("LDG.E*8", MEMORY) + marks("POPC*8 STS.U16 STS")) * rounds
        return kernel.cycles(items, wanted + marks("BAR"))[0]

    def added(fours: int, ones: int) -> float:
        item = marks("LDS") + marks("LDS.64 LDS*4 STS*4") * fours + marks("LDS.U16 LDS STS") * ones
        return kernel.cycles(half, marks("LDG.E*8", MEMORY) + item * 8)[0] / 8

    none = added(0, 0)
    return {"weight_list": listed(3) - listed(2), "weight_rest": listed(1) * 2 - listed(2), "item": none,
            "item_four": added(1, 0) - none, "item_one": (added(1, 3) - added(1, 0)) / 3}


def disassembled(cubin: str) -> dict[str, Kernel]:
    """By the name that a programmer knows."""
    program = shutil.which("nvdisasm")
    if program is None:
        files = metadata.distribution("nvidia-cuda-nvdisasm").files or []
        program = next(str(file.locate()) for file in files if file.name == "nvdisasm")
    text = subprocess.run([program, "-hex", "-c", cubin], check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", text, flags=re.MULTILINE)
    said = subprocess.run(["c++filt", *parts[1::2]], check=True, capture_output=True, text=True).stdout
    names = [re.sub(r"lsnn::(cuda::)?", "", line.removeprefix("void ")) for line in said.splitlines()]
    return {name[:name.rindex("(")]: Kernel(body) for name, body in zip(names, parts[2::2], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cubin", help="of csrc/cuda/alif_f32.cu, for sm_90")
    kernels = disassembled(parser.parse_args().cubin)
    found = forward(kernels["forward_kernel<float, float, PaperModel, BlockSpikes, 1, true>"])
    found |= backward(kernels["backward_kernel<float, float, PaperModel, BlockGradients<float>, 1, true>"])
    found |= weight_gradient(kernels["weight_gradient_kernel<float>"])
    for name, cycles in found.items():
        print(f"{name:26} {cycles:7.0f}")


if __name__ == "__main__":
    main()
