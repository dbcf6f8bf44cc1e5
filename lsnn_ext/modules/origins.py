"""Whose neurons the rows are, and what stands there in place of the paper's defaults: all that modules know of a row.

The values are those of the packages' and papers' own code, in the words of the modules' arguments. They are for
messages: no module takes them by itself.
"""
from typing import NamedTuple


class Origin(NamedTuple):
    """One family of rows: who made it, its own values, and what of it no argument of a module can say."""

    rows: tuple[str, ...]
    whose: str
    tau_mem: str
    tau_adapt: str
    beta: str
    threshold: str
    refractory: str = "0"
    autapses: str = "True"
    beyond: str = ""


_NO_MATTER = "any number, as beta is 0"  # tau_adapt without adaptation
_LATE = "rho beta / (1 - rho) of its rho and its beta, with delay=1 and inputs that come a step later"

ORIGINS = (
    Origin(("eprop", "eprop_stop"), "LightLIF and LightALIF of the e-prop paper",
           "20.0", "200.0", "1.6 (LightLIF 0)", "0.03 (LightLIF 0.615)", autapses="False"),
    Origin(("eprop_elig", "eprop_elig_stop"), "EligALIF of the e-prop paper",
           "20.0", "200.0", "1.6", "0.03", "n_refractory - 1, which is 0", "False"),
    Origin(("eprop_timit", "eprop_timit_stop"), "CustomALIF of the e-prop paper",
           "20.0", "200.0", "0.16", "0.615", "n_refractory - 1, which is 0", "False"),
    Origin(("srnn",), "the recurrent network of Yin et al.",
           "20.0, learned for each neuron", "200.0, learned for each neuron", "1.8", "0.01 (speech commands 1.6)"),
    Origin(("norse_lsnn",), "Norse",
           "-dt / ln(1 - dt tau_mem_inv)", "-dt / ln(1 - dt tau_adapt_inv)", _LATE, "v_th - v_leak, which is 1.0",
           autapses="False", beyond="its synapse (sigma)"),
    Origin(("norse_lif",), "Norse",
           "-dt / ln(1 - dt tau_mem_inv)", _NO_MATTER, "0.0", "v_th - v_leak, which is 1.0",
           autapses="False", beyond="its synapse (sigma)"),
    Origin(("snntorch_sub", "snntorch_zero", "snntorch_zero_now"), "snnTorch",
           "-dt / ln(beta) of its beta", _NO_MATTER, "0.0", "1.0", beyond="RSynaptic's synapse (sigma)"),
    Origin(("snntorch_sub_now",), "snnTorch",
           "-dt / ln(beta) of its beta", "dt / 1000, so that rho is 0", "its threshold", "1.0",
           beyond="RSynaptic's synapse (sigma)"),
    Origin(("sinabs_sub", "sinabs_zero"), "sinabs",
           "its tau_mem, with dt=1.0", "its tau_adapt, with dt=1.0", "adapt_scale, which is 1.8", "1.0",
           beyond="norm_input=False (kappa) and its synapse (kappa, sigma)"),
    Origin(("sj_soft", "sj_hard", "sj_soft_det", "sj_hard_det"), "SpikingJelly",
           "-dt / ln(1 - 1 / tau) of its tau, which is 2.0", _NO_MATTER, "0.0", "1.0, less v_reset of a hard reset",
           beyond="decay_input=False (kappa)"),
    Origin(("adlif",), "RadLIF of Bittar and Garner",
           "5.0 to 25.0, with dt=1.0", "30.0 to 120.0, with dt=1.0", "0.0", "1.0", autapses="False",
           beyond="its a and b (p and q)"),
    Origin(("se_adlif",), "the symplectic neuron of Baronig et al.",
           "5.0 to 25.0, with dt=1.0", "60.0 to 300.0, with dt=1.0", "0.0", "1.0",
           beyond="its a, b and q (p and q)"),
)  # fmt: skip

_BY_ROW = {row: origin for origin in ORIGINS for row in origin.rows}


def own_values(dynamics: str, names: list[str]) -> str:
    """A sentence on what the makers of the row have in place of these arguments."""
    origin = _BY_ROW.get(dynamics)
    if origin is None:
        return "the row's own values are not in lsnn_ext/modules/origins.py"
    values = "; ".join(f"{name}: {getattr(origin, name)}" for name in names)
    beyond = f"; functional.alif alone can say {origin.beyond}" if origin.beyond else ""
    return f"{origin.whose} has {values}{beyond}"
