"""Type declarations of the attributes of ALIF and LIF that the files of this folder share."""
import torch
from torch import Tensor

from .parametrizations import ParametrizedModule


class Layer(ParametrizedModule):
    """Declares the attributes that Constants and Recurrent assign."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    recurrent_dropout: float
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
    _distinct: tuple[int, ...]  # values of a delay tensor, when it was last read

    def _class_name(self) -> str:
        """The name of the class for messages."""
        raise NotImplementedError
