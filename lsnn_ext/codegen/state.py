"""The state of a neuron, from one call to the next."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.arguments import check_state_leaf, refuse_freed_graph
from .._core.state import describe_kind, reset_sequences
from .form import Form


class NeuronState(NamedTuple):
    """The state after a step; two calls that pass it on equal one call.

    The shapes are those of functional.recurrent; of Recurrent without a batch there is no B.
    """

    states: dict[str, Tensor]  # (B, N) or (B, N, K) each, by the names that the step gives them
    z: Tensor  # (D, B, N) past spikes, newest first; D = 1 + the largest extra delay

    def detach(self) -> "NeuronState":
        """Returns the state without its graph, for truncated BPTT."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> "NeuronState":
        """Returns the state on another device or in another dtype, that of the parts if complex."""
        def change(leaf: Tensor) -> Tensor:
            if not leaf.is_complex():
                return leaf.to(*args, **kwargs)
            return torch.view_as_complex(torch.view_as_real(leaf).to(*args, **kwargs))
        return self.map(change)

    def reset(self, mask: Tensor) -> "NeuronState":
        """Returns the state with zeros for the sequences where the mask (B,) of bools is True; the
        others, and their gradients, are unchanged."""
        def change(leaf: Tensor) -> Tensor:  # any axes behind the batch
            return reset_sequences(leaf.flatten(int(self.z.dim() == 3)), mask).view_as(leaf)

        return NeuronState({name: change(leaf) for name, leaf in self.states.items()},
                           reset_sequences(self.z, mask))

    def map(self, change: Callable[[Tensor], Tensor]) -> "NeuronState":
        """Returns a state of changed tensors."""
        return NeuronState({name: change(leaf) for name, leaf in self.states.items()},
                           change(self.z))


def check_neuron_state(state: NeuronState | None, forms: dict[str, Form], B: int, N: int, D: int,
                       dtype: torch.dtype,
                       device: torch.device) -> tuple[list[Tensor], Tensor] | None:
    """Returns states in the order of their forms, and z (D, B, N); None means zeros. Raises
    TypeError or ValueError that names the part."""
    if state is None:
        return None
    names = ", ".join(forms) or "none"
    if not isinstance(state, tuple) or len(state) != 2 or not isinstance(state[0], dict):
        raise TypeError(f"state: expected a NeuronState of states {names} and z, got "
                        f"{describe_kind(state)}")
    states, z = state
    if states.keys() != forms.keys():
        raise ValueError(f"state.states: expected the names {names}, got "
                         f"{', '.join(map(str, states)) or 'none'}")
    leaves = {**{f"states[{name!r}]": states[name] for name in forms}, "z": z}
    for name, leaf in leaves.items():
        if not isinstance(leaf, Tensor):
            raise TypeError(f"state.{name}: expected a tensor, got {type(leaf).__name__}")
    refuse_freed_graph(leaves, through=1)
    for (name, leaf), form in zip(leaves.items(), (*forms.values(), Form()), strict=True):
        shape = (D, B, N) if name == "z" else form.shape(B, N)
        check_state_leaf(name, leaf, shape, form.dtype(dtype), device, "x")
    z = leaves.pop("z")
    return list(leaves.values()), z[:D]
