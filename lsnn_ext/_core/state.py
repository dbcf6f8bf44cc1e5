"""What is carried from step to step, and what is recorded at each."""
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class State(NamedTuple):
    """What is carried from one step to the next; two calls that pass it on equal one call.

    The shapes are those of functional.alif; of the modules each leaf has the layers in front.
    """

    v: Tensor  # (B, N) membrane
    a: Tensor  # (B, N) adaptation
    i: Tensor  # (B, N) synaptic current
    r: Tensor  # (B, N) steps without a spike to come: whole numbers in the dtype of v, no gradient
    z: Tensor  # (D, B, N) past spikes, newest first; D = 1 + the largest extra delay

    def detach(self) -> "State":
        """The same numbers without their graph, as truncated BPTT needs between two chunks."""
        return State(*(leaf.detach() for leaf in self))

    def to(self, *args: Any, **kwargs: Any) -> "State":
        """Tensor.to of each leaf: another device or dtype."""
        return State(*(leaf.to(*args, **kwargs) for leaf in self))

    def reset(self, mask: Tensor) -> "State":
        """Zeros for the sequences of a batch where the mask (B,) of bools is True, as where an
        episode has ended; the others, and their gradients, as they are."""
        return State(*(reset_sequences(leaf, mask) for leaf in self))


_OF_A_CALL = "pass None for the first call, and then the state that the call before has returned"


def count_past_steps(delays: Sequence[int]) -> int:
    """D: so many past steps of spikes a state holds; delays: distinct, ascending."""
    return 1 + delays[-1] if delays else 1


def describe_kind(state: Any) -> str:
    """The kind of what was given as a state, and a hint, for the end of a message."""
    kind = type(state).__name__
    if kind == "LSNNState":
        return f"{kind}; its part for the neurons alone is state.neurons"
    if type(state) is tuple and len(state) == 2 and all(isinstance(s, Tensor) for s in state):
        return (f"{kind} of two tensors, as (h, c) of nn.LSTM, which has no counterpart; "
                f"{_OF_A_CALL}")
    return f"{kind}; {_OF_A_CALL}"


def iterate_leaves(state: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of what should be a State. Raises TypeError for anything else."""
    if not isinstance(state, tuple) or len(state) != len(State._fields):
        raise TypeError(f"state: expected a State of {len(State._fields)} tensors "
                        f"{State._fields}, got {describe_kind(state)}")
    for name, leaf in zip(State._fields, state, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"state.{name}: expected a tensor, got {type(leaf).__name__}")
        yield name, leaf


def reset_sequences(leaf: Tensor, mask: Tensor) -> Tensor:
    """The leaf (..., B, N) of a state with zeros where the mask (B,) or () is True. Raises
    TypeError or ValueError naming mask."""
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        given = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(f"mask: expected a tensor (B,) of bools, True where a sequence begins "
                        f"anew, got {given}")
    if mask.dim() == 0:  # for all, or for the only one of a state without a batch
        return leaf.masked_fill(mask.bool(), 0.0)
    if mask.shape != leaf.shape[-2:-1]:
        raise ValueError(f"mask: expected shape {tuple(leaf.shape[-2:-1])}, one for each sequence, "
                         f"got {tuple(mask.shape)}")
    return leaf.masked_fill(mask.bool().unsqueeze(-1), 0.0)


class Traces(NamedTuple):
    """The values of every step, each (T, B, N)."""

    v: Tensor  # (8)
    a: Tensor  # (3)
    threshold: Tensor  # A of (4)
