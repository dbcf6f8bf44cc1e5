"""What a layer is made with, from the call of its class to the checked values."""
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._surrogates import cutoff_of
from ..models import Coefficient, check_surrogate, named_model
from .neuron import chosen, flag, learned, positive, whole


@dataclass(frozen=True)
class LayerArguments:
    """The arguments of ALIF and LIF, which explain them; neuron: those that are coefficients, or
    become some."""

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    recurrent: bool
    dynamics: str
    neuron: dict[str, Coefficient | None]
    refractory: int | None
    delay: int | Tensor
    dt: float
    surrogate: str | None
    dampening: float | None
    surrogate_cutoff: float
    learn: Iterable[str]
    autapses: bool | None
    checkpoint_every: int | str | None
    saved_dtype: torch.dtype | None
    device: torch.device | str | None
    dtype: torch.dtype | None

    def checked(self, kind: str, paper: dict[str, Any]) -> "LayerArguments":
        """With a value for what was left out; raises TypeError or ValueError naming the
        argument."""
        flag("recurrent", self.recurrent)
        synapses = {"autapses": self.autapses} if self.recurrent else {}
        if not self.recurrent:
            if self.autapses is not None:
                raise ValueError(f"autapses: expected None with recurrent=False, got "
                                 f"{self.autapses}")
            if isinstance(self.delay, Tensor) or self.delay != 0:
                raise ValueError("delay: expected 0 with recurrent=False, got delays of recurrent "
                                 "spikes")
        own = chosen(
            kind, self.dynamics, paper, {**self.neuron, "refractory": self.refractory, **synapses}
        )
        refractory, autapses = own.pop("refractory"), own.pop("autapses", False)
        whole("num_layers", self.num_layers, 1)
        whole("refractory", refractory, 0)
        for name, value in (("bias", self.bias), ("batch_first", self.batch_first),
                            ("bidirectional", self.bidirectional), ("autapses", autapses)):
            flag(name, value)
        if isinstance(self.dropout, bool) or not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout: expected a probability from 0 to 1, got {self.dropout}")
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn("dropout acts between layers, so it does nothing with num_layers=1",
                          stacklevel=4)
        if self.dampening is not None:
            positive("dampening", self.dampening)
        positive("dt", self.dt)
        name = named_model(self.dynamics).surrogate if self.surrogate is None else self.surrogate
        check_surrogate(name)
        cutoff_of(name, self.surrogate_cutoff, smooth=False)
        dtype = torch.get_default_dtype() if self.dtype is None else self.dtype
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating point dtype, got {dtype}")
        return replace(self, neuron=own, refractory=refractory, autapses=autapses, dtype=dtype,
                       learn=learned(self.learn, self.neuron))
