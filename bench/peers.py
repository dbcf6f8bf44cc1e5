"""The layers of other packages, as their documentation builds them, in modules from x (T, B, I) to
spikes (T, B, N).

Each has its own equations and keeps its own threshold, so its firing rate at the same weights is
its own too; measure.py scales the input weights until it fires about as often as ours. Their cost
hardly depends on it, but silent layers and gradients that overflow would tell nothing. Packages are
imported when a layer is made, so that a missing one does not stop the others.
"""
import importlib

import torch
from torch import Tensor, nn

from bench.problem import ALPHA, BETA, TAU_ADAPT, TAU_MEM, Problem


def linear_of(weight: Tensor) -> nn.Linear:
    """A map without bias that starts from this weight (to, from)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


class Norse(nn.Module):
    """LSNNRecurrent: adaptive threshold, synaptic current, input weights inside."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        norse = importlib.import_module("norse.torch")
        N, I = problem.w_in.shape
        self.layer = norse.LSNNRecurrent(I, N)
        with torch.no_grad():
            self.layer.input_weights.copy_(problem.w_in)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class SnnTorch(nn.Module):
    """RLeaky: no adaptation, so it does less work than the others; its recurrent Linear always has
    a bias."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        snntorch = importlib.import_module("snntorch")
        self.project = linear_of(problem.w_in)
        self.layer = snntorch.RLeaky(beta=ALPHA, linear_features=problem.w_in.shape[0])
        # it has no gain of 1 - alpha; with the weights of the others its gradients overflow
        with torch.no_grad():
            self.layer.recurrent.weight.copy_((1 - ALPHA) * problem.w_rec.T)
            self.layer.recurrent.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        spikes, membrane = self.layer.init_rleaky()
        out = []
        for c in self.project(x):
            spikes, membrane = self.layer(c, spikes, membrane)
            out.append(spikes)
        return torch.stack(out)


class Sinabs(nn.Module):
    """ALIFRecurrent: the neuron of the LSNN paper with another reset; batch first; its time
    constants learn."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        layers = importlib.import_module("sinabs.layers")
        self.project = linear_of(problem.w_in)
        self.layer = layers.ALIFRecurrent(
            tau_mem=torch.tensor(TAU_MEM), tau_adapt=torch.tensor(TAU_ADAPT), adapt_scale=BETA,
            rec_connect=linear_of(problem.w_rec.T))

    def forward(self, x: Tensor) -> Tensor:
        self.layer.reset_states()  # it keeps its state, and with it the graph, from call to call
        return self.layer(self.project(x).transpose(0, 1)).transpose(0, 1)


class SpikingJelly(nn.Module):
    """LinearRecurrentContainer with LIFNode: no adaptation; its Linear multiplies the projected
    input once more.

    That Linear takes (input, spikes) to as many features as the input has. Recurrence among all N
    neurons thus needs N of them: the input is projected in front of the container, which multiplies
    the result again, here by 1.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        layers, neurons, functional = (
            importlib.import_module(f"spikingjelly.activation_based.{name}")
            for name in ("layer", "neuron", "functional"))
        self.reset = functional.reset_net
        N = problem.w_in.shape[0]
        self.project = linear_of(problem.w_in)
        node = neurons.LIFNode(tau=TAU_MEM)
        self.layer = layers.LinearRecurrentContainer(node, N, N, bias=False, step_mode="m")
        with torch.no_grad():
            self.layer.rc.weight.copy_(torch.cat([torch.eye(N), problem.w_rec.T], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.layer)  # it keeps its state, and with it the graph, from call to call
        return self.layer(self.project(x))


LAYERS: dict[str, type[nn.Module]] = {
    "norse LSNN": Norse, "snnTorch RLeaky": SnnTorch, "sinabs ALIF": Sinabs,
    "SpikingJelly LIF": SpikingJelly,
}
# Why these two need so long for the backward pass of the longer yardsticks.
INDEXED = (
    "it takes its input with an index at each step, and in the backward pass of PyTorch each of "
    "them makes a gradient of zeros as large as the whole sequence: time that grows with the "
    "square of the steps")
WITH_INDEX = ("sinabs ALIF", "SpikingJelly LIF")
PACKAGES = ("torch", "numpy", "jax", "norse", "snntorch", "sinabs", "spikingjelly")
