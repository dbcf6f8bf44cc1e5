"""Random models with loops of their own, see any_loop.py: converted, they do what a copy does.

LSNN_LOOP_CASES sets the number of models (40); a twentieth as many have compiled steps.
"""
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import any_loop
from any_loop import Judged, judge, run_plans_without_kernels
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.sizes import Sizes
from operator_calls import needs_compiled

pytestmark = needs_compiled
CASES = int(os.environ.get("LSNN_LOOP_CASES", "40"))
LEAST_SHARE = 0.5  # of the models that have a fused component
COMPILED = 5000  # the number of the first model with compiled steps
DYNAMIC = 13000  # of the first one that is called with many sizes
REORDERED = 9000  # of the first one whose recording runs in another order, with a kernel or not


@pytest.fixture(autouse=True)
def alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("LSNN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LSNN_COMPILE", raising=False)
    before = torch.get_rng_state(), torch.get_default_dtype()
    yield
    torch.set_rng_state(before[0])
    torch.set_default_dtype(before[1])


def _check(seed: int, is_dynamic: bool = False) -> Judged:
    done = judge(seed, is_dynamic)
    assert not done.fault, (f"model {done.case.number}: {done.fault}\n{done.case.calls}\n"
                            f"{done.case.program.source}")
    return done


@pytest.mark.parametrize("first", range(0, CASES, 10))
def test_interpreted(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    fused = [_check(seed).fused > 0 for seed in range(first, first + 10)]
    assert sum(fused) >= LEAST_SHARE * len(fused)


@pytest.mark.parametrize("first", range(REORDERED, REORDERED + CASES, 10))
def test_another_order(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    monkeypatch.setattr(Plan, "reason", None)  # which is put back
    run_plans_without_kernels()
    for seed in range(first, first + 10):
        _check(seed)


@pytest.mark.parametrize("first", range(DYNAMIC, DYNAMIC + CASES, 10))
def test_sizes_that_are_predicted(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    predicted = []
    predict = Sizes.predict

    def count(*args: Any) -> bool:
        predicted.append(predict(*args))
        return predicted[-1]

    monkeypatch.setattr(Sizes, "predict", count)
    for seed in range(first, first + 10):
        _check(seed, True)
    assert sum(predicted) >= 5


@pytest.mark.parametrize("seed", range(COMPILED, COMPILED + max(1, CASES // 20)))
def test_compiled(seed: int) -> None:
    _check(seed)


@pytest.mark.parametrize("wrong", ["result", "gradient", "attribute", "generator"])
def test_a_wrong_replay_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan whose numbers are off by 1e-6, that reads a weight otherwise, or that draws."""
    monkeypatch.setenv("LSNN_COMPILE", "0")
    run = Plan.__call__

    def change(one: object) -> object:
        if not isinstance(one, torch.Tensor) or not one.is_floating_point():
            return one
        if wrong == "gradient":
            return one + 1e-6 * (one - one.detach())
        return one * (1 + 1e-6) + 1e-6

    def call(plan: Plan, leaves: dict[int, torch.Tensor]) -> object:
        result, changed, written = run(plan, leaves)
        if wrong in ("result", "gradient"):
            result = torch.utils._pytree.tree_map(change, result)
        elif wrong == "attribute":
            changed = torch.utils._pytree.tree_map(change, changed)
        else:
            torch.rand(())
        return result, changed, written

    monkeypatch.setattr(Plan, "__call__", call)
    faults = []
    for seed in range(300):
        case = any_loop.draw_case(seed, 0)._replace(is_verified=False)
        has_attributes = "self.z_0 = z_0" in case.program.source
        if (case.dtype == torch.float64 and case.calls[1].change == "numbers"
                and has_attributes == (wrong == "attribute")):
            found = any_loop.check_case(case)
            faults += [found[0]] if found is not None and found[1] else []
        if len(faults) == 4:
            break
    assert sum(map(bool, faults)) >= 2  # a result may have no gradient, a call run the original
