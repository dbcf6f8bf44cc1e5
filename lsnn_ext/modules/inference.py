"""Short calls of a layer: bitwise identical to the operators, with cached checks and copies.

Without gradients these are sequences of a few steps, with gradients single steps.
"""
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .._core import prepared_layer
from .._core.decisions import report
from .._core.lengths import add_bias
from .._core.options import PASSED_TO_NEURONS, NeuronArguments
from .._core.prepared_layer import PreparedLayer, find_addresses, has_plain_memory, why_not_prepared
from .._core.recorded_layer import RecordedLayer
from .._core.state import State
from .._core.torch_internals import without_saved_tensor_hooks
from ..functional import Layered
from .constants import Constants
from .delays import read_delay
from .recurrent_dropout import is_dropping


def _find_prepared(layer: Constants, suffix: str, cache: dict[str, PreparedLayer],
                   rebuild: bool = False) -> PreparedLayer | None:
    """The prepared layer of the parameters with this suffix, with gradients a RecordedLayer; None
    if the operators have to run. rebuild: do not return the cached one."""
    N, recorded = layer.hidden_size, torch.is_grad_enabled()
    delay = layer.delay if isinstance(layer.delay, int) else None  # a tensor is a source
    parameters, buffers, prepared = layer._find_parameters(), layer._buffers, cache.get(suffix)
    bias = parameters.get("bias_ih" + suffix)
    constants = (N, layer.dt, layer.autapses, delay, bias is None, layer._describe_forms(),
                 *(getattr(layer, name) for name in PASSED_TO_NEURONS))
    if (prepared is not None and not rebuild
            and (not recorded or isinstance(prepared, RecordedLayer))
            and prepared.is_valid_for(constants, parameters, buffers)):
        return prepared
    names = [name + suffix for name in (
        *layer._neuron, "weight_ih", *["weight_hh"] * layer.recurrent, *["bias_ih"] * (
            layer.bias or bias is not None))] + ["delay"] * (delay is None)
    sources = {name: value for name in names
               if (value := parameters.get(name, buffers.get(name))) is not None}
    w_in, stored = (sources.get(name + suffix) for name in ("weight_ih", "weight_hh"))
    inputs = layer.input_size if suffix == layer._suffixes[0] else N
    if (len(sources) < len(names) or w_in is None  # parametrized, computed in each call
            or w_in.shape != (N, inputs) or bias is not None and bias.shape != (N,)
            or stored is not None and stored.shape != (N, N)):
        return None
    weights = [one for one in (w_in, bias, stored) if one is not None]
    plain = (one.contiguous() if one is w_in and one.layout is torch.strided else one
             for one in sources.values())
    if not all(has_plain_memory(one.dtype, one) for one in plain) or any(
            one.dtype is not w_in.dtype for one in weights):
        return None
    learned = {name: one for name, one in sources.items() if recorded and one.requires_grad}
    if not all(one.is_leaf for one in learned.values()):
        return None  # a cache must not keep the graph of computed parameters
    with without_saved_tensor_hooks():  # the cache outlives the hooks
        copies = {name: one.detach().clone().requires_grad_() for name, one in learned.items()
                  if not any(one is weight for weight in weights)}
        w_rec, synapses = layer._mask_recurrent_weight(suffix), None
        if w_rec is not None and stored is not None:
            synapses = prepared_layer.RecurrentWeights(w_rec.detach(), stored, layer.autapses)
        neuron = NeuronArguments(**layer._compute_neuron_arguments(suffix, copies))
        delays = read_delay(layer)
        if not prepared_layer.is_worth_preparing(delays, N, w_in.dtype):
            return None
        arguments = (constants, sources, neuron, delays, N, w_in.dtype, synapses,
                     prepared_layer.Projection(w_in, bias))
        cache[suffix] = (RecordedLayer(*arguments, learned=copies) if recorded
                         else PreparedLayer(*arguments))
    return cache[suffix]


def _prepare_call(layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...],
                  state: State | None) -> tuple[Tensor, State, dict[str, Any]] | None:
    """x (steps * B, I), the state as of forward, and the layers of a short call by suffix; None if
    the operators have to run or raise the error."""
    if type(x) is not Tensor:
        return None
    B, N, L, dtype = batch[0] if batch else 1, layer.hidden_size, layer.num_layers, x.dtype
    if (why_not_prepared(steps, B, N) or layer.bidirectional or is_dropping(layer)
            or layer.checkpoint_every is not None or torch.is_grad_enabled() and (
                layer.sparse_grad != "all" or layer.saved_dtype not in (None, dtype))):
        return None
    if not x.is_cpu or x.shape[-1] != layer.input_size or not x.is_contiguous():
        return None
    if x.dim() != 2:
        x = x.view(steps * B, layer.input_size)
    cache: dict[str, PreparedLayer] = layer.__dict__.setdefault("_prepared", {})
    layers: dict[str, PreparedLayer] = {}
    D = 0
    for suffix in layer._suffixes:
        prepared = _find_prepared(layer, suffix, cache)
        if prepared is None or prepared.dtype is not dtype:
            return None
        if D and prepared.D != D:  # delays were changed after some layers were prepared
            cache.clear()
            return None
        D, layers[suffix] = prepared.D, prepared
    shape, past = (L, *batch, N), (L, D, *batch, N)
    if state is None:
        v = a = i = r = torch.zeros(shape, dtype=dtype, device="cpu")
        z = torch.zeros(past, dtype=dtype, device="cpu")
        return x, State(v, a, i, r, z), layers
    if type(state) is not State or not has_plain_memory(dtype, *state):
        return None
    v, a, i, r, z = state
    if not (v.shape == a.shape == i.shape == r.shape == shape and z.shape == past):
        return None
    return x, state, layers


def _rebuild(layer: Constants, suffix: str, D: int) -> PreparedLayer | None:
    """A prepared layer for a parameter or delays that were changed in place; None if the number of
    past steps differs from D, that of the call, too."""
    rebuilt = _find_prepared(layer, suffix, layer.__dict__["_prepared"], rebuild=True)
    return None if rebuilt is None or rebuilt.D != D else rebuilt


def run_recorded(layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...],
                 state: State | None) -> tuple[Tensor, State] | None:
    """Runs one step with gradients; as run_prepared."""
    call = _prepare_call(layer, x, steps, batch, state)
    if call is None:
        return None
    x, before, layers = call
    is_single = len(layers) == 1
    parts = [before] if is_single else [State(*leaves) for leaves in zip(
        *(leaf.unbind(0) for leaf in before), strict=True)]
    after: list[State] = []
    for (suffix, prepared), part in zip(layers.items(), parts, strict=True):
        if after:
            x = nn.functional.dropout(x, layer.dropout, layer.training)
        if not prepared.is_current():
            rebuilt = _rebuild(layer, suffix, prepared.D)
            if rebuilt is None or not rebuilt.is_current():
                return None
            prepared = rebuilt
        x, end = prepared.step(x, part)
        report("prepared", layer, suffix, x, 1)
        after.append(end)
    return x, after[0] if is_single else State(*map(torch.stack, zip(*after, strict=True)))


def run_prepared(layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...],
                 state: State | None) -> tuple[Tensor, State] | None:
    """Runs a short call without gradients, with x (steps, B, I) or (steps * B, I); batch: (B,), or
    () for a state without a batch, with B = 1. Returns spikes (steps * B, N) and the State; None if
    the operators have to run or raise the error."""
    call = _prepare_call(layer, x, steps, batch, state)
    if call is None:
        return None
    x, before, layers = call
    after = State(*[torch.empty_like(leaf) for leaf in before])
    # Item (layer, ...) of each part of the state, before and after.
    first, last = find_addresses(before), find_addresses(after)
    for suffix, prepared in layers.items():
        if suffix != layer._suffixes[0]:
            x = nn.functional.dropout(x, layer.dropout, layer.training)
            parts = [leaf.nbytes // len(layers) for leaf in before]
            first = [address + part for address, part in zip(first, parts, strict=True)]
            last = [address + part for address, part in zip(last, parts, strict=True)]
        current = nn.functional.linear(x, *prepared.projection)
        x = torch.empty_like(current)
        arguments = steps, len(x) // steps, current.data_ptr(), first, last, x.data_ptr()
        if not prepared.run(*arguments):
            rebuilt = _rebuild(layer, suffix, prepared.D)
            if rebuilt is None or not rebuilt.run(*arguments):
                return None
        report("prepared", layer, suffix, x, steps)
    return x, after


def run_prepared_sequence(layer: Constants, x: Tensor, state: State | None, p: Tensor | None = None,
                          *, w_out: Tensor | None = None, k_out: float = 0.0,
                          b_out: Tensor | None = None, spikes: bool = True) -> Layered | None:
    """Runs a short sequence without gradients; x, state and results as of forward, the rest as of
    functional.layer, with p (O,) if x is unbatched. None as run_prepared."""
    if (torch.compiler.is_compiling() or torch.is_grad_enabled()
            or x.dim() not in (2, 3) or x.layout != torch.strided):
        return None
    batch_first = layer.batch_first and x.dim() == 3
    x = x.transpose(0, 1) if batch_first else x
    (T, *batch), N = x.shape[:-1], layer.hidden_size
    if w_out is not None and not (w_out.dim() == 2 and w_out.shape[1] == N and 0 <= k_out <= 1):
        return None
    if not x.is_contiguous():
        if why_not_prepared(T, batch[0] if batch else 1, N):
            return None
        x = x.contiguous()
    found = run_prepared(layer, x, T, tuple(batch), state)
    if found is None:
        return None
    z, y = found[0].view(T, *batch, N), None
    if w_out is not None:
        y, p = functional.leaky_readout(z if batch else z[:, None], w_out, k_out,
                                        p if batch or p is None else p[None])
        y = y if b_out is None else add_bias(y, b_out, None)
        y, p = (y.transpose(0, 1) if batch_first else y, p) if batch else (y.squeeze(1), p[0])
    z = z.transpose(0, 1) if batch_first else z
    return Layered(z if spikes or w_out is None else None, found[1], None, y, p)
