"""Sequences of unequal length, of a PackedSequence or a padded tensor, as tensors (T, B, .) sorted
by descending length, with lengths (B,)."""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._core.lengths import Lengths, LengthsArgument, resolve_lengths
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
        ctx.save_for_backward(*inputs[1:])

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
    each = (x.batch_sizes[:, None] > torch.arange(int(x.batch_sizes[0]), device="cpu")).sum(0)
    places = x.unsorted_indices
    return Lengths(each if places is None else each[places.cpu()], each, x.sorted_indices, places)


def repack(value: Tensor, x: PackedSequence) -> PackedSequence:
    """Results (T, B, .) in the original order of the sequences as a PackedSequence like x."""
    lengths = find_lengths(x)
    return x._replace(data=_pack_rows(lengths.sort(value, 1), lengths.descending))


def to_time_first(x: Any, lengths: Any, batch_first: bool) -> tuple[
        Any, Any, Callable[[Tensor], Any]]:
    """x in any form as (T, B, I), its lengths, and the inverse change for results (T, B, N)."""
    if isinstance(x, PackedSequence):
        return *pad_packed_sequence(x), partial(repack, x=x)
    if isinstance(x, Tensor) and x.dim() == 2:
        return x.unsqueeze(1), lengths, partial(torch.squeeze, dim=1)
    if isinstance(x, Tensor) and batch_first:
        return x.transpose(0, 1), lengths, partial(torch.transpose, dim0=0, dim1=1)
    return x, lengths, lambda value: value


# x (T, B, I), falling lengths or None, state, p, masks (..., B, N) -> results (T, B, .)
Run: TypeAlias = Callable[
    [Any, Lengths | None, State | None, Tensor | None, Tensor | None], Layered]
Change: TypeAlias = Callable[[Tensor], Tensor]


def change_start(change: Change, state: State | None, *others: Tensor | None) -> Any:
    """Changes all that a call starts from, whose axis -2 is the batch; None stays None."""
    return (None if state is None else state.map(change),
            *(None if one is None else change(one) for one in others))


def combine_results(outs: Sequence[Layered], sequences: Callable[..., Tensor],
                    states: Callable[..., Tensor]) -> Layered:
    """One result of those of some calls: each tensor of all steps is that of sequences(*tensors),
    each after the last step that of states(*tensors)."""
    def make(change: Callable[..., Tensor], values: tuple[Any, ...]) -> Any:
        return None if values[0] is None else change(*values)

    spikes, ends, traces, readouts, readout_states, packed = zip(*outs, strict=True)
    return Layered(make(sequences, spikes), State(*map(states, *ends)),
                   None if traces[0] is None else Traces(*map(sequences, *traces)),
                   make(sequences, readouts), make(states, readout_states), packed[0])


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
    sort, restore = partial(lengths.sort, axis=-2), partial(lengths.restore, axis=-2)
    x = lengths.sort(x.numbers() if isinstance(x, PackedSpikes) else x, 1)
    each, start = lengths.descending, change_start(sort, state, p, masks)
    out = run(x, Lengths(each, each), *start)
    if means is not None:
        means[:] = map(restore, means)
    out = combine_results([out], restore, restore)  # (T, B, .) have the batch there, too
    return out if out.packed is None else out._replace(
        packed=pack_spikes(restore(out.packed.numbers())))


# The padding that costs as much as one more step (measured, 2 threads, 50 to 220 neurons).
_ROWS_OF_A_STEP = 64


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
    each, data = lengths.descending, x.data
    start = change_start(partial(lengths.sort, axis=-2), state, p, masks)
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
        n = each[group]
        select = partial(torch.narrow, dim=-2, start=group.start, length=len(n))
        outs.append(run(_pad_rows(part, n), None if n[0] == n[-1] else Lengths(n, n),
                        *change_start(select, *start)))

    def pack(*values: Tensor) -> Tensor:
        packed = [_pack_rows(one, each[group]) for one, group in zip(values, groups, strict=True)]
        return packed[0] if len(packed) == 1 else _Permutation.apply(torch.cat(packed),
                                                                     *places[::-1])

    def restore(*values: Tensor) -> Tensor:
        return lengths.restore(torch.cat(values, -2), -2)

    if means is not None:
        means[:] = [restore(*means)]
    return combine_results(outs, pack, restore)
