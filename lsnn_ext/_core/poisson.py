"""Random spikes of given rates, as bits."""
import sys

import numpy as np
import torch
from torch import Tensor

from .arguments import is_readable
from .bits import PackedSpikes, count_words, make_carrier, pack_bits

_CHUNK = 1 << 21  # draws that fit into the caches


def poisson(rates: Tensor, hold: int = 1, *,
            generator: torch.Generator | None = None) -> PackedSpikes:
    """Independent random spikes as bits; each row of rates holds for some steps.

    A draw takes one random byte, and in one of 256 cases, where the byte is a tie, also a number
    in double precision. So probabilities are exact. torch.rand takes 4 bytes a draw.

    Args:
        rates: (S, B, I) probability of a spike in a step, from 0 to 1: a rate in Hz times
            dt / 1000.
        hold: steps for which each of the S rows holds. Default 1.
        generator: of the device of rates. Default: torch's global one.

    Returns:
        PackedSpikes of shape (S * hold, B, I), in the dtype of rates; numbers() unpacks them.

    Raises:
        TypeError: rates are not a floating point tensor.
        ValueError: another shape, probabilities outside [0, 1], or rates that require a gradient.

    Equivalent to, with other draws:
        >>> pack_spikes(torch.bernoulli(rates.repeat_interleave(hold, 0)))
    """
    if not isinstance(rates, Tensor) or not rates.is_floating_point():
        kind = rates.dtype if isinstance(rates, Tensor) else type(rates).__name__
        raise TypeError(f"rates: expected a floating point tensor, got {kind}")
    if rates.dim() != 3:
        raise ValueError(f"rates: expected shape (S, B, I), got {tuple(rates.shape)}")
    if isinstance(hold, bool) or not isinstance(hold, int) or hold < 1:
        raise ValueError(f"hold: expected a whole number >= 1, got {hold!r}")
    if rates.requires_grad and torch.is_grad_enabled():
        raise ValueError("rates: expected a tensor that does not require grad, since draws have no "
                         "gradient, got one that does; detach it")
    rates = rates.detach()
    S, B, I = rates.shape
    if not bool(((rates >= 0) & (rates <= 1)).all()):
        raise ValueError("rates: expected probabilities from 0 to 1, got others")
    rows = max(1, _CHUNK // max(1, hold * B * I))
    bits = torch.cat([_draw(part, hold, generator) for part in rates.split(rows)])
    return PackedSpikes(bits, make_carrier(rates, S * hold, B, I))


def _draw(rates: Tensor, hold: int, generator: torch.Generator | None) -> Tensor:
    """Bits (S * hold, B, words) for rates (S, B, I)."""
    S, B, I = rates.shape
    scaled = rates.double() * 256
    level = scaled.floor().clamp(max=255)  # at a rate of 1 all of the last byte remains
    rest = (scaled - level).flatten()
    level = level.to(torch.uint8)[:, None]
    n = S * hold * B * I
    noise = torch.empty(-(-n // 8), dtype=torch.int64, device=rates.device)
    noise.random_(-2**63, None, generator=generator)
    drawn = noise.view(torch.uint8)[:n].view(S, hold, B, I)
    spikes = drawn < level
    tie = (drawn == level).flatten().nonzero().squeeze(1)
    place = tie % (B * I) + tie // (hold * B * I) * (B * I)
    u = torch.rand(len(tie), dtype=torch.float64, device=rates.device, generator=generator)
    spikes.view(-1)[tie[u < rest[place]]] = True
    spikes = spikes.flatten(0, 1)
    if not is_readable(spikes) or sys.byteorder != "little":
        return pack_bits(spikes)
    words = np.zeros((S * hold, B, count_words(I) * 4), np.uint8)
    octets = np.packbits(spikes.numpy(), -1, "little")
    words[..., : octets.shape[-1]] = octets
    return torch.from_numpy(words.view(np.int32))
