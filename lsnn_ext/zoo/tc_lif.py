"""Two-compartment leaky integrate-and-fire (TC-LIF) neuron."""
from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import triangle

CURRENT = 0.3  # a constant current at which it fires


def step(c: Tensor, v_dendrite: Tensor, v_soma: Tensor, z: Tensor, *,
         beta1: Tensor | float = -0.5, beta2: Tensor | float = 0.5, gamma: Tensor | float = 0.5,
         theta: Tensor | float = 1.0) -> tuple[Tensor, ...]:
    """A dendrite that receives the current, and a soma that fires; each drives the other.

        d_t = d_{t-1} + beta1 s_{t-1} + c_t
        s_t = s_{t-1} + beta2 d_t
        z_t = 1 where s_t >= theta
        d_t <- d_t - gamma z_t,  s_t <- s_t - theta z_t

    Args:
        c, v_dendrite, v_soma, z: (B, N) current, membranes, last spike.
        beta1: coupling of the soma into the dendrite, -1 < beta1 < 0. Default -sigmoid(0).
        beta2: coupling of the dendrite into the soma, 0 < beta2 < 1. Default sigmoid(0).
        gamma: reset of the dendrite. Default 0.5.
        theta: threshold, and reset of the soma. Default 1.

    Returns:
        v_dendrite, v_soma, z: membranes after the reset.

    Source: Zhang et al., TC-LIF: a two-compartment spiking neuron model for long-term sequential
    modelling, AAAI 2024 (arXiv 2308.13250), equations (10) to (12) and (21). Follows
    their code (ZhangShimin1/TC-LIF, `TCLIFNode`, triangle), which resets both compartments in the
    step of the spike. In the paper the reset acts a step later, so the soma drives the dendrite
    before its reset, which adds beta1 theta z_{t-1}. The reset has a gradient. The code learns
    beta1 = -sigmoid(p1) and beta2 = sigmoid(p2), one pair for a layer.
    """
    v_dendrite = v_dendrite + beta1 * v_soma + c
    v_soma = v_soma + beta2 * v_dendrite
    z = triangle(v_soma - theta)
    return v_dendrite - gamma * z, v_soma - theta * z, z


neuron = Neuron(step)
