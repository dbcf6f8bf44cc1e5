"""lsnn_ext: recurrent spiking networks with adaptive neurons as one fused operator over the whole
sequence."""

from . import _oldest_torch, functional, init, nir, optim, plot, reference
from ._config import show_config
from .convert import ConversionError, Refused, Report, convert, revert
from .functional import State, Traces, use_reference
from .learned_delay import LearnedDelay
from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear, LSNNState
from .profiler import profile
from .profiler.report import Profile
from .storage import load, save

del _oldest_torch  # looked at, and of no use to anybody

__version__ = "0.1.0"
__all__ = [
    "ALIF", "LIF", "LSNN", "ConversionError", "LSNNState", "LeakyReadout", "LearnedDelay",
    "Linear", "Profile", "Refused", "Report", "State", "Traces", "convert", "functional", "init",
    "load", "nir", "optim", "plot", "profile", "reference", "revert", "save",
    "show_config", "use_reference",
]
