"""Spoken digits: name the digit that is said, with adaptive neurons and without.

Recordings of the Free Spoken Digit Dataset, 3,000 words of six speakers, as the energies of 40 mel
bands step by step; each word has its own length. Trains an LSNN whose neurons learn their
thresholds and time constants, and beside it, on the same batches, as many neurons without
adaptation. A word is named by the mean of the readout over all its steps. The five recordings of
each digit and speaker that are numbered 0 to 4 are the test, looked at once, at the end.

The recordings are those of Jakobovski/free-spoken-digit-dataset on GitHub (CC BY-SA 4.0; they are
not part of this project), as a folder or as a tar archive:

    git clone --depth 1 https://github.com/Jakobovski/free-spoken-digit-dataset

    python examples/speech/train.py --data free-spoken-digit-dataset/recordings            20 epochs
    python examples/speech/train.py --data free-spoken-digit-dataset/recordings --paper    80 epochs

--paper is the size and the setting of the published framewise program for TIMIT (Bellec et al.,
Nature Communications 11, 3625, 2020), in one direction; its speech is not free. LSNN_DATA may name
the recordings too. A checkpoint is kept in --out, every minute and after Ctrl-C; --resume goes on
from it to the same result, bit for bit with the same --threads.
"""
import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common import pair, processes, training
from common.epochs import Epochs, epoch_option
from common.pair import run_task
from common.training import Values, count, number
from lsnn_ext import LSNN
from speech.data import CHANNELS, DIGITS, Data, Recordings, load
from speech.plots import picture

GAIN = 5.0  # of the readout, an average of spikes, before the softmax
TARGET_RATE = 0.05
QUICK = {"batch": 64, "lr": 5e-3, "clip": 1.0, "reg": 1.0, "epochs": 20, "regular": 0,
         "adaptive": 64, "dt": 5.0}
PAPER = QUICK | {"batch": 32, "lr": 1e-2, "epochs": 80, "regular": 300, "adaptive": 100, "dt": 2.0}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "speech_out")
    task = parser.add_argument_group("task and network")
    task.add_argument("--data", type=Path, default=os.environ.get("LSNN_DATA"),
                      help="folder or tar archive of the recordings; LSNN_DATA if left out")
    epoch_option(task)
    task.add_argument("--regular", type=int, help="neurons that do not adapt, before others do")
    task.add_argument("--adaptive", type=count)
    task.add_argument("--dt", type=number, help="ms of a step, and from one spectrum to the next")
    task.add_argument("--fixed", action="store_true",
                      help="thresholds and time constants stay as they are")
    return pair.with_setting(parser.parse_args(given), QUICK, PAPER)


def network(options: argparse.Namespace, adapts: bool) -> LSNN:
    """Some neurons that adapt or none; the same first weights with a seed."""
    torch.manual_seed(options.seed)
    N = options.regular + options.adaptive
    learn = () if options.fixed else ("threshold", "tau_mem") + ("tau_adapt",) * adapts
    return LSNN(CHANNELS, options.regular if adapts else N, options.adaptive if adapts else 0,
                DIGITS, bias=True, dt=options.dt, tau_adapt=200.0, refractory=2, learn=learn,
                per_neuron=True)


def logits(y: PackedSequence) -> Tensor:
    """(B, 10): the mean of the readout over the steps of each word."""
    padded, lengths = pad_packed_sequence(y)
    return GAIN * padded.sum(0) / lengths.unsqueeze(-1)


def right(net: nn.Module, recordings: Recordings, batch: int = 256) -> Tensor:
    """Which words are named as they are, (n,)."""
    parts = []
    with torch.no_grad():
        for items in torch.arange(len(recordings)).split(batch):
            x, digit = recordings.take(items)
            parts.append(logits(net(x)[0]).argmax(1) == digit)
    return torch.cat(parts)


class Run(Epochs):
    """Both networks on these recordings."""

    means = "loss", "rate", "accuracy"

    def __init__(self, options: argparse.Namespace, data: Data) -> None:
        super().__init__(options, pair.beside(options, network), len(data.train))
        self.data = data

    def step(self) -> Values:
        """One iteration of each network, on the same words."""
        options = self.options
        x, digit = self.data.train.take(self.draw())

        def losses(name: str) -> tuple[Tensor, Tensor, Values]:
            y, _, rates = self.nets[name](x, return_rates=True)
            named, rate = logits(y), processes.mean(rates[0].mean(0), len(digit))
            accuracy = processes.mean((named.argmax(1) == digit).float().mean(), len(digit))
            return (processes.mean(nn.functional.cross_entropy(named, digit), len(digit)),
                    options.reg * (rate - TARGET_RATE).square().mean(),
                    {"rate": rate.mean().item(), "accuracy": accuracy.item()})

        return self.learn(training.learning_rate(self.done(), options.lr), losses)


def test(run: Run) -> dict[str, dict[str, Any]]:
    """The share of the test's words that each network names, in all and of each digit."""
    found = {}
    for name, net in run.nets.items():
        named = right(net, run.data.test).float()
        found[name] = {"accuracy": named.mean().item(),
                       "digits": [named[run.data.test.digit == digit].mean().item()
                                  for digit in range(DIGITS)]}
    return found


def finish(run: Run, results: Path, drawing: Path) -> None:
    """Tests, writes the results, draws."""
    found = test(run)
    training.write_results(run, results, found=found)
    picture(run.nets["LSNN"], run.data.test, run.history, run.batches, found, drawing)
    for name, row in found.items():
        print(f"{name}: {100 * row['accuracy']:.2f} % of the {len(run.data.test)} words of the "
              f"test")


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    options = arguments(given)
    # of a run that goes on the step is that of its checkpoint
    run_task(options, lambda kept: Run(kept, load(options.data, kept.dt)), __file__, finish)


if __name__ == "__main__":
    main()
