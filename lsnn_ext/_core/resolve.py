"""Checks the keyword arguments of a call and fills in the defaults of its model.

functional.alif, functional.layer and prepared layers use it.
"""
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from ..models import COEFFICIENTS, check_surrogate, find_model
from . import arguments
from .coefficients import Decay, Rows, complete_coefficients
from .lengths import Lengths, resolve_lengths
from .options import CallArguments, NeuronArguments
from .state import count_past_steps
from .surrogates import find_cutoff
from .synapses import check_sources


class Call(NamedTuple):
    """The arguments of a call, with the defaults of its model."""

    dynamics: str
    surrogate: str
    dampening: float
    cutoff: float  # |m| from which on psi counts as 0
    refractory: int
    rows: Rows  # the coefficients, not stacked
    # (N, N) of each synapse; None if all are equal, or w_rec has a matrix for each delay
    delay: Tensor | None
    delays: tuple[int, ...]  # distinct, ascending; empty without w_rec
    dtype: torch.dtype  # of the computation
    # v, a, i, r (B, N) and z (D, B, N), or five times None: zeros
    state: tuple[Any, ...]
    checkpoint: int  # steps between saved states, or 0
    saved_bf16: bool
    lengths: Lengths | None  # None: all sequences have T steps


def make_rows(neuron: NeuronArguments, N: int, device: torch.device) -> Rows:
    """The coefficients of a neuron. Raises TypeError or ValueError naming the argument."""
    defaults = find_model(neuron.dynamics)
    coefficients: dict[str, Any] = {name: getattr(neuron, name) for name in COEFFICIENTS}
    arguments.check_coefficients(coefficients, N, device)
    # omitted ones that are 1 - another
    complements = {name: other for name, other in (("kappa", "alpha"), ("q", "rho"))
                   if coefficients[name] is None and getattr(defaults, name) == f"1-{other}"
                   and isinstance(coefficients[other], Tensor | Decay)}
    coefficients |= dict.fromkeys(complements, 0.0)  # Rows.of replaces the zeros
    return Rows.of(complete_coefficients(neuron.dynamics, **coefficients), complements)


def make_constants(call: Call, options: CallArguments, *, checkpoint: int,
                   outputs: int) -> tuple[Any, Any]:
    """Constants and Numbers of csrc/torch/boundary.h, without a readout."""
    constants = _ops.Constants(
        dynamics=_ops.DYNAMICS[call.dynamics], surrogate=_ops.SURROGATES[call.surrogate],
        refractory=call.refractory, smooth=int(options.smooth), checkpoint=checkpoint,
        outputs=outputs, coefficient_gradients=call.rows.gradient_bits(),
        bf16_parts=_ops.count_bf16_parts(), zero_coefficients=call.rows.zero_bits(),
        without_autapses=int(not options.autapses), existing=int(options.sparse_grad == "existing"))
    return constants, _ops.Numbers(dampening=call.dampening, k_out=0.0, cutoff=call.cutoff)


def resolve(neuron: NeuronArguments, options: CallArguments, x: Tensor, w_rec: Tensor | None,
            w_in: Tensor | None = None) -> Call:
    """The resolved call; x: the current (T, B, N), or inputs (T, B, I) of weights w_in (N, I).
    Raises TypeError or ValueError naming the argument."""
    defaults = find_model(neuron.dynamics)
    N = x.shape[2] if isinstance(x, Tensor) and x.dim() == 3 else 1
    N = N if w_in is None else w_in.shape[0]
    options.check()
    dampening = defaults.dampening if neuron.dampening is None else neuron.dampening
    arguments.check_call(x, w_rec, N, neuron.refractory, dampening)
    # weights have a fixed size where torch.compile takes the sizes of x for variables
    N = N if w_rec is None else w_rec.shape[-1]
    (T, B, _), dtype = x.shape, torch.promote_types(x.dtype, torch.float32)
    checkpoint = arguments.resolve_checkpoint(options.checkpoint_every, T, B, N, dtype.itemsize)
    if options.saved_dtype not in (None, torch.bfloat16, dtype):
        raise ValueError(f"saved_dtype: expected None, torch.bfloat16 or {dtype}, got "
                         f"{options.saved_dtype}")
    saved_bf16 = options.saved_dtype == torch.bfloat16 and dtype == torch.float32
    check_sources(options.delay_kernel, options.recurrent_mask, w_rec, x, "current", B, N)
    surrogate = defaults.surrogate if neuron.surrogate is None else neuron.surrogate
    check_surrogate(surrogate)
    rows = make_rows(neuron, N, x.device) if neuron.rows is None else neuron.rows
    delay, delays = arguments.resolve_delays(options.delay, w_rec, N, x.device,
                                             kernel=options.delay_kernel)
    cutoff = find_cutoff(surrogate, neuron.surrogate_cutoff, options.smooth)
    state = arguments.check_state(options.state, B, N, count_past_steps(delays), dtype, x.device)
    lengths = resolve_lengths(options.lengths, T, B, x.device)
    return Call(neuron.dynamics, surrogate, float(dampening), cutoff, neuron.refractory, rows,
                delay, tuple(delays), dtype, state, checkpoint, saved_bf16, lengths)
