"""The tasks on two processes: stopped by a signal to either, resumed by any number."""
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_files import write_corpus, write_digits, write_recordings, write_words
from example_path import EXAMPLES, load_checkpoint, needs

needs("matplotlib", "tqdm", "scipy", "gymnasium", "python_speech_features")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)
from distributed_worker import leave  # noqa: E402
from operator_calls import run_python  # noqa: E402

# Batches that two processes do not share out evenly.
TASKS = {
    "store_recall": ["--symbols", "6", "--ms", "50", "--batch", "9", "--iterations", "8", "--carry",
                     "--deepr", "0.4"],
    "learning_to_learn": ["--examples", "4", "--batch", "5", "--test-tasks", "2", "--iterations",
                          "4", "--reg", "1"],
    "ecg": ["--batch", "5", "--every", "1", "--iterations", "6", "--reg", "1"],
    "navigation": ["--ms", "800", "--hold", "20", "--gap", "40", "--radius", "0.6", "--batch",
                   "17", "--updates", "2", "--regular", "6", "--adaptive", "4", "--test-agents",
                   "4", "--iterations", "3"],
    "timit": ["--batch", "5", "--every", "1", "--regular", "5", "--adaptive", "4", "--units", "3",
              "--iterations", "4", "--deepr", "0.3"],
    "speech": ["--batch", "5", "--regular", "3", "--adaptive", "4", "--dt", "20", "--iterations",
               "3"],
    "smnist": ["--models", "LSNN", "LIF", "LSTM", "SRNN", "--regular", "6", "--adaptive", "4",
               "--batch", "5", "--delay", "2", "--kept-back", "2", "--no-speed", "--iterations",
               "3"]}
STOPPED = 3  # iterations, of the run that is sent a signal


def _run(name: str, out: Path, *more: str) -> None:
    """Without pictures, which take most of the time of a tiny run."""
    task = importlib.import_module(f"{name}.train")
    folder = out.parent / "data" / name
    data = ["--data", str(folder)] if folder.exists() else []
    with pytest.MonkeyPatch.context() as patch:
        for drawing in {"picture", "digit_picture", "curve_picture"} & vars(task).keys():
            patch.setattr(task, drawing, lambda *_: None)
        task.main([*TASKS[name], *data, "--threads", "1", "--out", str(out / name), *more])


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting",
                                         rank=rank, world_size=2)
    for name in TASKS:
        _run(name, folder / "two")
    from store_recall import train as store_recall

    step = store_recall.Run.step

    def stopped(run: Any) -> dict[str, float]:
        if rank and len(run.history) == STOPPED - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run)

    store_recall.Run.step = stopped
    for out in ("resumed_by_two", "resumed_by_one"):
        _run("store_recall", folder / out)
    store_recall.Run.step = step
    if not rank:
        for out in ("resumed_by_two", "resumed_by_one"):
            assert len(load_checkpoint(folder / out / "store_recall")["history"]) == STOPPED
    torch.distributed.barrier()
    _run("store_recall", folder / "resumed_by_two", "--resume")
    with pytest.raises(SystemExit, match="an item or more for each of 2 processes"):
        _run("store_recall", folder / "refused", "--batch", "1")
    store_recall.Run.is_shared = False
    with pytest.raises(SystemExit, match="torchrun: expected a task that shares out its batches"):
        _run("store_recall", folder / "refused")
    assert rank or not any((folder / "refused" / "store_recall").iterdir())
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes and one have left."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("ecg", "smnist", "timit", "speech"):
        (folder / "data" / name).mkdir(parents=True)
    write_recordings(folder / "data" / "ecg", recordings=9, steps=60)
    write_digits(folder / "data" / "smnist")
    write_words(folder / "data" / "speech", digits=3)
    write_corpus(folder / "data" / "timit", sentences=3, phones=5)
    torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
    threads = torch.get_num_threads()
    for name in TASKS:
        _run(name, folder / "one")
    _run("store_recall", folder / "resumed_by_one", "--resume")
    torch.set_num_threads(threads)
    return folder


def _weights(kept: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {f"{part} {name}": value for part in ("LSNN", "LIF", "LSTM", "SRNN") if part in kept
            for name, value in kept[part].items() if isinstance(value, torch.Tensor)}


def _assert_close(folder: Path, left: str, right: str, name: str, exact: bool = False) -> None:
    """Weights and histories, to rounding or exactly. Adam makes steps of up to lr, 1e-3 to 1e-2, of
    gradients that are next to nothing but rounding, so weights are compared absolutely."""
    rtol, atol, apart = (0.0, 0.0, 0.0) if exact else (1e-3, 1e-5, 1e-4)
    one, other = (load_checkpoint(folder / out / name) for out in (left, right))
    assert len(one["history"]) == len(other["history"])
    for row, wanted in zip(one["history"], other["history"], strict=True):
        assert row.keys() == wanted.keys()
        for key in row.keys() - {"seconds"}:
            # of two answers that tie rounding names one: an item or two of a hundred
            ties = 0.02 if key.endswith(("error", "accuracy", "valid")) and not exact else atol
            assert row[key] == pytest.approx(wanted[key], rel=rtol, abs=ties), key
    weights, wanted = _weights(one), _weights(other)
    assert weights.keys() == wanted.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=apart, msg=key)
        if "deepr" in " ".join(TASKS[name]):  # the same connections
            assert torch.equal(value == 0, wanted[key] == 0), key
    assert torch.equal(one["random"], other["random"])


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_are_one(name: str, folder: Path) -> None:
    _assert_close(folder, "two", "one", name)
    left, right = (sorted(path.name for path in (folder / out / name).iterdir())
                   for out in ("two", "one"))
    assert left == right
    results = [json.loads((folder / out / name / f"{name}.json").read_text())
               for out in ("two", "one")]
    assert results[0].keys() == results[1].keys()
    assert results[0]["options"] == results[1]["options"]
    if name == "navigation":  # agents come to the dark, so what follows is compared
        history = load_checkpoint(folder / "two" / name)["history"]
        assert any(row["place_error"] != 1 for row in history)


THREADS = """
import time
from pathlib import Path
import torch
from torch import nn
from common import processes

processes.join()
weight = nn.Parameter(torch.zeros(3))
optimizer = torch.optim.Adam([weight])
weight.sum().backward()
processes.add_gradients([weight])
optimizer.step()
def count():
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
end = time.monotonic() + 20
while not count() and time.monotonic() < end:  # a thread names itself, once it runs
    time.sleep(0.05)
print(count())
processes.leave()
print(count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed by Linux")
def test_threads_end_with_the_run() -> None:
    """Those of gloo, which would abort the interpreter at its end."""
    ran = run_python(THREADS, TORCHELASTIC_RUN_ID="test", RANK="0", WORLD_SIZE="1",
                     MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    assert not ran.returncode and not ran.stderr, ran.stderr
    during, after = map(int, ran.stdout.split())
    assert during > 0 == after


def test_a_signal_to_either_stops_both_and_any_number_goes_on(folder: Path) -> None:
    _assert_close(folder, "resumed_by_two", "two", "store_recall", exact=True)
    _assert_close(folder, "resumed_by_one", "two", "store_recall")


def test_torchrun(folder: Path, tmp_path: Path) -> None:
    """The command of the documentation, to the bits of the processes above."""
    here = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(EXAMPLES / "store_recall/train.py"), *TASKS["store_recall"], "--out", str(tmp_path),
         "--threads", "1"], env=here, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.count("errors at RECALL") == 1  # the first process alone prints
    one, other = load_checkpoint(tmp_path), load_checkpoint(folder / "two" / "store_recall")
    assert all(torch.equal(value, _weights(other)[key]) for key, value in _weights(one).items())
