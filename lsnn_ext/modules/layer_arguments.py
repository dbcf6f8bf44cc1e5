"""Checks of the options of ALIF and LIF."""
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.coefficients import Coefficient
from .._core.options import LAYER_DEFAULTS, LayerOptions, LIFOptions
from .._core.surrogates import SURROGATES, find_cutoff
from ..models import check_sparse_grad, check_surrogate, find_model
from .checks import check_flags, check_positive, check_whole_number, read_names
from .neuron import RANGES, Kind, check_names, complete_constants, count_steps
from .recurrent_dropout import check_dropout


class CheckedArguments(NamedTuple):
    """The options of a layer, with the defaults of its model."""

    options: Any  # by the names of LAYER_DEFAULTS
    constants: dict[str, Coefficient]  # of the neurons, by the names of options
    refractory: int
    autapses: bool
    delay: int | Tensor
    dt: float
    dtype: torch.dtype
    height: float  # of the surrogate, dampening psi(0)

    def select_per_neuron(self, learned: Iterable[str]) -> tuple[str, ...]:
        """The learned constants with a number per neuron. Raises an error naming per_neuron."""
        learned, per_neuron = tuple(learned), self.options.per_neuron
        if isinstance(per_neuron, bool):
            return learned if per_neuron else ()
        names = tuple(read_names("per_neuron", per_neuron,
                                 "True, False or names among those of learn"))
        for name in names:
            if name not in learned:
                raise ValueError(f"per_neuron: expected names among those of learn, "
                                 f"{', '.join(learned) or 'none'}, got {name!r}")
        return names


def check_arguments(kind: Kind, options: dict[str, Any]) -> CheckedArguments:
    """The arguments of a layer of this kind, with the defaults of its model. Raises TypeError or
    ValueError naming the argument."""
    check_names(kind, options, (LIFOptions if kind == "LIF" else LayerOptions).__annotations__)
    arguments = SimpleNamespace(**LAYER_DEFAULTS | options)
    check_flags(recurrent=arguments.recurrent)
    check_positive("dt", arguments.dt)
    dt = float(arguments.dt)  # a NumPy number computes in its own precision
    delay = count_steps("delay", arguments.delay, dt)
    if isinstance(arguments.delay, str):
        check_whole_number("delay, in steps", delay, 1)
        delay -= 1  # the step that every spike takes
    if not arguments.recurrent:
        if arguments.autapses is not None:
            raise ValueError(f"autapses: expected None with recurrent=False, got "
                             f"{arguments.autapses}")
        if isinstance(delay, Tensor) or delay:
            raise ValueError("delay: expected 0 with recurrent=False, got delays of recurrent "
                             "spikes")
    constants = complete_constants(kind, arguments.dynamics, {
        **{name: getattr(arguments, name) for name in RANGES},
        "refractory": arguments.refractory, "autapses": arguments.autapses, "delay": delay}, dt)
    refractory, autapses, delay = (constants.pop(name)
                                   for name in ("refractory", "autapses", "delay"))
    refractory = count_steps("refractory", refractory, dt)
    if not arguments.recurrent:
        autapses, delay = False, 0
    check_dropout(arguments.recurrent_dropout, arguments.recurrent)
    check_whole_number("num_layers", arguments.num_layers, 1)
    check_whole_number("refractory", refractory, 0)
    check_flags(bias=arguments.bias, batch_first=arguments.batch_first,
                bidirectional=arguments.bidirectional, autapses=autapses)
    if isinstance(arguments.dropout, bool) or not 0 <= arguments.dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {arguments.dropout}")
    if arguments.dropout > 0 and arguments.num_layers == 1:
        warnings.warn(f"dropout: expected 0 with num_layers=1, got {arguments.dropout}; it acts "
                      f"only between layers", stacklevel=4)
    if arguments.dampening is not None:
        check_positive("dampening", arguments.dampening)
    model = find_model(arguments.dynamics)
    surrogate = model.surrogate if arguments.surrogate is None else arguments.surrogate
    check_surrogate(surrogate)
    find_cutoff(surrogate, arguments.surrogate_cutoff, smooth=False)
    check_sparse_grad(arguments.sparse_grad)
    dtype = torch.get_default_dtype() if arguments.dtype is None else arguments.dtype
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating point dtype, got {dtype}")
    dampening = model.dampening if arguments.dampening is None else arguments.dampening
    height = dampening * float(SURROGATES[surrogate].psi(torch.zeros((), device="cpu")))
    return CheckedArguments(arguments, constants, refractory, autapses, delay, dt, dtype, height)
