"""From the caller's keyword arguments to named fields, once: defaults of the model filled in,
everything checked.

functional.alif, functional.layer and prepared layers all come through here.
"""
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from ..models import COEFFICIENTS, check_surrogate, named_model
from .arguments import (
    check,
    check_coefficients,
    check_state,
    checkpoint_steps,
    complements_of,
    delays_of,
    saves_bf16,
)
from .coefficients import complete_coefficients
from .lengths import Lengths, resolve_lengths
from .options import CallArguments, NeuronArguments
from .rows import Rows
from .state import count_past_steps
from .surrogates import find_cutoff


class ResolvedModel(NamedTuple):
    """What follows from the neuron, the delays and the recurrent weights."""

    dynamics: str
    surrogate: str
    dampening: float
    cutoff: float  # |m| from which on psi counts as 0
    refractory: int
    rows: Rows  # the coefficients, not stacked
    coefficient_gradients: int  # bit k: row k of them wants a gradient
    # (N, N) of each synapse; None where all are alike, or w_rec has a matrix for each
    delay: Tensor | None
    delays: tuple[int, ...]  # distinct, ascending; none without w_rec
    zero_coefficients: int  # bit k: row k of the coefficients is the number 0

    @property
    def D(self) -> int:
        """Past steps that the state holds."""
        return count_past_steps(self.delays)


class Call(NamedTuple):
    """A ResolvedModel, and what of a call depends on its sequence."""

    model: ResolvedModel
    dtype: torch.dtype  # of the computation
    # v, a, i, r (B, N) and z (D, B, N); five times None for zeros
    state: tuple[Any, ...]
    checkpoint: int  # steps between saved states, or 0
    saved_bf16: bool
    lengths: Lengths | None  # of sequences that end early


def rows_of(neuron: NeuronArguments, N: int, device: torch.device) -> Rows:
    """The coefficients of a neuron. Raises TypeError or ValueError naming the argument."""
    defaults = named_model(neuron.dynamics)
    given: dict[str, Any] = {name: getattr(neuron, name) for name in COEFFICIENTS}
    check_coefficients(given, N, device)
    complements = complements_of(given, {"kappa": ("alpha", defaults.kappa == "1-alpha"),
                                         "q": ("rho", defaults.q == "1-rho")})
    given |= dict.fromkeys(complements, 0.0)  # for now
    return Rows.of(complete_coefficients(neuron.dynamics, **given), complements)


def resolve_model(
    neuron: NeuronArguments, options: CallArguments, w_rec: Tensor | None, N: int,
    device: torch.device,
) -> ResolvedModel:
    """Raises TypeError or ValueError with the name of the argument, as functional.alif."""
    defaults = named_model(neuron.dynamics)
    surrogate = defaults.surrogate if neuron.surrogate is None else neuron.surrogate
    check_surrogate(surrogate)
    dampening = defaults.dampening if neuron.dampening is None else neuron.dampening
    rows = rows_of(neuron, N, device) if neuron.rows is None else neuron.rows
    delay, delays = delays_of(options.delay, w_rec, N, device)
    cutoff = find_cutoff(surrogate, neuron.surrogate_cutoff, options.smooth)
    return ResolvedModel(neuron.dynamics, surrogate, float(dampening), cutoff, neuron.refractory,
                         rows, rows.gradient_bits(), delay, tuple(delays), rows.zero_bits())


def make_constants(
    model: ResolvedModel, options: CallArguments, *, checkpoint: int, outputs: int,
) -> tuple[Any, Any]:
    """Constants and Numbers of csrc/torch/boundary.h, without a readout."""
    constants = _ops.Constants(
        dynamics=_ops.DYNAMICS[model.dynamics], surrogate=_ops.SURROGATES[model.surrogate],
        refractory=model.refractory, smooth=int(options.smooth), checkpoint=checkpoint,
        outputs=outputs, gradients=0, coefficient_gradients=model.coefficient_gradients,
        bf16_parts=_ops.count_bf16_parts(), zero_coefficients=model.zero_coefficients,
        without_autapses=int(not options.autapses), existing=int(options.sparse_grad == "existing"),
    )
    return constants, _ops.Numbers(dampening=model.dampening, k_out=0.0, cutoff=model.cutoff)


def resolve(
    neuron: NeuronArguments, options: CallArguments, x: Tensor, w_rec: Tensor | None,
    w_in: Tensor | None = None,
) -> Call:
    """x: (T, B, N) the current, or (T, B, I) inputs that have still to meet their weights w_in (N,
    I)."""
    defaults = named_model(neuron.dynamics)
    N = (
        w_in.shape[0]
        if w_in is not None
        else x.shape[2]
        if isinstance(x, Tensor) and x.dim() == 3
        else 1
    )
    options.check()
    check(x, w_rec, N, neuron.refractory, defaults.dampening if neuron.dampening is None
          else neuron.dampening)
    # a number where torch.compile takes the sizes of x for variables
    N = N if w_rec is None else w_rec.shape[-1]
    (T, B, _), dtype = x.shape, torch.promote_types(x.dtype, torch.float32)
    checkpoint = checkpoint_steps(options.checkpoint_every, T, B, N, dtype.itemsize)
    saved_bf16 = saves_bf16(options.saved_dtype, dtype)
    model = resolve_model(neuron, options, w_rec, N, x.device)
    state = check_state(options.state, B, N, model.D, dtype, x.device)
    lengths = resolve_lengths(options.lengths, T, B, x.device)
    return Call(model, dtype, state, checkpoint, saved_bf16, lengths)
