"""The one table of cases, and what draws the inputs of a case and runs it."""
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import State
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import COEFFICIENTS, MODELS

# What takes part in the spike test of every model; the rest follows the model when a case leaves it
# out.
FEW = ("alpha", "theta", "rho", "beta")
STATE_LEAVES = ("v0", "a0", "i0", "z0")
LAYOUTS = ("plain", "transposed", "sliced", "expanded", "repeated", "offset")


@dataclass(frozen=True)
class Case:
    """A call of alif in words; the seed draws its numbers."""

    name: str
    dynamics: str = "lsnn"
    T: int = 12
    B: int = 3
    N: int = 6
    # none | one (2 for every synapse) | each (0 to 3) | kernel (of axonal delays, 0, 1 and 3)
    delay: str = "none"
    mask: bool = False  # of recurrent spikes
    refractory: int = 0
    given: tuple[str, ...] = COEFFICIENTS
    per_neuron: bool = True
    state: str = "none"  # none | bits (past spikes are 0 or 1) | real (they are any number)
    surrogate: str | None = None
    unit_width: bool = False  # widths about 1: slopes that finite differences can follow
    checkpoint_every: int | None = None
    layout: str = "plain"  # of current, w_rec and state: see LAYOUTS
    gradients: str = "plain"  # the layout of the gradients of the outputs
    first_r: int | None = None  # largest counter of the first state; None: refractory
    learn: tuple[str, ...] | None = None  # leaves that want a gradient; None: all
    # none | falling | any (with a whole one, and where B > 2 one of no steps)
    lengths: str = "none"
    seed: int = 1


@dataclass
class Problem:
    """The numbers of a case."""

    leaves: dict[str, Tensor]  # x w v0 a0 i0 z0 and the coefficients; each may have a gradient
    learn: tuple[str, ...]
    fixed: dict[str, Any]  # the arguments that are no leaves
    r0: Tensor | None
    layout: str
    shapes: dict[str, tuple[int, ...]]  # what x, w and the state look like once they are laid out
    weights: dict[str, Tensor]  # of every output in the loss

    def arguments(self, leaves: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """The arguments of alif, made from these leaves."""
        given = dict(self.leaves if leaves is None else leaves)
        for name, shape in self.shapes.items():
            given[name] = _lay_out(given[name], self.layout, shape)
        arguments = {"current": given.pop("x"), "w_rec": given.pop("w"), **self.fixed}
        if self.r0 is not None:
            v0, a0, i0, z0 = (given.pop(name) for name in STATE_LEAVES)
            arguments["state"] = State(v0, a0, i0, self.r0, z0)
        return arguments | given

    def outputs(self, alif: Callable[..., Any], leaves: dict[str, Tensor] | None = None,
                smooth: bool = False) -> dict[str, Tensor]:
        """Everything that alif returns, by name."""
        spikes, state, traces = alif(**self.arguments(leaves), trace=True, smooth=smooth)
        return {"spikes": spikes,
                **{f"trace.{name}": value for name, value in traces._asdict().items()},
                **{f"state.{name}": value for name, value in state._asdict().items()}}

    def run(self, alif: Callable[..., Any], smooth: bool = False,
            weighted: Iterable[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, and gradients of a weighted sum of the outputs named (None: all)."""
        leaves = {name: leaf.detach().clone().requires_grad_(name in self.learn)
                  for name, leaf in self.leaves.items()}
        outputs = self.outputs(alif, leaves, smooth)
        names = [name for name in (self.weights if weighted is None else weighted)
                 if outputs[name].requires_grad]
        wanted = [leaves[name] for name in self.learn]
        found: Iterable[Tensor | None] = [None] * len(wanted)
        if names and wanted:
            found = torch.autograd.grad([outputs[name] for name in names], wanted,
                                        [self.weights[name] for name in names], allow_unused=True)
        # No gradient and a gradient of zeros are the same answer.
        gradients = {name: torch.zeros_like(leaf) if value is None else value
                     for name, leaf, value in zip(self.learn, wanted, found, strict=True)}
        return {name: value.detach() for name, value in outputs.items()}, gradients

    def per_neuron(self, N: int) -> "Problem":
        """The same with every scalar coefficient repeated for each neuron."""
        leaves = {name: leaf.expand(N) if leaf.dim() == 0 else leaf
                  for name, leaf in self.leaves.items()}
        return replace(self, leaves=leaves)


def _storage(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the leaf that _lay_out turns into this shape."""
    *front, a, b = shape
    return {"plain": shape, "transposed": (*front, b, a), "sliced": (*front, a, 2 * b),
            "expanded": (*front, 1, b), "repeated": (*front, a, 1),
            "offset": (math.prod(shape) + 1,)}[layout]


def _lay_out(leaf: Tensor, layout: str, shape: tuple[int, ...]) -> Tensor:
    views: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: leaf, "transposed": lambda: leaf.transpose(-1, -2),
        "sliced": lambda: leaf[..., ::2], "expanded": lambda: leaf.expand(shape),
        "repeated": lambda: leaf.expand(shape), "offset": lambda: leaf[1:].view(shape)}
    return views[layout]()


def build(case: Case, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu",
          dyadic: bool = False) -> Problem:
    """Draws the numbers of a case.

    dyadic: currents and weights are multiples of 2^-10 and past spikes of 1/4, so that the sums of
    (1) are exact in any order and two implementations have no excuse for another spike.
    """
    model = MODELS[case.dynamics]
    generator = torch.Generator().manual_seed(case.seed)
    T, B, N = case.T, case.B, case.N
    D = {"none": 1, "one": 3, "each": 4, "kernel": 4}[case.delay]
    working = torch.promote_types(dtype, torch.float32)  # of coefficients, state and traces

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    def stored(low: float, high: float, *shape: int) -> Tensor:
        return uniform(low, high, *_storage(case.layout, shape))

    def rounded(value: Tensor, step: float) -> Tensor:
        return torch.round(value / step) * step if dyadic else value

    size = (N,) if case.per_neuron else ()
    scale = model.width if model.width is not None and not case.unit_width else 1.0
    # p and eta of different signs would feed v back onto itself, and every gradient would explode.
    sign = torch.sign(uniform(-1.0, 1.0, *size))
    drawn = {
        "alpha": uniform(0.6, 0.95, *size), "kappa": uniform(0.3, 1.0, *size),
        "rho": uniform(0.7, 0.95, *size), "q": uniform(0.1, 0.6, *size),
        "p": sign * uniform(0.0, 0.2, *size), "beta": uniform(0.2, 1.2, *size),
        "eta": sign * uniform(0.0, 0.8, *size), "theta": uniform(0.4, 0.8, *size),
        "sigma": uniform(0.2, 0.8, *size), "width": uniform(0.8, 1.2, *size) * scale,
        "R": uniform(-0.2, 0.2, *size) if model.reset == "to" else uniform(0.3, 0.9, *size)}
    leaves = {name: drawn[name].to(working) for name in case.given}
    # Without a kappa of its own a model with 1 - alpha weakens its input; a stronger one keeps it
    # alive.
    gain = 1.0 if "kappa" in case.given or model.kappa == "1" else 2.0
    leaves["x"] = rounded(stored(-gain, 2.2 * gain, T, B, N), 2.0**-10).to(dtype)
    leaves["w"] = rounded(stored(-gain, gain, N, N) / (2 * N**0.5), 2.0**-10).to(dtype)
    shapes = {"x": (T, B, N), "w": (N, N)}

    delay: int | Tensor | tuple[int, ...] = {"none": 0, "one": 2, "each": 0,
                                             "kernel": (0, 1, 3)}[case.delay]
    if case.delay == "kernel":
        leaves["delay_kernel"] = rounded(stored(-0.5, 1.0, 3, N), 0.125).to(working)
        shapes["delay_kernel"] = (3, N)
    if case.delay == "each":
        delay = torch.randint(0, 4, (N, N), generator=generator)
        delay[0, 0] = D - 1  # the largest delay is always met
        delay = delay.to(device)
    r0 = None
    if case.state != "none":
        past = stored(0.0, 1.0, D, B, N)
        leaves["z0"] = ((past < 0.3).double() if case.state == "bits" else rounded(past, 0.25)).to(
            working)
        leaves["v0"], leaves["a0"] = (
            stored(-0.5, 0.9, B, N).to(working), stored(0.0, 0.5, B, N).to(working))
        leaves["i0"] = stored(-0.5, 0.5, B, N).to(working)
        shapes |= {"z0": (D, B, N), "v0": (B, N), "a0": (B, N), "i0": (B, N)}
        counts = torch.rand(_storage(case.layout, (B, N)), generator=generator) * 2 - 1
        largest = case.refractory if case.first_r is None else case.first_r
        counts = (counts.clamp(min=0) * (largest + 1)).floor()
        r0 = _lay_out(counts.to(working).to(device), case.layout, (B, N))

    outputs = {"spikes": (T, B, N), "trace.v": (T, B, N), "trace.a": (T, B, N),
               "trace.threshold": (T, B, N), "state.v": (B, N), "state.a": (B, N),
               "state.i": (B, N), "state.z": (D, B, N)}
    weights = {name: uniform(-1.0, 1.0, *_storage(case.gradients, shape)).to(
                   dtype if name == "spikes" else working)
               for name, shape in outputs.items()}
    weights = {name: _lay_out(weights[name].to(device), case.gradients,
                              shape) for name, shape in outputs.items()}
    leaves = {name: leaf.to(device) for name, leaf in leaves.items()}
    learn = (tuple(leaves)
             if case.learn is None
             else tuple(name for name in leaves if name in case.learn))
    fixed = {"dynamics": case.dynamics, "refractory": case.refractory, "surrogate": case.surrogate,
             "delay": delay, "checkpoint_every": case.checkpoint_every,
             "lengths": _lengths(case, generator)}
    if case.mask:
        fixed["recurrent_mask"] = (torch.rand(B, N, generator=generator) < 0.7).to(device)
    return Problem(leaves, learn, fixed, r0, case.layout, shapes, weights)


def _lengths(case: Case, generator: torch.Generator) -> Tensor | None:
    if case.lengths == "none":
        return None
    drawn = torch.randint(0, case.T + 1, (case.B,), generator=generator)
    drawn[:1] = case.T
    drawn[2:3] = 0
    return drawn.sort(descending=True)[0] if case.lengths == "falling" else drawn.flip(0)


def _table() -> list[Case]:
    busy = Case("", T=40, delay="each", refractory=2, state="real")
    models = [case for model in MODELS for case in (
        replace(busy, name=f"model-{model}", dynamics=model),
        Case(f"defaults-{model}", dynamics=model, T=40, given=FEW, per_neuron=False))]
    # Words of 32 spikes, vectors of 8 to 16 floats and tiles of neurons have their edges here; so
    # have the segments of 128 steps and chunks of 16 that a long sequence is replayed in.
    sizes = [(40, 1, 1), (40, 3, 31), (2, 8, 32), (40, 9, 33), (40, 3, 220), (1, 1, 220), (2, 9, 1),
             (1, 3, 33), (0, 3, 33), (40, 0, 33), (0, 0, 1), (40, 17, 32), (150, 3, 31), (15, 2, 7),
             (16, 2, 7), (17, 2, 7), (127, 2, 5), (128, 2, 5), (129, 2, 5), (300, 1, 33)]
    shapes = [replace(busy, name=f"shape-T{T}-B{B}-N{N}", T=T, B=B, N=N) for T, B, N in sizes]
    surrogates = [Case(f"surrogate-{name}-{model}", model, surrogate=name, refractory=1)
                  for name in SURROGATES for model in ("lsnn", "srnn")]
    delays = [Case(f"delay-{delay}-refractory-{n}-state-{state}", delay=delay, refractory=n,
                   state=state, T=40, N=33)
              for delay in ("none", "one", "each") for n in (0, 2, 5) for state in ("none", "bits",
                                                                                    "real")]
    # A kernel of delays and a mask, with everything else.
    sources = [replace(busy, name=f"{delay}-mask-{mask}-{model}", dynamics=model, delay=delay,
                       mask=mask)
               for model in MODELS for delay, mask in (("kernel", False), ("kernel", True),
                                                       ("each", True))]
    sources += [replace(busy, name=f"{delay}-{what}", delay=delay, mask=delay == "each", **more)
                for delay in ("kernel", "each") for what, more in {
                    "long": {"T": 300, "B": 19, "N": 65}, "short": {"T": 1, "N": 33},
                    "empty": {"T": 0, "N": 33}, "no-items": {"B": 0, "N": 33},
                    "lengths": {"T": 70, "B": 5, "N": 33, "lengths": "any"},
                    "checkpoint": {"T": 70, "B": 9, "N": 33, "checkpoint_every": 16},
                    "bits": {"state": "bits"}, "zeros": {"state": "none", "B": 17, "N": 40},
                    "only": {"learn": ("delay_kernel",) if delay == "kernel" else ("w",)},
                    "transposed": {"layout": "transposed"}}.items()]
    checkpoints = [
        replace(busy, name=f"checkpoint-{K}", checkpoint_every=K) for K in (1, 7, 16, 40, 100)]
    layouts = [replace(busy, name=f"{what}-{layout}", **{what: layout}, N=33)  # type: ignore[arg-type]
               for what in ("layout", "gradients") for layout in LAYOUTS if layout != "plain"]
    # Counters that outlast the call that set them: in layers without a refractory period, and with
    # a shorter one.
    counters = [replace(busy, name=f"counter-{first}-refractory-{n}-{model}", dynamics=model,
                        refractory=n, first_r=first)
                for model in ("lsnn", "eprop", "norse_lsnn", "sinabs_sub")
                for first, n in ((4, 0), (60, 0), (7, 2))]
    learning = [replace(busy, name=f"learn-{'-'.join(names) or 'nothing'}", learn=names)
                for names in ((), ("x",), ("w",), ("theta",), ("v0",), ("z0",), ("x", "w"),
                              ("w", "rho", "beta"))]
    scalars = [replace(busy, name=f"scalars-{model}", dynamics=model, per_neuron=False)
               for model in ("lsnn", "adlif")]
    ends = [replace(busy, name=f"lengths-{order}-{model}", dynamics=model, B=5, N=33, lengths=order)
            for order in ("falling", "any") for model in ("lsnn", "adlif", "sj_hard")]
    ends += [replace(busy, name=f"lengths-T{T}-B{B}-N{N}", T=T, B=B, N=N, lengths="any")
             for T, B, N in ((150, 19, 31), (1, 3, 33), (0, 3, 7), (40, 0, 33), (300, 2, 5))]
    ends += [replace(busy, name=f"lengths-checkpoint-{K}", T=70, N=33, lengths="any",
                     checkpoint_every=K)
             for K in (16, 48)]
    # A threshold that nothing varies, and a surrogate without an end: where nobody asks for what a
    # or i decide, nothing is replayed.
    fixed = Case("", T=140, B=5, N=33, delay="each", state="real", surrogate="arctan",
                 given=("alpha", "kappa", "theta", "width"),
                 learn=("x", "w", "v0", "z0", *(name for name in COEFFICIENTS if name != "beta")))
    constant = [replace(fixed, name=f"constant-{model}", dynamics=model) for model in MODELS]
    others: dict[str, dict[str, Any]] = {
        "lengths": {"lengths": "any"}, "checkpoint": {"checkpoint_every": 48},
        "rho": {"given": (*fixed.given, "rho")}, "sigma": {"given": (*fixed.given, "sigma")},
        "p-eta": {"given": (*fixed.given, "p", "eta")},
        "beta": {"given": (*fixed.given, "rho", "beta"), "learn": ("x", "w", "theta", "v0", "z0")}}
    constant += [replace(fixed, name=f"constant-{what}-{model}", dynamics=model, **more)
                 for what, more in others.items() for model in ("snntorch_zero", "adlif")]
    return (ends + constant + models + shapes + surrogates + delays + sources + checkpoints
            + layouts + counters + learning + scalars)


TABLE = _table()
