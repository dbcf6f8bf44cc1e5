"""Complex state-space inspired leaky integrate-and-fire (C-SiLIF) neuron."""
import cmath
import math

from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import boxcar

CURRENT = 0.5  # a constant current at which it fires
DT = math.sqrt(0.01 * 0.5)  # geometric mean of the initial range
ALPHA = cmath.exp((-0.5 + 1j * math.pi) * DT)


def step(c: Tensor, u: Tensor, z: Tensor, *,
         alpha_real: Tensor | float = ALPHA.real, alpha_imag: Tensor | float = ALPHA.imag,
         b: Tensor | float = 0.5, theta: Tensor | float = 1.0) -> tuple[Tensor, ...]:
    """A complex membrane that decays and rotates in each step.

        u_t = alpha (u_{t-1} - z_{t-1} / 2) + b c_t           u, alpha complex
        z_t = 1 where 2 Re(u_t) > theta

    Args:
        c, u, z: (B, N) current, complex membrane, last spike.
        alpha_real, alpha_imag: of alpha = exp((-rate + i omega) dt), where log rate, omega and log
            dt are learned. Default rate 1/2, omega pi, dt sqrt(0.01 0.5): the geometric mean of
            the initial range.
        b: weight of the current. Default 0.5, the mean of its initial values.
        theta: threshold. Default 1.

    Returns:
        u, z.

    Source: Fabre, Dudchenko, Bouhadjar and Neftci, SiLIF: structured state space model dynamics and
    parametrization for spiking neural networks (arXiv 2506.06374). Follows their code
    (Maxtimer97/SSM-inspired-LIF, `CSiLIFLayer`), with its reset by 1/2. It has no recurrent
    weights and random initial states.
    """
    u = (alpha_real + 1j * alpha_imag) * (u - 0.5 * z) + b * c
    return u, boxcar(2 * u.real - theta)


neuron = Neuron(step)
