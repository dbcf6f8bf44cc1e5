"""The sizes of the neurons that kernels were registered for, by key: what shapes are computed
of."""
from typing import NamedTuple

CHUNK = 16  # steps between two saved states, of csrc/alif.h


class NeuronSizes(NamedTuple):
    """How many of each a neuron has."""

    states: int
    currents: int
    coefficients: int
    gradients: int  # coefficients of the caller
    has_number_spikes: bool  # spikes are other numbers than 0 and 1


_sizes: dict[int, NeuronSizes] = {}


def register_sizes(key: int, sizes: NeuronSizes) -> None:
    """Before a call with this key."""
    _sizes[key] = sizes


def find_sizes(key: int) -> NeuronSizes:
    """Raises RuntimeError for a key without kernels in this process, as of a graph that another
    one has made."""
    if key not in _sizes:
        raise RuntimeError(f"neuron: expected a key that is registered in this process, got {key}; "
                           f"call lsnn_ext.functional.recurrent with the neuron once")
    return _sizes[key]
