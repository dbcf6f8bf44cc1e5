"""The state that is carried from step to step, and the traces of every step."""
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class State(NamedTuple):
    """The state of neurons between two steps; two calls that pass it on equal one call.

    The shapes are those of functional.alif. Modules have an axis of layers in front.
    """

    v: Tensor  # (B, N) membrane
    a: Tensor  # (B, N) adaptation
    i: Tensor  # (B, N) synaptic current
    r: Tensor  # (B, N) refractory steps left: whole numbers in the dtype of v, no gradient
    z: Tensor  # (D, B, N) past spikes, newest first; D = 1 + the largest extra delay

    def detach(self) -> "State":
        """The state without its graph, as truncated BPTT needs between two chunks."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> "State":
        """Tensor.to of each leaf: another device or dtype."""
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    def reset(self, mask: Tensor) -> "State":
        """Zeros for the sequences where the bool mask (B,) is True, such as ended episodes; the
        others keep their numbers and gradients."""
        return self.map(lambda leaf: reset_sequences(leaf, mask))

    def map(self, change: Callable[[Tensor], Tensor]) -> "State":
        """A state of changed tensors."""
        return State(*map(change, self))


_HINT = "pass None to the first call, and to others the state that the previous call returned"


def count_past_steps(delays: Sequence[int]) -> int:
    """D, the past steps of spikes that a state holds; delays: distinct, ascending."""
    return 1 + delays[-1] if delays else 1


def describe_kind(state: Any) -> str:
    """The type of an invalid state, with a hint, for the end of a message."""
    kind = type(state).__name__
    if kind == "LSNNState":
        return f"{kind}; the state of its neurons is state.neurons"
    if type(state) is tuple and len(state) == 2 and all(isinstance(s, Tensor) for s in state):
        return f"{kind} of two tensors, as (h, c) of nn.LSTM, which has no counterpart; {_HINT}"
    return f"{kind}; {_HINT}"


def iterate_leaves(state: Any) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a State. Raises TypeError for anything else."""
    if not isinstance(state, tuple) or len(state) != len(State._fields):
        raise TypeError(f"state: expected a State of {len(State._fields)} tensors "
                        f"{State._fields}, got {describe_kind(state)}")
    for name, leaf in zip(State._fields, state, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"state.{name}: expected a tensor, got {type(leaf).__name__}")
        yield name, leaf


def reset_sequences(leaf: Tensor, mask: Tensor) -> Tensor:
    """A leaf (..., B, N) of a state with zeros where the mask (B,) or () is True. Raises TypeError
    or ValueError naming mask."""
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"mask: expected a bool tensor (B,), True where a sequence starts anew, "
                        f"got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.dim() == 0:  # for all sequences, or for a state without a batch
        return leaf.masked_fill(mask.bool(), 0.0)
    if mask.shape != leaf.shape[-2:-1]:
        raise ValueError(f"mask: expected shape {tuple(leaf.shape[-2:-1])}, one value a sequence, "
                         f"got {tuple(mask.shape)}")
    return leaf.masked_fill(mask.bool().unsqueeze(-1), 0.0)


class Traces(NamedTuple):
    """The values of every step, each (T, B, N)."""

    v: Tensor  # (8)
    a: Tensor  # (3)
    threshold: Tensor  # A of (4)
