"""Sequential MNIST with an LSNN, the task of Bellec et al. 2018: a digit arrives pixel by pixel, as
spikes.

Trains for a fixed time (--minutes) and then reports the accuracy on all 10,000 test digits. A
checkpoint is kept in --out, written at the start, every minute and at the end; Ctrl-C and SIGTERM
write it after the running iteration. --resume goes on from it. Without --resume the checkpoint of
an unfinished run is not written over unless --overwrite says so, and that of a finished run is kept
under another name. The paper's result, 94.2 % on average, took 36,000 iterations of batch 256 with
rewiring: for such hours-long runs give --iterations and --batch.
"""
import argparse
import math
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import lsnn_ext
from lsnn_ext import LSNN
from mnist import CHANNELS, Digits, analog, encode, load
from smnist_plots import curve_picture, digit_picture, write_curve
from speed import measure, report

ANSWER = 28  # the decision is the readout averaged over the last 28 steps
CHECKPOINT = "checkpoint.pt"
TARGET_RATE = 0.01  # spikes per step: 10 Hz
STOPS = (signal.SIGINT, signal.SIGTERM)
CHECKPOINT_SECONDS = 60.0  # of training
# options of one call, not of the run
HERE = ("out", "data", "resume", "overwrite", "threads", "no_speed")


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"expected a {what} > 0, got {text!r}")
        return value

    return read


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    count, number = _positive(int), _positive(float)
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    length = parser.add_argument_group("length of the run")
    length.add_argument("--minutes", type=number, default=6.5,
                        help="training time; the schedule is tied to it")
    length.add_argument("--iterations", type=count, help="train this many iterations instead")
    earlier = length.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true",
                         help="go on from the checkpoint in --out, with its options")
    earlier.add_argument("--overwrite", action="store_true",
                         help="write over the checkpoint that is in --out")
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
    training = parser.add_argument_group("training")
    training.add_argument("--batch", type=count, default=64)
    training.add_argument("--lr", type=number, default=0.002, help="highest learning rate of Adam")
    training.add_argument("--clip", type=number, default=1.0, help="largest norm of the gradient")
    training.add_argument("--reg", type=float, default=0.1,
                          help="weight of the firing rate's distance from 10 Hz")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--threads", type=count, help="of torch; all cores if left out")
    parser.add_argument("--out", type=Path, default=Path("demo_out"),
                        help="folder of pictures, curve and checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data"),
                        help="folder the data is kept in")
    parser.add_argument("--no-speed", action="store_true",
                        help="leave out the comparison of speed at the end")
    return parser.parse_args(given)


def build(options: argparse.Namespace) -> LSNN:
    """The network of the options: dense weights, drawn with the seed."""
    torch.manual_seed(options.seed)
    N = options.regular + options.adaptive
    # beyond the usual one step
    delay = torch.randint(options.delay, (N, N)) if options.spread else options.delay - 1
    regular, adaptive = (N, 0) if options.lif else (options.regular, options.adaptive)
    return LSNN(1 if options.analog else CHANNELS, regular, adaptive, 10,
                tau_adapt=options.tau_adapt, delay=delay, learn=options.learn)


def learning_rate(done: float, highest: float) -> float:
    """A short rise, then a half cosine to nearly 0; done is the elapsed fraction of the run."""
    return highest * min(1.0,
                         done / 0.03
                         + 0.1) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))


class Run:
    """Network, optimizer and progress: what a checkpoint holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model = options, build(options)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr)
        self.order = torch.Generator().manual_seed(options.seed)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.encode = analog if options.analog else encode

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return Path(self.options.out) / CHECKPOINT

    def save(self) -> None:
        """Writes the checkpoint beside the old one first, so that no moment is without a whole
        one."""
        options = {name: value for name, value in vars(self.options).items() if name not in HERE}
        kept: dict[str, Any] = {
            "options": options, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "history": self.history,
            "seconds": self.seconds, "order": self.order.get_state()}
        fresh = self.path.with_suffix(".new")
        try:
            torch.save(kept, fresh)
            fresh.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch has an error of its own for a full disk
            raise SystemExit(
                f"{fresh}: the checkpoint could not be written: {_first_line(error)}") from None

    def restore(self, kept: dict[str, Any]) -> None:
        """Takes over what save() wrote."""
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.history, self.seconds = kept["history"], kept["seconds"]
        self.order.set_state(kept["order"])

    def done(self) -> float:
        """The elapsed fraction of the run, by iterations if they are given, else by time."""
        if self.options.iterations:
            return len(self.history) / int(self.options.iterations)
        return self.seconds / (60 * float(self.options.minutes))

    def step(self, pixels: Tensor, labels: Tensor) -> dict[str, float]:
        """One iteration: cross entropy plus reg * sum over neurons of (mean rate - 10 Hz)^2 in the
        paper's units."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done(), self.options.lr)
        readout, _, spikes = self.model(self.encode(pixels), return_spikes=True)
        # The mean, written as a sum: its gradient is then a view, not another tensor as large as
        # the spikes.
        rate = spikes.sum((0, 1)) / spikes[..., 0].numel()
        logits = readout[-ANSWER:].mean(0)
        loss = nn.functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        (loss + self.options.reg * (rate - TARGET_RATE).square().sum()).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        correct = (logits.argmax(-1) == labels).float().mean()
        return {"loss": loss.item(), "accuracy": correct.item(), "rate": rate.mean().item(),
                "norm": norm.item()}


def train(run: Run, digits: Digits) -> bool:
    """Trains to the end of the run (True) or to Ctrl-C or SIGTERM (False)."""
    stop: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: stop.append(number))
              for number in STOPS}
    unit = "it" if run.options.iterations else "s"
    total = run.options.iterations or round(60 * run.options.minutes)
    mean = (
        {name: run.history[-1][name] for name in ("loss", "accuracy", "rate")}
        if run.history
        else {}
    )
    saved = run.seconds
    if not run.history:
        run.save()
    try:
        form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} {unit}{postfix}"
        with tqdm(total=total, unit=unit, bar_format=form) as bar:
            while run.done() < 1 and not stop:
                start = time.perf_counter()
                chosen = torch.randint(len(digits.labels), (run.options.batch,),
                                       generator=run.order)
                values = run.step(digits.pixels[chosen], digits.labels[chosen])
                run.seconds += time.perf_counter() - start
                run.history.append({"iteration": len(run.history) + 1, "seconds": run.seconds,
                                    **values})
                mean = {name: 0.95 * mean.get(name, values[name]) + 0.05 * values[name]
                        for name in ("loss", "accuracy", "rate")}
                bar.set_postfix_str(f"iteration {len(run.history)}, loss {mean['loss']:.2f}, "
                                    f"accuracy {100 * mean['accuracy']:.0f} %, "
                                    f"{1000 * mean['rate']:.0f} Hz", refresh=False)
                bar.update(min(total, len(run.history) if run.options.iterations
                               else run.seconds) - bar.n)
                if run.seconds - saved >= CHECKPOINT_SECONDS:
                    run.save()
                    saved = run.seconds
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return not stop


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def resumed(options: argparse.Namespace) -> Run:
    """The run whose checkpoint lies in --out, with the options that it was begun with."""
    path = options.out / CHECKPOINT
    if not path.is_file():
        raise SystemExit(f"--resume: expected {CHECKPOINT} in the folder of --out, got "
                         f"{options.out} without it")
    try:
        kept = torch.load(path, weights_only=True)
        run = Run(argparse.Namespace(**(vars(options) | kept["options"])))
        run.restore(kept)
    except Exception as error:
        # whatever a file that was cut off, or is of another program, leads to
        raise SystemExit(f"{path}: expected a checkpoint of this program, got a file that cannot "
                         f"be read as one ({type(error).__name__}: {_first_line(error)}); "
                         f"--overwrite begins anew") from None
    return run


def begun(options: argparse.Namespace) -> Run:
    """A new run, if that does not write over an unfinished one."""
    path = options.out / CHECKPOINT
    if path.exists() and not options.overwrite:
        earlier = resumed(options)
        if earlier.done() < 1:
            raise SystemExit(
                f"{path}: expected no checkpoint, got that of a run which was stopped after "
                f"{len(earlier.history)} "
                "iterations; --resume goes on from it, --overwrite begins anew, --out takes "
                "another folder")
    return Run(options)


def keep_earlier(path: Path) -> None:
    """The checkpoint of an earlier run, where there is one, under another name."""
    if path.exists():
        number = 1
        while (kept := path.with_stem(f"{path.stem}_{number}")).exists():
            number += 1
        path.rename(kept)
        print(f"the checkpoint of an earlier run, which is finished, is kept as {kept}")


def writable(folder: Path) -> None:
    """Makes the folder and tries it, before hours of training that could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(f"--out: expected a folder that can be written to, got {folder}: "
                         f"{error.strerror}") from None


def main(given: list[str] | None = None) -> None:
    """Loads, trains, tests, draws, measures."""
    options = arguments(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    writable(options.out)
    run = resumed(options) if options.resume else begun(options)
    options = run.options
    training, test = load(options.data)
    if not options.resume and not options.overwrite:
        keep_earlier(run.path)
    print(lsnn_ext.show_config())
    print(run.model)
    finished = train(run, training)
    run.save()
    if not finished:
        print(f"stopped after {len(run.history)} iterations; to go on: python {__file__} --resume "
              f"--out {options.out}")
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
