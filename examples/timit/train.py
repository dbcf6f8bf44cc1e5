"""TIMIT, a task of the LSNN paper: name the phone that is spoken, frame by frame.

Speech of American English as 13 cepstral coefficients with their first and second differences,
every 10 ms; each frame is shown for some steps. Trains an LSNN that reads each sentence in both
directions, and beside it, on the same batches, as many neurons without adaptation and an LSTM. All
learn the 61 phones of the corpus; errors are also those of the 39 classes that are usually scored.
Sentences of speakers of their own choose the epoch whose weights are tested, and the core test of
192 sentences is looked at once, at the end.

The corpus is yours to bring: LDC93S1 of the Linguistic Data Consortium, as it comes, with .wav
files of NIST SPHERE and .phn files.

    python examples/timit/train.py --data timit            a small network, 10 epochs
    python examples/timit/train.py --data timit --paper    400 neurons a direction, 80 epochs, 20 %
                                                           of the synapses

LSNN_DATA may name the folder too. A checkpoint is kept in --out, every minute and after Ctrl-C;
--resume goes on from it to the same result, bit for bit with the same --threads.
"""
import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common import pair, processes, training
from common.epochs import BestEpoch, epoch_option, every_option
from common.pair import run_task
from common.training import Values, count
from lsnn_ext import LSNN
from timit.data import FOLD, INPUTS, PHONES, Data, Sentences, load
from timit.plots import picture

TARGET_RATE = 0.01
QUICK = {"batch": 32, "lr": 5e-3, "clip": 1.0, "reg": 1.0, "epochs": 10, "regular": 90,
         "adaptive": 30, "hold": 2, "units": 60}
PAPER = QUICK | {"lr": 0.01, "epochs": 80, "regular": 300, "adaptive": 100, "hold": 5,
                 "units": 200, "deepr": 0.2}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "timit_out")
    task = parser.add_argument_group("task and networks")
    task.add_argument("--data", type=Path, default=os.environ.get("LSNN_DATA"),
                      help="folder of the corpus; LSNN_DATA if left out")
    epoch_option(task)
    every_option(task)
    task.add_argument("--regular", type=count, help="neurons without adaptation, of a direction")
    task.add_argument("--adaptive", type=count, help="neurons with it, of a direction")
    task.add_argument("--hold", type=count, help="steps that a frame is shown")
    task.add_argument("--units", type=count, help="of the LSTM, of a direction")
    task.add_argument("--no-lstm", action="store_true", help="leave out the LSTM")
    return pair.with_setting(parser.parse_args(given), QUICK, PAPER)


# ----------------------------------------------------------------------------------------- networks
def network(options: argparse.Namespace, adapts: bool) -> LSNN:
    """Neurons of which some adapt or none, in both directions; the same first weights with a
    seed."""
    torch.manual_seed(options.seed)
    adaptive = options.adaptive if adapts else 0
    return LSNN(INPUTS, options.regular + options.adaptive - adaptive, adaptive, len(PHONES),
                bidirectional=True, bias=True, tau_adapt=200.0, beta=1.8, refractory=2, tau_out=3.0)


class BiLSTM(nn.Module):
    """torch's LSTM in both directions, with a linear readout."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, options.units, bidirectional=True)
        self.readout = nn.Linear(2 * options.units, len(PHONES))

    def forward(self, x: Any) -> Tensor:
        """(T, B, 61) of a PackedSequence."""
        y: Tensor = self.readout(pad_packed_sequence(self.lstm(x)[0])[0])
        return y


def answers(net: nn.Module, sentences: Sentences, hold: int) -> tuple[Tensor, Tensor | None]:
    """Of the frames of all sentences, one after the other, (frames, 61), and of spiking networks
    the firing rates (directions, N); an answer is the mean of the readout while its frame is
    shown."""
    rates = None
    if isinstance(net, LSNN):
        shown = [x.repeat_interleave(hold, 0) for x in sentences.x]
        y, _, rates = net(pack_sequence(shown, enforce_sorted=False), return_rates=True,
                          readout_every=hold)
        y = pad_packed_sequence(y)[0]
        rates = rates.mean(1)
    else:
        y = net(pack_sequence(sentences.x, enforce_sorted=False))
    return torch.cat([y[:len(x), item] for item, x in enumerate(sentences.x)]), rates


def named(net: nn.Module, sentences: Sentences, hold: int,
          batch: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """What a network takes frames for, and what they are, batch by batch."""
    with torch.no_grad():
        for items in torch.arange(len(sentences.x)).split(batch):
            part = sentences.take(items)
            yield answers(net, part, hold)[0].argmax(-1), torch.cat(part.phone)


def errors(net: nn.Module, sentences: Sentences, hold: int) -> dict[str, float]:
    """The shares of frames that are taken for another of 61 phones, and for another of 39 classes;
    frames of q are left out of the second."""
    wrong = scored = missed = frames = 0
    for guess, phone in named(net, sentences, hold):
        wanted = FOLD[phone]
        wrong += int((guess != phone).sum())
        frames += len(phone)
        missed += int(((FOLD[guess] != wanted) & (wanted >= 0)).sum())
        scored += int((wanted >= 0).sum())
    return {"error": wrong / frames, "folded": missed / scored}


# -------------------------------------------------------------------------------------------- a run
class Run(BestEpoch):
    """The networks on these sentences."""

    means = "error", "rate", "valid"

    def __init__(self, options: argparse.Namespace, data: Data) -> None:
        torch.manual_seed(options.seed)
        others = {} if options.no_lstm else {"LSTM": BiLSTM(options)}
        super().__init__(options, pair.beside(options, network, others), len(data.train.x))
        self.data = data

    def bar(self, mean: Values) -> str:
        """Error and rate."""
        return (f"error {100 * mean['error']:.0f} %, kept back {100 - 100 * mean['valid']:.0f} %, "
                f"{1000 * mean['rate']:.0f} Hz")

    def kept_back(self, net: nn.Module) -> float:
        """The share of the frames kept back whose class a network names."""
        return 1 - errors(net, self.data.valid, self.options.hold)["folded"]

    def step(self) -> Values:
        """One iteration of each network, on the same sentences."""
        options = self.options
        batch = self.data.train.take(self.draw())
        phone = torch.cat(batch.phone)

        def losses(name: str) -> tuple[Tensor, Tensor, Values]:
            y, rates = answers(self.learners[name], batch, options.hold)
            loss = processes.mean(nn.functional.cross_entropy(y, phone), len(phone))
            error = processes.mean((y.argmax(-1) != phone).float().mean(), len(phone))
            values = {"error": error.item(), **self.looked(name)}
            if rates is None:
                return loss, loss.new_zeros(()), values
            rates = processes.mean(rates, len(batch.x))
            return (loss, options.reg * (rates - TARGET_RATE).square().sum(),
                    {**values, "rate": rates.mean().item()})

        return self.learn(training.learning_rate(self.done(), options.lr), losses)


def finish(run: Run, results: Path, drawing: Path) -> None:
    """Tests, writes the results, draws."""
    found = run.take_best()
    for name, net in run.learners.items():
        found[name] |= errors(net, run.data.test, run.options.hold)
        found[name]["parameters"] = sum(one.numel() for one in net.parameters())
    training.write_results(run, results, found=found,
                           sentences={name: len(part.x) for name, part
                                      in run.data._asdict().items()})
    guess, phone = next(named(run.nets["LSNN"], run.data.test, run.options.hold, batch=1))
    picture(run.data.test.x[0], phone, guess, run.history, run.batches, found, drawing)
    for name, row in found.items():
        print(f"{name}: {100 * row['folded']:.2f} % of the core test's frames taken for another of "
              f"39 classes, {100 * row['error']:.2f} % for another of 61 phones (epoch "
              f"{row['epoch']}, {100 - 100 * row['valid']:.2f} % of those kept back)")


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    options = arguments(given)
    data = load(options.data)
    run_task(options, lambda kept: Run(kept, data), __file__, finish)


if __name__ == "__main__":
    main()
