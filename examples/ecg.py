"""Electrocardiograms: name the phase of the heartbeat at every step, with 36 neurons.

The task of Yin, Corradi and Bohte (Nature Machine Intelligence 3, 905, 2021): two leads of the QT
Database of PhysioNet, of each of which two inputs say when it rises or falls by a level; the phases
are P, PQ, QR, RS, ST and TP. Their 36 recurrent adaptive neurons with learned time constants name
85.9 % of the test's steps. Here as many are trained, and beside them, on the same batches, 36
without adaptation. A part of the training's recordings is kept back, and chooses the epoch whose
weights are tested; the test is looked at once, at the end.

The data are the authors' files QTDB_train.mat and QTDB_test.mat, in the folder data of their
repository (from a database under ODC-By 1.0; they are not part of this project):

    git clone --depth 1 https://github.com/byin-cwi/Efficient-spiking-networks

    python examples/ecg.py --data Efficient-spiking-networks/data            150 epochs
    python examples/ecg.py --data Efficient-spiking-networks/data --paper    600 epochs

LSNN_DATA may name the folder too. A checkpoint is kept in --out, every minute and after Ctrl-C;
--resume goes on from it to the same result, bit for bit with the same --threads.
"""
import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import io
from torch import Tensor, nn

import pair
import processes
import training
from ecg_plots import picture
from epochs import BestEpoch, epoch_option, every_option
from lsnn_ext import LSNN
from pair import run_task
from training import Values, count, mean_rate

FILES = "QTDB_train.mat", "QTDB_test.mat"
INPUTS, PHASES = 4, 6
PUBLISHED = 0.859
GAIN = 5.0  # of the readout, an average of spikes, before the softmax
KEPT_BACK = 10  # one recording of so many chooses the epoch
TARGET_RATE = 0.05
RECURRENT = 0.3  # gain of the first recurrent weights; with 1 gradients explode at once
QUICK = {"batch": 64, "lr": 3e-3, "clip": 1.0, "reg": 0.0, "epochs": 150}
PAPER = QUICK | {"batch": 32, "lr": 5e-3, "epochs": 600}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "ecg_out")
    task = parser.add_argument_group("task and network")
    task.add_argument("--data", type=Path, default=os.environ.get("LSNN_DATA"),
                      help="folder of the two files; LSNN_DATA if left out")
    epoch_option(task)
    every_option(task)
    task.add_argument("--neurons", type=count, default=36)
    task.add_argument("--dynamics", choices=("lsnn", "srnn"), default="lsnn",
                      help="the neuron: with a surrogate as wide as its threshold, or that of Yin "
                           "et al.")
    return pair.with_setting(parser.parse_args(given), QUICK, PAPER)


# --------------------------------------------------------------------------------------------- data
class Recordings(NamedTuple):
    """x (T, B, 4): -1, 0 or 1; phase (T, B), a whole number."""

    x: Tensor
    phase: Tensor

    def take(self, items: Tensor) -> "Recordings":
        """Those of these numbers."""
        return Recordings(self.x[:, items], self.phase[:, items])

    def __len__(self) -> int:
        return self.x.shape[1]


class Data(NamedTuple):
    """Recordings to learn from, to choose the epoch by, and to be tested on."""

    train: Recordings
    valid: Recordings
    test: Recordings


def read(path: Path) -> Recordings:
    """One of the two files. Steps before the first phase or after the last have no label, and count
    as the first phase, as in the published programs."""
    try:
        held: dict[str, Any] = io.loadmat(path)
    except Exception as error:
        # whatever a file that was cut off, or is of another program, leads to
        raise SystemExit(f"{path}: expected a MATLAB file, got one that cannot be read as such "
                         f"({type(error).__name__}: {error})") from None
    missing = [name for name in "xy" if name not in held]
    if missing:
        raise SystemExit(f"{path}: expected the arrays x and y, got a file without "
                         f"{' and '.join(missing)}")
    x, y = (torch.from_numpy(held[name].astype("float32")) for name in "xy")
    if x.dim() != 3 or x.shape[2] != INPUTS or y.shape != (*x.shape[:2], PHASES) or not x.numel():
        raise SystemExit(f"{path}: expected x (recordings, steps, {INPUTS}) and y (recordings, "
                         f"steps, {PHASES}), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not bool((x.abs() <= 1).all()) or not bool((y.sum(-1) <= 1).all()):
        raise SystemExit(f"{path}: expected x from -1 to 1 and one phase at a step, got others")
    return Recordings(x.transpose(0, 1).contiguous(), y.argmax(-1).t().contiguous())


def load(folder: Path | None) -> Data:
    """Both files; the recordings that are kept back are the same for all seeds."""
    if folder is None or not all((Path(folder) / name).is_file() for name in FILES):
        raise SystemExit(f"--data: expected a folder with {' and '.join(FILES)}, got {folder}; "
                         "python examples/ecg.py --help says where they are from")
    whole, test = (read(Path(folder) / name) for name in FILES)
    if len(whole) < 2:
        raise SystemExit(f"{FILES[0]}: expected two recordings or more, got {len(whole)}")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    kept = -(-len(whole) // KEPT_BACK)
    return Data(whole.take(order[kept:]), whole.take(order[:kept]), test)


# ---------------------------------------------------------------------------------------- a network
def network(options: argparse.Namespace, adapts: bool) -> LSNN:
    """Neurons that all adapt or none does; the same first weights with a seed. Each learns its time
    constants."""
    torch.manual_seed(options.seed)
    N = options.neurons
    net = LSNN(INPUTS, 0 if adapts else N, N if adapts else 0, PHASES, bias=True,
               dynamics=options.dynamics, threshold=0.01, beta=1.8, tau_mem=20.0,
               tau_adapt=50 + 200 * torch.rand(N), refractory=0,
               learn=("tau_mem", "tau_adapt") if adapts else ("tau_mem",), per_neuron=True)
    with torch.no_grad():
        nn.init.orthogonal_(net.neurons.get_parameter("weight_hh_l0"), RECURRENT)
        nn.init.xavier_uniform_(net.neurons.get_parameter("weight_ih_l0"))
        nn.init.zeros_(net.neurons.get_parameter("bias_ih_l0"))
    return net


def right(net: nn.Module, recordings: Recordings) -> Tensor:
    """Steps that are named as they are, (T, B)."""
    with torch.no_grad():
        named: Tensor = net(recordings.x)[0].argmax(-1) == recordings.phase
    return named


# -------------------------------------------------------------------------------------------- a run
class Run(BestEpoch):
    """Both networks on these recordings."""

    means = "loss", "rate", "valid"

    def __init__(self, options: argparse.Namespace, data: Data) -> None:
        super().__init__(options, network, len(data.train))
        self.data = data

    def kept_back(self, net: nn.Module) -> float:
        """The share of the steps kept back that a network names."""
        return right(net, self.data.valid).float().mean().item()

    def step(self) -> Values:
        """One iteration of each network, on the same recordings."""
        options = self.options
        batch = self.data.train.take(self.draw())

        def losses(name: str) -> tuple[Tensor, Tensor, Values]:
            y, _, z = self.nets[name](batch.x, return_spikes=True)
            rate = mean_rate(z)
            loss = nn.functional.cross_entropy(GAIN * y.flatten(0, 1), batch.phase.flatten())
            return (processes.mean(loss, len(batch)),
                    options.reg * (rate - TARGET_RATE).square().sum(),
                    {"rate": rate.mean().item(), "valid": self.carried["valid"][name]})

        return self.learn(training.learning_rate(self.done(), options.lr), losses)


def test(run: Run) -> dict[str, dict[str, Any]]:
    """Gives each network its best weights; the share of the test's steps that it names, in all and
    of each phase."""
    found = run.take_best()
    recordings = run.data.test
    for name, net in run.nets.items():
        named = right(net, recordings).float()
        found[name] |= {"accuracy": named.mean().item(),
                        "phases": [named[recordings.phase == phase].mean().item()
                                   for phase in range(PHASES)]}
    return found


def finish(run: Run, results: Path, drawing: Path) -> None:
    """Tests, writes the results, draws."""
    found = test(run)
    training.write_results(run, results, published=PUBLISHED, found=found)
    picture(run.nets["LSNN"], run.data.test, run.history, run.batches, found, PUBLISHED, drawing)
    for name, row in found.items():
        print(f"{name}: {100 * row['accuracy']:.2f} % of the test's steps (epoch {row['epoch']}, "
              f"{100 * row['valid']:.2f} % of those kept back)")
    print(f"published, 36 adaptive neurons: {100 * PUBLISHED:.1f} %")


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    options = arguments(given)
    data = load(options.data)
    run_task(options, lambda kept: Run(kept, data), __file__, finish)


if __name__ == "__main__":
    main()
