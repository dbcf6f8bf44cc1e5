"""Short calls of a layer: bitwise identical to the operators, with cached checks and copies.

Without gradients these are sequences of a few steps, with gradients single steps.
"""
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import functional
from .._core.decisions import report
from .._core.options import PASSED_TO_NEURONS, NeuronArguments
from .._core.prepared_layer import (
    PreparedLayer,
    RecurrentWeights,
    has_plain_memory,
    is_worth_preparing,
    why_not_prepared,
)
from .._core.recorded_layer import Projection, RecordedLayer, record_step
from .._core.state import State
from .._core.torch_internals import without_saved_tensor_hooks
from ..functional import Layered
from .constants import Constants
from .delays import read_delay
from .recurrent_dropout import is_dropping


def _get_projection(layer: Constants, suffix: str) -> Projection:
    w_in = layer._parameters["weight_ih" + suffix]
    assert w_in is not None  # checked by _prepare_call
    return Projection(w_in, layer._parameters.get("bias_ih" + suffix))


def _find_prepared(layer: Constants, suffix: str, cache: dict[str, PreparedLayer],
                   rebuild: bool = False) -> PreparedLayer | None:
    """The prepared layer of the parameters with this suffix, with gradients a RecordedLayer; None
    if the operators have to run. rebuild: do not return the cached one."""
    N, recorded = layer.hidden_size, torch.is_grad_enabled()
    delay = layer.delay if isinstance(layer.delay, int) else None  # a tensor is a source
    constants = (N, layer.dt, layer.autapses, delay, layer._describe_forms(),
                 *(getattr(layer, name) for name in PASSED_TO_NEURONS))
    parameters, buffers, prepared = layer._find_parameters(), layer._buffers, cache.get(suffix)
    if (prepared is not None and not rebuild
            and prepared.is_valid_for(constants, parameters, buffers)
            and (not recorded or isinstance(prepared, RecordedLayer)
                 and prepared.has_projection(_get_projection(layer, suffix)))):
        return prepared
    projection = w_in, bias = _get_projection(layer, suffix)
    names = [name + suffix for name in layer._neuron]
    names += ["weight_hh" + suffix] if layer.recurrent else []
    names += ["delay"] if delay is None else []
    sources = {name: parameters.get(name, buffers.get(name)) for name in names}
    present = {name: value for name, value in sources.items() if value is not None}
    stored = present.get("weight_hh" + suffix)
    if len(present) < len(sources) or stored is not None and stored.shape != (N, N):
        return None  # a parametrized weight, computed in each call, or a wrong shape
    if not all(has_plain_memory(source.dtype, source) for source in present.values()):
        return None
    learned = {name: source for name, source in present.items()
               if recorded and source.requires_grad}
    if recorded:
        if not all(one is None or one.is_leaf for one in (*learned.values(), *projection)):
            return None  # a cache must not keep the graph of computed parameters
        inputs = layer.input_size if suffix == layer._suffixes[0] else N
        if w_in.shape != (N, inputs) or bias is not None and bias.shape != (N,):
            return None
    with without_saved_tensor_hooks():  # the cache outlives the hooks
        copies = {name: source.detach().clone().requires_grad_() for name, source in learned.items()
                  if source is not stored}
        w_rec = layer._mask_recurrent_weight(suffix)
        synapses = None
        if w_rec is not None and stored is not None:
            synapses = RecurrentWeights(w_rec.detach(), stored, layer.autapses)
        weight = w_in if stored is None else stored
        neuron = NeuronArguments(**layer._compute_neuron_arguments(suffix, copies))
        delays = read_delay(layer)
        if not is_worth_preparing(delays, N, weight.dtype):
            return None
        arguments = constants, present, neuron, delays, N, weight.dtype, synapses
        cache[suffix] = (
            RecordedLayer(*arguments, copies, projection) if recorded
            else PreparedLayer(*arguments))
    return cache[suffix]


# x (steps * B, I); the state as of forward; suffix, prepared layer, w_in and bias of each layer;
# the cache of prepared layers.
_PreparedCall: TypeAlias = tuple[
    Tensor, State, list[tuple[str, PreparedLayer, Tensor, Tensor | None]], dict[str, PreparedLayer]]


def _prepare_call(layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...],
                  state: State | None) -> _PreparedCall | None:
    """The parts of a short call; None if the operators have to run or raise the error."""
    if type(x) is not Tensor:
        return None
    B, N, L = batch[0] if batch else 1, layer.hidden_size, layer.num_layers
    dtype, parameters = x.dtype, layer._parameters
    if (why_not_prepared(steps, B, N) or layer.bidirectional or is_dropping(layer)
            or layer.checkpoint_every is not None
            or layer.sparse_grad != "all" and torch.is_grad_enabled()):
        return None
    if not x.is_cpu or x.shape[-1] != layer.input_size or not x.is_contiguous():
        return None
    if x.dim() != 2:
        x = x.view(steps * B, layer.input_size)
    cache: dict[str, PreparedLayer] = layer.__dict__.setdefault("_prepared", {})
    layers: list[tuple[str, PreparedLayer, Tensor, Tensor | None]] = []
    D = 0
    for suffix in layer._suffixes:
        w_in, bias = parameters.get("weight_ih" + suffix), parameters.get("bias_ih" + suffix)
        if w_in is None or w_in.dtype is not dtype or not w_in.is_cpu:
            return None
        if layer.bias and (bias is None or not bias.is_cpu):
            return None
        prepared = _find_prepared(layer, suffix, cache)
        if prepared is None or prepared.dtype is not dtype:
            return None
        if D and prepared.D != D:  # delays were changed after some layers were prepared
            cache.clear()
            return None
        D = prepared.D
        layers.append((suffix, prepared, w_in, bias))
    form, past = (L, *batch, N), (L, D, *batch, N)
    if state is None:
        v = a = i = r = torch.zeros(form, dtype=dtype, device="cpu")
        z = torch.zeros(past, dtype=dtype, device="cpu")
        state = State(v, a, i, r, z)
    elif type(state) is State:
        v, a, i, r, z = state
        if not has_plain_memory(dtype, v, a, i, r, z):
            return None
        if not (v.shape == a.shape == i.shape == r.shape == form and z.shape == past):
            return None
    else:
        return None
    return x, state, layers, cache


def run_recorded(layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...],
                 state: State | None) -> tuple[Tensor, State] | None:
    """Runs one step with gradients; as run_prepared."""
    if layer.saved_dtype not in (None, x.dtype):
        return None
    ready = _prepare_call(layer, x, steps, batch, state)
    if ready is None:
        return None
    x, before, layers, cache = ready
    is_single = len(layers) == 1
    parts = [before] if is_single else [State(*leaves) for leaves in zip(
        *(leaf.unbind(0) for leaf in before), strict=True)]
    after: list[State] = []
    for (suffix, prepared, *_), part in zip(layers, parts, strict=True):
        if after:
            x = nn.functional.dropout(x, layer.dropout, layer.training)
        if not prepared.is_current():  # a parameter or the delays were changed in place
            rebuilt = _find_prepared(layer, suffix, cache, rebuild=True)
            if rebuilt is None or rebuilt.D != prepared.D or not rebuilt.is_current():
                return None
            prepared = rebuilt
        assert isinstance(prepared, RecordedLayer)
        x, end = record_step(prepared, x, part)
        report("prepared", layer, suffix, x, 1)
        after.append(end)
    return x, after[0] if is_single else State(*map(torch.stack, zip(*after, strict=True)))


def run_prepared(layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...],
                 state: State | None) -> tuple[Tensor, State] | None:
    """Runs a short call without gradients, with x (steps, B, I) or (steps * B, I); batch: (B,), or
    () for a state without a batch, with B = 1. Returns spikes (steps * B, N) and the State; None if
    the operators have to run or raise the error."""
    ready = _prepare_call(layer, x, steps, batch, state)
    if ready is None:
        return None
    x, before, layers, cache = ready
    B, N, D, dtype = x.shape[0] // steps, layer.hidden_size, layers[0][1].D, x.dtype
    after = State(*[torch.empty_like(leaf) for leaf in before])
    # Item (layer, ...) of each part of the state, before and after.
    first, last = [leaf.data_ptr() for leaf in before], [leaf.data_ptr() for leaf in after]
    parts = [B * N * dtype.itemsize] * 4 + [D * B * N * dtype.itemsize]
    for suffix, prepared, weight, offset in layers:
        if suffix != layer._suffixes[0]:
            x = nn.functional.dropout(x, layer.dropout, layer.training)
            first = [address + part for address, part in zip(first, parts, strict=True)]
            last = [address + part for address, part in zip(last, parts, strict=True)]
        current = nn.functional.linear(x, weight, offset)
        if not has_plain_memory(dtype, current) or current.shape != (steps * B, N):
            return None
        x = torch.empty_like(current)
        if not prepared.run(steps, B, current.data_ptr(), first, last, x.data_ptr()):
            # a parameter or the delays were changed in place
            rebuilt = _find_prepared(layer, suffix, cache, rebuild=True)
            if rebuilt is None or rebuilt.D != D or not rebuilt.run(
                    steps, B, current.data_ptr(), first, last, x.data_ptr()):
                return None
        report("prepared", layer, suffix, x, steps)
    return x, after


def run_prepared_sequence(layer: Constants, x: Tensor, state: State | None, p: Tensor | None = None,
                          *, w_out: Tensor | None = None, k_out: float = 0.0, spikes: bool = True,
                          **others: Any) -> Layered | None:
    """Runs a short sequence without gradients; x, state and results as of forward, the rest as of
    functional.layer, with p (O,) if x is unbatched. None as run_prepared."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.dim() not in (2, 3) or others:
        return None
    if x.layout != torch.strided:
        return None
    first = layer.batch_first and x.dim() == 3
    steps_first = x.transpose(0, 1) if first else x
    (T, *batch), N = steps_first.shape[:-1], layer.hidden_size
    if w_out is not None and not (w_out.dim() == 2 and w_out.shape[1] == N and 0 <= k_out <= 1):
        return None
    if not steps_first.is_contiguous():
        if why_not_prepared(T, batch[0] if batch else 1, N):
            return None
        steps_first = steps_first.contiguous()
    found = run_prepared(layer, steps_first, T, tuple(batch), state)
    if found is None:
        return None
    out, y = found[0].view(T, *batch, N), None
    if w_out is not None:
        y, p = functional.leaky_readout(found[0].view(T, -1, N), w_out, k_out,
                                        p if batch or p is None else p[None])
        y, p = (y.transpose(0, 1) if first else y, p) if batch else (y.squeeze(1), p[0])
    out = out.transpose(0, 1) if first else out
    return Layered(out if spikes or w_out is None else None, found[1], None, y, p)
