"""Reads machine code as nvdisasm prints it: instructions, loops, and paths through a step."""
import heapq
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    predicated: bool
    name: str          # with its dots
    target: int | None  # of a branch, as an index
    control: int = 0   # what the compiler tells the hardware of it, see chain.py


class Loop(NamedTuple):
    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


Wanted = Callable[[int], bool]  # of an instruction's index


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
        self.code: list[Instruction] = []
        for predicate, rest, control in lines:
            target = re.search(r"`\((\.L_x_\d+)\)", rest) if rest.startswith("BRA") else None
            conditional = (
                bool(predicate)
                or bool(re.match(r"BRA\S*\s+!?U?P\d", rest))
                or rest.startswith("BRA.DIV")
            )
            self.code.append(Instruction(conditional, rest.split()[0],
                                         labels[target[1]] if target else None, control))

    def find(self, pattern: str, loop: Loop | None = None) -> list[int]:
        """Where the names begin with a pattern."""
        first, last = loop or Loop(0, len(self.code) - 1)
        return [i for i in range(first, last + 1) if re.match(pattern, self.code[i].name)]

    def loops(self) -> list[Loop]:
        """What lies between a conditional branch backwards and its target, the shortest ones
        first."""
        found = [Loop(at.target, i) for i, at in enumerate(self.code)
                 if at.target is not None and at.target < i and at.predicated]
        return sorted(found, key=lambda loop: loop.length)

    def loop_with(self, *patterns: str) -> Loop | None:
        """The shortest loop that has instructions whose names begin with these."""
        return next((loop for loop in self.loops()
                     if all(self.find(pattern, loop) for pattern in patterns)), None)

    def through(self, loop: Loop, patterns: Sequence[str]) -> list[int]:
        """The fewest instructions of one round of a loop whose names begin with these patterns, in
        this order; none where there is no such round."""
        places = {pattern: frozenset(self.find(pattern, loop)) for pattern in patterns}

        def within(pattern: str) -> Wanted:
            return lambda i: i in places[pattern]

        return self.shortest(loop, [within(pattern) for pattern in patterns])

    def _next(self, i: int) -> Iterator[int]:
        name = self.code[i].name
        target = self.code[i].target
        # taken only where a warp has come apart
        if target is not None and not name.startswith("BRA.DIV"):
            yield target
        ends = name.startswith(("BRA", "EXIT", "RET"))
        if (not ends or self.code[i].predicated) and i + 1 < len(self.code):
            yield i + 1

    def shortest(self, loop: Loop, wanted: list[Wanted]) -> list[int]:
        """The fewest instructions of one round of a loop that meet all of `wanted`, in this order;
        none where there is no such round."""
        start = (loop.first, 0)
        cost, before = {start: 1}, {start: start}
        queue = [(1, *start)]
        while queue:
            so_far, i, met = heapq.heappop(queue)
            if so_far > cost[i, met]:
                continue
            met_now = met + (met < len(wanted) and wanted[met](i))
            if i == loop.last and met_now == len(wanted):
                path = [(i, met)]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return [at for at, _ in reversed(path)]
            for following in self._next(i):
                state = (following, met_now)
                if loop.first < following <= loop.last and so_far + 1 < cost.get(state, 1 << 30):
                    cost[state], before[state] = so_far + 1, (i, met)
                    heapq.heappush(queue, (so_far + 1, *state))
        return []


def repeated(path: Sequence[int], loop: Loop, times: int) -> list[int]:
    """A path whose round of an inner loop is done some times."""
    of_loop = [at for at, i in enumerate(path) if loop.first <= i <= loop.last]
    begin, end = of_loop[0], of_loop[-1] + 1
    return [*path[:begin], *[*path[begin:end]] * times, *path[end:]]


def disassembled(nvdisasm: str, cubin: Path) -> dict[str, Kernel]:
    text = subprocess.run([nvdisasm, "-hex", "-c", str(cubin)], check=True, capture_output=True,
                          text=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", text, flags=re.MULTILINE)
    return {name: Kernel(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
