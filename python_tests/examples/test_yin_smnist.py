"""The example that runs a published checkpoint: its two ways through the network agree. With a tiny
network in a file of the published form."""
from pathlib import Path

import pytest
import torch

import example_path  # noqa: F401  which lets the others be found
from smnist import data as mnist
from smnist import published as yin_smnist
from yin_files import SIZES, digits, write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.pth")


def test_other_files_are_named(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    for act in (lambda: other.write_bytes(b"nothing of torch"), other.unlink):
        act()
        with pytest.raises(SystemExit, match="^CHECKPOINT: ") as refused:
            yin_smnist.main([str(other)])
        assert str(other) in str(refused.value.code)


def test_all_spikes_are_those_of_the_loop(checkpoint: Path) -> None:
    """Inputs of few bits too, so that no sum rounds and no difference is excused."""
    net = yin_smnist.read(checkpoint)
    x = torch.round(16 * net.windows(digits(3)[0])) / 16
    start = [state._replace(v=torch.round(64 * state.v) / 64, z=torch.round(64 * state.z) / 64)
             for state in net.start(3, torch.Generator().manual_seed(2))]
    with torch.no_grad():
        ours = net.spikes(x, start)
        theirs = [torch.stack(each) for each in zip(*yin_smnist.loop(net, x, start), strict=True)]
        assert torch.equal(net.counts(x, start), start[-1].z[0, 0] + ours[-1].sum(0))
    assert [each.shape[2] for each in ours] == list(SIZES.values())
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) and 0.005 < float(other.mean()) < 0.6


def test_the_program_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture[str]) -> None:
    pixels, labels = digits(6)
    monkeypatch.setattr(yin_smnist, "load", lambda root: (None, mnist.Digits(pixels, labels)))
    monkeypatch.setattr(yin_smnist, "ROUNDS", 1)
    yin_smnist.main([str(checkpoint), "--digits", "4"])
    out = capsys.readouterr().out
    assert "accuracy on 4 test digits" in out and "times faster" in out
    assert f"of {784 * 4 * sum(SIZES.values()):,} differ" in out


def test_the_class_with_most_spikes_is_the_answer(checkpoint: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    net = yin_smnist.read(checkpoint)
    pixels, _ = digits(5)
    outputs = torch.zeros(784, 5, 10)
    labels = torch.tensor([3, 1, 4, 1, 5])
    for item, label in enumerate(labels):
        outputs[:10 + item, item, label] = 1
        outputs[:9, item, 0] = 1
    monkeypatch.setattr(net.o, "forward", lambda x, state: (outputs, state))
    assert yin_smnist.accuracy(net, pixels, labels) == 1.0
    assert yin_smnist.accuracy(net, pixels, torch.tensor([3, 1, 4, 0, 0])) == pytest.approx(0.6)
