"""Checks of arguments of a layer, and of inputs, state and lengths of a call; conversions."""
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._core.route import pack_sparse_input
from .._core.state import iterate_leaves
from ..functional import PackedSpikes

HALF = (torch.float16, torch.bfloat16)
_SPIKES = (torch.bool, torch.uint8)


# nn.Linear has bias as its third argument
_BY_NAME = "; pass bias and other flags by keyword"


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless value is an int >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        hint = _BY_NAME if isinstance(value, bool) else ""
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}{hint}")


def check_positive(name: str, value: Any) -> None:
    """Raises TypeError unless value is a number, ValueError unless it is > 0."""
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy numbers are Real
        hint = _BY_NAME if isinstance(value, bool) else ""
        raise TypeError(f"{name}: expected a number > 0, got {value!r}{hint}")
    if not float(value) > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")


def check_flags(**values: Any) -> None:
    """Raises TypeError unless all are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")


def read_names(argument: str, value: Any, expected: str) -> dict[str, Any]:
    """A name, names, or a mapping from names, as a dict. Raises TypeError for anything else."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument}: expected {expected}, got {value!r}")
    return dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)


def check_number(name: str, value: Any, expected: str = "a number >= 0",
                 high: float = sys.float_info.max) -> None:
    """Raises TypeError or ValueError unless value is a number from 0 to high."""
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
            hint = (f"; the {I} inputs seem to be axis {axis}: x.movedim({axis}, -1) moves them to "
                    f"the end")
        elif x.dim() == 3 and 3 not in dims:
            hint = "; for a whole sequence call the layer, step is for one step"
        raise ValueError(f"x: expected shape {form} with I = {I}, got {tuple(x.shape)}{hint}")
    if x.layout != torch.strided:
        raise ValueError(f"x: expected a dense tensor, got layout {x.layout}; use x.to_dense(), "
                         f"whose zeros the layer skips")
    if x.dtype != dtype and x.dtype not in HALF:
        raise ValueError(f"x: expected {dtype} as the parameters, float16 or bfloat16, got "
                         f"{x.dtype}")


def check_sequence(x: Any, batch_first: bool, I: int, dtype: torch.dtype) -> None:
    """check_input of a tensor, a PackedSequence or PackedSpikes."""
    if isinstance(x, PackedSequence):
        check_tensor("x.data", x.data)
        check_input(x.data, (2,), "packed rows (sum of lengths, I)", I, dtype)
    elif isinstance(x, PackedSpikes):
        check_input(x.carrier, (3,), "(T, B, I)", I, dtype)
    else:
        check_input(x, (2, 3), f"({'B, T' if batch_first else 'T, B'}, I) or (T, I)", I, dtype)


def cast_weights(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of a projection, in the dtype of x if x has half precision."""
    if x.dtype not in HALF:
        return weight, bias
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def check_state(state: Any, expected: tuple[int, ...], x: Tensor, batch_first: bool) -> None:
    """Raises TypeError or ValueError unless this is a State of shape (L, B, N) or (L, N)."""
    for name, leaf in iterate_leaves(state):
        shape = tuple(leaf.shape[:1] + leaf.shape[2:] if name == "z" else leaf.shape)
        if shape != expected:
            axes = (f"({expected[0]}, D, {', '.join(map(str, expected[1:]))})" if name == "z"
                    else str(expected))
            raise ValueError(f"state.{name}: expected shape {axes}, got {tuple(leaf.shape)}"
                             f"{hint_batch_first(shape[1:-1], expected[1:-1], x, batch_first)}")


def _describe_order(steps: int, first: bool) -> str:
    order = "(T, B, I)" if first else "(B, T, I)"
    return (f"x has {steps} where a layer with batch_first={first} has its steps: x seems to be "
            f"{order}, the order of batch_first={not first}")


def hint_batch_first(batch: tuple[int, ...], expected: tuple[int, ...], x: Any, first: bool) -> str:
    """A hint where the batch of a state is the number of steps of x; first: of batch_first."""
    if not isinstance(x, Tensor) or x.dim() != 3 or len(batch) != 1 or batch == expected:
        return ""
    steps = x.shape[1 if first else 0]
    if batch[0] != steps:
        return ""
    return f"; the state has a batch of {steps}, and {_describe_order(steps, first)}"


def check_lengths(x: Any, lengths: Any, first: bool) -> None:
    """Raises ValueError for lengths with an x that is no padded batch, and where x seems to have
    the wrong order of axes; first: of batch_first."""
    if lengths is None:
        return
    if isinstance(x, PackedSequence):
        raise ValueError("lengths: expected None with a PackedSequence, which has its own, got "
                         "some; pass a padded batch as a tensor")
    if isinstance(x, Tensor) and x.dim() == 2:
        raise ValueError("lengths: expected None with an unbatched sequence (T, I), got some; "
                         "x[:length] is a shorter one")
    shape = x.shape[:2] if isinstance(x, Tensor | PackedSpikes) and len(x.shape) == 3 else (0, 0)
    steps, batch = shape[::-1] if first else shape
    size = tuple(lengths.shape) if isinstance(lengths, Tensor) else (
        (len(lengths),) if isinstance(lengths, list | tuple) else ())
    if size == (steps,) and steps != batch:
        raise ValueError(f"lengths: expected shape ({batch},), got {size}; "
                         f"{_describe_order(steps, first)}")


def check_tensor(name: str, value: Any, other: str = "") -> None:
    """Raises TypeError unless value is a tensor; other: further types for the message."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor{other}, got {type(value).__name__}")


def convert_input(x: Any, dtype: Callable[[], torch.dtype], batch_first: bool) -> Any:
    """The inputs of a layer with parameters of this dtype: bool and uint8 spikes are converted to
    it, or to bits where that is faster. Raises TypeError or ValueError unless x is a tensor,
    PackedSequence or valid PackedSpikes, these not with batch_first."""
    if isinstance(x, PackedSequence):
        check_tensor("x.data", x.data)
        return x._replace(data=x.data.to(dtype())) if x.data.dtype in _SPIKES else x
    if isinstance(x, PackedSpikes):
        x.check("x")
        if batch_first:
            raise ValueError(f"x: expected a tensor (B, T, I) of a layer with batch_first=True, "
                             f"got PackedSpikes, whose shape {tuple(x.shape)} is (T, B, I)")
        return x
    check_tensor("x", x, ", a PackedSequence or PackedSpikes")
    if x.dtype not in _SPIKES:
        return x
    packed = None if batch_first else pack_sparse_input(x, dtype())
    return x.to(dtype()) if packed is None else packed


def step_by_sequence(call: Callable[..., Any], batch_first: bool, x_t: Tensor,
                     state: Any) -> tuple[Any, Any]:
    """The output and the state of a step that a call of a sequence computes."""
    time = 1 if batch_first and x_t.dim() == 2 else 0
    y, end, *_ = call(x_t.unsqueeze(time), state)
    return y.squeeze(time), end
