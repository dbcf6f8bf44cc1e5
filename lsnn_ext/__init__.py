"""lsnn_ext: recurrent spiking networks with adaptive neurons as one fused operator over the whole
sequence."""

from . import functional, reference
from ._config import show_config
from .convert import convert, revert
from .functional import State, Traces
from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear, LSNNState
from .profiler import profile
from .profiler.report import Profile

__version__ = "0.1.0"
__all__ = [
    "ALIF", "LIF", "LSNN", "LSNNState", "LeakyReadout", "Linear", "Profile", "State", "Traces",
    "convert", "functional", "profile", "reference", "revert", "show_config",
]
