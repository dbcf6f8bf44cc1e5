"""ALIF and LIF: recurrent layers of spiking neurons that are called as nn.LSTM is."""
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from .._core.coefficients import Coefficient
from .layer_arguments import LayerArguments, Learn
from .neuron import Kind
from .recurrent import Recurrent


class ALIF(Recurrent):
    """Adaptive leaky integrate-and-fire neurons with recurrent weights (Bellec et al. 2018,
    equations (1) to (9)).

    input_size, hidden_size, num_layers, bias, batch_first, dropout (between layers), bidirectional:
    as in nn.LSTM.
    recurrent    False: no recurrent weights, hence no autapses and no delay, at no cost
    dynamics     the name of a model, "lsnn" is the paper. None in what follows stands for the value
                 that the makers of this model have (docs/modules.md lists them); where they have
                 none it must be given
    tau_mem, tau_adapt   time constants in the unit of dt (ms), > 0: a number or one per neuron
                         (N,); "lsnn": 20 and 200
    beta         rise of the threshold per unit of adaptation (4), a number or (N,); "lsnn": 1.8
    threshold    theta of (4), > 0, a number or (N,); "lsnn": 0.01
    refractory   steps after a spike without another (9), or a time, "5 ms", of whole
                 steps; "lsnn": 0
    autapses     False: the diagonal of weight_hh acts as 0; "lsnn": False
    delay        extra delay in steps, d_jk of (1), on top of the one step that every spike takes:
                 an int, or integers (N, N) from neuron j to neuron k; or the whole of it as a
                 time, "10 ms", of one step or more; None: 0, with "norse_lsnn" 1
    dt           duration of a step (ms)
    surrogate, dampening   the surrogate and its height; None: the model's own, for "lsnn"
                           "triangle" and 0.3
    surrogate_cutoff   see functional.alif; 0: none
    learn        names of constants that become Parameters; the others are buffers. What has a range
                 is learned without bounds: the logarithm of tau_mem, tau_adapt, threshold and
                 width, the logit of alpha, rho and sigma; all else as it is. A dict says otherwise:
                 {"tau_mem": "log", "logit", "clamp" (the makers' own), "plain" (the number itself,
                 in which a pass raises ValueError where it has left its range) or any module with
                 the right_inverse of torch.nn.utils.parametrize, as those of
                 lsnn_ext.modules.parametrizations}
    per_neuron   True, or names of learn: learned for each neuron, from one number too
    checkpoint_every   steps between saved states, or bytes such as "500 MB": less memory for long
                       sequences, see functional.alif; None saves the membrane of every step
    saved_dtype  torch.bfloat16: in half the memory, which rounds gradients; None: as it is
    sparse_grad  "existing": weights of weight_hh that are 0 get no gradient, which takes less time
                 where these are most, as under DEEP R; "all"
    **neuron     the other coefficients of docs/equations.md, numbers or (N,): kappa, q, p, eta,
                 sigma, width, R; alpha or rho in place of tau_mem or tau_adapt; None: the model's
                 rule

    Parameters per layer and direction, named as in nn.LSTM: weight_ih_l0 (N, I),
    weight_hh_l0 (N, N) with the target neuron first, bias_ih_l0 (N,). The constants are readable
    and can be set as tau_mem_l0 and so on, of the shape given, also where they learn; what is
    learned without bounds is parametrized, its Parameter is
    parametrizations.tau_mem_l0.original.
    Raises ValueError or TypeError naming the argument for what is out of range or missing.
    """

    _kind: ClassVar[Kind] = "ALIF"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
                 recurrent: bool = True, dynamics: str = "lsnn",
                 tau_mem: Coefficient | None = None, tau_adapt: Coefficient | None = None,
                 beta: Coefficient | None = None, threshold: Coefficient | None = None,
                 refractory: int | str | None = None, delay: int | str | Tensor | None = None,
                 dt: float = 1.0, surrogate: str | None = None, dampening: float | None = None,
                 surrogate_cutoff: float = 0.0, learn: Learn = (),
                 per_neuron: bool | Iterable[str] = False, autapses: bool | None = None,
                 checkpoint_every: int | str | None = None, saved_dtype: torch.dtype | None = None,
                 sparse_grad: str = "all",
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None,
                 **neuron: Coefficient | None) -> None:
        super().__init__(input_size, hidden_size, LayerArguments(
            num_layers=num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent=recurrent, dynamics=dynamics,
            neuron={"tau_mem": tau_mem, "tau_adapt": tau_adapt, "beta": beta,
                    "threshold": threshold},
            coefficients=neuron, refractory=refractory, delay=delay, dt=dt, surrogate=surrogate,
            dampening=dampening, surrogate_cutoff=surrogate_cutoff,
            learn=learn, per_neuron=per_neuron, autapses=autapses,
            checkpoint_every=checkpoint_every, saved_dtype=saved_dtype,
            sparse_grad=sparse_grad, device=device, dtype=dtype))


class LIF(Recurrent):
    """Leaky integrate-and-fire neurons: ALIF without adaptation (beta = 0 in equation (4), and eta
    = 0 in (5)); arguments as there.

    Without adaptation nothing else holds a neuron of the paper back, so with "lsnn" None stands for
    its refractory time of 5 steps: with 0 a fresh layer fires in 40 % of all steps. learn takes
    tau_mem, threshold, and of **neuron alpha, kappa, sigma, width, R.
    """

    _kind: ClassVar[Kind] = "LIF"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
                 recurrent: bool = True, dynamics: str = "lsnn",
                 tau_mem: Coefficient | None = None, threshold: Coefficient | None = None,
                 refractory: int | str | None = None, delay: int | str | Tensor | None = None,
                 dt: float = 1.0, surrogate: str | None = None, dampening: float | None = None,
                 surrogate_cutoff: float = 0.0, learn: Learn = (),
                 per_neuron: bool | Iterable[str] = False, autapses: bool | None = None,
                 checkpoint_every: int | str | None = None, saved_dtype: torch.dtype | None = None,
                 sparse_grad: str = "all",
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None,
                 **neuron: Coefficient | None) -> None:
        super().__init__(input_size, hidden_size, LayerArguments(
            num_layers=num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent=recurrent, dynamics=dynamics,
            neuron={"tau_mem": tau_mem, "threshold": threshold}, coefficients=neuron,
            refractory=refractory, delay=delay, dt=dt, surrogate=surrogate, dampening=dampening,
            surrogate_cutoff=surrogate_cutoff,
            learn=learn, per_neuron=per_neuron, autapses=autapses,
            checkpoint_every=checkpoint_every, saved_dtype=saved_dtype,
            sparse_grad=sparse_grad, device=device, dtype=dtype))
