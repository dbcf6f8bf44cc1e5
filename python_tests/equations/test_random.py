"""Whatever the shape, model, coefficients, delays, state, layout, dtype: the operator computes what
the reference does.

LSNN_RANDOM_CASES sets the number of examples (200).
"""
import os
from collections.abc import Iterable
from dataclasses import replace

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cases import FEW, LAYOUTS, STATE_LEAVES, Case, Problem, build
from compare import assert_all_same, assert_same
from lsnn_ext import functional, reference
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import COEFFICIENTS, MODELS

LEAVES = ("x", "w", "delay_kernel", *STATE_LEAVES, *COEFFICIENTS)
HALF = (torch.bfloat16, torch.float16)


def _tolerance(gradient: torch.Tensor) -> float:
    """Of a gradient, relative to the largest: half precision is rounded to once, at the end."""
    if gradient.dtype in HALF:
        return 2 * torch.finfo(gradient.dtype).eps
    return 1e-11 if gradient.dtype == torch.float64 else 5e-5


def _largest(gradients: Iterable[torch.Tensor]) -> float:
    return max((float(gradient.abs().max()) for gradient in gradients if gradient.numel()),
               default=0.0)


def _exact(problem: Problem, spikes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of the same numbers in float64, if the spikes are the same."""
    leaves = {name: leaf.double() for name, leaf in problem.leaves.items()}
    weights = {name: weight.double() for name, weight in problem.weights.items()}
    r0 = None if problem.r0 is None else problem.r0.double()
    outputs, gradients = replace(problem, leaves=leaves, weights=weights, r0=r0).run(reference.alif)
    assert torch.equal(outputs["spikes"],
                       spikes.double()), "other spikes in float64: nothing can be said"
    return gradients


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Around the words of 32 spikes, the vectors of 8 and 16 numbers and the chunks of 16 steps.
    optional = draw(st.sets(st.sampled_from([name for name in COEFFICIENTS if name not in FEW])))
    return Case(
        name="random",
        dynamics=draw(st.sampled_from(sorted(MODELS))),
        T=draw(st.integers(0, 36) | st.sampled_from([127, 128, 129, 257])),
        B=draw(st.integers(0, 10)),
        N=draw(st.integers(1, 40) | st.sampled_from([63, 64, 65, 100])),
        delay=draw(st.sampled_from(["none", "one", "each", "kernel"])),
        mask=draw(st.sampled_from([False, False, True])),
        refractory=draw(st.integers(0, 6)),
        given=FEW + tuple(name for name in COEFFICIENTS if name in optional),
        per_neuron=draw(st.booleans()),
        state=draw(st.sampled_from(["none", "bits", "real"])),
        surrogate=draw(st.none() | st.sampled_from(sorted(SURROGATES))),
        checkpoint_every=draw(st.none() | st.integers(1, 40)),
        layout=draw(st.sampled_from(LAYOUTS)),
        gradients=draw(st.sampled_from(LAYOUTS)),
        first_r=draw(st.none() | st.integers(0, 7)),
        lengths=draw(st.sampled_from(["none", "none", "falling", "any"])),
        learn=draw(
            st.none() | st.sets(st.sampled_from(LEAVES)).map(lambda names: tuple(sorted(names)))),
        seed=draw(st.integers(0, 2**32 - 1)))


@settings(max_examples=int(os.environ.get("LSNN_RANDOM_CASES", "200")), deadline=None,
          derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(),
       dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_same_as_reference(case: Case, dtype: torch.dtype) -> None:
    problem = build(case, dtype, dyadic=True)
    outputs, gradients = problem.run(functional.alif)
    want_outputs, want_gradients = problem.per_neuron(case.N).run(reference.alif)
    assert_all_same(outputs, want_outputs)
    # half precision may overflow
    assume(all(bool(gradient.isfinite().all()) for gradient in want_gradients.values()))
    # A gradient may be what is left of terms that cancel: those are of the size of the other
    # gradients, and in the gradient of a scalar coefficient of the size of the neurons' shares of
    # it.
    least = 1e-3 * _largest(want_gradients.values())
    exact: dict[str, torch.Tensor] = {}
    for name, want in want_gradients.items():
        scale = _largest([want])
        if want.shape != problem.leaves[name].shape:
            want, scale = want.sum(), float(want.abs().sum())
        try:
            assert_same(name, gradients[name], want, tolerance=_tolerance(want),
                        scale=max(scale, least))
        except AssertionError:
            # The reference rounds too. What is then asked for is to be no further from the truth
            # than it is, or hardly.
            if dtype == torch.float64:
                raise
            exact = exact or _exact(problem, want_outputs["spikes"])
            error, theirs = (float((value.double() - exact[name]).abs().max())
                             for value in (gradients[name], want))
            if not error <= 2 * theirs:
                raise
