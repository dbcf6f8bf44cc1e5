"""Random steps of neurons in random calls, see any_neuron.py: the kernels compute what autograd of
a plain loop does.

LSNN_NEURON_CASES sets the number of interpreted steps (150); a twentieth as many are compiled.
"""
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from any_neuron import Case, difference, draw_case, fused, judge, loop, run
from operator_calls import needs_compiled

pytestmark = needs_compiled
CASES = int(os.environ.get("LSNN_NEURON_CASES", "150"))
COMPILED = 5000  # the number of the first compiled case


@pytest.fixture(autouse=True)
def _alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("LSNN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LSNN_COMPILE", raising=False)
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


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
    space = {"__name__": "changed"}
    head, step = case.step.source.split("def step")
    exec(head + "def step" + step.replace(old, new), space)
    other = case._replace(function=space["step"])  # type: ignore[arg-type]
    assert difference(case, run(case, fused), run(case, loop)) is None
    assert difference(case, run(other, fused), run(case, loop)) is not None
