"""Balanced resonate-and-fire (BRF) neuron."""
from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import double_gaussian

CURRENT = 40  # a constant current at which it fires


def step(c: Tensor, u: Tensor, v: Tensor, q: Tensor, z: Tensor, *, omega: Tensor | float = 10.0,
         b_offset: Tensor | float = 1.0, theta: Tensor | float = 1.0,
         gamma: Tensor | float = 0.9, dt: float = 0.01) -> tuple[Tensor, ...]:
    """The resonate-and-fire neuron, damped so that it cannot diverge, with a refractory variable.

        b_t = (sqrt(1 - (dt omega)^2) - 1) / dt - b_offset - q_{t-1}     divergence boundary
        u_t = u_{t-1} + dt (b_t u_{t-1} - omega v_{t-1} + c_t)
        v_t = v_{t-1} + dt (omega u_{t-1} + b_t v_{t-1})
        z_t = 1 where u_t > theta + q_{t-1}
        q_t = gamma q_{t-1} + z_t                       raises threshold and damping: smooth reset

    Args:
        c, u, v, q, z: (B, N) current, both parts of the membrane, refractory variable, last spike.
        omega: angular frequency in rad/s, 0 <= omega < 1 / dt. Default 10.
        b_offset: damping beyond the boundary in 1/s, >= 0. Default 1.
        theta: threshold. Default 1.
        gamma: decay of q over a step. Default 0.9.
        dt: duration of a step in s. Default 0.01.

    Returns:
        u, v, q, z.

    Source: Higuchi, Kairat, Bohte and Otte, Balanced resonate-and-fire neurons, ICML 2024 (arXiv
    2402.14603). Follows their code (AdaptiveAILab/brf-neurons, `brf_update`). The paper adds the
    previous spike to q; the code adds this spike to the q that the next step reads, which is
    equivalent. The code takes the absolute values of omega and b_offset; here the caller does.
    """
    b = ((1 - (dt * omega) ** 2) ** 0.5 - 1) / dt - b_offset - q
    u, v = u + b * u * dt - omega * v * dt + c * dt, v + omega * u * dt + b * v * dt
    z = double_gaussian(u - theta - q)
    return u, v, gamma * q + z, z


neuron = Neuron(step)
