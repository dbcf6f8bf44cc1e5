"""Learned constants: without bounds, for all or each neuron, valid after long runs."""
import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from draws import draw
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout
from lsnn_ext.models import MODELS, find_defaults
from lsnn_ext.modules.neuron import RANGES
from lsnn_ext.modules.parametrizations import Clamp, Log, Logit

I, N = 6, 9
STARTS = {"tau_mem": 15.0, "tau_adapt": 120.0, "beta": 1.1, "threshold": 0.02, "alpha": 0.93,
          "rho": 0.98, "sigma": 0.4, "kappa": 0.3, "q": 0.05, "p": 0.02, "eta": 0.1, "width": 1.5,
          "R": 0.02}
FREE = {"tau_mem": Log, "tau_adapt": Log, "threshold": Log, "width": Log, "alpha": Logit,
        "rho": Logit, "sigma": Logit}
OTHER = {"alpha": "tau_mem", "rho": "tau_adapt"}


def _layer(name: str, **options: Any) -> ALIF:
    """Reset by R and scaled by 1, so that all coefficients act."""
    torch.manual_seed(0)
    given = {key: value for key, value in STARTS.items() if key not in OTHER or key == name}
    if name in OTHER:
        del given[OTHER[name]]
    return ALIF(I, N, dynamics="eprop_elig", **{"learn": (name,), **given, **options})


def _stored(layer: nn.Module, name: str) -> nn.Parameter:
    found = parametrize.is_parametrized(layer, f"{name}_l0")
    return layer.get_parameter(f"parametrizations.{name}_l0.original" if found else f"{name}_l0")


@pytest.mark.filterwarnings("ignore:beta")
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("name", STARTS)
def test_learned_without_bounds(name: str, each: bool) -> None:
    """The gradient is that of the number by the chain rule; no stored number is invalid."""
    layer, plain = _layer(name, per_neuron=each), _layer(name, learn={name: "plain"},
                                                         per_neuron=each)
    value = getattr(layer, f"{name}_l0")
    assert value.shape == ((N,) if each else ())
    torch.testing.assert_close(value.detach(), torch.full_like(value, STARTS[name]))
    assert name not in FREE or isinstance(layer.parametrizations[f"{name}_l0"][0], FREE[name])
    plain.load_state_dict(layer.state_dict())
    (one,) = torch.autograd.grad(layer(draw(30, 2, I))[0].square().mean(), _stored(layer, name))
    (other,) = torch.autograd.grad(plain(draw(30, 2, I))[0].square().mean(), _stored(plain, name))
    slope = torch.ones(())
    if name in FREE:
        slope = value.detach() * (1 - value.detach() if FREE[name] is Logit else 1)
    assert other.any()
    torch.testing.assert_close(one, other * slope, rtol=1e-4, atol=1e-7)
    if name in FREE:
        for far in (-30.0, 30.0):
            with torch.no_grad():
                _stored(layer, name).fill_(far)
            low, high = (float(end) for end in getattr(layer, f"{name}_l0").detach().aminmax())
            assert RANGES[name].contains(low, high)


@pytest.mark.parametrize(("names", "each"), [(True, {"tau_mem", "beta"}), ("beta", {"beta"}),
                                             (["tau_mem"], {"tau_mem"}), (False, set())],
                         ids=["all", "a name", "a list", "none"])
def test_per_neuron(names: Any, each: set[str]) -> None:
    layer = ALIF(I, N, learn=("tau_mem", "beta"), per_neuron=names)
    for name in ("tau_mem", "beta", "threshold"):
        assert getattr(layer, f"{name}_l0").shape == ((N,) if name in each else ())
    layer(draw(30, 2, I))[0].sum().backward()
    if each:
        name = sorted(each)[0]
        assert len(set(_stored(layer, name).grad.tolist())) > 1  # type: ignore[union-attr]


def test_clamps() -> None:
    """The gradient is 0 outside, as of torch.clamp; the makers' own by a word."""
    layer = ALIF(I, N, learn={"tau_mem": Clamp(5.0, 25.0), "threshold": "plain"})
    with torch.no_grad():
        _stored(layer, "tau_mem").fill_(40.0)
    assert layer.tau_mem_l0.item() == 25.0
    layer(draw(30, 2, I))[0].sum().backward()
    assert _stored(layer, "tau_mem").grad == 0.0
    given = {"alpha": 0.9, "rho": 0.98, "p": 0.5, "q": 1.5}
    radlif = ALIF(I, N, dynamics="adlif", learn=dict.fromkeys(given, "clamp"), **given, dt=2.0)
    ends = {name: radlif.parametrizations[f"{name}_l0"][0].ends for name in given}
    assert ends == {"alpha": (math.exp(-1 / 5), math.exp(-1 / 25)), "p": (-1.0, 1.0),
                    "rho": (math.exp(-1 / 30), math.exp(-1 / 120)), "q": (0.0, 2.0)}
    taus = ALIF(I, N, dynamics="adlif", learn={"tau_mem": "clamp"}, dt=2.0, p=0.5, q=1.0,
                tau_mem=20.0, tau_adapt=100.0)
    assert taus.parametrizations.tau_mem_l0[0].ends == (10.0, 50.0)  # type: ignore[union-attr,index]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"learn": {"tau_mem": "exp"}}, ValueError,
     "learn: expected 'log', 'clamp', 'plain' or a parametrization for tau_mem, got 'exp'"),
    ({"learn": {"tau_mem": "logit"}}, ValueError, "learn: expected 'log'.*, got 'logit'"),
    ({"learn": {"beta": "log"}}, ValueError,
     "learn: expected 'clamp', 'plain' or .* for beta, got 'log'"),
    ({"learn": {"tau_mem": "clamp"}}, ValueError,
     "learn: expected a constant that the original 'lsnn' clamps .none.*, got 'tau_mem'; .*Clamp"),
    ({"learn": {"tau_mem": nn.Tanh()}}, TypeError, "learn: .*right_inverse for tau_mem, got Tanh"),
    ({"learn": ("sigma",)}, ValueError, "learn: .*got 'sigma'; .*sigma="),
    ({"learn": "alpha", "alpha": 1.0}, ValueError,
     "alpha: expected initial values between 0 and 1, .*got 1; .*plain"),
    ({"learn": {"tau_mem": Clamp(5.0, 25.0)}, "tau_mem": 30.0}, ValueError,
     "tau_mem: expected initial values .* 5 to 25, got 30"),
    ({"learn": "tau_mem", "per_neuron": ("beta",)}, ValueError,
     "per_neuron: expected names among those of learn, tau_mem, got 'beta'"),
    ({"learn": "tau_mem", "per_neuron": 3}, TypeError,
     "per_neuron: expected True, False or names")]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        ALIF(I, N, **options)


def test_refused_of_a_lif_and_of_clamps() -> None:
    with pytest.raises(ValueError, match="^learn: .*got 'beta'; a LIF does not adapt"):
        LIF(I, N, learn="beta")
    with pytest.raises(ValueError, match="^high: expected a number > low = 2"):
        Clamp(2.0, 1.0)
    with pytest.raises(TypeError, match="^low: expected a number, got '1'"):
        Clamp("1", 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("copied", [
    copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)),
    lambda layer: copy.deepcopy(copy.deepcopy(layer))], ids=["deepcopy", "pickle", "twice"])
def test_copies(copied: Callable[[LSNN], LSNN]) -> None:
    """A copy is bitwise identical, learns, and loses a parametrization by itself."""
    layer = LSNN(I, 4, 5, 2, num_layers=2, learn=("tau_mem", "threshold", "beta"), per_neuron=True)
    x = draw(20, 3, I)
    with torch.no_grad():  # what is kept of a layer is not copied
        layer.step(x[0])
    other = copied(layer)
    assert torch.equal(layer(x)[0], other(x)[0])
    other(x)[0].sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    assert all(p.grad is not None for p in other.parameters())
    parametrize.remove_parametrizations(other.neurons, "tau_mem_l0")
    assert parametrize.is_parametrized(layer.neurons, "tau_mem_l0")
    assert torch.equal(layer(x)[0], other(x)[0])


# --------------------------------------------------------------------------- hundreds of iterations
T, B, C = 16, 8, 4
# Whose threshold is detached, and whose reset does not see it: no gradient comes to it.
UNTAUGHT = {"sinabs_zero": ("tau_adapt", "beta", "threshold")}


def _given(dynamics: str) -> dict[str, float]:
    """A number for each constant that the model has no default for, and an adaptation to learn."""
    own = find_defaults(dynamics, "ALIF")
    given = {name: STARTS[name] for name, value in own.items() if isinstance(value, str)}
    given |= {} if "threshold" not in given else {"threshold": 1.0}
    return given | ({"rho": 0.9, "beta": 0.5} if own.get("rho") == 0.0 else {})


# All models at the larger rate, which leads further; every third one at a smaller rate too.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dynamics", "rate"), [*((name, 0.01) for name in MODELS),
                                                *((name, 0.002) for name in list(MODELS)[::3])])
def test_five_hundred_iterations(dynamics: str, rate: float) -> None:
    """Each neuron learns its own constants; nothing leaves its range."""
    torch.manual_seed(0)
    given = _given(dynamics)
    learn = STARTS.keys() & {*find_defaults(dynamics, "ALIF"), *given}
    layer = ALIF(I, N, dynamics=dynamics, learn=sorted(learn), per_neuron=True, **given)
    readout = LeakyReadout(N, C)
    with torch.no_grad():
        layer.weight_ih_l0.mul_(min(float(layer.threshold_l0[0]) * 30, 10.0))
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], rate)
    random = torch.Generator().manual_seed(1)
    patterns, losses = torch.rand(C, T, I, generator=random), []
    for _ in range(500):
        y = torch.randint(0, C, (B,), generator=random)
        x = (torch.rand(T, B, I, generator=random) < patterns[y].transpose(0, 1)).float()
        loss = nn.functional.cross_entropy(readout(layer(x)[0])[0].mean(0) * 10, y)
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in layer.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(float(loss.detach()))
    for name in layer.learn:
        low, high = (float(end) for end in getattr(layer, f"{name}_l0").detach().aminmax())
        assert RANGES[name].contains(low, high), name
        assert math.isclose(low, high) == (name in UNTAUGHT.get(dynamics, ())), name
    assert sum(losses[-100:]) < sum(losses[:100])
