"""What a layer is made with, from the call of its class to the checked values."""
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._core.coefficients import Coefficient
from .._core.surrogates import cutoff_of, named_surrogate
from ..models import check_sparse_grad, check_surrogate, named_model
from .neuron import ADAPTIVE, PLAIN, Kind, check_names, chosen, flag, positive, steps, whole

# names, or names with what each is computed of
Learn: TypeAlias = str | Iterable[str] | Mapping[str, Any]


@dataclass(frozen=True)
class LayerArguments:
    """The arguments of ALIF and LIF, which explain them; neuron: those that are coefficients, or
    become some; coefficients: those that are given by keywords alone."""

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    recurrent: bool
    dynamics: str
    neuron: dict[str, Coefficient | None]
    coefficients: dict[str, Coefficient | None]
    refractory: int | str | None
    delay: int | str | Tensor | None
    dt: float
    surrogate: str | None
    dampening: float | None
    surrogate_cutoff: float
    learn: Learn
    per_neuron: bool | Iterable[str]
    autapses: bool | None
    checkpoint_every: int | str | None
    saved_dtype: torch.dtype | None
    sparse_grad: str
    device: torch.device | str | None
    dtype: torch.dtype | None

    def checked(self, kind: Kind) -> "LayerArguments":
        """With a value for what was left out; raises TypeError or ValueError naming the
        argument."""
        check_names(kind, self.coefficients, PLAIN if kind == "LIF" else ADAPTIVE,
                    (*self.__dataclass_fields__, *self.neuron))
        flag("recurrent", self.recurrent)
        positive("dt", self.dt)
        dt = float(self.dt)  # numpy's numbers compute in their own precision
        given = steps("delay", self.delay, dt)
        if isinstance(self.delay, str):
            whole("delay, in steps", given, 1)
            given -= 1  # the step that every spike takes
        synapses = {"autapses": self.autapses, "delay": given} if self.recurrent else {}
        if not self.recurrent:
            if self.autapses is not None:
                raise ValueError(f"autapses: expected None with recurrent=False, got "
                                 f"{self.autapses}")
            if isinstance(given, Tensor) or given:
                raise ValueError("delay: expected 0 with recurrent=False, got delays of recurrent "
                                 "spikes")
        own = chosen(kind, self.dynamics, {**self.neuron, **self.coefficients,
                                           "refractory": self.refractory, **synapses}, dt)
        refractory, autapses, delay = (own.pop(name) for name in ("refractory", "autapses",
                                                                  "delay"))
        refractory = steps("refractory", refractory, dt)
        if not self.recurrent:
            autapses, delay = False, 0
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
        name = named_model(self.dynamics).surrogate if self.surrogate is None else self.surrogate
        check_surrogate(name)
        cutoff_of(name, self.surrogate_cutoff, smooth=False)
        check_sparse_grad(self.sparse_grad)
        dtype = torch.get_default_dtype() if self.dtype is None else self.dtype
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating point dtype, got {dtype}")
        return replace(self, neuron=own, refractory=refractory, autapses=autapses, delay=delay,
                       dt=dt, dtype=dtype)

    @property
    def height(self) -> float:
        """Of the surrogate: dampening psi(0)."""
        model = named_model(self.dynamics)
        dampening = model.dampening if self.dampening is None else self.dampening
        name = model.surrogate if self.surrogate is None else self.surrogate
        return dampening * float(named_surrogate(name).psi(torch.zeros((), device="cpu")))

    def each_learned(self, learned: Iterable[str]) -> tuple[str, ...]:
        """The learned constants that get a number for each neuron. Raises TypeError or ValueError
        naming per_neuron."""
        learned = tuple(learned)
        if isinstance(self.per_neuron, bool):
            return learned if self.per_neuron else ()
        names = self.per_neuron
        names = (names,) if isinstance(names, str) else names
        if not isinstance(names, Iterable):
            raise TypeError(f"per_neuron: expected True, False or names among those of learn, got "
                            f"{names!r}")
        for name in (names := tuple(names)):
            if name not in learned:
                raise ValueError(f"per_neuron: expected some of what learns, "
                                 f"{', '.join(learned) or 'nothing'}, got {name!r}")
        return names
