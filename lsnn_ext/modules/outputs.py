"""Results of a layer: traces of selected neurons, and firing rates without spikes (T, B, N)."""
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._core.bits import WORD
from .._core.lengths import Lengths
from ..functional import Layered

Record: TypeAlias = Tensor | slice | range | list[int] | tuple[int, ...]


def select_neurons(record: Record | None, N: int, device: torch.device) -> Tensor | None:
    """The indices of the recorded neurons of N, or None. Raises an error naming record."""
    if record is None:
        return None
    if isinstance(record, slice):
        record = range(*record.indices(N))
    if isinstance(record, Tensor):
        if record.dtype == torch.bool or record.is_floating_point() or record.is_complex():
            raise TypeError(f"record: expected indices of neurons, got a tensor of {record.dtype}")
        record = record.flatten().tolist()
    if not isinstance(record, list | tuple | range) or not all(type(n) is int for n in record):
        raise TypeError(f"record: expected indices of neurons or a slice, got "
                        f"{type(record).__name__}")
    for n in record:
        if not -N <= n < N:
            raise ValueError(f"record: expected neurons below {N}, got {n}")
    return torch.tensor([n % N for n in record], dtype=torch.int64, device=device)


class _Counts(torch.autograd.Function):
    """Bits of spikes and their carrier (T, B, N) -> the number of spikes of each neuron (B, N)."""

    @staticmethod
    def forward(bits: Tensor, carrier: Tensor) -> Tensor:
        counts = [(bits >> shift & 1).sum(0, dtype=torch.int32) for shift in range(WORD)]
        return torch.stack(counts, -1).flatten(-2)[..., : carrier.shape[-1]].to(carrier.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.T = inputs[1].shape[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g.expand(ctx.T, *g.shape)


def compute_rates(out: Layered, lengths: Lengths | None) -> Tensor:
    """The mean of the spikes of one layer and direction over the steps of each sequence (B, N);
    float32 for spikes in half precision."""
    if out.spikes is not None:
        T, dtype = out.spikes.shape[0], torch.promote_types(out.spikes.dtype, torch.float32)
        counts = out.spikes.sum(0, dtype=dtype)
    else:
        packed: Any = out.packed
        T, counts = packed.shape[0], _Counts.apply(packed.bits, packed.carrier)
    if lengths is None:
        return counts / max(T, 1)
    return counts / lengths.each.clamp(min=1).to(counts.device, counts.dtype).unsqueeze(-1)
