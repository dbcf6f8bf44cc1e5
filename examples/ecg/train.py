"""Electrocardiograms: name the phase of the heartbeat at every step, with 36 neurons.

The task of Yin, Corradi and Bohte (Nature Machine Intelligence 3, 905, 2021): two leads of the QT
Database of PhysioNet, of each of which two inputs say when it rises or falls by a level; the phases
are P, PQ, QR, RS, ST and TP. Their 36 recurrent neurons with learned time constants name 85.9 % of
the test's steps. Here as many adaptive ones are trained, and beside them, on the same batches, 36
without adaptation; six leaky outputs, each with a time constant that is learned, name the phase.
Gradients go back through a quarter of a recording, and each quarter makes a step of the optimizer.
A tenth of the training's recordings is kept back, and chooses the epoch whose weights are tested;
the test is looked at once, at the end. With --kept-back 0 all are learned from, and the last
weights are tested, or with --average their running means; so does --paper, whose learning rate does
not fall, and whose matrices decay.

The data are the authors' files QTDB_train.mat and QTDB_test.mat, in the folder data of their
repository (from a database under ODC-By 1.0; they are not part of this project):

    git clone --depth 1 https://github.com/byin-cwi/Efficient-spiking-networks

    python examples/ecg/train.py --data Efficient-spiking-networks/data            20 epochs
    python examples/ecg/train.py --data Efficient-spiking-networks/data --paper    100 epochs

--dynamics srnn has the neurons of the published network, which is the one without adaptation: of
its recurrent neurons none adapts (examples/published/run.py runs it).

LSNN_DATA may name the folder too. A checkpoint is kept in --out, every minute and after Ctrl-C;
--resume goes on from it to the same result, bit for bit with the same --threads.
"""
import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import io
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common import pair, processes, training
from common.epochs import BestEpoch, epoch_option, every_option
from common.pair import run_task
from common.training import Values, count, mean_rate, number
from ecg.plots import picture
from lsnn_ext import LSNN, LSNNState, functional
from lsnn_ext._core.state import State

FILES = "QTDB_train.mat", "QTDB_test.mat"
INPUTS, PHASES = 4, 6
PUBLISHED = 0.859
GAIN = 5.0  # of the readout, an average of spikes, before the softmax
FOLDS, APART = 6, 8  # of the training's recordings; between a fold and those learned from
KEPT_BACK = 10  # one recording of so many chooses the epoch, where no number is given
TARGET_RATE = 0.05
FIRST_TAU = 20.0  # of the outputs, steps
OUT_OF_REACH = 1e6  # a threshold
# of the two neurons: threshold, and how far adaptation lifts it
NEURONS = {"lsnn": {"threshold": 0.01, "beta": 1.8}, "srnn": {"threshold": 0.1, "beta": 0.2}}
QUICK = {"batch": 16, "lr": 1e-2, "clip": 1.0, "reg": 0.0, "epochs": 20, "average": None,
         "steady": False, "weight_decay": 0.0}
PAPER = QUICK | {"epochs": 100, "average": 0.998, "kept_back": 0, "steady": True,
                 "weight_decay": 0.03}


def data_option(group: Any) -> None:
    """--data."""
    group.add_argument("--data", type=Path, default=os.environ.get("LSNN_DATA"),
                       help="folder of the two files; LSNN_DATA if left out")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "ecg_out")
    task = parser.add_argument_group("task and network")
    data_option(task)
    epoch_option(task)
    every_option(task)
    task.add_argument("--kept-back", type=int, metavar="RECORDINGS",
                      help="of the training's, which choose the epoch; left out: a tenth of them, "
                           "none with --paper")
    task.add_argument("--fold", type=int, choices=range(FOLDS),
                      help="test on a sixth of the training's recordings, neighbours in the file, "
                           "in place of the test's; the eight on either side are left out, and the "
                           "others learned from")
    task.add_argument("--chunk", type=count, default=326,
                      help="steps through which gradients go back, and after which the optimizer "
                           "makes a step of its own; 1301: a whole recording")
    task.add_argument("--neurons", type=count, default=36)
    task.add_argument("--dynamics", choices=("lsnn", "srnn"), default="lsnn",
                      help="the neuron: with a surrogate as wide as its threshold, or that of Yin "
                           "et al.")
    task.add_argument("--average", type=decay, metavar="DECAY",
                      help="look at and test running means of the weights, in which those of a "
                           "step of the optimizer fade by this factor at each later one")
    task.add_argument("--steady", action=argparse.BooleanOptionalAction,
                      help="let the learning rate stay where it is after its rise; running means "
                           "then do what its fall does")
    task.add_argument("--weight-decay", type=float,
                      help="a step takes this times the learning rate of each weight of a matrix "
                           "(AdamW)")
    options = pair.with_setting(parser.parse_args(given), QUICK, PAPER)
    if not 0 <= options.weight_decay * options.lr < 1:
        parser.error(f"--weight-decay: expected a number >= 0 and < {1 / options.lr:g}, 1 by the "
                     f"learning rate, got {options.weight_decay:g}")
    if options.weight_decay and options.deepr:
        parser.error("--weight-decay: expected 0 beside --deepr, which has a decay of its own, got "
                     f"{options.weight_decay:g}")
    return options


def decay(text: str) -> float:
    """For argparse: a number above 0 and below 1."""
    value = number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a number < 1, got {text!r}")
    return value


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
    """Recordings to learn from, to choose the epoch by (perhaps none), and to be tested on."""

    train: Recordings
    valid: Recordings
    test: Recordings


def read(path: Path) -> Recordings:
    """One of the two files. Steps after the end of a shorter recording, and some between two
    phases, have no label, and count as the first phase, as in the published programs."""
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


def folded(whole: Recordings, fold: int) -> tuple[Recordings, Recordings]:
    """The recordings that stand apart from those of a fold, and these: neighbours are of the same
    heart."""
    number = torch.arange(len(whole))
    first, last = (len(whole) * end // FOLDS for end in (fold, fold + 1))
    is_apart = (number < first - APART) | (number >= last + APART)
    return whole.take(number[is_apart]), whole.take(number[first:last])


def load(folder: Path | None, kept_back: int | None = None, fold: int | None = None) -> Data:
    """Both files, or a fold of the first in place of the second; the recordings that are kept
    back, a tenth if no number is given, are the same for all seeds."""
    if folder is None or not all((Path(folder) / name).is_file() for name in FILES):
        raise SystemExit(f"--data: expected a folder with {' and '.join(FILES)}, got {folder}; "
                         "python examples/ecg/train.py --help says where they are from")
    whole, test = (read(Path(folder) / name) for name in FILES)
    if len(whole) < 2:
        raise SystemExit(f"{FILES[0]}: expected two recordings or more, got {len(whole)}")
    if fold is not None:
        if len(whole) < 3 * APART:
            raise SystemExit(f"--fold: expected {3 * APART} recordings or more in {FILES[0]}, got "
                             f"{len(whole)}")
        whole, test = folded(whole, fold)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    kept = -(-len(whole) // KEPT_BACK) if kept_back is None else kept_back
    if not 0 <= kept < len(whole):
        raise SystemExit(f"--kept-back: expected fewer than the {len(whole)} recordings of "
                         f"{FILES[0]}, got {kept}")
    return Data(whole.take(order[kept:]), whole.take(order[:kept]), test)


# ---------------------------------------------------------------------------------------- a network
class Network(LSNN):
    """An LSNN whose outputs each learn a time constant: neurons that never reach their
    threshold. The state has theirs behind that of the LSNN."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, tau_out=None, **options)
        self.log_tau_out = nn.Parameter(torch.full((PHASES,), FIRST_TAU).log())

    def forward(self, x: Any, state: Any = None, **asked: Any) -> tuple[Any, ...]:
        """x (T, B, 4) -> membranes of the outputs (T, B, 6), the state, and what is asked of an
        LSNN."""
        carried, outputs = state or (None, None)
        current, carried, *more = super().forward(x, carried, **asked)
        alpha = torch.exp(-1 / self.log_tau_out.exp())
        _, outputs, traces = functional.alif(current, None, alpha=alpha, theta=OUT_OF_REACH,
                                             dynamics="srnn", trace=True, state=outputs)
        return traces.v, (carried, outputs), *more


def network(options: argparse.Namespace, adapts: bool) -> Network:
    """Neurons that all adapt or none does; the same first weights with a seed. Each learns its time
    constants."""
    torch.manual_seed(options.seed)
    N = options.neurons
    net = Network(INPUTS, 0 if adapts else N, N if adapts else 0, PHASES, bias=True,
                  dynamics=options.dynamics, tau_mem=20.0, tau_adapt=50 + 200 * torch.rand(N),
                  refractory=0, autapses=True, **NEURONS[options.dynamics],
                  learn=("tau_mem", "tau_adapt") if adapts else ("tau_mem",), per_neuron=True)
    with torch.no_grad():
        nn.init.orthogonal_(net.neurons.get_parameter("weight_hh_l0"))
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

    means: tuple[str, ...] = "loss", "rate"

    def __init__(self, options: argparse.Namespace, data: Data) -> None:
        self.is_chosen = bool(len(data.valid))
        if self.is_chosen:
            self.means = *self.means, "valid"
        super().__init__(options, pair.beside(options, network), len(data.train))
        self.data = data
        self.averages: dict[str, AveragedModel] = {}
        if options.average:
            self.averages = {name: AveragedModel(
                net, multi_avg_fn=get_ema_multi_avg_fn(options.average))
                for name, net in self.nets.items()}
            self.parts |= {f"{name} average": net for name, net in self.averages.items()}

    def optimizer(self, net: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
        """Adam, whose matrices decay if --weight-decay asks for it."""
        return training.adam(net, options, options.weight_decay)

    def rate_of(self, name: str, rate: float) -> float:
        """With --steady that of the network without adaptation is a third, and falls all the same:
        its gradients would explode."""
        if name != "LIF" or not self.options.steady:
            return rate
        return training.learning_rate(self.done(), self.options.lr / 3)

    def candidate(self, name: str) -> nn.Module:
        """The network with the running means of its weights, where --average asks for them."""
        return self.averages[name].module if self.averages else self.nets[name]

    def learn(self, *given: Any) -> Values:
        """As of Learners, and the running means go on."""
        found = super().learn(*given)
        for name, average in self.averages.items():
            average.update_parameters(self.nets[name])
        return found

    def kept_back(self, net: nn.Module) -> float:
        """The share of the steps kept back that a network names."""
        return right(net, self.data.valid).float().mean().item()

    def step(self) -> Values:
        """One iteration of each network, on the same recordings: a step of its optimizer after
        each chunk."""
        options = self.options
        batch = self.data.train.take(self.draw())
        rate = training.learning_rate(self.done(), options.lr, falls=not options.steady)
        states: dict[str, tuple[LSNNState, State]] = {}
        rows = [self.learn(rate, partial(self.losses, x, phase, states))
                for x, phase in zip(batch.x.split(options.chunk), batch.phase.split(options.chunk),
                                    strict=True)]
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def losses(self, x: Tensor, phase: Tensor, states: dict[str, tuple[LSNNState, State]],
               name: str) -> tuple[Tensor, Tensor, Values]:
        """Of the next steps of a recording, for learn; states: after those before, and then
        after these, of each network."""
        y, (neurons, outputs), z = self.nets[name](x, states.get(name), return_spikes=True)
        states[name] = neurons.detach(), outputs.detach()
        rate = mean_rate(z)
        loss = nn.functional.cross_entropy(GAIN * y.flatten(0, 1), phase.flatten())
        return (processes.mean(loss, x.shape[1]),
                self.options.reg * (rate - TARGET_RATE).square().sum(),
                {"rate": rate.mean().item(), **self.looked(name)})


def test(run: Run) -> dict[str, dict[str, Any]]:
    """Gives each network its best weights, or the last; the share of the test's steps that it
    names, in all and of each phase."""
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
    steps = "the test's steps" if run.options.fold is None else f"steps of fold {run.options.fold}"
    for name, row in found.items():
        of = (f" (epoch {row['epoch']}, {100 * row['valid']:.2f} % of those kept back)"
              if run.is_chosen else "")
        print(f"{name}: {100 * row['accuracy']:.2f} % of {steps}{of}")
    print(f"published, 36 neurons: {100 * PUBLISHED:.1f} %")


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    options = arguments(given)
    run_task(options, lambda kept: Run(kept, load(kept.data, kept.kept_back,
                                                               kept.fold)), __file__, finish)


if __name__ == "__main__":
    main()
