"""A MODEL of the cycles of a step: one warp, walked along a path through its machine code.

Instructions issue one after the other. Each waits for the stall count that the compiler wrote into
the one before, and for the barriers of its own wait mask, which loads and the like set free after
the latencies below. No other warp takes part. Nothing here was measured by this project; it tells
which of two versions of a kernel has the shorter chain, not how long a step takes.
"""
from collections.abc import Sequence

from sass import Kernel

# Cycles until the result of an instruction without a fixed latency is there, on an H100, as others
# have measured or as assumed; without loads from global memory that are prefetched.
LATENCY = {
    "LDS.128": 33, "LDS": 30, "LDG": 290, "LDGSTS": 20, "POPC": 16, "SHFL": 24, "LDC": 30,
    "MUFU": 22, "S2R": 25, "S2UR": 25, "R2UR": 12, "STS": 20, "STG": 20,
}
OTHER = 20
# A barrier that all others have reached; a branch that is taken; until a register that was read
# may be written again.
BARRIER, TAKEN, OPERANDS_READ = 26, 10, 12
NO_BARRIER = 7


def latency(name: str) -> int:
    return LATENCY.get(name, LATENCY.get(name.split(".")[0], OTHER))


def cycles(kernel: Kernel, path: Sequence[int], rounds: int = 3) -> int:
    """Of the last of some rounds of a loop; path: indices of its instructions. What stands under a
    condition counts as done."""
    now, begun = 0, 0
    free = [0] * 8
    for _ in range(rounds):
        begun = now
        for i, following in zip(path, [*path[1:], path[0]], strict=True):
            at = kernel.code[i]
            stall, sets, reads, waits = (at.control & 15, at.control >> 5 & 7, at.control >> 8 & 7,
                                         at.control >> 11 & 63)
            now = max([now, *(free[s] for s in range(6) if waits >> s & 1)])
            free[sets] = max(free[sets], now + latency(at.name))
            free[reads] = max(free[reads], now + OPERANDS_READ)
            free[NO_BARRIER] = 0
            now += max(stall, 1) + (BARRIER if at.name.startswith("BAR") else 0)
            now += TAKEN if following != i + 1 else 0
    return now - begun
