"""CUDA kernels compute what the reference computes on the CPU, whichever design runs them.

LSNN_DESIGN names the one design to test with; without it every design is forced in turn, and set
but empty it leaves the choice to the library. Without a GPU, or a build with CUDA kernels, every
test is skipped and says why.
"""
import collections
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vectors
from cases import TABLE, Case, Problem, build
from compare import assert_all_same, assert_same_runs
from lsnn_ext import _ops, functional, reference
from lsnn_ext.models import MODELS


def _why_not() -> str:
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not _ops.available:
        return f"the compiled part of lsnn_ext is missing ({_ops.load_error})"
    if getattr(_ops._C, "cuda", None) is None:
        return "this build of lsnn_ext has no CUDA kernels"
    return ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
CHOSEN = "chosen"  # by the library
# they add the rows of the spikes in one order, as the CPU does
EVENTS = ("block", "gather", "cluster")
ASKED = os.environ.get("LSNN_DESIGN")
DESIGNS = [CHOSEN, *EVENTS, "step"] if ASKED is None else [ASKED or CHOSEN]
# Of gradients, relative to the largest of each.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5}
BUSY = Case("busy", T=150, B=9, N=220, delay="each", refractory=2, state="real")
PAPER = Case("paper", T=150, B=9, N=220, given=("alpha", "theta", "rho", "beta"), learn=("x", "w"))
ran: collections.Counter[str] = collections.Counter()  # cases by design


@pytest.fixture(params=DESIGNS)
def design(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces this design; a case that it has no kernel for is skipped."""
    name = str(request.param)
    if name == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("blocks form clusters from compute capability 9.0 on")
    with _ops.forced(design="automatic" if name == CHOSEN else name):
        yield name


@contextmanager
def skipping_what_it_cannot(design: str) -> Iterator[None]:
    """A forced design may have no kernel for a case; any other error is one."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        words = f"the design '{design}' cannot", "design: expected"
        said = [line for line in str(error).splitlines() if any(word in line for word in words)]
        if design == CHOSEN or not said:
            raise
        pytest.skip(said[0])


def run(problem: Problem, design: str, **how: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the kernels give, on the CPU."""
    with skipping_what_it_cannot(design):
        found = problem.run(functional.alif, **how)
    ran[design] += 1
    outputs, gradients = ({name: value.cpu() for name, value in part.items()} for part in found)
    return outputs, gradients


@functools.cache
def wanted(case: Case, dtype: torch.dtype,
           smooth: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the reference gives on the CPU: once for all designs."""
    return build(case, dtype, dyadic=not smooth).run(reference.alif, smooth=smooth)


# ----------------------------------------------------------------------- what every design computes
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_design_is_the_reference(case: Case, dtype: torch.dtype, design: str) -> None:
    """Dyadic sums are exact in any order: outputs are bitwise identical."""
    assert_same_runs(run(build(case, dtype, "cuda", dyadic=True), design), wanted(case, dtype),
                     tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("dynamics", MODELS)
def test_design_with_smooth_spikes(dynamics: str, design: str) -> None:
    case = Case("smooth", dynamics, T=40, delay="each", refractory=2, state="real", unit_width=True)
    assert_same_runs(run(build(case, torch.float64, "cuda"), design, smooth=True),
                     wanted(case, torch.float64, smooth=True), tolerance=1e-10, values=1e-12)


@pytest.mark.parametrize("N", [220, 512, 1024])
def test_design_at_the_sizes_of_the_benchmark(N: int, design: str) -> None:
    case = replace(PAPER, name=f"N={N}", T=64, B=140, N=N)  # more batch items than SMs
    found = run(build(case, torch.float32, "cuda", dyadic=True), design)
    assert found[0]["spikes"].any()
    assert_same_runs(found, wanted(case, torch.float32), tolerance=TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", vectors.NAMES)
def test_design_on_an_official_vector(name: str, design: str) -> None:
    with skipping_what_it_cannot(design):
        vectors.check(name, functional.alif, "cuda")


@pytest.mark.parametrize("case",
                         [BUSY, PAPER, replace(BUSY, name="hard", dynamics="sj_hard", N=64)],
                         ids=lambda case: case.name)
def test_design_gives_the_same_bits_every_run(case: Case, design: str) -> None:
    problem = build(case, torch.float32, "cuda")
    assert_same_runs(run(problem, design), run(problem, design))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case",
                         [BUSY, PAPER,
                          *(replace(BUSY, name=model, dynamics=model, N=33) for model in MODELS)],
                         ids=lambda case: case.name)
def test_design_by_events_gives_the_bits_of_the_cpu(case: Case, dtype: torch.dtype,
                                                    design: str) -> None:
    """Of any numbers: one order of sums, no fused multiply-add in the forward pass."""
    if design not in EVENTS:
        pytest.skip("this design need not add the weights of spikes in the order of the CPU")
    outputs, _ = run(build(case, dtype, "cuda"), design)
    want, _ = build(case, dtype).run(functional.alif)
    assert want["spikes"].any()
    assert_all_same(outputs, want)


def test_design_is_the_planned_one(design: str) -> None:
    plan = str(_ops._C.plan(784, 256, 220, options=list(_ops.forced_options())))
    assert any(name in plan for name in (*EVENTS,
                                         "step")) if design == CHOSEN else design in plan, plan


def test_design_had_cases(design: str, request: pytest.FixtureRequest) -> None:
    """That all cases of a design are skipped must not look as if it worked."""
    if not any(getattr(item, "function", None) is test_design_is_the_reference
               for item in request.session.items):
        pytest.skip("the table of cases was not asked for")
    assert ran[design] > 20
