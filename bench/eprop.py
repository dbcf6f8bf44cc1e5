"""E-prop by a model *_stop, against backpropagation and against eligibility traces.

    python -m bench.eprop                          # the shapes cue, P, M and L
    python -m bench.eprop cue --published FOLDER   # also a copy of ChFrenkel/eprop-PyTorch in it

A pass computes the gradients of all weights for the same spikes: by `eprop_elig_stop` (e-prop), by
`eprop_elig` (backpropagation), by the autograd of a PyTorch loop (`use_reference`), and by traces
that run forward in time. The network has adaptive and regular neurons, a leaky readout and half the
summed squared error; `cue` has the sizes of the evidence accumulation of the e-prop paper.
eprop-PyTorch has LIF neurons, batches of 5, and convolutions whose cost grows with the square of T.
Before anything is timed, spikes are compared with those of the traces, or of the loop where traces
take too long; gradients too, unless a spike differs. The gradient of the input weights of
eprop-PyTorch is not: its input traces are one step ahead. One thread, processor time.
"""
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.arguments import at_least_one, make_parser, names_among, positive
from bench.contestants import Contestant
from bench.eligibility import Found, sum_traces
from bench.like_for_like import MOST_DIFFERING, MOST_OF_A_GRADIENT, NotAlikeError
from bench.measure import alternate, difference, processor_ms
from bench.pairs import GRID
from bench.problem import ALPHA, DAMPENING, RHO, YARDSTICKS, Problem, Shape
from bench.programs.load import load, programs
from bench.rates import bisect_scale, firing_rate
from bench.tables import markdown, number, write_csv
from lsnn_ext import functional, use_reference

RATE = 2.0  # percent of neuron-steps with a spike
OUTPUTS, THETA = 2, 0.6
K = ALPHA  # decay of the readout
BETA = 1.7 * (1 - RHO) / (1 - ALPHA)  # of adaptive neurons, as the paper scales it
SHAPES = {"cue": Shape(2250, 64, 40, 100), **{name: YARDSTICKS[name].shape for name in "PML"}}
PUBLISHED_STEPS = 100, 500  # of its task's 2250
MOST_TRACES = 2.5e9  # T B N (I + N), above which a pass by traces takes more than ten seconds
OURS, TRACES, PUBLISHED = "e-prop, eprop_elig_stop", "eligibility traces", "eprop-PyTorch"


@dataclass(frozen=True)
class Net:
    """Inputs, weights and coefficients of a network."""

    x: Tensor  # (T, B, I)
    target: Tensor  # (T, B, OUTPUTS)
    weights: dict[str, Any]  # as sum_traces takes them
    coefficients: dict[str, Any]

    @classmethod
    def of(cls, shape: Shape, lif: bool = False, seed: int = 1) -> "Net":
        """At RATE, half of the neurons adaptive; lif: none, and no refractory period."""
        problem = Problem.of(shape, seed=seed)
        random = torch.Generator().manual_seed(seed + 1)
        T, B, _, N = shape
        beta = torch.where(torch.arange(N) < (N if lif else N // 2), 0.0, BETA)
        target = torch.randn(T, B, OUTPUTS, generator=random)
        w_out = torch.randn(OUTPUTS, N, generator=random) / math.sqrt(N)

        def make(scale: float) -> Net:
            # few bits, so that float32 adds them without an error in any order
            weights = {"w_in": torch.round(scale * problem.w_in / GRID) * GRID,
                       "w_rec": torch.round(0.5 * problem.w_rec / GRID) * GRID, "w_out": w_out}
            return cls(problem.x, target, weights, {
                "alpha": ALPHA, "theta": THETA, "rho": RHO, "beta": beta,
                "refractory": 0 if lif else 4, "dampening": DAMPENING})

        def rate_of(scale: float) -> float:
            return firing_rate(fused(make(scale), "eprop_elig", False)[0])

        return make(bisect_scale(rate_of, RATE / 100, tolerance=0.05)[0])


def fused(net: Net, dynamics: str, learn: bool) -> Found:
    """Spikes and gradients by functional.layer."""
    weights: dict[str, Any] = {name: one.detach().requires_grad_(learn)
                               for name, one in net.weights.items()}
    out = functional.layer(net.x, **weights, k_out=K, autapses=False, dynamics=dynamics,
                           **net.coefficients)
    assert out.spikes is not None and out.readout is not None
    if not learn:
        return out.spikes, {}
    error = out.readout.detach() - net.target
    found = torch.autograd.grad(out.readout, list(weights.values()), error)
    return out.spikes, dict(zip(weights, found, strict=True))


def _loop(net: Net, learn: bool) -> Found:
    with use_reference():
        return fused(net, "eprop_elig_stop", learn)


def _traces(net: Net, learn: bool) -> Found:
    with torch.no_grad():
        return sum_traces(net.x, **net.weights, target=net.target, k=K, learn=learn,
                         **net.coefficients)


def published(net: Net, folder: Path) -> Callable[[bool], Found]:
    """The program eprop-PyTorch with the weights of a network of LIF neurons.

    Its step t + 1 takes the input of step t, its slope is not divided by the threshold, and its
    readout has no factor 1 - k.
    """
    T, B, I = net.x.shape
    N = len(net.weights["w_rec"])
    program = next(one for one in programs() if one.name.startswith(PUBLISHED))
    make: Any = load(replace(program, model="SRNN"), folder).model  # the class
    model = make(
        n_in=I, n_rec=N, n_out=OUTPUTS, n_t=T + 1, thr=THETA, tau_m=20.0, tau_o=20.0, b_o=0.0,
        gamma=DAMPENING / THETA, dt=1.0, model="LIF", classif=False, w_init_gain=(1.0, 1.0, 1.0),
        lr_layer=(1.0, 1.0, 1.0), t_crop=0, visualize=False, visualize_light=False, device="cpu")
    x = torch.cat([net.x, torch.zeros(1, B, I)])
    target = torch.cat([torch.zeros(1, B, OUTPUTS), net.target])
    with torch.no_grad():
        model.w_in.copy_(net.weights["w_in"])
        model.w_rec.copy_(net.weights["w_rec"].T)
        model.w_out.copy_((1 - K) * net.weights["w_out"])

    def run(learn: bool) -> Found:
        with torch.no_grad():
            model(x, target, learn)
            return model.z[1:], {"w_rec": model.w_rec.grad.T.clone().fill_diagonal_(0),
                                 "w_out": (1 - K) * model.w_out.grad} if learn else {}

    return run


class Way(Contestant):
    """A way to the gradients of a network."""

    def __init__(self, name: str, run: Callable[[bool], Found]) -> None:
        self.name, self.run = name, run

    def forward(self) -> Tensor:
        return self.run(False)[0]

    def forward_backward(self) -> list[Tensor]:
        return list(self.run(True)[1].values())


@dataclass
class Line:
    """One way on one shape."""

    shape: str
    T: int
    B: int
    I: int
    N: int
    way: str
    forward_ms: float
    both_ms: float  # forward and gradients
    both_min_ms: float
    ratio: float  # of both_ms by that of OURS
    rate_measured: float  # percent of neuron-steps with a spike
    differing: int  # spikes, from those of the judge
    gradient_difference: float  # from the judge, largest, by the largest of the same gradient
    rounds: int


def measure(name: str, shape: Shape, repeats: int, seconds: float,
            folder: Path | None = None) -> list[Line]:
    """All ways on a shape, that of OURS first; with a folder against eprop-PyTorch.

    The judge of spikes and gradients is the way by traces, or the loop where traces take too long.
    """
    net = Net.of(shape, lif=folder is not None)
    T, B, I, N = shape
    ways = [Way(OURS, partial(fused, net, "eprop_elig_stop")),
            Way("backpropagation, eprop_elig", partial(fused, net, "eprop_elig")),
            Way("autograd of a loop, e-prop", partial(_loop, net))]
    if T * B * N * (I + N) <= MOST_TRACES:
        ways.append(Way(TRACES, partial(_traces, net)))
    judge = len(ways) - 1
    if folder:
        ways.append(Way(PUBLISHED, published(net, folder)))
    found = [way.run(True) for way in ways]
    spikes, gradients = found[judge]
    differences = [(int((spikes != one).sum()),
                    difference([gradients[name] for name in these], these.values()))
                   for one, these in found]
    rate = 100 * firing_rate(spikes)
    del found, spikes, gradients
    for way, (differing, gradient) in zip(ways, differences, strict=True):
        if differing > MOST_DIFFERING * T * B * N or not (
                "backpropagation" in way.name or differing or gradient < MOST_OF_A_GRADIENT):
            raise NotAlikeError(f"{way.name} on {name}: expected equal spikes and gradients, got "
                                f"{differing} other spikes, and gradients {gradient:.2g} apart")
    times = alternate(list(ways), repeats, seconds, timer=processor_ms)
    ours = statistics.median(times[0][1])
    return [Line(name, *shape, way.name, statistics.median(forward), statistics.median(both),
                 min(both), statistics.median(both) / ours, rate, *difference, len(both))
            for way, (forward, both), difference in zip(ways, times, differences, strict=True)]


def table(lines: Sequence[Line]) -> str:
    head = ["shape: T, B, I, N", "gradients by", "forward ms", "with gradients ms",
            "by ours", "spikes %", "spikes differ", "gradients differ", "rounds"]
    return markdown(head, [[
        f"{one.shape}: {one.T}, {one.B}, {one.I}, {one.N}", one.way, number(one.forward_ms),
        number(one.both_ms), number(one.ratio), f"{one.rate_measured:.1f}", str(one.differing),
        f"{one.gradient_difference:.0e}", str(one.rounds)] for one in lines])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("bench.eprop", __doc__)
    parser.add_argument("shapes", nargs="*", type=names_among(SHAPES), metavar="|".join(SHAPES),
                        help="default: all")
    parser.add_argument("--published", type=Path, metavar="FOLDER",
                        help="with the copy of a repository, OWNER/NAME")
    parser.add_argument("--repeats", type=at_least_one, default=7, help="rounds")
    parser.add_argument("--seconds", type=positive, default=60.0,
                        help="that the rounds of one way may take (default: %(default)g)")
    parser.add_argument("--out", type=Path, help="a CSV file for the results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines: list[Line] = []
    for name in chain(*given.shapes or [SHAPES]):
        print(name, flush=True)
        lines += measure(name, SHAPES[name], given.repeats, given.seconds)
    for T in PUBLISHED_STEPS if given.published else ():
        print(f"LIF, T={T}", flush=True)
        lines += measure("LIF", Shape(T, 5, 40, 100), given.repeats, given.seconds,
                         given.published)
    print(table(lines))
    if given.out:
        facts = machine.facts(machine.command("bench.eprop", arguments))
        print(f"wrote {write_csv(given.out, facts, Line, lines)}")


if __name__ == "__main__":
    main()
