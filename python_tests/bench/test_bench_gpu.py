"""What can be tested of `make gpu` without a GPU: its programs, its budget, its report."""
import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import tables
from bench.contestants import OURS
from bench.gpu import card as cards
from bench.gpu import suite
from bench.gpu.__main__ import main
from bench.gpu.card import Card, find_tool
from bench.gpu.layers import GENERAL, Bench, Entry, Group, Row, groups
from bench.gpu.steps import Outcome, Processes, Step, last_line, run_stages
from bench.problem import Shape

ROOT = Path(__file__).resolve().parents[2]
CARD = Card("NVIDIA H100 80GB HBM3", (9, 0), 132, "", "2.11.0+cu130", "13.0", "580.1")
OLD = replace(CARD, name="NVIDIA T4", capability=(7, 5))
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(),
                                reason="bench/ and csrc/ are not beside these tests")
needs_no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


def _tool(name: str) -> str | None:
    return f"/opt/cuda/bin/{name}"


# -------------------------------------------------------------------------------- what would be run
def _commands(stages: list[list[Step]]) -> list[Sequence[str]]:
    return [command for stage in stages for step in stage for command in step.commands]


def _started(stages: list[list[Step]]) -> set[str]:
    """The programs in the suite's own folder that are named after the builds; not the files that
    are written there, nor the extension, which setup.py makes."""
    words = {word for command in _commands(stages[1:]) for word in command
             if word.startswith(f"{suite.WORK}/")}
    return words - {suite.ROWS, *suite.TABLES} - _extensions(stages)


def _extensions(stages: list[list[Step]]) -> set[str]:
    return {folder for command in _commands(stages[1:])
            for folder in _after(command, "--extension")}


def _after(command: Sequence[str], option: str) -> Iterator[str]:
    yield from (command[at + 1] for at, word in enumerate(command[:-1]) if word == option)


def test_every_program_is_built() -> None:
    stages = suite.stages(CARD, _tool)
    made: set[str] = set()
    lists = (ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/CMakeLists.txt"))
    defined = re.findall(r"add_executable\(\s*(\w+)", "".join(path.read_text() for path in lists))
    for command in _commands(stages[:1]):
        assert all((ROOT / word).is_file() for word in command if word.startswith("csrc/"))
        made.update(_after(command, "-o"))
        for target in _after(command, "--target"):
            assert target in defined
            made.update(f"{folder}/{target}" for folder in _after(command, "--build"))
        made.update(_after(command, "--build-lib"))
    started, extensions = _started(stages), _extensions(stages)
    assert len(started) == 2 and len(extensions) == 1 and started | extensions <= made
    commands = _commands(stages)
    assert {name for command in commands for name in _after(command, "-m")} == {
        "pytest", "bench.gpu.layers", "bench.gpu.kernels", "bench.gpu.choices"}
    tests = {word for command in commands for word in command if word.startswith("python_tests/")}
    assert len(tests) == 3 and all((ROOT / name).is_file() for name in tests)


def test_cmake_makes_the_programs_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own commands; the build compiles nothing and ends with linking."""
    if not all(map(find_tool, ("nvcc", "cmake", "ninja", "c++"))):
        pytest.skip("nvcc, cmake, ninja or a C++ compiler is not installed")
    monkeypatch.setattr(suite, "WORK", str(tmp_path))
    stages = suite.stages(CARD)
    linked: set[str] = set()
    for command in (one for one in _commands(stages[:1]) if one[0] == "cmake"):
        trial = [*command, "--", "-n", "-v"] if "--build" in command else command
        ran = subprocess.run(trial, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, f"{trial}\n{ran.stdout}\n{ran.stderr}"
        for folder in _after(command, "--build"):
            linked.update(str(Path(folder, name)) for name in re.findall(r" -o (\S+)", ran.stdout))
    programs = {name for name in _started(stages) if Path(name).parent != tmp_path}
    assert programs and programs <= linked


def test_stages_of_a_card() -> None:
    stages = suite.stages(CARD, _tool)
    every = [step for stage in stages for step in stage]
    names = [step.name for step in every]
    assert len(set(names)) == len(names) and {need for step in every for need in step.needs} <= set(
        names)
    assert {f"C++ tests {route}" for route in suite.ROUTES} <= set(names)
    assert {f"{check} {route}" for check in suite.SANITIZERS for route in suite.ROUTES} <= set(
        names)
    older = {step.name for stage in suite.stages(OLD, _tool) for step in stage}
    assert "C++ tests block" in older
    assert not older & {"C++ tests cluster", "C++ tests lsnn", "memcheck lsnn",
                        *(f"C++ tests {route}" for route in suite.IN_CLUSTER)}
    # undisturbed
    alone = ("primitives", "kernels", "timings", "phases", "choices")
    assert [len(stage) for stage in stages if stage[0].name in alone] == [1] * len(alone)
    build = every[0].environment
    options = {"-DCMAKE_CUDA_ARCHITECTURES=90", "-DCMAKE_CUDA_COMPILER=/opt/cuda/bin/nvcc"}
    assert options <= set(build["LSNN_CMAKE_ARGS"].split())
    assert build["LSNN_BUILD"] == "require" and build["PATH"].startswith("/opt/cuda/bin:")
    words = {word for step in every for command in step.commands for word in command}
    assert not words & {"pip", "venv"}
    # What every required stage needs at least fits into the eight minutes.
    assert sum(max(step.least for step in stage) for stage in stages
               if stage[0].required) < 8 * 60 / 2


def test_stages_of_an_older_card_and_without_tools() -> None:
    every = [step for stage in suite.stages(OLD, lambda name: None) for step in stage]
    assert not any("cluster" in step.name for step in every)
    assert "-DCMAKE_CUDA_ARCHITECTURES=75" in every[0].environment["LSNN_CMAKE_ARGS"]
    assert {step.name.split()[0] for step in every if step.skip} == set(suite.SANITIZERS)


def test_no_step_passes_by_skipping() -> None:
    steps = {step.name: step for stage in suite.stages(CARD, _tool) for step in stage}
    said = {"C++ tests block": ("test_kernels: no card, so nothing was run: x",
                                "test_kernels: 8 runs, 0 failures"),
            "memcheck block": ("===== ERROR SUMMARY: 0 errors",
                               "test_kernels: 8 runs\n===== ERROR SUMMARY: 0 errors"),
            "Python tests": ("160 skipped in 2 s", "12 passed, 3 skipped in 2 s"),
            "Python tests block": ("no tests ran", "1 passed in 2 s")}
    for name, (skips, passes) in said.items():
        for status, output, state in ((0, skips, "failed"), (2, passes, "failed"),
                                      (0, passes, "passed")):
            alone = replace(steps[name], needs=(), skip="")
            ended = run_stages([[alone]], lambda *_, got=(status, output): got, 1000)
            assert ended[0].state == state, (name, output)


def test_make_gpu_takes_the_python_that_is_named() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    ran = subprocess.run(["make", "-n", "gpu", "PYTHON=some/python", "ARGS=--minutes 2"], cwd=ROOT,
                         capture_output=True, text=True)
    assert "some/python -m bench.gpu --minutes 2" in ran.stdout.splitlines()


@pytest.fixture
def nvcc() -> str:
    found = find_tool("nvcc")
    if found is None or shutil.which("g++") is None:
        pytest.skip("nvcc is not installed")
    return found


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_primitives_compile(architecture: str, nvcc: str, tmp_path: Path) -> None:
    """For a card with clusters and one without; without a card the program says so."""
    program, source = tmp_path / "primitives", ROOT / "bench" / "gpu" / "primitives.cu"
    made = subprocess.run([nvcc, "-std=c++20", "-O3", f"-arch={architecture}", "-o", program,
                           source], capture_output=True, text=True, timeout=600)
    assert made.returncode == 0 and "warning" not in made.stderr, made.stderr
    if not torch.cuda.is_available():
        ran = subprocess.run([program], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 2 and ran.stderr.startswith("primitives: no CUDA device: ")


def test_parameters_of_primitives_may_have_commas(nvcc: str, tmp_path: Path) -> None:
    program, source = tmp_path / "write", tmp_path / "write.cu"
    source.write_text('#include "primitives_timing.cuh"\n'
                      'int main() { primitives::write("a", "b, c", 1.5, "d"); }\n')
    subprocess.run([nvcc, "-std=c++20", "-I", ROOT / "bench" / "gpu", "-o", program, source],
                   check=True, timeout=600)
    said = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert list(csv.reader(said.splitlines())) == [["a", "b, c", "1.5", "d"]]


# --------------------------------------------------------------------------------- steps and budget
class Fake:
    """A clock, and a runner under which each step takes the seconds that it is given here."""

    def __init__(self, seconds: dict[str, float], status: dict[str, int] | None = None) -> None:
        self.now, self.seconds, self.status = 0.0, seconds, status or {}
        self.ran: dict[str, float] = {}

    def __call__(self, step: Step, allowed: float) -> tuple[int | None, str]:
        self.ran[step.name] = allowed
        taken = self.seconds.get(step.name, 1.0)
        self.now += min(taken, allowed)
        return (None, "half way") if taken > allowed else (self.status.get(step.name, 0),
                                                           f"log\n{step.name} is done\n")

    def run(self, stages: list[list[Step]], budget: float, **more: Any) -> dict[str, Outcome]:
        found = run_stages(stages, self, budget, clock=lambda: self.now, **more)
        return {outcome.name: outcome for outcome in found}


def _step(name: str, limit: float = 100, least: float = 10, **more: Any) -> Step:
    return Step(name, [["true"]], limit, least, **more)


def test_a_failure_hides_no_other_step() -> None:
    sizes: list[int] = []
    stages = [[_step("a"), _step("d", skip="it is not installed", required=False)],
              [_step("b"), _step("c", needs=("a",))]]
    found = Fake({}, {"a": 3}).run(stages, 1000, after=lambda outcomes: sizes.append(len(outcomes)))
    assert [found[name].state for name in "abcd"] == ["failed", "passed", "not run", "skipped"]
    assert [found[name].bad for name in "abcd"] == [True, False, True, False]
    assert found["b"].note == "b is done" and found["c"].note == "needs a"
    assert sizes == [2, 4]  # what is known is handed over after every stage


def test_what_takes_too_long_is_stopped_and_what_matters_less_is_dropped() -> None:
    found = Fake({"a": 1000, "b": 1000}).run([[_step("a", required=False)], [_step("b")]], 500)
    assert [found[name].state for name in "ab"] == ["late", "late"]
    assert not found["a"].bad and found["b"].bad
    assert found["a"].seconds == 100 and "half way" in found["a"].note
    fake = Fake({"a": 90, "b": 15, "d": 9})
    found = fake.run([[_step("a")], [_step("b")], [_step("c", required=False)], [_step("d")]], 120)
    assert [found[name].state for name in "abcd"] == ["passed", "passed", "dropped", "passed"]
    assert "no time: 5 s are left, it needs 10" in found["c"].note and not found["c"].bad
    assert fake.ran == {"a": 100, "b": 20, "d": 15} and fake.now < 120


@pytest.mark.parametrize(("budget", "allowed"), [(1000, 100), (90, 60), (50, 40), (40, 40)])
def test_a_stage_leaves_the_next_its_least_unless_it_needs_that_itself(budget: float,
                                                                       allowed: float) -> None:
    fake = Fake({})
    fake.run([[_step("a", 100, 40)], [_step("b", 100, 30)], [_step("c", 100, 20, required=False)]],
             budget)
    assert fake.ran["a"] == allowed


def test_a_process_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    processes, python = Processes(tmp_path, tmp_path / "logs"), sys.executable
    echo = Step("echo", [[python, "-c", "import os; print(os.environ['WORD'])"],
                         [python, "-c", "raise SystemExit(5)"], [python, "-c", "print('never')"]],
                600, 1, {"WORD": "here"})
    assert processes(echo, 600) == (5, "here\n")
    assert processes(Step("late", [[python, "-c", "import time; time.sleep(600)"]], 600, 1),
                     0) == (None, "")
    os.mkfifo(pipe := tmp_path / "pipe")
    child = f"import time; f = open({str(pipe)!r}, 'w'); time.sleep(60); f.write('late')"
    sleeper = Step("sleep",
                   [[python, "-c",
                     f"import subprocess; subprocess.run([{python!r}, '-c', {child!r}])"]], 600, 1)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(processes, sleeper, 600)
        with pipe.open() as end:  # waits until the child of the child has opened it
            processes.stop()
            assert end.read() == ""  # waits until that has died
        assert ended.result()[0] == -signal.SIGKILL
    assert processes(echo, 600)[0] is None  # nothing starts after the end


def test_notes_name_no_folder_of_this_machine() -> None:
    assert last_line("a\n== wrote /home/me/x.csv, 3 of 4 ==\n\n") == "wrote (path), 3 of 4"
    assert last_line("") == ""
    assert suite._pytest_line(
        "FAILED python_tests/cuda/test_cuda.py::test_a[1] - x\n== 1 failed in 2s ==") == (
        "1 failed in 2s; first: test_a[1]")
    assert suite._sanitizer_line(
        "========= ERROR SUMMARY: 2 errors\nlater\n") == "ERROR SUMMARY: 2 errors"


# ------------------------------------------------------------------------------- the whole, timings
@needs_no_card
def test_a_card_is_missing_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    reason = f"torch {torch.__version__} sees no CUDA device"
    assert f"no card, so nothing was run: {reason}" in capsys.readouterr().out


TINY = {"P256": Shape(20, 2, 5, 6)}


@pytest.fixture(scope="module")
def said() -> list[dict[str, Any]]:
    """Rows of a tiny shape on the CPU, without events, graphs and designs."""
    found: list[dict[str, Any]] = []
    bench = Bench(torch.device("cpu"), time.monotonic() + 10_000, found.append, TINY)
    for group in groups(("block",)):
        if group.yardstick in TINY and group.kind in ("layers", "designs", "precisions", "rates"):
            bench.run(replace(group, seconds=0.01))
    bench.run(Group("layers", "P256", (Entry(OURS), Entry("no such layer")), 0.01, 0))
    bench.run(Group("loops", "P256", (Entry(OURS),), 0.01, math.inf))
    return found


def test_rows_of_the_benchmark(said: list[dict[str, Any]]) -> None:
    rows = [Row(**row) for row in said if "note" not in row]
    notes = [row["note"] for row in said if "note" in row]
    assert any("left out no such layer float32 on P256" in note for note in notes)
    assert re.match(r"dropped loops on P256: \d+ s are left", notes[-1])
    assert (rows[0].contestant, rows[0].dtype) == (OURS, "float32")
    assert (rows[0].base, rows[0].ratio_to_ours) == (True, 1)
    assert {(OURS, "float32"), ("nn.LSTM", "float32"), ("nn.RNN", "float32")} <= {
        (row.contestant, row.dtype.split()[0]) for row in rows if row.group == "layers"}
    assert {row.group for row in rows} == {"layers", "designs", "precisions", "rates"}
    assert {row.design for row in rows if row.group == "precisions"} == {"", "high", "medium"}
    assert [row.design for row in rows if row.group == "designs"][:3] == ["", GENERAL, "block"]
    for row in rows:
        assert 0 < row.min_ms <= row.median_ms and row.repeats >= 3 and math.isnan(row.peak_mib)


def test_the_whole_with_a_fake_runner(said: list[dict[str, Any]], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(suite, "ROOT", tmp_path)

    def runner(step: Step, seconds: float) -> tuple[int | None, str]:
        if step.name == "timings":
            (tmp_path / suite.ROWS).write_text("".join(json.dumps(row) + "\n" for row in said)
                                               + '{"cut')
        if step.name == "primitives":
            head = "primitive,parameter,value,unit\n"
            (tmp_path / suite.PRIMITIVES).write_text(f'{head}cluster.sync,"C=2, 4",1e3,cycles\ncl')
        return (1 if step.name == "Python tests" else 0), "1 passed, test_kernels: 1 runs\n"

    monkeypatch.chdir(tmp_path)
    assert main([], runner, CARD) == 1
    out = tmp_path / "bench/results/gpu" / CARD.slug
    assert "bench.gpu: FAILED: Python tests;" in capsys.readouterr().out
    facts, rows = tables.read_csv(Row, out / f"{CARD.slug}.csv")
    assert facts["card"] == CARD.name and facts["driver"] == "580.1"
    assert facts["command"] == "python -m bench.gpu --minutes 8"
    assert len(rows) == sum("note" not in row for row in said) and rows[0].group == "layers"
    summary = (out / f"{CARD.slug}.md").read_text()
    for text in ("| Python tests | failed |", "| cluster.sync | C=2, 4 | 1e3 | cycles |",
                 "## Left out", "## layers: T=20 B=2 I=5 N=6"):
        assert text in summary
    assert str(tmp_path) not in summary
    pytest.importorskip("matplotlib")
    assert {path.name for path in out.glob("*.png")} == {
        f"{CARD.slug}-{k}.png" for k in ("times", "rates")}


def test_two_steps_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More processes on a card only take turns."""
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    running, most = [], []

    def runner(step: Step, seconds: float) -> tuple[int | None, str]:
        running.append(step)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(step)
        return 0, "test_kernels: 1 runs\n"

    assert main(["--only", "routes", "--out", str(tmp_path / "out")], runner, CARD) == 0
    assert max(most) == 2


def test_a_card_that_nvidia_smi_does_not_know_gives_empty_texts(monkeypatch: pytest.MonkeyPatch,
                                                                tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cards.Sample("", "clocks.sm", "power.draw").read() == ["", ""]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '1980, [N/A]'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert cards.Sample("GPU-1", "clocks.sm", "power.draw").read() == ["1980", "[N/A]"]
