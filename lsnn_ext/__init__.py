"""lsnn_ext: recurrent spiking networks with adaptive neurons as one fused operator over the whole
sequence."""

from . import functional, nir, plot, reference
from ._config import show_config
from .functional import State, Traces, use_reference
from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear, LSNNState
from .profiler import profile
from .profiler.report import Profile
from .storage import load, save

__version__ = "0.1.0"
__all__ = [
    "ALIF", "LIF", "LSNN", "LSNNState", "LeakyReadout", "Linear", "Profile", "State", "Traces",
    "functional", "load", "nir", "plot", "profile", "reference", "save", "show_config",
    "use_reference",
]
