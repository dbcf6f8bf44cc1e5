"""LIF neuron with two exponential synapses."""
import math

from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import ramp

CURRENT = 0.01  # a constant current at which it fires
DECAY = math.exp(-1 / 20)  # tau 20 ms in steps of 1 ms


def step(c1: Tensor, c2: Tensor, i1: Tensor, i2: Tensor, v: Tensor, z: Tensor, *,
         alpha: Tensor | float = DECAY, beta1: Tensor | float = DECAY,
         beta2: Tensor | float = DECAY, theta: Tensor | float = 1.0,
         ) -> tuple[Tensor, ...]:
    """Two synaptic currents, with separate weights and time constants, into one membrane.

        ik_t = betak (ik_{t-1} + ck_t)                                 k = 1, 2
        v_t = alpha v_{t-1} + i1_t + i2_t
        z_t = 1 where v_t >= theta,  v_t <- v_t - theta z_t

    Args:
        c1, c2: (B, N) inputs of the synapses, for example excitatory and inhibitory.
        i1, i2, v, z: (B, N) synaptic currents, membrane, last spike.
        alpha: decay of the membrane over a step, exp(-dt / tau_mem). Default 20 ms in steps of 1.
        beta1, beta2: decays of the currents, exp(-dt / tau_syn). Default 20 ms.
        theta: threshold, and reset. Default 1.

    Returns:
        i1, i2, v, z: the membrane after the reset.

    Source: the code of LIFTorch of Rockpool (synsense/rockpool) with shape (2 N, N). Differences:
    at most one spike a step (its max_spikes_per_dt=1), no noise, no bias, and the learning window
    of 0.5 is in units of the threshold. The reset has a gradient.
    """
    i1 = beta1 * (i1 + c1)
    i2 = beta2 * (i2 + c2)
    v = alpha * v + (i1 + i2)
    z = ramp((v - theta) / theta)
    return i1, i2, v - theta * z, z


neuron = Neuron(step)
