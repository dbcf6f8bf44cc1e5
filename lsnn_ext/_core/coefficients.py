"""Coefficients of the equations: numbers, tensors, and the defaults of a model; those of a call as
rows: collected, stacked for the operators, and the gradient of the stack split again."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..models import COEFFICIENTS, find_model
from .torch_internals import is_mode_active, is_transforming, requires_gradient

Coefficient: TypeAlias = float | Tensor


class Decay(NamedTuple):
    """A decay over a step, exp(-dt / tau), which the CUDA kernels compute."""

    tau: Tensor  # (), (1,) or (N,)
    dt: float

    def value(self) -> Tensor:
        return (-self.dt / self.tau).exp()


def complete_coefficients(dynamics: str, *, alpha: Coefficient, theta: Coefficient,
                          **others: Coefficient | None) -> dict[str, Coefficient]:
    """All COEFFICIENTS by name, differentiable; None: the default of the model."""
    model = find_model(dynamics)
    rules: dict[str, Coefficient] = {"0": 0.0, "theta": theta, "alpha": alpha, "unused": 0.0}
    given = {name: value for name, value in others.items() if value is not None}
    found = dict.fromkeys(COEFFICIENTS, 0.0) | {
        "alpha": alpha, "theta": theta, "eta": model.eta, "beta": rules[model.beta],
        "R": rules[model.R], "width": theta if model.width is None else model.width} | given
    if "kappa" not in given:
        found["kappa"] = 1 - alpha if model.kappa == "1-alpha" else 1.0
    if "q" not in given:
        found["q"] = 1 - found["rho"] if model.q == "1-rho" else 1.0
    return found


# A coefficient as number, sign, place and dt. Sign 0: the number. Sign 1: the tensor at this place
# of Rows.tensors, or its decay exp(-dt / tensor) where dt is not 0. Sign -1: the number minus that.
Row: TypeAlias = tuple[float, int, int, float]


class Rows(NamedTuple):
    each: tuple[Row, ...]
    # (), (1,) or (N,), without duplicates; those whose decay a row takes require no gradient
    tensors: tuple[Tensor, ...]
    # A cache of their stacks, for rows that are reused while their numbers last and do not learn.
    stacks: dict[tuple[int, torch.dtype, torch.device], Tensor] | None = None

    @classmethod
    def of(cls, coefficients: Mapping[str, Coefficient | Decay],
           complements: Mapping[str, str]) -> "Rows":
        """The rows of COEFFICIENTS by name; complements: names of those that are one minus another,
        which is a tensor or a Decay."""
        tensors: list[Tensor] = []
        values: list[Tensor | Decay] = []  # in the form of the caller
        dts: list[float] = []

        def row(name: str) -> Row:
            number, sign = (1.0, -1) if name in complements else (0.0, 1)
            value = coefficients[complements.get(name, name)]
            if not isinstance(value, Tensor | Decay):
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

        return cls(tuple(row(name) for name in COEFFICIENTS), tuple(tensors))

    def gradient_bits(self) -> int:
        """The bits of the rows that require a gradient."""
        learns = [requires_gradient(tensor) for tensor in self.tensors]
        if True not in learns:
            return 0
        return sum(1 << k for k, (_, sign, place, _) in enumerate(self.each)
                   if sign and learns[place])

    def zero_bits(self) -> int:
        """The bits of the rows that are the number 0."""
        return sum(1 << k for k, (number, sign, _, _) in enumerate(self.each)
                   if not sign and number == 0)


def stack_rows(rows: Rows, N: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All coefficients as one tensor (11, N), differentiable."""
    is_cached = is_plain_eager(device)
    if rows.stacks is not None and is_cached:
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
            return make_number(device, number, dtype, is_cached).expand(N)
        value = tensors[place] if sign > 0 else number - tensors[place]
        if value.dtype != dtype or value.device != device:
            value = value.to(device, dtype)
        return value if value.dim() and value.shape[0] == N else value.expand(N)

    return torch.stack([values(row) for row in rows.each])


def can_kernels_stack(rows: Rows, dtype: torch.dtype, device: torch.device) -> bool:
    return is_plain_eager(device) and all(
        type(one) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and one.dtype == dtype
        and one.device == device for one in rows.tensors)


def split_gradient(g: Tensor, each: Sequence[Row],
                   forms: Sequence[tuple[torch.Size, torch.dtype, torch.device]],
                   needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the needed tensors of Rows, from the gradient g of the stack."""
    found: list[Tensor | None] = [None] * len(forms)
    for k, (_, sign, place, _) in enumerate(each):
        if not sign or not needed[place]:
            continue
        shape, before, row = forms[place][0], found[place], g[k]
        part = row if shape == row.shape else row.sum().view(shape)
        if before is None:
            assert sign > 0  # the row of one minus a tensor comes after the row of the tensor
            found[place] = part
        else:
            found[place] = before + part if sign > 0 else before - part
    return [None if part is None else part.to(device, dtype)
            for part, (_, dtype, device) in zip(found, forms, strict=True)]


_numbers: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def is_plain_eager(device: torch.device) -> bool:
    """Whether a call may use cached tensors and kernels that are no operators: no compiler, tracer,
    transform or mode is active."""
    return not (torch.compiler.is_compiling() or device.type == "meta" or is_mode_active()
                or is_transforming() or torch.jit.is_tracing())


def make_number(device: torch.device, value: float, dtype: torch.dtype, is_cached: bool) -> Tensor:
    """A number as a tensor of one element, which is cached and never written to: filling a row for
    each coefficient would take a kernel each.

    It is filled on the device instead while a CUDA graph is captured, which records no copy from
    the host, and where no tensor from outside may be used (is_cached False).
    """
    key = value, dtype, device
    found = _numbers.get(key) if is_cached else None
    if found is not None:
        return found
    if not is_cached or device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.full((1,), value, dtype=dtype, device=device)
    if len(_numbers) >= 1024:  # values that change from call to call
        _numbers.clear()
    # The host waits for this copy, so it is complete on every stream.
    with torch.inference_mode(False):
        _numbers[key] = made = torch.tensor([value], dtype=dtype, device="cpu").to(device)
    return made
