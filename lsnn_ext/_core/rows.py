"""The coefficients of a call, a row for each: what they are made of, stacked for the operators, and
the gradient of the stack handed back."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..models import COEFFICIENTS
from .coefficients import Coefficient, Decay
from .torch_internals import is_mode_active, is_transforming, requires_gradient

# A coefficient, as number, sign, place and dt: the number where the sign is 0; else the tensor at
# this place among those of Rows, or its decay exp(-dt / tensor) where dt is not 0; with sign -1 the
# number less that.
Row: TypeAlias = tuple[float, int, int, float]
_TENSORS = (Tensor, Decay)
# What is known of one of the tensors without its numbers.
Form: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]


class Rows(NamedTuple):
    """All COEFFICIENTS."""

    each: tuple[Row, ...]
    # (), (1,) or (N,), each of them once; those that a row takes the decay of want no gradient
    tensors: tuple[Tensor, ...]
    # Their stacks, once they are made: of rows that are used again while their numbers last, in
    # which nothing learns.
    stacks: dict[tuple[int, torch.dtype, torch.device], Tensor] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Coefficient | Decay], complements: Mapping[str, str]) -> "Rows":
        """Of COEFFICIENTS by name; complements: names of those that are one less another, a tensor
        or a Decay."""
        tensors: list[Tensor] = []
        values: list[Tensor | Decay] = []  # as which they were given
        dts: list[float] = []

        def row(name: str) -> Row:
            number, sign = (1.0, -1) if name in complements else (0.0, 1)
            value = given[complements.get(name, name)]
            if not isinstance(value, _TENSORS):
                return value, 0, 0, 0.0
            for place, one in enumerate(values):
                if one is value:
                    return number, sign, place, dts[place]
            tensor, dt = value if isinstance(value, Decay) else (value, 0.0)
            if dt and requires_gradient(tensor):
                tensor, dt = Decay(tensor, dt).value(), 0.0
            tensors.append(tensor)
            values.append(value)
            dts.append(dt)
            return number, sign, len(tensors) - 1, dt

        each = tuple(row(name) for name in COEFFICIENTS)
        return cls(each, tuple(tensors))

    def gradient_bits(self) -> int:
        """The bits of those whose gradient is asked for."""
        learns = [requires_gradient(tensor) for tensor in self.tensors]
        if True not in learns:
            return 0
        return sum(1 << k for k, (_, sign, place, _) in enumerate(self.each)
                   if sign and learns[place])

    def zero_bits(self) -> int:
        """The bits of those that are the number 0."""
        return sum(1 << k for k, (number, sign, _, _) in enumerate(self.each)
                   if not sign and number == 0)


def stack_rows(rows: Rows, N: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All coefficients as one tensor (11, N), differentiable."""
    kept = is_plain_eager(device)
    if rows.stacks is not None and kept:
        key = N, dtype, device
        if key not in rows.stacks:
            with torch.inference_mode(False), torch.no_grad():
                rows.stacks[key] = stack_rows(rows._replace(stacks=None), N, dtype, device)
        return rows.stacks[key]
    dts = {place: dt for _, _, place, dt in rows.each if dt}
    tensors = [Decay(tensor, dts[place]).value() if place in dts else tensor
               for place, tensor in enumerate(rows.tensors)] if dts else rows.tensors

    def values(row: Row) -> Tensor:
        number, sign, place, _ = row
        if not sign:
            return make_number(device, number, dtype, kept).expand(N)
        value = tensors[place] if sign > 0 else number - tensors[place]
        if value.dtype != dtype or value.device != device:
            value = value.to(device, dtype)
        return value if value.dim() and value.shape[0] == N else value.expand(N)

    return torch.stack([values(row) for row in rows.each])


def can_kernels_stack(rows: Rows, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the CUDA kernels may make the stack, of the tensors as they are."""
    return is_plain_eager(device) and all(
        type(one) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and one.dtype == dtype
        and one.device == device for one in rows.tensors)


def split_gradient(g: Tensor, each: Sequence[Row], forms: Sequence[Form],
                   needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of those tensors of Rows that are needed, given that of the stack."""
    found: list[Tensor | None] = [None] * len(forms)
    for k, (_, sign, place, _) in enumerate(each):
        if not sign or not needed[place]:
            continue
        shape, before, row = forms[place][0], found[place], g[k]
        part = row if shape == row.shape else row.sum().view(shape)
        if before is None:
            assert sign > 0  # the row of what is one less a tensor comes after the tensor's own
            found[place] = part
        else:
            found[place] = before + part if sign > 0 else before - part
    return [None if part is None else part.to(device, dtype)
            for part, (_, dtype, device) in zip(found, forms, strict=True)]


_numbers: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def is_plain_eager(device: torch.device) -> bool:
    """Whether a tensor that was made outside of this call may be used in it, and one be made by a
    kernel of ours: compilers, transforms and modes know nothing of them."""
    return not (torch.compiler.is_compiling() or device.type == "meta" or is_mode_active()
                or is_transforming() or torch.jit.is_tracing())


def make_number(device: torch.device, value: float, dtype: torch.dtype, may_keep: bool) -> Tensor:
    """A number as a tensor of one element: made once for each value and kept, so that a call has
    not to fill a row for each coefficient. Nobody else has it, so it never changes.

    Where the copy of a kept one would not do it is filled on the device: a graph that is captured
    knows no copy from the host, and some nothing from outside (may_keep False).
    """
    key = value, dtype, device
    kept = _numbers.get(key) if may_keep else None
    if kept is not None:
        return kept
    if not may_keep or device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.full((1,), value, dtype=dtype, device=device)
    if len(_numbers) >= 1024:  # values that change from call to call
        _numbers.clear()
    # Copied from the host, which waits for it: every stream finds it there.
    with torch.inference_mode(False):
        _numbers[key] = made = torch.tensor([value], dtype=dtype).to(device)
    return made
