"""Prepared layers: short calls on the CPU, as control loops make them.

What follows from the parameters, coefficients and packed weights, is computed once and cached. Each
call compares the cache with the parameters. Version counters are not sufficient: they miss changes
by fused optimizers, through ``.data`` and through NumPy arrays.
"""
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _ops
from .arguments import Delay, Delays
from .coefficients import stack_rows
from .options import CallArguments, NeuronArguments
from .resolve import make_constants, resolve
from .state import count_past_steps
from .torch_internals import is_forward_mode, is_mode_active, is_transforming

_MANY = 1 << 31  # weights times delays from which on no copy is made
_STRIDED = torch.strided
_USABLE: bool = _ops._C is not None and not _ops._C.emulator
NamedTensors = Mapping[str, Tensor | None]


def why_not_prepared(T: int, B: int, N: int) -> str:
    """Why a call of this size may not use a prepared layer now; empty if it may.

    No compiler, tracer, transform, mode or autocast may be active, and no option forced, since only
    the operators take options. Under autograd only single steps are prepared.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the call is traced"
    if T != 1 and torch.is_grad_enabled():
        return "gradients are enabled for more than one step"
    if not (_USABLE and _ops.is_compiled_active()):
        return "use_reference() is active, or the CPU kernels are missing"
    if not 0 < T * B * N < _ops.MANY:
        return f"T B N is not from 1 to {_ops.MANY - 1:,}"
    if is_transforming() or is_forward_mode() or is_mode_active():
        return "a transform or a mode is active"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled"
    return "options are forced" if _ops.forced_options() else ""


def has_plain_memory(dtype: torch.dtype, *tensors: Any) -> bool:
    """Whether the addresses of these tensors suffice: plain contiguous CPU tensors of this dtype,
    neither lazily negated nor zeros without memory."""
    for tensor in tensors:
        kind = type(tensor)
        if not ((kind is Tensor or kind is nn.Parameter) and tensor.dtype is dtype and tensor.is_cpu
                and tensor.layout is _STRIDED and tensor.is_contiguous() and not tensor.is_neg()
                and tensor.data_ptr()):
            return False
    return True


def find_addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """The addresses of their numbers, 0 for None."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class Projection(NamedTuple):
    w_in: Tensor  # (N, I)
    bias: Tensor | None  # (N,)


class RecurrentWeights(NamedTuple):
    w_rec: Tensor  # (N, N): stored.t(), with a diagonal of 0 without autapses
    stored: Tensor
    autapses: bool


class PreparedLayer:
    """A layer prepared from source tensors and from constants. Its copies never change."""

    def __init__(self, constants: Hashable, sources: dict[str, Tensor], neuron: NeuronArguments,
                 delays: Delay, N: int, dtype: torch.dtype, synapses: RecurrentWeights | None,
                 projection: Projection, *, recorded: bool = False) -> None:
        """Raises as functional.alif for this neuron. sources: the parameters and buffers by name,
        with those of synapses, None without recurrence, and projection; recorded: whether autograd
        may record its steps."""
        options = CallArguments(delay=delays)
        call = resolve(neuron, options, torch.empty(0, 0, N, dtype=dtype, device="cpu"),
                       None if synapses is None else synapses.w_rec)
        delay = None if call.delay is None else call.delay.contiguous()
        w_rec = None if synapses is None else synapses.w_rec.contiguous()
        stored = None if synapses is None else synapses.stored
        # with their graph
        self.coefficients = stack_rows(call.rows, N, dtype, torch.device("cpu"))
        self.gradient_bits = call.rows.gradient_bits()  # rows that require a gradient
        self.constants, self.dtype = constants, dtype
        self.synapses, self.projection = synapses, projection
        self.D = count_past_steps(call.delays)
        self.delays, self.delay = call.delays, None if delay is None else delay.clone()
        # The aliases keep the memory of the sources, so no other tensor can get the same address.
        self.sources = [(name, one, one.detach(), one.data_ptr(), one.requires_grad)
                        for name, one in sources.items()]
        choices, numbers = make_constants(call, options, checkpoint=0, outputs=0)
        choices = choices._replace(coefficient_gradients=0, zero_coefficients=0, bf16_parts=0)
        compiled = _ops._C.PreparedLayer(
            dtype is torch.float64, N, list(choices), list(numbers), list(call.delays),
            *find_addresses((self.coefficients, w_rec, delay, stored)),
            synapses is not None and synapses.autapses,
            [(one.data_ptr(), one.nbytes) for one in sources.values()
             if not any(one is other for other in (stored, *projection))], recorded)
        self.run, self.is_current = compiled.run, compiled.is_current
        self.record, self.adjoint, self.row = compiled.record, compiled.adjoint, compiled.row

    def is_valid_for(self, constants: Hashable, parameters: NamedTensors,
                     buffers: NamedTensors) -> bool:
        """Whether the sources are still these tensors, with the same layout in the same memory, and
        the same ones require a gradient; run and is_current compare the bytes."""
        if constants != self.constants:
            return False
        for name, source, alias, address, learns in self.sources:
            tensor = parameters.get(name)
            if tensor is None:
                tensor = buffers.get(name)
            if (tensor is not source or tensor.data_ptr() != address or not tensor.is_set_to(alias)
                    or tensor.requires_grad is not learns):
                return False
        return True


def is_worth_preparing(delay: Delay, N: int, dtype: torch.dtype) -> bool:
    """Whether to prepare a layer with plain tensors: not one of a single or of too many neurons."""
    n_delays = len(delay.distinct) if isinstance(delay, Delays) else 1
    if dtype not in (torch.float32, torch.float64) or N < 2 or n_delays * N * (N + 64) >= _MANY:
        return False
    # the operator raises the error for a wrong delay
    return not isinstance(delay, Delays) or bool(
        torch.isin(delay.each, torch.tensor(delay.distinct, device="cpu")).all())
