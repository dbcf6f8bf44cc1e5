"""The networks of the sequential MNIST example, and what each makes of digits."""
import argparse
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lsnn_ext import ALIF, LSNN, Recurrent
from lsnn_ext.functional import PackedSpikes, State, leaky_readout
from lsnn_ext.zoo import brf
from smnist.data import CHANNELS, analog, encode, windows

ANSWER = 28  # the decision is the readout averaged over the last 28 pixels' time
NAMES = "LSNN", "LIF", "LSTM", "SRNN", "BRF"
UNITS = 128  # of the LSTM
CLASSES = 10
WINDOW, THETA = 8, 0.01  # of the SRNN


class LSTM(nn.Module):
    """nn.LSTM, which sees a grey value a step and answers after the last one; its forget gates
    begin open, with a bias of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, UNITS)
        self.readout = nn.Linear(UNITS, CLASSES)
        with torch.no_grad():
            for name, value in (("bias_ih_l0", 1.0), ("bias_hh_l0", 0.0)):
                self.lstm.get_parameter(name)[UNITS:2 * UNITS] = value

    def forward(self, x: Tensor) -> Tensor:
        """x (T, B, 1) -> (B, 10)."""
        y: Tensor = self.readout(self.lstm(x)[0][-1])
        return y


def draw_start(N: int, B: int, random: torch.Generator, theta: float,
               below: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns first membranes in [0, below), which are also the first spikes, and adaptations of
    theta, (B, N) each, as in Yin et al.'s program."""
    v = below * torch.rand(B, N, generator=random)
    return v, torch.full_like(v, theta)


class SRNN(nn.Module):
    """The four layers of Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021).

    A step shows 8 pixels. Each layer reads the spikes of the layer before in the same step, two of
    them also their own. The output with the most spikes is the answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ALIF(before, N, dynamics="srnn", recurrent=k < 2, threshold=THETA, beta=1.8,
                 tau_mem=20.0, tau_adapt=200.0, per_neuron=True,
                 learn={"tau_mem": "plain", "tau_adapt": "plain"})
            for k, (before, N) in enumerate(pairwise((WINDOW, 64, 256, 256, CLASSES))))

    def start(self, B: int, random: torch.Generator) -> list[State]:
        """Returns the states of all layers before the first step."""
        found = []
        for layer in self.layers:
            v, a = (each[None] for each in draw_start(layer.hidden_size, B, random, THETA))
            zero = torch.zeros_like(v)
            found.append(State(v, a, zero, zero, v[None]))
        return found

    def forward(self, digits: Tensor, start: list[State]) -> Tensor:
        """Spikes of the outputs (B, 10), and the numbers before the first step, for digits
        (B, 784) of bytes."""
        spikes: Tensor | PackedSpikes = windows(digits.float() / 255, WINDOW)
        for layer, state in zip(self.layers[:-1], start[:-1], strict=True):
            spikes, _ = layer(spikes, state, spikes="bits")
        counted, _ = self.layers[-1](spikes, start[-1])
        return start[-1].z[0, 0] + counted.sum(0)


class Abs(nn.Module):
    """A parametrization: the absolute values, or a limit where they are larger."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, value: Tensor) -> Tensor:
        return value.abs().clamp(max=self.limit)


class BRF(nn.Module):
    """Balanced resonate-and-fire neurons that see a grey value a step, with a leaky readout.

    Two first values are near those that the published training ends with, so that neurons fire from
    the first iteration: input weights are GAIN times as large, and TAU is 300 steps instead of 20.

    Source: Higuchi, Kairat, Bohte and Otte, ICML 2024; sizes and other first values of their
    program for permuted pixels (AdaptiveAILab/brf-neurons).
    """

    N = 256
    GAIN, TAU = 200.0, 300.0

    def __init__(self) -> None:
        super().__init__()
        N = self.N
        self.neurons = Recurrent(
            brf.neuron, 1, N, learn=("omega", "b_offset"), omega=torch.empty(N).uniform_(15, 85),
            b_offset=torch.empty(N).uniform_(0.1, 1))
        for name, limit in ("omega", 99.0), ("b_offset", math.inf):  # omega < 1 / dt = 100
            parametrize.register_parametrization(self.neurons, name, Abs(limit))
        with torch.no_grad():  # Glorot uniform, of inputs and past spikes as one matrix
            for weight in self.neurons.weight_ih_l0, self.neurons.weight_hh_l0:
                weight.uniform_(-1, 1).mul_((6 / (1 + N + N)) ** 0.5)
            self.neurons.weight_ih_l0.mul_(self.GAIN)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(CLASSES, N)))
        self.tau = nn.Parameter(torch.full((CLASSES,), self.TAU))

    def forward(self, x: Tensor) -> Tensor:
        """Readouts (T, B, 10) of x (T, B, 1)."""
        y, _ = leaky_readout(self.neurons(x)[0], self.weight, torch.exp(-1 / self.tau.abs()))
        return y


def network(name: str, options: argparse.Namespace) -> nn.Module:
    """One of NAMES, drawn with the seed: an LSNN, the same without adaptation, the LSTM, the four
    layers of model srnn of Yin et al., or the resonators."""
    torch.manual_seed(options.seed)
    if name in ("LSTM", "BRF"):
        return LSTM() if name == "LSTM" else BRF()
    if name == "SRNN":
        if options.hold > 1:
            raise SystemExit(f"--hold: expected 1 with the model srnn, got {options.hold}")
        return SRNN()
    N = options.regular + options.adaptive
    # beyond the usual one step
    delay = torch.randint(options.delay, (N, N)) if options.spread else options.delay - 1
    regular, adaptive = (options.regular, options.adaptive) if name == "LSNN" else (N, 0)
    learn = [one for one in options.learn if adaptive or one not in ("tau_adapt", "beta")]
    return LSNN(1 if options.analog else CHANNELS, regular, adaptive, CLASSES,
                tau_adapt=options.tau_adapt, delay=delay, learn=learn)


def spikes(pixels: Tensor, options: argparse.Namespace) -> Tensor:
    """(T, B, I): what an LSNN is shown of pixels (B, 784), in the order in which they come."""
    return (analog if options.analog else encode)(pixels, options.hold)


def answers(net: nn.Module, pixels: Tensor, x: Tensor | None, hold: int,
            start: list[State] | None) -> tuple[Tensor, Tensor | None]:
    """Logits (S, B, 10) of pixels (B, 784), in the order in which they come, and with gradients the
    spikes (T, B, N) of an LSNN. The decision is their mean; the loss is that of each of S steps,
    which are all steps of BRF and one of the others.

    Args:
        x: what an LSNN is shown of the pixels.
        start: the states of srnn.
    """
    if isinstance(net, LSNN):
        readout, _, *found = net(x, return_spikes=torch.is_grad_enabled())
        return readout[-ANSWER * hold:].mean(0, keepdim=True), found[0] if found else None
    if isinstance(net, SRNN):
        assert start is not None
        return net(pixels, start)[None], None
    logits: Tensor = net(analog(pixels, hold))
    return logits if isinstance(net, BRF) else logits[None], None


def first_states(net: nn.Module, B: int, random: torch.Generator) -> list[State] | None:
    """Those of srnn, random numbers; the other networks have none."""
    return net.start(B, random) if isinstance(net, SRNN) else None
