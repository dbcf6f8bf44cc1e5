"""Sequential MNIST with an LSNN, the task of Bellec et al. 2018: a digit arrives pixel by pixel, as
spikes.

Trains for a fixed time (--minutes) the networks that --models names: the LSNN and, beside it and on
the same batches, as many neurons without adaptation (lif); an nn.LSTM of 128 units that sees grey
values and answers after the last one (lstm), the four layers of Yin et al. 2021, which see a window
of 8 pixels a step (srnn), and the resonators of Higuchi et al. 2024, which see grey values and
answer at every step (brf). The first 5,000 digits of the training set are kept back, as in
the paper's code, and choose the epoch; the 10,000 test digits are looked at once, at the end, with
each network's weights of its best epoch. With --kept-back 0 all 60,000 are learned from, and the
last weights are tested.

A checkpoint is kept in --out, written at the start, every minute and at the end; Ctrl-C and SIGTERM
write it after the running iteration. --resume goes on from it. Without --resume the checkpoint of
an unfinished run is not written over unless --overwrite says so, and that of a finished run is kept
under another name. The paper's result, 94.2 % on average, took 36,000 iterations of batch 256 with
rewiring and delays of 1 to 10 steps: --paper takes that setting, which runs for hours; --hold 2
shows each pixel for 2 ms. --permuted shows the pixels in another order, drawn once and the same for
all digits (psMNIST of Le, Jaitly and Hinton, 2015).
"""
import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
import lsnn_ext
from common import processes, training
from common.epochs import BestEpoch
from common.plots import write_curve
from common.training import Values, count, learning_rate, mean_rate, number
from lsnn_ext import LSNN
from smnist.data import PIXELS, Digits, load
from smnist.networks import NAMES, answers, first_states, network, spikes
from smnist.plots import curve_picture, digit_picture
from smnist.speed import measure, report

TARGET_RATE = 0.01  # spikes per step: 10 Hz
RATE, BRF_RATE = 0.002, 0.1
TAU_ADAPT, DELAY = 700.0, 28  # where a pixel is shown for 1 ms; a row of the picture
# what stands for options that are left out
PAPER = {"iterations": 36_000, "batch": 256, "deepr": 0.12, "spread": True, "delay": 10}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    training.setting_options(parser)
    training.length_options(parser, 6.5)
    network = parser.add_argument_group("networks")
    network.add_argument("--models", nargs="+", type=str.upper, choices=NAMES,
                         default=["LSNN", "LIF"], help="which learn, in the same time")
    network.add_argument("--regular", type=int, default=120, help="neurons without adaptation")
    network.add_argument("--adaptive", type=int, default=100, help="neurons with adaptation")
    network.add_argument("--tau-adapt", type=number,
                         help=f"time constant of adaptation, ms; {TAU_ADAPT:g} times --hold if "
                              "left out")
    network.add_argument("--delay", type=count, metavar="STEPS",
                         help="from a spike to its effect in the layer; one row of the picture, "
                              f"{DELAY} times --hold, if left out")
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
    task = parser.add_argument_group("task")
    task.add_argument("--hold", type=count, default=1, help="ms that a pixel is shown")
    task.add_argument("--analog", action="store_true",
                      help="grey values into one input of the LSNN instead of spikes")
    task.add_argument("--permuted", action="store_true",
                      help="show the pixels in an order that is drawn with the seed")
    task.add_argument("--kept-back", type=int, default=5000, metavar="DIGITS",
                      help="of the training set, which choose the epoch")
    task.add_argument("--every", type=count, default=1,
                      help="epochs from one look at the digits kept back to the next")
    learning = parser.add_argument_group("training")
    learning.add_argument("--batch", type=count, default=64)
    learning.add_argument("--lr", type=number, metavar="RATE",
                          help=f"highest learning rate of Adam; {BRF_RATE} for brf and {RATE} for "
                               "the others if left out")
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
    if options.paper:
        parser.set_defaults(**PAPER, minutes=None)
        quick, options = options, parser.parse_args(given)
        if options.minutes:  # asked for, in place of the paper's iterations
            options.iterations = quick.iterations
    options.tau_adapt = options.tau_adapt or TAU_ADAPT * options.hold
    options.delay = options.delay or DELAY * options.hold
    return options


def pixel_order(options: argparse.Namespace) -> Tensor:
    """(784,): which pixel is shown at each step."""
    if not options.permuted:
        return torch.arange(PIXELS)
    return torch.randperm(PIXELS, generator=torch.Generator().manual_seed(options.seed))


def parted(options: argparse.Namespace, whole: Digits) -> tuple[Digits, Digits]:
    """The training set without the digits that are kept back, and these."""
    if not 0 <= options.kept_back < len(whole.labels):
        raise SystemExit(f"--kept-back: expected fewer than the {len(whole.labels):,} digits of "
                         f"the training set, got {options.kept_back}")
    return (whole.take(slice(options.kept_back, None)), whole.take(slice(options.kept_back)))


class Run(BestEpoch):
    """The networks of --models on these digits."""

    def __init__(self, options: argparse.Namespace, digits: Digits) -> None:
        self.order = pixel_order(options)
        self.digits, self.valid = parted(options, digits)
        self.is_chosen = bool(options.kept_back)
        super().__init__(options, {name: network(name, options) for name in
                                   dict.fromkeys(options.models)}, len(self.digits.labels))
        self.first = next(iter(self.learners))
        self.means = ("loss", "accuracy", *(["rate"] if self.first in self.nets else []))

    def bar(self, mean: dict[str, float]) -> str:
        """Loss, accuracy and rate."""
        rate = f", {1000 * mean['rate']:.0f} Hz" if "rate" in mean else ""
        return f"loss {mean['loss']:.2f}, accuracy {100 * mean['accuracy']:.0f} %{rate}"

    def draw(self) -> Tensor:
        """The numbers of digits, any of them at any time, that are this process's; an epoch is as
        many as there are."""
        epoch, position = divmod(len(self.history), self.batches)
        if not position:
            self.begin_epoch(epoch)
        size = self.options.batch
        drawn = torch.randint(self.recordings, (size,), generator=self.random)
        return drawn[processes.share(size)]

    def step(self) -> Values:
        """One iteration of each network, of several processes with the share of each: cross
        entropy plus, of spiking neurons, reg * sum over them of (mean rate - 10 Hz)^2 in the
        paper's units."""
        pixels, labels = self.digits.take(self.draw())
        pixels = pixels[:, self.order]
        x = spikes(pixels, self.options) if self.nets else None
        # apart from self.random, so that batches are the same whichever networks learn
        random = torch.Generator().manual_seed(1_000_000 * self.options.seed + len(self.history))

        def losses(name: str) -> tuple[Tensor, Tensor, Values]:
            net = self.learners[name]
            start = first_states(net, self.options.batch, random)
            logits, z = answers(net, pixels, x, self.options.hold,
                                start and [processes.share_of(state) for state in start])
            loss = processes.mean(nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.repeat(len(logits))), len(labels))
            correct = processes.mean((logits.mean(0).argmax(-1) == labels).float().mean(),
                                     len(labels))
            values = {"accuracy": correct.item(), **self.looked(name)}
            if z is None:
                return loss, loss.new_zeros(()), values
            rate = mean_rate(z)
            return (loss, self.options.reg * (rate - TARGET_RATE).square().sum(),
                    {**values, "rate": rate.mean().item()})

        return self.learn(learning_rate(self.done(), self.options.lr or RATE), losses)

    def rate_of(self, name: str, rate: float) -> float:
        """That of brf falls linearly to 0, as in its paper."""
        return rate if name != "BRF" else (1 - self.done()) * (self.options.lr or BRF_RATE)

    def kept_back(self, net: nn.Module) -> float:
        """The share of the digits kept back that a network recognises."""
        return self.recognised(net, self.valid)

    @torch.no_grad()
    def recognised(self, net: nn.Module, digits: Digits, batch: int = 250) -> float:
        """The share of the digits that a network recognises."""
        random = torch.Generator().manual_seed(0)
        correct = 0
        parts = zip(digits.pixels.split(batch), digits.labels.split(batch), strict=True)
        for pixels, labels in tqdm(parts, "looks", math.ceil(len(digits.labels) / batch),
                                   leave=False, unit="batch"):
            shown = pixels[:, self.order]
            x = spikes(shown, self.options) if isinstance(net, LSNN) else None
            logits, _ = answers(net, shown, x, self.options.hold,
                                first_states(net, len(labels), random))
            correct += int((logits.mean(0).argmax(-1) == labels).sum())
        return correct / len(digits.labels)


def finish(run: Run, test: Digits) -> list[Path]:
    """Tests, writes, draws; which files."""
    options = run.options
    found = run.take_best()
    for name, net in run.learners.items():
        found[name]["accuracy"] = run.recognised(net, test)
    files = [options.out / f"smnist{end}" for end in ("_curve.csv", ".json", "_curve.png")]
    curve, results, drawing = files
    write_curve(run.history, curve)
    training.write_results(run, results, found=found)
    curve_picture(run, found, drawing)
    if run.nets:
        files.append(options.out / "smnist_digit.png")
        name, net = next(iter(run.nets.items()))
        digit_picture(net, spikes(test.pixels[:1, run.order], options),
                      test.pixels[0].view(28, 28), int(test.labels[0]), options.hold, files[-1])
    if not options.no_speed:
        print(report(measure()))
    for name, row in found.items():
        of = (f" (epoch {row['epoch']}, {100 * row['valid']:.2f} % of {options.kept_back:,} kept "
              f"back)" if options.kept_back else "")
        print(f"{name}: accuracy on the {len(test.labels):,} test digits: "
              f"{100 * row['accuracy']:.2f} %{of}")
    return files


def main(given: list[str] | None = None) -> None:
    """Loads, trains, tests, draws, measures."""
    options = arguments(given)
    processes.join()
    processes.on_first(lambda: training.writable(options.out))
    digits, test = processes.after_first(lambda: load(options.data))
    run, _ = training.prepared(options, lambda kept: Run(kept, digits))
    print(lsnn_ext.show_config())
    for name, net in run.learners.items():
        if name != "LIF":
            print(net)
    if not training.finished(run, training.train(run, run.step), __file__):
        return
    files = finish(run, test)
    print(f"{len(run.history)} iterations in {run.seconds / 60:.1f} minutes (seed "
          f"{run.options.seed})")
    for path in (*files, run.path):
        print(f"  {path}")


if __name__ == "__main__":
    main()
