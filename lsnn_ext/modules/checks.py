"""The inputs, state and lengths of a call of a layer: checked, with a hint, and converted."""
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._core.route import pack_sparse_input
from .._core.state import iterate_leaves
from ..functional import PackedSpikes

HALF = (torch.float16, torch.bfloat16)
_SPIKES = (torch.bool, torch.uint8)


def check_number(name: str, value: Any, expected: str = "a number >= 0",
                 high: float = sys.float_info.max) -> None:
    """Raises TypeError or ValueError for what is no number from 0 to high."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if not 0 <= value <= high:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def check_input(x: Tensor, dims: tuple[int, ...], form: str, I: int, dtype: torch.dtype) -> None:
    """Raises ValueError for an input of another shape, layout or dtype."""
    if x.dim() not in dims or x.shape[-1] != I:
        hint = ""
        if x.dim() in dims and list(x.shape).count(I) == 1:
            axis = list(x.shape).index(I)
            hint = (f"; the {I} inputs seem to lie at axis {axis}: x.movedim({axis}, -1) brings "
                    f"them to the end")
        elif x.dim() == 3 and 3 not in dims:
            hint = "; a whole sequence goes through a call of the layer, one step through step"
        raise ValueError(f"x: expected shape {form} with I = {I}, got {tuple(x.shape)}{hint}")
    if x.layout != torch.strided:
        raise ValueError(f"x: expected a dense tensor, got layout {x.layout}; x.to_dense() "
                         f"is one, and the layer passes over its zeros")
    if x.dtype != dtype and x.dtype not in HALF:
        raise ValueError(f"x: expected {dtype} as the parameters, float16 or bfloat16, got "
                         f"{x.dtype}")


def cast_weights(x: Tensor, weight: Tensor,
                 bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of a projection, in the dtype of x where x has half precision."""
    if x.dtype not in HALF:
        return weight, bias
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def check_state(state: Any, want: tuple[int, ...], x: Tensor, batch_first: bool) -> None:
    """Raises TypeError or ValueError for what is no state of these layers, (L, B, N) or (L, N)."""
    for name, leaf in iterate_leaves(state):
        given = leaf.shape[:1] + leaf.shape[2:] if name == "z" else leaf.shape
        if tuple(given) != want:
            axes = f"({want[0]}, D, {', '.join(map(str, want[1:]))})" if name == "z" else str(want)
            raise ValueError(f"state.{name}: expected shape {axes}, got {tuple(leaf.shape)}"
                             f"{hint_batch_first(tuple(given)[1:-1], want[1:-1], x, batch_first)}")


def hint_batch_first(given: tuple[int, ...], want: tuple[int, ...], x: Any, first: bool) -> str:
    """Whether x has the batch of the state at the place of the steps."""
    if not isinstance(x, Tensor) or x.dim() != 3 or len(given) != 1 or given == want:
        return ""
    steps = x.shape[1 if first else 0]
    if given[0] != steps:
        return ""
    order = "(T, B, I)" if first else "(B, T, I)"
    return (f"; the state has a batch of {steps}, and so has x where the layer, made with "
            f"batch_first={first}, has its steps: x seems to be {order}, as of "
            f"batch_first={not first}")


def check_lengths(x: Any, lengths: Any, first: bool) -> None:
    """Raises ValueError for lengths of what is no padded batch, and where x seems to have its batch
    at the place of the steps; first: of batch_first."""
    if lengths is None:
        return
    if isinstance(x, PackedSequence):
        raise ValueError("lengths: expected None beside a PackedSequence, which has its own, got "
                         "some; a padded batch is a tensor")
    if isinstance(x, Tensor) and x.dim() == 2:
        raise ValueError("lengths: expected None beside a single sequence (T, I), which has T "
                         "steps, got some; x[:length] is a shorter one")
    shape = x.shape[:2] if isinstance(x, Tensor | PackedSpikes) and len(x.shape) == 3 else (0, 0)
    steps, batch = shape[::-1] if first else shape
    form = tuple(lengths.shape) if isinstance(lengths, Tensor) else (
        (len(lengths),) if isinstance(lengths, list | tuple) else ())
    if form == (steps,) and steps != batch:
        order = "(T, B, I)" if first else "(B, T, I)"
        raise ValueError(f"lengths: expected shape ({batch},), got {form}; x has {steps} where the "
                         f"layer, made with batch_first={first}, has its steps: x seems to be "
                         f"{order}, as of batch_first={not first}")


def check_tensor(name: str, value: Any, other: str = "") -> None:
    """Raises TypeError for what is no tensor; other: what else would do."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor{other}, got {type(value).__name__}")


def convert_input(x: Any, dtype: Callable[[], torch.dtype], batch_first: bool) -> Any:
    """Inputs of a layer whose parameters have this dtype: those that are bool or uint8, as which
    spikes are often kept, in numbers of it or as bits, all else as it is.

    Raises TypeError for what is no tensor, PackedSequence or PackedSpikes, and what
    PackedSpikes.check raises.
    """
    if isinstance(x, PackedSequence):
        check_tensor("x.data", x.data)
        return x._replace(data=x.data.to(dtype())) if x.data.dtype in _SPIKES else x
    if isinstance(x, PackedSpikes):
        x.check("x")
        return x
    check_tensor("x", x, ", a PackedSequence or PackedSpikes")
    if x.dtype not in _SPIKES:
        return x
    packed = None if batch_first else pack_sparse_input(x, dtype())
    return x.to(dtype()) if packed is None else packed


def unwrap_optional(value: Tensor | None) -> Tensor:
    """A tensor that is there."""
    assert value is not None
    return value
