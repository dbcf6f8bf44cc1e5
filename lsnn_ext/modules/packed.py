"""Sequences of unequal length, of a PackedSequence or a padded tensor, as tensors (T, B, .) sorted
by descending length, with lengths (B,)."""
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._core.lengths import Lengths, LengthsArgument, resolve_lengths, wrap_descending
from .._core.state import State, Traces
from ..functional import Layered, PackedSpikes, pack_spikes
from .checks import unwrap_optional


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


class _Group(NamedTuple):
    """Consecutive sequences; the longest has at most twice the steps of the shortest."""

    first: int
    end: int  # one past its last sequence
    lengths: Tensor  # (end - first,)

    @property
    def T(self) -> int:
        return int(self.lengths[0])

    @property
    def is_even(self) -> bool:
        """Whether all have T steps, so their packed rows are those of a tensor (T, B, .)."""
        return int(self.lengths[-1]) == self.T

    def pad(self, data: Tensor) -> Tensor:
        """Packed rows of the group as (T, B, .)."""
        if self.is_even:
            return data.unflatten(0, (self.T, -1))
        batch_sizes = (torch.arange(self.T, device="cpu")[:, None] < self.lengths).sum(1)
        return pad_packed_sequence(PackedSequence(data, batch_sizes))[0]

    def pack(self, padded: Tensor) -> Tensor:
        """(T, B, .) as packed rows of the group."""
        return (padded.flatten(0, 1) if self.is_even
                else pack_padded_sequence(padded, self.lengths).data)


def _groups(lengths: Tensor) -> list[_Group]:
    """Splits the batch into groups, so memory and time are proportional to the sum of lengths."""
    found: list[_Group] = []
    first = 0
    for b in range(1, len(lengths) + 1):
        if b == len(lengths) or 2 * int(lengths[b]) < int(lengths[first]):
            found.append(_Group(first, b, lengths[first:b]))
            first = b
    return found


def _order(groups: list[_Group], lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The position of each packed row of all sequences in the concatenated packed rows of the
    groups, and the inverse."""
    T, B = int(lengths[0]), len(lengths)
    runs = torch.arange(T, device="cpu")[:, None] < lengths
    place, n = torch.zeros(T, B, dtype=torch.int64, device="cpu"), 0
    for group in groups:
        mask = runs[: group.T, group.first : group.end]
        steps = int(mask.sum())
        place[: group.T, group.first : group.end][mask] = torch.arange(
            n, n + steps, device="cpu")
        n += steps
    order = place[runs]
    return order, torch.argsort(order)


# x (T, B, I), falling lengths or None, state, p, masks (..., B, N) -> results (T, B, .)
Run: TypeAlias = Callable[
    [Any, Lengths | None, State | None, Tensor | None, Tensor | None], Layered]


def _map_state(state: State | None, change: Callable[[Tensor], Tensor]) -> State | None:
    return None if state is None else State(*map(change, state))


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
    state = _map_state(state, lambda leaf: lengths.sort(leaf, -2))
    out = run(x, wrap_descending(lengths.descending), state, lengths.sort(p, 0),
              lengths.sort(masks, -2))
    if means is not None:
        means[:] = [lengths.restore(value, 1) for value in means]
    traces = None if out.traces is None else Traces(
        *(lengths.restore(value, 1) for value in out.traces))
    packed = None if out.packed is None else pack_spikes(lengths.restore(out.packed.numbers(), 1))
    end = out.state.map(lambda leaf: lengths.restore(leaf, -2))
    return Layered(lengths.restore(out.spikes, 1), end, traces, lengths.restore(out.readout, 1),
                   lengths.restore(out.readout_state, 0), packed)


def run_packed(x: PackedSequence, state: State | None, p: Tensor | None, masks: Tensor | None,
               run: Run) -> Layered:
    """Calls run for groups of sequences of similar length, and packs the results.

    The results have the rows of x.data; states are in the original order of the sequences.
    """
    # (B,) in the order of x
    lengths = (x.batch_sizes[:, None] > torch.arange(int(x.batch_sizes[0]), device="cpu")).sum(0)
    if x.sorted_indices is not None:
        order = x.sorted_indices
        state = _map_state(state, lambda leaf: leaf.index_select(-2, order))
        p = None if p is None else p.index_select(0, order)
        masks = None if masks is None else masks.index_select(-2, order)
    groups = _groups(lengths)
    places: list[Tensor] = []
    data = x.data
    if len(groups) > 1:
        places = [index.to(data.device) for index in _order(groups, lengths)]
        data = _Permutation.apply(data, *reversed(places))
    outs: list[Layered] = []
    for group, rows in zip(groups, data.split([int(group.lengths.sum()) for group in groups]),
                           strict=True):
        part = slice(group.first, group.end)
        outs.append(run(group.pad(rows),
                        None if group.is_even else wrap_descending(group.lengths),
                        None if state is None else State(*(leaf[..., part, :] for leaf in state)),
                        None if p is None else p[part],
                        None if masks is None else masks[..., part, :]))

    def pack(values: list[Tensor | None]) -> Tensor | None:
        if values[0] is None:
            return None
        parts = [group.pack(unwrap_optional(value))
                 for value, group in zip(values, groups, strict=True)]
        return _Permutation.apply(torch.cat(parts), *places) if places else parts[0]

    def unsort(values: list[Tensor | None], axis: int) -> Tensor | None:
        if values[0] is None:
            return None
        joined, order = torch.cat([unwrap_optional(value) for value in values],
                                  axis), x.unsorted_indices
        return joined if order is None else joined.index_select(axis, order)

    leaves = zip(*(out.state for out in outs), strict=True)
    state_after = State(*(unwrap_optional(unsort(list(values), -2)) for values in leaves))
    traces = None
    if outs[0].traces is not None:
        each = [out.traces for out in outs if out.traces is not None]
        traces = Traces(*(unwrap_optional(pack(list(values)))
                          for values in zip(*each, strict=True)))
    spikes = pack([out.spikes for out in outs])
    readout = pack([out.readout for out in outs])
    readout_state = unsort([out.readout_state for out in outs], 0)
    return Layered(spikes, state_after, traces, readout, readout_state)


def repack(data: Tensor | None, x: PackedSequence) -> PackedSequence:
    """Rows of a result as a PackedSequence like x."""
    return PackedSequence(unwrap_optional(data), x.batch_sizes, x.sorted_indices,
                          x.unsorted_indices)
