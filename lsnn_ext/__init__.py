"""lsnn_ext: recurrent spiking networks with adaptive neurons as one fused operator over the whole
sequence."""

from . import functional, init, optim, reference
from .convert import ConversionError, Refused, Report, convert, revert
from .functional import NeuronState, State, Traces, use_reference
from .fuse.neuron import Neuron
from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear, LSNNState, ReadoutState
from .modules.any_neuron import Recurrent
from .modules.learned_delay import LearnedDelay
from .tools import nir, plot
from .tools.config import show_config
from .tools.profiler import profile
from .tools.profiler.report import Profile
from .tools.storage import load, save

__version__ = "0.1.0"
__all__ = [
    "ALIF", "LIF", "LSNN", "ConversionError", "LSNNState", "LeakyReadout", "LearnedDelay",
    "Linear", "Neuron", "NeuronState", "Profile", "ReadoutState", "Recurrent", "Refused", "Report",
    "State", "Traces", "convert", "functional", "init", "load", "nir", "optim", "plot", "profile",
    "reference", "revert", "save", "show_config", "use_reference",
]
