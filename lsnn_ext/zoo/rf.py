"""Resonate-and-fire (RF) neuron."""
from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import double_gaussian

CURRENT = 15  # a constant current at which it fires


def step(c: Tensor, u: Tensor, v: Tensor, z: Tensor, *, omega: Tensor | float = 10.0,
         b_offset: Tensor | float = 1.0, theta: Tensor | float = 1.0, dt: float = 0.01,
         ) -> tuple[Tensor, ...]:
    """A damped oscillator u + i v by Euler steps; it fires where u > theta, without a reset.

        u_t = u_{t-1} + dt (-b_offset u_{t-1} - omega v_{t-1} + c_t)
        v_t = v_{t-1} + dt (omega u_{t-1} - b_offset v_{t-1})
        z_t = 1 where u_t > theta

    Args:
        c, u, v, z: (B, N) current, both parts of the membrane, last spike.
        omega: angular frequency in rad/s, >= 0. Default 10.
        b_offset: damping in 1/s, >= 0. Default 1. The Euler steps diverge below about
            dt omega^2 / 2.
        theta: threshold. Default 1.
        dt: duration of a step in s. Default 0.01.

    Returns:
        u, v, z.

    Source: Izhikevich, Neural Networks 14, 883 (2001), as the baseline of Higuchi et al., Balanced
    resonate-and-fire neurons, ICML 2024. Follows their code (AdaptiveAILab/brf-neurons,
    `rf_update`), which takes the absolute values of omega and b_offset; here the caller does.
    """
    u, v = (u - b_offset * u * dt - omega * v * dt + c * dt,
            v + omega * u * dt - b_offset * v * dt)
    return u, v, double_gaussian(u - theta)


neuron = Neuron(step)
