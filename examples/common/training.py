"""What the tasks share: the options of a run, one training loop with a progress bar, checkpoints
that no moment is without, a learning rate that follows a half cosine, and a clip."""
import argparse
import json
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import processes
from lsnn_ext import LSNN, init
from lsnn_ext.optim import DeepR, parameter_groups

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0  # of training
STOPS = (signal.SIGINT, signal.SIGTERM)
# options of one call, not of the run
HERE = ("out", "data", "resume", "longer", "overwrite", "threads", "no_speed")
Values = dict[str, float]


# ------------------------------------------------------------------------------------- command line
def above_0(kind: Callable[[str], float]) -> Callable[[str], float]:
    """For argparse: numbers of this kind, int or float, above 0."""
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


count, number = above_0(int), above_0(float)


def setting_options(parser: argparse.ArgumentParser) -> None:
    """--quick and --paper, which say what stands for options that are left out."""
    setting = parser.add_mutually_exclusive_group()
    setting.add_argument("--quick", dest="paper", action="store_false",
                         help="a setting for a look, in minutes (the default)")
    setting.add_argument("--paper", action="store_true", help="the paper's setting")
    parser.set_defaults(paper=False)  # the default of the first of the two would be True


def length_options(parser: argparse.ArgumentParser,
                   minutes: float | None = None) -> argparse._ArgumentGroup:
    """--minutes, --iterations, --resume, --longer and --overwrite."""
    length = parser.add_argument_group("length of the run")
    length.add_argument("--minutes", type=number, default=minutes,
                        help="training time; the schedule is tied to it")
    length.add_argument("--iterations", type=count, help="train this many iterations instead")
    earlier = length.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true",
                         help="go on from the checkpoint in --out, with its options")
    length.add_argument("--longer", type=count, metavar="N",
                        help="with --resume: go on to this many iterations, more than the run was "
                             "begun for; from here on its learning rate is that of the longer run")
    earlier.add_argument("--overwrite", action="store_true",
                         help="write over the checkpoint that is in --out")
    return length


def seed_options(group: Any) -> None:
    """--seed and --threads."""
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--threads", type=count, help="of torch; all cores if left out")


def deepr_option(group: Any) -> None:
    """--deepr."""
    group.add_argument("--deepr", type=number, metavar="SHARE",
                       help="rewire, with this share of all synapses and Dale's law (the paper: "
                            "0.12)")


# ------------------------------------------------------------------------------------------ the run
class Run:
    """What a checkpoint holds: options, parts with a state_dict, random numbers, progress.

    A task's own class makes the parts, networks and optimizers; `carried` is what an iteration
    leaves to the next beside them, tensors or named tuples of tensors. All draws come from
    `random`, so that a run that was ended at any moment and resumed is the same run.
    """

    means: tuple[str, ...] = ("loss",)  # the values that the progress bar shows, smoothed
    is_shared = False  # whether an iteration takes only this process's share of the batch

    def __init__(self, options: argparse.Namespace, parts: dict[str, Any]) -> None:
        self.options, self.parts = options, parts
        if processes.count() > 1 and not self.is_shared:
            raise SystemExit("torchrun: expected a task that shares out its batches, got one that "
                             "runs in one process")
        processes.share(options.batch)  # refused before anything is written over
        self.random = torch.Generator().manual_seed(options.seed)
        self.history: list[Values] = []
        self.seconds = 0.0
        self.carried: Any = None

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return Path(self.options.out) / CHECKPOINT

    def save(self) -> None:
        """Writes the checkpoint; of several processes the first does, and all have to call this."""
        processes.on_first(self.write)

    def write(self) -> None:
        """Writes the checkpoint beside the old one first, so that no moment is without a whole
        one."""
        options = {name: value for name, value in vars(self.options).items() if name not in HERE}
        kept: dict[str, Any] = {
            "options": options, "history": self.history, "seconds": self.seconds,
            "random": self.random.get_state(), "carried": self.carried,
            **{name: part.state_dict() for name, part in self.parts.items()}}
        fresh = self.path.with_suffix(".new")
        try:
            torch.save(kept, fresh)
            fresh.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch has an error of its own for a full disk
            raise SystemExit(
                f"{fresh}: the checkpoint could not be written: {_first_line(error)}") from None

    def restore(self, kept: dict[str, Any]) -> None:
        """Takes over what save() wrote."""
        for name, part in self.parts.items():
            part.load_state_dict(kept[name])
        self.history, self.seconds, self.carried = (
            kept["history"], kept["seconds"], kept["carried"])
        self.random.set_state(kept["random"])

    def done(self) -> float:
        """The elapsed fraction of the run, by iterations if they are given, else by time."""
        if self.options.iterations:
            return len(self.history) / int(self.options.iterations)
        return self.seconds / (60 * float(self.options.minutes))

    def is_over(self) -> bool:
        """Whether it has come to its end; of what a checkpoint holds alone."""
        return self.done() >= 1

    def bar(self, mean: Values) -> str:
        """The text beside the progress bar, of the smoothed values."""
        return ", ".join(f"{name} {mean[name]:.4g}" for name in self.means)


def learning_rate(done: float, highest: float, falls: bool = True) -> float:
    """A short rise, then a half cosine to nearly 0, or the highest on; done is the elapsed fraction
    of the run."""
    rate = highest * min(1.0, done / 0.03 + 0.1)
    if falls:
        rate *= 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))
    return rate


def adam(net: nn.Module, options: argparse.Namespace,
         weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Adam, or AdamW if matrices shall decay, or for an LSNN with --deepr DEEP R around Adam, which
    draws the network's weights anew. Each iteration sets the learning rate."""
    if not options.deepr or not isinstance(net, LSNN):
        if not weight_decay:
            return torch.optim.Adam(net.parameters())
        return torch.optim.AdamW(parameter_groups(net, weight_decay=weight_decay))
    generator = torch.Generator().manual_seed(options.seed)
    signs = init.dale(net, options.deepr, generator=generator)
    return DeepR.of(net, torch.optim.Adam, options.deepr, signs=signs, generator=generator)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives all groups of an optimizer a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clipped(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients down to a norm; what it was before.

    A norm that is not finite ends the program before an optimizer makes all weights of it: the
    checkpoint is that of an earlier iteration.
    """
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    if not bool(norm.isfinite()):
        raise SystemExit(f"gradient: expected a finite norm, got {norm.item()}; a strong "
                         "adaptation of short time constants lets gradients explode (tau_adapt "
                         "below 50 steps with beta 1.8): take longer ones, or a lower dampening")
    return norm


def mean_rate(spikes: Tensor) -> Tensor:
    """(N,) spikes per step of (T, B, N), over all processes; written as a sum, so that its gradient
    is a view, not another tensor as large as the spikes."""
    return processes.mean(spikes.sum((0, 1)) / spikes[..., 0].numel(), spikes.shape[1])


def train(run: Run, iterate: Callable[[], Values], every: float | None = None) -> bool:
    """Trains to the end of the run (True) or to Ctrl-C or SIGTERM (False); iterate makes an
    iteration and returns its values, a checkpoint is written after so many seconds of training,
    CHECKPOINT_SECONDS if none are given."""
    every = CHECKPOINT_SECONDS if every is None else every
    stop: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: stop.append(number))
              for number in STOPS}
    unit = "it" if run.options.iterations else "s"
    total = run.options.iterations or round(60 * run.options.minutes)
    is_quiet = not processes.is_first()
    mean = {name: run.history[-1][name] for name in run.means} if run.history else {}
    saved = run.seconds
    if not run.history:
        run.save()
    try:
        form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} {unit}{postfix}"
        with tqdm(total=total, unit=unit, bar_format=form, disable=is_quiet) as bar:
            while not (is_stopped := processes.any_of(bool(stop))) and not run.is_over():
                start = time.perf_counter()
                values = iterate()
                run.seconds += time.perf_counter() - start
                values = processes.from_first({"iteration": len(run.history) + 1,
                                               "seconds": run.seconds, **values})
                run.seconds = values["seconds"]
                run.history.append(values)
                mean = {name: 0.95 * mean.get(name, values[name]) + 0.05 * values[name]
                        for name in run.means}
                bar.set_postfix_str(f"iteration {len(run.history)}, {run.bar(mean)}", refresh=False)
                bar.update(min(total, len(run.history) if run.options.iterations
                               else run.seconds) - bar.n)
                if run.seconds - saved >= every:
                    run.save()
                    saved = run.seconds
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return not is_stopped


# ------------------------------------------------------------------------------------ begin and end
Kind = TypeVar("Kind", bound=Run)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def resumed(options: argparse.Namespace, kind: Callable[[argparse.Namespace], Kind]) -> Kind:
    """The run whose checkpoint lies in --out, with the options that it was begun with."""
    path = options.out / CHECKPOINT

    def read() -> Any:
        if not path.is_file():
            raise SystemExit(f"--resume: expected {CHECKPOINT} in the folder of --out, got "
                             f"{options.out} without it")
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:
            raise unreadable(error) from None

    def unreadable(error: Exception) -> SystemExit:
        # whatever a file that was cut off, or is of another program, leads to
        return SystemExit(f"{path}: expected a checkpoint of this program, got a file that cannot "
                          f"be read as one ({type(error).__name__}: {_first_line(error)}); "
                          f"--overwrite begins anew")

    kept = processes.on_first(read)
    if options.longer:
        begun_for = kept["options"].get("iterations") or len(kept["history"])
        if begun_for >= options.longer:
            raise SystemExit("--longer: expected more iterations than the run was begun for, got "
                             f"{options.longer} of a run for {begun_for}")
        kept["options"]["iterations"] = options.longer
    try:
        run = kind(argparse.Namespace(**(vars(options) | kept["options"])))
        run.restore(kept)
    except Exception as error:
        raise unreadable(error) from None
    return run


def begun(options: argparse.Namespace, kind: Callable[[argparse.Namespace], Kind]) -> Kind:
    """A new run, if that does not write over an unfinished one."""
    path = options.out / CHECKPOINT
    if not options.overwrite and processes.on_first(path.exists):
        earlier = resumed(options, kind)
        if not earlier.is_over():
            raise SystemExit(
                f"{path}: expected no checkpoint, got that of a run which was stopped after "
                f"{len(earlier.history)} "
                "iterations; --resume goes on from it, --overwrite begins anew, --out takes "
                "another folder")
    return kind(options)


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


def prepared(options: argparse.Namespace, kind: Callable[[argparse.Namespace], Kind],
             load: Callable[[], Any] = lambda: None) -> tuple[Kind, Any]:
    """The run to train, new or resumed, and what load gives; says what is wrong before anything is
    written over or moved. Of several processes the first alone writes."""
    processes.join()
    if options.threads:
        torch.set_num_threads(options.threads)
    processes.on_first(lambda: writable(options.out))
    if options.longer and not options.resume:
        raise SystemExit("--longer: expected --resume beside it, got a new run")
    run = resumed(options, kind) if options.resume else begun(options, kind)
    data = processes.after_first(load)
    if not options.resume and not options.overwrite:
        processes.on_first(lambda: keep_earlier(run.path))
    return run, data


def finished(run: Run, is_finished: bool, program: str) -> bool:
    """Saves after the training; says how to go on where it was stopped. Whether this process is to
    test and draw: of several the first alone."""
    run.save()
    if not is_finished:
        print(f"stopped after {len(run.history)} iterations; to go on: python {program} --resume "
              f"--out {run.options.out}")
    return is_finished and processes.is_first()


def write_results(run: Run, path: Path, **values: Any) -> None:
    """What came out, with the options of the run, as JSON."""
    options = {name: value for name, value in vars(run.options).items() if name not in HERE}
    path.write_text(json.dumps({**values, "iterations": len(run.history),
                                "seconds": round(run.seconds, 1), "options": options},
                               indent=1) + "\n")
