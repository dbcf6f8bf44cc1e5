"""The reader of pickled modules, which reads tensors and runs nothing."""
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import example_path  # noqa: F401  which lets the others be found
from checkpoint_files import DH, RNN_custom, write
from published import pickled

FORMATS = pytest.mark.parametrize("legacy", [True, False], ids=["old format", "zip"])


@pytest.mark.parametrize("module", [RNN_custom(), DH(2)], ids=["yin", "dh"])
@FORMATS
def test_tensors_are_those_of_the_state_dict(module: nn.Module, legacy: bool,
                                             tmp_path: Path) -> None:
    found = pickled.read_tensors(write(tmp_path / "tiny.pth", module, legacy).read_bytes())
    expected = module.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ---------------------------------------------------------------------------------- malicious files
class _Runs:
    """Pickled as a call that leaves a file behind."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _touch(path: str) -> None:
    Path(path).touch()


@FORMATS
@pytest.mark.parametrize("inside", [True, False], ids=["in a module", "alone"])
@pytest.mark.parametrize(("function", "argument"), [
    (os.system, "touch {}"), (eval, "open({!r}, 'w')"), (_touch, "{}"), (getattr, "name")])
def test_a_pickle_that_runs_code_is_refused(function: Callable[..., Any], argument: str,
                                            inside: bool, legacy: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    given = (trace, argument) if function is getattr else (argument.format(str(trace)),)
    bad: Any = _Runs((function, given))
    if inside:
        (module := RNN_custom()).surprise = bad
        bad = module
    path = write(tmp_path / "bad.pth", bad, legacy)
    if function is not getattr:  # torch.load runs the call: the file is as bad as it should be
        torch.load(path, weights_only=False)
        assert trace.exists()
        trace.unlink()
    with pytest.raises(TypeError, match=r"takes no arguments|no module"):
        pickled.read_tensors(path.read_bytes())
    assert not trace.exists()


def test_what_a_pickle_sets_is_set_nowhere(tmp_path: Path) -> None:
    """Not in a function of torch, nor in a class."""
    for named in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
                  b"cos\nsystem\n"):
        # builds what is named of the state (None, {"__doc__": "set"})
        attack = b"\x80\x02" + named + b"N}U\x07__doc__U\x03sets\x86b."
        head = (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
                + pickle.dumps({"little_endian": True}, 2))
        path = tmp_path / "bad.pth"
        path.write_bytes(head + attack + pickle.dumps([], 2))
        with pytest.raises(TypeError, match="no module|__setstate__"):
            pickled.read_tensors(path.read_bytes())
        for whole in (torch._utils._rebuild_tensor_v2, torch.FloatStorage, os.system):
            assert whole.__doc__ != "set"


def _cycle(path: Path, whole: bytes) -> None:
    module = nn.Module()
    module.first = nn.Module()
    module.second = module.first
    write(path, module)


def _compressed(path: Path, whole: bytes) -> None:
    write(path, RNN_custom())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


OTHERS: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "cut off": (lambda path, whole: path.write_bytes(whole[:-100]), "bytes in place of"),
    "empty": (lambda path, whole: path.write_bytes(b""), "EOFError"),
    "a picture": (lambda path, whole: path.write_bytes(b"\x89PNG\r\n"), "Error"),
    "a pickle": (lambda path, whole: path.write_bytes(pickle.dumps({"a": 1})), "formats"),
    "a state dict": (lambda path, whole: torch.save(RNN_custom().state_dict(), path), "no module"),
    "float64": (lambda path, whole: write(path, nn.Linear(6, 6).double()), "other than float32"),
    "twice the same": (_cycle, "occurs twice, at second"),
    "compressed": (_compressed, "compressed")}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused(kind: str, tmp_path: Path) -> None:
    act, message = OTHERS[kind]
    act(tmp_path / "other.pth", write(tmp_path / "tiny.pth", RNN_custom(), True).read_bytes())
    with pytest.raises(Exception) as refused:  # noqa: B017, PT011
        pickled.read_tensors((tmp_path / "other.pth").read_bytes())
    assert re.search(message, f"{type(refused.value).__name__}: {refused.value}")


def test_a_storage_larger_than_its_file(tmp_path: Path) -> None:
    """No memory is taken on the word of a pickle."""
    whole = bytearray(write(tmp_path / "large.pth", RNN_custom(), True).read_bytes())
    at = whole.index(b"K", whole.index(b"cpu") + 3)  # BININT1, how many numbers the first one has
    whole[at:at + 2] = b"J" + struct.pack("<i", 2**31 - 1)
    with pytest.raises(ValueError, match=f"a storage of {2**31 - 1} numbers"):
        pickled.read_tensors(bytes(whole))
