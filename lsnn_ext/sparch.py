"""sparch's recurrent layers, RadLIFLayer and RLIFLayer, as one fused operator over the sequence.

    from lsnn_ext.sparch import RadLIFLayer    # in place of from sparch.models.snns import ...

Arguments, defaults, parameters and initialisation are those of idiap/sparch, which is not imported
and need not be installed; so are the states with which each call begins, which are drawn at random
in the same order. docs/from_yin_and_sparch.md says which of its parameters is which of
functional.alif.

Source: Bittar and Garner, Frontiers in Neuroscience 16, 865897 (2022).
"""
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import functional
from ._original import Original, Shape, measured, plain_linear, state_of

__all__ = ["RLIFLayer", "RadLIFLayer"]

_BOXCAR = Shape("boxcar", 1.0, 1.0)


class _Recurrent(Original):
    """What both layers share. _limits: the ranges to which the neuron's constants are clamped in
    each call, and from which they are drawn."""

    _limits: ClassVar[dict[str, tuple[float, float]]]
    unread = ("spike_fct",)

    def __init__(self, input_size: int, hidden_size: int, batch_size: int, threshold: float = 1.0,
                 dropout: float = 0.0, normalization: str = "batchnorm", use_bias: bool = False,
                 bidirectional: bool = False) -> None:
        super().__init__()
        self.input_size, self.hidden_size = int(input_size), int(hidden_size)
        self.batch_size = batch_size * (1 + bidirectional)
        self.threshold, self.dropout, self.normalization = threshold, dropout, normalization
        self.use_bias, self.bidirectional = use_bias, bidirectional
        self.W = nn.Linear(self.input_size, self.hidden_size, bias=use_bias)
        self.V = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
        for name, limits in self._limits.items():
            setattr(self, f"{name}_lim", list(limits))
            parameter = nn.Parameter(torch.empty(self.hidden_size))
            nn.init.uniform_(parameter, *limits)
            self.register_parameter(name, parameter)
        nn.init.orthogonal_(self.V.weight)
        self.normalize = normalization in ("batchnorm", "layernorm")
        if normalization == "batchnorm":
            self.norm: nn.Module = nn.BatchNorm1d(self.hidden_size, momentum=0.05)
        elif normalization == "layernorm":
            self.norm = nn.LayerNorm(self.hidden_size)
        self.drop = nn.Dropout(p=dropout)

    def _adopt(self, module: Any) -> None:
        name = type(self).__name__
        for key in ("input_size", "hidden_size", "batch_size", "threshold", "dropout",
                    "normalization", "use_bias", "bidirectional", "normalize",
                    *(f"{key}_lim" for key in self._limits)):
            setattr(self, key, getattr(module, key))
        measured(_BOXCAR, module.spike_fct, name, "spike_fct")
        self.W, self.V = (plain_linear(name, key, getattr(module, key)) for key in ("W", "V"))
        for key in self._limits:
            setattr(self, key, getattr(module, key))
        if self.normalize:
            self.norm = module.norm
        self.drop = module.drop

    def extra_repr(self) -> str:
        """What is not a parameter."""
        return (f"threshold={self.threshold}, normalization={self.normalization!r}, "
                f"bidirectional={self.bidirectional}")

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence, from states that are drawn anew: torch.rand for the membrane, the
        adaptation, if any, and the spikes.

        Args:
            x: (B, T, I).

        Returns:
            spikes (B, T, N), or (B, T, 2 N) of a bidirectional layer, after the dropout.

        Raises:
            TypeError, ValueError: as functional.alif.
        """
        if x.dim() != 3 or not x.shape[1]:
            raise ValueError(f"x: expected shape (B, T, I) with T >= 1, got {tuple(x.shape)}")
        if self.bidirectional:
            x = torch.cat([x, x.flip(1)])
        self.batch_size = x.shape[0]
        W = plain_linear(type(self).__name__, "W", self.W)
        Wx = functional.linear(x, W.weight, W.bias)
        if self.normalize:
            Wx = self.norm(Wx.reshape(-1, Wx.shape[2])).reshape(Wx.shape)
        s = self._run(Wx.transpose(0, 1)).transpose(0, 1)
        if self.bidirectional:
            forwards, backwards = s.chunk(2)
            s = torch.cat([forwards, backwards.flip(1)], dim=2)
        # (B, T, N) in memory, as the original's: the mask is drawn in the order of memory
        dropped: Tensor = self.drop(s.contiguous())
        return dropped

    def _run(self, current: Tensor) -> Tensor:
        """current (T, B, N), to the spikes."""
        V = plain_linear(type(self).__name__, "V", self.V).weight
        V = V.masked_fill(torch.eye(self.hidden_size, dtype=torch.bool, device=V.device), 0.0)
        k = {name: getattr(self, name).clamp(*getattr(self, f"{name}_lim"))
             for name in self._limits}

        def drawn() -> Tensor:
            return torch.rand(current.shape[1:]).to(current)

        u = drawn()
        w = drawn() if len(k) > 1 else None
        state = state_of(u, drawn()[None], w)
        adaptation = {"rho": k["beta"], "p": k["a"], "q": k["b"]} if len(k) > 1 else {
            "q": 0.0, "eta": 0.0}
        # V has the neuron that spikes first: there, too, it is not transposed
        spikes, *_ = functional.alif(current, V, alpha=k["alpha"], theta=self.threshold,
                                     dynamics="adlif", state=state, **adaptation,
                                     **_BOXCAR._asdict())
        return spikes


class RLIFLayer(_Recurrent):
    """sparch's RLIFLayer: leaky neurons, input weights and normalization inside.

    Args:
        input_size, hidden_size: features of the input, I, and neurons, N.
        batch_size: of no effect; that of the last call is kept in its place.
        threshold: one number.
        dropout: of the spikes.
        normalization: "batchnorm" or "layernorm" of the projected input; anything else: none.
        use_bias: of the projection.
        bidirectional: the sequence is run in both directions, with the same weights.

    Parameters: W, V (nn.Linear; V from neuron j to neuron k, its diagonal acts as 0) and alpha,
    clamped to exp(-1/5) .. exp(-1/25) in each call.
    """

    original = "sparch.models.snns.RLIFLayer"
    _limits = {"alpha": (math.exp(-1 / 5), math.exp(-1 / 25))}


class RadLIFLayer(_Recurrent):
    """sparch's RadLIFLayer: neurons with an adaptation current; arguments as of RLIFLayer.

    Parameters: W, V, alpha as there, beta clamped to exp(-1/30) .. exp(-1/120), a to -1 .. 1, b to
    0 .. 2 (rho, p and q of functional.alif).
    """

    original = "sparch.models.snns.RadLIFLayer"
    _limits = {"alpha": (math.exp(-1 / 5), math.exp(-1 / 25)),
               "beta": (math.exp(-1 / 30), math.exp(-1 / 120)), "a": (-1.0, 1.0), "b": (0.0, 2.0)}
