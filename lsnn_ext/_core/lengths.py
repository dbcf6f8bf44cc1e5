"""Sequences of unequal length in one call: sorted by descending length, and put back in order."""
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .arguments import is_readable

LengthsArgument: TypeAlias = Tensor | Sequence[int]


class Lengths(NamedTuple):
    """The steps of each sequence of a batch; see `lengths` of functional.alif."""

    each: Tensor  # (B,) int64 on the CPU, in the order of the caller
    descending: Tensor  # (B,) the same, sorted
    # (B,) int64 on the device of the call: the sequence at each sorted position; None: in order
    order: Tensor | None = None
    places: Tensor | None = None  # (B,) the sorted position of each sequence

    def sort(self, value: Any, axis: int) -> Any:
        """The sequences along this axis, in the order of the operator; None stays None."""
        return _select(value, axis, self.order)

    def restore(self, value: Any, axis: int) -> Any:
        """The inverse of sort."""
        return _select(value, axis, self.places)

    def mask(self, value: Tensor) -> Tensor:
        """A value (T, B, N), 0 after the last step of each sequence."""
        steps = torch.arange(value.shape[0], device=value.device)
        return value.masked_fill(steps[:, None, None] >= self.each.to(value.device)[:, None], 0.0)


def _select(value: Tensor | None, axis: int, places: Tensor | None) -> Tensor | None:
    return value if value is None or places is None else value.index_select(axis, places)


def resolve_lengths(lengths: LengthsArgument | Lengths | None, T: int, B: int,
                    device: torch.device) -> Lengths | None:
    """Lengths as the operator takes them, sorted while compiling, when numbers cannot be read; None
    stays None. Raises TypeError or ValueError unless they are (B,) integers from 0 to T on the
    CPU."""
    if lengths is None or isinstance(lengths, Lengths):
        return lengths
    each = _to_integers(lengths)
    if each.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {tuple(each.shape)}")
    each = each.detach().to(torch.int64)
    if B and is_readable(each):
        low, high = (int(end) for end in each.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"lengths: expected steps from 0 to T = {T}, got "
                             f"{low if low < 0 else high}")
        if bool((each[:-1] >= each[1:]).all()):
            return Lengths(each, each)
    descending, order = torch.sort(each, descending=True, stable=True)
    return Lengths(each, descending, order.to(device), torch.argsort(order).to(device))


def _to_integers(lengths: Any) -> Tensor:
    if isinstance(lengths, Tensor):
        dtype = lengths.dtype
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise TypeError(f"lengths: expected whole numbers, got {dtype}")
        if lengths.device.type != "cpu":
            raise ValueError(f"lengths: expected a tensor on the CPU, which plans the work, got "
                             f"{lengths.device}")
        return lengths
    if not isinstance(lengths, list | tuple) or not all(type(n) is int for n in lengths):
        raise TypeError(f"lengths: expected whole numbers (B,), got {type(lengths).__name__}")
    return torch.tensor(lengths, dtype=torch.int64, device="cpu")


def add_bias(p: Tensor, bias: Tensor, lengths: Lengths | None) -> Tensor:
    """A readout p (T, B, O), or (..., O) without lengths, plus its bias, 0 after the end."""
    p = p + bias
    return p if lengths is None else lengths.mask(p)


def mask_readout(p: Tensor, first: Tensor | None, lengths: Lengths) -> tuple[Tensor, Tensor]:
    """A readout p (T, B, O), 0 after the last step of each sequence, and its value at that step,
    (B, O); of a sequence without steps that of first (B, O), default zeros."""
    _, B, O = p.shape
    first = p.new_zeros(B, O) if first is None else first
    every = torch.cat([first.to(p.dtype)[None], p])
    last = every.gather(0, lengths.each.to(p.device)[None, :, None].expand(1, B, O))[0]
    return lengths.mask(p), last
