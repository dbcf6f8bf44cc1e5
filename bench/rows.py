"""One recurrent layer with the neuron of every model, at the same firing rate: what a model costs
beside `lsnn`.

    python -m bench.rows                                    all models on P and M
    python -m bench.rows --rows srnn,adlif --yardsticks P --repeats 21

functional.layer alone, forward and forward + backward, in turn in one run. The gradients of both
weights are always computed; "learned" adds those of the neuron's own coefficients, one per neuron.
Times are medians and, in brackets, minima in ms; "x" is the median by that of `lsnn` in the same
table. Fixed and learned coefficients, if both are asked for, take part in the same turns, and what
learning costs is printed last. Behind the times, of one more pass in which the kernels count: the
share of neuron-steps whose surrogate is not zero, and the time of the backward product. That
product leaves out what is zero, so a model costs the more the larger the share is. A surrogate
without an end leaves nothing out: no less than `lsnn` without its product and the dense product, at
the rate of a large torch.mm in the same run, is to be done, and "x" of that least time is printed
too.
"""
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import roofline
from bench.arguments import at_least_one, make_parser, names_among, positive
from bench.contestants import Differentiated
from bench.measure import alternate
from bench.problem import ALPHA, BETA, RHO, THETA, YARDSTICKS, Problem
from bench.rates import LONG_ENOUGH, bisect_scale, firing_rate
from lsnn_ext import _ops, functional
from lsnn_ext.models import MODELS
from lsnn_ext.tools.passes import counting

FIRST = "lsnn"  # what the others are compared with
WITH_AN_END = ("triangle", "boxcar")
RATE = 3.0  # percent
STRENGTH = 0.2  # of recurrent weights, by those of the problem


@dataclass(frozen=True)
class Settings:
    """Arguments of a layer: the values of the model's makers, as far as the firing rate allows."""

    theta: float = 1.0
    learned: dict[str, float] = field(default_factory=dict)  # beside alpha and theta
    fixed: dict[str, float] = field(default_factory=dict)


_CUSTOM = Settings(0.615, {"rho": RHO, "beta": 0.16})
_ADLIF = Settings(1.0, {"rho": 0.98, "p": 0.1, "q": 1.0})
_BY_PREFIX = {
    "lsnn": Settings(THETA, {"rho": RHO, "beta": BETA}),
    "eprop_elig": _CUSTOM, "eprop_timit": _CUSTOM,
    "eprop": Settings(0.03, {"rho": RHO, "beta": 1.6}),
    "srnn": Settings(0.01, {"rho": RHO, "beta": 1.8}),
    "norse_lsnn": Settings(1.0, {"rho": RHO, "beta": 1.8}, {"sigma": 0.8, "delay": 1}),
    "norse_lif": Settings(fixed={"sigma": 0.8}),
    "sinabs": Settings(1.0, {"rho": RHO, "beta": 1.8}),
    "adlif": _ADLIF, "se_adlif": _ADLIF,
}


def find_settings(row: str) -> Settings:
    """Those of a model; by default those of a LIF neuron with threshold 1."""
    return next((settings for prefix, settings in _BY_PREFIX.items() if row.startswith(prefix)),
                Settings())


class Row(Differentiated):
    """A layer of one model with the weights of the problem.

    Recurrent weights are so scaled that a spike lifts a membrane by the same share of the threshold
    in all models, and weak enough that the inputs and not the recurrence set the rate.
    """

    def __init__(self, row: str, problem: Problem, learned: bool, scale: float = 1.0) -> None:
        self.name, self.x, self.cotangent = row, problem.x, problem.cotangent
        settings = find_settings(row)
        kappa = 1.0 if MODELS[row].kappa == "1" else 1 - ALPHA
        unit = settings.theta / THETA * (1 - ALPHA) / kappa
        self.w_in = (scale * unit * problem.w_in).requires_grad_()
        self.w_rec = (STRENGTH * unit * problem.w_rec).requires_grad_()
        values = {"alpha": ALPHA, "theta": settings.theta, **settings.learned}
        self.coefficients: dict[str, Any] = values
        self.learned = " ".join(values) if learned else ""
        if learned:
            self.coefficients = {name: torch.full((len(self.w_rec),), value).requires_grad_()
                                 for name, value in values.items()}
        self.fixed: dict[str, Any] = settings.fixed
        self.leaves = [self.w_in, self.w_rec, *(self.coefficients.values() if learned else ())]

    def spikes(self) -> Tensor:
        spikes = functional.layer(self.x, self.w_in, self.w_rec, dynamics=self.name,
                                  **self.coefficients, **self.fixed).spikes
        assert spikes is not None
        return spikes


@dataclass(frozen=True)
class Line:
    """One model on one yardstick."""

    row: str
    rate: float  # percent
    learned: str  # names; empty where the coefficients are fixed
    forward: float  # ms, medians
    both: float
    least_forward: float  # ms, minima
    least_both: float
    active: float  # percent of neuron-steps whose surrogate is not zero
    product: float  # ms of the backward product


def _product(layer: Row) -> tuple[float, float]:
    """Percent of active neuron-steps, and ms of the backward product, in one pass."""
    with counting():
        layer.forward_backward()
        counted = _ops._C.counters()
    product = sum(counted[f"ns_product_{kind}"] for kind in ("dense", "active", "sparse"))
    active = 100 * counted["active"] / max(1, counted["replayed"])
    return active, product * 1e-6 / torch.get_num_threads()


def compare(rows: Sequence[str], problem: Problem, repeats: int, rate: float = RATE,
            ways: Sequence[bool] = (False,)) -> list[Line]:
    """The models in turn, each at this firing rate (percent); ways: whether coefficients are
    learned, both in the same turns if both are asked for."""
    short = problem.first(LONG_ENOUGH)
    layers, rates = [], []
    for row in rows:
        scale, got = bisect_scale(
            lambda scale, row=row: firing_rate(Row(row, short, False, scale).forward()),  # type: ignore[misc]
            rate / 100)
        layers += [Row(row, problem, learned, scale) for learned in ways]
        rates += [100 * got] * len(ways)
    times = alternate(list(layers), repeats)
    return [Line(layer.name, got, layer.learned, statistics.median(forward),
                 statistics.median(both), min(forward), min(both), *_product(layer))
            for layer, got, (forward, both) in zip(layers, rates, times, strict=True)]


def price(lines: Sequence[Line]) -> str:
    """What learning costs: forward and backward of learned by fixed coefficients, of each model."""
    fixed = {line.row: line for line in lines if not line.learned}
    return ", ".join(f"{line.row} {line.both / fixed[line.row].both:.2f}" for line in lines
                     if line.learned)


def table(lines: Sequence[Line], dense_ms: float) -> str:
    """The text that is printed; dense_ms: the dense product of the backward pass alone."""
    first = next((line for line in lines if line.row == FIRST), None)
    told = []
    for line in lines:
        ratios = ("", "") if first is None else (f"{line.forward / first.forward:5.2f}x",
                                                 f"{line.both / first.both:5.2f}x")
        surrogate = MODELS[line.row].surrogate
        end = f"  active {line.active:5.1f} %, product {line.product:5.1f}"
        if surrogate not in WITH_AN_END:
            end += f"  {surrogate}"
            if first is not None:
                least = first.both - first.product + dense_ms
                end += f", at least {least:.1f}: {line.both / least:.2f}x"
        told.append(f"  {line.row:18} {line.rate:5.2f} %  "
                    f"forward {line.forward:7.2f} ({line.least_forward:7.2f}) {ratios[0]}  "
                    f"forward+backward {line.both:7.2f} ({line.least_both:7.2f}) {ratios[1]}{end}")
    return "\n".join(told)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("bench.rows", __doc__)
    parser.add_argument("--rows", type=names_among(MODELS), default=list(MODELS),
                        help=f"names of models, {FIRST} is always among them (default: all)")
    parser.add_argument("--yardsticks", type=names_among(YARDSTICKS), default=["P", "M"],
                        help="default: P,M")
    parser.add_argument("--coefficients", choices=("fixed", "learned", "both"), default="both")
    parser.add_argument("--rate", type=positive, default=RATE,
                        help="firing rate in %% (default: %(default)g)")
    parser.add_argument("--repeats", type=at_least_one, default=11,
                        help="rounds (default: %(default)d)")
    given = parser.parse_args(arguments)
    rows = list(dict.fromkeys([FIRST, *given.rows]))
    ways = {"fixed": [False], "learned": [True], "both": [False, True]}[given.coefficients]
    for name in given.yardsticks:
        T, B, _, N = YARDSTICKS[name].shape
        problem = YARDSTICKS[name].problem()
        # measured next to the tables, since the speed of a machine changes
        fma = next(r.value for r in roofline.rates() if r.what == "fma")
        dense_ms = 2.0 * T * B * N * N / fma / 1e6
        all_lines = compare(rows, problem, given.repeats, given.rate, ways)
        for learned in ways:
            print(f"{name}: {YARDSTICKS[name].shape}, {torch.get_num_threads()} threads, "
                  f"{given.repeats} rounds, coefficients "
                  f"{'learned, one per neuron' if learned else 'fixed'}; dense product "
                  f"{dense_ms:.2f} ms at {fma:.0f} Gflop/s")
            lines = [line for line in all_lines if bool(line.learned) is learned]
            print(table(lines, dense_ms), flush=True)
            if learned:
                told = {line.row: line.learned for line in lines}
                for names in dict.fromkeys(told.values()):
                    who = ", ".join(row for row, text in told.items() if text == names)
                    print(f"  learned: {names}: {who}")
        if len(ways) > 1:
            print(f"  learned by fixed, forward+backward: {price(all_lines)}")


if __name__ == "__main__":
    main()
