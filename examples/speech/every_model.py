"""Whether learning stays sane: every model learns the constants that it has, thresholds, decays and
strengths of adaptation, one of each per neuron, from spoken digits.

Trains a small network of each of the 22 models for some hundred iterations at each rate, without
clipping a gradient, and says whether all losses, gradients and constants were finite and in range,
how large the gradient became, and what was learned. A model is what its makers have: it starts from
their constants, and where they have no adaptation it has none. The first weights are scaled so that
neurons fire. The recordings are those of examples/speech/train.py.

    python examples/speech/every_model.py --data free-spoken-digit-dataset/recordings

Prints a table and writes it to --out.
"""
import argparse
import csv
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common.training import count, number
from lsnn_ext import ALIF, LeakyReadout
from lsnn_ext.models import MODELS, Rate, find_defaults
from lsnn_ext.modules.neuron import RANGES
from speech.data import CHANNELS, DIGITS, Data, load
from speech.train import logits

# in the order of the table; a model learns those of them that it has
LEARNED = ("threshold", "tau_mem", "alpha", "tau_adapt", "rho", "beta", "sigma", "q", "p")
RATE = 0.1  # of the first batch, that the first weights are scaled for, as near as 2 to the n gets
# what some makers have no number for; time constants in ms
GIVEN = {"tau_mem": 20.0, "tau_adapt": 200.0, "threshold": 1.0, "beta": 1.0, "sigma": 0.5,
         "q": 0.05, "p": 0.02}
OF_DECAY = {"alpha": "tau_mem", "rho": "tau_adapt"}
LAST = 50  # iterations whose mean is told, of the first and of the last ones


def constants(dynamics: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """What has to be given to a layer with this model, and what of it may learn: all that its
    makers' neuron has."""
    own = find_defaults(dynamics, "ALIF")
    needed = [OF_DECAY.get(name, name) for name, value in own.items() if isinstance(value, str)]
    given = {name: GIVEN[name] for name in needed}
    has = {name for name, value in own.items() if isinstance(value, float | Rate) and value != 0.0}
    return given, tuple(name for name in LEARNED if name in has or name in given)


class Network(nn.Module):
    """Neurons of a model, with its makers' constants where they have some, and a leaky readout.

    warned   whether the layer warned of exploding gradients when it was made
    """

    def __init__(self, dynamics: str, N: int, dt: float, learn: Any = None) -> None:
        super().__init__()
        given, learned = constants(dynamics)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.neurons = ALIF(CHANNELS, N, dynamics=dynamics, dt=dt, per_neuron=True,
                                learn=learned if learn is None else learn, **given)
        self.readout = LeakyReadout(N, DIGITS, dt=dt)
        self.warned = any("explode" in str(each.message) for each in caught)

    def forward(self, x: PackedSequence) -> tuple[PackedSequence, Tensor]:
        """The readout at each step, and the firing rates."""
        spikes, _, rates = self.neurons(x, return_rates=True)
        return self.readout(spikes)[0], rates


def scale(net: Network, x: PackedSequence) -> float:
    """Multiplies the input weights by a power of 2, so that neurons fire; the rate."""
    weight, rates = net.neurons.get_parameter("weight_ih_l0"), {}
    with torch.no_grad():
        first = weight.clone()
        for power in range(-8, 9):
            weight.copy_(first * 2.0**power)
            rates[power] = float(net(x)[1].mean())
        best = min(rates, key=lambda power: abs(math.log((rates[power] + 1e-6) / RATE)))
        weight.copy_(first * 2.0**best)
    return rates[best]


def outside(net: Network) -> list[str]:
    """Names of the constants that have left their range."""
    found = []
    for name in net.neurons.learn:
        value = getattr(net.neurons, f"{name}_l0").detach()
        low, high = (float(end) for end in value.aminmax())
        if not bool(value.isfinite().all()) or not RANGES[name].contains(low, high):
            found.append(name)
    return found


def run(dynamics: str, rate: float, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed)
    net = Network(dynamics, options.neurons, options.dt)
    items = torch.randperm(len(data.train), generator=random)[:options.batch]
    firing = scale(net, data.train.take(items)[0])
    optimizer = torch.optim.Adam(net.parameters(), rate)
    losses: list[float] = []
    shares: list[float] = []
    largest, ended = 0.0, ""
    for _ in range(options.iterations):
        items = torch.randint(len(data.train), (options.batch,), generator=random)
        x, digit = data.train.take(items)
        y, rates = net(x)
        named = logits(y)
        loss = nn.functional.cross_entropy(named, digit)
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.get_total_norm(p.grad for p in net.parameters()
                                             if p.grad is not None))
        losses.append(loss.item())
        shares.append((named.argmax(1) == digit).float().mean().item())
        largest, firing_now = max(largest, norm), float(rates.detach().mean())
        if not math.isfinite(losses[-1]) or not math.isfinite(norm):
            ended = f"loss {losses[-1]:.3g}, gradient {norm:.3g}"
            break
        optimizer.step()
        left = outside(net)
        if left:
            ended = f"out of range: {', '.join(left)}"
            break
    found = {"model": dynamics, "rate": rate, "iterations": len(losses), "ended": ended,
             "warned": "yes" if net.warned else "",
             "loss first": sum(losses[:LAST]) / len(losses[:LAST]),
             "loss last": sum(losses[-LAST:]) / len(losses[-LAST:]),
             "named last": sum(shares[-LAST:]) / len(shares[-LAST:]), "largest gradient": largest,
             "fires first": firing, "fires last": firing_now}
    for name in LEARNED:
        ends: tuple[Any, Any] = ("", "")
        if name in net.neurons.learn:
            ends = tuple(map(float, getattr(net.neurons, f"{name}_l0").detach().aminmax()))
        found |= {f"{name} low": ends[0], f"{name} high": ends[1]}
    return {key: f"{value:.4g}" if isinstance(value, float) else value
            for key, value in found.items()}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LSNN_DATA"),
                        help="folder or tar archive of the recordings; LSNN_DATA if left out")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--rates", nargs="+", type=number, default=(0.002, 0.01), help="of Adam")
    parser.add_argument("--iterations", type=count, default=500)
    parser.add_argument("--neurons", type=count, default=32)
    parser.add_argument("--batch", type=count, default=16)
    parser.add_argument("--dt", type=number, default=4.0,
                        help="ms of a step, and from one spectrum to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, help="of torch; all cores if left out")
    parser.add_argument("--out", type=Path, default=Path("speech_rows.csv"))
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Trains all, prints, writes; how many did not stay finite and in range."""
    options = arguments(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = load(options.data, options.dt)
    rows = []
    for dynamics in options.models:
        for rate in options.rates:
            rows.append(run(dynamics, rate, data, options))
            row = rows[-1]
            print(f"{row['model']:18} {row['rate']:<6} {row['ended'] or 'finite':8} loss "
                  f"{row['loss first']} to {row['loss last']}, {row['named last']} named, gradient "
                  f"up to {row['largest gradient']}, fires {row['fires first']} to "
                  f"{row['fires last']}{', warned' if row['warned'] else ''}", flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    bad = sum(bool(row["ended"]) for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} stayed finite and in range; {options.out}")
    return bad


if __name__ == "__main__":
    raise SystemExit(main() > 0)
