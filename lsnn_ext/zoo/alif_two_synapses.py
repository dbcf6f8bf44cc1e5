"""Adaptive LIF neuron with two exponential synapses."""
from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import super_spike

CURRENT = 6  # a constant current at which it fires


def step(c1: Tensor, c2: Tensor, i1: Tensor, i2: Tensor, v: Tensor, a: Tensor, z: Tensor, *,
         rate_mem: Tensor | float = 0.1, rate_syn1: Tensor | float = 0.2,
         rate_syn2: Tensor | float = 0.2, rate_adapt: Tensor | float = 0.001 / 800,
         beta: Tensor | float = 1.8, theta: Tensor | float = 1.0) -> tuple[Tensor, ...]:
    """Two synaptic currents into one membrane with a moving threshold, by Euler steps.

        u_t = v_{t-1} + rate_mem (i1_{t-1} + i2_{t-1} - v_{t-1})
        z_t = 1 where u_t > theta + (1 - rate_adapt) a_{t-1}
        v_t = u_t (1 - z_t)
        a_t = (1 - rate_adapt) a_{t-1} + beta z_t
        ik_t = (1 - rate_synk) ik_{t-1} + ck_t                         k = 1, 2

    Args:
        c1, c2: (B, N) inputs of the synapses, for example excitatory and inhibitory.
        i1, i2, v, a, z: (B, N) synaptic currents, membrane, adaptation, last spike.
        rate_mem, rate_syn1, rate_syn2, rate_adapt: dt / tau. Default steps of 1 ms with tau 10 ms,
            5 ms, 5 ms and 800 s.
        beta: increase of the threshold by a spike. Default 1.8.
        theta: threshold at rest. Default 1.

    Returns:
        i1, i2, v, a, z.

    Source: the code of the LSNN neuron of Norse (norse/norse, `lsnn_step`) with a second synapse,
    after Bellec et al., NeurIPS 2018. The state of Norse is theta + a, here a, 0 at rest. Its 1/800
    is in 1/s. Reset and adaptation pass no gradient to the spike.
    """
    v = v + rate_mem * ((i1 + i2) - v)
    a = a - rate_adapt * a
    z = super_spike(v - (theta + a))
    fired = z.detach()
    return (i1 - rate_syn1 * i1 + c1, i2 - rate_syn2 * i2 + c2, v * (1 - fired), a + beta * fired,
            z)


neuron = Neuron(step)
