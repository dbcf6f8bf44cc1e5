"""Recurrent spiking networks with adaptive neurons as one fused operator over the sequence."""

from . import functional, init, optim, reference
from .codegen.neuron import Neuron
from .functional import NeuronState, State, Traces, use_reference
from .loops import Refused, VerificationError, convert, fuse, revert
from .loops.report import Report
from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear, LSNNState, ReadoutState
from .modules.any_neuron import Recurrent
from .modules.learned_delay import LearnedDelay
from .tools import nir, plot
from .tools.info import show_config
from .tools.plan import plan
from .tools.plan_report import Plan
from .tools.profiler import Profile, profile

__version__ = "0.1.0"
__all__ = [
    "ALIF", "LIF", "LSNN", "LSNNState", "LeakyReadout", "LearnedDelay", "Linear", "Neuron",
    "NeuronState", "Plan", "Profile", "ReadoutState", "Recurrent", "Refused", "Report", "State",
    "Traces", "VerificationError", "convert", "functional", "fuse", "init", "nir", "optim", "plan",
    "plot", "profile", "reference", "revert", "show_config", "use_reference",
]
