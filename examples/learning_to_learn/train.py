"""Learning to learn, a task of the LSNN paper: a network whose weights stay as they are learns a
function from examples, in its activity alone.

Each task is a function that the network has not seen. Every 20 ms it is shown an input and the
answer to the input before, and has to answer; so it can be right only after it has seen some
examples. Both are shown by neurons with tuning curves. Training goes over tasks; the test counts
errors by the number of examples on new tasks, twice as long as those of the training. The same is
measured for a network without adaptation that is trained beside, for ridge regression and a small
network trained by backpropagation on the examples of each task, and for the best linear function
of all its examples.

    python examples/learning_to_learn/train.py            sines of random amplitude and phase,
                                                          90 s
    python examples/learning_to_learn/train.py --paper    random networks as teachers, 500 examples;
                                                          hours
    python examples/learning_to_learn/train.py --family teacher --examples 60 --test-examples 500 \
        --minutes 40                                      between the two

A checkpoint is kept in --out, every minute and after Ctrl-C; --resume goes on from it. A run that
is given --iterations comes to the same result, bit for bit with the same --threads, whenever it was
ended and resumed.
"""
import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common import pair, processes, training
from common.pair import Pair, run_task
from common.training import count, number
from learning_to_learn.baselines import backpropagation, best_linear, ridge
from learning_to_learn.plots import picture
from lsnn_ext import LSNN, LSNNState, functional

PER_VALUE, WIDTH, PEAK = 40, 0.05, 0.2  # neurons, width of a tuning curve, spikes per ms at its top
CENTRES = torch.linspace(-0.1, 1.1, PER_VALUE)
STEPS, ANSWER = 20, 10  # ms of an example, and at its end those whose mean is the answer
TARGET_RATE = 0.02
AFTER = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500)  # the errors up to these examples are printed
QUICK = {"family": "sinus", "examples": 50, "batch": 32, "lr": 3e-3, "clip": 1.0, "reg": 0.1,
         "minutes": 1.5}
PAPER = QUICK | {"family": "teacher", "examples": 500, "batch": 8, "minutes": 360.0}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "learner_out")
    task = parser.add_argument_group("tasks")
    task.add_argument("--family", choices=("sinus", "teacher"))
    task.add_argument("--examples", type=count, help="of a task, in training")
    task.add_argument("--scale", type=number, default=5.0,
                      help="of a teacher's weights; with 1, the paper's, its functions are all but "
                           "linear and constant")
    task.add_argument("--regular", type=count, default=180, help="neurons without adaptation")
    task.add_argument("--adaptive", type=count, default=120, help="neurons with it")
    task.add_argument("--test-tasks", type=count, default=256)
    task.add_argument("--test-examples", type=count,
                      help="of a task, in the test; twice those of the training, or as many as "
                           "these from 250 on, if left out")
    return pair.with_setting(parser.parse_args(given), QUICK, PAPER)


# --------------------------------------------------------------------------------------------- task
def sines(E: int, B: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Amplitude from 0.1 to 5, phase from 0 to pi, inputs from -5 to 5; brought to 0 to 1."""
    amplitude = 0.1 + 4.9 * torch.rand(B, generator=random)
    phase = math.pi * torch.rand(B, generator=random)
    x = 10 * torch.rand(E, B, generator=random) - 5
    return (x[..., None] + 5) / 10, (amplitude * torch.sin(x - phase) + 5) / 10


def teachers(E: int, B: int, random: torch.Generator, scale: float) -> tuple[Tensor, Tensor]:
    """Networks of 2 inputs from -1 to 1, 10 hidden sigmoids and a sigmoid."""
    def drawn(*shape: int) -> Tensor:
        return scale * (2 * torch.rand(B, *shape, generator=random) - 1)

    x = torch.rand(E, B, 2, generator=random)
    hidden = torch.sigmoid(torch.einsum("ebd,bdh->ebh", 2 * x - 1, drawn(2, 10)) + drawn(10))
    return x, torch.sigmoid((hidden * drawn(10)).sum(-1) + drawn())


def tasks(options: argparse.Namespace, E: int, B: int,
          random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (E, B, D) and answers (E, B) of B functions, all from 0 to 1."""
    if options.family == "sinus":
        return sines(E, B, random)
    return teachers(E, B, random, options.scale)


def spikes(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    """(E STEPS, B, (D + 1) PER_VALUE): each example, and the answer to the one before it."""
    before = torch.cat([torch.full_like(y[:1], 0.5), y[:-1]])
    values = torch.cat([x, before[..., None]], -1)
    rates = PEAK * torch.exp(-0.5 * ((values[..., None] - CENTRES) / WIDTH).square())
    return functional.poisson(rates.flatten(2), STEPS, generator=random).numbers()


def network(options: argparse.Namespace, adapts: bool) -> LSNN:
    """Neurons of which some adapt or none; time constants of the adaptation from 0.1 to 1 s."""
    torch.manual_seed(options.seed)
    adaptive = options.adaptive if adapts else 0
    N, inputs = options.regular + options.adaptive, 1 if options.family == "sinus" else 2
    net = LSNN((inputs + 1) * PER_VALUE, N - adaptive, adaptive, 1, tau_out=None,
               tau_adapt=100 + 900 * torch.rand(N),
               checkpoint_every="100 MB" if options.examples > 200 else None)
    with torch.no_grad():
        assert net.readout.bias is not None
        net.readout.bias.fill_(0.5)
    return net


# -------------------------------------------------------------------------------------------- a run
class Run(Pair):
    """Both networks on these tasks."""

    means = "loss", "rate"
    is_shared = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options, network)

    def answers(self, name: str, x: Tensor,
                state: LSNNState | None = None) -> tuple[Tensor, LSNNState, Tensor]:
        """Answers (E, B) to spikes, the state, and firing rates (B, N)."""
        out, state, rates = self.nets[name](x, state, return_rates=True)
        return out[..., 0].unflatten(0, (-1, STEPS))[:, -ANSWER:].mean(1), state, rates[0]

    def step(self) -> dict[str, float]:
        """One iteration of each network, on the same tasks and spikes."""
        options = self.options
        x, y = tasks(options, options.examples, options.batch, self.random)
        mine = processes.share(options.batch)
        shown, y = spikes(x, y, self.random)[:, mine], y[:, mine]

        def losses(name: str) -> tuple[Tensor, Tensor, dict[str, float]]:
            guess, _, rates = self.answers(name, shown)
            error, items = (guess - y).square(), y.shape[1]
            rate = processes.mean(rates.mean(0), items)
            late = processes.mean(error[len(error) // 2:].mean(), items)
            return (processes.mean(error.mean(), items),
                    options.reg * (rate - TARGET_RATE).square().mean(),
                    {"late": late.item(), "rate": rate.mean().item()})

        return self.learn(training.learning_rate(self.done(), options.lr), losses)


def test_length(options: argparse.Namespace) -> int:
    """Examples of a task in the test."""
    longer = 2 * options.examples if options.examples <= 250 else options.examples
    return int(options.test_examples or longer)


@torch.no_grad()
def test(run: Run) -> dict[str, Tensor]:
    """Squared error after each number of examples (E,), and that of the best linear function, a
    number; on tasks that were not seen before."""
    options, batch = run.options, 32
    random = torch.Generator().manual_seed(options.seed + 1_000_000)
    E = test_length(options)
    found: dict[str, list[Tensor]] = {}
    for _ in range(-(-options.test_tasks // batch)):
        x, y = tasks(options, E, batch, random)
        shown = spikes(x, y, random)
        errors = {name: (run.answers(name, shown)[0] - y).square() for name in run.nets}
        errors |= {"online ridge": ridge(x, y), "backpropagation": backpropagation(x, y, random),
                   "best linear": best_linear(x, y)}
        for name, error in errors.items():
            found.setdefault(name, []).append(error.mean(1) if error.dim() == 2 else error.mean())
    return {name: torch.stack(parts).mean(0) for name, parts in found.items()}


def table(curves: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean errors between the numbers of examples of AFTER."""
    rows = {}
    for name, curve in curves.items():
        if curve.dim():
            rows[name] = {f"{a + 1}-{b}": float(curve[a:b].mean())
                          for a, b in zip((0, *AFTER), AFTER, strict=False) if b <= len(curve)}
        else:
            rows[name] = {"all": float(curve)}
    return rows


def finish(run: Run, results: Path, drawing: Path) -> None:
    """Tests, writes the results, draws."""
    curves, options = test(run), run.options
    rows = table(curves)
    training.write_results(run, results, errors=rows,
                           curves={name: [float(f"{value:.4g}") for value in
                                          curve.reshape(-1).tolist()]
                                   for name, curve in curves.items()})
    random = torch.Generator().manual_seed(options.seed + 2_000_000)
    x, y = tasks(options, test_length(options), 3, random)
    with torch.no_grad():
        guess, _, _ = run.answers("LSNN", spikes(x, y, random))
    picture(curves, x, y, guess, options.examples, drawing)
    print("mean squared error, the range of answers being 1, by the number of the example")
    for name, row in rows.items():
        print(f"  {name:16s}" + ", ".join(f"{span}: {value:.4f}" for span, value in row.items()))


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    run_task(arguments(given), Run, __file__, finish)


if __name__ == "__main__":
    main()
