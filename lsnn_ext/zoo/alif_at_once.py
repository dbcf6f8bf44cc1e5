"""Adaptive LIF neuron with a reset in the step of the spike, by the moving threshold."""
import math

from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import double_gaussian

CURRENT = 0.3  # a constant current at which it fires
DECAY = math.exp(-1 / 20)  # tau 20 steps


def step(c: Tensor, u: Tensor, a: Tensor, z: Tensor, *, alpha: Tensor | float = DECAY,
         rho: Tensor | float = DECAY, beta: Tensor | float = 1.8,
         theta: Tensor | float = 0.01) -> tuple[Tensor, ...]:
    """A spike lowers the membrane in the same step, by the moving threshold; differentiable.

        a_t = rho a_{t-1} + (1 - rho) z_{t-1}
        A_t = theta + beta a_t
        u_t = alpha u_{t-1} + (1 - alpha) c_t
        z_t = 1 where u_t > A_t,  u_t <- u_t - A_t z_t

    Args:
        c, u, a, z: (B, N) current, membrane after the reset, adaptation, last spike.
        alpha, rho: decays of u and a over a step, exp(-dt / tau). Default tau 20 steps, both.
        beta: weight of the adaptation in the threshold. Default 1.8.
        theta: threshold at rest. Default 0.01.

    Returns:
        u, a, z.

    Source: the ALIF baseline of Higuchi, Kairat, Bohte and Otte, Balanced resonate-and-fire
    neurons, ICML 2024, after Yin, Corradi and Bohte (2021), where the threshold is subtracted a
    step later. Follows their code (AdaptiveAILab/brf-neurons, `alif_update`).
    """
    a = rho * a + (1 - rho) * z
    threshold = theta + beta * a
    u = alpha * u + (1 - alpha) * c
    z = double_gaussian(u - threshold)
    return u - threshold * z, a, z


neuron = Neuron(step)
