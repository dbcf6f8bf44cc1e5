"""The attributes of ALIF and LIF that the files of this folder share."""
import torch
from torch import Tensor

from .parametrizations import ParametrizedModule


class Layer(ParametrizedModule):
    """Declares what Constants and Recurrent assign; holds nothing of its own."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    recurrent: bool
    autapses: bool
    checkpoint_every: int | str | None
    saved_dtype: torch.dtype | None
    sparse_grad: str
    dynamics: str
    surrogate: str | None
    dampening: float | None
    surrogate_cutoff: float
    refractory: int
    dt: float
    learn: tuple[str, ...]
    delay: int | Tensor
    _suffixes: list[str]  # one for each layer and direction
    _neuron: tuple[str, ...]  # names of the constants that the neuron has
    _first_delay: Tensor | None  # as the layer was made
    _distinct: tuple[int, ...]  # values of a delay that is a tensor, when it was last looked at

    def _class_name(self) -> str:
        """The class as messages name it."""
        raise NotImplementedError
