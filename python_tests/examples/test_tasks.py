"""The examples of adaptation: tasks, baselines, and runs that are killed and resumed."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from data_files import write_corpus, write_recordings
from example_path import EXAMPLES, generator, load_checkpoint, needs

needs("matplotlib", "tqdm", "scipy", "gymnasium", "python_speech_features")
from common import training  # noqa: E402
from ecg import train as ecg  # noqa: E402
from learning_to_learn import baselines as learner_baselines  # noqa: E402
from learning_to_learn import train as learning_to_learn  # noqa: E402
from navigation import train as navigation  # noqa: E402
from speech import train as speech  # noqa: E402
from store_recall import train as store_recall  # noqa: E402
from timit import train as timit  # noqa: E402

RECALL = ["--symbols", "4", "--ms", "20", "--dt", "2", "--batch", "4", "--threads", "1"]
LEARNER = ["--examples", "3", "--batch", "2", "--test-tasks", "2", "--threads", "1"]
TEACHERS = ["--paper", *LEARNER, "--test-examples", "5", "--regular", "6", "--adaptive", "4"]
ECG = ["--batch", "4", "--every", "2", "--chunk", "20", "--threads", "1"]
NAVIGATION = ["--ms", "800", "--hold", "20", "--gap", "40", "--radius", "0.6", "--batch", "16",
              "--updates", "2", "--regular", "6", "--adaptive", "4", "--test-agents", "4",
              "--threads", "1"]
TIMIT = ["--batch", "2", "--every", "2", "--regular", "5", "--adaptive", "4", "--units", "3",
         "--threads", "1"]
NAMES = ["store_recall", "learning_to_learn", "ecg", "navigation", "timit", "teachers"]


pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture(autouse=True)
def recordings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the electrocardiograms and of TIMIT, where the examples look for them."""
    folder = tmp_path_factory.mktemp("recordings")
    write_recordings(folder, recordings=12, steps=30)
    write_corpus(folder, sentences=1, phones=4)
    monkeypatch.setenv("LSNN_DATA", str(folder))


# -------------------------------------------------------------------------------------------- tasks
def test_symbols_come_in_pairs() -> None:
    S, B = 12, 2000
    batch = store_recall.symbols(S, B, generator())
    assert not (batch.store & batch.recall).any()
    for item in range(B):
        waiting, bit, pairs = False, -1, 0
        for s in range(S):
            if batch.store[s, item]:
                assert not waiting
                waiting, bit = True, int(batch.shown[s, item])
                assert not (s + 1 < S and batch.recall[s + 1, item])
            elif batch.recall[s, item]:
                assert waiting and int(batch.target[s, item]) == bit
                waiting, pairs = False, pairs + 1
        assert not waiting and pairs
    assert float(batch.target[batch.recall].float().mean()) == pytest.approx(0.5, abs=0.05)
    other = batch.recall & (batch.target != batch.shown.roll(1, 0))
    assert float(other.sum() / batch.recall.sum()) > 0.3  # the last bit shown is no answer


def test_spikes_of_symbols() -> None:
    options = store_recall.arguments(["--ms", "500"])
    batch = store_recall.symbols(12, 40, generator())
    x = store_recall.spikes(batch, options, generator(1))
    assert x.shape == (12 * 250, 40, 100)
    rate = x.view(12, 250, 40, 4, 25).mean((1, 4)) / options.dt
    bit = ~batch.recall
    wanted = 0.05 * torch.stack([bit & (batch.shown == 0), bit & (batch.shown == 1), batch.store,
                                 batch.recall], -1)
    assert float((rate - wanted).abs().max()) < 0.05 * 5 / (250 * 25 * 0.1) ** 0.5
    assert not rate[wanted == 0].any()


def test_functions_and_what_is_shown_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_to_learn, "PEAK", 1.0)
    x, y = learning_to_learn.sines(40, 30, generator())
    for item in range(30):
        a, p = (torch.linalg.lstsq(
            torch.stack([torch.sin(10 * x[:, item, 0] - 5), torch.cos(10 * x[:, item, 0] - 5)], 1),
            (10 * y[:, item] - 5)[:, None]).solution[:, 0]).tolist()
        assert 0.1 <= (a * a + p * p) ** 0.5 <= 5.0 and p <= 0.05  # sin(x - phase), 0 to pi
    z = learning_to_learn.spikes(x, y, generator(1)).view(40, 20, 30, 2, 40).mean(1)
    centre = (z * learning_to_learn.CENTRES).sum(-1) / z.sum(-1)
    inside = (x[..., 0] > 0.1) & (x[..., 0] < 0.9)
    assert float((centre[..., 0] - x[..., 0])[inside].abs().mean()) < 0.01
    assert float((centre[1:, :, 1] - y[:-1]).abs().mean()) < 0.01  # the answer before
    assert float((centre[0, :, 1] - 0.5).abs().max()) < 0.03
    x, y = learning_to_learn.teachers(20, 10, generator(), 5.0)
    assert x.shape == (20, 10, 2) and bool(((y > 0) & (y < 1)).all()) and float(y.std()) > 0.05


def test_baselines() -> None:
    x = torch.rand(60, 8, 2, generator=generator())
    y = 0.3 + 0.2 * x[..., 0] - 0.1 * x[..., 1]
    assert float(learner_baselines.best_linear(x, y).max()) < 1e-12
    errors = learner_baselines.ridge(x, y, strength=1e-6)
    assert errors.shape == (60, 8) and float(errors[5:].max()) < 1e-8 < float(errors[0].min())
    x, y = learning_to_learn.sines(60, 16, generator())
    best = learner_baselines.best_linear(x, y).mean()
    errors = learner_baselines.backpropagation(x, y, generator())
    assert float(errors[40:].mean()) < float(best) / 3 < float(errors[:2].mean())
    ahead = learner_baselines.ridge(x, y)
    changed = y.clone()
    changed[30:] = 0.5  # what comes later changes nothing of what came before
    assert torch.equal(ahead[:30], learner_baselines.ridge(x, changed)[:30])
    assert torch.equal(errors[:30], learner_baselines.backpropagation(x, changed, generator())[:30])


# --------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize(("task", "options"), [
    (store_recall, RECALL), (learning_to_learn, LEARNER), (ecg, ECG), (navigation, NAVIGATION),
    (timit, TIMIT), (learning_to_learn, TEACHERS)], ids=NAMES)
def test_a_run_from_begin_to_end(task: ModuleType, options: list[str], tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    task.main([*options, "--iterations", "2", "--out", str(tmp_path)])
    name = task.__package__
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", *(
        f"{name}.{kind}" for kind in ("csv", "json", "png"))}
    results = json.loads((tmp_path / f"{name}.json").read_text())
    found = next(results[key] for key in ("error", "errors", "found") if key in results)
    assert {"LSNN", "LIF"} <= set(found)
    assert results["iterations"] == 2 and results["options"]["seed"] == 0
    lines = (tmp_path / f"{name}.csv").read_text().splitlines()
    assert len(lines) == 3 and "lif_loss" in lines[0]
    if options is TEACHERS:
        curves = results["curves"]
        assert len(curves["LSNN"]) == len(curves["backpropagation"]) == 5
        assert len(curves["best linear"]) == 1 and results["options"]["regular"] == 6
    said = capsys.readouterr().out
    assert "LSNN" in said and "LIF" in said and "seed 0" in said


def test_learns_to_recall(tmp_path: Path) -> None:
    """A short wait and few seconds, to an error that chance, a half, is far from."""
    store_recall.main(["--symbols", "6", "--ms", "50", "--dt", "2.5", "--tau-adapt", "300",
                       "--decay", "0.999", "--iterations", "100", "--stop", "0.02", "--no-lif",
                       "--threads", "1", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "store_recall.json").read_text())
    assert results["error"]["LSNN"] < 0.08 and set(results["error"]) == {"LSNN"}


KILLED = """
import sys
sys.path.insert(0, {examples!r})
from common import training
training.CHECKPOINT_SECONDS = 0.0
from {task} import train
train.main({options!r})
"""


@pytest.mark.parametrize(("task", "options"), [
    (store_recall, [*RECALL, "--carry", "--deepr", "0.4", "--iterations", "30"]),
    (learning_to_learn, [*LEARNER, "--iterations", "12"]),
    (ecg, [*ECG, "--iterations", "40"]),
    (navigation, [*NAVIGATION, "--iterations", "20"]),
    (timit, [*TIMIT, "--deepr", "0.3", "--iterations", "20"]),
    (learning_to_learn, [*TEACHERS, "--iterations", "20"])], ids=NAMES)
def test_a_run_that_is_killed_is_the_same_run(task: ModuleType, options: list[str], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any moment and resumed, without pictures, which take most of the time."""
    monkeypatch.setattr(task, "picture", lambda *_: None)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    program = KILLED.format(examples=str(EXAMPLES), task=task.__package__,
                            options=[*options, "--out", str(out)])
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)})
    least = random.randrange(1, 6)
    while not (out / "checkpoint.pt").exists() or len(load_checkpoint(out)["history"]) < least:
        assert process.poll() is None
    time.sleep(random.random() / 100)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = len(load_checkpoint(out)["history"])
    task.main([*options, "--out", str(out), "--resume"])
    task.main([*options, "--out", str(whole)])
    one, other = load_checkpoint(out), load_checkpoint(whole)
    assert reached < len(other["history"]) == len(one["history"])
    for left, right in zip(one["history"], other["history"], strict=True):
        assert {**left, "seconds": 0} == {**right, "seconds": 0}, reached
    for name in {"LSNN", "LIF", "LSTM"} & one.keys():
        assert all(torch.equal(value, other[name][key]) for key, value in one[name].items())
    first, second = (json.loads((folder / f"{task.__package__}.json").read_text())
                     for folder in (out, whole))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    if task is store_recall:
        matrices = [value for key, value in one["LSNN"].items() if "weight" in key]
        size = sum(value.numel() for value in matrices) - 20
        assert sum(int((value != 0).sum()) for value in matrices) == int(0.4 * size)


def test_a_finished_run_goes_on_longer(tmp_path: Path) -> None:
    """From its last weights, at the rate of the longer run."""
    options = [*RECALL, "--iterations", "4", "--out", str(tmp_path)]
    store_recall.main(options)
    first = load_checkpoint(tmp_path)
    with pytest.raises(SystemExit, match="--longer: expected more iterations"):
        store_recall.main([*options, "--resume", "--longer", "4"])
    with pytest.raises(SystemExit, match="--longer: expected --resume beside it"):
        store_recall.main([*options, "--longer", "8"])
    store_recall.main([*options, "--resume", "--longer", "8"])
    second = load_checkpoint(tmp_path)
    assert second["history"][:4] == first["history"] and len(second["history"]) == 8
    assert second["options"] == first["options"] | {"iterations": 8}
    timed = [*RECALL, "--out", str(tmp_path / "timed")]
    store_recall.main([*timed, "--minutes", "1e-6"])  # ends after an iteration
    with pytest.raises(SystemExit, match="got 1 of a run for 1"):
        store_recall.main([*timed, "--resume", "--longer", "1"])
    store_recall.main([*timed, "--resume", "--longer", "3"])
    assert len(load_checkpoint(tmp_path / "timed")["history"]) == 3


def test_a_norm_that_is_not_finite_ends_the_run() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert float(training.clipped([weight], 1.0)) == 5
    assert torch.allclose(weight.grad, torch.tensor([0.6, 0.8]), atol=1e-5)
    for bad in (float("nan"), float("inf")):
        weight.grad = torch.tensor([1.0, bad])
        with pytest.raises(SystemExit, match="gradient: expected a finite norm"):
            training.clipped([weight], 1.0)


@pytest.mark.parametrize("task", [store_recall, learning_to_learn, ecg, timit, speech],
                         ids=lambda task: task.__package__)
def test_settings(task: ModuleType) -> None:
    assert task.QUICK != task.PAPER
    for given, setting in ([], task.QUICK), (["--quick"], task.QUICK), (["--paper"], task.PAPER):
        options = vars(task.arguments(given))
        assert options == options | setting
        options = vars(task.arguments([*given, "--batch", "3"]))
        assert options == options | setting | {"batch": 3}
    timed, counted = task.arguments(["--minutes", "3"]), task.arguments(["--iterations", "5"])
    assert (timed.minutes, timed.iterations) == (3.0, None)
    assert (counted.minutes, counted.iterations) == (None, 5)


@pytest.mark.parametrize(("task", "given", "regular", "adaptive"), [
    (ecg, [], 0, 36), (speech, ["--paper"], 300, 100), (timit, [], 90, 30)],
    ids=["ecg", "speech", "timit"])
def test_networks(task: ModuleType, given: list[str], regular: int, adaptive: int) -> None:
    """The control has the same weights, and no neuron that adapts."""
    net, control = (task.network(task.arguments(given), adapts) for adapts in (True, False))
    assert (net.n_regular, net.n_adaptive) == (regular, adaptive)
    assert (control.n_regular, control.n_adaptive) == (regular + adaptive, 0)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert torch.equal(net.neurons.get_parameter(name), control.neurons.get_parameter(name))
