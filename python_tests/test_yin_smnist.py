"""The example that runs a published checkpoint: it reads tensors and runs nothing, and its two ways
through the network agree. With a tiny network in a file of the published form."""
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples/ is not beside these tests", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))
import mnist  # noqa: E402
import yin_smnist  # noqa: E402

SIZES = {"r1": 6, "r2": 7, "d1": 5, "o": 10}


class RNN_custom(nn.Module):  # noqa: N801  the name in the published file
    """Parameters of the published module with the same names, few of them, of few bits."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        before = yin_smnist.WINDOW
        for linear, recurrent, name in yin_smnist.LAYERS:
            N = SIZES[name]
            setattr(self, linear, nn.Linear(before, N))
            if recurrent is not None:
                setattr(self, recurrent, nn.Linear(N, N))
            for kind, low, high in (("m", 10, 30), ("adp", 100, 900)):
                setattr(self, f"tau_{kind}_{name}", nn.Parameter(
                    low + (high - low) * torch.rand(N, generator=random)))
            before = N
        with torch.no_grad():
            for part in self.children():
                for p in part.parameters():
                    p.copy_(torch.round(512 * torch.randn(p.shape, generator=random)) / 1024)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save(RNN_custom(), path, _use_new_zipfile_serialization=False)
    return path


def _digits(n: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (n, 784), generator=random, dtype=torch.uint8)
    return pixels, torch.randint(10, (n,), generator=random)


def test_reads_the_tensors(checkpoint: Path) -> None:
    want = RNN_custom().state_dict()
    got = yin_smnist.read(checkpoint)
    assert set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)


class _Runs:
    """Pickled as a call that leaves a file behind."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("legacy", [True, False], ids=["old format", "zip"])
@pytest.mark.parametrize("inside", [True, False], ids=["in a module", "alone"])
@pytest.mark.parametrize("kind", ["os.system", "eval", "a function", "builtins.getattr"])
def test_a_pickle_that_runs_code_is_refused(kind: str, inside: bool, legacy: bool,
                                            tmp_path: Path) -> None:
    import os

    trace = tmp_path / "trace"
    call: tuple[Any, ...] = {
        "os.system": (os.system, (f"touch {trace}",)),
        "eval": (eval, (f"open({str(trace)!r}, 'w')",)),
        "a function": (_touch, (str(trace),)),
        "builtins.getattr": (getattr, (trace, "name")),
    }[kind]
    bad: Any = _Runs(call)
    path = tmp_path / "bad.pth"
    if inside:
        module = RNN_custom()
        module.surprise = bad
        bad = module
    torch.save(bad, path, _use_new_zipfile_serialization=not legacy)
    if kind != "builtins.getattr":  # the file does what it should not where nobody looks
        torch.load(path, weights_only=False)
        assert trace.exists()
        trace.unlink()
    with pytest.raises(SystemExit) as refused:
        yin_smnist.read(path)
    assert str(refused.value.code).startswith(f"{path}: expected a checkpoint")
    assert not trace.exists()


def test_other_files_are_named(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    other = tmp_path / "other.pth"
    small = RNN_custom()
    small.h2h = nn.Linear(3, 3)
    for write in (lambda: other.write_bytes(whole[:-100]), lambda: other.write_bytes(b""),
                  lambda: other.write_bytes(pickle.dumps({"a": 1})),
                  lambda: torch.save({"a": torch.zeros(1)}, other),
                  lambda: torch.save(nn.Linear(2, 2), other),
                  lambda: torch.save(small, other), other.unlink):
        write()
        with pytest.raises(SystemExit, match="expected a checkpoint of Yin"):
            yin_smnist.read(other)


def test_windows_stop_at_the_last_pixels() -> None:
    pixels, _ = _digits(2)
    x = yin_smnist.windows(pixels)
    assert x.shape == (784, 2, 8)
    for step in (0, 5, 775):
        assert torch.equal(x[step], pixels[:, step:step + 8].float() / 255)
    for step in (776, 777, 783):
        assert torch.equal(x[step], pixels[:, -8:].float() / 255)


def test_all_spikes_are_those_of_the_loop(checkpoint: Path) -> None:
    """Inputs of few bits too, so that no sum rounds and no difference is excused."""
    net = yin_smnist.layers(yin_smnist.read(checkpoint))
    x = torch.round(16 * yin_smnist.windows(_digits(3)[0])) / 16
    start = [torch.round(64 * each) / 64
             for each in yin_smnist.starts(net, 3, torch.Generator().manual_seed(2))]
    with torch.no_grad():
        ours, theirs = yin_smnist.fused(net, x, start), yin_smnist.loop(net, x, start)
    assert [each.shape[2] for each in ours] == list(SIZES.values())
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) and 0.005 < float(other.mean()) < 0.6
    for way in (yin_smnist.fused, yin_smnist.loop):
        last, = way(net, x, start, all_spikes=False)
        assert torch.equal(last, theirs[-1])


def test_the_program_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture[str]) -> None:
    pixels, labels = _digits(6)
    monkeypatch.setattr(yin_smnist, "load", lambda root: (None, mnist.Digits(pixels, labels)))
    monkeypatch.setattr(yin_smnist, "ROUNDS", 1)
    yin_smnist.main([str(checkpoint), "--digits", "4"])
    out = capsys.readouterr().out
    assert "accuracy on 4 test digits" in out and "times faster" in out
    assert f"of {784 * 4 * sum(SIZES.values()):,} differ" in out


def test_the_class_with_most_spikes_is_the_answer(checkpoint: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    net = yin_smnist.layers(yin_smnist.read(checkpoint))
    pixels, _ = _digits(5)
    outputs = torch.zeros(784, 5, 10)
    labels = torch.tensor([3, 1, 4, 1, 5])
    for item, label in enumerate(labels):
        outputs[:10 + item, item, label] = 1
        outputs[:9, item, 0] = 1
    monkeypatch.setattr(yin_smnist, "fused", lambda *_, **__: [outputs])
    assert yin_smnist.accuracy(net, pixels, labels) == 1.0
    assert yin_smnist.accuracy(net, pixels, torch.tensor([3, 1, 4, 0, 0])) == pytest.approx(0.6)
