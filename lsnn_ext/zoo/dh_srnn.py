"""Neuron of the DH-SRNN, with two dendritic branches (DH-LIF)."""
import math

from torch import Tensor

from ..codegen.neuron import Neuron
from .surrogates import multi_gaussian

CURRENT = 4  # a constant current at which it fires
ALPHA, BETA = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-4))  # sigmoid(2), sigmoid(4)


def step(c1: Tensor, c2: Tensor, d1: Tensor, d2: Tensor, v: Tensor, z: Tensor, *,
         alpha: Tensor | float = ALPHA, beta1: Tensor | float = BETA,
         beta2: Tensor | float = BETA, theta: Tensor | float = 1.0) -> tuple[Tensor, ...]:
    """Two filtered currents, with separate weights and time constants, into one membrane.

        dk_t = betak dk_{t-1} + (1 - betak) ck_t                       k = 1, 2
        v_t = alpha v_{t-1} + (1 - alpha) (d1_t + d2_t) - theta z_{t-1}
        z_t = 1 where v_t > theta

    Args:
        c1, c2: (B, N) currents of the branches.
        d1, d2, v, z: (B, N) dendritic currents, membrane, last spike.
        alpha: decay of the membrane over a step, sigmoid of the learned number. Default sigmoid(2).
        beta1, beta2: decays of the branches, likewise. Default sigmoid(4).
        theta: threshold, and reset. Default 1.

    Returns:
        d1, d2, v, z.

    Source: Zheng et al., Temporal dendritic heterogeneity incorporated with spiking neural networks
    for learning multi-timescale dynamics, Nature Communications 15, 277 (2024). Follows
    their code (eva1801/DH-SNN, `spike_rnn_test_denri_wotanh_R`); defaults are the centers of the
    initial ranges of its DH-SRNN on SHD. It masks weights so that every input reaches one branch of
    a neuron: multiply w_in and w_rec by the mask. Its initial membranes and spikes are random: pass
    state. Another branch is another current, state and decay.
    """
    d1 = beta1 * d1 + (1 - beta1) * c1
    d2 = beta2 * d2 + (1 - beta2) * c2
    v = alpha * v + (1 - alpha) * (d1 + d2) - theta * z
    return d1, d2, v, multi_gaussian(v - theta)


neuron = Neuron(step)
