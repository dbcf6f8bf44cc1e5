"""The operator computes what the reference computes: every model, shape, surrogate, delay and state
of the table.

Weights and currents are dyadic, so the sums of (1) are exact in any order; all else is written in
one order of operations. Hence spikes and values agree in every bit, and gradients to rounding.
"""
from dataclasses import replace
from typing import Any

import pytest
import torch

from cases import TABLE, Case, build
from compare import assert_all_same, assert_same, assert_same_runs
from lsnn_ext import _ops, functional, reference
from lsnn_ext.models import MODELS
from operator_calls import needs_compiled

# Of gradients, relative to the largest of each.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5}
BUSY = Case("busy", T=40, delay="each", refractory=2, state="real")
OUTPUTS = ("spikes", "trace.v", "trace.a", "trace.threshold", "state.v", "state.a", "state.i",
           "state.z")


def _assert_alive(case: Case, outputs: dict[str, torch.Tensor],
                  gradients: dict[str, torch.Tensor]) -> None:
    """Spikes come, and every leaf that can learn gets a gradient."""
    assert 0.05 < float(outputs["spikes"].mean()) < 0.6
    model = MODELS[case.dynamics]
    unused = {"R"} if model.reset == "A" else set()
    if model.drive == "cross" and "rec" in model.detach:
        unused.add("z0")  # detached in (1) and (6), and the drive is computed anew from v'
    for name, gradient in gradients.items():
        assert bool(gradient.any()) != (name in unused), f"gradient of {name}"
    assert all(float(gradient.abs().max()) < 1e5
               for gradient in gradients.values()), "a gradient explodes"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_same_as_reference(case: Case, dtype: torch.dtype) -> None:
    problem = build(case, dtype, dyadic=True)
    want = problem.run(reference.alif)
    if dtype == torch.float64 and case.T >= 12 and case.B:
        _assert_alive(case, *want)
    assert_same_runs(problem.run(functional.alif), want, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dynamics", MODELS)
def test_gradient_from_one_output(dynamics: str, output: str) -> None:
    """A gradient that does not arrive is not taken for one that does."""
    problem = build(replace(BUSY, dynamics=dynamics), dyadic=True)
    _, gradients = problem.run(functional.alif, weighted=[output])
    _, want = problem.run(reference.alif, weighted=[output])
    assert_all_same(gradients, want, tolerance=1e-11)


@pytest.mark.parametrize("dynamics", MODELS)
def test_smooth_spikes(dynamics: str) -> None:
    """Real-valued spikes are summed in another order, so values agree to rounding here."""
    problem = build(replace(BUSY, dynamics=dynamics, unit_width=True))
    assert_same_runs(problem.run(functional.alif, smooth=True),
                     problem.run(reference.alif, smooth=True), tolerance=1e-10, values=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dynamics", ["lsnn", "srnn", "norse_lsnn", "sinabs_sub", "se_adlif"])
def test_half_precision(dynamics: str, dtype: torch.dtype) -> None:
    """State in float32: values are bitwise identical, as the inputs are exact."""
    problem = build(replace(BUSY, dynamics=dynamics), dtype, dyadic=True)
    outputs, gradients = problem.run(functional.alif)
    want_outputs, want_gradients = problem.run(reference.alif)
    assert outputs["spikes"].dtype == dtype and outputs["state.v"].dtype == torch.float32
    assert_all_same(outputs, want_outputs)
    for name, want in want_gradients.items():
        # The gradients of current and weights are rounded to half precision once, at the end.
        tolerance = 2 * torch.finfo(dtype).eps if want.dtype == dtype else 5e-5
        assert_same(name, gradients[name], want, tolerance=tolerance)


@pytest.mark.parametrize("dampening", [0.0, 0.3, 2.0])
def test_dampening(dampening: float) -> None:
    problem = build(BUSY, dyadic=True)
    problem.fixed["dampening"] = dampening
    assert_same_runs(problem.run(functional.alif), problem.run(reference.alif), tolerance=1e-11)


@needs_compiled
@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", [
    replace(BUSY, N=220, B=9), replace(BUSY, T=150, B=17, N=33), Case("hard", dynamics="sj_hard",
                                                                      T=40, B=2, N=64),
    Case("paper", T=40, B=9, N=220, given=("alpha", "theta", "rho", "beta"), learn=("x", "w")),
    Case("kernel", T=70, B=3, N=129, delay="kernel", mask=True, state="bits")],
    ids=["large", "long", "hard", "paper", "kernel"])
def test_same_bits_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    """Threads share out the work, never the order of a sum; torch's, in the reference, do."""
    problem = build(case, dtype)
    if case.mask and not _ops.has_cpu_kernels(problem.leaves["x"]):
        pytest.skip("the reference computes a mask on a GPU, by products of torch")
    want = problem.run(functional.alif)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_same_runs(problem.run(functional.alif), want)


@pytest.mark.parametrize("dynamics", MODELS)
def test_threshold_met_exactly(dynamics: str) -> None:
    """Equation (7) with m = 0: only a model that tests >= spikes; v' = A is no crossing."""
    half, zero = torch.full((1, 1), 0.5), torch.zeros(1, 1)
    # alpha = 0 and kappa = 1 make y the current: the new u, the old v' and A are all one half.
    state = reference.State(half, zero, zero, zero, zero[None])
    for alif in (functional.alif, reference.alif):
        spikes, _, traces = alif(half[None], zero, alpha=0.0, kappa=1.0, theta=0.5, beta=0.0, q=1.0,
                                 eta=0.0, dynamics=dynamics, state=state, trace=True)
        assert float(spikes) == float(MODELS[dynamics].ge)
        assert float(traces.a) == 0.0


# Written out: the models whose test of (7) is >=.
GE = {"sinabs_sub", "sinabs_zero", "sj_soft", "sj_hard", "sj_soft_det", "sj_hard_det"}


def _tied(dynamics: str, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor]:
    """The arguments of alif for a sequence whose currents make n = A of (7) in about a third of all
    tests, and where; with drive above half of the neurons get v' = theta of (3) instead. All is
    dyadic, so that ties are exact."""
    model, generator, zero = (
        MODELS[dynamics], torch.Generator().manual_seed(3), torch.zeros(3, 33, dtype=dtype))
    w = torch.randint(-8, 9, (33, 33), generator=generator).to(dtype) / 32
    fixed: dict[str, Any] = {"w_rec": w, "dynamics": dynamics, "alpha": 0.5, "kappa": 1.0,
                             "theta": 0.5, "rho": 0.5, "beta": 0.5, "q": 0.5}
    state, currents, ties = reference.State(zero, zero, zero, zero, zero[None]), [], []
    over_theta = (
        torch.arange(33) % 2 > 0 if model.drive == "above" else torch.zeros(33, dtype=torch.bool))

    def gap(x: torch.Tensor) -> torch.Tensor:
        """n - A, or v - theta, of this step; where the old v is tested, of the next one."""
        after: Any = (
            state if model.test == "new" else reference.alif(x[None], state=state, **fixed)[1])
        held = after._replace(r=torch.ones_like(zero))  # without a spike u of (6) is v of (8)
        traces: Any = reference.alif(x[None], state=held, trace=True, **fixed)[2]
        n = traces.v[0] if model.test == "new" else after.v
        return n - torch.where(over_theta, torch.full_like(n, 0.5), traces.threshold[0])

    for _ in range(10):
        slope = gap(zero + 1) - gap(zero)
        chosen = (torch.rand(3, 33, generator=generator) < 0.35) & (slope != 0)
        random = torch.randint(-4, 9, (3, 33), generator=generator).to(dtype) / 4
        x = torch.where(chosen, -gap(zero) / torch.where(chosen, slope, slope + 1), random)
        currents.append(x)
        ties.append((gap(x) == 0) & ~over_theta)
        state = reference.alif(x[None], state=state, **fixed)[1]
    if model.test == "old":
        ties = [torch.zeros_like(ties[0]), *ties[:-1]]
    return fixed | {"current": torch.stack(currents)}, torch.stack(ties)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dynamics", MODELS)
def test_ties(dynamics: str, dtype: torch.dtype) -> None:
    """Thresholds met exactly, in a sequence, with and without learned coefficients."""
    arguments, ties = _tied(dynamics, dtype)
    assert 0.1 < float(ties.double().mean()) < 0.6
    weights = torch.linspace(-1, 2, ties.numel(), dtype=dtype).view(ties.shape)
    learn = ("current", "w_rec", "alpha", "theta", "rho", "beta",
             "q")[: 7 if dtype == torch.float64 else 2]
    results = []
    for alif in (reference.alif, functional.alif):
        leaves = {name: torch.as_tensor(arguments[name], dtype=dtype).clone().requires_grad_()
                  for name in learn}
        given: dict[str, Any] = {**arguments, "w_rec": arguments["w_rec"], **leaves}
        spikes, _, traces = alif(**given, trace=True)
        assert (spikes[ties] == float(dynamics in GE)).all()
        loss = ((spikes + traces.v + traces.a + traces.threshold) * weights).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        results.append(({"spikes": spikes, **traces._asdict()},
                        dict(zip(learn, gradients, strict=True))))
    want, got = results
    assert_same_runs(got, want, tolerance=TOLERANCE[dtype])


def test_same_without_gradient() -> None:
    """Where nothing is saved for a backward pass the outputs are the same."""
    problem = build(replace(BUSY, N=33), torch.float32)
    want, _ = problem.run(functional.alif)
    with torch.no_grad():
        got = problem.outputs(functional.alif)
    assert not any(value.requires_grad for value in got.values())
    assert_all_same(got, want)


def test_same_without_traces() -> None:
    problem = build(replace(BUSY, N=33), torch.float32)
    want, state, _ = functional.alif(**problem.arguments(), trace=True)
    spikes, last = functional.alif(**problem.arguments())
    assert_same("spikes", spikes, want)
    assert_all_same(last._asdict(), state._asdict())


def test_arguments_stay_as_they_were() -> None:
    problem = build(replace(BUSY, N=33), torch.float32)
    before = {name: leaf.clone() for name, leaf in problem.leaves.items()}
    problem.run(functional.alif)
    assert_all_same(problem.leaves, before)


@pytest.mark.parametrize("dynamics", MODELS)
def test_model_names_its_own_constants(dynamics: str) -> None:
    """Surrogate, dampening and width that are left out are those of the model."""
    model = MODELS[dynamics]
    problem = build(Case("own", dynamics, T=20, given=("alpha", "theta", "rho", "beta")),
                    dyadic=True)
    _, gradients = problem.run(functional.alif)
    problem.fixed |= {"surrogate": model.surrogate, "dampening": model.dampening}
    if model.width is not None:
        problem.fixed["width"] = model.width
    _, named = problem.run(functional.alif)
    assert_all_same(gradients, named)


@pytest.mark.parametrize("name", ["sigma", "p", "eta", "beta", "rho"])
def test_gradient_of_a_coefficient_that_is_zero(name: str) -> None:
    """Zeros take a shorter way through the kernels; their gradient is not 0."""
    problem = build(replace(BUSY, T=150, learn=("x", name)), dyadic=True)
    problem.leaves[name] = torch.zeros_like(problem.leaves[name])
    _, gradients = problem.run(functional.alif)
    _, want = problem.run(reference.alif)
    assert_all_same(gradients, want, tolerance=1e-11)
