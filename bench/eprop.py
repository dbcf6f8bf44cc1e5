"""E-prop by a model *_stop, against backpropagation and against eligibility traces.

    python -m bench.eprop                          # the shapes cue, P, M and L
    python -m bench.eprop cue --published FOLDER   # also a copy of ChFrenkel/eprop-PyTorch in it

A pass computes the gradients of all weights for the same spikes: by `eprop_elig_stop` (e-prop), by
`eprop_elig` (backpropagation), by the autograd of a PyTorch loop (`use_reference`), and by traces
that run forward in time. The network has adaptive and regular neurons, a leaky readout and half the
summed squared error; `cue` is the evidence accumulation of the e-prop paper. eprop-PyTorch has LIF
neurons, batches of 5, and convolutions whose cost grows with the square of T. Spikes and gradients
are compared with those of the traces before anything is timed, but not the gradient of its input
weights: its input traces are one step ahead. One thread, processor time.
"""
import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.__main__ import at_least_one, positive
from bench.contestants import Contestant
from bench.like_for_like import MOST_DIFFERING, MOST_OF_A_GRADIENT, NotAlikeError
from bench.measure import alternate, bisect_scale, firing_rate
from bench.page import markdown, number, write_csv
from bench.pairs import GRID
from bench.problem import YARDSTICKS, Problem, Shape
from bench.programs.load import load, programs
from bench.programs.measure import processor_ms
from lsnn_ext import functional, use_reference
from lsnn_ext.models import MODELS

RATE = 2.0  # percent of neuron-steps with a spike
OUTPUTS, THETA, DAMPENING = 2, 0.6, 0.3
ALPHA, RHO, K = (math.exp(-1 / tau) for tau in (20.0, 200.0, 20.0))
BETA = 1.7 * (1 - RHO) / (1 - ALPHA)  # of adaptive neurons, as the paper scales it
SHAPES = {"cue": Shape(2250, 64, 40, 100), **{name: YARDSTICKS[name].shape for name in "PML"}}
PUBLISHED_STEPS = 100, 500  # of its task's 2250
MOST_TRACES = 2.5e9  # T B N (I + N), above which a pass by traces would take a minute
OURS, TRACES, PUBLISHED = "e-prop, eprop_elig_stop", "eligibility traces", "eprop-PyTorch"
Gradients = dict[str, Tensor]
Found = tuple[Tensor, Gradients]  # spikes (T, B, N) and gradients


def by_traces(x: Tensor, w_in: Tensor, w_rec: Tensor, w_out: Tensor, target: Tensor, *,
              alpha: float, theta: float, rho: float, beta: Tensor, k: float, refractory: int = 0,
              dampening: float = 0.3, dynamics: str = "eprop_elig", feedback: Tensor | None = None,
              local: Tensor | None = None, learn: bool = True) -> Found:
    """Spikes (T, B, N), and the gradients of half the summed squared error by e-prop, forward in
    time: Bellec et al. 2020, equation (1) with the learning signal (4) and, for `eprop_elig`, the
    trace (25).

    x: (T, B, I); w_in: (N, I); w_rec: (N, N), (from, to), the diagonal is not used; w_out: (O, N);
    target: (T, B, O); beta: (N,); feedback: (O, N), default w_out; local: (T, B, N), a learning
    signal of its own in each step. learn: False computes the spikes only.
    """
    model = MODELS[dynamics]
    kappa = 1 - alpha if model.kappa == "1-alpha" else 1.0
    q = 1 - rho if model.q == "1-rho" else 1.0
    feedback = w_out if feedback is None else feedback
    B, N, O = x.shape[1], len(w_rec), len(w_out)
    weights = torch.cat([w_in.T, w_rec * (1 - torch.eye(N).to(w_rec))])  # (I + N, N)
    v = a = z = r = left = x.new_zeros(B, N)  # left: of the trace of spikes
    over, y = z, x.new_zeros(B, O)
    dv = da = dv_free = da_free = z  # derivatives of a spike; free: whether refractory or not
    eps_v, eps_a = x.new_zeros(B, 1, len(weights)), x.new_zeros(B, N, len(weights))
    filtered, rest = torch.zeros_like(eps_a), 1 - k
    g, g_out, spikes = x.new_zeros(N, len(weights)), torch.zeros_like(w_out), []
    for t, x_t in enumerate(x):
        pre = torch.cat([x_t, z], 1)
        crosses = model.drive == "cross"
        a = rho * a + q * (over if crosses else z)
        v = alpha * v + kappa * (pre @ weights) - z * theta
        A = theta + beta * a
        s = A if model.scale == "A" else torch.full_like(A, theta)
        m = (v - A) / s
        over, free = (m > 0).to(v), r == 0
        z = over * free
        r = torch.where(z > 0, refractory, (r - 1).clamp(min=0))
        spikes.append(z)
        if not learn:
            continue
        d_v, d_a = (dv_free, da_free) if crosses else (dv, da)
        # eligibility vector of (v, a): its last value by the derivatives of this step, then z'
        eps_a = rho * eps_a + q * (d_v[..., None] * eps_v + d_a[..., None] * eps_a)
        eps_v = alpha * eps_v + kappa * pre[:, None]
        # derivatives of the spike, and the trace
        slope = dampening * torch.relu(1 - m.abs()) / s
        dv_free, da_free = slope, -beta * slope * (1 + m if model.scale == "A" else 1)
        dv, da = dv_free * free, da_free * free
        e = dv[..., None] * eps_v + da[..., None] * eps_a
        filtered = k * filtered + rest * e
        left = k * left + rest * z
        y = k * y + rest * (z @ w_out.T)
        error = y - target[t]
        g += torch.einsum("bn,bni->ni", error @ feedback, filtered)
        g_out += error.T @ left
        if local is not None:
            g += torch.einsum("bn,bni->ni", local[t], e)
    if not learn:
        return torch.stack(spikes), {}
    I = w_in.shape[1]
    g_rec = g[:, I:].T.clone().fill_diagonal_(0)
    return torch.stack(spikes), {"w_in": g[:, :I], "w_rec": g_rec, "w_out": g_out}


@dataclass(frozen=True)
class Net:
    """Inputs, weights and coefficients of a network."""

    x: Tensor  # (T, B, I)
    target: Tensor  # (T, B, OUTPUTS)
    weights: dict[str, Any]  # as by_traces takes them
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

        return make(bisect_scale(rate_of, RATE / 100, tolerance=0.05, most=20)[0])


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
        return by_traces(net.x, **net.weights, target=net.target, k=K, learn=learn,
                         **net.coefficients)


def published(net: Net, folder: Path) -> Callable[[bool], Found]:
    """The program eprop-PyTorch with the weights of a network of LIF neurons.

    Its step t + 1 takes the input of step t, its slope is not divided by the threshold, and its
    readout has no factor 1 - k.
    """
    T, B, I = net.x.shape
    N = len(net.weights["w_rec"])
    program = next(one for one in programs() if one.name.startswith(PUBLISHED))
    model: Any = load(replace(program, model=f"""SRNN(
        n_in={I}, n_rec={N}, n_out={OUTPUTS}, n_t={T + 1}, thr={THETA}, tau_m=20.0, tau_o=20.0,
        b_o=0.0, gamma={DAMPENING / THETA}, dt=1.0, model='LIF', classif=False,
        w_init_gain=(1.0, 1.0, 1.0), lr_layer=(1.0, 1.0, 1.0), t_crop=0, visualize=False,
        visualize_light=False, device='cpu')"""), folder).model
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
    differences = [_difference(found[judge], one) for one in found]
    rate = 100 * firing_rate(found[judge][0])
    del found
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


def _difference(judge: Found, got: Found) -> tuple[int, float]:
    """Spikes that differ, and the largest difference of gradients, each by its own largest."""
    return int((judge[0] != got[0]).sum()), max(
        float((judge[1][name] - one).abs().max() / judge[1][name].abs().max())
        for name, one in got[1].items())


def table(lines: Sequence[Line]) -> str:
    """The lines as Markdown."""
    head = ["shape: T, B, I, N", "gradients by", "forward ms", "with gradients ms",
            "by ours", "spikes %", "spikes differ", "gradients differ", "rounds"]
    return markdown(head, [[
        f"{one.shape}: {one.T}, {one.B}, {one.I}, {one.N}", one.way, number(one.forward_ms),
        number(one.both_ms), number(one.ratio), f"{one.rate_measured:.1f}", str(one.differing),
        f"{one.gradient_difference:.0e}", str(one.rounds)] for one in lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser("python -m bench.eprop", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="|".join(SHAPES), default=list(SHAPES))
    parser.add_argument("--published", type=Path, metavar="FOLDER",
                        help="with the copy of a repository, OWNER/NAME")
    parser.add_argument("--repeats", type=at_least_one, default=7, help="rounds")
    parser.add_argument("--seconds", type=positive, default=60.0,
                        help="that the rounds of one way may take (default: %(default)g)")
    parser.add_argument("--out", type=Path, help="a CSV file for the results")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.shapes if name not in SHAPES]:
        parser.error(f"shapes: expected some of {', '.join(SHAPES)}, got {unknown[0]!r}")
    torch.set_num_threads(1)
    lines: list[Line] = []
    for name in given.shapes:
        print(name, flush=True)
        lines += measure(name, SHAPES[name], given.repeats, given.seconds)
    for T in PUBLISHED_STEPS if given.published else ():
        print(f"LIF, T={T}", flush=True)
        lines += measure("LIF", Shape(T, 5, 40, 100), given.repeats, given.seconds,
                         given.published)
    print(table(lines))
    if given.out:
        command = f"python -m bench.eprop {' '.join(given.shapes)} --repeats {given.repeats}"
        command += " --published FOLDER" if given.published else ""
        print(f"wrote {write_csv(given.out, machine.facts(command), Line, lines)}")


if __name__ == "__main__":
    main()
