"""Sequences of unequal length, of a PackedSequence or a padded tensor, as tensors (T, B, .) sorted
by descending length, with lengths (B,)."""
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._core.lengths import Lengths, LengthsArgument, resolve_lengths, wrap_descending
from .._core.state import State, Traces
from ..functional import Layered, PackedSpikes, pack_spikes


class _Permutation(torch.autograd.Function):
    """Rows (n, k) in another order. Its gradient uses the inverse order, the same one for None, and
    writes each row once."""

    @staticmethod
    def forward(values: Tensor, order: Tensor, inverse: Tensor | None) -> Tensor:
        return values.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        order, inverse = ctx.saved_tensors
        back, again = (order, None) if inverse is None else (inverse, order)
        return _Permutation.apply(gradient, back, again), None, None


def flip_time(value: Tensor, lengths: Lengths | None) -> Tensor:
    """Each sequence of (T, B, N) reversed in time, within its own steps; lengths None: all have
    T."""
    if lengths is None:
        return value.flip(0)
    T, B, N = value.shape
    step, each = torch.arange(T, device="cpu")[:, None], lengths.each
    mirrored = torch.where(step < each, each - 1 - step, step)
    order = (mirrored * B + torch.arange(B, device="cpu")).flatten().to(value.device)
    reordered: Tensor = _Permutation.apply(value.reshape(T * B, N), order, None)
    return reordered.view(T, B, N)


def _is_running(each: Tensor) -> Tensor:
    """(T, B) of bools: whether each sequence has this step; each: descending lengths."""
    return torch.arange(int(each[0]), device="cpu")[:, None] < each


def _pad_rows(data: Tensor, each: Tensor) -> Tensor:
    """Packed rows as (T, B, .); each: descending lengths."""
    if each[0] == each[-1]:
        return data.unflatten(0, (-1, len(each)))
    return pad_packed_sequence(PackedSequence(data, _is_running(each).sum(1)))[0]


def _pack_rows(padded: Tensor, each: Tensor) -> Tensor:
    """(T, B, .) as packed rows; each: descending lengths."""
    if each[0] == each[-1]:
        return padded.flatten(0, 1)
    if padded.is_complex():  # torch packs complex numbers without a gradient
        return torch.view_as_complex(_pack_rows(torch.view_as_real(padded), each))
    return pack_padded_sequence(padded, each).data


def find_lengths(x: PackedSequence) -> Lengths:
    """The lengths of its sequences, which are sorted as it names."""
    B = int(x.batch_sizes[0])
    each = (x.batch_sizes[:, None] > torch.arange(B, device="cpu")).sum(0)
    places = x.unsorted_indices
    return Lengths(each if places is None else each[places.cpu()], each, x.sorted_indices, places)


def repack(value: Tensor, x: PackedSequence) -> PackedSequence:
    """Results (T, B, .) in the original order of the sequences as a PackedSequence like x."""
    lengths = find_lengths(x)
    return x._replace(data=_pack_rows(lengths.sort(value, 1), lengths.descending))


# The padding that costs as much as one more step (measured, 2 threads, 50 to 220 neurons).
_ROWS_OF_A_STEP = 64
# x (T, B, I), falling lengths or None, state, p, masks (..., B, N) -> results (T, B, .)
Run: TypeAlias = Callable[
    [Any, Lengths | None, State | None, Tensor | None, Tensor | None], Layered]


def _sort_state(state: State | None, lengths: Lengths) -> State | None:
    return None if state is None else state.map(lambda leaf: lengths.sort(leaf, -2))


def run_padded(x: Tensor | PackedSpikes, argument: LengthsArgument | None, state: State | None,
               p: Tensor | None, masks: Tensor | None, means: list[Tensor] | None,
               run: Run) -> Layered:
    """Calls run for sequences (T, B, I) in any order, and restores this order of the results, also
    of the rates (layers, B, N) in means; argument: lengths as of functional.alif."""
    T, B, _ = x.shape
    device = (x.carrier if isinstance(x, PackedSpikes) else x).device
    lengths = resolve_lengths(argument, T, B, device)
    if lengths is None or lengths.order is None:
        return run(x if isinstance(x, PackedSpikes) else x.contiguous(), lengths, state, p, masks)
    x = lengths.sort(x.numbers() if isinstance(x, PackedSpikes) else x, 1)
    out = run(x, wrap_descending(lengths.descending), _sort_state(state, lengths),
              lengths.sort(p, 0), lengths.sort(masks, -2))
    if means is not None:
        means[:] = [lengths.restore(value, 1) for value in means]
    traces = None if out.traces is None else Traces(
        *(lengths.restore(value, 1) for value in out.traces))
    packed = None if out.packed is None else pack_spikes(lengths.restore(out.packed.numbers(), 1))
    end = out.state.map(lambda leaf: lengths.restore(leaf, -2))
    return Layered(lengths.restore(out.spikes, 1), end, traces, lengths.restore(out.readout, 1),
                   lengths.restore(out.readout_state, 0), packed)


def _split(each: Tensor) -> list[slice]:
    """Groups of consecutive sequences: a new one starts where its steps cost less than padding."""
    steps, firsts = each.tolist(), [0]
    for b, n in enumerate(steps):
        if (steps[firsts[-1]] - n) * (len(steps) - b) > _ROWS_OF_A_STEP * n:
            firsts.append(b)
    return [slice(*ends) for ends in zip(firsts, [*firsts[1:], len(steps)], strict=True)]


def run_packed(x: PackedSequence, state: State | None, p: Tensor | None, masks: Tensor | None,
               means: list[Tensor] | None, run: Run) -> Layered:
    """Calls run for groups of sequences of similar length. The results have the rows of x.data;
    states and rates are in the original order of the sequences."""
    lengths = find_lengths(x)
    each, data, order = lengths.descending, x.data, torch.empty(0)
    state, p, masks = _sort_state(state, lengths), lengths.sort(p, 0), lengths.sort(masks, -2)
    groups = _split(each)
    if len(groups) > 1:  # the row of x.data of each row of the groups, and the inverse
        runs = _is_running(each)
        rows = torch.zeros(runs.shape, dtype=torch.int64, device="cpu")
        rows[runs] = torch.arange(len(data), device="cpu")
        order = torch.cat([rows[:, group][runs[:, group]] for group in groups])
        places = order.to(data.device), torch.argsort(order).to(data.device)
        data = _Permutation.apply(data, *places)
    outs: list[Layered] = []
    for group, part in zip(groups, data.split([int(each[group].sum()) for group in groups]),
                           strict=True):
        steps = each[group]
        outs.append(run(_pad_rows(part, steps),
                        None if steps[0] == steps[-1] else wrap_descending(steps),
                        None if state is None else State(*(leaf[..., group, :] for leaf in state)),
                        None if p is None else p[group],
                        None if masks is None else masks[..., group, :]))

    def pack(values: Any) -> Any:
        if values[0] is None:
            return None
        joined = torch.cat([_pack_rows(value, each[group])
                            for value, group in zip(values, groups, strict=True)])
        return joined if len(groups) == 1 else _Permutation.apply(joined, *reversed(places))

    def join(values: Any, axis: int) -> Any:
        return None if values[0] is None else lengths.restore(torch.cat(values, axis), axis)

    spikes, ends, traces, readouts, readout_states, _ = zip(*outs, strict=True)
    if means is not None:
        means[:] = [join(means, 1)]
    return Layered(pack(spikes), State(*(join(leaves, -2) for leaves in zip(*ends, strict=True))),
                   None if traces[0] is None else Traces(*map(pack, zip(*traces, strict=True))),
                   pack(readouts), join(readout_states, 0))
