"""Sequences of unequal length in one call: sorted by falling length, as the operator takes them,
and put back."""
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .arguments import readable

LengthsArgument: TypeAlias = Tensor | Sequence[int]


class Lengths(NamedTuple):
    """Steps of each sequence of a batch; see `lengths` of functional.alif."""

    each: Tensor  # (B,) int64 on the CPU, in the order of the caller
    descending: Tensor  # (B,) the same, sorted
    # (B,) int64 on the device of the call: who comes at each place; None: as they are
    order: Tensor | None
    places: Tensor | None  # (B,) the place of each

    def sort(self, value: Tensor, axis: int) -> Tensor:
        """The sequences along this axis, in the order of the operator."""
        return value if self.order is None else value.index_select(axis, self.order)

    def restore(self, value: Tensor, axis: int) -> Tensor:
        """The other way round."""
        return value if self.places is None else value.index_select(axis, self.places)

    def ended(self, T: int, device: torch.device) -> Tensor:
        """(T, B, 1): whether the sequence has no such step."""
        steps = torch.arange(T, device=device)
        return (steps[:, None] >= self.each.to(device)).unsqueeze(-1)


def wrap_descending(each: Tensor) -> Lengths:
    """Lengths (B,) that fall already."""
    return Lengths(each, each, None, None)


def resolve_lengths(
    given: LengthsArgument | Lengths | None, T: int, B: int, device: torch.device,
) -> Lengths | None:
    """None where none are given. While compiling, where numbers are not known, they are sorted
    always.

    Raises TypeError or ValueError for what is no (B,) whole numbers from 0 to T on the CPU.
    """
    if given is None or isinstance(given, Lengths):
        return given
    each = _whole_numbers(given)
    if each.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {tuple(each.shape)}")
    each = each.detach().to(torch.int64)
    if B and readable(each):
        low, high = (int(end) for end in each.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"lengths: expected steps from 0 to T = {T}, got "
                             f"{low if low < 0 else high}")
        if bool((each[:-1] >= each[1:]).all()):
            return wrap_descending(each)
    descending, order = torch.sort(each, descending=True, stable=True)
    return Lengths(each, descending, order.to(device), torch.argsort(order).to(device))


def _whole_numbers(given: Any) -> Tensor:
    if isinstance(given, Tensor):
        if given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool:
            raise TypeError(f"lengths: expected whole numbers, got {given.dtype}")
        if given.device.type != "cpu":
            raise ValueError(f"lengths: expected a tensor on the CPU, where the work is planned, "
                             f"got {given.device}")
        return given
    if not isinstance(given, list | tuple) or not all(type(n) is int for n in given):
        raise TypeError(f"lengths: expected whole numbers (B,), got {type(given).__name__}")
    return torch.tensor(given, dtype=torch.int64)


def add_bias(p: Tensor, bias: Tensor, lengths: Lengths | None) -> Tensor:
    """A readout p (T, B, O) and its bias, which sequences have in their own steps alone: it is 0
    after them. Without lengths p has any form (..., O)."""
    p = p + bias
    return p if lengths is None else p.masked_fill(lengths.ended(p.shape[0], p.device), 0.0)


def mask_readout(p: Tensor, first: Tensor | None, lengths: Lengths) -> tuple[Tensor, Tensor]:
    """A readout p (T, B, O) of sequences that end: 0 after their last step, and the value at it,
    (B, O).

    first (B, O) or None, zeros, stands where a sequence has no step.
    """
    T, B, O = p.shape  # noqa: E741
    first = p.new_zeros(B, O) if first is None else first
    each = lengths.each.to(p.device)
    shown = p.masked_fill(lengths.ended(T, p.device), 0.0)
    every = torch.cat([first.to(p.dtype)[None], p])
    last = every.gather(0, each[None, :, None].expand(1, B, O))[0]
    return shown, last
