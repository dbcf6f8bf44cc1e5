"""Forms of states and coefficients: complex numbers and axes as several rows of the kernels."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.coefficients import Coefficient

MAX_AXIS = 16


class Form(NamedTuple):
    """The numbers of each neuron in one state or coefficient."""

    axis: int = 0  # size of an axis of its own behind (B, N); 0: no such axis
    is_complex: bool = False

    def rows(self) -> int:
        return (self.axis or 1) * (1 + self.is_complex)

    def shape(self, *sizes: int) -> tuple[int, ...]:
        """Returns these sizes, and that of the axis behind them."""
        return (*sizes, self.axis) if self.axis else sizes

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of a tensor whose real numbers have `dtype`."""
        return dtype.to_complex() if self.is_complex else dtype

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Returns the real rows: along the axis, of each number first its real part."""
        if self.is_complex:
            tensor = torch.view_as_real(tensor.resolve_conj())
            tensor = tensor.flatten(-2) if self.axis else tensor
        elif not self.axis:
            return [tensor]
        return list(tensor.movedim(-1, 0).contiguous().unbind(0))

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        if self == Form():
            return rows[0]
        if not self.is_complex:
            return torch.stack(list(rows), -1)
        numbers = [torch.complex(*rows[i : i + 2]) for i in range(0, len(rows), 2)]
        return torch.stack(numbers, -1) if self.axis else numbers[0]

    def __str__(self) -> str:
        return f"{self.axis}{'c' * self.is_complex}"


def get_form(tensor: Tensor) -> Form:
    """Returns the form of a coefficient () or (N,), or (1, K) or (N, K) with an axis."""
    return Form(tensor.shape[1] if tensor.dim() == 2 else 0, tensor.is_complex())


def parse_form(word: str) -> Form:
    """Returns the form of a string that str() made."""
    return Form(int(word.rstrip("c")), word.endswith("c"))


def split_coefficient(value: Tensor) -> list[Tensor]:
    """Returns the real rows () or (N,) of a coefficient."""
    form = get_form(value)
    rows = form.split(value)
    return [row.reshape(()) for row in rows] if form.axis and value.shape[0] == 1 else rows


def join_states(rows: Sequence[Tensor], forms: Sequence[Form]) -> list[Tensor]:
    """Returns the states of these forms; their rows are in sequence."""
    joined, first = [], 0
    for form in forms:
        joined.append(form.join(rows[first : first + form.rows()]))
        first += form.rows()
    return joined


def describe_forms(coefficients: Mapping[str, Coefficient]) -> str:
    """Returns names and kinds of coefficients, on which a trace depends."""
    return " ".join(f"{name}:{_describe_kind(value)}" for name, value in coefficients.items())


def _describe_kind(value: Coefficient) -> str:
    """Returns a kind such as N, or 1,4c for complex numbers with an axis, equal for all neurons."""
    if not isinstance(value, Tensor):
        return "number"
    kind = "N" * value.dim()
    if value.dim() == 2:
        kind = f"{'1' if value.shape[0] == 1 else 'N'},{value.shape[1]}"
    return kind + "c" if value.is_complex() else kind


def _make_example(kind: str, N: int, dtype: torch.dtype,
                  device: torch.device | None) -> Coefficient:
    if kind == "number":
        return 1.0
    sizes = [N if size == "N" else int(size) for size in kind.rstrip("c").split(",") if size]
    dtype = dtype.to_complex() if kind.endswith("c") else dtype
    return torch.ones(sizes, dtype=dtype, device=device)


def make_examples(forms: str, N: int, dtype: torch.dtype,
                  device: torch.device | None = None) -> dict[str, Coefficient]:
    """Returns coefficients of these forms, for code that reads no numbers."""
    kinds = dict(one.split(":") for one in forms.split())
    return {name: _make_example(kind, N, dtype, device) for name, kind in kinds.items()}
