"""Random steps of neurons in random calls, see any_neuron.py: the kernels compute what autograd of
a plain loop does.

LSNN_NEURON_CASES sets the number of interpreted steps (150); a twentieth as many are compiled.
"""
import os

import pytest
import torch

from any_neuron import Case, difference, draw_case, function_of, fused, judge, loop, run
from any_neuron_steps import draw_step
from fuzz_calls import Draw
from operator_calls import needs_compiled
from test_random_loops import alike  # noqa: F401
from traced_steps import NEURONS, check_step

pytestmark = needs_compiled
CASES = int(os.environ.get("LSNN_NEURON_CASES", "150"))
COMPILED = 5000  # the number of the first compiled case


def _check(seed: int) -> None:
    done = judge(seed)
    assert done.fault is None, (f"case {seed}, attempt {done.drawn}: {done.fault}\n{done.case}\n"
                                f"{done.case.step.source}")
    assert not done.refused, done.refused


@pytest.mark.parametrize("seed", range(CASES))
def test_interpreted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    _check(seed)


@pytest.mark.parametrize("seed", range(COMPILED, COMPILED + max(1, CASES // 20)))
def test_compiled(seed: int) -> None:
    _check(seed)


@pytest.mark.parametrize("first", range(0, 300, 25))
def test_programs_of_steps(first: int) -> None:
    """What tracing makes of a step, evaluated by torch: operators that round once give its bits,
    and those of autograd."""
    shapes = {"()": (), "(1,)": (), "(N,)": (NEURONS,)}
    for seed in range(first, first + 25):
        d = Draw(seed, 0)
        dtype, is_exact = d.one_of(torch.float32, torch.float64), d.chance(0.6)
        step = draw_step(f"program {seed}", is_exact)
        coefficients = {one.name: d.real(one.low, one.high, *shapes[one.kind], dtype=dtype)
                        if one.kind in shapes else d.random.randrange(2, 9) if one.kind == "int"
                        else d.random.uniform(one.low, one.high)
                        for one in step.coefficients if one.kind != "default"}
        tolerance = None if is_exact else {torch.float32: 3e-4, torch.float64: 1e-12}[dtype]
        try:
            check_step(function_of(step.source, f"program {seed}"), coefficients,
                       currents=step.currents, states=step.states, dtype=dtype, is_exact=is_exact,
                       scale=0.8, seed=seed, tolerance=tolerance)
        except Exception as error:
            raise AssertionError(f"program {seed}:\n{step.source}") from error


def _case(wanted: str) -> Case:
    """One with a text in its step, in float64, with gradients of a spike that is read."""
    for seed in range(500):
        case = draw_case(seed, 0)
        x = case.leaves["x"]
        results = case.step.source.rpartition("return ")[2]
        if (wanted in case.step.source.split("def step")[1] and x.dtype == torch.float64
                and all(f"ns{s}" in results for s in range(case.step.states))
                and x.requires_grad and case.shown[0] and case.T > 4 and case.step.states
                and case.keywords["trace"] and run(case, loop).values[0].any()):
            return case
    raise AssertionError(wanted)


@pytest.mark.parametrize("old, new", [(" - 0.3)", " - 0.4)"), ("0.9 * ", "0.9000000001 * ")])
def test_another_step_is_found(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    case = _case(old)
    head, step = case.step.source.split("def step")
    other = case._replace(function=function_of(
        head + "def step" + step.replace(old, new), "another case"))
    assert difference(case, run(case, fused), run(case, loop)) is None
    assert difference(case, run(other, fused), run(case, loop)) is not None
