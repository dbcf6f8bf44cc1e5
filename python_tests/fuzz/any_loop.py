"""Random models with loops of their own: converted, against a copy that is not.

    cd python_tests/fuzz
    python any_loop.py --seed 0 --count 2900           # steps by the interpreter
    python any_loop.py --seed 5000 --count 100 --compiled
    python any_loop.py --seed 0 --count 100 --dynamic  # many sizes, of which some are predicted
    python any_loop.py --seed 41 --count 1 --verbose   # one model again, with its source
    python any_loop.py --seed 41 --count 1 --shrink    # the fewest lines that show its fault

A model is converted and called several times: with other numbers, shapes and settings. Each call
returns what the copy returns, and leaves attributes and generators as the copy does; a converted
model that refuses runs the original. In float64 results and gradients agree to 1e-9 of the largest
(spikes are so equal), in float32 to 1e-4; no gradient stays no gradient. A model whose own results
change by more when functions round otherwise is drawn again.
"""
import argparse
import os
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
from lsnn_ext.loops import plan
from lsnn_ext.loops.plan import OtherBranchError, Plan
from lsnn_ext.loops.report import Report

LEAST_SHARE = 0.5  # of the models that have a fused component
MOST_UNSTABLE = 0.2  # models that differ within rounding, of those that can be compared
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 17, 20, 25, 30)
CHANGES = ("same", "numbers", "numbers", "numbers", "T", "B", "no_grad", "eval", "step",
           "attribute", "frozen", "without x", "replaced", "global", "dtype of x", "buffer")


class Judged(NamedTuple):
    """fused: the components in kernels, of the first recording."""

    fault: str
    skipped: list[str]  # why the cases before it could not be compared
    case: Case
    fused: int
    reasons: list[str]


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

    Plan.__call__ = call  # type: ignore[method-assign]
    try:
        yield errors
    finally:
        Plan.__call__ = run  # type: ignore[method-assign]


def is_stable(case: Case, wanted: list[Outcome]) -> bool:
    """Whether rounding cannot change more than the limits allow."""
    return not any(difference(case, run_original(case, seed), wanted, 0.3) for seed in range(6))


def _reasons(report: Report) -> list[str]:
    """Why recurrences are not fused, or the model is not converted, without names of lines."""
    found = [one.reason for loop in report.loops for one in loop.unfused]
    found += [f"not converted: {report.reason}"] if report.reason else []
    return [re.sub(r"<model.*?>:\d+: |model \d+/\d+>:\d+: |\d+", "", one) for one in found]


def check_case(case: Case) -> tuple[str, int, list[str]] | str:
    """The fault, fused components and reasons; a word where there is nothing to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = run_original(case)
        values = [*wanted[0].results.values(), *wanted[0].gradients.values()]
        if wanted[0].error or not all(bool((one.abs() < 1e30).all()) for one in values
                                      if isinstance(one, Tensor)):
            return "raises"
        try:
            found, report, fault = run_converted(case, wanted)
        except Exception as error:
            lines = traceback.format_exc().strip().splitlines()
            where = [line.strip() for line in lines if "lsnn_ext" in line][-1:]
            return f"{type(error).__name__}: {error} {where}", 0, []
        fault = fault or difference(case, found, wanted)
        if fault and not is_stable(case, wanted):
            return "unstable"
        return fault, len(report.fused), _reasons(report)


def judge(seed: int, is_dynamic: bool = False) -> Judged:
    """Draws until there is something to compare, and compares."""
    skipped = []
    for attempt in range(200):
        case = draw_case(seed, attempt)
        case = draw_sizes(case) if is_dynamic else case
        found = check_case(case)
        if not isinstance(found, str):
            return Judged(found[0], skipped, case, *found[1:])
        skipped.append(found)
    raise AssertionError(f"model {seed}: none to compare in 200")


def run_plans_without_kernels() -> None:
    """Also recordings without a fused component run in another order."""
    Plan.reason = property(lambda plan: "")  # type: ignore[assignment, method-assign]


def main(argv: list[str], shrink: Callable[[Case], Case]) -> int:
    """Prints the faults and returns 1 where there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first model")
    parser.add_argument("--compiled", action="store_true", help="compile steps")
    parser.add_argument("--dynamic", action="store_true", help="call with many sizes")
    parser.add_argument("--all", action="store_true", help="also plans without a kernel run")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--shrink", action="store_true")
    given = parser.parse_args(argv)
    plan.LEAST_GAIN = 0.0  # as conftest.py
    if not given.compiled:
        os.environ["LSNN_COMPILE"] = "0"
    if given.all:
        run_plans_without_kernels()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    start = time.time()
    for seed in range(given.seed, given.seed + given.count):
        done = judge(seed, given.dynamic)
        counts["fault" if done.fault else "equal"] += 1
        counts.update(done.skipped)
        counts["with a fused component"] += done.fused > 0
        counts["components"] += done.fused
        reasons.update(done.reasons)
        if done.fault or given.verbose:
            case = shrink(done.case) if done.fault and given.shrink else done.case
            print(f"model {case.number}: {done.fault or 'equal'}\n{case.dtype} {case.calls} "
                  f"{case.program.tags}\n{done.reasons}", flush=True)
            print(case.program.source if given.verbose or given.shrink else "", flush=True)
    for reason, count in reasons.most_common():
        print(f"{count:6d} {reason}")
    print(f"models {given.seed} to {given.seed + given.count - 1}: {dict(counts)}, "
          f"{time.time() - start:.0f} s")
    too_few = counts["with a fused component"] < LEAST_SHARE * given.count or (
        counts["unstable"] > MOST_UNSTABLE * given.count)
    return 1 if counts["fault"] or too_few else 0


if __name__ == "__main__":
    from any_loop_shrink import shrink_case

    sys.exit(main(sys.argv[1:], shrink_case))
