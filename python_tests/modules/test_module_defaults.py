"""A model that is named brings its makers' defaults, or requires them by name."""
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import papers
from compare import assert_same
from lsnn_ext import ALIF, LIF, State, functional
from lsnn_ext.models import MODELS, Rate, find_defaults
from module_kinds import make_kinds, neurons_of, round_weights
from originals import package

I, N, T, B = 4, 8, 60, 3
KINDS = make_kinds(I, N)
# Without a default in some model; a number for each.
NUMBERS = {"tau_mem": 20.0, "alpha": 0.9, "tau_adapt": 100.0, "rho": 0.97, "sigma": 0.8, "q": 0.2,
           "p": 0.1, "beta": 0.5, "threshold": 0.5}
PAIRS = {"tau_mem": "alpha", "alpha": "tau_mem", "tau_adapt": "rho", "rho": "tau_adapt"}


def _x(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
    x = _x(T, B, I)
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
    for dynamics in ("adlif", "se_adlif"):
        layer = LIF(I, N, dynamics=dynamics, alpha=0.9, threshold=0.3, dtype=torch.float64)
        current = _x(T, B, I) @ layer.weight_ih_l0.T
        want, _ = functional.alif(current, layer._mask_recurrent_weight("_l0"), alpha=0.9,
                                  theta=0.3, eta=0.0, dynamics=dynamics)
        got, _ = layer(_x(T, B, I))
        assert got.any() and torch.equal(got, want)


# ------------------------------------------------------------------------------ beside the packages
def _inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (_x(T, B, I) > 0.3).to(dtype).requires_grad_()


def _same(got: Tensor, want: Tensor, x: Tensor, tolerance: float = 2e-5) -> None:
    """The same spikes, and gradients of a weighted sum of them."""
    assert 0.02 < float(want.detach().mean()) < 0.9
    assert torch.equal(got.detach(), want.detach().to(got.dtype))
    weights = _x(*want.shape, seed=5)
    theirs, ours = (torch.autograd.grad((side * weights.to(side)).sum(), x, retain_graph=True)[0]
                    for side in (want, got))
    assert theirs.any()
    assert_same("gradient of x", ours, theirs, tolerance=tolerance)


def _copied(layer: ALIF | LIF, w_in: Tensor, w_rec: Tensor, bias: Tensor | None = None) -> None:
    with torch.no_grad():
        layer.weight_ih_l0.copy_(w_in)
        layer.weight_hh_l0.copy_(w_rec)
        layer.bias_ih_l0.copy_(torch.zeros(N) if bias is None else bias)


def test_norse() -> None:
    norse = package("norse.torch")
    torch.manual_seed(0)
    theirs = norse.LIFRecurrent(I, N, dt=0.001)
    with torch.no_grad():
        theirs.input_weights.mul_(3)
    round_weights(theirs)
    layer, x = LIF(I, N, dynamics="norse_lif"), _inputs(torch.float64)
    _copied(layer, theirs.input_weights, theirs.recurrent_weights)
    # norse computes its first step in float32
    _same(layer.double()(x)[0], theirs.double()(x)[0], x)


def test_what_no_argument_sets_is_named() -> None:
    with pytest.raises(TypeError, match="beyond that it has inputs that act a step later"):
        ALIF(I, N, dynamics="norse_lsnn")


@pytest.mark.parametrize(("reset", "late", "dynamics"), [
    ("subtract", True, "snntorch_sub"), ("zero", True, "snntorch_zero"),
    ("subtract", False, "snntorch_sub_now"), ("zero", False, "snntorch_zero_now")])
@pytest.mark.parametrize("kind", [ALIF, LIF])
def test_snntorch(kind: Any, reset: str, late: bool, dynamics: str) -> None:
    snntorch = package("snntorch")
    torch.manual_seed(0)
    theirs = snntorch.RLeaky(beta=0.75, linear_features=N, reset_mechanism=reset, reset_delay=late)
    project = nn.Linear(I, N, bias=False)
    round_weights(theirs)
    round_weights(project)
    with torch.no_grad():
        theirs.recurrent.bias.zero_()
    layer = kind(I, N, dynamics=dynamics, alpha=0.75)
    _copied(layer, project.weight, theirs.recurrent.weight)
    spikes = membrane = torch.zeros(B, N)
    inputs, out = _inputs(), []
    for x in inputs:
        spikes, membrane = theirs(project(x), spikes, membrane)
        out.append(spikes)
    _same(layer(inputs)[0], torch.stack(out), inputs)


@pytest.mark.parametrize(("reset", "dynamics"), [("MembraneSubtract", "sinabs_sub"),
                                                 ("MembraneReset", "sinabs_zero")])
@pytest.mark.parametrize("adaptive", [True, False])
def test_sinabs(adaptive: bool, reset: str, dynamics: str) -> None:
    layers = package("sinabs.layers")
    activation = importlib.import_module("sinabs.activation")
    torch.manual_seed(0)
    project, recurrent = nn.Linear(I, N, bias=False), nn.Linear(N, N, bias=False)
    with torch.no_grad():
        project.weight.mul_(8)
    round_weights(project)
    round_weights(recurrent)
    values = {"tau_mem": torch.tensor(8.0), "rec_connect": recurrent,
              "spike_fn": activation.SingleSpike, "reset_fn": getattr(activation, reset)()}
    if adaptive:
        theirs = layers.ALIFRecurrent(**values, tau_adapt=torch.tensor(15.0))
        layer: Any = ALIF(I, N, dynamics=dynamics, tau_mem=8.0, tau_adapt=15.0)
    else:
        theirs = layers.LIFRecurrent(**values)
        layer = LIF(I, N, dynamics=dynamics, tau_mem=8.0)
    _copied(layer, project.weight, recurrent.weight)
    x = _inputs()
    _same(layer(x)[0], theirs(project(x).transpose(0, 1)).transpose(0, 1), x)


@pytest.mark.parametrize(("reset", "detach", "dynamics"), [
    (0.0, False, "sj_hard"), (None, False, "sj_soft"), (0.0, True, "sj_hard_det"),
    (None, True, "sj_soft_det")])
@pytest.mark.parametrize("kind", [ALIF, LIF])
def test_spikingjelly(kind: Any, reset: float | None, detach: bool, dynamics: str) -> None:
    neuron = package("spikingjelly.activation_based.neuron")
    layers = importlib.import_module("spikingjelly.activation_based.layer")
    torch.manual_seed(0)
    node = neuron.LIFNode(v_reset=reset, detach_reset=detach)
    theirs = layers.LinearRecurrentContainer(node, N, N, bias=True)
    project = nn.Linear(I, N, bias=False)
    round_weights(theirs)
    round_weights(project)
    with torch.no_grad():
        theirs.rc.weight.mul_(2)
        project.weight.mul_(4)
        theirs.rc.bias.fill_(0.25)
    layer = kind(I, N, dynamics=dynamics)
    weight, inputs = theirs.rc.weight.double(), _inputs()
    _copied(layer, weight[:, :N] @ project.weight.double(), weight[:, N:], theirs.rc.bias)
    _same(layer(inputs)[0], torch.stack([theirs(project(x)) for x in inputs]), inputs)


# ------------------------------------------------------------- beside a loop of a published program
def test_yin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their adaptation starts at the threshold, which is a state of ours."""
    monkeypatch.setattr(papers, "b_j0_value", 0.01)
    monkeypatch.setattr(papers, "beta_value", 1.8)
    torch.manual_seed(0)
    theirs = papers.SpikeRNN(I, N).double()
    theirs.set_neuron_state(B)
    layer = ALIF(I, N, dynamics="srnn", tau_mem=theirs.tau_m, tau_adapt=theirs.tau_adp,
                 dtype=torch.float64)
    _copied(layer, theirs.dense.weight, theirs.recurrent.weight,
            theirs.dense.bias + theirs.recurrent.bias)
    x = _inputs(torch.float64)
    want = torch.stack([theirs(x_t)[1] for x_t in x])
    zero = torch.zeros(1, B, N, dtype=torch.float64)
    _same(layer(x, State(zero, zero + 0.01, zero, zero, zero[None]))[0], want, x, 1e-12)
