"""Short calls of a layer: equal to the operators bit for bit, without what need not be done again.

Without gradients these are sequences of few steps, with gradients single steps.
"""
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import functional
from .._core.decisions import report
from .._core.options import PASSED_TO_NEURONS, NeuronArguments
from .._core.prepared_layer import (
    PreparedLayer,
    Synapses,
    can_be_prepared,
    has_plain_memory,
    is_worth_preparing,
)
from .._core.recorded_layer import Projection, RecordedLayer, record_step
from .._core.state import State
from .._core.torch_internals import without_saved_tensor_hooks
from ..functional import Layered
from .constants import Constants
from .delays import read_delay


def _projection(layer: Constants, suffix: str) -> Projection:
    w_in = layer._parameters["weight_ih" + suffix]
    assert w_in is not None  # _ready has looked
    return Projection(w_in, layer._parameters.get("bias_ih" + suffix))


def _prepared_layer(layer: Constants, suffix: str, kept: dict[str, PreparedLayer],
                    anew: bool = False) -> PreparedLayer | None:
    """What belongs to the parameters with this suffix as they are now; anew: although nothing seems
    to have changed. With gradients it is a RecordedLayer."""
    N, recorded = layer.hidden_size, torch.is_grad_enabled()
    delay = layer.delay if isinstance(layer.delay, int) else None  # a tensor is one of the sources
    constants = (N, layer.dt, layer.autapses, delay, layer._forms(),
                 *(getattr(layer, name) for name in PASSED_TO_NEURONS))
    parameters, buffers, prepared = layer._stored(), layer._buffers, kept.get(suffix)
    if (
        prepared is not None and not anew and prepared.is_valid_for(constants, parameters, buffers)
        and (not recorded or isinstance(prepared, RecordedLayer)
             and prepared.has_projection(_projection(layer, suffix)))
    ):
        return prepared
    projection = w_in, bias = _projection(layer, suffix)
    names = [name + suffix for name in layer._neuron]
    names += ["weight_hh" + suffix] if layer.recurrent else []
    names += ["delay"] if delay is None else []
    sources = {name: parameters.get(name, buffers.get(name)) for name in names}
    present = {name: value for name, value in sources.items() if value is not None}
    stored = present.get("weight_hh" + suffix)
    if len(present) < len(sources) or stored is not None and stored.shape != (N, N):
        return None  # a parametrized weight, which is computed at each call, or a wrong one
    if not all(has_plain_memory(source.dtype, source) for source in present.values()):
        return None
    wanted = {name: source for name, source in present.items()
              if recorded and source.requires_grad}
    if recorded:
        if not all(one is None or one.is_leaf for one in (*wanted.values(), *projection)):
            return None  # computed from others, whose graph must not be kept
        inputs = layer.input_size if suffix == layer._suffixes[0] else N
        if w_in.shape != (N, inputs) or bias is not None and bias.shape != (N,):
            return None
    with without_saved_tensor_hooks():  # what is kept outlives them
        copies = {name: source.detach().clone().requires_grad_() for name, source in wanted.items()
                  if source is not stored}
        w_rec = layer._recurrent_weight(suffix)
        synapses = None
        if w_rec is not None and stored is not None:
            synapses = Synapses(w_rec.detach(), stored, layer.autapses)
        weight = w_in if stored is None else stored
        neuron = NeuronArguments(**layer._neuron_arguments(suffix, copies))
        delays = read_delay(layer)  # type: ignore[arg-type]
        if not is_worth_preparing(delays, N, weight.dtype):
            return None
        made = constants, present, neuron, delays, N, weight.dtype, synapses
        kept[suffix] = (
            RecordedLayer(*made, copies, projection) if recorded else PreparedLayer(*made))
    return kept[suffix]


# What a short call is made of: x (steps * B, I), the state as of forward, of each layer its suffix
# and what it takes, and the layers that are kept.
_Ready: TypeAlias = tuple[
    Tensor, State, list[tuple[str, PreparedLayer, Tensor, Tensor | None]], dict[str, PreparedLayer]]


def _ready(
    layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...], state: State | None,
) -> _Ready | None:
    """None where the call has to go through the operators, which also say what is wrong with
    arguments that are wrong."""
    if type(x) is not Tensor:
        return None
    B, N, L = batch[0] if batch else 1, layer.hidden_size, layer.num_layers
    dtype, parameters = x.dtype, layer._parameters
    if (
        not can_be_prepared(steps, B, N)
        or layer.bidirectional
        or layer.checkpoint_every is not None
        or (layer.sparse_grad != "all" and torch.is_grad_enabled())
    ):
        return None
    if not x.is_cpu or x.shape[-1] != layer.input_size or not x.is_contiguous():
        return None
    if x.dim() != 2:
        x = x.view(steps * B, layer.input_size)
    kept: dict[str, PreparedLayer] = layer.__dict__.setdefault("_prepared", {})
    layers: list[tuple[str, PreparedLayer, Tensor, Tensor | None]] = []
    D = 0
    for suffix in layer._suffixes:
        w_in, bias = parameters.get("weight_ih" + suffix), parameters.get("bias_ih" + suffix)
        if w_in is None or w_in.dtype is not dtype or not w_in.is_cpu:
            return None
        if layer.bias and (bias is None or not bias.is_cpu):
            return None
        prepared = _prepared_layer(layer, suffix, kept)
        if prepared is None or prepared.dtype is not dtype:
            return None
        if D and prepared.D != D:  # delays were changed, and not all layers have seen it
            kept.clear()
            return None
        D = prepared.D
        layers.append((suffix, prepared, w_in, bias))
    form, past = (L, *batch, N), (L, D, *batch, N)
    if state is None:
        v = a = i = r = torch.zeros(form, dtype=dtype)
        z = torch.zeros(past, dtype=dtype)
        state = State(v, a, i, r, z)
    elif type(state) is State:
        v, a, i, r, z = state
        if not has_plain_memory(dtype, v, a, i, r, z):
            return None
        if not (v.shape == a.shape == i.shape == r.shape == form and z.shape == past):
            return None
    else:
        return None
    return x, state, layers, kept


def recorded_call(
    layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...], state: State | None,
) -> tuple[Tensor, State] | None:
    """prepared_call with gradients, of one step."""
    if layer.saved_dtype not in (None, x.dtype):
        return None
    ready = _ready(layer, x, steps, batch, state)
    if ready is None:
        return None
    x, before, layers, kept = ready
    alone = len(layers) == 1
    parts = [before] if alone else [State(*leaves) for leaves in zip(
        *(leaf.unbind(0) for leaf in before), strict=True)]
    after: list[State] = []
    for (suffix, prepared, *_), part in zip(layers, parts, strict=True):
        if after:
            x = nn.functional.dropout(x, layer.dropout, layer.training)
        if not prepared.is_current():  # somebody has changed a parameter, or the delays
            made = _prepared_layer(layer, suffix, kept, anew=True)
            if made is None or made.D != prepared.D or not made.is_current():
                return None
            prepared = made
        assert isinstance(prepared, RecordedLayer)
        x, end = record_step(prepared, x, part)
        report("prepared", layer, suffix, x, 1)
        after.append(end)
    if alone:
        return x, after[0]
    return x, State(*(torch.stack(leaves) for leaves in zip(*after, strict=True)))


def prepared_call(
    layer: Constants, x: Tensor, steps: int, batch: tuple[int, ...], state: State | None,
) -> tuple[Tensor, State] | None:
    """x (steps, B, I) or the same as rows, and a state as of forward -> spikes (steps * B, N) and
    the state after them.

    batch is (B,), or () where the state has no batch, B is 1 then. None where the call has to go
    through the operators, which also say what is wrong with arguments that are wrong.
    """
    ready = _ready(layer, x, steps, batch, state)
    if ready is None:
        return None
    x, before, layers, kept = ready
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
            # somebody has changed a parameter, or the delays
            made = _prepared_layer(layer, suffix, kept, anew=True)
            if (
                made is None
                or made.D != D
                or not made.run(steps, B, current.data_ptr(), first, last, x.data_ptr())
            ):
                return None
        report("prepared", layer, suffix, x, steps)
    return x, after


def prepared_sequence(
    layer: Constants, x: Tensor, state: State | None, p: Tensor | None = None, *,
    w_out: Tensor | None = None, k_out: float = 0.0, spikes: bool = True, **others: Any,
) -> Layered | None:
    """x and what comes back as of forward; the rest of functional.layer, p (O,) where x is
    unbatched."""
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
        if not can_be_prepared(T, batch[0] if batch else 1, N):
            return None
        steps_first = steps_first.contiguous()
    found = prepared_call(layer, steps_first, T, tuple(batch), state)
    if found is None:
        return None
    out, y = found[0].view(T, *batch, N), None
    if w_out is not None:
        y, p = functional.leaky_readout(found[0].view(T, -1, N), w_out, k_out,
                                        p if batch or p is None else p[None])
        y, p = (y.transpose(0, 1) if first else y, p) if batch else (y.squeeze(1), p[0])
    shown = out.transpose(0, 1) if first else out
    return Layered(shown if spikes or w_out is None else None, found[1], None, y, p)
