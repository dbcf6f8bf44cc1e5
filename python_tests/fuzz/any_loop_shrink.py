"""The fewest lines and calls of a model that show its fault."""
import re

from any_loop import check_case
from any_loop_run import Case


def _fault_of(case: Case) -> str:
    """The kind of a fault, without names and numbers."""
    try:
        found = check_case(case)
    except Exception:
        return ""
    words = "" if isinstance(found, str) else found[0]
    return re.sub(r"call Call\([^)]*\)|\d.*", "", words)[:24]


def _without(lines: list[str], i: int) -> list[str]:
    """Without a line, and what is indented below it."""
    depth = len(lines[i]) - len(lines[i].lstrip())
    end = i + 1
    while end < len(lines) and lines[end].strip() and (
            len(lines[end]) - len(lines[end].lstrip()) > depth):
        end += 1
    return lines[:i] + lines[end:]


def shrink_case(case: Case) -> Case:
    kind = _fault_of(case)
    if not kind:
        return case
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for i in reversed(range(1, len(case.calls))):
            other = case._replace(calls=case.calls[:i] + case.calls[i + 1 :])
            if _fault_of(other) == kind:
                case, is_smaller = other, True
        lines = case.program.source.split("\n")
        i = len(lines) - 1
        while i >= 0:
            if i < len(lines) and lines[i].strip() and "return" not in lines[i]:
                fewer = _without(lines, i)
                other = case._replace(program=case.program._replace(source="\n".join(fewer)))
                if _fault_of(other) == kind:
                    case, lines, is_smaller = other, fewer, True
            i -= 1
    return case
