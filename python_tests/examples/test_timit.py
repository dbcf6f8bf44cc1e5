"""The TIMIT example, on a small corpus in the format of the real one."""
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import SPEAKERS, Labels, sphere, spoken, write_corpus, write_sentence
from example_path import generator, load_checkpoint, needs, refusal

needs("matplotlib", "tqdm", "scipy", "python_speech_features")
from scipy.io import wavfile  # noqa: E402

from timit import data as timit_data  # noqa: E402
from timit import train as timit  # noqa: E402

SMALL = ["--batch", "4", "--regular", "5", "--adaptive", "4", "--units", "3", "--threads", "1"]


def _spoken(phones: int = 8) -> tuple[np.ndarray, Labels]:
    return spoken(np.random.default_rng(0), phones)


# ------------------------------------------------------------------------------------------ classes
def test_61_phones_are_39_classes() -> None:
    fold = {name: None if one < 0 else timit_data.SCORED[one]
            for name, one in zip(timit_data.PHONES, timit_data.FOLD.tolist(), strict=True)}
    assert len(fold) == 61 and len(set(fold.values()) - {None}) == 39
    assert {name for name, one in fold.items() if one == "sil"} == {
        "h#", "pau", "epi", "bcl", "dcl", "gcl", "kcl", "pcl", "tcl"}
    assert {name for name, one in fold.items() if one is None} == {"q"}
    for name, one in {"ux": "uw", "axr": "er", "ax-h": "ah", "ix": "ih", "ao": "aa", "zh": "sh",
                      "eng": "ng", "nx": "n", "em": "m", "el": "l", "hv": "hh", "dx": "dx"}.items():
        assert fold[name] == one
    assert len(set(timit_data.CORE)) == 24 and len(set(timit_data.VALID)) == 50
    assert not set(timit_data.CORE) & set(timit_data.VALID)


def test_what_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a class nothing does, and frames of q count only among the 61."""
    is_, taken = ["ao", "ao", "q", "zh", "iy", "s"], ["aa", "iy", "s", "sh", "q", "s"]
    phone, guess = (torch.tensor([timit_data.PHONES.index(name) for name in names])
                    for names in (is_, taken))
    sentences = timit_data.Sentences([torch.zeros(6, 39)], [phone])
    monkeypatch.setattr(timit, "answers", lambda *_: (torch.eye(61)[guess], None))
    assert timit.errors(torch.nn.Identity(), sentences, 1) == {"error": 5 / 6, "folded": 2 / 5}


# -------------------------------------------------------------------------------------------- files
def test_sounds(tmp_path: Path) -> None:
    samples, _ = _spoken()
    path = tmp_path / "one.wav"
    for order in ("01", "10"):
        path.write_bytes(sphere(samples, order))
        assert np.array_equal(timit_data.read_sound(path), samples)
    wavfile.write(path, 16_000, samples)
    assert np.array_equal(timit_data.read_sound(path), samples)


@pytest.mark.parametrize(("content", "wanted"), [
    (lambda x: sphere(x)[:-1000], "samples as its head says, got "),
    (lambda x: sphere(x)[:-1], "samples as its head says, got "),
    (lambda x: sphere(x, sample_rate="8000"), "expected sample_rate 16000 in its head, got 8000"),
    (lambda x: sphere(x, channel_count="2"), "expected channel_count 1 in its head, got 2"),
    (lambda x: sphere(x, sample_coding="pcm,embedded-shorten-v2.00"), "not compressed, got pcm,"),
    (lambda x: sphere(x, sample_byte_format="1"), "sample_byte_format 01 or 10 in its head, got 1"),
    (lambda x: b"", "expected a sound of NIST SPHERE or RIFF, got another file"),
    (lambda x: b"RIFF" + bytes(8), "expected a RIFF file that is whole"),
], ids=["short", "odd", "rate", "channels", "compressed", "order", "empty", "riff"])
def test_bad_sounds_are_named(content: Callable[[np.ndarray], bytes], wanted: str,
                              tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    path.write_bytes(content(_spoken()[0]))
    said = refusal(timit_data.read_sound, path)
    assert said.startswith(f"{path}: expected ") and wanted in said


@pytest.mark.parametrize(("change", "wanted"), [
    (lambda lines: [], "expected phones up to the end of the sound"),
    (lambda lines: lines[:-1], "expected phones up to the end of the sound"),
    (lambda lines: lines[1:], "begins where the last one ends, at 0, in line 1"),
    (lambda lines: [*lines[:2], *lines[3:]], "in line 3"),
    (lambda lines: [lines[0], "12 iy", *lines[2:]], "begin, end and phone in line 2"),
    (lambda lines: [lines[0].replace("h#", "sil"), *lines[1:]], "61 phones in line 1, got 'sil'"),
], ids=["empty", "cut", "late", "gap", "fields", "phone"])
def test_bad_phones_are_named(change: Callable[[list[str]], list[str]], wanted: str,
                              tmp_path: Path) -> None:
    write_corpus(tmp_path, sentences=1)
    path = tmp_path / "TIMIT/TEST/DR1/MDAB0/SX1.PHN"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    said = refusal(timit.main, ["--data", str(tmp_path), "--out", str(tmp_path / "out"), *SMALL])
    assert said.startswith(f"{path}: expected ") and wanted in said


def test_a_folder_without_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSNN_DATA", raising=False)
    for given in (["--data", str(tmp_path)], ["--data", str(tmp_path / "none")], []):
        with pytest.raises(SystemExit, match="^--data: expected a folder of the TIMIT corpus"):
            timit.main([*given, "--out", str(tmp_path / "out")])
    write_corpus(tmp_path, sentences=1)
    (tmp_path / "TIMIT/TRAIN/DR1/FCJF0/SX1.WAV").unlink()
    with pytest.raises(SystemExit, match=r"SX1.PHN: expected a sound sx1.wav beside it, got none"):
        timit_data.load(tmp_path)
    (tmp_path / "other" / "test").mkdir(parents=True)
    (tmp_path / "other" / "train").mkdir()
    with pytest.raises(SystemExit, match=r"train: expected sentences, .phn beside .wav, got none"):
        timit_data.load(tmp_path / "other")
    write_sentence(tmp_path / "other/train/dr1/fcjf0", "sx1", *_spoken())
    with pytest.raises(SystemExit, match=r"test: expected .* of speakers like faks0, got none"):
        timit_data.load(tmp_path / "other")


def test_frames(tmp_path: Path) -> None:
    """The phone of a frame is that of its middle, or the last one beyond the end."""
    samples, labels = _spoken(phones=9)
    write_sentence(tmp_path, "sx1", samples, labels)
    x, phone = timit_data.read_sentence(tmp_path / "sx1.wav", tmp_path / "sx1.phn")
    assert x.shape == (len(phone), 39) and x.dtype == torch.float32
    assert len(phone) == 1 + -(-(len(samples) - 400) // 160)
    for frame, one in enumerate(phone.tolist()):
        middle = 160 * frame + 200
        name = next((name for begin, end, name in labels if begin <= middle < end), labels[-1][2])
        assert timit_data.PHONES[one] == name
    # differences: of straight lines the slope, as they are defined
    for first, of in ((13, x[:, :13]), (26, x[:, 13:26])):
        slope = sum(n * (of[4 + n:len(of) - 4 + n] - of[4 - n:len(of) - 4 - n])
                    for n in (1, 2)) / 10
        torch.testing.assert_close(x[4:-4, first:first + 13], slope, rtol=1e-3, atol=1e-3)


def test_the_corpus_in_any_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "upper", sentences=2)
    write_corpus(tmp_path / "lower", sentences=2, upper=False)
    upper, lower = (timit_data.load(tmp_path / name) for name in ("upper", "lower"))
    assert [len(part.x) for part in upper] == [6, 2, 2]  # without those that all speakers say
    for one, other in zip(upper, lower, strict=True):
        for x, same in zip([*one.x, *one.phone], [*other.x, *other.phone], strict=True):
            assert torch.equal(x, same)
    frames = torch.cat(upper.train.x)
    assert float(frames.mean(0).abs().max()) < 1e-4
    assert float((frames.std(0) - 1).abs().max()) < 1e-3
    assert "train: 6 sentences, where the whole corpus has 3696" in capsys.readouterr().out
    alone, phone = timit_data.read_sentence(*(tmp_path / "lower/test/dr1" / SPEAKERS["test"][0]
                                              / f"sx1.{end}" for end in ("wav", "phn")))
    assert torch.equal(phone, upper.test.phone[0]) and len(alone) == len(upper.test.x[0])


# ----------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("name", ["LSNN", "LSTM"])
def test_answers_to_sentences_of_unequal_length(name: str) -> None:
    options = timit.arguments([*SMALL, "--hold", "3"])
    net = timit.network(options, True) if name == "LSNN" else timit.BiLSTM(options)
    random = generator(1)
    x = [torch.randn(frames, 39, generator=random) for frames in (7, 40, 1, 12)]
    phone = [torch.zeros(len(one), dtype=torch.long) for one in x]
    together, rates = timit.answers(net, timit_data.Sentences(x, phone), 3)
    alone = [timit.answers(net, timit_data.Sentences([one], [one[:, 0].long()]), 3) for one in x]
    torch.testing.assert_close(together, torch.cat([answer for answer, _ in alone]))
    if name == "LSNN":
        assert rates is not None and rates.shape == (2, 9) and bool(rates.any())
        torch.testing.assert_close(rates, torch.stack([one for _, one in alone]).mean(0))
        wanted = net(x[3].repeat_interleave(3, 0)[:, None])[0][:, 0].unflatten(0, (-1, 3)).mean(1)
        torch.testing.assert_close(together[-12:], wanted)


def test_learns_and_tests_the_best_epoch(tmp_path: Path) -> None:
    write_corpus(tmp_path, sentences=6)
    timit.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--batch", "6", "--epochs",
                "12", "--every", "3", "--regular", "20", "--adaptive", "10", "--units", "16",
                "--lr", "0.02", "--threads", "1"])
    results = json.loads((tmp_path / "out" / "timit.json").read_text())
    assert results["sentences"] == {"train": 18, "valid": 6, "test": 6}
    assert results["found"].keys() == {"LSNN", "LIF", "LSTM"}
    for name, found in results["found"].items():
        assert found["folded"] < 0.2 and found["folded"] < found["error"] + 0.05, (name, found)
    kept = load_checkpoint(tmp_path / "out")
    data = timit_data.load(tmp_path)
    net = timit.network(timit.arguments(["--regular", "20", "--adaptive", "10"]), True)
    net.load_state_dict(kept["carried"]["best"]["LSNN"]["weights"], strict=False)
    again = timit.errors(net, data.test, 2)
    assert again["folded"] == pytest.approx(results["found"]["LSNN"]["folded"], abs=1e-6)
