"""What tasks share that go over recordings in epochs: the order in which they come, and the weights
that did best on recordings which are kept back."""
import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common import processes
from common.pair import Learners, weights_of
from common.training import Values, count


def epoch_option(group: Any) -> None:
    """--epochs."""
    group.add_argument("--epochs", type=count, help="the length, where neither --minutes nor "
                                                    "--iterations is given")


def every_option(group: Any) -> None:
    """--every."""
    group.add_argument("--every", type=count, default=5,
                       help="epochs from one look at the recordings kept back to the next")


class Epochs(Learners):
    """A run over so many recordings, in an order that is new in each epoch and that carried
    holds."""

    is_shared = True

    def __init__(self, options: argparse.Namespace, learners: Mapping[str, nn.Module],
                 recordings: int) -> None:
        super().__init__(options, learners)
        self.recordings = recordings
        self.batches = -(-recordings // options.batch)
        processes.share(recordings - (self.batches - 1) * options.batch)  # the last batch is small
        if not options.iterations and not options.minutes:
            options.iterations = options.epochs * self.batches

    def begin_epoch(self, epoch: int) -> None:
        """What is done before an epoch, whose order is drawn."""

    def draw(self) -> Tensor:
        """The numbers of the recordings of this iteration that are this process's."""
        epoch, position = divmod(len(self.history), self.batches)
        if not position:
            self.carried["order"] = torch.randperm(self.recordings, generator=self.random)
            self.begin_epoch(epoch)
        size = self.options.batch
        items: Tensor = self.carried["order"][position * size:][:size]
        return items[processes.share(len(items))]


class BestEpoch(Epochs):
    """A run whose networks are tested as they were when they did best on recordings that are kept
    back; carried holds these weights. Where nothing is kept back, as they are at the end."""

    is_chosen = True  # whether something is kept back, which chooses the epoch

    def kept_back(self, net: nn.Module) -> float:
        """The share of what is kept back that a network gets right; each task has its own."""
        raise NotImplementedError

    def candidate(self, name: str) -> nn.Module:
        """The network whose weights of now are looked at, and tested if they are the best."""
        return self.learners[name]

    def begin_epoch(self, epoch: int) -> None:
        """Where it is time to, notes the share of what is kept back that each network gets right,
        and the weights of those that never got more."""
        if self.is_chosen and epoch % self.options.every == 0:
            self._note(epoch, processes.on_first(self._shares))

    def looked(self, name: str) -> Values:
        """What an iteration notes of a network: the share that it got right at the last look."""
        return {"valid": self.carried["valid"][name]} if self.is_chosen else {}

    def _shares(self) -> dict[str, float]:
        return {name: self.kept_back(self.candidate(name)) for name in self.learners}

    def _note(self, epoch: int, shares: dict[str, float]) -> None:
        self.carried["valid"] = shares
        best = self.carried.setdefault("best", {})
        for name in self.learners:
            if name not in best or shares[name] > best[name]["valid"]:
                best[name] = {"valid": shares[name], "epoch": epoch,
                              "weights": weights_of(self.candidate(name))}

    def take_best(self) -> dict[str, dict[str, Any]]:
        """Looks a last time, gives each network its best weights, which the checkpoint has too, and
        says the share and the epoch of each; where nothing is kept back, gives it those of now and
        says nothing. After the training, on the first process alone."""
        if not self.is_chosen:
            for name, net in self.learners.items():
                net.load_state_dict(self.candidate(name).state_dict(), strict=False)
            return {name: {} for name in self.learners}
        self._note(len(self.history) // self.batches, self._shares())
        self.write()
        found = {}
        for name, net in self.learners.items():
            best = self.carried["best"][name]
            net.load_state_dict(best["weights"], strict=False)
            found[name] = {"valid": best["valid"], "epoch": best["epoch"]}
        return found
