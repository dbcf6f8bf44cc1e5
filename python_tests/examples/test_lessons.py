"""The lessons: each runs as a program, and its cells are those of a notebook."""
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from example_path import EXAMPLES, needs

needs("matplotlib", "tqdm")

LESSONS = sorted((EXAMPLES / "lessons").glob("*.py"))
pytestmark = pytest.mark.usefixtures("own_threads")


def _run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Global names of a lesson after its run with --quick."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = runpy.run_path(str(EXAMPLES / "lessons" / f"{name}.py"))
    assert (folder / "demo_out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return found


def test_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    found = _run("own_loop", tmp_path, monkeypatch)
    assert found["report"].converted
    torch.testing.assert_close(*found["results"], rtol=1e-4, atol=1e-5)
    for one, other in zip(*found["gradients"], strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()
    assert found["losses"]["loop"] == pytest.approx(found["losses"]["converted"], rel=1e-3)
    printed = capsys.readouterr().out
    assert "Decides: not converted" in printed and "NormalizesCurrent: converted" in printed


def test_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _run("remembers", tmp_path, monkeypatch)
    assert len(found["history"]) == 2 and found["asked"].sum() > 0
    assert set(found["errors"]) == {"LSNN", "LIF"}
    assert found["before"].shape[1] == 10 and found["before"].std() > 0


def test_working_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _run("working_memory", tmp_path, monkeypatch)
    assert found["f1"](found["recalled"], found["rest"]) > 0.95
    assert found["scores"][5][0] < 0.95 and found["curves"][5][-1] > 0


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_cells(path: Path) -> None:
    """Text in comments, and code that a notebook can run cell by cell."""
    first, *cells = path.read_text().split("# %%")
    assert not first and cells[0].startswith(" [markdown]")
    for cell in cells:
        kind, _, text = cell.partition("\n")
        if kind == " [markdown]":
            assert all(line.startswith("#") for line in text.splitlines() if line)
        else:
            assert not kind
            compile(text, path.name, "exec")
