"""Neurons of other packages and papers, over the sequence: the layer of a package, or a loop over
time from published equations. A loop computes once what does not change from step to step, which
the published programs do not all do.

What the package learns by itself is a parameter here and learns. Values are those of the packages
and papers, or round numbers near to them.
"""
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers import linear_of
from bench.problem import Problem
from lsnn_ext.zoo.surrogates import boxcar, multi_gaussian

STRENGTH = 0.1  # of recurrent weights: standard deviation, times sqrt(N), by threshold / gain
GRID = 2.0**-10  # of weights, by threshold / gain rounded to a power of two


class Pair(nn.Module):
    """One neuron.

    unit: the current that lifts a resting membrane to the threshold within one step, a power of
    two.
    """

    row: str  # the model of functional.alif that is the same neuron
    learned: tuple[str, ...] = ()  # of the neuron's coefficients
    indexed = False  # see peers.INDEXED
    unused: tuple[str, ...] = ()  # their parameters that never get a gradient
    is_loop = False  # of our own, from published equations: no package is needed
    unit = 1.0

    def __init__(self, problem: Problem, scale: float) -> None:
        super().__init__()
        self.steps, self.items, self.size = problem.cotangent.shape
        w_in, w_rec = scale * problem.w_in, STRENGTH * problem.w_rec
        self.build(self.rounded(w_in), self.rounded(w_rec).T.contiguous())

    def rounded(self, weight: Tensor) -> Tensor:
        """Of few bits, so that float32 adds them without an error in any order."""
        grid = self.unit * GRID
        return torch.round(weight * self.unit / grid) * grid

    def build(self, w_in: Tensor, w_rec: Tensor) -> None:
        """Makes the package's layer with weights (to, from)."""
        raise NotImplementedError

    def theirs(self, x: Tensor) -> Tensor:
        """Spikes (T, B, N) of inputs (T, B, I)."""
        raise NotImplementedError

    def reset(self) -> None:
        """Of the state that a layer keeps from call to call, and with it the graph."""


class _Projected(Pair):
    """With a Linear in front of a layer of N inputs."""

    def build(self, w_in: Tensor, w_rec: Tensor) -> None:
        self.project = linear_of(w_in)
        self.layer = self.make(linear_of(w_rec))

    def make(self, recurrent: nn.Linear) -> nn.Module:
        """The package's layer."""
        raise NotImplementedError


# -------------------------------------------------------------------------------------------- norse
class _Norse(Pair):
    """Their rates are not parameters of the module and do not learn."""

    unit = 16.0  # threshold 1, gain 1 / 16
    names: tuple[str, str]
    more: dict[str, float] = {}

    def build(self, w_in: Tensor, w_rec: Tensor) -> None:
        norse = importlib.import_module("norse.torch")
        layer, parameters = (getattr(norse, name) for name in self.names)
        values = {"tau_syn_inv": 250.0, "tau_mem_inv": 62.5, **self.more}
        numbers = {name: torch.tensor(value) for name, value in values.items()}
        N, I = w_in.shape
        self.layer = layer(I, N, p=parameters(**numbers, method="super",
                                              alpha=torch.tensor(100.0)),
                           input_weights=nn.Parameter(w_in),
                           recurrent_weights=nn.Parameter(w_rec), dt=0.001)

    def theirs(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class NorseLSNN(_Norse):
    """Norse LSNNRecurrent: a step's current acts in the next one."""

    row = "norse_lsnn"
    names = "LSNNRecurrent", "LSNNParameters"
    more = {"tau_adapt_inv": 10.0, "beta": 1.8}


class NorseLIF(_Norse):
    """Norse LIFRecurrent."""

    row = "norse_lif"
    names = "LIFRecurrent", "LIFParameters"


# ----------------------------------------------------------------------------------------- snnTorch
class RLeaky(_Projected):
    """snnTorch RLeaky, beta of each neuron and the threshold learned."""

    row, learned = "snntorch_sub", ("beta of each neuron", "threshold")
    named, states = "RLeaky", 2  # spikes among them

    def make(self, recurrent: nn.Linear) -> nn.Module:
        package = importlib.import_module("snntorch")
        N = recurrent.weight.shape[0]
        layer: nn.Module = getattr(package, self.named)(
            beta=torch.full((N,), 0.9375), linear_features=N, learn_beta=True,
            learn_threshold=True, **self.synapse(N))
        with torch.no_grad():
            layer.recurrent.weight.copy_(recurrent.weight)  # type: ignore[operator, union-attr]
            layer.recurrent.bias.fill_(GRID)  # type: ignore[operator, union-attr]
        return layer

    def synapse(self, N: int) -> dict[str, Any]:
        """More arguments of the layer."""
        return {}

    def theirs(self, x: Tensor) -> Tensor:
        state = (torch.zeros(self.items, self.size),) * self.states
        out = []
        for current in self.project(x):
            state = self.layer(current, *state)
            out.append(state[0])
        return torch.stack(out)


class RSynaptic(RLeaky):
    """snnTorch RSynaptic, alpha and beta of each neuron and the threshold learned."""

    learned = "alpha of each neuron", "beta of each neuron", "threshold"
    named, states = "RSynaptic", 3

    def synapse(self, N: int) -> dict[str, Any]:
        return {"alpha": torch.full((N,), 0.75), "learn_alpha": True}


# ------------------------------------------------------------------------------------------- sinabs
class SinabsALIF(_Projected):
    """sinabs ALIFRecurrent, its time constants learned; batch first."""

    row, learned, indexed, unit = "sinabs_sub", ("tau_mem", "tau_adapt"), True, 16.0
    ALIF = True

    def make(self, recurrent: nn.Linear) -> nn.Module:
        layers, activation = (importlib.import_module(f"sinabs.{name}")
                              for name in ("layers", "activation"))
        values = {"tau_mem": torch.tensor(20.0), "rec_connect": recurrent,
                  "spike_fn": activation.SingleSpike}  # which their LIF would not take by itself
        if self.ALIF:
            adaptive: nn.Module = layers.ALIFRecurrent(
                **values, tau_adapt=torch.tensor(200.0), adapt_scale=1.8)
            return adaptive
        plain: nn.Module = layers.LIFRecurrent(**values)
        return plain

    def reset(self) -> None:
        self.layer.reset_states()  # type: ignore[operator]

    def theirs(self, x: Tensor) -> Tensor:
        return self.layer(self.project(x).transpose(0, 1)).transpose(0, 1)


class SinabsLIF(SinabsALIF):
    """sinabs LIFRecurrent of single spikes, its time constant learned; batch first."""

    learned, ALIF, unused = ("tau_mem",), False, ("layer.spike_threshold",)


# ------------------------------------------------------------------------------------- SpikingJelly
class SpikingJelly(_Projected):
    """SpikingJelly LinearRecurrentContainer with LIFNode: two input matrices, one behind the
    other, both learned."""

    row, indexed = "sj_hard", True

    def make(self, recurrent: nn.Linear) -> nn.Module:
        package = "spikingjelly.activation_based"
        layers, neurons = (importlib.import_module(f"{package}.{name}")
                           for name in ("layer", "neuron"))
        N = recurrent.weight.shape[0]
        layer: nn.Module = layers.LinearRecurrentContainer(neurons.LIFNode(), N, N, step_mode="m")
        with torch.no_grad():
            layer.rc.weight.copy_(  # type: ignore[operator, union-attr]
                torch.cat([torch.eye(N), recurrent.weight], dim=1))
            layer.rc.bias.fill_(GRID)  # type: ignore[operator, union-attr]
        return layer

    def reset(self) -> None:
        importlib.import_module("spikingjelly.activation_based.functional").reset_net(self.layer)

    def theirs(self, x: Tensor) -> Tensor:
        return self.layer(self.project(x))


# ------------------------------------------------------------------------------------ written loops
def spread(low: float, high: float, size: int) -> nn.Parameter:
    """Values of the neurons, each its own."""
    return nn.Parameter(torch.linspace(low, high, size))


class Yin(Pair):
    """The SRNN loop of Yin et al., tau_m and tau_adp of each neuron learned."""

    # Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021)
    row, learned, unit = "srnn", ("tau_m of each neuron", "tau_adp of each neuron"), 0.25
    is_loop = True

    def build(self, w_in: Tensor, w_rec: Tensor) -> None:
        self.project, self.recurrent = linear_of(w_in), linear_of(w_rec)
        self.tau_m, self.tau_adp = spread(15, 25, self.size), spread(150, 250, self.size)

    def theirs(self, x: Tensor) -> Tensor:
        current, w_rec = self.project(x), self.recurrent.weight.T
        alpha, rho = torch.exp(-1 / self.tau_m), torch.exp(-1 / self.tau_adp)
        v = z = torch.zeros_like(current[0])
        b = torch.full_like(v, 0.01)
        spikes = []
        for c in current.unbind():
            b = rho * b + (1 - rho) * z
            threshold = 0.01 + 1.8 * b
            v = alpha * v + (1 - alpha) * (c + z @ w_rec) - threshold * z
            z = multi_gaussian(v - threshold)
            spikes.append(z)
        return torch.stack(spikes)


class RadLIF(Pair):
    """The RadLIF loop of Bittar and Garner, alpha, beta, a and b of each neuron learned."""

    # Bittar and Garner, Frontiers in Neuroscience 16, 865897 (2022)
    row, unit, is_loop = "adlif", 8.0, True
    learned = tuple(f"{name} of each neuron" for name in ("alpha", "beta", "a", "b"))

    def build(self, w_in: Tensor, w_rec: Tensor) -> None:
        self.project = linear_of(w_in)
        self.V = nn.Parameter(w_rec.T.contiguous())  # (from, to)
        self.alpha, self.beta = spread(0.85, 0.95, self.size), spread(0.97, 0.99, self.size)
        self.a, self.b = spread(0.0, 0.2, self.size), spread(0.0, 2.0, self.size)

    def clamped(self) -> tuple[Tensor, ...]:
        """The neuron's coefficients within the bounds that are published."""
        def decay(value: Tensor, shortest: float, longest: float) -> Tensor:
            low, high = torch.exp(-1 / torch.tensor([shortest, longest]))
            return value.clamp(low, high)

        return (decay(self.alpha, 5, 25), decay(self.beta, 30, 120), self.a.clamp(-1, 1),
                self.b.clamp(0, 2))

    def theirs(self, x: Tensor) -> Tensor:
        current, V = self.project(x), self.V.clone().fill_diagonal_(0)
        alpha, beta, a, b = self.clamped()
        u = w = z = torch.zeros_like(current[0])
        spikes = []
        for c in current.unbind():
            w = beta * w + b * z + a * u
            # They write alpha (u - z), which rounds otherwise.
            u = alpha * u + (1 - alpha) * (c + z @ V - w) - alpha * z
            z = boxcar(u - 1.0)
            spikes.append(z)
        return torch.stack(spikes)


PAIRS: dict[str, type[Pair]] = {
    "norse LSNNRecurrent": NorseLSNN, "norse LIFRecurrent": NorseLIF, "snnTorch RLeaky": RLeaky,
    "snnTorch RSynaptic": RSynaptic, "sinabs ALIFRecurrent": SinabsALIF,
    "sinabs LIFRecurrent": SinabsLIF, "SpikingJelly LIFNode": SpikingJelly,
    "Yin et al., SRNN loop": Yin, "Bittar and Garner, RadLIF loop": RadLIF,
}
