"""ALIF and LIF: recurrent layers of spiking neurons that are called as nn.LSTM is."""
from typing import ClassVar, Unpack

from .._core.options import LAYER_DEFAULTS, LayerOptions, LIFOptions, document
from .neuron import Kind
from .recurrent import Recurrent


@document(LayerOptions, LAYER_DEFAULTS)
class ALIF(Recurrent):
    """Adaptive leaky integrate-and-fire neurons with recurrent weights (Bellec et al. 2018,
    equations (1) to (9)).

    Parameters per layer and direction, named as in nn.LSTM: weight_ih_l0 (N, I), weight_hh_l0
    (N, N) with the target neuron first, bias_ih_l0 (N,). Constants are attributes that can be read
    and set, tau_mem_l0 and so on, of the shape given, also if they learn. A constant that is
    learned unbounded is parametrized; its Parameter is parametrizations.tau_mem_l0.original.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as of
            nn.LSTM; I inputs and N neurons.
        **options

    Raises:
        TypeError, ValueError: an argument out of range, missing, or without a default in this
            model; the message names it.

    Example:
        >>> layer = lsnn_ext.ALIF(80, 220, learn=("tau_mem",), per_neuron=True)
        >>> spikes, state = layer(x)
    """

    _kind: ClassVar[Kind] = "ALIF"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 **options: Unpack[LayerOptions]) -> None:
        super().__init__(input_size, hidden_size, num_layers=num_layers, bias=bias,
                         batch_first=batch_first, dropout=dropout, bidirectional=bidirectional,
                         **options)


@document(LIFOptions, LAYER_DEFAULTS)
class LIF(Recurrent):
    """Leaky integrate-and-fire neurons: ALIF without adaptation (beta = 0 in equation (4), eta = 0
    in (5)).

    The refractory time of "lsnn" is 5 steps here: without adaptation and with 0, a new layer fires
    in 40 % of all steps. Parameters and errors are those of ALIF.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as of
            nn.LSTM; I inputs and N neurons.
        **options
    """

    _kind: ClassVar[Kind] = "LIF"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 **options: Unpack[LIFOptions]) -> None:
        super().__init__(input_size, hidden_size, num_layers=num_layers, bias=bias,
                         batch_first=batch_first, dropout=dropout, bidirectional=bidirectional,
                         **options)
