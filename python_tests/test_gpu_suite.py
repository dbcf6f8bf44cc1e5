"""What can be tried of the GPU suite without a card: order and budget of the steps, reports, and that it compiles."""
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.contestants import OURS, Shape
from bench.gpu import card as cards
from bench.gpu import layers, report, steps, suite
from bench.gpu.__main__ import main
from bench.gpu.card import Card
from bench.gpu.layers import Bench, Entry, Group, forced, groups
from bench.gpu.steps import Outcome, Processes, Step, allowance, run_stages

ROOT = Path(__file__).resolve().parents[1]
CARD = Card("NVIDIA H100 80GB HBM3", (9, 0), 132, "", "2.11.0+cu130", "13.0", "580.1")
OLD = replace(CARD, name="NVIDIA T4", capability=(7, 5))
CANNOT_RUN = "bench/ and csrc/ are not beside these tests"
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason=CANNOT_RUN)


def _quiet(_: str) -> None:
    """Says nothing."""


class Fake:
    """A clock, and a runner under which each step takes the seconds that it is given here."""

    def __init__(self, seconds: dict[str, float], status: dict[str, int] | None = None) -> None:
        self.now, self.seconds, self.status, self.ran = 0.0, seconds, status or {}, dict[str, float]()

    def __call__(self, step: Step, allowed: float) -> tuple[int | None, str]:
        self.ran[step.name] = allowed
        taken = self.seconds.get(step.name, 1.0)
        self.now += min(taken, allowed)
        return (None, "half way") if taken > allowed else (self.status.get(step.name, 0), f"log\n{step.name} is done\n")

    def run(self, stages: Sequence[Sequence[Step]], budget: float, **more: Any) -> dict[str, Outcome]:
        found = run_stages(stages, self, budget, clock=lambda: self.now, say=_quiet, **more)
        return {outcome.name: outcome for outcome in found}


def _step(name: str, limit: float = 100, least: float = 10, **more: Any) -> Step:
    return Step(name, [["true"]], limit, least, **more)


# --------------------------------------------------------------------------------------------------------------- steps
def test_a_failure_hides_no_other_step() -> None:
    found = Fake({}, {"a": 3}).run([[_step("a")], [_step("b"), _step("c", needs=("a",))]], 1000)
    assert [found[name].state for name in "abc"] == ["failed", "passed", "not run"]
    assert [found[name].bad for name in "abc"] == [True, False, True]
    assert found["b"].note == "b is done" and found["c"].note == "needs a"


def test_a_step_that_takes_too_long_is_stopped() -> None:
    found = Fake({"a": 1000, "b": 1000}).run([[_step("a", required=False)], [_step("b")]], 500)
    assert [found[name].state for name in "ab"] == ["late", "late"]
    assert not found["a"].bad and found["b"].bad
    assert found["a"].seconds == 100 and "half way" in found["a"].note


def test_the_unimportant_is_dropped_when_time_runs_out() -> None:
    stages = [[_step("a")], [_step("b")], [_step("c", required=False)], [_step("d")]]
    fake = Fake({"a": 90, "b": 15, "d": 9})
    found = fake.run(stages, 120)
    assert [found[name].state for name in "abcd"] == ["passed", "passed", "dropped", "passed"]
    assert "no time: 5 s are left, it needs 10" in found["c"].note and not found["c"].bad
    assert fake.ran == {"a": 100, "b": 20, "d": 15} and fake.now < 120


def test_allowances() -> None:
    a, b, c = _step("a", 100, 40), _step("b", 100, 30), _step("c", 100, 20, required=False)
    assert allowance(1000, [a], [[b], [c]]) == 100  # its limit
    assert allowance(90, [a], [[b], [c]]) == 60  # what the required ones after it leave
    assert allowance(50, [a], [[b], [c]]) == 40  # its own least comes first
    assert allowance(30, [a], [[b], [c]]) == 30  # there is no more
    assert allowance(40, [c], [[b]]) == 10 and allowance(40, [c], [[replace(b, skip="not here")]]) == 40


def test_skipped_with_a_reason() -> None:
    said: list[str] = []
    fake = Fake({})
    step = _step("a", skip="it is not installed", required=False)
    found = run_stages([[step]], fake, 100, clock=lambda: fake.now, say=said.append)
    assert found[0].state == "skipped" and not found[0].bad and fake.ran == {}
    assert said == ["--- a: skipped: it is not installed"]


def test_outcomes_are_handed_over_after_every_stage() -> None:
    sizes: list[int] = []
    Fake({}).run([[_step("a"), _step("b")], [_step("c")]], 100, workers=2, after=lambda found: sizes.append(len(found)))
    assert sizes == [2, 3]


def test_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, python = Processes(tmp_path, tmp_path / "logs"), sys.executable
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: 7.0))  # however busy this machine is
    echo = Step("echo", [[python, "-c", "import os, sys; print(os.environ['WORD'], sys.argv[1])", "{seconds}"],
                         [python, "-c", "raise SystemExit(5)"],
                         [python, "-c", "print('never')"]], 60, 1, {"WORD": "here"})
    assert processes(echo, 50) == (5, f"here {50 - steps.GRACE}\n")
    # The limit, which comes when the child of a child is up, ends that as well: it lets go of a pipe without a word.
    os.mkfifo(pipe := tmp_path / "pipe")
    child = f"import time; f = open({str(pipe)!r}, 'w'); print('up', flush=True); time.sleep(60); f.write('late')"
    sleeper = f"import subprocess; subprocess.run([{python!r}, '-c', {child!r}])"
    wait, log = subprocess.Popen.wait, tmp_path / "logs" / "sleep.log"

    def late(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout != 1234:
            return wait(process, timeout)
        while log.read_text() != "up\n":
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as end:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "wait", late)
            assert processes(Step("sleep", [[python, "-c", sleeper]], 60, 1), 1234) == (None, "up\n")
        os.set_blocking(end.fileno(), True)
        assert end.read() == ""
    processes.stop()
    assert processes(echo, 50)[0] is None  # nothing starts after the end
    gone = Step("gone", [["no-such-program"]], 9, 1)
    found = run_stages([[gone]], Processes(tmp_path, tmp_path / "logs"), 100, say=_quiet)
    assert found[0].state == "failed"
    assert found[0].note == "no-such-program could not be started: No such file or directory"


def test_last_line_names_no_folder_of_this_machine() -> None:
    assert steps.last_line("a\n== wrote /home/me/x.csv, 3 of 4 ==\n\n") == "wrote (path), 3 of 4"
    assert steps.last_line("") == ""
    assert suite._pytest_line("FAILED python_tests/test_cuda.py::test_a[1] - x\n== 1 failed in 2s ==") == (
        "1 failed in 2s; first: test_a[1]")
    assert suite._sanitizer_line("========= ERROR SUMMARY: 2 errors\nlater\n") == "ERROR SUMMARY: 2 errors"


# --------------------------------------------------------------------------------------------------------------- suite
def _tool(name: str) -> str | None:
    return f"/opt/cuda/bin/{name}"


def test_stages_of_a_card() -> None:
    stages = suite.stages(CARD, _tool)
    every = [step for stage in stages for step in stage]
    names = [step.name for step in every]
    assert len(set(names)) == len(names) and {need for step in every for need in step.needs} <= set(names)
    assert {f"C++ tests {design}" for design in suite.DESIGNS} <= set(names)
    assert {f"{check} {design}" for check in suite.SANITIZERS for design in suite.DESIGNS} <= set(names)
    assert [len(stage) for stage in stages if stage[0].name in ("timings", "primitives")] == [1, 1]  # undisturbed
    build = every[0]
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in build.environment["LSNN_CMAKE_ARGS"].split()
    assert "-DCMAKE_CUDA_COMPILER=/opt/cuda/bin/nvcc" in build.environment["LSNN_CMAKE_ARGS"].split()
    assert build.environment["LSNN_BUILD"] == "require" and build.environment["PATH"].startswith("/opt/cuda/bin:")
    assert not any(word in ("pip", "venv") for step in every for command in step.commands for word in command)
    # What every required stage needs at least fits into the eight minutes.
    assert sum(max(step.least for step in stage) for stage in stages if stage[0].required) < 8 * 60 / 2


def test_stages_of_an_older_card_and_without_tools() -> None:
    every = [step for stage in suite.stages(OLD, lambda name: None) for step in stage]
    assert not any("cluster" in step.name for step in every)
    assert "-DCMAKE_CUDA_ARCHITECTURES=75" in every[0].environment["LSNN_CMAKE_ARGS"]
    skipped = {step.name.split()[0] for step in every if step.skip}
    assert skipped == set(suite.SANITIZERS)


def test_slug() -> None:
    assert CARD.slug == "nvidia-h100-80gb-hbm3" and cards.slug("Quadro RTX 6000/8000") == "quadro-rtx-6000-8000"
    assert cards.slug("//") == "unknown" and CARD.architecture == "90"


def test_samples_of_the_clock() -> None:
    assert cards.read_samples("1980, 350.5\n1950, [N/A]\n1965, 340.5\n19") == (1957.5, 345.5)
    assert all(math.isnan(value) for value in cards.read_samples("no device"))


def test_a_card_is_missing_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    assert main([]) == 2
    assert f"no card, so nothing was run: torch {torch.__version__} sees no CUDA device" in capsys.readouterr().out


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of the suite where the steps of these tests may write."""
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    return tmp_path


def test_the_whole_with_a_fake_runner(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(_rows())

    def runner(step: Step, seconds: float) -> tuple[int | None, str]:
        if step.name == "timings":
            (sandbox / suite.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"cut')
        if step.name == "primitives":
            head = "primitive,parameter,value,unit\n"
            (sandbox / suite.PRIMITIVES).write_text(f"{head}grid.sync,132 blocks,1e3,cycles\ngr")
        return (1 if step.name == "Python tests" else 0), "1 passed, test_kernels: 1 runs\n"

    assert main(["--out", str(sandbox / "out")], runner, CARD) == 1
    said = capsys.readouterr().out
    assert "bench.gpu: FAILED: Python tests;" in said
    written = {path.name for path in (sandbox / "out").iterdir()}
    assert written >= {"nvidia-h100-80gb-hbm3.csv", "nvidia-h100-80gb-hbm3.md"}
    with (sandbox / "out" / "nvidia-h100-80gb-hbm3.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == report.COLUMNS and len(table) == sum("note" not in row for row in rows) + 1
    assert table[-1]["what"] == "grid.sync" and table[-1]["value"] == "1000" and table[-1]["ms"] == ""
    for row in table:
        assert row["card"] == CARD.name and row["driver"] == "580.1"
        assert row["command"] == "python -m bench.gpu --minutes 8"
    summary = (sandbox / "out" / "nvidia-h100-80gb-hbm3.md").read_text()
    for text in ("| Python tests | failed |", "## Primitives", "## Left out", "## layers: T=20 B=2 I=5 N=6"):
        assert text in summary
    assert str(sandbox) not in summary


def test_nothing_measured_writes_no_csv(sandbox: Path) -> None:
    assert main(["--out", str(sandbox / "out")], lambda step, seconds: (1, ""), CARD) == 1
    assert [path.name for path in (sandbox / "out").iterdir()] == ["nvidia-h100-80gb-hbm3.md"]
    assert "Nothing was measured." in (sandbox / "out" / "nvidia-h100-80gb-hbm3.md").read_text()


# -------------------------------------------------------------------------------------------------------------- layers
TINY = {"P256": Shape(20, 2, 5, 6)}


def _rows(kinds: Callable[[Group], bool] = lambda group: True) -> list[dict[str, Any]]:
    """What the benchmark emits for a tiny shape on the CPU, where all but events, graphs and designs is the same."""
    found: list[dict[str, Any]] = []
    bench = Bench(torch.device("cpu"), time.monotonic() + 1000, found.append, TINY, _quiet)
    for group in groups(("block",)):
        if group.yardstick in TINY and group.kind in ("layers", "designs", "rates") and kinds(group):
            bench.run(replace(group, seconds=0.01))
    bench.run(Group("layers", "P256", (Entry(OURS), Entry("no such layer")), 0.01, 0))
    return found


def test_rows_of_the_benchmark() -> None:
    found = _rows(lambda group: group.kind == "layers")
    rows, notes = [row for row in found if "note" not in row], [row["note"] for row in found if "note" in row]
    assert any("left out no such layer float32" in note for note in notes)
    first = rows[0]
    assert first["contestant"] == OURS and first["dtype"] == "float32" and first["base"] and first["ratio_to_ours"] == 1
    names = {(row["contestant"], row["dtype"].split()[0]) for row in rows}
    assert {(OURS, "float32"), ("nn.LSTM", "float32"), ("nn.RNN", "float32")} <= names
    for row in rows:
        assert 0 < row["min_ms"] <= row["median_ms"] and row["repeats"] >= 3 and math.isnan(row["peak_mib"])


def test_no_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(layers, "time", SimpleNamespace(monotonic=lambda: 7.0))
    Bench(torch.device("cpu"), 8.0, found.append, TINY, _quiet).run(groups()[0])
    assert len(found) == 1 and found[0]["note"].startswith("dropped layers on P256: 1 s are left")


def test_groups_begin_with_ours_and_with_what_matters() -> None:
    every = groups()
    assert all(group.entries[0] == Entry(OURS) for group in every)
    assert [group.kind for group in every[:4]] == ["layers"] * 3 + ["loops"]
    assert {entry.design for group in every for entry in group.entries} == {"", *suite.DESIGNS}


def test_a_design_is_forced_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_CUDA", "gather")
    with forced("block"):
        assert os.environ["LSNN_CUDA"] == "block"
        with forced(""):
            assert "LSNN_CUDA" not in os.environ
    assert os.environ["LSNN_CUDA"] == "gather"


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row for row in _rows() if "note" not in row]
    made = report.plots(report.Report(CARD, "c", "2000-01-01", [], rows, [], []), tmp_path)
    assert [path.name for path in made] == [f"{CARD.slug}-times.png", f"{CARD.slug}-rates.png"]


# ---------------------------------------------------------------------------------------------------- tests of the card
def test_tests_of_the_card_skip_with_a_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    files = ["python_tests/test_cuda.py", "python_tests/test_cuda_torch.py"]
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], cwd=ROOT,
                         capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout
    assert "sees no CUDA device" in ran.stdout and " skipped in " in ran.stdout
    assert " passed" not in ran.stdout and " failed" not in ran.stdout


def test_make_gpu_takes_the_python_that_is_named() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    ran = subprocess.run(["make", "-n", "gpu", "PYTHON=some/python", "ARGS=--minutes 2"], cwd=ROOT, capture_output=True,
                         text=True)
    assert "some/python -m bench.gpu --minutes 2" in ran.stdout.splitlines()


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_primitives_compile(architecture: str, tmp_path: Path) -> None:
    """For a card with clusters and one without; without a card the program says so."""
    nvcc = cards.find_tool("nvcc")
    if nvcc is None or shutil.which("g++") is None:
        pytest.skip("nvcc is not installed")
    program, source = tmp_path / "primitives", ROOT / "csrc" / "gpu_primitives" / "primitives.cu"
    made = subprocess.run([nvcc, "-std=c++20", "-O3", f"-arch={architecture}", "-o", program, source],
                          capture_output=True, text=True, timeout=600)
    assert made.returncode == 0 and "warning" not in made.stderr, made.stderr
    if not torch.cuda.is_available():
        ran = subprocess.run([program], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 2 and ran.stderr.startswith("primitives: no CUDA device: ")
