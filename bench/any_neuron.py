"""Neurons whose step is written in PyTorch, against loops, compilers and models.

    python -m bench --any-neuron                     published neurons on P; models on P, M, small
    python -m bench --any-neuron --shape 60,4,20,32  all of them on another shape

Published neurons of lsnn_ext.zoo: functional.recurrent against the eager loop over the step,
against torch.compile of the step called in the loop, and against jax.lax.scan. Models of the
package written as a step: functional.recurrent against functional.alif. Both sides project the
inputs, and learn both weights and all coefficients, one number per neuron. A pass is forward and
backward for a fixed gradient of the spikes, in float32, in one process with the same threads.

Weights are multiples of few bits and inputs 0 or 1, so that sums are exact in any order. Before
anything is timed, spikes and gradients of all contestants are compared with those of the first
peer. Ours must have the same spikes, but for 1 of 100,000, and then the same gradients to rounding.
What a compiler computes in another order may differ at the very threshold, and one spike leads to
others; the number that differs is shown. All contestants take part in every round, in changing
order. A ratio is the median over the rounds of theirs by ours in the same round.
"""
import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.contestants import Contestant, Differentiated, JaxContestant, in_jax, jax_spike, spike
from bench.like_for_like import MOST_DIFFERING, MOST_OF_A_GRADIENT, RATE, NotAlikeError
from bench.limits import Skip, reason_of
from bench.measure import Say, difference, quartiles, steadily, turns
from bench.pairs import GRID, STRENGTH
from bench.problem import ALPHA, BETA, RHO, THETA, YARDSTICKS, Problem, Sized, Yardstick
from bench.rates import LONG_ENOUGH, bisect_scale, firing_rate
from lsnn_ext import Neuron, functional, zoo

OURS = "functional.recurrent"


def lsnn(c: Tensor, v: Tensor, a: Tensor, z: Tensor, *, alpha: Any = ALPHA, rho: Any = RHO,
         beta: Any = BETA, theta: Any = THETA) -> tuple[Tensor, ...]:
    """The model `lsnn` as a step."""
    a = rho * a + (1 - rho) * z
    threshold = theta + beta * a
    fired = spike((v - threshold) / threshold)
    return alpha * v + (1 - alpha) * c - z * threshold, a, fired


def srnn(c: Tensor, v: Tensor, a: Tensor, z: Tensor, *, alpha: Any = ALPHA, rho: Any = RHO,
         beta: Any = BETA, theta: Any = THETA) -> tuple[Tensor, ...]:
    """The model `srnn` as a step."""
    a = rho * a + (1 - rho) * z
    threshold = theta + beta * a
    v = alpha * v + (1 - alpha) * c - z * threshold
    return v, a, zoo.surrogates.multi_gaussian(v - threshold)


@dataclass(frozen=True)
class Kind:
    neuron: Neuron
    unit: float  # a power of two near the current at which it fires
    currents: int = 1
    model: str | None = None  # the name of the same model of functional.alif
    fixed: tuple[str, ...] = ()  # coefficients that do not learn

    @property
    def states(self) -> int:
        return len(self.neuron.inputs) - self.currents - 1


KINDS = {
    "rf": Kind(zoo.rf.neuron, 64.0, fixed=("dt",)),
    "tc_lif": Kind(zoo.tc_lif.neuron, 0.5),
    "dh_srnn": Kind(zoo.dh_srnn.neuron, 4.0, currents=2),
    "lsnn": Kind(Neuron(lsnn), 0.25, model="lsnn"),
    "srnn": Kind(Neuron(srnn), 0.25, model="srnn"),
}


def yardsticks_of(kind: Kind) -> list[Yardstick]:
    """Where a neuron is timed by default."""
    return [YARDSTICKS[name] for name in (("P", "M", "small") if kind.model else ("P",))]


class Layer(Differentiated):
    """A layer of a kind, with parameters that every contestant on a problem has the same of."""

    def __init__(self, name: str, kind: Kind, problem: Problem, scale: float) -> None:
        self.name, self.kind, self.x, self.cotangent = name, kind, problem.x, problem.cotangent
        N, K = len(problem.w_rec), kind.currents
        grid = kind.unit * GRID

        def rounded(weight: Tensor, gain: float) -> nn.Parameter:
            # other currents take the same weights of other neurons
            several = torch.stack([weight.roll(k, -1) for k in range(K)])
            return nn.Parameter(torch.round(several * gain * kind.unit / grid) * grid)

        spread = torch.linspace(0.99, 1.0, N)
        self.parameters = {"w_in": rounded(problem.w_in, scale / K),
                           "w_rec": rounded(problem.w_rec, STRENGTH / K)}
        self.fixed = {name: kind.neuron.coefficients[name] for name in kind.fixed}
        self.parameters |= {name: nn.Parameter(value * spread) for name, value in
                            kind.neuron.coefficients.items() if name not in self.fixed}
        self.leaves = list(self.parameters.values())

    @property
    def coefficients(self) -> dict[str, Any]:
        return self.fixed | {name: value for name, value in self.parameters.items()
                             if name not in ("w_in", "w_rec")}


class Ours(Layer):
    """functional.recurrent, which projects the inputs, too."""

    def spikes(self) -> Tensor:
        w_in, w_rec = self.parameters["w_in"], self.parameters["w_rec"]
        if self.kind.currents == 1:
            w_in, w_rec = w_in[0], w_rec[0]  # type: ignore[assignment]
        return functional.recurrent(self.x, w_rec, self.kind.neuron, w_in=w_in,
                                    **self.coefficients)[0]


class Row(Layer):
    """functional.alif with the model that is the same neuron."""

    def spikes(self) -> Tensor:
        assert self.kind.model is not None
        return functional.alif(self.x, self.parameters["w_rec"][0],
                               w_in=self.parameters["w_in"][0], dynamics=self.kind.model,
                               **self.coefficients)[0]


class Loop(Layer):
    """The step in a loop over time, after one projection of all inputs."""

    def __init__(self, name: str, kind: Kind, problem: Problem, scale: float,
                 wrap: Callable[..., Any] = lambda step: step) -> None:
        super().__init__(name, kind, problem, scale)
        self.one = wrap(self._one)

    def _one(self, c: Tensor, w_rec: Tensor, states: Sequence[Tensor], z: Tensor,
             coefficients: dict[str, Any]) -> tuple[Tensor, ...]:
        if self.kind.currents == 1:
            return self.kind.neuron.step(c + z @ w_rec, *states, z, **coefficients)
        B, N = z.shape
        currents = (c + z @ w_rec).view(B, self.kind.currents, N).unbind(1)
        return self.kind.neuron.step(*currents, *states, z, **coefficients)

    def spikes(self) -> Tensor:
        w_in, w_rec, K = self.parameters["w_in"], self.parameters["w_rec"], self.kind.currents
        N = w_rec.shape[-1]
        flat = w_rec.transpose(0, 1).reshape(N, K * N)  # all currents in one product
        coefficients = self.coefficients
        current = self.x @ w_in.view(K * N, -1).T
        z = torch.zeros_like(current[0, :, :N])
        states: Sequence[Tensor] = [z] * self.kind.states
        spikes = []
        for c in current.unbind():
            *states, z = self.one(c, flat, states, z, coefficients)
            spikes.append(z)
        return torch.stack(spikes)


def _compiled(kind: Kind, problem: Problem, scale: float) -> Layer:
    torch.compiler.reset()
    return Loop("torch.compile of the step", kind, problem, scale,
                lambda step: torch.compile(step, fullgraph=True, dynamic=False))


def _jax_spikes(jnp: Any) -> dict[str, Any]:
    """The spikes of the zoo in jax.numpy, by name."""
    def normal(m: Any, mean: float, sigma: float) -> Any:
        return jnp.exp(-((m - mean) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)

    return {
        "double_gaussian": jax_spike(lambda m: m > 0, lambda m: 0.5 * (
            1.15 * normal(m, 0.0, 0.5) - 0.3 * normal(m, 0.0, 3.0))),
        "multi_gaussian": jax_spike(lambda m: m > 0, lambda m: 0.5 * (
            1.15 * normal(m, 0.0, 0.5) - 0.15 * (normal(m, 0.5, 3.0) + normal(m, -0.5, 3.0)))),
        "triangle": jax_spike(lambda m: m >= 0, lambda m: jnp.maximum(1 - abs(m), 0))}


def _scan(kind: Kind, problem: Problem, scale: float) -> JaxContestant:
    """The step under jax.lax.scan, jitted with its gradients."""
    jax = importlib.import_module("jax")
    layer = Layer("jax.lax.scan", kind, problem, scale)
    step = in_jax(kind.neuron.step, **_jax_spikes(jax.numpy))
    K, S, fixed = kind.currents, kind.states, layer.fixed

    def spikes(parameters: Any, x: Any) -> Any:
        learned = {**parameters}
        w_in, w_rec = learned.pop("w_in"), learned.pop("w_rec")
        N = w_rec.shape[-1]
        flat = w_rec.transpose(1, 0, 2).reshape(N, K * N)

        def one(carry: Any, c: Any) -> Any:
            *states, z = carry
            currents = jax.numpy.split(c + z @ flat, K, axis=1)
            now = step(*currents, *states, z, **learned, **fixed)
            return now, now[-1]

        zero = jax.numpy.zeros((x.shape[1], N), x.dtype)
        return jax.lax.scan(one, (zero,) * (S + 1), x @ w_in.reshape(K * N, -1).T)[1]

    return JaxContestant(layer.name, spikes, layer.parameters, layer.x, layer.cotangent)


def makers_of(kind: Kind) -> dict[str, Callable[..., Contestant]]:
    """The peers of a neuron by name, the one first that the others are compared with."""
    if kind.model:
        return {"functional.alif": partial(Row, "functional.alif")}
    return {"eager loop": partial(Loop, "eager loop"), "torch.compile of the step": _compiled,
            "jax.lax.scan": _scan}


@dataclass
class Line(Sized):
    """One contestant on one yardstick."""

    neuron: str
    contestant: str
    median_ms: float  # forward and backward
    min_ms: float
    ratio: float  # by ours: median over rounds
    ratio_q1: float
    ratio_q3: float
    rate_measured: float  # percent of neuron-steps with a spike
    differing: int  # spikes, from the first peer's
    entries: int
    gradient_difference: float  # largest, by the largest value of the same gradient
    rounds: int
    threads: int


def measure(name: str, yardstick: Yardstick, *, repeats: int, seconds: float,
            say: Say = print) -> tuple[list[Line], list[Skip]]:
    """A neuron and its peers on a yardstick; ours is the first line."""
    kind = KINDS[name]
    problem = yardstick.problem()
    ours = Ours(OURS, kind, problem, scale := _scale_of(kind, problem))
    peers, skipped = _made(name, yardstick, kind, problem, scale, say)
    contestants: list[Contestant] = [ours, *peers]
    found = {one.name: (one.forward(), one.forward_backward()) for one in contestants}
    wanted = found[peers[0].name]
    differences = {one: (int((wanted[0] != spikes).sum()), difference(wanted[1], gradients))
                   for one, (spikes, gradients) in found.items()}
    entries = problem.cotangent.numel()
    _check(name, yardstick, *differences[OURS], entries)
    times = rounds_of(contestants, repeats, seconds)
    lines = []
    for one, ms in zip(contestants, times, strict=True):
        q1, ratio, q3 = quartiles([theirs / mine for theirs, mine in zip(ms, times[0],
                                                                         strict=True)])
        differing, gradient = differences[one.name]
        lines.append(Line(yardstick.name, *yardstick.shape, name, one.name, statistics.median(ms),
                          min(ms), ratio, q1, q3, 100 * firing_rate(found[one.name][0]), differing,
                          entries, gradient, len(ms), torch.get_num_threads()))
        say(f"    {told(lines[-1])}")
    return lines, skipped


def _made(name: str, yardstick: Yardstick, kind: Kind, problem: Problem, scale: float,
          say: Say) -> tuple[list[Contestant], list[Skip]]:
    """The peers, ready to run, and those that cannot run here. The first one must."""
    peers: list[Contestant] = []
    skipped = []
    for peer, make in makers_of(kind).items():
        try:
            peers.append(make(kind, problem, scale))
            peers[-1].forward_backward()
        except Exception as error:  # whatever stops a peer must not stop the others
            if not peers or peers[0].name == peer:
                raise
            peers = [one for one in peers if one.name != peer]
            skipped.append(Skip(yardstick.name, f"{name}: {peer}", reason_of(error)))
            say(f"    {peer}: {skipped[-1].reason}")
    return peers, skipped


def _scale_of(kind: Kind, problem: Problem) -> float:
    """Of the input weights, at which the neuron fires at the rate."""
    short = problem.first(LONG_ENOUGH)

    def rate_of(scale: float) -> float:
        return firing_rate(Ours(OURS, kind, short, scale).forward())

    return bisect_scale(rate_of, RATE / 100, tolerance=0.05)[0]


def _check(name: str, yardstick: Yardstick, differing: int, gradient: float, entries: int) -> None:
    """Raises NotAlikeError where ours computes something else."""
    if differing > MOST_DIFFERING * entries:
        raise NotAlikeError(f"{name} on {yardstick.name}: expected equal spikes, got {differing} "
                            f"that differ of {entries:,}")
    if not differing and not gradient < MOST_OF_A_GRADIENT:
        raise NotAlikeError(f"{name} on {yardstick.name}: expected equal gradients, got a relative "
                            f"difference of {gradient:.2g}")


def rounds_of(contestants: Sequence[Contestant], repeats: int,
              seconds: float) -> list[list[float]]:
    """Milliseconds of forward and backward, by contestant and round.

    There are fewer rounds than asked for, yet at least three, where all contestants together would
    take more than these seconds. A turn begins with a short rest, in which the spinning threads of
    the neighbour go to sleep, and an untimed forward; it is repeated until `STEADY` milliseconds
    are full, and its median counts.
    """
    def turn(contestant: Contestant) -> float:
        time.sleep(0.02)
        contestant.forward()
        return steadily(contestant.forward_backward)

    first = sum(turn(contestant) for contestant in contestants) / 1e3
    rounds = max(min(3, repeats), min(repeats, int(seconds // first)))
    times: list[list[float]] = [[] for _ in contestants]
    for _, c in turns(len(contestants), rounds):
        times[c].append(turn(contestants[c]))
    return times


def told(line: Line) -> str:
    return (f"{line.contestant:26} {line.median_ms:9.2f} ms, {line.ratio:6.2f} of ours "
            f"({line.ratio_q1:.2f} to {line.ratio_q3:.2f}), {line.rate_measured:.1f} % spikes, "
            f"{line.differing:,} of {line.entries:,} differ, gradients by "
            f"{line.gradient_difference:.1e}, {line.rounds} rounds")
