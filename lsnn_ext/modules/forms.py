"""Parts of states and results, and what modules must know of each other."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from .._core.route import pack_sparse_input
from .._core.state import State, Traces
from .._core.torch_internals import has_hooks, is_compiled_module
from ..functional import Layered, PackedSpikes

_SPIKES = (torch.bool, torch.uint8)


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


def slice_batch(state: State, low: int, high: int) -> State:
    """The sequences low to high - 1 of a state whose second last axis is the batch."""
    return State(*(leaf[..., low:high, :] for leaf in state))


def unwrap_optional(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def join_directions(outs: list[Layered]) -> tuple[Tensor, Traces | None]:
    """Spikes and traces of all directions, side by side."""
    spikes = [unwrap_optional(out.spikes) for out in outs]
    traces = [out.traces for out in outs if out.traces is not None]
    if len(outs) == 1:
        return spikes[0], outs[0].traces
    both = [torch.cat(pair, -1) for pair in zip(*traces, strict=True)]
    return torch.cat(spikes, -1), Traces(*both) if traces else None


def has_plain_call(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is the forward of kind and nothing else, so that nobody misses
    the call."""
    return (
        type(module).forward is kind.forward and "forward" not in module.__dict__
        and type(module).__call__ is nn.Module.__call__ and not is_compiled_module(module)
        and not has_hooks(module)
    )


def fill_parameter(module: nn.Module, name: str, fill: Callable[[Tensor], Any]) -> None:
    """Has fill write into a parameter or buffer; where it is parametrized, what the module shows
    becomes the result."""
    if name in module._parameters or name in module._buffers:
        fill(getattr(module, name))
    elif parametrize.is_parametrized(module, name):
        value = getattr(module, name).detach().clone()
        fill(value)
        setattr(module, name, value)  # through right_inverse of the parametrization
    else:
        raise RuntimeError(f"{name}: expected a parameter to set anew, got a tensor that is "
                           f"computed from others, as "
                           "by pruning; remove that first")
