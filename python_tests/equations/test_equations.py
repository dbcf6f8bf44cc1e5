"""What docs/equations.md states, of the reference and of the operator."""
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case, build
from compare import assert_all_same, assert_same
from lsnn_ext import State, functional, reference
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import MODELS

FORMS: dict[str, Callable[..., Any]] = {"reference": reference.alif, "operator": functional.alif}
BUSY = Case("busy", T=20, delay="each", refractory=2, state="real")
HEIGHT = 0.75  # dampening

pytestmark = pytest.mark.parametrize("form", FORMS)


def _one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def _state(v: float, a: float, r: float) -> State:
    return State(_one(v), _one(a), _one(0.0), _one(r), _one(0.0)[None])


def _step(form: str, dynamics: str, state: State, **more: Any) -> tuple[Tensor, State, Any]:
    """One neuron, one step without a current; theta is 1/2, beta 1/2, rho 1/2, q 1/4."""
    arguments: dict[str, Any] = {
        "alpha": 0.5, "kappa": 1.0, "theta": 0.5, "rho": 0.5, "beta": 0.5, "q": 0.25, "width": 2.0,
        "R": 0.5, "refractory": 3, "dampening": HEIGHT, "trace": True, "dynamics": dynamics,
        "state": state}
    return FORMS[form](_one(0.0)[None], _one(0.0), **arguments | more)


# ------------------------------------------------------------------------------------ state, traces
@pytest.mark.parametrize("delay", [0, 2])
def test_past_spikes_have_the_newest_first(form: str, delay: int) -> None:
    """z[d] is the spike of step t-1-d: a delay of d makes it act in the first step."""
    for d in range(3):
        zero, past = (
            torch.zeros(1, 2, dtype=torch.float64), torch.zeros(3, 1, 2, dtype=torch.float64))
        past[d, 0, 0] = 1
        _, state = FORMS[form](zero[None], torch.ones(2, 2, dtype=torch.float64), alpha=0.0,
                               kappa=1.0, theta=9.0, dynamics="srnn", delay=delay,
                               state=State(zero, zero, zero, zero, past))
        assert bool(state.i.any()) == (d == delay)


@pytest.mark.parametrize("dynamics", MODELS)
def test_traces_end_in_the_state(form: str, dynamics: str) -> None:
    """Traces hold v of (8), a of (3), and the A of (4) of their own test."""
    problem = build(replace(BUSY, dynamics=dynamics))
    outputs = problem.outputs(FORMS[form])
    for name in ("v", "a"):
        assert_same(name, outputs[f"trace.{name}"][-1], outputs[f"state.{name}"])
    k = problem.leaves
    assert_same("threshold", outputs["trace.threshold"],
                k["theta"] + k["beta"] * outputs["trace.a"])


@pytest.mark.parametrize(("dynamics", "v"), [("sj_soft", 0.5), ("norse_lif", 0.25), ("srnn", 1.0)])
def test_trace_of_the_membrane_in_a_step_that_spikes(form: str, dynamics: str, v: float) -> None:
    """y is 1. A reset at once is in v, R being 1/2 or 1/4; that of the next step is not."""
    more = {"R": 0.25} if dynamics == "norse_lif" else {}
    spikes, state, traces = _step(form, dynamics, _state(2.0, 0.0, 0.0), **more)
    assert float(spikes) == 1
    assert float(traces.v) == float(state.v) == v


# ------------------------------------------------------------------------------------------- drives
@pytest.mark.parametrize("r", [0.0, 2.0])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("v", "over"), [(0.75, 0.0), (1.0, 1.0)])
def test_cross_is_a_spike_that_knows_no_refractory_steps(form: str, v: float, over: float,
                                                         smooth: bool, r: float) -> None:
    """v' is tested against A' = 1/2 + 1/2 a' with a' = 3/4, as in (7), whatever r' is."""
    drive = HEIGHT * float(
        SURROGATES["triangle"].integral(_one((v - 0.875) / 2))) if smooth else over
    state = _state(v, 0.75, r)
    state.v.requires_grad_()
    _, _, traces = _step(form, "eprop_timit", state, smooth=smooth)
    assert traces.a.item() == pytest.approx(0.5 * 0.75 + 0.25 * drive)
    (slope,) = torch.autograd.grad(traces.a.sum(), state.v)
    assert float(slope) == pytest.approx(0.25 * HEIGHT * (1 - abs(v - 0.875) / 2) / 2)


@pytest.mark.parametrize("r", [0.0, 2.0])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("v", "over"), [(0.5, 0.0), (0.75, 1.0)])
def test_above_is_a_bare_test(form: str, v: float, over: float, smooth: bool, r: float) -> None:
    """v' is tested against theta = 1/2, not A' = 7/8: 0 or 1, also where spikes are smooth."""
    state = _state(v, 0.75, r)
    state.v.requires_grad_()
    _, last, traces = _step(form, "snntorch_sub_now", state, smooth=smooth)
    assert traces.a.item() == 0.5 * 0.75 + 0.25 * over
    (slope,) = torch.autograd.grad(traces.a.sum() + 0 * last.v.sum(), state.v)
    assert float(slope) == 0


@pytest.mark.parametrize("smooth", [False, True])
def test_refractory_steps_silence_smooth_spikes_too(form: str, smooth: bool) -> None:
    spikes, last, _ = _step(form, "srnn", _state(9.0, 0.0, 2.0), smooth=smooth)
    assert float(spikes) == 0 and float(last.r) == 1
    spikes, last, _ = _step(form, "srnn", _state(9.0, 0.0, 0.0), smooth=smooth)
    assert float(spikes) > 0 and float(last.r) == 3


# ---------------------------------------------------------------------------------------- gradients
def _gradients(form: str, dynamics: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    problem = build(replace(BUSY, dynamics=dynamics, given=(), learn=()))
    problem.leaves |= given
    problem.learn = tuple(given)
    return problem.run(FORMS[form])[1]


@pytest.mark.parametrize("dynamics", MODELS)
def test_gradients_go_through_defaults(form: str, dynamics: str) -> None:
    """What is left out gets its gradient through alpha, rho and theta."""
    model, random = MODELS[dynamics], torch.Generator().manual_seed(1)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(6, generator=random, dtype=torch.float64)

    given = {"alpha": drawn(0.6, 0.9), "rho": drawn(0.7, 0.9), "theta": drawn(0.3, 0.5)}
    # name of what is left out: whose gradient its own is added to, and with which factor
    follows = {
        "kappa": ("alpha", -1) if model.kappa == "1-alpha" else None,
        "q": ("rho", -1) if model.q == "1-rho" else None,
        "beta": ("theta", 1) if model.beta == "theta" else None,
        "width": ("theta", 1) if model.width is None else None,
        "R": {"theta": ("theta", 1), "alpha": ("alpha", 1)}.get(model.R)}
    more = {} if model.beta == "theta" else {"beta": drawn(0.2, 0.5)}
    all_given = reference.complete_coefficients(dynamics, **given, **more)
    named = {name: torch.as_tensor(all_given[name]) for name, rule in follows.items()
             if rule is not None}
    got = _gradients(form, dynamics, given | more)
    want = _gradients(form, dynamics, given | more | named)
    for name in named:
        source, factor = follows[name]  # type: ignore[misc]
        part = want.pop(name)
        assert bool(part.any()), name
        want[source] = want[source] + factor * part
    assert_all_same(got, want, tolerance=1e-12)


def test_no_gain_where_its_gradient_is_asked_for(form: str) -> None:
    """With alpha = 1 a default kappa is 0, by which the operator would divide."""
    alpha, one = torch.ones(1, dtype=torch.float64, requires_grad=True), _one(1.0)[None]
    _, state = FORMS[form](one, _one(0.0), alpha=alpha, theta=0.5)
    if form == "operator":
        with pytest.raises(RuntimeError, match="kappa: expected a number other than 0"):
            state.v.sum().backward()
    else:
        state.v.sum().backward()
    _, state = FORMS[form](one, _one(0.0), alpha=alpha, theta=0.5, kappa=1.0)
    state.v.sum().backward()


@pytest.mark.parametrize("dynamics", ["sinabs_sub", "sinabs_zero"])
def test_a_detached_threshold_is_detached_in_the_scale_too(form: str, dynamics: str) -> None:
    """A gets no gradient through the test of (7), nor through s = width A."""
    problem = build(replace(BUSY, dynamics=dynamics, learn=("theta", "beta", "width", "x")))
    _, gradients = problem.run(FORMS[form], weighted=["spikes"])
    assert bool(gradients["width"].any() and gradients["x"].any())
    through_reset = dynamics == "sinabs_sub"
    assert bool(gradients["theta"].any()) == bool(gradients["beta"].any()) == through_reset


@pytest.mark.parametrize(("m", "passes"), [
    (2.55, True), (9.0, True), (10.5, True), (10.6, False), (40.0, False)])
def test_cutoff_is_about_the_size_of_psi(form: str, m: float, passes: bool) -> None:
    """multi_gaussian is 0 at 2.54 and negative beyond; the size of its valley falls to 1 % of the
    height of its hill at 10.54. There it ends, and nowhere further in."""
    psi = SURROGATES["multi_gaussian"].psi
    assert float(psi(_one(m))) < 0
    assert (float(psi(_one(m)).abs()) < 0.01 * float(psi(_one(0.0)))) == (m == 2.55 or not passes)
    for sign in (-1, 1):
        current = (sign * _one(2 * m) + 0.5)[None].requires_grad_()  # theta is 1/2, width 2
        spikes, *_ = FORMS[form](current, None, alpha=0.5, kappa=1.0, theta=0.5, width=2.0,
                                 dampening=HEIGHT, dynamics="srnn", surrogate_cutoff=0.01)
        (slope,) = torch.autograd.grad(spikes.sum(), current)
        want = HEIGHT / 2 * float(psi(_one(m))) if passes else 0.0
        assert float(slope) == pytest.approx(want, rel=1e-9, abs=1e-15)
