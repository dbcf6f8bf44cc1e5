"""Random models with loops of their own: converted, against a copy that is not.

A model is converted and called several times: with other numbers, shapes and settings. Each call
returns what the copy returns, and leaves attributes and generators as the copy does; a converted
model that refuses runs the original. In float64 results and gradients agree to 1e-9 of the largest
(spikes are so equal), in float32 to 1e-4; no gradient stays no gradient. A model whose own results
change by more when functions round otherwise is drawn again.
"""
import random
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from any_loop_models import draw_program
from any_loop_run import (
    Call,
    Case,
    Outcome,
    difference,
    difference_of,
    make_input,
    make_model,
    run_call,
    run_original,
    state_of,
)
from lsnn_ext import loops
from lsnn_ext.loops.plan import OtherBranchError, Plan
from lsnn_ext.loops.report import Report

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 17, 20, 25, 30)
CHANGES = ("same", "numbers", "numbers", "numbers", "T", "B", "no_grad", "eval", "step",
           "attribute", "frozen", "without x", "replaced", "global", "dtype of x", "buffer")


class Judged(NamedTuple):
    """fused: the components in kernels, of the first recording."""

    fault: str
    case: Case
    fused: int


def draw_sizes(case: Case) -> Case:
    """The model of a case, called with many lengths or many batch sizes."""
    r = random.Random(f"sizes {case.number}")
    T, B = max(5, case.calls[0].T), max(1, case.calls[0].B)
    is_length = r.random() < 0.7
    calls = [Call("first", 0, T, B)]
    for i in range(8):
        size = (r.randint(5, 30), B) if is_length else (T, r.randint(1, 9))
        calls.append(Call("T" if is_length else "B", i + 1, *size))
    return case._replace(calls=tuple(calls), is_dynamic=True)


def draw_case(seed: int, attempt: int) -> Case:
    number = f"{seed}/{attempt}"
    r = random.Random(f"case {number}")
    T, B = r.choice(LENGTHS), r.choice((1, 1, 2, 3, 4, 5))
    if r.random() < 0.03:
        B = 0
    calls = [Call("first", 0, T, B)]
    for i in range(r.choice((2, 3, 4))):
        change = r.choice(CHANGES)
        if change == "T":
            T = r.choice(LENGTHS)
        if change == "B":
            B = r.choice((1, 2, 3, 4, 5))
        calls.append(Call(change, calls[-1].seed if change == "same" else i + 1, T, B))
    dtype = torch.float32 if r.random() < 0.25 else torch.float64
    return Case(draw_program(number), dtype, r.random() < 0.5, tuple(calls), number,
                r.random() < 0.3)


def run_converted(case: Case, wanted: list[Outcome]) -> tuple[list[Outcome], Report, str]:
    """The outcomes, the report, and what convert itself leaves changed."""
    model = make_model(case)
    before = state_of(model)
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    x = make_input(case, case.calls[0])
    _, report = loops.convert(model, x, verify=case.is_verified, dynamic=case.is_dynamic)
    if not torch.equal(generator, torch.get_rng_state()):
        return [], report, "convert: another state of the generator"
    words = difference_of("convert", state_of(model), before, {}, 0.0)
    if words:
        return [], report, words
    with _errors_of_plans() as errors:
        found = [run_call(case, model, call) for call in case.calls[: len(wanted)]]
    if errors and not wanted[-1].error:
        return found, report, f"the original runs, since a plan raises {errors[0]}"
    return found, report, ""


@contextmanager
def _errors_of_plans() -> Iterator[list[str]]:
    """What plans raise, after which the original runs."""
    run, errors = Plan.__call__, []

    def call(plan: Plan, *args: Any) -> Any:
        try:
            return run(plan, *args)
        except (OtherBranchError, loops.Refused):
            raise  # after which the original runs
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "__call__", call)
        yield errors


def is_stable(case: Case, wanted: list[Outcome]) -> bool:
    """Whether rounding cannot change more than the limits allow."""
    return not any(difference(case, run_original(case, seed), wanted, 0.3) for seed in range(6))


def check_case(case: Case) -> tuple[str, int] | None:
    """The fault and fused components; None where there is nothing to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = run_original(case)
        values = [*wanted[0].results.values(), *wanted[0].gradients.values()]
        if wanted[0].error or not all(bool((one.abs() < 1e30).all()) for one in values
                                      if isinstance(one, Tensor)):
            return None
        try:
            found, report, fault = run_converted(case, wanted)
        except Exception as error:
            lines = traceback.format_exc().strip().splitlines()
            where = [line.strip() for line in lines if "lsnn_ext" in line][-1:]
            return f"{type(error).__name__}: {error} {where}", 0
        fault = fault or difference(case, found, wanted)
        if fault and not is_stable(case, wanted):
            return None
        return fault, len(report.fused)


def judge(seed: int, is_dynamic: bool = False) -> Judged:
    """Draws until there is something to compare, and compares."""
    for attempt in range(200):
        case = draw_case(seed, attempt)
        case = draw_sizes(case) if is_dynamic else case
        found = check_case(case)
        if found is not None:
            fault, fused = found
            return Judged(fault, case, fused)
    raise AssertionError(f"model {seed}: none to compare in 200")


def run_plans_without_kernels() -> None:
    """Also recordings without a fused component run in another order."""
    Plan.reason = property(lambda plan: "")  # type: ignore[assignment, method-assign]
