"""ALIF and LIF: recurrent layers of spiking neurons that are called as nn.LSTM is."""
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from ..models import Coefficient
from .layer_arguments import LayerArguments
from .recurrent import Recurrent


class ALIF(Recurrent):
    """Adaptive leaky integrate-and-fire neurons with recurrent weights (Bellec et al. 2018,
    equations (1) to (9)).

    input_size, hidden_size, num_layers, bias, batch_first, dropout (between layers), bidirectional:
    as in nn.LSTM.
    recurrent    False: no recurrent weights, hence no autapses and no delay, at no cost
    dynamics     the name of a model, "lsnn" is the paper. With any other the six arguments that
                 follow have to be given: what is None below stands for the paper's value, which is
                 no other model's
    tau_mem, tau_adapt   time constants in the unit of dt (ms), > 0: a number or one per neuron
                         (N,); None: 20 and 200
    beta         rise of the threshold per unit of adaptation (4), a number or (N,); None: 1.8
    threshold    theta of (4), > 0, a number or (N,); None: 0.01
    refractory   steps after a spike without another (9); None: 0
    autapses     False: the diagonal of weight_hh acts as 0; None: False
    delay        extra delay in steps, d_jk of (1): an int, or integers (N, N) from neuron j to
                 neuron k
    dt           duration of a step (ms)
    surrogate, dampening   the surrogate and its height; None: the model's own, for "lsnn"
                           "triangle" and 0.3
    surrogate_cutoff   see functional.alif; 0: none
    learn        names among tau_mem, tau_adapt, beta, threshold that become Parameters; the others
                 are buffers. A pass raises ValueError where one has left its range, before anything
                 is NaN: clamp it after optimizer.step(), or parametrize it. That is looked at on
                 the CPU and outside of torch.compile
    checkpoint_every   steps between saved states, or bytes such as "500 MB": less memory for long
                       sequences, see functional.alif; None saves the membrane of every step
    saved_dtype  torch.bfloat16: in half the memory, which rounds gradients; None: as it is

    Parameters per layer and direction, named as in nn.LSTM: weight_ih_l0 (N, I),
    weight_hh_l0 (N, N) with the target neuron first, bias_ih_l0 (N,); and tau_mem_l0,
    tau_adapt_l0, beta_l0, threshold_l0 of the shape given.
    Raises ValueError or TypeError naming the argument for what is out of range.
    """

    _paper: ClassVar = {"tau_mem": 20.0, "tau_adapt": 200.0, "beta": 1.8, "threshold": 0.01,
                        "refractory": 0, "autapses": False}

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
                 recurrent: bool = True, dynamics: str = "lsnn",
                 tau_mem: Coefficient | None = None, tau_adapt: Coefficient | None = None,
                 beta: Coefficient | None = None, threshold: Coefficient | None = None,
                 refractory: int | None = None, delay: int | Tensor = 0, dt: float = 1.0,
                 surrogate: str | None = None, dampening: float | None = None,
                 surrogate_cutoff: float = 0.0,
                 learn: Iterable[str] = (), autapses: bool | None = None,
                 checkpoint_every: int | str | None = None, saved_dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(input_size, hidden_size, LayerArguments(
            num_layers=num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent=recurrent, dynamics=dynamics,
            neuron={"tau_mem": tau_mem, "tau_adapt": tau_adapt, "beta": beta,
                    "threshold": threshold},
            refractory=refractory, delay=delay, dt=dt, surrogate=surrogate, dampening=dampening,
            surrogate_cutoff=surrogate_cutoff,
            learn=learn, autapses=autapses, checkpoint_every=checkpoint_every,
            saved_dtype=saved_dtype, device=device, dtype=dtype))


class LIF(Recurrent):
    """Leaky integrate-and-fire neurons: ALIF without adaptation (beta = 0 in equation (4));
    arguments as there.

    Without adaptation nothing else holds a neuron back, so None stands for the paper's refractory
    time of 5 steps here: with 0 a fresh layer fires in 40 % of all steps. learn takes names among
    tau_mem, threshold.
    """

    _paper: ClassVar = {"tau_mem": 20.0, "threshold": 0.01, "refractory": 5, "autapses": False}

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
                 recurrent: bool = True, dynamics: str = "lsnn",
                 tau_mem: Coefficient | None = None, threshold: Coefficient | None = None,
                 refractory: int | None = None, delay: int | Tensor = 0, dt: float = 1.0,
                 surrogate: str | None = None, dampening: float | None = None,
                 surrogate_cutoff: float = 0.0,
                 learn: Iterable[str] = (), autapses: bool | None = None,
                 checkpoint_every: int | str | None = None, saved_dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(input_size, hidden_size, LayerArguments(
            num_layers=num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent=recurrent, dynamics=dynamics,
            neuron={"tau_mem": tau_mem, "threshold": threshold},
            refractory=refractory, delay=delay, dt=dt, surrogate=surrogate, dampening=dampening,
            surrogate_cutoff=surrogate_cutoff,
            learn=learn, autapses=autapses, checkpoint_every=checkpoint_every,
            saved_dtype=saved_dtype, device=device, dtype=dtype))
