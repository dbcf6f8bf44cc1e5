"""Spikes as bits for stacked layers: 1/32 of the memory of float32."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

WORD = 32


def count_words(N: int) -> int:
    """The 32-bit words of a row of N bits."""
    return (N + WORD - 1) // WORD


class PackedSpikes(NamedTuple):
    """The spikes of a whole sequence, one bit each: an input of functional.layer, and its result
    for spikes="bits".

    The gradient of the spikes flows through `carrier`, which holds a single number. Slice both
    fields to select steps or sequences: PackedSpikes(bits[:, a:b], carrier[:, a:b]).
    """

    bits: Tensor  # (T, B, ceil(N / 32)) int32: neuron n is bit n % 32 of word n // 32
    carrier: Tensor  # (T, B, N) of the dtype of the spikes, expanded from one number

    @property
    def shape(self) -> torch.Size:
        """(T, B, N)."""
        return self.carrier.shape

    def check(self, name: str = "packed") -> None:
        """Raises TypeError or ValueError where bits and carrier do not fit; name: the argument."""
        for part, value in zip(("bits", "carrier"), self, strict=True):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}.{part}: expected a tensor, got {type(value).__name__}")
        if self.carrier.dim() != 3:
            raise ValueError(f"{name}.carrier: expected shape (T, B, N), got "
                             f"{tuple(self.carrier.shape)}")
        T, B, N = self.carrier.shape
        shape = (T, B, count_words(N))
        if self.bits.dtype != torch.int32 or tuple(self.bits.shape) != shape:
            raise ValueError(f"{name}.bits: expected int32 of shape {shape}, got {self.bits.dtype} "
                             f"of shape {tuple(self.bits.shape)}")
        if self.bits.device != self.carrier.device:
            raise ValueError(f"{name}.bits: expected device {self.carrier.device} as carrier, got "
                             f"{self.bits.device}")

    def numbers(self) -> Tensor:
        """The spikes as numbers 0 and 1 (T, B, N), differentiable.

        Raises:
            TypeError, ValueError: bits and carrier do not fit.
        """
        self.check()
        return _Unpack.apply(self.bits, self.carrier)


def pack_spikes(spikes: Tensor) -> PackedSpikes:
    """Spikes (T, B, N) of 0 and 1 as bits, differentiable.

    Raises:
        TypeError: not a tensor.
        ValueError: another shape, or numbers other than 0 and 1.
    """
    if not isinstance(spikes, Tensor):
        raise TypeError(f"spikes: expected a tensor, got {type(spikes).__name__}")
    if spikes.dim() != 3:
        raise ValueError(f"spikes: expected shape (T, B, N), got {tuple(spikes.shape)}")
    if not bool(((spikes == 0) | (spikes == 1)).all()):
        raise ValueError("spikes: expected only 0 and 1, got other numbers")
    return pack_unchecked(spikes)


def pack_unchecked(spikes: Tensor) -> PackedSpikes:
    return PackedSpikes(*_Pack.apply(spikes))


def attach_bits(spikes: Tensor, bits: Tensor) -> None:
    """Lets find_bits return these contiguous bits (T, B, ceil(N / 32)) of spikes (T, B, N), until
    the spikes have a new version. A write through numpy makes none: detach them before."""
    if not spikes.is_inference():  # has no version either
        spikes._lsnn_bits = bits, spikes._version  # type: ignore[attr-defined]


def find_attached(x: Tensor) -> Tensor | None:
    """Returns x, or the tensor of which it is a view, if it has bits."""
    whole = x if x._base is None else x._base
    return whole if hasattr(whole, "_lsnn_bits") else None


def detach_bits(spikes: Tensor) -> None:
    spikes.__dict__.pop("_lsnn_bits", None)


def find_bits(x: Tensor) -> PackedSpikes | None:
    """Returns x, whole rows (T, B, N) of spikes with attached bits, with these, and x itself as
    carrier; None: there are none."""
    whole = find_attached(x)
    if whole is None or x.dim() != 3 or whole._version != whole._lsnn_bits[1]:  # type: ignore[attr-defined]
        return None
    bits: Tensor = whole._lsnn_bits[0]  # type: ignore[attr-defined]
    N, words = whole.shape[2], bits.shape[2]
    places = x.storage_offset() - whole.storage_offset(), *x.stride()[:2]
    if x.shape[2] != N or x.stride(2) != 1 or any(place % N for place in places):
        return None
    offset, *strides = (place // N * words for place in places)
    return PackedSpikes(bits.as_strided((*x.shape[:2], words), (*strides, 1), offset), x)


def make_carrier(like: Tensor, *shape: int) -> Tensor:
    """Zeros of this shape, expanded from one number."""
    return like.new_zeros(()).expand(shape)


def pack_bits(spikes: Tensor) -> Tensor:
    """Bits (T, B, ceil(N / 32)) of bool spikes (T, B, N)."""
    T, B, N = spikes.shape
    padded = torch.nn.functional.pad(spikes, (0, -N % WORD)).view(T, B, count_words(N), WORD)
    weights = torch.tensor([1 << bit for bit in range(WORD)], device=spikes.device)
    # int64 up to 2^32 - 1; the cast to int32 keeps the lower 32 bits.
    return (padded * weights).sum(-1).to(torch.int32)


class _Pack(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(spikes: Tensor) -> tuple[Tensor, Tensor]:
        return pack_bits(spikes != 0), make_carrier(spikes, *spikes.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[0])

    @staticmethod
    def backward(ctx: Any, _: Any, g: Tensor) -> Tensor:
        return g


class _Unpack(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(bits: Tensor, carrier: Tensor) -> Tensor:
        # A table row for each byte takes 1/8 of the memory traffic of a shift for each bit.
        T, B, N = carrier.shape
        places = torch.arange(8, dtype=torch.int32, device=bits.device)
        table = (torch.arange(256, dtype=torch.int32, device=bits.device)[:, None] >> places) & 1
        each_byte = (bits.unsqueeze(-1) >> 8 * places[:4]) & 255
        numbers = table.to(carrier.dtype).index_select(0, each_byte.flatten())
        return numbers.view(T, B, bits.shape[-1] * WORD)[..., :N].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g
