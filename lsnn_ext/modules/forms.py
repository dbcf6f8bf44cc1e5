"""Parts of states and results."""
import torch
from torch import Tensor

from ..functional import Layered
from ..reference import State, Traces


def rows(state: State, low: int, high: int) -> State:
    """The sequences low to high - 1 of a state whose second last axis is the batch."""
    return State(*(leaf[..., low:high, :] for leaf in state))


def given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def joined(outs: list[Layered]) -> tuple[Tensor, Traces | None]:
    """Spikes and traces of all directions, side by side."""
    spikes = [given(out.spikes) for out in outs]
    traces = [out.traces for out in outs if out.traces is not None]
    if len(outs) == 1:
        return spikes[0], outs[0].traces
    both = [torch.cat(pair, -1) for pair in zip(*traces, strict=True)]
    return torch.cat(spikes, -1), Traces(*both) if traces else None
