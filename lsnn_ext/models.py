"""The table of models, one row each: the choices that distinguish one model from another.

To add a model, append a row to MODELS. The build generates the C++ table from this file
(csrc/model_table.py), so it imports only the standard library. docs/equations.md explains the
choices; tests compare README and docs with this table.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, TypeAlias

# In the order of csrc/alif.h.
COEFFICIENTS = ("alpha", "kappa", "rho", "q", "p", "beta", "eta", "theta", "sigma", "width", "R")

# Each has a case in csrc/surrogate.h and an entry in surrogates.SURROGATES.
SURROGATE_NAMES = (
    "triangle", "boxcar", "fast_sigmoid", "arctan", "sigmoid", "exponential", "gaussian",
    "multi_gaussian",
)


class Rate(NamedTuple):
    """A decay of 1 - dt / tau per step, as in Euler's method; ours is exp(-dt / tau)."""

    tau: float  # ms

    def decay(self, dt: float) -> float:
        """The decay over a step of dt ms. Raises ValueError unless dt < tau."""
        if not dt < self.tau:
            raise ValueError(f"dt: expected less than {self.tau:g} ms, the time constant of a "
                             f"decay 1 - dt / tau, got {dt}")
        return 1 - dt / self.tau


# A default: a number, True or False; None: the rule of functional.alif; a text: no default, and
# what the authors use instead.
Default: TypeAlias = float | Rate | str | None


class Origin(NamedTuple):
    """The origin of a model, and the defaults of its authors' code, by argument of the modules."""

    name: str
    source: str  # the paper, or the package itself
    defaults: Mapping[str, Default]  # of a network of regular and adaptive neurons
    alif: Mapping[str, Default] = {}  # changes for a layer of only adaptive neurons
    lif: Mapping[str, Default] = {}  # changes without adaptation
    beyond: str = ""  # differences that no argument of a module expresses
    ranges: Mapping[str, tuple[float, float]] = {}  # the authors' clamps while learning, for dt = 1


# No adaptation: it vanishes within a step and does not raise the threshold.
_PLAIN: dict[str, Default] = {"rho": 0.0, "beta": 0.0, "refractory": 0, "autapses": True}

_BELLEC = Origin(
    "the network of the LSNN paper",
    "Bellec, Salaj, Subramoney, Legenstein and Maass, NeurIPS 2018, arXiv 1803.09574",
    {"tau_mem": 20.0, "tau_adapt": 700.0, "beta": 1.8, "threshold": 0.01, "refractory": 5,
     "autapses": False},
    alif={"tau_adapt": 200.0, "refractory": 0},
)
_LIGHT = Origin(
    "LightLIF and LightALIF of the e-prop paper",
    "Bellec, Scherr et al., Nature Communications 11, 3625 (2020)",
    {"tau_mem": 20.0, "tau_adapt": 200.0, "beta": 1.6, "threshold": 0.03, "refractory": 0,
     "autapses": False},
    lif={"threshold": 0.615},
)
_ELIG_ALIF = _LIGHT._replace(name="EligALIF of the e-prop paper", lif={})
_CUSTOM_ALIF = _ELIG_ALIF._replace(
    name="CustomALIF of the e-prop paper",
    defaults={**_LIGHT.defaults, "beta": 0.16, "threshold": 0.615},
)
_YIN = Origin(
    "the recurrent network of Yin et al.",
    "Yin, Corradi and Bohté, Nature Machine Intelligence 3, 905 (2021)",
    {"tau_mem": 20.0, "tau_adapt": 200.0, "beta": 1.8, "threshold": 0.01, "refractory": 0,
     "autapses": True},
    beyond="time constants drawn for each neuron and learned, and an adaptation that starts at the "
           "threshold",
)
_NORSE_LIF = Origin(
    "Norse", "Pehle and Pedersen, Norse (2021)",
    {**_PLAIN, "alpha": Rate(10.0), "sigma": Rate(5.0), "threshold": 1.0, "autapses": False},
)
_NORSE_LSNN = _NORSE_LIF._replace(
    defaults={"alpha": "1 - dt tau_mem_inv", "rho": "1 - dt tau_adapt_inv",
         "sigma": "1 - dt tau_syn_inv", "q": "rho times its beta", "beta": "1.0",
         "threshold": "v_th - v_leak", "refractory": 0, "autapses": False, "delay": 1},
    beyond="inputs that act a step later, so its spikes are ours, a step later",
)
_SNNTORCH = Origin(
    "snnTorch", "Eshraghian et al., Proceedings of the IEEE 111, 1016 (2023)",
    {**_PLAIN, "alpha": "its beta", "threshold": 1.0},
    beyond="RSynaptic's synapse, where sigma is its alpha",
    ranges={"alpha": (0.0, 1.0), "sigma": (0.0, 1.0)},
)
_SINABS = Origin(
    "sinabs", "the package itself",
    {"tau_mem": "its tau_mem, with dt=1.0", "tau_adapt": "its tau_adapt, with dt=1.0",
     "beta": 1.8, "threshold": 1.0, "refractory": 0, "autapses": True},
    beyond="norm_input=False, which is kappa=1.0, and its synapse (sigma, kappa)",
)
_SPIKINGJELLY = Origin(
    "SpikingJelly", "Fang et al., Science Advances 9, eadi1480 (2023)",
    {**_PLAIN, "alpha": 0.5, "threshold": 1.0},
    beyond="decay_input=False, which is kappa=1.0",
)
_BITTAR = Origin(
    "RadLIF of Bittar and Garner",
    "Bittar and Garner, Frontiers in Neuroscience 16, 865897 (2022)",
    {"alpha": "drawn from exp(-1/5) to exp(-1/25)", "rho": "drawn from exp(-1/30) to exp(-1/120)",
     "p": "its a, drawn from -1 to 1", "q": "its b, drawn from 0 to 2", "beta": 0.0,
     "threshold": 1.0, "refractory": 0, "autapses": False},
    beyond="first states that are drawn in each call",
    ranges={"tau_mem": (5.0, 25.0), "tau_adapt": (30.0, 120.0),
            "alpha": (math.exp(-1 / 5), math.exp(-1 / 25)),
            "rho": (math.exp(-1 / 30), math.exp(-1 / 120)), "p": (-1.0, 1.0), "q": (0.0, 2.0)},
)
_BARONIG = Origin(
    "the symplectic neuron of Baronig et al.",
    "Baronig et al., Nature Communications 16, 5776 (2025)",
    {"tau_mem": "drawn from 5.0 to 25.0, with dt=1.0",
     "tau_adapt": "drawn from 60.0 to 300.0, with dt=1.0", "p": "(1 - rho) q a of its q and its a",
     "q": "(1 - rho) q b of its q and its b", "beta": 0.0, "threshold": 1.0, "refractory": 0,
     "autapses": True},
    ranges={"tau_mem": (5.0, 25.0), "tau_adapt": (60.0, 300.0)},
)


@dataclass(frozen=True)
class Model:
    """One row: choices of the recurrence, defaults of omitted arguments, and the origin."""

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
    surrogate="fast_sigmoid", dampening=1.0, width=1.0, q="1",  # 1.1.0 ignores its alpha=100
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
        origin=_SNNTORCH._replace(defaults={**_SNNTORCH.defaults, "beta": None}),
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


# Other names of models and surrogates: the name here, or how it begins.
_FAMILIES = {
    "norse": "norse_", "snntorch": "snntorch_", "sinabs": "sinabs_", "spikingjelly": "sj_",
    "yin": "srnn", "alif": "lsnn", "bellec": "lsnn", "bellec2018": "lsnn", "bellec2020": "eprop",
    "radlif": "adlif", "sparch": "adlif", "seadlif": "se_adlif",
}
_OTHER_SURROGATES = {
    "atan": "arctan", "fastsigmoid": "fast_sigmoid", "superspike": "fast_sigmoid",
    "super": "fast_sigmoid", "softsign": "fast_sigmoid", "sigmoidgrad": "sigmoid",
    "slayer": "exponential", "singleexponential": "exponential", "exp": "exponential",
    "rectangle": "boxcar", "rect": "boxcar", "box": "boxcar", "linear": "triangle",
    "triangular": "triangle", "piecewisequadratic": "triangle", "multigaussian": "multi_gaussian",
    "mg": "multi_gaussian", "erf": "gaussian",
}


def _suggest(name: Any, names: Iterable[str], aliases: Mapping[str, str]) -> str:
    """A hint for the end of a message: similar names."""
    if not isinstance(name, str):
        return ""
    prefix = aliases.get("".join(letter for letter in name.lower() if letter.isalnum()))
    found = [one for one in names if prefix and one.startswith(prefix)]
    found = [prefix] if prefix in found else found or get_close_matches(name.lower(), names)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def find_model(dynamics: str) -> Model:
    """The model with this name. Raises ValueError if it is unknown."""
    if dynamics not in MODELS:
        raise ValueError(f"dynamics: expected one of {', '.join(MODELS)}, got {dynamics!r}"
                         f"{_suggest(dynamics, MODELS, _FAMILIES)}")
    return MODELS[dynamics]


def find_defaults(dynamics: str, kind: Literal["ALIF", "LIF", "LSNN"]) -> dict[str, Default]:
    """The defaults of the arguments of a module of this kind with this model."""
    origin = find_model(dynamics).origin
    defaults = {"delay": 0, **origin.defaults}
    if kind == "LSNN":
        return defaults
    if kind == "ALIF":
        return {**defaults, **origin.alif}
    adaptation = ("tau_adapt", "rho", "beta", "q", "p", "eta")
    return {name: value for name, value in {**defaults, **origin.lif}.items()
            if name not in adaptation}


def check_surrogate(name: str) -> None:
    """Raises ValueError if the surrogate is unknown."""
    if name not in SURROGATE_NAMES:
        raise ValueError(f"surrogate: expected one of {', '.join(SURROGATE_NAMES)}, got {name!r}"
                         f"{_suggest(name, SURROGATE_NAMES, _OTHER_SURROGATES)}")


def check_sparse_grad(which: object) -> None:
    """Raises ValueError unless sparse_grad is "all" or "existing"."""
    if which not in ("all", "existing"):
        raise ValueError(f"sparse_grad: expected 'all' or 'existing', got {which!r}")
