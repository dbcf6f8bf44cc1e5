"""Recurrent neurons with learned delays."""
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .._core.arguments import is_readable
from .._core.state import State, Traces
from .._core.synapses import spread_kernel
from ..functional import PackedSpikes
from . import ALIF
from .checks import cast_weights, check_input, check_number, check_whole_number, convert_input
from .neuron import format_value
from .recurrent_dropout import drop_synapses

# sparse_grad: a weight of 0 contributes to the gradient of the delay, so all need gradients.
_UNSUPPORTED = ("num_layers", "delay", "bidirectional", "dropout", "batch_first", "recurrent",
                "sparse_grad")


class LearnedDelay(nn.Module):
    """Adaptive neurons whose recurrent delays are real numbers, learned with the weights.

    A delay of d extra steps is spread over the integer delays s around it: w_s = w k(d - s) with a
    triangle k of half width 1 + spread, normalized so that all k of a synapse sum to 1. With
    spread 0 these are the two neighbours of d, (1 - f) w and f w with f = d - floor(d). With a
    larger spread the gradient reaches more distant delays; anneal lowers it during training.

    Parameters are `delay` (N,) or (N, N), and those of the part `neurons`, an ALIF. Delays of
    neurons are a delay_kernel of functional.alif; delays of synapses take the time and memory of
    weights (longest + 1, N, N).

    Args:
        input_size, hidden_size: input channels, and N.
        longest: the largest extra delay in steps, >= 1; delays are in [0, longest].
        per: "neuron": one delay for all synapses of a presynaptic neuron; "synapse": one for each
            synapse. Default "neuron".
        spread: the initial spread in steps, >= 0, in the buffer `spread`. Default 0.
        first: the initial delays, (N,) or (N, N) from neuron j to neuron k. Default: random,
            uniform in [0, longest].
        **neuron: arguments of ALIF except num_layers, delay, bidirectional, dropout, batch_first,
            recurrent and sparse_grad.

    Raises:
        TypeError, ValueError: an invalid argument. A call raises ValueError for a delay out of
            range: call clamp_ after optimizer.step().

    Source: triangle and annealing as in DelRec (2025), delays with a spread as in DCLS (Hammouamri
    et al., ICLR 2024).
    """

    spread: Tensor

    def __init__(self, input_size: int, hidden_size: int, longest: int, *, per: str = "neuron",
                 spread: float = 0.0, first: Tensor | None = None, **neuron: Any) -> None:
        super().__init__()
        check_whole_number("longest", longest, 1)
        if per not in ("neuron", "synapse"):
            raise ValueError(f"per: expected 'neuron' or 'synapse', got {per!r}")
        check_number("spread", spread)
        for name in _UNSUPPORTED:
            if name in neuron:
                raise TypeError(f"{name}: expected none in LearnedDelay, got {neuron[name]!r}")
        self.longest, self.per = longest, per
        self.neurons = ALIF(input_size, hidden_size, delay=0, **neuron)
        weight = self.neurons.weight_hh_l0
        shape = (hidden_size,) if per == "neuron" else (hidden_size, hidden_size)
        if first is None:
            first = longest * torch.rand(shape)
        if tuple(first.shape) != shape:
            raise ValueError(f"first: expected shape {shape}, got {tuple(first.shape)}")
        self.delay = nn.Parameter(first.detach().to(weight, copy=True))
        self._check_range("first")
        self._first_spread = float(spread)
        self.register_buffer("spread", torch.tensor(float(spread), dtype=weight.dtype,
                                                    device=weight.device))

    def extra_repr(self) -> str:
        return f"longest={self.longest}, per={self.per!r}, spread={format_value(self.spread)}"

    def _check_range(self, name: str = "delay") -> None:
        if not is_readable(self.delay.detach()):
            return
        low, high = self.delay.detach().aminmax()
        if not (low >= 0 and high <= self.longest):
            raise ValueError(f"{name}: expected numbers from 0 to longest = {self.longest}, got "
                             f"{float(low):.6g} to {float(high):.6g}; call clamp_() after each "
                             f"step of the optimizer")

    def anneal(self, done: float) -> None:
        """Lowers the spread linearly to 0; done: the fraction of the training, from 0 to 1."""
        if not 0 <= done <= 1:
            raise ValueError(f"done: expected a fraction from 0 to 1, got {done}")
        self.spread.fill_(self._first_spread * (1 - done))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamps delays to [0, longest]."""
        self.delay.clamp_(0, self.longest)

    def shares(self) -> Tensor:
        """k of each integer delay, (longest + 1, N) or (longest + 1, N, N); the sum is 1.

        At corners of the triangle, such as integer delays, the derivative is the one to the right,
        at the longest delay the one to the left, so no delay gets stuck there.
        """
        self._check_range()
        d = self.delay
        steps = torch.arange(self.longest + 1, dtype=d.dtype, device=d.device)
        u = (d - steps.view(-1, *[1] * d.dim())) / (1 + self.spread)
        right = d < self.longest
        falls = torch.where(right, u >= 0, u > 0)
        inside = torch.where(right, (u >= -1) & (u < 1), (u > -1) & (u <= 1))
        k = torch.where(inside, torch.where(falls, 1 - u, 1 + u), 0.0)
        return k / k.sum(0)

    def recurrent_weight(self) -> Tensor:
        """The weights of each integer delay, (longest + 1, N, N), from neuron j to neuron k, for
        functional.alif with delay=range(longest + 1)."""
        w: Any = self.neurons._mask_recurrent_weight("_l0")
        k = self.shares()
        return w * k if k.dim() == 3 else spread_kernel(w, k)

    def round_delays(self) -> Tensor:
        """The nearest integer delays (N, N), from neuron j to neuron k, for ALIF."""
        N = self.neurons.hidden_size
        d = self.delay.detach().round().to(torch.int64)
        return (d if d.dim() == 2 else d[:, None]).expand(N, N).contiguous()

    def forward(self, x: Tensor | PackedSpikes, state: State | None = None, *,
                trace: bool = False) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:
        """Runs a whole sequence.

        Args:
            x: (T, B, input_size), of a dtype that ALIF takes, or spikes as bits.
            state: a State of leaves (1, B, N) and z (1, longest + 1, B, N). Default zeros.
            trace: also return Traces.

        Returns:
            spikes (T, B, N), the State after the last step, and with trace=True the Traces.

        Raises:
            TypeError, ValueError: as functional.layer.
        """
        neurons = self.neurons
        if not isinstance(x, Tensor | PackedSpikes):
            raise TypeError(f"x: expected a tensor or PackedSpikes, got {type(x).__name__}")
        x = convert_input(x, neurons._dtype, batch_first=False)
        like = x.carrier if isinstance(x, PackedSpikes) else x
        check_input(like, (3,), "(T, B, I)", neurons.input_size, neurons._dtype())
        if state is not None:
            state = State(*(leaf[0] for leaf in state))
        w_in, kernel = neurons.weight_ih_l0, self.shares() if self.per == "neuron" else None
        w_rec, mask = drop_synapses(
            neurons, self.recurrent_weight() if kernel is None
            else neurons._mask_recurrent_weight("_l0"), like)
        w_in, bias = cast_weights(like, w_in, getattr(neurons, "bias_ih_l0", None))
        result: Any = functional.layer(
            x, w_in, w_rec, bias=bias, delay_kernel=kernel, recurrent_mask=mask, state=state,
            trace=trace, checkpoint_every=neurons.checkpoint_every, saved_dtype=neurons.saved_dtype,
            **neurons._compute_neuron_arguments("_l0") | {"delay": tuple(range(self.longest + 1))})
        end = result.state.map(lambda leaf: leaf.unsqueeze(0))
        return (result.spikes, end, *([] if result.traces is None else [result.traces]))
