"""LSNN: the paper's network, regular and adaptive neurons in one recurrent layer with a leaky readout."""
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..functional import make_savable
from ..reference import Coefficient, State
from .alif import ALIF
from .readout import LeakyReadout


class LSNNState(NamedTuple):
    """What an LSNN carries from one call to the next."""

    neurons: State  # as ALIF with one layer
    readout: Tensor  # (B, output_size): as LeakyReadout


make_savable(LSNNState)


class LSNN(nn.Module):
    """The long short-term memory network of spiking neurons of Bellec et al. 2018.

    input_size, output_size   channels in and out
    n_regular, n_adaptive     neurons without (beta = 0 in equation (4)) and with adaptation, in this order; N in all
    tau_mem, tau_adapt, beta, threshold, refractory   the paper's for sequential MNIST: 20 ms, 700 ms, 1.8, .01, 5 steps
    delay        extra delay of the recurrent spikes in steps, an int or integers (N, N)
    tau_out      time constant of the readout, ms
    bias         of the input, off as in the paper
    learn        as in ALIF; "beta" gives the regular neurons adaptation too
    dynamics, dt, surrogate, dampening, batch_first, autapses, checkpoint_every, saved_dtype, device, dtype: as in
    ALIF

    The parts are `neurons` (ALIF) and `readout` (LeakyReadout).
    Raises ValueError naming the argument for what is out of range.
    """

    def __init__(self, input_size: int, n_regular: int, n_adaptive: int, output_size: int, *,
                 tau_mem: Coefficient = 20.0, tau_adapt: Coefficient = 700.0, beta: float = 1.8,
                 threshold: Coefficient = 0.01, refractory: int = 5, delay: int | Tensor = 0, tau_out: float = 20.0,
                 dynamics: str = "lsnn", dt: float = 1.0, surrogate: str | None = None,
                 dampening: float | None = None, bias: bool = False, batch_first: bool = False,
                 learn: Iterable[str] = (), autapses: bool = False, checkpoint_every: int | str | None = None,
                 saved_dtype: torch.dtype | None = None, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        for name, size in (("n_regular", n_regular), ("n_adaptive", n_adaptive)):
            if not isinstance(size, int) or size < 0:
                raise ValueError(f"{name}: expected a whole number >= 0, got {size!r}")
        if n_regular + n_adaptive == 0:
            raise ValueError("n_adaptive: expected one neuron or more in all, got 0 with n_regular 0")
        self.n_regular, self.n_adaptive = n_regular, n_adaptive
        betas = torch.tensor([0.0] * n_regular + [float(beta)] * n_adaptive, dtype=torch.float64)
        self.neurons = ALIF(input_size, n_regular + n_adaptive, bias=bias, batch_first=batch_first, dynamics=dynamics,
                            tau_mem=tau_mem, tau_adapt=tau_adapt, beta=betas, threshold=threshold,
                            refractory=refractory, delay=delay, dt=dt, surrogate=surrogate, dampening=dampening,
                            learn=learn, autapses=autapses, checkpoint_every=checkpoint_every,
                            saved_dtype=saved_dtype, device=device, dtype=dtype)
        self.readout = LeakyReadout(n_regular + n_adaptive, output_size, tau_out, dt=dt, batch_first=batch_first,
                                    device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws all weights anew, as in the paper's code."""
        self.neurons.reset_parameters()
        self.readout.reset_parameters()

    def forward(self, x: Tensor, state: LSNNState | None = None, *, return_spikes: bool = False,
                ) -> tuple[Tensor, LSNNState] | tuple[Tensor, LSNNState, Tensor]:
        """x (T, B, I), (B, T, I) with batch_first, or (T, I) unbatched -> (readout, state[, spikes]).

        readout has output_size channels in the form of x, spikes (return_spikes=True, to regularise rates) N channels.
        state None is all zeros.  Raises ValueError for wrong shapes and TypeError for a PackedSequence.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        neurons, readout = self.neurons, self.readout
        carried, p = (None, None) if state is None else state
        if neurons._forward_hooks or neurons._forward_pre_hooks or readout._forward_hooks or readout._forward_pre_hooks:
            spikes, end, *_ = neurons(x, carried)  # somebody wants to see what passes between the two
            y, p = readout(spikes, p)
        else:
            readout.check_state(p, (x.shape[0 if neurons.batch_first else 1],) if x.dim() == 3 else ())
            spikes, end, _, y, p, _ = neurons._dense(x, carried, False, p, w_out=readout.weight, k_out=readout.decay,
                                                  spikes=return_spikes)
            assert y is not None and p is not None
            y = y if readout.bias is None else y + readout.bias
        after = LSNNState(end, p)
        return (y, after, spikes) if return_spikes else (y, after)

    def step(self, x_t: Tensor, state: LSNNState | None = None) -> tuple[Tensor, LSNNState]:
        """One step, for control loops: x_t (B, I) or (I,) -> readout (B, output_size) or (output_size,), and the state.

        It equals forward on a sequence of one step, and T such calls give what one call on the sequence gives.
        state None is all zeros.  Raises ValueError for wrong shapes and TypeError for an x_t that is none.
        """
        if not isinstance(x_t, Tensor):
            raise TypeError(f"x_t: expected a tensor, got {type(x_t).__name__}")
        carried, p = (None, None) if state is None else state
        self.readout.check_state(p, tuple(x_t.shape[:-1]))
        spikes, end = self.neurons.step(x_t, carried)
        y, p = self.readout.step(spikes, p)
        return y, LSNNState(end, p)
