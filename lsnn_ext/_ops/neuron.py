"""What the operators know of a registered neuron."""
from typing import NamedTuple

from ..models import COEFFICIENTS

CHUNK = 16  # steps between two saved states, of csrc/alif.h


class NeuronSizes(NamedTuple):
    states: int
    traces: int  # and the first states, which are all that have a gradient
    currents: int
    coefficients: int
    gradients: int  # coefficients of the caller
    has_number_spikes: bool  # spikes may be other numbers than 0 and 1


# Of neurons with registered kernels, by key; 0: a model, with v, a, i and the counter r.
_sizes = {0: NeuronSizes(4, 3, 1, len(COEFFICIENTS), len(COEFFICIENTS), False)}


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
