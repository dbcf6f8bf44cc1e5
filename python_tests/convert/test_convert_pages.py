"""The page about convert, and python -m lsnn_ext.convert."""
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lsnn_ext.convert import Refused
from lsnn_ext.convert.__main__ import main
from originals import package

PAGE = Path(__file__).resolve().parents[2] / "docs" / "convert.md"

SCRIPT = '''
import torch
from norse.torch import LIFRecurrent, LSNNRecurrent

class Net(torch.nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.Linear(6, 12), LIFRecurrent(12, 14))

net = Net()
x = 8 * torch.rand(20, 3, 6)
arguments = (x,)
number = 3

def run(model):
    return model(x)

if __name__ == "__main__":
    raise SystemExit("it trains")
'''


def _script(folder: Path) -> str:
    package("norse.torch")
    path = folder / "train.py"
    path.write_text(SCRIPT)
    return str(path)


@pytest.mark.parametrize("options", [
    [":Net", "--shape", "20,3,6"], [":net", "--input", "x"], [":net", "--input", "arguments"],
    [":net", "--input", "run"],
])
def test_a_report_for_a_script(options: list[str], tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    where = _script(tmp_path)
    assert main([where + options[0], *options[1:], "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 of 1 spiking modules replaced" in text and "times as fast" in text
    assert "equal in all" in text and Path(where).read_text() == SCRIPT


@pytest.mark.parametrize(("place", "message"), [
    ("nothing.py:net", "expected a file"), ("net", "expected FILE.py:NAME"),
    ("{script}:other", "expected a name that is defined there, got other"),
    ("{script}:number.real", "expected a module, or what makes one, got int"),
])
def test_what_cannot_be_found(place: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main([place.replace("{script}", _script(tmp_path))])


@pytest.mark.parametrize("shape", ["a", "20,3,", "20,-3,6", "2.5"])
def test_a_shape_that_is_none(shape: str, tmp_path: Path,
                              capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([_script(tmp_path) + ":net", f"--shape={shape}"])
    assert f"expected sizes such as 100,8,40, got {shape}" in capsys.readouterr().err


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lsnn_ext.convert", _script(tmp_path) + ":net", "--repeats",
               "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "NOT VERIFIED" in done.stdout, done.stderr


def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    if not PAGE.exists():
        pytest.skip("docs/ is not beside these tests")
    package("norse.torch")
    names: dict[str, Any] = {"__name__": "__main__"}
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    shown = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    # all that is no measurement of this machine
    for line in shown.splitlines():
        if "e-" not in line and "ms" not in line:
            assert line in printed, (line, printed)
    # a loop as the class at the end expects it
    loop = SimpleNamespace(alpha=0.9, w_in=torch.eye(5), w_rec=torch.zeros(5, 5), delay=0)
    fused = names["Fused"].from_original(loop)
    assert fused(torch.full((60, 2, 5), 2.0)).mean() > 0
    loop.delay = 1
    with pytest.raises(Refused, match="delay: expected 0, got 1"):
        names["Fused"].from_original(loop)
