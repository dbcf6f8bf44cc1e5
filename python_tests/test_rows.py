"""The operator computes what the reference computes: every row, shape, surrogate, delay and state of the table.

Weights and currents are dyadic, so the sums of (1) are exact in any order; all else is written in one order of
operations.  Hence spikes and values agree in every bit, and gradients to rounding.
"""
import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from cases import TABLE, Case, build
from compare import assert_all_same, assert_same
from lsnn_ext import functional, reference
from lsnn_ext.reference import ROWS

# Of gradients, relative to the largest of each.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5}
# The reference sums its gradients as torch pleases: what is promised of bits and threads is asked of compiled code.
needs_compiled = pytest.mark.skipif(importlib.util.find_spec("lsnn_ext._C") is None,
                                    reason="the compiled part of lsnn_ext is not built")
BUSY = Case("busy", T=40, delay="each", refractory=2, state="real")
OUTPUTS = ("spikes", "trace.v", "trace.a", "trace.threshold", "state.v", "state.a", "state.i", "state.z")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_same_as_reference(case: Case, dtype: torch.dtype, device: str) -> None:
    problem = build(case, dtype, device, dyadic=True)
    outputs, gradients = problem.run(functional.alif)
    want_outputs, want_gradients = problem.run(reference.alif)
    assert_all_same(outputs, want_outputs)
    assert_all_same(gradients, want_gradients, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dynamics", ROWS)
def test_gradient_from_one_output(dynamics: str, output: str, device: str) -> None:
    """A loss of one output alone: no gradient that does not arrive may be taken for one that does."""
    problem = build(replace(BUSY, dynamics=dynamics), device=device, dyadic=True)
    _, gradients = problem.run(functional.alif, weighted=[output])
    _, want = problem.run(reference.alif, weighted=[output])
    assert_all_same(gradients, want, tolerance=1e-11)


@pytest.mark.parametrize("dynamics", ROWS)
def test_smooth_spikes(dynamics: str, device: str) -> None:
    """Real-valued spikes are summed in another order, so values agree to rounding here."""
    problem = build(replace(BUSY, dynamics=dynamics, unit_width=True), device=device)
    outputs, gradients = problem.run(functional.alif, smooth=True)
    want_outputs, want_gradients = problem.run(reference.alif, smooth=True)
    assert_all_same(outputs, want_outputs, tolerance=1e-12)
    assert_all_same(gradients, want_gradients, tolerance=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dynamics", ["lsnn", "srnn", "norse_lsnn", "sinabs_sub", "se_adlif"])
def test_half_precision(dynamics: str, dtype: torch.dtype, device: str) -> None:
    """Currents and weights in half precision, state in float32: values agree in every bit, as the inputs are exact."""
    problem = build(replace(BUSY, dynamics=dynamics), dtype, device, dyadic=True)
    outputs, gradients = problem.run(functional.alif)
    want_outputs, want_gradients = problem.run(reference.alif)
    assert outputs["spikes"].dtype == dtype and outputs["state.v"].dtype == torch.float32
    assert_all_same(outputs, want_outputs)
    for name, want in want_gradients.items():
        # The gradients of current and weights are rounded to half precision once, at the end.
        tolerance = 2 * torch.finfo(dtype).eps if want.dtype == dtype else 5e-5
        assert_same(name, gradients[name], want, tolerance=tolerance)


@pytest.mark.parametrize("dampening", [0.0, 0.3, 2.0])
def test_dampening(dampening: float, device: str) -> None:
    problem = build(BUSY, device=device, dyadic=True)
    problem.fixed["dampening"] = dampening
    outputs, gradients = problem.run(functional.alif)
    want_outputs, want_gradients = problem.run(reference.alif)
    assert_all_same(outputs, want_outputs)
    assert_all_same(gradients, want_gradients, tolerance=1e-11)


def test_same_bits_every_run(device: str) -> None:
    problem = build(replace(BUSY, N=220, B=9), torch.float32, device)
    first, second = problem.run(functional.alif), problem.run(functional.alif)
    for got, want in zip(second, first, strict=True):
        assert_all_same(got, want)


@needs_compiled
def test_same_bits_for_any_number_of_threads(device: str) -> None:
    """More threads share out the work, never the order of a sum; the batch is no multiple of the number of threads."""
    problem = build(replace(BUSY, N=220, B=9), torch.float32, device)
    want, want_gradients = problem.run(functional.alif)
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            got, got_gradients = problem.run(functional.alif)
            assert_all_same(got, want)
            assert_all_same(got_gradients, want_gradients)
    finally:
        torch.set_num_threads(before)


@needs_compiled
def test_compiled_table_is_the_table_of_the_reference() -> None:
    from lsnn_ext import _library

    words = ("test", "ge", "scale", "reset", "when", "drive")
    compiled = {row["name"]: {word: row[word] for word in words} | {"stop": set(row["stop"])}
                for row in _library.compiled_rows()}
    assert list(compiled) == list(ROWS)
    for name, row in ROWS.items():
        assert compiled[name] == {word: getattr(row, word) for word in words} | {"stop": set(row.stop)}, name


@pytest.mark.parametrize("dynamics", ROWS)
def test_threshold_met_exactly(dynamics: str, device: str) -> None:
    """Equation (7) with m = 0: only a row that tests >= spikes, and no drive of (3) takes v' = A for a crossing."""
    half, zero = torch.full((1, 1), 0.5, device=device), torch.zeros(1, 1, device=device)
    for alif in (functional.alif, reference.alif):
        # alpha = 0 and kappa = 1 make y the current: the new u, the old v' and A are all one half.
        state = reference.State(half, zero, zero, zero, zero[None])
        result: Any = alif(half[None], zero, alpha=0.0, kappa=1.0, theta=0.5, beta=0.0, q=1.0, eta=0.0,
                           dynamics=dynamics, state=state, trace=True)
        spikes, _, traces = result
        assert float(spikes) == float(ROWS[dynamics].ge)
        assert float(traces.a) == 0.0


def test_same_without_gradient(device: str) -> None:
    """Where nothing is saved for a backward pass the outputs are the same."""
    problem = build(replace(BUSY, N=33), torch.float32, device)
    want, _ = problem.run(functional.alif)
    with torch.no_grad():
        got = problem.outputs(functional.alif)
    assert not any(value.requires_grad for value in got.values())
    assert_all_same(got, want)


def test_same_without_traces(device: str) -> None:
    problem = build(replace(BUSY, N=33), torch.float32, device)
    want, state, _ = functional.alif(**problem.arguments(), trace=True)
    spikes, last = functional.alif(**problem.arguments())
    assert_same("spikes", spikes, want)
    assert_all_same(last._asdict(), state._asdict())


def test_arguments_stay_as_they_were(device: str) -> None:
    problem = build(replace(BUSY, N=33), torch.float32, device)
    before = {name: leaf.clone() for name, leaf in problem.leaves.items()}
    problem.run(functional.alif)
    assert_all_same(problem.leaves, before)


@pytest.mark.parametrize("dynamics", ROWS)
def test_row_names_its_own_constants(dynamics: str, device: str) -> None:
    """Surrogate, dampening and width that are left out are those of the row."""
    row = ROWS[dynamics]
    problem = build(Case("own", dynamics, T=20, given=("alpha", "theta", "rho", "beta")), device=device, dyadic=True)
    _, gradients = problem.run(functional.alif)
    problem.fixed |= {"surrogate": row.surrogate, "dampening": row.dampening}
    if row.width is not None:
        problem.fixed["width"] = row.width
    _, named = problem.run(functional.alif)
    assert_all_same(gradients, named)
