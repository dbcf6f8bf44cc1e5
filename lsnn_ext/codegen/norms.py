"""LayerNorm over the neurons of an item, and its gradient, by elementwise operators and means."""
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from .values import Values

Mean: TypeAlias = Callable[[Tensor], Tensor]  # over the neurons, for each of them


def _layer_norm(mean: Mean, x: Tensor, shape: Sequence[int], weight: Tensor | None,
                bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    average = mean(x)
    distance = x - average
    scale = (mean(distance * distance) + eps).rsqrt()
    out = distance * scale
    out = out if weight is None else out * weight
    return out if bias is None else out + bias, average, scale


def _layer_norm_backward(mean: Mean, g: Tensor, x: Tensor, shape: Sequence[int], average: Tensor,
                         scale: Tensor, weight: Tensor | None, bias: Tensor | None,
                         wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    normalized = (x - average) * scale
    d = g if weight is None else g * weight
    d = (d - mean(d) - normalized * mean(d * normalized)) * scale
    return d, (g * normalized).sum(0) if wanted[1] else None, g.sum(0) if wanted[2] else None


# By operator: its definition, and the place of the values in its arguments.
NORMS: dict[str, tuple[Callable[..., tuple[Tensor | None, ...]], int]] = {
    "native_layer_norm": (_layer_norm, 0), "native_layer_norm_backward": (_layer_norm_backward, 1)}


def find_norm(values: Values, name: str, args: Sequence[Any]) -> Callable[..., Any]:
    """Returns the definition of an operator. Raises StepError if it averages other numbers."""
    definition, place = NORMS[name]
    x, shape = args[place:place + 2]
    if list(x.shape[1:]) != list(shape):
        raise values.error("a LayerNorm of (B, N) over x.shape[-1:]",
                           f"one of shape {tuple(x.shape)} over {tuple(shape)}")
    return definition
