"""The layers against a plain loop over the reference; arguments, defaults and repr."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from compare import assert_same, weighted_gradients
from draws import draw_spikes
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, reference
from lsnn_ext.models import find_defaults
from lsnn_ext.modules.parametrizations import Clamp
from module_kinds import round_weights

T, B, I, N = 40, 3, 6, 8


def exact(module: nn.Module) -> Any:
    return round_weights(module, 1024)


def by_reference(layer: ALIF | LIF, x: Tensor) -> Any:
    """A layer as the equations say, x (T, B, I)."""
    p = dict(layer.named_parameters()) | dict(layer.named_buffers())
    current = x @ p["weight_ih_l0"].t() + (p["bias_ih_l0"] if layer.bias else 0)
    k = {"alpha": torch.exp(-layer.dt / p["tau_mem_l0"]), "theta": p["threshold_l0"]}
    if isinstance(layer, ALIF):
        k |= {"rho": torch.exp(-layer.dt / p["tau_adapt_l0"]), "beta": p["beta_l0"]}
    w_rec = p["weight_hh_l0"].t().clone()
    if not layer.autapses:
        w_rec = w_rec - torch.diag(w_rec.diagonal())
    return reference.alif(current, w_rec, **k, refractory=layer.refractory, delay=layer.delay,
                          dynamics=layer.dynamics, surrogate=layer.surrogate,
                          dampening=layer.dampening, trace=True)


OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"refractory": 3, "delay": 2}, {"dynamics": "srnn", "threshold": 0.05},
    {"autapses": True, "bias": False}, {"dt": 2.0, "dampening": 0.7})
EACH = {"tau_mem": torch.linspace(10, 30, N), "tau_adapt": torch.linspace(50, 500, N),
        "beta": torch.linspace(0, 2, N), "threshold": torch.full((N,), 0.02),
        "delay": torch.randint(0, 3, (N, N), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(("kind", "options"), [
    *((kind, options) for kind in (ALIF, LIF) for options in OPTIONS), (ALIF, EACH)])
def test_against_reference(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    if "dynamics" in options:  # the constants of the paper with another model
        options = {**find_defaults("lsnn", kind._kind), **options}
    layer, x = exact(kind(I, N, **options)), draw_spikes(T, B, I, rate=0.3)
    out, state, traces = layer(x, trace=True)
    want, want_state, want_traces = by_reference(layer, x)
    assert 0 < out.mean() < 1
    assert torch.equal(out, want)
    torch.testing.assert_close(tuple(leaf[0] for leaf in state), tuple(want_state))
    torch.testing.assert_close(tuple(traces), tuple(want_traces))
    gradients = (weighted_gradients([spikes], layer.parameters()) for spikes in (out, want))
    assert_same("gradients", *gradients, tolerance=2e-4)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = ALIF(100, 200)
    assert abs(float(layer.weight_ih_l0.std()) * 10 - 1) < 0.05
    assert abs(float(layer.weight_hh_l0.std()) * 200**0.5 - 1) < 0.05
    assert layer.bias_ih_l0.abs().sum() == 0


@pytest.mark.parametrize(("make", "shown"), [
    (lambda: ALIF(I, N), "ALIF(6, 8)"), (lambda: LIF(I, N), "LIF(6, 8)"),
    (lambda: LIF(I, N, **{**find_defaults("lsnn", "LIF"), "dynamics": "sj_soft"}),
     "LIF(6, 8, dynamics='sj_soft', tau_mem=20.0, threshold=0.01, refractory=5, autapses=False)"),
    (lambda: ALIF(I, N, 2, tau_mem=15.0, beta=torch.ones(N), learn=("beta",), batch_first=True),
     "ALIF(6, 8, num_layers=2, batch_first=True, tau_mem=15.0, beta=<(8,)>, learn=('beta',))"),
    (lambda: ALIF(I, N, 2, learn=("tau_mem", "beta")), "ALIF(6, 8, num_layers=2, "
                                                       "learn=('tau_mem', 'beta'))"),
    (lambda: LIF(I, N, learn="threshold", per_neuron=True),
     "LIF(6, 8, threshold=<(8,)>, learn=('threshold',))"),
    (lambda: ALIF(I, N, learn={"tau_mem": "plain", "threshold": "log", "beta": Clamp(1, 2)}),
     "ALIF(6, 8, learn={'tau_mem': 'plain', 'threshold': 'log', 'beta': Clamp(1, 2)})"),
    (lambda: LeakyReadout(N, 3, learn="tau"), "LeakyReadout(8, 3, tau=20.0, learn=('tau',))"),
    (lambda: LeakyReadout(N, 3, learn="tau", per_neuron=True, batch_first=True),
     "LeakyReadout(8, 3, tau=<(3,)>, learn=('tau',), batch_first=True)"),
    (lambda: LeakyReadout(N, 3, learn="tau", device="meta"),
     "LeakyReadout(8, 3, tau=<()>, learn=('tau',))"),
    (lambda: LeakyReadout(N, 3, 7.0, tau_syn=3.0), "LeakyReadout(8, 3, tau=7.0, tau_syn=3.0)"),
    (lambda: LeakyReadout(N, 3, tau_syn=5.0, learn=("tau_syn",)),
     "LeakyReadout(8, 3, tau=20.0, tau_syn=5.0, learn=('tau_syn',))")])
def test_repr_of_a_layer_is_one_line(make: Callable[[], nn.Module], shown: str) -> None:
    assert repr(make()) == repr(copy.deepcopy(make())) == shown


def test_repr_of_networks_and_others_parametrizations() -> None:
    """One line for each part; what torch has parametrized is shown as torch shows it."""
    net = LSNN(I, 4, 4, 2, learn=("tau_mem", "tau_out"), per_neuron=True)
    assert len(repr(net).splitlines()) == 4
    layer = ALIF(I, N, learn="tau_mem")
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    assert "_WeightNorm()" in repr(layer) and "(0): Log()" in repr(layer)
    with torch.device("meta"):
        assert "spread=<()>" in repr(lsnn_ext.LearnedDelay(I, N, 2))


@pytest.mark.parametrize("kind", ["ALIF", "LIF", "LSNN"])
@pytest.mark.parametrize("form", ["spikes", "normal"])
def test_defaults_live(kind: str, form: str) -> None:
    """A fresh layer fires in 1 to 15 % of all steps."""
    torch.manual_seed(0)
    x = draw_spikes(300, 4, 80, rate=0.05) if form == "spikes" else torch.randn(300, 4, 80)
    with torch.no_grad():
        if kind == "LSNN":
            rate = LSNN(80, 120, 100, 10)(x, return_spikes=True)[2].mean()
        else:
            rate = {"ALIF": ALIF, "LIF": LIF}[kind](80, 220)(x)[0].mean()
    assert 0.01 <= rate <= 0.15
