"""Reads machine code as nvdisasm prints it: instructions, loops, loops that load serially."""
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

REGISTER = re.compile(r"\bR(\d+)")
NEAR = 10  # instructions from a load to its first use that hide none of its latency


class Instruction(NamedTuple):
    predicated: bool
    name: str          # with its dots
    target: int | None  # of a branch, as an index
    operands: str = ""

    def read(self) -> set[int]:
        """Registers that it reads; of several adjacent ones the first."""
        first, _, others = self.operands.partition(",")
        of_store = self.name.startswith(("ST", "RED", "ATOM"))
        return {int(number) for number in REGISTER.findall(first * of_store + "," + others)}

    def loaded(self) -> set[int]:
        """Registers that a load writes."""
        found = REGISTER.match(self.operands)
        width = 4 if ".128" in self.name else 2 if ".64" in self.name else 1
        return {int(found[1]) + i for i in range(width)} if found else set()


class Loop(NamedTuple):
    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


class Kernel:
    def __init__(self, text: str) -> None:
        labels: dict[str, int] = {}
        lines: list[tuple[str, str]] = []
        for line in text.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(lines)
            elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?(.*?)\s*;", line):
                lines.append((found[1] or "", found[2]))
        self.code: list[Instruction] = []
        for predicate, rest in lines:
            target = re.search(r"`\((\.L_x_\d+)\)", rest) if rest.startswith("BRA") else None
            conditional = (
                bool(predicate)
                or bool(re.match(r"BRA\S*\s+!?U?P\d", rest))
                or rest.startswith("BRA.DIV")
            )
            name, _, operands = rest.partition(" ")
            self.code.append(Instruction(conditional, name, labels[target[1]] if target else None,
                                         operands.strip()))

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

    def loop_with(self, least: Mapping[str, int]) -> Loop | None:
        """The shortest loop with at least so many instructions of each pattern."""
        return next((loop for loop in self.loops()
                     if all(len(self.find(what, loop)) >= n for what, n in least.items())), None)

    def serial_loops(self) -> list[Loop]:
        """Loops whose loads from global memory run one at a time: each is used at once, with no
        other load under way, so that a round waits for the whole latency of memory each time.
        Loads of inner loops do not count."""
        loops, found = self.loops(), []
        for loop in loops:
            inner = [of for of in loops if loop.first <= of.first and of.last <= loop.last
                     and of != loop]
            waits: list[bool] = []  # for each wait of the loop, whether it is for a single load
            under_way: dict[int, set[int]] = {}
            for i in range(loop.first, loop.last + 1):
                if any(of.first <= i <= of.last for of in inner):
                    continue
                at = self.code[i]
                if any(at.read() & registers for registers in under_way.values()):
                    waits.append(len(under_way) == 1 and i - min(under_way) <= NEAR)
                    under_way = {}
                if re.match(r"LDG\b", at.name):
                    under_way[i] = at.loaded()
            if waits and all(waits) and not under_way:
                found.append(loop)
        return found


def disassembled(nvdisasm: str, cubin: Path) -> dict[str, Kernel]:
    text = subprocess.run([nvdisasm, "-c", str(cubin)], check=True, capture_output=True,
                          text=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", text, flags=re.MULTILINE)
    return {name: Kernel(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
