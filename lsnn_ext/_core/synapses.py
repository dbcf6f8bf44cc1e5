"""The recurrent synapses of a call: axonal delays, masks, and equation (1) for loops over time."""
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Delay, Delays, check_operand


def check_sources(kernel: Tensor | None, mask: Tensor | None, w_rec: Tensor | None,
                  x: Tensor, x_name: str, B: int, N: int, currents: int = 1) -> None:
    """Raises TypeError or ValueError for a delay_kernel or recurrent_mask that does not fit a
    checked w_rec and x, the argument called x_name."""
    for name, value in (("delay_kernel", kernel), ("recurrent_mask", mask)):
        if value is not None and w_rec is None:
            raise ValueError(f"{name}: expected None without w_rec, got {type(value).__name__}")
    if kernel is not None and w_rec is not None:
        if w_rec.dim() != (2 if currents == 1 else 3):
            raise ValueError(f"w_rec: expected one matrix with delay_kernel, got shape "
                             f"{tuple(w_rec.shape)}")
        check_operand("delay_kernel", kernel, ("S", N), x, x_name)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if torch.promote_types(kernel.dtype, torch.float32) != dtype:
            raise TypeError(f"delay_kernel: expected {dtype}, got {kernel.dtype}")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"recurrent_mask: expected a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"recurrent_mask: expected torch.bool, got {mask.dtype}")
    if mask.shape != (B, N):
        raise ValueError(f"recurrent_mask: expected shape ({B}, {N}), got {tuple(mask.shape)}")
    if mask.device != x.device:
        raise ValueError(f"recurrent_mask: expected device {x.device} as {x_name}, got "
                         f"{mask.device}")


def spread_kernel(w_rec: Tensor, kernel: Tensor) -> Tensor:
    """Weights (S, N, N) or (S, K, N, N) of each delay that equal w_rec with a kernel (S, N)."""
    shares = kernel.to(w_rec.dtype).unsqueeze(-1)
    return w_rec * (shares if w_rec.dim() == 2 else shares.unsqueeze(1))


def _detach_zeros(w: Tensor) -> Tensor:
    """The weights, those of 0 without a gradient, as of sparse_grad="existing"."""
    return torch.where(w == 0, torch.zeros_like(w), w)


def expand_kernel(w_rec: Tensor | None, kernel: Tensor | None,
                  sparse_grad: str) -> tuple[Tensor | None, Tensor | None, str]:
    """w_rec, delay_kernel and sparse_grad of an equal call of kernels without a delay_kernel."""
    if kernel is None or w_rec is None:
        return w_rec, kernel, sparse_grad
    w_rec = _detach_zeros(w_rec) if sparse_grad == "existing" else w_rec
    return spread_kernel(w_rec, kernel), None, "all"


class Synapses(NamedTuple):
    """The recurrent weights of a call, as loops over time read them."""

    # the delays of each matrix (N, N) or (N, K N), ascending: one, or those of the kernel
    each: list[tuple[tuple[int, ...], Tensor]]
    kernel: Tensor | None = None  # (S, N)
    mask: Tensor | None = None  # (B, N)

    @property
    def D(self) -> int:
        """Past steps that the sum reads."""
        return 1 + self.each[-1][0][-1] if self.each else 1

    def sum(self, z: Tensor) -> Tensor | int:
        """The sum of (1), (B, N) or (B, K N); z: (D, B, N) past spikes, newest first."""
        return sum(self._filter(z, delays) @ w for delays, w in self.each)

    def _filter(self, z: Tensor, delays: tuple[int, ...]) -> Tensor:
        """The past spikes that act through a matrix, (B, N)."""
        if self.kernel is None:
            found = z[delays[0]]
        else:
            first, *others = (k * z[d] for k, d in zip(self.kernel, delays, strict=True))
            found = sum(others, first)
        return found if self.mask is None else torch.where(self.mask, found, 0.0)


def split_synapses(w: Tensor | None, delay: Delay, currents: int, kernel: Tensor | None,
                   mask: Tensor | None, autapses: bool, is_existing: bool,
                   form: Callable[[Tensor], Tensor] = lambda w: w) -> Synapses:
    """The synapses of checked arguments. is_existing: weights of 0 have no gradient; form: of a
    matrix (N, N), or (K, N, N) for K > 1 currents."""
    if w is None:
        return Synapses([])
    if is_existing:
        w = _detach_zeros(w)
    if not autapses:
        w = w.masked_fill(torch.eye(w.shape[-1], dtype=torch.bool, device=w.device), 0.0)
    if kernel is not None or w.dim() == (3 if currents == 1 else 4):
        taps = (delay,) if isinstance(delay, int) else tuple(delay)
        if kernel is not None:
            return Synapses([(taps, form(w))], kernel.to(w.dtype), mask)
        return Synapses([((d,), form(one)) for d, one in zip(taps, w, strict=True)], None, mask)
    if isinstance(delay, int):
        return Synapses([((delay,), form(w))], None, mask)
    delays = delay if isinstance(delay, Delays) else Delays.of(delay)  # type: ignore[arg-type]
    each = delays.each.to(w.device)
    return Synapses([((d,), form(torch.where(each == d, w, torch.zeros_like(w))))
                     for d in delays.distinct], None, mask)
