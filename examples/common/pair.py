"""What tasks share that show what adaptation is good for: an LSNN is trained, and beside it, on the
same inputs, a network of as many neurons without adaptation (LIF)."""
import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common import processes, training
from common.plots import write_curve
from common.training import Values, count, number
from lsnn_ext import LSNN


# ------------------------------------------------------------------------------------- command line
def task_options(parser: argparse.ArgumentParser, out: str) -> None:
    """--quick, --paper and those of all tasks."""
    training.setting_options(parser)
    training.length_options(parser)
    learning = parser.add_argument_group("training")
    learning.add_argument("--batch", type=count)
    learning.add_argument("--lr", type=number, help="highest learning rate of Adam")
    learning.add_argument("--clip", type=number, help="largest norm of the gradient")
    learning.add_argument("--reg", type=float, help="weight of the firing rates' distance from "
                                                    "their target")
    training.deepr_option(learning)
    learning.add_argument("--no-lif", action="store_true",
                          help="leave out the network without adaptation, trained beside")
    training.seed_options(learning)
    parser.add_argument("--out", type=Path, default=Path(out),
                        help="folder of picture, curve, results and checkpoint")


def with_setting(options: argparse.Namespace, quick: dict[str, Any],
                 paper: dict[str, Any]) -> argparse.Namespace:
    """Options with those of the setting in place of what was left out."""
    setting = dict(paper if options.paper else quick)
    if options.minutes or options.iterations:
        setting |= {"minutes": options.minutes, "iterations": options.iterations}
    for name, value in setting.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of its weights as they are."""
    return {key: value.clone() for key, value in net.state_dict().items()
            if isinstance(value, Tensor)}


# ------------------------------------------------------------------------------------------ the run
class Learners(training.Run):
    """A run of several networks, by their names, each with an optimizer of its own."""

    def __init__(self, options: argparse.Namespace, learners: Mapping[str, nn.Module]) -> None:
        self.learners = dict(learners)
        self.nets = {name: net for name, net in learners.items() if isinstance(net, LSNN)}
        self.optimizers = {name: self.optimizer(net, options)
                           for name, net in self.learners.items()}
        super().__init__(options, self.learners | {f"{name} optimizer": optimizer for name,
                                                   optimizer in self.optimizers.items()})
        self.carried: dict[str, Any] = {}

    def optimizer(self, net: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
        """Of one of the networks."""
        return training.adam(net, options)

    def step(self) -> Values:
        """An iteration, and its values; each task has its own."""
        raise NotImplementedError

    def rate_of(self, name: str, rate: float) -> float:
        """The learning rate of one network; rate: of all, where a task does not say more."""
        return rate

    def learn(self, rate: float, losses: Callable[[str], tuple[Tensor, Tensor, Values]],
              names: Collection[str] | None = None) -> Values:
        """A step of each optimizer, or of those of these networks: losses gives loss, penalty and
        further values of the network of that name, all of them means over all processes; values
        of others than the first one get their name, in small letters, as a prefix."""
        found: Values = {}
        for name in self.optimizers if names is None else names:
            optimizer = self.optimizers[name]
            training.set_rate(optimizer, self.rate_of(name, rate))
            optimizer.zero_grad()
            loss, penalty, values = losses(name)
            (loss + penalty).backward()
            processes.add_gradients(self.learners[name].parameters())
            norm = training.clipped(self.learners[name].parameters(), self.options.clip)
            optimizer.step()
            values = {"loss": loss.item(), **values, "norm": norm.item()}
            found |= {self.column(name, key): value for key, value in values.items()}
        return found

    def column(self, name: str, value: str) -> str:
        """What a value of a network is called in the history."""
        return value if name == next(iter(self.learners)) else f"{name.lower()}_{value}"


def beside(options: argparse.Namespace, make: Callable[[argparse.Namespace, bool], LSNN],
           others: Mapping[str, nn.Module] | None = None) -> dict[str, nn.Module]:
    """An LSNN, and what learns beside it: a network without adaptation unless --no-lif, and
    others. make gives a network with adaptive neurons or without, of the same seed."""
    found: dict[str, nn.Module] = {"LSNN": make(options, True)}
    if not options.no_lif:
        found["LIF"] = make(options, False)
    return {**found, **(others or {})}


class Pair(Learners):
    """A run of an LSNN and a network without adaptation."""

    def __init__(self, options: argparse.Namespace,
                 make: Callable[[argparse.Namespace, bool], LSNN]) -> None:
        super().__init__(options, beside(options, make))


Task = TypeVar("Task", bound=Learners)


def run_task(options: argparse.Namespace, make: Callable[[argparse.Namespace], Task], program: str,
             finish: Callable[[Task, Path, Path], None]) -> None:
    """Trains what make gives of the options, and at the end writes the curve, has
    finish(run, results, picture) test, write both files and print what came out, and says where
    all of them are. program: the task's file; they take the name of its folder."""
    run, _ = training.prepared(options, make)
    for name, net in run.learners.items():
        if name != "LIF":
            print(net)
    if not training.finished(run, training.train(run, run.step), program):
        return
    stem = Path(run.options.out) / Path(program).resolve().parent.name
    curve, results, picture = (stem.with_suffix(f".{kind}") for kind in ("csv", "json", "png"))
    write_curve(run.history, curve)
    finish(run, results, picture)
    print(f"{len(run.history)} iterations in {run.seconds:.0f} s (seed {run.options.seed})")
    for path in (curve, results, picture, run.path):
        print(f"  {path}")
