"""Readouts with a synaptic current, and the loop that they stand for."""
import math
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import LeakyReadout, ReadoutState

T, B, N, O = 40, 3, 6, 4
BOTH = ("tau", "tau_syn")


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64).to(dtype)


def spikes(*shape: int) -> Tensor:
    return (drawn(*shape, seed=5) > 0.5).double()


def make(tau: float | None = 7.0, tau_syn: float | None = 3.0, **options: Any) -> LeakyReadout:
    made = LeakyReadout(N, O, tau, tau_syn=tau_syn, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        made.weight.copy_(drawn(O, N, seed=1))
        if made.bias is not None:
            made.bias.copy_(drawn(O, seed=2))
        if made.per_neuron:
            for name in made.learn:
                setattr(made, name, torch.linspace(2.0, 30.0, O, dtype=made.weight.dtype))
    return made


def start() -> ReadoutState:
    return ReadoutState(drawn(B, O, seed=3), drawn(B, O, seed=4))


def _decay(tau: Any, dt: float) -> Any:
    if not isinstance(tau, Tensor):
        return math.exp(-dt / tau) if tau else 0.0
    return torch.exp(-dt / tau)


def loop_of(made: LeakyReadout, x: Tensor, state: ReadoutState | None = None) -> Any:
    """Written from the equations, of (T, B, n)."""
    k, k_syn = _decay(made.tau, made.dt), _decay(made.tau_syn, made.dt)
    zero = torch.zeros(x.shape[1], made.output_size, dtype=x.dtype)
    p, i = (zero, zero) if state is None else state
    steps = []
    for x_t in x:
        c = x_t @ made.weight.T
        i = k_syn * i + (c if made.bias is None else c + made.bias)
        p = k * p + (1 - k) * i
        steps.append(p)
    return torch.stack(steps), ReadoutState(p, i)
