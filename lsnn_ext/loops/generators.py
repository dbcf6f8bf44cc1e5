"""The states of the generators of torch."""
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_states() -> list[Tensor]:
    """Of torch, the CPU first."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def set_generator_states(states: Sequence[Tensor]) -> None:
    """Of torch; an empty list changes nothing."""
    if states:
        torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))
