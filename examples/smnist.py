"""Sequential MNIST with an LSNN, the task of Bellec et al. 2018: a digit arrives pixel by pixel, as
spikes.

Trains for a fixed time (--minutes) and then reports the accuracy on all 10,000 test digits. A
checkpoint is kept in --out, written at the start, every minute and at the end; Ctrl-C and SIGTERM
write it after the running iteration. --resume goes on from it. Without --resume the checkpoint of
an unfinished run is not written over unless --overwrite says so, and that of a finished run is kept
under another name. The paper's result, 94.2 % on average, took 36,000 iterations of batch 256 with
rewiring: --paper takes that setting, which runs for hours. --permuted shows the pixels in another
order, drawn once and the same for all digits (psMNIST of Le, Jaitly and Hinton, 2015).
"""
import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import lsnn_ext
import processes
import training
from lsnn_ext import LSNN
from mnist import CHANNELS, PIXELS, Digits, analog, encode, load
from plots import write_curve
from smnist_plots import curve_picture, digit_picture
from speed import measure, report
from training import count, learning_rate, mean_rate, number

ANSWER = 28  # the decision is the readout averaged over the last 28 steps
TARGET_RATE = 0.01  # spikes per step: 10 Hz
# what stands for options that are left out
PAPER = {"iterations": 36_000, "batch": 256, "deepr": 0.12, "spread": True, "delay": 10}
CHECKPOINT_SECONDS = training.CHECKPOINT_SECONDS


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    setting = parser.add_mutually_exclusive_group()
    setting.add_argument("--quick", dest="paper", action="store_false",
                         help="a setting for a look, in minutes (the default)")
    setting.add_argument("--paper", action="store_true", default=False,
                         help="the paper's setting: "
                              + ", ".join(f"{name} {value}" for name, value in PAPER.items()))
    training.length_options(parser, 6.5)
    network = parser.add_argument_group("network")
    network.add_argument("--regular", type=int, default=120, help="neurons without adaptation")
    network.add_argument("--adaptive", type=int, default=100, help="neurons with adaptation")
    network.add_argument(
        "--lif", action="store_true", help="make all neurons regular: what does memory need?"
    )
    network.add_argument("--tau-adapt", type=number, default=700.0,
                         help="time constant of adaptation, ms")
    network.add_argument("--delay", type=count, default=28, metavar="STEPS",
                         help="from a spike to its effect in the layer; 28 is one row of the "
                              "picture")
    network.add_argument("--spread", action="store_true",
                         help="draw the delay of each synapse from 1 to --delay (the paper: "
                              "--spread --delay 10)")
    network.add_argument(
        "--learn",
        nargs="*",
        default=[],
        choices=("tau_mem", "tau_adapt", "beta", "threshold"),
        help="learn them too",
    )
    network.add_argument("--analog", action="store_true",
                         help="grey values into one input instead of spikes")
    network.add_argument("--permuted", action="store_true",
                         help="show the pixels in an order that is drawn with the seed")
    learning = parser.add_argument_group("training")
    learning.add_argument("--batch", type=count, default=64)
    learning.add_argument("--lr", type=number, default=0.002, help="highest learning rate of Adam")
    learning.add_argument("--clip", type=number, default=1.0, help="largest norm of the gradient")
    learning.add_argument("--reg", type=float, default=0.1,
                          help="weight of the firing rate's distance from 10 Hz")
    training.deepr_option(learning)
    training.seed_options(learning)
    parser.add_argument("--out", type=Path, default=Path("demo_out"),
                        help="folder of pictures, curve and checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data"),
                        help="folder the data is kept in")
    parser.add_argument("--no-speed", action="store_true",
                        help="leave out the comparison of speed at the end")
    options = parser.parse_args(given)
    if not options.paper:
        return options
    parser.set_defaults(**PAPER, minutes=None)
    paper = parser.parse_args(given)
    if paper.minutes:  # asked for, in place of the paper's iterations
        paper.iterations = options.iterations
    return paper


def build(options: argparse.Namespace) -> LSNN:
    """The network of the options: dense weights, drawn with the seed."""
    torch.manual_seed(options.seed)
    N = options.regular + options.adaptive
    # beyond the usual one step
    delay = torch.randint(options.delay, (N, N)) if options.spread else options.delay - 1
    regular, adaptive = (N, 0) if options.lif else (options.regular, options.adaptive)
    return LSNN(1 if options.analog else CHANNELS, regular, adaptive, 10,
                tau_adapt=options.tau_adapt, delay=delay, learn=options.learn)


def pixel_order(options: argparse.Namespace) -> Tensor:
    """(784,): which pixel is shown at each step."""
    if not options.permuted:
        return torch.arange(PIXELS)
    return torch.randperm(PIXELS, generator=torch.Generator().manual_seed(options.seed))


class Run(training.Run):
    """Network, optimizer and progress: what a checkpoint holds."""

    means = "loss", "accuracy", "rate"
    is_shared = True

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = build(options)
        self.optimizer = training.adam(self.model, options)
        self.order = pixel_order(options)
        super().__init__(options, {"model": self.model, "optimizer": self.optimizer})

    def bar(self, mean: dict[str, float]) -> str:
        """Loss, accuracy and rate."""
        return (f"loss {mean['loss']:.2f}, accuracy {100 * mean['accuracy']:.0f} %, "
                f"{1000 * mean['rate']:.0f} Hz")

    def encode(self, pixels: Tensor) -> Tensor:
        """(T, B, I): what the network is shown of pixels (B, 784)."""
        return (analog if self.options.analog else encode)(pixels[:, self.order])

    def step(self, pixels: Tensor, labels: Tensor) -> dict[str, float]:
        """One iteration, of several processes with the share of each: cross entropy plus reg * sum
        over neurons of (mean rate - 10 Hz)^2 in the paper's units."""
        training.set_rate(self.optimizer, learning_rate(self.done(), self.options.lr))
        readout, _, spikes = self.model(self.encode(pixels), return_spikes=True)
        rate = mean_rate(spikes)
        logits = readout[-ANSWER:].mean(0)
        loss = processes.mean(nn.functional.cross_entropy(logits, labels), len(labels))
        self.optimizer.zero_grad()
        (loss + self.options.reg * (rate - TARGET_RATE).square().sum()).backward()
        processes.add_gradients(self.model.parameters())
        norm = training.clipped(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        correct = processes.mean((logits.argmax(-1) == labels).float().mean(), len(labels))
        return {"loss": loss.item(), "accuracy": correct.item(), "rate": rate.mean().item(),
                "norm": norm.item()}


def train(run: Run, digits: Digits) -> bool:
    """Trains to the end of the run (True) or to Ctrl-C or SIGTERM (False)."""
    def iterate() -> dict[str, float]:
        chosen = torch.randint(len(digits.labels), (run.options.batch,), generator=run.random)
        chosen = chosen[processes.share(run.options.batch)]
        return run.step(digits.pixels[chosen], digits.labels[chosen])

    return training.train(run, iterate, CHECKPOINT_SECONDS)


def evaluate(run: Run, digits: Digits, batch: int = 250) -> float:
    """The share of the digits that are recognised."""
    correct = 0
    with torch.no_grad():
        parts = zip(torch.split(digits.pixels, batch), torch.split(digits.labels, batch),
                    strict=True)
        for pixels, labels in tqdm(parts, "test", math.ceil(len(digits.labels) / batch),
                                   leave=False, unit="batch"):
            readout, _ = run.model(run.encode(pixels))
            correct += int((readout[-ANSWER:].mean(0).argmax(-1) == labels).sum())
    return correct / len(digits.labels)


def main(given: list[str] | None = None) -> None:
    """Loads, trains, tests, draws, measures."""
    options = arguments(given)
    run, (digits, test) = training.prepared(options, Run, lambda: load(options.data))
    options = run.options
    print(lsnn_ext.show_config())
    print(run.model)
    if not training.finished(run, train(run, digits), __file__):
        return
    accuracy = evaluate(run, test)
    curve = options.out / "smnist_curve.csv"
    pictures = options.out / "smnist_digit.png", options.out / "smnist_curve.png"
    write_curve(run.history, curve)
    digit_picture(run.model, run.encode(test.pixels[:1]), test.pixels[0].view(28, 28),
                  int(test.labels[0]), pictures[0])
    curve_picture(run.history, accuracy, pictures[1])
    if not options.no_speed:
        print(report(measure()))
    print(f"accuracy on the {len(test.labels):,} test digits: {100 * accuracy:.2f} % after "
          f"{len(run.history)} iterations in {run.seconds / 60:.1f} minutes (seed {options.seed})")
    for path in (*pictures, curve, run.path):
        print(f"  {path}")


if __name__ == "__main__":
    main()
