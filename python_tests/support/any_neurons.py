"""Steps of neurons for tests."""
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import Neuron

SCALE = 0.7  # read by steps below


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return g / (1 + m.abs()) ** 2


def adaptive(c, v, w, z, *, tau=5.0, theta):
    """K = 1, S = 2."""
    v = v + (c - v - w) / tau - theta * z.detach()
    w = 0.9 * w + 0.2 * z
    return v, w, Spike.apply(v - theta)


def branches(c, d, u, v, z, *, tau, gain):
    """K = 2, S = 2."""
    u = 0.8 * u + d * SCALE
    v = v + (c + torch.tanh(u) * gain - v) / tau
    v = v * (1 - z)
    return u, v, Spike.apply(v - 0.5)


def analog(c, v, z, *, tau=4.0):
    """K = 1, S = 1, spikes that are numbers."""
    v = v + (c - v) / tau - 0.3 * z
    return v, torch.sigmoid(v)


def normed(c, v, z, *, gain, shift):
    """K = 1, S = 1, with a LayerNorm of the current and one of the membrane."""
    v = 0.9 * v + F.layer_norm(c, c.shape[-1:], gain, shift) - 0.5 * z
    return v, Spike.apply(F.layer_norm(v, v.shape[-1:]) - 0.5)


ADAPTIVE, BRANCHES, ANALOG = Neuron(adaptive), Neuron(branches), Neuron(analog)
NEURONS: dict[str, tuple[Neuron, int, tuple[str, ...]]] = {  # with K, and the names of the states
    "adaptive": (ADAPTIVE, 1, ("v", "w")), "branches": (BRANCHES, 2, ("u", "v")),
    "analog": (ANALOG, 1, ("v",)), "normed": (Neuron(normed), 1, ("v",))}
