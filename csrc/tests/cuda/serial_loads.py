"""Loops in which each load of global memory waits for the one before: a part of machine_code.py."""
import re
from collections.abc import Iterator

from sass import Instruction, Kernel, Loop

NEAR = 10  # instructions from a load to its first use, too few to hide its latency
WORDS = {"64": 2, "128": 4}  # registers of a wide load


def _loaded(load: Instruction) -> set[str]:
    """The registers that a load writes."""
    to = re.match(r"R(\d+)", load.operands)
    if not to:
        return set()
    words = next((n for width, n in WORDS.items() if f".{width}" in load.name), 1)
    return {f"R{int(to[1]) + i}" for i in range(words)}


def _reads(instruction: Instruction, registers: set[str]) -> bool:
    """Whether an instruction reads one of these registers."""
    operands = instruction.operands
    if not instruction.name.startswith(("ST", "RED", "ATOM")):  # all others write the first one
        operands = operands.partition(",")[2]
    return not registers.isdisjoint(re.findall(r"\bR\d+\b", operands))


def _is_serial(kernel: Kernel, loop: Loop, loads: list[int]) -> bool:
    """Whether the loads of one round are used, one after the other, soon after each."""
    for at, following in zip(loads, [*loads[1:], loop.last + 1], strict=True):
        registers = _loaded(kernel.code[at])
        uses = (i for i in range(at + 1, min(at + NEAR, loop.last) + 1)
                if _reads(kernel.code[i], registers))
        if (use := next(uses, None)) is None or use > following:
            return False  # another load is under way
    return True


def serial_loads(kernel: Kernel) -> Iterator[Loop]:
    """The innermost loops with loads of which none is under way with another one."""
    found: list[Loop] = []
    for loop in kernel.loops():  # the shortest ones first
        if any(loop.first <= of.first and of.last <= loop.last for of in found):
            continue
        found.append(loop)
        loads = kernel.find(r"LDG(?!STS|DEPBAR)", loop)
        if loads and _is_serial(kernel, loop, loads):
            yield loop
