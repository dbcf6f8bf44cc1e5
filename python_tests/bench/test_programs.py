"""`python -m bench.programs`: the manifest, what of a script runs, and a line of the table."""
import ast
import os
import re
from pathlib import Path

import pytest
import torch

from bench.programs.__main__ import main, table
from bench.programs.load import Program, load, programs, select
from bench.programs.measure import Line, in_process, measure

SCRIPT = '''
import torch
import torch.nn as nn
import a_package_that_is_missing
data = a_package_that_is_missing.load("/nowhere")
size = len(data)
width = 3
scale: float = 2.0
weight = torch.zeros(width)
torch.nn.init.ones_(weight)

def helper(x):
    size = scale * x
    return size * weight

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        self.seen = x.cuda()
        return helper(self.linear(x.float()))

model = Model().train(data)
'''


def write(folder: Path, **fields: object) -> Program:
    path = folder / "owner" / "name" / "script.py"
    path.parent.mkdir(parents=True)
    path.write_text(SCRIPT)
    entry = {"name": "script", "repository": "owner/name", "path": "script.py", "model": "Model()",
             "inputs": ({"kind": "normal", "shape": (5, 3)},), "cuda_is_cpu": True, **fields}
    return Program(**entry)  # type: ignore[arg-type]


def test_manifest_names_each_program_once_with_its_commit() -> None:
    found = programs()
    assert len({one.name for one in found}) == len(found) > 22
    for one in found:
        assert bool(one.repository) == bool(one.commit), one.name
        assert not one.commit or re.fullmatch(r"[0-9a-f]{40}", one.commit), one.name
        assert one.note or not one.replaced, f"{one.name}: expected a note on its changes"


def test_statements_that_the_model_needs_are_selected() -> None:
    chosen = select(ast.parse(SCRIPT).body, ast.parse("Model()").body, ("torch.nn.init.",))
    assert [ast.unparse(one).split("\n")[0] for one in chosen] == [
        "import torch", "import torch.nn as nn", "width = 3", "scale: float = 2.0",
        "weight = torch.zeros(width)", "torch.nn.init.ones_(weight)", "def helper(x):",
        "class Model(nn.Module):"]


def _run(program: Program, folder: Path, dtype: torch.dtype) -> tuple[torch.dtype, list[str], int]:
    loaded = load(program, folder, dtype)
    result, gradients = loaded.step()
    frame_line = type(loaded.model).forward.__code__.co_firstlineno
    return result.dtype, [name for name, one in gradients.items() if one is not None], frame_line


def test_program_runs_in_both_dtypes(tmp_path: Path) -> None:
    program = write(tmp_path, run=("torch.nn.init.",))
    for dtype in (torch.float32, torch.float64):
        found, gradients, line = in_process(_run, program, tmp_path, dtype)
        assert found == dtype and gradients == ["linear.weight", "linear.bias"]
        assert SCRIPT.splitlines()[line - 1].strip() == "def forward(self, x):"


def test_lines_are_replaced(tmp_path: Path) -> None:
    number = 1 + next(i for i, line in enumerate(SCRIPT.splitlines()) if "self.seen = x" in line)
    program = write(tmp_path, replaced=((number, "x = x[:2]"),))
    assert in_process(_run, program, tmp_path, torch.float32)[0] == torch.float32
    program = Program(**{**vars(program), "replaced": ((1000, ""),)})
    with pytest.raises(RuntimeError, match="expected a line of script.py"):
        in_process(_run, program, tmp_path, torch.float32)


def test_process_that_ends_is_reported() -> None:
    with pytest.raises(RuntimeError, match="the process ended with 3"):
        in_process(os._exit, 3)


def test_program_without_a_copy_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([str(tmp_path), "--only", "run_snn"])
    out = capsys.readouterr().out
    assert "no copy: expected fzenke/spytorch/notebooks/SpyTorchTutorial4.ipynb" in out
    main([str(tmp_path), "--only", "run_snn", "--list"])
    assert "fzenke/spytorch d363dbf93a04" in capsys.readouterr().out


def test_program_is_measured(tmp_path: Path) -> None:
    inputs = ({"kind": "spikes", "shape": (20, 4, 10), "rate": 0.1, "scale": 4.0},)
    program = Program("SMLP", "written.py", "SMLP(10, 16, 3)", inputs)
    line = measure(program, tmp_path, repeats=1, seconds=1.0)
    assert line.converted and line.fused == 3 and not line.left, line
    assert line.iterations == "20 x 6, 20 x 8, 20 x 6"
    assert line.difference < 1e-6 and line.difference_64 < 1e-12
    assert line.gradient_difference < 1e-4 and line.gradient_difference_64 < 1e-9
    assert line.ratio > 0 and line.ratio_2 > 0 and line.converted_mib > 0
    told = table([line, Line("other", reason="numpy")])
    assert "| SMLP | 20 x 6, 20 x 8, 20 x 6 | 3 |" in told and "* other: numpy" in told
    assert "1 of 2 converted, median ratio" in told
