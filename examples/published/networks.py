"""Published networks as loops over time in plain PyTorch, from the tensors of their checkpoints."""
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lsnn_ext.zoo import alif_at_once
from lsnn_ext.zoo.surrogates import multi_gaussian
from smnist.networks import draw_start

Tensors = Mapping[str, Tensor]
States = tuple[Tensor, ...]  # (B, N) each; the last is the output
Branch = tuple[Tensor, Tensor | None]  # weight and bias of a current


def step_srnn(c: Tensor, v: Tensor, a: Tensor, z: Tensor, *, alpha: Tensor, rho: Tensor,
              beta: float, theta: float) -> States:
    """Returns v, a, z after a step of the adaptive neuron of Yin et al. (2021).

    It is the model "srnn" of lsnn_ext, written out because `convert` takes plain PyTorch.
    """
    a = rho * a + (1 - rho) * z
    threshold = theta + beta * a
    v = alpha * v + (1 - alpha) * c - threshold * z
    return v, a, multi_gaussian(v - threshold)


def step_dendrites(*given: Tensor, alpha: Tensor, betas: Sequence[Tensor | float],
                   theta: float) -> States:
    """Returns branches, v, z after a step of lsnn_ext.zoo.dh_srnn with any number of branches.

    Args:
        given: currents of the branches, states of the branches, v, z; (B, N) each.
        alpha, betas, theta: as in the zoo.
    """
    K, (*_, v, z) = len(betas), given
    branches = [beta * d + (1 - beta) * c
                for c, d, beta in zip(given[:K], given[K:-2], betas, strict=True)]
    v = alpha * v + (1 - alpha) * sum(branches) - theta * z
    return *branches, v, multi_gaussian(v - theta)


def step_leaky(c: Tensor, y: Tensor, *, alpha: Tensor) -> States:
    """Returns y after a step of a leaky output."""
    return (alpha * y + (1 - alpha) * c,)


class Layer(nn.Module):
    """Neurons of one kind.

    Args:
        step: a function of currents, states and constants that returns the states.
        states: their number.
        branches: of each current. A weight is (N, I), or (N, I + N) with the past spikes.
        constants: of the step.
    """

    def __init__(self, step: Callable[..., States], states: int, branches: Sequence[Branch],
                 **constants: Any) -> None:
        super().__init__()
        self.neuron, self.states, self.branches = step, states, branches
        self.constants = constants
        self.N = len(branches[0][0])

    def forward(self, x: Tensor, states: States) -> States:
        """Returns the states after inputs x (B, I)."""
        if self.branches[0][0].shape[1] > x.shape[1]:
            x = torch.cat([x, states[-1]], 1)
        currents = [nn.functional.linear(x, *branch) for branch in self.branches]
        return self.neuron(*currents, *states, **self.constants)


class Network(nn.Module):
    """Layers that read the outputs of the layer before in the same step.

    Args:
        layers: from the input on.
        is_analog: whether the result is the first state of the last layer, not its spikes.
    """

    def __init__(self, *layers: Layer, is_analog: bool = False) -> None:
        super().__init__()
        self.layers, self.is_analog = nn.ModuleList(layers), is_analog

    def forward(self, x: Tensor, start: Sequence[States]) -> list[Tensor]:
        """Returns the spikes (T, B, N) of all layers, of the last one the result.

        Args:
            x: inputs (T, B, I).
            start: states of each layer before the first step.
        """
        states, found = list(start), []
        for below in x:
            for k, layer in enumerate(self.layers):
                states[k] = layer(below, states[k])
                below = states[k][-1]
            result = states[-1][0 if self.is_analog else -1]
            found.append([*(each[-1] for each in states[:-1]), result])
        return [torch.stack(each) for each in zip(*found, strict=True)]


# ------------------------------------------------------------------------------- the checkpoints
def build_higuchi(p: Tensors, neuron: ModuleType) -> Network:
    """Returns a recurrent layer of a neuron of the zoo and leaky outputs (brf-neurons)."""
    def compute_decay(name: str) -> Tensor:
        return torch.exp(-1 / p[name].abs())

    if neuron is alif_at_once:
        constants = {"alpha": compute_decay("hidden.tau_mem"),
                     "rho": compute_decay("hidden.tau_adp")}
    else:
        constants = {name: p[f"hidden.{name}"].abs() for name in ("omega", "b_offset")}
    return Network(
        Layer(neuron.step, len(neuron.neuron.inputs) - 1, [(p["hidden.linear.weight"], None)],
              **constants),
        Layer(step_leaky, 1, [(p["out.linear.weight"], None)],
              alpha=compute_decay("out.tau_mem")),
        is_analog=True)


def build_zheng(p: Tensors) -> Network:
    """Returns two recurrent layers with dendritic branches and spiking outputs (DH-SNN)."""
    layers, inputs = [], 1
    for name, theta in (("rnn_1", 1.0), ("rnn_2", 1.0), ("dense_2", 0.5)):
        weight, bias = p[f"{name}.dense.weight"], p[f"{name}.dense.bias"]
        alpha = torch.sigmoid(p[f"{name}.tau_m"])
        betas: list[Tensor | float] = [0.0]  # outputs do not filter their currents
        if name != "dense_2":
            betas = list(torch.sigmoid(p[f"{name}.tau_n"]).unbind(1))
            weight = weight[:, :inputs + len(alpha)]  # without inputs that are always 0
        K = len(betas)
        branches = [(weight[k::K].contiguous(), bias[k::K].contiguous()) for k in range(K)]
        layers.append(Layer(step_dendrites, K + 2, branches, alpha=alpha, betas=betas, theta=theta))
        inputs = len(alpha)
    return Network(*layers)


# Of the layers: the end of the names of time constants, the Linears of inputs and past spikes, beta
YIN_MNIST = (("r1", "i2h", "h2h", 1.8), ("r2", "h2d", "d2d", 1.8), ("d1", "dense1", None, 1.8),
             ("o", "d2o", None, 1.8))
YIN_ECG = ("h", "i2h", "h2h", 0.0), ("o", "h2o", None, 1.8)  # hidden neurons do not adapt


def build_yin(p: Tensors, names: Sequence[tuple[str, str, str | None, float]], theta: float,
              is_analog: bool = False) -> Network:
    """Returns layers of adaptive neurons (Efficient-spiking-networks)."""
    layers = []
    for name, inputs, past, beta in names:
        weight, bias = p[f"{inputs}.weight"], p[f"{inputs}.bias"]
        if past is not None:
            weight, bias = torch.cat([weight, p[f"{past}.weight"]], 1), bias + p[f"{past}.bias"]
        layers.append(Layer(step_srnn, 3, [(weight, bias)], beta=beta, theta=theta,
                            alpha=torch.exp(-1 / p[f"tau_m_{name}"]),
                            rho=torch.exp(-1 / p[f"tau_adp_{name}"])))
    return Network(*layers, is_analog=is_analog)


# ----------------------------------------------------------------------------- the first states
def make_zeros(layer: Layer, B: int, random: torch.Generator) -> States:
    """Returns states of 0."""
    return tuple(torch.zeros(B, layer.N) for _ in range(layer.states))


def draw_states(layer: Layer, B: int, random: torch.Generator) -> States:
    """Returns branches of 0, and a membrane and spikes in [0, 1) (DH-SNN)."""
    return *make_zeros(layer, B, random)[2:], *torch.rand(2, B, layer.N, generator=random)


def draw_shared(layer: Layer, B: int, random: torch.Generator, theta: float,
                below: float) -> States:
    """Returns v, a, z of Efficient-spiking-networks; v is also z."""
    v, a = draw_start(layer.N, B, random, theta, below)
    return v, a, v
