"""Adaptive LIF neuron by symplectic Euler steps (SE-adLIF)."""
import math

from torch import Tensor

from ..fuse.neuron import Neuron
from .surrogates import slayer

STATES = ("u", "w")
CURRENT = 12  # a constant current at which it fires
ALPHA, BETA = math.exp(-1 / 15), math.exp(-1 / 180)  # tau 15 and 180 steps


def step(c: Tensor, u: Tensor, w: Tensor, z: Tensor, *, alpha: Tensor | float = ALPHA,
         beta: Tensor | float = BETA, a: Tensor | float = 0.5,
         b: Tensor | float = 1.0, q: Tensor | float = 120.0, theta: Tensor | float = 1.0,
         ) -> tuple[Tensor, ...]:
    """An adaptive LIF neuron, whose adaptation reads membrane and spike of the same step.

        u_t = alpha u_{t-1} + (1 - alpha) (c_t - w_{t-1})
        z_t = 1 where u_t > theta,  u_t <- u_t (1 - z_t)
        w_t = beta w_{t-1} + (1 - beta) q (a u_t + b z_t)

    Args:
        c, u, w, z: (B, N) current, membrane after the reset, adaptation, last spike.
        alpha, beta: decays of u and w over a step, exp(-dt / tau). Default tau 15 and 180 steps,
            the centres of the initial ranges 5 to 25 and 60 to 300.
        a: coupling of the membrane into the adaptation, 0 to 1. Default 0.5.
        b: of spikes, 0 to 2. Default 1. Both: centres of the initial ranges.
        q: gain of both. Default 120, as on SHD.
        theta: threshold. Default 1.

    Returns:
        u, w, z.

    Source: Baronig, Ferrand, Sabathiel and Legenstein, Advancing spatio-temporal processing through
    adaptation in spiking neural networks, Nature Communications 16, 5776 (2025). Their code
    (IGITUGraz/SE-adlif, `SEAdLIF`) is followed: the reset has no gradient, the adaptation by spikes
    has one. `dynamics="se_adlif"` of functional.alif is the same neuron as a model of the package.
    """
    u = alpha * u + (1 - alpha) * (c - w)
    z = slayer(u - theta)
    u = u * (1 - z.detach())
    return u, beta * w + (1 - beta) * (a * u + b * z) * q, z


neuron = Neuron(step)
