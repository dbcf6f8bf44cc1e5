"""The sizes of neurons with registered kernels, by key; fake kernels compute shapes from them."""
from typing import NamedTuple

CHUNK = 16  # steps between two saved states, of csrc/alif.h


class NeuronSizes(NamedTuple):
    """What a neuron has, in numbers."""

    states: int
    currents: int
    coefficients: int
    gradients: int  # coefficients of the caller
    has_number_spikes: bool  # spikes may be other numbers than 0 and 1


_sizes: dict[int, NeuronSizes] = {}


def register_sizes(key: int, sizes: NeuronSizes) -> None:
    """Must run before a call with this key."""
    _sizes[key] = sizes


def find_sizes(key: int) -> NeuronSizes:
    """The sizes of a neuron. Raises RuntimeError for a key without kernels in this process, such as
    one in a graph of another process."""
    if key not in _sizes:
        raise RuntimeError(f"neuron: expected a key that is registered in this process, got {key}; "
                           f"call lsnn_ext.functional.recurrent with the neuron once")
    return _sizes[key]
