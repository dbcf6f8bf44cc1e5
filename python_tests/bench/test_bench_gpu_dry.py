"""`make gpu ARGS=--dry-run`: it fails where a program is missing or looks for no device."""
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from test_bench_gpu import ROOT, pytestmark  # noqa: F401

from bench.gpu import suite
from bench.gpu.__main__ import main
from bench.gpu.card import find_tool
from bench.gpu.steps import Processes, Step, run_stages


@pytest.mark.parametrize(("script", "state", "note"), [
    ("echo 'test_kernels: no GPU, so nothing was run: none'; exit 2", "passed", ""),
    (None, "failed", f"{suite.TESTS} could not be started"),  # the build has named no target
    ("exit 2", "failed", "")], ids=["no device", "not built", "another reason"])
def test_a_dry_run_passes_where_programs_say_that_there_is_no_device(
        script: str | None, state: str, note: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts stand for what was built."""
    monkeypatch.setattr(suite, "WORK", str(tmp_path))
    (tmp_path / "dry" / "tests").mkdir(parents=True)
    for name, lines in (("primitives", "echo 'primitives: no CUDA device: none'; exit 2"),
                        (f"tests/{suite.TESTS}", script)):
        if lines is not None:
            path = tmp_path / "dry" / name
            path.write_text(f"#!/bin/sh\n{lines}\n")
            path.chmod(0o755)
    alone = [[replace(step, needs=()) for step in stage
              if step.commands[0][0].startswith(str(tmp_path))]
             for stage in suite.dry_stages()]
    found = run_stages(alone, Processes(ROOT, tmp_path / "logs"), 600)
    outcomes = {outcome.name: outcome for outcome in found}
    assert outcomes.pop("primitives").state == "passed"
    assert outcomes.keys() == {f"C++ tests {design}" for design in suite.ROUTES}
    for outcome in outcomes.values():
        assert outcome.state == state and outcome.bad == (state == "failed")
        assert note in outcome.note


def test_every_step_builds_or_is_started_without_a_device() -> None:
    builds, *others = suite.dry_stages()
    dry, real = [*builds, *chain(*others)], [*chain(*suite.stages(suite.STAND_IN))]
    for step, one in zip(dry, real, strict=True):
        assert step.name == one.name and (step.without_device is None) == (step in builds)
        assert step.environment["CUDA_VISIBLE_DEVICES"] == "" and step.limit == suite.DRY_LIMIT
        for name, value in one.environment.items():
            assert step.environment[name].startswith(value)
    # It leaves the compiled part that is in use alone.
    words = [word for step in builds for command in step.commands for word in command]
    assert "--inplace" not in words and "--build-lib" in words and suite.TESTS in words


@pytest.mark.parametrize(("said", "passes"), [
    ("ss\n160 skipped in 2 s", True), ("== 160 skipped, 2 warnings in 2 s ==", True),
    ("1 passed, 159 skipped in 2 s", False), ("1 failed, 159 skipped in 2 s", False),
    ("no tests ran in 2 s", False), ("160 skipped, 1 error in 2 s", False)])
def test_a_stage_of_python_tests_skips_all_of_them(said: str, passes: bool) -> None:
    steps = [step for step in chain(*suite.dry_stages()) if step.name.startswith("Python tests")]
    assert len(steps) == 1 + len(suite.DESIGNS)
    for step in steps:
        ended = run_stages([[replace(step, needs=(), skip="")]], lambda *_: (0, said), 1e6)
        assert (ended[0].state == "passed") == passes


def _passing(step: Step, seconds: float) -> tuple[int | None, str]:
    status = step.without_device[0] if step.without_device else 0
    texts = ("test_kernels: no GPU, so nothing was run", "primitives: no CUDA device: none",
             *(f"bench.gpu.{name}: torch sees no CUDA device"
               for name in ("layers", "kernels", "choices")), "3 skipped in 1 s")
    return status, "\n".join(texts)


def test_the_whole_of_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    if find_tool("nvcc") is None:
        assert main(["--dry-run"], _passing) == 2
        assert "no nvcc, so nothing was built" in capsys.readouterr().out
        return
    assert main(["--dry-run"], _passing) == 0
    assert "Nothing was measured." in capsys.readouterr().out
    assert not (tmp_path / "bench").exists()

    def failing(step: Step, seconds: float) -> tuple[int | None, str]:
        return (1, "no such target") if step.name == "build of the C++ tests" else _passing(
            step, seconds)

    out = tmp_path / "there"
    assert main(["--dry-run", "--out", str(out)], failing) == 1
    assert "FAILED: build of the C++ tests, C++ tests block" in capsys.readouterr().out
    assert {path.suffix for path in out.iterdir()} == {".md", ".log"}
    log = "\n".join(path.read_text() for path in out.glob("*.log"))
    assert "=== build of the C++ tests: failed\nno such target\n" in log
    assert "=== primitives: passed\ntest_kernels" in log


def test_stages_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "routes,tests"])
    assert ended.value.code == 2
    message = f"--only: expected stages of {', '.join(suite.STAGES)}, got 'tests'"
    assert message in capsys.readouterr().err
