"""The parts of csrc/tests that need no compiler: machine code, the table of mutants."""
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "csrc" / "tests"


@pytest.fixture(scope="module")
def checks() -> Iterator[None]:
    folders = [str(FOLDER / name) for name in ("cuda", "mutants")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


def _kernel(*lines: str) -> Any:
    """Machine code as nvdisasm prints it: a loop over these lines."""
    from sass import Kernel
    code = [line if line.endswith(":") else f"        /*{16 * i:04x}*/   {line} ;"
            for i, line in enumerate([".L_x_0:", *lines, "@P0 BRA `(.L_x_0)", "EXIT"])]
    return Kernel("\n".join(code))


LOAD, OTHER = "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", "LDG.E R20, desc[UR4][R8.64]"
USE, USE_OTHER = "STS.128 [R12], R4", "FADD R21, R20, R22"
FAR = ["IADD3 R14, R14, 0x1, RZ"] * 12


@pytest.mark.parametrize(("lines", "serial"), [
    ([LOAD, USE], True),
    ([LOAD, "FADD R9, R7, R10"], True),  # the last of four registers
    ([LOAD, USE, OTHER, USE_OTHER], True),
    ([LOAD, "FADD R4, R8, R10"], False),  # overwritten
    ([LOAD, *FAR, USE], False),
    ([LOAD, OTHER, USE, USE_OTHER], False),
    ([LOAD, USE, OTHER, *FAR, USE_OTHER], False),
    (["LDS.128 R4, [R2]", USE], False)])
def test_loops_that_load_serially(checks: None, lines: list[str], serial: bool) -> None:
    assert _kernel(*lines).serial_loops() == ([(0, len(lines))] if serial else [])


def test_loads_of_an_inner_loop_do_not_count(checks: None) -> None:
    """The outer loop loads and uses at once; the inner one has two loads under way."""
    kernel = _kernel(LOAD, USE, ".L_x_1:", LOAD, OTHER, USE, "@P1 BRA `(.L_x_1)")
    assert kernel.serial_loops() == [(0, 6)]


def test_loads_outside_of_loops_may_be_serial(checks: None) -> None:
    from sass import Kernel
    assert Kernel(f"  /*0000*/  {LOAD} ;\n  /*0010*/  {USE} ;").serial_loops() == []


def test_the_shortest_loop_with_some_instructions(checks: None) -> None:
    kernel = _kernel(LOAD, OTHER, USE)
    assert kernel.loop_with({"LDG": 2, r"STS\.128": 1}) == (0, 3)
    assert kernel.loop_with({"LDG": 3}) is None


@pytest.mark.parametrize(("name", "lines", "wrong"), [
    ("forward_kernel<float, PaperSpec, 1, true>", ["LDS.128 R4, [R2]"] * 4, ""),
    ("forward_kernel<float, PaperSpec, 1, true>", ["LDS.128 R4, [R2]"] * 3, "at least"),
    ("forward_kernel<float, PaperSpec, 1, true>", [*["LDS.128 R4, [R2]"] * 4, "STL [R1], R4"],
     "found local memory"),
    ("spike_product_kernel<false, 1>", ["HMMA.16816.F32 R4, R8, R12, R4"] * 17,
     "expected 16 HMMA in the loop, found 17")])
def test_wide_loads_and_registers(checks: None, name: str, lines: list[str], wrong: str) -> None:
    from machine_code import faults_in_code
    faults = list(faults_in_code(name, _kernel(*lines)))
    assert [wrong in fault for fault in faults] == ([True] if wrong else [])


def test_planted_bugs_are_there(checks: None) -> None:
    """The text that mutants.py replaces occurs in the kernels as often as its table says."""
    import mutants
    for mutant in mutants.MUTANTS:
        text = (FOLDER.parent / "cuda" / mutant.file).read_text()
        assert mutants.mutated(mutant, text) != text
