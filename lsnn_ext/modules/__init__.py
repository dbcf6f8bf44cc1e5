"""The layers: parameters, shapes and state around functional.alif, without loops over time."""
from .alif import ALIF, LIF
from .linear import Linear
from .lsnn import LSNN, LSNNState
from .readout import LeakyReadout, ReadoutState

__all__ = ["ALIF", "LIF", "LSNN", "LSNNState", "LeakyReadout", "Linear", "ReadoutState"]
