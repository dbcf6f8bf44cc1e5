"""Sequential MNIST with an LSNN, the task of Bellec et al. 2018: a digit arrives pixel by pixel, as spikes.

Trains for a fixed time (--minutes) and then reports the accuracy on all 10,000 test digits.  Ctrl-C saves a checkpoint
after the running iteration; --resume goes on from it.  The paper's result, 94.2 % on average, took 36,000 iterations
of batch 256 with rewiring: for such hours-long runs give --iterations and --batch, checkpoints are kept on the way.
"""
import argparse
import math
import signal
import time
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
TARGET_RATE = 0.01  # spikes per step: 10 Hz
CHECKPOINT_SECONDS = 300.0
HERE = ("out", "data", "resume", "threads", "no_speed")  # options of one call, not of the run


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    length = parser.add_argument_group("length of the run")
    length.add_argument("--minutes", type=float, default=6.5, help="training time; the schedule is tied to it")
    length.add_argument("--iterations", type=int, help="train this many iterations instead")
    length.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with its options")
    network = parser.add_argument_group("network")
    network.add_argument("--regular", type=int, default=120, help="neurons without adaptation")
    network.add_argument("--adaptive", type=int, default=100, help="neurons with adaptation")
    network.add_argument("--lif", action="store_true", help="make all neurons regular: what does memory need?")
    network.add_argument("--tau-adapt", type=float, default=700.0, help="time constant of adaptation, ms")
    network.add_argument("--delay", type=int, default=28, metavar="STEPS",
                         help="from a spike to its effect in the layer; 28 is one row of the picture")
    network.add_argument("--spread", action="store_true",
                         help="draw the delay of each synapse from 1 to --delay (the paper: --spread --delay 10)")
    network.add_argument("--learn", nargs="*", default=[], help="tau_mem, tau_adapt, beta, threshold: learn them too")
    network.add_argument("--analog", action="store_true", help="grey values into one input instead of spikes")
    training = parser.add_argument_group("training")
    training.add_argument("--batch", type=int, default=64)
    training.add_argument("--lr", type=float, default=0.002, help="highest learning rate of Adam")
    training.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    training.add_argument("--reg", type=float, default=0.1, help="weight of the firing rate's distance from 10 Hz")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--threads", type=int, help="of torch; all cores if left out")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of pictures, curve and checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder the data is kept in")
    parser.add_argument("--no-speed", action="store_true", help="leave out the comparison of speed at the end")
    return parser.parse_args()


def build(options: argparse.Namespace) -> LSNN:
    """The network of the options: dense weights, drawn with the seed."""
    torch.manual_seed(options.seed)
    N = options.regular + options.adaptive
    delay = torch.randint(options.delay, (N, N)) if options.spread else options.delay - 1  # beyond the usual one step
    regular, adaptive = (N, 0) if options.lif else (options.regular, options.adaptive)
    return LSNN(1 if options.analog else CHANNELS, regular, adaptive, 10, tau_adapt=options.tau_adapt, delay=delay,
                learn=options.learn)


def learning_rate(done: float, highest: float) -> float:
    """A short rise, then a half cosine to nearly 0; done is the elapsed fraction of the run."""
    return highest * min(1.0, done / 0.03 + 0.1) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))


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
        return Path(self.options.out) / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint beside the old one first, so that no moment is without a whole one."""
        options = {name: value for name, value in vars(self.options).items() if name not in HERE}
        kept: dict[str, Any] = {
            "options": options, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "history": self.history, "seconds": self.seconds, "order": self.order.get_state()}
        torch.save(kept, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)

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
        """One iteration: cross entropy plus reg * sum over neurons of (mean rate - 10 Hz)^2 in the paper's units."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done(), self.options.lr)
        readout, _, spikes = self.model(self.encode(pixels), return_spikes=True)
        # The mean, written as a sum: its gradient is then a view, not another tensor as large as the spikes.
        rate = spikes.sum((0, 1)) / spikes[..., 0].numel()
        logits = readout[-ANSWER:].mean(0)
        loss = nn.functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        (loss + self.options.reg * (rate - TARGET_RATE).square().sum()).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        correct = (logits.argmax(-1) == labels).float().mean()
        return {"loss": loss.item(), "accuracy": correct.item(), "rate": rate.mean().item(), "norm": norm.item()}


def train(run: Run, digits: Digits) -> bool:
    """Trains to the end of the run (True) or to Ctrl-C (False)."""
    stop: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.append(number))
    unit = "it" if run.options.iterations else "s"
    total = run.options.iterations or round(60 * run.options.minutes)
    mean = {name: run.history[-1][name] for name in ("loss", "accuracy", "rate")} if run.history else {}
    saved = run.seconds
    try:
        form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} {unit}{postfix}"
        with tqdm(total=total, unit=unit, bar_format=form) as bar:
            while run.done() < 1 and not stop:
                start = time.perf_counter()
                chosen = torch.randint(len(digits.labels), (run.options.batch,), generator=run.order)
                values = run.step(digits.pixels[chosen], digits.labels[chosen])
                run.seconds += time.perf_counter() - start
                run.history.append({"iteration": len(run.history) + 1, "seconds": run.seconds, **values})
                mean = {name: 0.95 * mean.get(name, values[name]) + 0.05 * values[name]
                        for name in ("loss", "accuracy", "rate")}
                bar.set_postfix_str(f"iteration {len(run.history)}, loss {mean['loss']:.2f}, accuracy "
                                    f"{100 * mean['accuracy']:.0f} %, {1000 * mean['rate']:.0f} Hz", refresh=False)
                bar.update(min(total, len(run.history) if run.options.iterations else run.seconds) - bar.n)
                if run.seconds - saved > CHECKPOINT_SECONDS:
                    run.save()
                    saved = run.seconds
    finally:
        signal.signal(signal.SIGINT, before)
    return not stop


def evaluate(run: Run, digits: Digits, batch: int = 250) -> float:
    """The share of the digits that are recognised."""
    correct = 0
    with torch.no_grad():
        parts = zip(torch.split(digits.pixels, batch), torch.split(digits.labels, batch), strict=True)
        for pixels, labels in tqdm(parts, "test", math.ceil(len(digits.labels) / batch), leave=False, unit="batch"):
            readout, _ = run.model(run.encode(pixels))
            correct += int((readout[-ANSWER:].mean(0).argmax(-1) == labels).sum())
    return correct / len(digits.labels)


def main() -> None:
    """Loads, trains, tests, draws, measures."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    kept: dict[str, Any] = {}
    if options.resume:
        path = options.out / "checkpoint.pt"
        if not path.is_file():
            raise SystemExit(f"--resume: expected checkpoint.pt in the folder of --out, got {options.out} without it")
        kept = torch.load(path, weights_only=True)
        options = argparse.Namespace(**(vars(options) | kept["options"]))
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    if kept:
        run.restore(kept)
    training, test = load(options.data)
    print(lsnn_ext.show_config())
    print(run.model)
    finished = train(run, training)
    run.save()
    if not finished:
        print(f"stopped after {len(run.history)} iterations; to go on: python {__file__} --resume --out {options.out}")
        return
    accuracy = evaluate(run, test)
    curve = options.out / "smnist_curve.csv"
    pictures = options.out / "smnist_digit.png", options.out / "smnist_curve.png"
    write_curve(run.history, curve)
    digit_picture(run.model, run.encode(test.pixels[:1]), test.pixels[0].view(28, 28), int(test.labels[0]), pictures[0])
    curve_picture(run.history, accuracy, pictures[1])
    if not options.no_speed:
        print(report(measure()))
    print(f"accuracy on the 10,000 test digits: {100 * accuracy:.2f} % after {len(run.history)} iterations in "
          f"{run.seconds / 60:.1f} minutes (seed {options.seed})")
    for path in (*pictures, curve, run.path):
        print(f"  {path}")


if __name__ == "__main__":
    main()
