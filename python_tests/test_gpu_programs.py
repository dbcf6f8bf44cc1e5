"""Every program that `make gpu` starts is one that it builds, and no step passes by skipping what it has to do."""
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import suite
from bench.gpu.card import Card, find_tool
from bench.gpu.steps import Outcome, Step, run_stages

ROOT = Path(__file__).resolve().parents[1]
CARD = Card("NVIDIA H100 80GB HBM3", (9, 0), 132, "", "2.11.0+cu130", "13.0", "580.1")
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="bench/ and csrc/ are not beside these tests")


def _tool(name: str) -> str | None:
    return f"/opt/cuda/bin/{name}"


def _started(stages: list[list[Step]]) -> set[str]:
    """What lies in the suite's own folder and is named after the builds, but for the files that are written there."""
    words = {word for stage in stages[1:] for step in stage for command in step.commands for word in command}
    return {word for word in words if word.startswith(f"{suite.WORK}/")} - {suite.ROWS, suite.PRIMITIVES}


def _after(command: list[str], option: str) -> Iterator[str]:
    yield from (command[at + 1] for at, word in enumerate(command[:-1]) if word == option)


def _commands(stages: list[list[Step]]) -> Iterator[list[str]]:
    yield from (list(command) for step in stages[0] for command in step.commands)


def test_every_program_is_built() -> None:
    stages = suite.stages(CARD, _tool)
    made: set[str] = set()
    defined = re.findall(r"add_executable\(\s*(\w+)", "".join(path.read_text() for path in (
        ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/CMakeLists.txt"))))
    for command in _commands(stages):
        made.update(_after(command, "-o"))
        for target in _after(command, "--target"):
            assert target in defined
            made.update(f"{folder}/{target}" for folder in _after(command, "--build"))
    started = _started(stages)
    assert len(started) == 2 and started <= made
    for command in _commands(stages):
        assert all((ROOT / word).is_file() for word in command if word.startswith("csrc/"))


def test_cmake_makes_the_programs_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own commands, the build as a trial that compiles nothing: it ends with linking the program."""
    if not all(map(find_tool, ("nvcc", "cmake", "ninja", "c++"))):
        pytest.skip("nvcc, cmake, ninja or a C++ compiler is not installed")
    monkeypatch.setattr(suite, "WORK", str(tmp_path))
    stages = suite.stages(CARD)
    linked: set[str] = set()
    for command in _commands(stages):
        if command[0] != "cmake":
            continue
        trial = [*command, "--", "-n", "-v"] if "--build" in command else command
        ran = subprocess.run(trial, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, f"{trial}\n{ran.stdout}\n{ran.stderr}"
        for folder in _after(command, "--build"):
            linked.update(str(Path(folder, name)) for name in re.findall(r" -o (\S+)", ran.stdout))
    assert {name for name in _started(stages) if Path(name).parent != tmp_path} <= linked


def _outcome(step: Step, status: int, output: str) -> Outcome:
    alone = replace(step, needs=(), skip="")
    return run_stages([[alone]], lambda *_: (status, output), 1000, say=lambda text: None)[0]


def test_no_step_passes_by_skipping() -> None:
    steps = {step.name: step for stage in suite.stages(CARD, _tool) for step in stage}
    said = {"C++ tests block": ("test_kernels: no card, so nothing was run: x", "test_kernels: 8 runs, 0 failures"),
            "memcheck block": ("===== ERROR SUMMARY: 0 errors", "test_kernels: 8 runs\n===== ERROR SUMMARY: 0 errors"),
            "Python tests": ("160 skipped in 2 s", "12 passed, 3 skipped in 2 s"),
            "Python tests block": ("no tests ran", "1 passed in 2 s")}
    for name, (skips, passes) in said.items():
        assert _outcome(steps[name], 0, skips).state == "failed", name
        assert _outcome(steps[name], 2, passes).state == "failed", name
        assert _outcome(steps[name], 0, passes).state == "passed", name


def test_what_has_to_run_must_not_be_skipped() -> None:
    """Such as the Python tests where pytest is missing; a sanitizer that is not installed is let go."""
    for required in (True, False):
        step = Step("a", [["true"]], 100, 10, required=required, skip="it is not installed")
        found = run_stages([[step]], lambda *_: (0, ""), 1000, say=lambda text: None)[0]
        assert found.state == "skipped" and found.bad == required
