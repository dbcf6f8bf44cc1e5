"""What a call of a layer was given: checked, with a word on what was probably meant."""
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._torch_internals import was_freed
from ..models import State, parts_of

_HALF = (torch.float16, torch.bfloat16)
_OF_A_CALL = "pass None for the first call, and then the state that the call before has returned"


def check_input(x: Tensor, dims: tuple[int, ...], form: str, I: int, dtype: torch.dtype) -> None:
    """Raises ValueError for an input of another shape or dtype."""
    if x.dim() not in dims or x.shape[-1] != I:
        hint = ""
        if x.dim() in dims and list(x.shape).count(I) == 1:
            axis = list(x.shape).index(I)
            hint = (f"; the {I} inputs seem to lie at axis {axis}: x.movedim({axis}, -1) brings "
                    f"them to the end")
        elif x.dim() == 3 and 3 not in dims:
            hint = "; a whole sequence goes through a call of the layer, one step through step"
        raise ValueError(f"x: expected shape {form} with I = {I}, got {tuple(x.shape)}{hint}")
    if x.dtype != dtype and x.dtype not in _HALF:
        raise ValueError(f"x: expected {dtype} as the parameters, float16 or bfloat16, got "
                         f"{x.dtype}")


def what_it_is(state: Any) -> str:
    """The kind of what was given as a state, and a hint, for the end of a message."""
    kind = type(state).__name__
    if kind == "LSNNState":
        return f"{kind}; its part for the neurons alone is state.neurons"
    if type(state) is tuple and len(state) == 2 and all(isinstance(s, Tensor) for s in state):
        return (f"{kind} of two tensors, as (h, c) of nn.LSTM, which has no counterpart; "
                f"{_OF_A_CALL}")
    return f"{kind}; {_OF_A_CALL}"


def check_state(state: Any, want: tuple[int, ...], x: Tensor, batch_first: bool) -> None:
    """Raises TypeError or ValueError for what is no state of these layers, (L, B, N) or (L, N)."""
    for name, leaf in parts_of(state, what_it_is):
        given = leaf.shape[:1] + leaf.shape[2:] if name == "z" else leaf.shape
        if tuple(given) != want:
            axes = f"({want[0]}, D, {', '.join(map(str, want[1:]))})" if name == "z" else str(want)
            raise ValueError(f"state.{name}: expected shape {axes}, got {tuple(leaf.shape)}"
                             f"{batch_hint(tuple(given)[1:-1], want[1:-1], x, batch_first)}")


def batch_hint(given: tuple[int, ...], want: tuple[int, ...], x: Any, first: bool) -> str:
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


def check_no_lengths(x: Any, lengths: Any) -> None:
    """Raises ValueError for lengths of what is no padded batch."""
    if lengths is None:
        return
    if isinstance(x, PackedSequence):
        raise ValueError("lengths: expected None beside a PackedSequence, which has its own, got "
                         "some; a padded batch is a tensor")
    if isinstance(x, Tensor) and x.dim() == 2:
        raise ValueError("lengths: expected None beside a single sequence (T, I), which has T "
                         "steps, got some; x[:length] is a shorter one")


def answer_for_freed(state: Any, name: str = "state") -> None:
    """Has a backward pass raise RuntimeError where it comes to a state whose graph an earlier one
    has freed; torch's own error does not say which tensor that is, nor what to do."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    leaves: dict[str, Any] = {name: state}
    if isinstance(state, tuple):
        leaves = {f"{name}.{part}": leaf
                  for part, leaf in zip(State._fields, state, strict=False)}
    for of, leaf in leaves.items():
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            continue
        if not was_freed(leaf):
            return  # the others are of the same node
        leaf.register_hook(partial(_refuse_gradient, of))


def _refuse_gradient(name: str, gradient: Tensor) -> None:
    raise RuntimeError(
        f"{name}: expected a state that no backward pass has gone through, got one whose graph is "
        f"freed; truncated BPTT goes on from state.detach(), and a backward pass with "
        f"retain_graph=True leaves the graph")
