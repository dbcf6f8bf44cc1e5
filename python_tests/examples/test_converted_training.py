"""Training before and after lsnn_ext.convert: the same losses and answers."""
import csv
from pathlib import Path

import pytest

from ecg_files import write_recordings
from example_path import needs
from originals import package
from speech_files import write_words

needs("matplotlib", "tqdm", "scipy")
from converted import train as converted_training  # noqa: E402
from converted.train import SCRIPTS, Trained  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.mark.parametrize(("name", "more"), [*((name, ()) for name in SCRIPTS),
                                            ("norse", ("--double",))],
                         ids=[*SCRIPTS, "norse-double"])
def test_the_same_training(name: str, more: tuple[str, ...], tmp_path: Path,
                           capsys: pytest.CaptureFixture[str]) -> None:
    """Rounding changes no spike so early, and the losses have the same first digits."""
    script = SCRIPTS[name]
    package(script.package)
    if script.data == "speech":
        data = ["--speech", str(write_words(tmp_path, numbers=7))]
    else:
        write_recordings(tmp_path, recordings=12, steps=40)
        data = ["--ecg", str(tmp_path)]
    out = tmp_path / "losses.csv"
    found = converted_training.main([*data, "--scripts", name, "--epochs", "2", "--words", "10",
                                     "--batch", "5", "--neurons", "12", "--steps", "20",
                                     "--ecg-steps", "40", "--out", str(out), *more])
    before, after = found[name]
    assert len(before.losses) == len(after.losses) == 4 and len(set(before.losses)) == 4
    assert converted_training.apart(before, after) == 4
    assert before.accuracy == pytest.approx(after.accuracy, abs=1e-3)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["before"]) for row in rows] == pytest.approx(before.losses)
    said = capsys.readouterr().out
    assert ": converted\n" in said
    assert f"{name}: named" in said and "the same in the first 4 of 4 iterations" in said


def test_where_they_part() -> None:
    before, after = (Trained(losses, [0.5], 1.0) for losses in ([2.0, 1.0, 0.5], [2.0, 1.0, 0.6]))
    assert converted_training.apart(before, after) == 2
    assert converted_training.apart(before, before) == 3
    assert converted_training.apart(before, Trained([float("nan")] * 3, [0.5], 1.0)) == 0


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SystemExit, match="^--ecg and --speech: expected where the recordings are"):
        converted_training.main([])
    with pytest.raises(SystemExit, match="^--ecg: expected"):
        converted_training.main(["--scripts", "norse-ecg"])
