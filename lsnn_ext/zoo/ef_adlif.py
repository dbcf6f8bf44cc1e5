"""Adaptive LIF neuron by forward Euler steps (EF-adLIF)."""
import math

from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import slayer

CURRENT = 10  # a constant current at which it fires
ALPHA, BETA = math.exp(-1 / 15), math.exp(-1 / 180)  # tau 15 and 180 steps


def step(c: Tensor, u: Tensor, w: Tensor, z: Tensor, *, alpha: Tensor | float = ALPHA,
         beta: Tensor | float = BETA, a: Tensor | float = 0.5,
         b: Tensor | float = 1.0, q: Tensor | float = 60.0, theta: Tensor | float = 1.0,
         ) -> tuple[Tensor, ...]:
    """An adaptive LIF neuron whose membrane and adaptation both read the previous step.

        u_t = alpha u_{t-1} + (1 - alpha) (c_t - w_{t-1})
        z_t = 1 where u_t > theta,  u_t <- u_t (1 - z_t)
        w_t = beta w_{t-1} + (1 - beta) q (a u_{t-1} + b z_{t-1})

    Args:
        c, u, w, z: (B, N) current, membrane after the reset, adaptation, last spike.
        alpha, beta: decays of u and w over a step, exp(-dt / tau). Default tau 15 and 180 steps,
            the centers of the initial ranges 5 to 25 and 60 to 300.
        a: coupling of the membrane into the adaptation, 0 to 1. Default 0.5.
        b: coupling of spikes, 0 to 2. Default 1. Both: centers of the initial ranges.
        q: gain of both. Default 60.
        theta: threshold. Default 1.

    Returns:
        u, w, z.

    Source: Baronig, Ferrand, Sabathiel and Legenstein, Advancing spatio-temporal processing through
    adaptation in spiking neural networks, Nature Communications 16, 5776 (2025). Follows
    their code (IGITUGraz/SE-adlif, `EFAdLIF`): the reset has no gradient.
    """
    u_new = alpha * u + (1 - alpha) * (c - w)
    w = beta * w + (1 - beta) * (a * u + b * z) * q
    z = slayer(u_new - theta)
    return u_new * (1 - z.detach()), w, z


neuron = Neuron(step)
