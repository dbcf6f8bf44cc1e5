"""Short calls without gradients on the CPU, as control loops make them: prepared layers.

What follows from the parameters alone, coefficients and weights, is computed once and kept. Each
call compares what it uses with the parameters as they are then. Counting changes would not do:
version counters miss what fused optimizers change, and what is written through ``.data`` or through
a numpy array.
"""
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _ops
from .arguments import Delay, Delays
from .options import CallArguments, NeuronArguments
from .resolve import make_constants, resolve
from .rows import stack_rows
from .torch_internals import is_forward_mode, is_mode_active, is_transforming

# numbers of a call, from which on the operators that reuse memory take over; see _ops.reused
_FEW = 1 << 18
_MANY = 1 << 31  # weights times delays that are never kept twice
_STRIDED = torch.strided
_USABLE: bool = _ops._C is not None and not _ops._C.emulator
NamedTensors = Mapping[str, Tensor | None]


def can_be_prepared(T: int, B: int, N: int) -> bool:
    """Whether a call of this size, now, may take a prepared layer.

    Nobody may watch what is computed: no compiler, tracer, transform, mode or autocast. And nothing
    may be forced, as only the operators take options. What autograd records are single steps alone.
    """
    return (
        not torch.compiler.is_compiling() and (T == 1 or not torch.is_grad_enabled()) and _USABLE
        and 0 < T * B * N < _FEW
        and not is_transforming() and not is_forward_mode() and not is_mode_active()
        and not torch.jit.is_tracing() and not torch.is_autocast_enabled("cpu")
        and not _ops.forced_options() and _ops.is_compiled_active()
    )


def has_plain_memory(dtype: torch.dtype, *tensors: Any) -> bool:
    """Whether these are ordinary tensors of this dtype on the CPU, contiguous, so that their
    addresses say all: neither lazily negated nor zeros without memory."""
    for tensor in tensors:
        kind = type(tensor)
        if not (
            (kind is Tensor or kind is nn.Parameter) and tensor.dtype is dtype and tensor.is_cpu
            and tensor.layout is _STRIDED and tensor.is_contiguous() and not tensor.is_neg()
            and tensor.data_ptr()
        ):
            return False
    return True


class Synapses(NamedTuple):
    """The recurrent weights of a prepared layer."""

    w_rec: Tensor  # (N, N): stored.t(), without its diagonal where there are no autapses
    stored: Tensor
    autapses: bool


class PreparedLayer:
    """A layer made from sources, and from constants that are no tensors; what it keeps is its own
    and never changes."""

    def __init__(
        self, constants: Hashable, sources: dict[str, Tensor], neuron: NeuronArguments,
        delays: Delay, N: int, dtype: torch.dtype, synapses: Synapses | None,
        recorded: bool = False,
    ) -> None:
        """Raises what functional.alif raises for this neuron. synapses: None without recurrence;
        recorded: its steps may be recorded by autograd."""
        options = CallArguments(delay=delays)
        call = resolve(neuron, options, torch.empty(0, 0, N, dtype=dtype),
                       None if synapses is None else synapses.w_rec)
        model = call.model
        delay = None if model.delay is None else model.delay.contiguous()
        w_rec = None if synapses is None else synapses.w_rec.contiguous()
        stored = None if synapses is None else synapses.stored
        device = torch.device("cpu")
        # with the graph that they come from, and the bits of those that want a gradient
        self.coefficients = stack_rows(model.rows, N, dtype, device)
        self.want = model.coefficient_gradients
        self.constants, self.D, self.dtype, self.recorded = constants, model.D, dtype, recorded
        self.delays, self.delay = model.delays, None if delay is None else delay.clone()
        # The aliases hold the memory of the sources, so that no other tensor can come to lie at the
        # same address.
        self.sources = [(name, t, t.detach(), t.data_ptr(), t.requires_grad)
                        for name, t in sources.items()]
        choices, numbers = make_constants(model, options, checkpoint=0, outputs=0)
        choices = choices._replace(coefficient_gradients=0, zero_coefficients=0, bf16_parts=0)

        def address(tensor: Tensor | None) -> int:
            return 0 if tensor is None else tensor.data_ptr()

        compiled = _ops._C.PreparedLayer(
            dtype is torch.float64, N, list(choices), list(numbers), list(model.delays),
            address(self.coefficients), address(w_rec), address(delay), address(stored),
            synapses is not None and synapses.autapses,
            [(t.data_ptr(), t.nbytes) for t in sources.values() if t is not stored], recorded,
        )
        self.run, self.is_current = compiled.run, compiled.is_current
        self.record, self.adjoint, self.row = compiled.record, compiled.adjoint, compiled.row

    def is_valid_for(self, constants: Hashable, parameters: NamedTensors,
                     buffers: NamedTensors) -> bool:
        """Whether the sources still are these tensors, of the same form in the same memory; run and
        is_current compare the bytes."""
        if constants != self.constants:
            return False
        for name, source, alias, address, _ in self.sources:
            tensor = parameters.get(name)
            if tensor is None:
                tensor = buffers.get(name)
            if tensor is not source or tensor.data_ptr() != address or not tensor.is_set_to(alias):
                return False
        return True


def is_worth_preparing(delay: Delay, N: int, dtype: torch.dtype) -> bool:
    """Whether a layer of ordinary tensors is to be prepared: not of one neuron, nor of too many."""
    n_delays = len(delay.distinct) if isinstance(delay, Delays) else 1
    if dtype not in (torch.float32, torch.float64) or N < 2 or n_delays * N * (N + 64) >= _MANY:
        return False
    # else the operator says what is wrong
    return not isinstance(delay, Delays) or bool(
        torch.isin(delay.each, torch.tensor(delay.distinct)).all())
