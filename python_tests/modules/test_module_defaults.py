"""A model that is named brings its makers' defaults, or requires them by name."""
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from draws import draw
from lsnn_ext import ALIF, LIF, functional
from lsnn_ext.models import MODELS, Rate, find_defaults
from module_kinds import make_kinds, neurons_of
from originals import package

I, N, T, B = 4, 8, 60, 3
KINDS = make_kinds(I, N)
# Without a default in some model; a number for each.
NUMBERS = {"tau_mem": 20.0, "alpha": 0.9, "tau_adapt": 100.0, "rho": 0.97, "sigma": 0.8, "q": 0.2,
           "p": 0.1, "beta": 0.5, "threshold": 0.5}
PAIRS = {"tau_mem": "alpha", "alpha": "tau_mem", "tau_adapt": "rho", "rho": "tau_adapt"}


def _missing(dynamics: str, kind: Any) -> dict[str, float]:
    """What has to be given."""
    return {name: NUMBERS[name] for name, value in find_defaults(dynamics, kind).items()
            if isinstance(value, str)}


@pytest.mark.filterwarnings("ignore:beta. ")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamics", MODELS)
def test_own_or_demanded(dynamics: str, kind: Any) -> None:
    """Each constant is that of the table, or a refusal begins with its name."""
    own, given = find_defaults(dynamics, kind), _missing(dynamics, kind)
    if kind == "LSNN" and own["beta"] is None:
        given["beta"] = 0.5
    layer = neurons_of(KINDS[kind](dynamics=dynamics, **given))
    for name, value in own.items():
        wanted = value.decay(1.0) if isinstance(value, Rate) else value
        if isinstance(wanted, bool) or name in ("refractory", "delay"):
            assert getattr(layer, name) == wanted, name
        elif isinstance(wanted, float) and name not in given:
            found = getattr(layer, f"{name}_l0")[-1:] if kind == "LSNN" and name == "beta" else (
                getattr(layer, f"{name}_l0"))
            torch.testing.assert_close(found, torch.full_like(found, wanted), msg=name)
    for name in given:
        other = f"{PAIRS[name]} or {name}|{name} or {PAIRS[name]}" if name in PAIRS else name
        rest = {key: value for key, value in given.items() if key != name}
        with pytest.raises(TypeError, match=f"^({other}): expected a value with"):
            KINDS[kind](dynamics=dynamics, **rest)
        if name in PAIRS:  # the other of the two will do
            KINDS[kind](dynamics=dynamics, **rest, **{PAIRS[name]: NUMBERS[PAIRS[name]]})


def test_the_papers_defaults_are_the_papers_alone() -> None:
    """No other model has all numbers of the paper's network."""
    for kind in ("ALIF", "LIF", "LSNN"):
        paper = find_defaults("lsnn", kind)  # type: ignore[arg-type]
        assert all(isinstance(value, float | bool | int) for value in paper.values())
        assert [name for name in MODELS if find_defaults(name, kind) == paper] == ["lsnn"]  # type: ignore[arg-type]


COEFFICIENTS = {"kappa": 0.4, "q": 0.3, "p": 0.1, "eta": 0.2, "sigma": 0.5, "width": 0.8, "R": 0.2}


@pytest.mark.filterwarnings("ignore:beta. ")
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dynamics", MODELS)
def test_all_coefficients(dynamics: str, each: bool) -> None:
    """As functional.alif with the same numbers."""
    torch.manual_seed(0)
    given = {"alpha": 0.9, "rho": 0.95, "beta": 0.4, "threshold": 0.5, **COEFFICIENTS}
    if each:
        given = {name: torch.linspace(0.8, 1.2, N).double().clamp(max=0.99 / value) * value
                 for name, value in given.items()}
    layer = ALIF(I, N, dynamics=dynamics, refractory=1, autapses=True, delay=1,
                 dtype=torch.float64, **given)
    x = draw(T, B, I, dtype=torch.float64)
    spikes, state = layer(x)
    theta = given.pop("threshold")
    want, end = functional.alif(x @ layer.weight_ih_l0.T + layer.bias_ih_l0, layer.weight_hh_l0.T,
                                theta=theta, dynamics=dynamics, refractory=1, delay=1, **given)
    assert 0.005 < spikes.mean() < 0.9
    assert torch.equal(spikes, want)
    torch.testing.assert_close(state.v[0], end.v, rtol=0, atol=0)
    (one,) = torch.autograd.grad(spikes.square().mean(), layer.weight_hh_l0)
    (other,) = torch.autograd.grad(want.square().mean(), layer.weight_hh_l0)
    torch.testing.assert_close(one, other)


def test_a_layer_without_adaptation_has_none() -> None:
    """Also where a model has its adaptation in the current."""
    x = draw(T, B, I, dtype=torch.float64)
    for dynamics in ("adlif", "se_adlif"):
        layer = LIF(I, N, dynamics=dynamics, alpha=0.9, threshold=0.3, dtype=torch.float64)
        current = x @ layer.weight_ih_l0.T
        want, _ = functional.alif(current, layer._mask_recurrent_weight("_l0"), alpha=0.9,
                                  theta=0.3, eta=0.0, dynamics=dynamics)
        got, _ = layer(x)
        assert got.any() and torch.equal(got, want)


def test_what_no_argument_sets_is_named() -> None:
    with pytest.raises(TypeError, match="beyond that it has inputs that act a step later"):
        ALIF(I, N, dynamics="norse_lsnn")


# ------------------------------------------------------------------------------ beside the packages
def _norse() -> dict[str, Any]:
    layer = package("norse.torch").LIFRecurrent(I, N, dt=0.001)
    p = layer.p
    return {"alpha": 1 - layer.dt * p.tau_mem_inv, "sigma": 1 - layer.dt * p.tau_syn_inv,
            "threshold": p.v_th - p.v_leak, "autapses": layer.autapses}


def _snntorch() -> dict[str, Any]:
    return {"threshold": package("snntorch").RLeaky(beta=0.75, linear_features=N).threshold}


def _sinabs() -> dict[str, Any]:
    given = inspect.signature(package("sinabs.layers").ALIFRecurrent).parameters
    return {"beta": given["adapt_scale"].default, "threshold": given["spike_threshold"].default}


def _spikingjelly() -> dict[str, Any]:
    node = package("spikingjelly.activation_based.neuron").LIFNode()
    return {"alpha": 1 - 1 / node.tau, "threshold": node.v_threshold}


MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "norse_lif": _norse, "snntorch": _snntorch, "sinabs": _sinabs, "sj": _spikingjelly,
    "srnn": lambda: {"threshold": 0.01, "beta": 1.8, "tau_mem": 20.0, "tau_adapt": 200.0}}


@pytest.mark.parametrize("dynamics", [name for name in MODELS if name.startswith(tuple(MAKERS))])
def test_numbers_of_the_makers(dynamics: str) -> None:
    """test_models_of_packages.py compares spikes and gradients, with numbers that are given."""
    own = find_defaults(dynamics, "ALIF")
    (maker,) = (name for name in MAKERS if dynamics.startswith(name))
    wanted = {"refractory": 0, "autapses": True, "threshold": 1.0} | MAKERS[maker]()
    if dynamics == "snntorch_sub_now":
        wanted["beta"] = None
    for name, value in wanted.items():
        found = own[name]
        found = found.decay(1.0) if isinstance(found, Rate) else found
        assert found == (value if value is None else pytest.approx(float(value))), name
