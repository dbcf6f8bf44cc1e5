"""STORE-RECALL, the task of the LSNN paper's code: remember a bit for two seconds.

Symbols of 200 ms arrive, each a bit, as spikes of 25 neurons. Now and then one comes together with
STORE, and its bit has to be named at the next RECALL. Trains an LSNN of 10 regular and 10 adaptive
neurons until its error of the last ten batches is small enough, and beside it, on the same batches,
20 neurons without adaptation, which cannot do it.

    python examples/store_recall/train.py            a minute: 2 ms a step, fresh states
    python examples/store_recall/train.py --paper    the paper's code: 1 ms a step, states
                                                     carried on

A checkpoint is kept in --out, every minute and after Ctrl-C; --resume goes on from it to the same
result, bit for bit with the same --threads.
"""
import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common import pair, processes, training
from common.pair import Pair, run_task
from common.training import count, mean_rate, number
from lsnn_ext import LSNN, LSNNState, functional
from store_recall.plots import picture

GROUP = 25  # neurons of each of the bits 0 and 1, STORE and RECALL
RATE, TARGET_RATE = 0.05, 0.01  # of the inputs and of the network, spikes per ms
SIGNAL = 1 / 7  # chance that a symbol is STORE, or after one RECALL
REGULAR = ADAPTIVE = 10
LAST = 10  # iterations whose mean error is to be small enough
QUICK = {"dt": 2.0, "batch": 128, "lr": 0.02, "decay": 0.3, "clip": 1.0, "reg": 0.01,
         "stop": 0.01, "iterations": 150, "carry": False}
PAPER = QUICK | {"dt": 1.0, "lr": 0.01, "clip": 1e9, "stop": 0.05, "iterations": 200,
                 "carry": True}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "recall_out")
    task = parser.add_argument_group("task and network")
    task.add_argument("--symbols", type=count, default=12, help="in a sequence")
    task.add_argument("--ms", type=count, default=200, help="of a symbol")
    task.add_argument("--dt", type=number, help="ms of a step")
    task.add_argument("--tau-adapt", type=number, default=1200.0,
                      help="time constant of adaptation, ms")
    task.add_argument("--carry", action="store_true", default=None,
                      help="start a batch from the states that the one before has left")
    task.add_argument("--decay", type=number,
                      help="of the learning rate, a factor every 100 iterations")
    task.add_argument("--stop", type=number,
                      help=f"the mean error of {LAST} iterations that is small enough")
    return pair.with_setting(parser.parse_args(given), QUICK, PAPER)


# --------------------------------------------------------------------------------------------- task
class Batch(NamedTuple):
    """Symbols of sequences, (S, B) each."""

    shown: Tensor  # the bit that is shown, at RECALL none
    store: Tensor
    recall: Tensor
    target: Tensor  # the bit of the last STORE


def symbols(S: int, B: int, random: torch.Generator) -> Batch:
    """Sequences with a STORE or more, each with its RECALL, and never one on the other."""
    parts: list[Tensor] = []
    missing = B
    while missing:
        signal = torch.rand(S, 2 * missing, generator=random) < SIGNAL
        store = signal & (signal.cumsum(0) % 2 == 1)
        whole = (signal.sum(0) % 2 == 0) & signal.any(0)
        apart = ~(store[:-1] & signal[1:]).any(0)
        good = signal[:, whole & apart][:, :missing]
        parts.append(good)
        missing -= good.shape[1]
    signal = torch.cat(parts, 1)
    store = signal & (signal.cumsum(0) % 2 == 1)
    shown = torch.randint(2, (S, B), generator=random)
    step = torch.arange(S)[:, None].expand(S, B)
    last = torch.where(store, step, 0).cummax(0).values
    return Batch(shown, store, signal & ~store, shown.gather(0, last))


def rates(batch: Batch) -> Tensor:
    """(S, B, 4 GROUP) spikes per ms of the neurons of 0, 1, STORE and RECALL."""
    bit = ~batch.recall
    on = torch.stack([bit & (batch.shown == 0), bit & (batch.shown == 1), batch.store,
                      batch.recall], -1)
    return RATE * on.float().repeat_interleave(GROUP, -1)


def spikes(batch: Batch, options: argparse.Namespace, random: torch.Generator) -> Tensor:
    """(T, B, 4 GROUP) of the symbols."""
    steps = round(options.ms / options.dt)
    return functional.poisson(rates(batch) * options.dt, steps, generator=random).numbers()


def network(options: argparse.Namespace, adapts: bool) -> LSNN:
    """20 neurons, of which half adapt or none; the same weights and delays with a seed."""
    torch.manual_seed(options.seed)
    N = REGULAR + ADAPTIVE
    adaptive = ADAPTIVE if adapts else 0
    return LSNN(4 * GROUP, N - adaptive, adaptive, 2, tau_adapt=options.tau_adapt, beta=1.7,
                refractory=round(3 / options.dt), dt=options.dt,
                delay=torch.randint(max(1, round(10 / options.dt)), (N, N)))


# -------------------------------------------------------------------------------------------- a run
class Run(Pair):
    """Both networks on this task."""

    means = "error", "rate"
    is_shared = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options, network)

    def is_over(self) -> bool:
        """Whether the last errors are small, or all iterations are done."""
        return super().is_over() or (len(self.history) >= LAST
                                     and self.error() < self.options.stop)

    def error(self) -> float:
        """Mean error of the last iterations."""
        last = self.history[-LAST:]
        return sum(row["error"] for row in last) / len(last)

    def bar(self, mean: dict[str, float]) -> str:
        """Error and rate."""
        return f"error {100 * mean['error']:.0f} %, {1000 * mean['rate']:.0f} Hz"

    def answers(self, name: str, x: Tensor,
                state: LSNNState | None) -> tuple[Tensor, LSNNState, Tensor]:
        """Readout (S, B, 2) averaged over each symbol, the state, and all spikes."""
        y, state, z = self.nets[name](x, state, return_spikes=True,
                                      readout_every=len(x) // self.options.symbols)
        return y, state, z

    def step(self) -> dict[str, float]:
        """One iteration of each network, on the same spikes."""
        options = self.options
        drawn = symbols(options.symbols, options.batch, self.random)
        mine = processes.share(options.batch)
        x = spikes(drawn, options, self.random)[:, mine]
        batch = Batch(*(values[:, mine] for values in drawn))
        wanted = batch.target[batch.recall]

        def losses(name: str) -> tuple[Tensor, Tensor, dict[str, float]]:
            y, state, z = self.answers(name, x, processes.share_of(self.carried.get(name)))
            if options.carry:
                self.carried[name] = processes.whole(state.detach(), options.batch)
            logits, rate = y[batch.recall], mean_rate(z) / options.dt
            error = processes.mean((logits.argmax(-1) != wanted).float().mean(), len(wanted))
            return (processes.mean(nn.functional.cross_entropy(logits, wanted), len(wanted)),
                    options.reg * (rate - TARGET_RATE).square().sum(),
                    {"error": error.item(), "rate": rate.mean().item()})

        return self.learn(options.lr * options.decay ** (len(self.history) // 100), losses)


@torch.no_grad()
def test(run: Run, batches: int = 5) -> dict[str, float]:
    """The share of RECALLs that each network answers wrongly, in batches it has not seen."""
    random = torch.Generator().manual_seed(run.options.seed + 1_000_000)
    wrong = dict.fromkeys(run.nets, 0)
    asked = 0
    for _ in range(batches):
        batch = symbols(run.options.symbols, run.options.batch, random)
        x = spikes(batch, run.options, random)
        for name in run.nets:
            y, _, _ = run.answers(name, x, run.carried.get(name))
            wrong[name] += int((y.argmax(-1) != batch.target)[batch.recall].sum())
        asked += int(batch.recall.sum())
    return {name: errors / asked for name, errors in wrong.items()}


def finish(run: Run, results: Path, drawing: Path) -> None:
    """Tests, writes the results, draws."""
    errors, options = test(run), run.options
    training.write_results(run, results, error=errors)
    random = torch.Generator().manual_seed(options.seed + 2_000_000)
    batch = symbols(options.symbols, options.batch, random)
    state = run.carried.get("LSNN")
    picture(run.nets["LSNN"], spikes(batch, options, random), batch, state, run.history, errors,
            options.dt, drawing)
    print("errors at RECALL in batches not seen before: "
          + ", ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items()))


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    run_task(arguments(given), Run, __file__, finish)


if __name__ == "__main__":
    main()
