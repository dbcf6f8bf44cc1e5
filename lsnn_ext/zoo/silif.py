"""State-space inspired leaky integrate-and-fire (SiLIF) neuron."""
import math

from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import boxcar

CURRENT = 20  # a constant current at which it fires
ALPHA, BETA = math.exp(-50 * 0.004), math.exp(-5 * 0.004)  # rates in 1/s, steps of 4 ms


def step(c: Tensor, u: Tensor, w: Tensor, z: Tensor, *, alpha: Tensor | float = ALPHA,
         beta: Tensor | float = BETA, a: Tensor | float = 0.5,
         b: Tensor | float = 1.0, theta: Tensor | float = 1.0) -> tuple[Tensor, ...]:
    """An adaptive LIF neuron whose decays derive from logarithms of rates and of the time step.

        w_t = beta w_{t-1} + a u_{t-1} + b z_{t-1}
        u_t = alpha (u_{t-1} - z_{t-1}) + (1 - alpha) (c_t - w_t)
        z_t = 1 where u_t > theta

    Args:
        c, u, w, z: (B, N) current, membrane, adaptation, last spike.
        alpha, beta: decays of u and w over a step, exp(-exp(log_rate + log_dt)) of the
            learned logarithms. Default exp(-50/s 4 ms) and exp(-5/s 4 ms): dt and the geometric
            means of the initial rates.
        a: coupling of the membrane into the adaptation, 0 to 1. Default 0.5.
        b: coupling of spikes, 0 to 2. Default 1. Both: centers of the initial ranges.
        theta: threshold. Default 1.

    Returns:
        u, w, z.

    Source: Fabre, Dudchenko, Bouhadjar and Neftci, SiLIF: structured state space model dynamics and
    parametrization for spiking neural networks (arXiv 2506.06374). Follows their code
    (Maxtimer97/SSM-inspired-LIF, `SiLIFLayer`), which has no recurrent weights and random
    initial states.
    """
    w = beta * w + a * u + b * z
    u = alpha * (u - z) + (1 - alpha) * (c - w)
    return u, w, boxcar(u - theta)


neuron = Neuron(step)
