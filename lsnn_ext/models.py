"""The table of models: everything that makes one model differ from another, each model one row.

A model is added at the end of MODELS and nowhere else. The compiled table is made of this file
while the package is built (csrc/model_table.py), and tests hold README and docs/equations.md, which
explains the choices, against it.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor  # nothing else of torch: csrc/model_table.py reads this file without it

Coefficient: TypeAlias = float | Tensor

# In the order of csrc/alif.h.
COEFFICIENTS = ("alpha", "kappa", "rho", "q", "p", "beta", "eta", "theta", "sigma", "width", "R")

# Each has a case in csrc/surrogate.h and an entry in _surrogates.SURROGATES.
SURROGATE_NAMES = (
    "triangle", "boxcar", "fast_sigmoid", "arctan", "sigmoid", "exponential", "gaussian",
    "multi_gaussian",
)


class State(NamedTuple):
    """What is carried from one step to the next; two calls that pass it on equal one call."""

    v: Tensor  # (B, N) membrane
    a: Tensor  # (B, N) adaptation
    i: Tensor  # (B, N) synaptic current
    r: Tensor  # (B, N) steps without a spike to come: whole numbers in the dtype of v, no gradient
    z: Tensor  # (D, B, N) past spikes, newest first; D = 1 + the largest extra delay


class Traces(NamedTuple):
    """The values of every step, each (T, B, N)."""

    v: Tensor  # (8)
    a: Tensor  # (3)
    threshold: Tensor  # A of (4)


class Origin(NamedTuple):
    """Whose neuron a model is, and what its makers have in place of the defaults of the modules.

    The values are those of the packages' and papers' own code, in the words of the modules'
    arguments. They are for messages: no module takes them by itself.
    """

    whose: str
    source: str  # the paper, or the package itself
    tau_mem: str
    tau_adapt: str
    beta: str
    threshold: str
    refractory: str = "0"
    autapses: str = "True"
    beyond: str = ""  # what no argument of a module can say


_NO_MATTER = "any number, as beta is 0"  # tau_adapt without adaptation

_BELLEC = Origin(
    "the network of the LSNN paper",
    "Bellec, Salaj, Subramoney, Legenstein and Maass, NeurIPS 2018, arXiv 1803.09574",
    "20.0", "700.0", "1.8", "0.01", "5", "False",
)
_LIGHT = Origin(
    "LightLIF and LightALIF of the e-prop paper",
    "Bellec, Scherr et al., Nature Communications 11, 3625 (2020)",
    "20.0", "200.0", "1.6 (LightLIF 0)", "0.03 (LightLIF 0.615)", autapses="False",
)
_ELIG_ALIF = _LIGHT._replace(
    whose="EligALIF of the e-prop paper", beta="1.6", threshold="0.03",
    refractory="n_refractory - 1, which is 0",
)
_CUSTOM_ALIF = _ELIG_ALIF._replace(
    whose="CustomALIF of the e-prop paper", beta="0.16", threshold="0.615",
)
_YIN = Origin(
    "the recurrent network of Yin et al.",
    "Yin, Corradi and Bohté, Nature Machine Intelligence 3, 905 (2021)",
    "20.0, learned for each neuron", "200.0, learned for each neuron", "1.8",
    "0.01 (speech commands 1.6)",
)
_NORSE_LIF = Origin(
    "Norse", "Pehle and Pedersen, Norse (2021)",
    "-dt / ln(1 - dt tau_mem_inv)", _NO_MATTER, "0.0", "v_th - v_leak, which is 1.0",
    autapses="False", beyond="its synapse (sigma)",
)
_NORSE_LSNN = _NORSE_LIF._replace(
    tau_adapt="-dt / ln(1 - dt tau_adapt_inv)",
    beta="rho beta / (1 - rho) of its rho and its beta, with delay=1 and inputs that come a step "
         "later",
)
_SNNTORCH = Origin(
    "snnTorch", "Eshraghian et al., Proceedings of the IEEE 111, 1016 (2023)",
    "-dt / ln(beta) of its beta", _NO_MATTER, "0.0", "1.0", beyond="RSynaptic's synapse (sigma)",
)
_SINABS = Origin(
    "sinabs", "the package itself",
    "its tau_mem, with dt=1.0", "its tau_adapt, with dt=1.0", "adapt_scale, which is 1.8", "1.0",
    beyond="norm_input=False (kappa) and its synapse (kappa, sigma)",
)
_SPIKINGJELLY = Origin(
    "SpikingJelly", "Fang et al., Science Advances 9, eadi1480 (2023)",
    "-dt / ln(1 - 1 / tau) of its tau, which is 2.0", _NO_MATTER, "0.0",
    "1.0, less v_reset of a hard reset", beyond="decay_input=False (kappa)",
)
_BITTAR = Origin(
    "RadLIF of Bittar and Garner",
    "Bittar and Garner, Frontiers in Neuroscience 16, 865897 (2022)",
    "5.0 to 25.0, with dt=1.0", "30.0 to 120.0, with dt=1.0", "0.0", "1.0", autapses="False",
    beyond="its a and b (p and q)",
)
_BARONIG = Origin(
    "the symplectic neuron of Baronig et al.",
    "Baronig et al., Nature Communications 16, 5776 (2025)",
    "5.0 to 25.0, with dt=1.0", "60.0 to 300.0, with dt=1.0", "0.0", "1.0",
    beyond="its a, b and q (p and q)",
)


@dataclass(frozen=True)
class Model:
    """One row: the choices of the recurrence, the defaults of what a caller leaves out, the
    origin."""

    origin: Origin
    test: Literal["old", "new"] = "new"
    ge: bool = False
    scale: Literal["1", "A"] = "1"
    reset: Literal["A", "R", "to"] = "R"
    when: Literal["next", "now"] = "next"
    drive: Literal["spike", "cross", "above"] = "spike"
    detach: tuple[Literal["rec", "adapt", "reset", "thr"], ...] = ()
    surrogate: str = "triangle"
    dampening: float = 0.3
    width: float | None = 1.0  # None: theta
    kappa: Literal["1", "1-alpha"] = "1-alpha"
    q: Literal["1", "1-rho"] = "1-rho"
    R: Literal["theta", "0", "alpha", "unused"] = "theta"
    beta: Literal["0", "theta"] = "0"
    eta: float = 0.0


_LSNN = Model(_BELLEC, test="old", scale="A", reset="A", R="unused")
_EPROP = Model(_LIGHT, scale="A")
_ELIG = Model(_ELIG_ALIF, width=None, kappa="1", q="1")
_TIMIT = replace(_ELIG, origin=_CUSTOM_ALIF, drive="cross")
_SRNN = Model(_YIN, reset="A", R="unused", surrogate="multi_gaussian", dampening=0.5, width=0.5)
_NORSE = Model(
    _NORSE_LIF, reset="to", R="0", when="now", detach=("reset",),
    surrogate="fast_sigmoid", dampening=0.01, width=0.01, q="1",
)
_SNN = Model(
    _SNNTORCH, detach=("reset",),
    surrogate="arctan", dampening=1 / math.pi, width=1 / math.pi, kappa="1", q="1",
)
_SUB = Model(
    _SINABS, ge=True, scale="A", reset="A", R="unused", when="now", detach=("thr",),
    surrogate="exponential", dampening=1.0, width=0.5,
)
_SJ = Model(
    _SPIKINGJELLY, ge=True, when="now", surrogate="sigmoid", dampening=1.0, width=0.25, q="1",
)

MODELS: dict[str, Model] = {
    "lsnn": _LSNN,
    "eprop": _EPROP,
    "eprop_stop": replace(_EPROP, detach=("rec", "reset")),
    "eprop_elig": _ELIG,
    "eprop_elig_stop": replace(_ELIG, detach=("rec", "reset")),
    "eprop_timit": _TIMIT,
    "eprop_timit_stop": replace(_TIMIT, detach=("rec", "reset")),
    "srnn": _SRNN,
    "norse_lsnn": replace(_NORSE, origin=_NORSE_LSNN, detach=("reset", "adapt"), q="1-rho"),
    "norse_lif": _NORSE,
    "snntorch_sub": _SNN,
    "snntorch_zero": replace(_SNN, reset="to", R="0"),
    "snntorch_zero_now": replace(_SNN, reset="to", R="0", when="now", detach=()),
    "snntorch_sub_now": replace(
        _SNN, when="now", drive="above", detach=(), beta="theta",
        origin=_SNNTORCH._replace(tau_adapt="dt / 1000, so that rho is 0", beta="its threshold"),
    ),
    "sinabs_sub": _SUB,
    "sinabs_zero": replace(_SUB, reset="to", R="0", detach=("thr", "reset")),
    "sj_soft": _SJ,
    "sj_hard": replace(_SJ, reset="to", R="0"),
    "sj_soft_det": replace(_SJ, detach=("reset",)),
    "sj_hard_det": replace(_SJ, reset="to", R="0", detach=("reset",)),
    "adlif": Model(_BITTAR, R="alpha", surrogate="boxcar", dampening=1.0, width=1.0, eta=1.0),
    "se_adlif": Model(
        _BARONIG, reset="to", R="0", when="now", detach=("reset",),
        surrogate="exponential", dampening=0.2, width=0.2, eta=1.0,
    ),
}


def named_model(dynamics: str) -> Model:
    """The model with this name."""
    if dynamics not in MODELS:
        known = ", ".join(MODELS)
        raise ValueError(f"dynamics: unknown model {dynamics!r}, expected one of {known}")
    return MODELS[dynamics]


def check_surrogate(name: str) -> None:
    """Raises ValueError for a surrogate that there is not."""
    if name not in SURROGATE_NAMES:
        known = ", ".join(SURROGATE_NAMES)
        raise ValueError(f"surrogate: unknown {name!r}, expected one of {known}")


def coefficients(
    dynamics: str, *, alpha: Coefficient, theta: Coefficient, rho: Coefficient | None = None,
    beta: Coefficient | None = None, kappa: Coefficient | None = None, q: Coefficient | None = None,
    p: Coefficient | None = None, eta: Coefficient | None = None, sigma: Coefficient | None = None,
    width: Coefficient | None = None, R: Coefficient | None = None,
) -> dict[str, Coefficient]:
    """All COEFFICIENTS, those left out (None) as the model says; keeps the graph of what was
    given."""
    model = named_model(dynamics)
    rho = 0.0 if rho is None else rho
    rules: dict[str, Coefficient] = {
        "0": 0.0, "1": 1.0, "theta": theta, "alpha": alpha, "unused": 0.0,
    }
    if kappa is None and model.kappa == "1-alpha":
        kappa = 1 - alpha
    if q is None and model.q == "1-rho":
        q = 1 - rho
    return {
        "alpha": alpha,
        "kappa": rules[model.kappa] if kappa is None else kappa,
        "rho": rho,
        "q": rules[model.q] if q is None else q,
        "p": 0.0 if p is None else p,
        "beta": rules[model.beta] if beta is None else beta,
        "eta": model.eta if eta is None else eta,
        "theta": theta,
        "sigma": 0.0 if sigma is None else sigma,
        "width": (theta if model.width is None else model.width) if width is None else width,
        "R": rules[model.R] if R is None else R,
    }
