"""Published neurons, one file each: a step with the equations, source and defaults of a paper.

    from lsnn_ext.zoo import brf
    spikes, state = lsnn_ext.functional.recurrent(x, w_rec, brf.neuron, omega=omega)

`python -m lsnn_ext.zoo --out folder` draws how each responds to a current step.
"""
from types import ModuleType

from . import (
    alif_at_once,
    alif_two_synapses,
    brf,
    c_silif,
    dh_srnn,
    ef_adlif,
    lif_two_synapses,
    rf,
    silif,
    surrogates,
    tc_lif,
)

__all__ = ["NEURONS", "alif_at_once", "alif_two_synapses", "brf", "c_silif", "dh_srnn", "ef_adlif",
           "lif_two_synapses", "rf", "silif", "surrogates", "tc_lif"]

# Each module has step, neuron, and CURRENT, a constant current at which it fires.
NEURONS: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in (
    rf, brf, tc_lif, dh_srnn, silif, c_silif, ef_adlif, lif_two_synapses,
    alif_two_synapses, alif_at_once)}
