"""The spoken-digits example: files, spectra, learning; on words that the test makes."""
import csv
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import sound, write_words
from example_path import load_checkpoint, needs
from lsnn_ext.models import MODELS, find_defaults

needs("matplotlib", "tqdm", "scipy")
from speech import data as speech_data  # noqa: E402
from speech import every_model as speech_rows  # noqa: E402
from speech import train as speech  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
def test_files(archive: bool, tmp_path: Path) -> None:
    """The first five of each digit and speaker are the test; the words keep their lengths."""
    data = speech_data.load(write_words(tmp_path, numbers=7, digits=3, archive=archive), 10.0)
    assert (len(data.train), len(data.test)) == (3 * 2 * 2, 3 * 2 * 5)
    assert torch.equal(data.train.digit, torch.arange(3).repeat_interleave(4))
    lengths = {len(x) for x in data.train.x + data.test.x}
    assert len(lengths) > 5 and min(lengths) >= 15 and max(lengths) <= 51
    whole = torch.cat(data.train.x)
    torch.testing.assert_close(whole.mean(0), torch.zeros(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.std(0), torch.ones(40), atol=1e-3, rtol=0)
    x, digit = data.test.take(torch.tensor([29, 0, 12]))
    assert digit.tolist() == [2, 0, 1]
    padded, steps = torch.nn.utils.rnn.pad_packed_sequence(x)
    assert torch.equal(padded[:steps[0], 0], data.test.x[29])


def test_a_tone_is_in_its_band() -> None:
    """Energies come at the time and in the band of what is heard."""
    t = np.arange(4000) / 8000
    for frequency in (250.0, 1000.0, 2500.0):
        tone = np.sin(2 * np.pi * frequency * t) * (t > 0.25)
        x = speech_data.spectrum(tone.astype(np.float32), 5.0)
        assert x.shape == (100, 40)
        power = speech_data.filters(257)[:, round(frequency / 4000 * 256)]
        assert abs(int(x[80].argmax()) - int(power.argmax())) <= 1
        assert x[:45].max() < x[55:].max() - 10 and x[60].max() > x[80].max() - 0.1
    assert speech_data.spectrum(np.zeros(10, np.float32), 5.0).shape == (5, 40)
    assert speech_data.spectrum(np.zeros(40000, np.float32), 5.0).shape == (200, 40)


def test_bad_files_are_named(tmp_path: Path) -> None:
    words = write_words(tmp_path, numbers=6, digits=1)
    (words / "0_ada_0.wav").write_bytes(b"no sound")
    with pytest.raises(SystemExit, match=r"^0_ada_0\.wav: expected a WAV file"):
        speech_data.load(words, 5.0)
    with wave.open(str(words / "0_ada_0.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(sound(1, 0.2, np.random.default_rng(0)).tobytes())
    with pytest.raises(SystemExit, match=r"^0_ada_0\.wav: .*got 16000, 2 and 2"):
        speech_data.load(words, 5.0)
    for other in (words / "0_max_0.wav", tmp_path / "none", None):
        with pytest.raises(SystemExit, match=f"^--data: expected a folder or a tar.*got {other}"):
            speech_data.load(other, 5.0)
    for file in words.glob("*_5.wav"):
        file.unlink()
    (words / "0_ada_0.wav").unlink()
    with pytest.raises(SystemExit, match="^--data: .*got 9 and 0 in"):
        speech_data.load(words, 5.0)


def test_learns_and_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    """Chance is a tenth; 60 iterations name nearly all of these words."""
    monkeypatch.setenv("LSNN_DATA", str(write_words(tmp_path)))
    given = ["--threads", "1", "--dt", "10", "--adaptive", "24", "--batch", "20", "--lr", "0.02",
             "--out", str(tmp_path / "out")]
    speech.main([*given, "--iterations", "60"])
    found = json.loads((tmp_path / "out" / "speech.json").read_text())["found"]
    assert found["LSNN"]["accuracy"] > 0.7 and found["LIF"]["accuracy"] > 0.5
    assert "of the 100 words of the test" in capsys.readouterr().out
    kept = load_checkpoint(tmp_path / "out")
    net = speech.network(speech.arguments(given), True)
    net.load_state_dict(kept["LSNN"])
    taus = net.neurons.tau_adapt_l0
    assert isinstance(taus, torch.Tensor) and len(set(taus.tolist())) == 24
    data = speech_data.load(tmp_path / "recordings", 10.0)
    share = speech.right(net, data.test, batch=7).float().mean()
    assert float(share) == pytest.approx(found["LSNN"]["accuracy"])
    assert speech.network(speech.arguments(["--fixed"]), True).neurons.learn == ()


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
              capsys: pytest.CaptureFixture[str]) -> None:
    """One row for each model and rate; a value out of range ends a training."""
    words, out = write_words(tmp_path, digits=4), tmp_path / "rows.csv"
    monkeypatch.setattr(speech_rows, "LAST", 10)
    given = ["--data", str(words), "--neurons", "8", "--batch", "4", "--threads", "1",
             "--out", str(out)]
    assert speech_rows.main([*given, "--models", "eprop", "adlif", "--rates", "0.01",
                             "--iterations", "40"]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["eprop", "adlif"]
    for row in rows:
        assert row["iterations"] == "40" and row["ended"] == ""
        assert float(row["loss last"]) < float(row["loss first"])
        assert 0.02 < float(row["fires first"]) < 0.5
        learned = {name for name in speech_rows.LEARNED if row[f"{name} low"]}
        assert learned == set(speech_rows.constants(row["model"])[1]) >= {"threshold", "tau_mem"}
        for name in learned:
            assert float(row[f"{name} low"]) < float(row[f"{name} high"]), name
    assert "2 of 2 stayed finite" in capsys.readouterr().out


def test_rows_are_the_makers_neurons() -> None:
    """Nobody is given an adaptation that its makers do not have; what they have learns."""
    for dynamics in MODELS:
        net, own = speech_rows.Network(dynamics, 6, 4.0), find_defaults(dynamics, "ALIF")
        plain = own.get("rho") == 0.0
        assert plain == ({"tau_adapt", "rho", "beta"}.isdisjoint(net.neurons.learn)), dynamics
        assert {"threshold"} < set(net.neurons.learn), dynamics
        if dynamics.startswith("sj_"):
            assert net.neurons.learn == ("threshold", "alpha")
            assert net.neurons.alpha_l0.eq(0.5).all()


def test_a_row_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = write_words(tmp_path, digits=2)
    options = speech_rows.arguments(["--neurons", "6", "--batch", "4", "--iterations", "5"])
    data, make = speech_data.load(words, 10.0), speech_rows.Network
    monkeypatch.setattr(speech_rows, "Network", lambda dynamics, N, dt: make(
        dynamics, N, dt, learn=dict.fromkeys(speech_rows.constants(dynamics)[1], "plain")))
    row = speech_rows.run("lsnn", 10.0, data, options)  # a step of Adam takes all below 0
    assert row["iterations"] == 1 and "out of range: threshold" in row["ended"]
    monkeypatch.setattr(speech_rows.nn.utils, "get_total_norm",
                        lambda gradients: torch.tensor(float("nan")))
    assert "gradient nan" in speech_rows.run("lsnn", 0.01, data, options)["ended"]
