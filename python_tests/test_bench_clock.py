"""What the benchmark makes of the times that it measures, by a clock that the test sets: no machine is too busy."""
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import check, measure, roofline
from bench.contestants import Contestant
from bench.measure import PASSES
from bench.problem import Problem, Shape


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows."""
    seconds = [0.0]
    for module in measure, roofline:
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    return seconds


def test_rates_are_what_was_done_by_the_best_time(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    lasts = iter([9.0, 2.0, 1.0, 3.0] + [9.0, 0.5, 0.25, 1.0] + [9.0, 0.2, 0.4, 1.0] + [9.0, 0.1, 0.5, 0.05])

    def timed(run: Callable[..., object]) -> Callable[..., object]:
        def call(*args: Any, **options: Any) -> object:
            now[0] += next(lasts)
            return run(*args, **options)
        return call

    for name in "mm", "sum", "dot":
        monkeypatch.setattr(torch, name, timed(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "fill_", timed(Tensor.fill_))
    fma, read, write = roofline.rates(repeats=3, mm_size=256, megabytes=8)
    assert next(lasts, None) is None  # the first call of each is not timed
    assert (fma.value, read.value, write.value) == pytest.approx((2 * 256**3 / 1e9, 0.008 / 0.2, 0.008 / 0.05))


def test_check_fails_below_its_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(check.ratios(Shape(60, 8, 20, 40), 1)) == set(PASSES)  # what they are depends on the machine
    ours, loop = [[1.0, 9.0, 1.0], [0.5, 0.25, 9.0]], [[3.0, 3.0, 9.0], [1.0, 2.5, 4.0]]
    monkeypatch.setattr(check, "alternate", lambda contestants, repeats: [ours, loop])
    assert check.main(["--least", "5"]) == 0
    assert "forward+backward: lsnn_ext 500.00 ms, eager loop 2500.00 ms, 5.0 times" in capsys.readouterr().out
    assert check.main(["--least", "5.01"]) == 1
    assert "FAILED: forward+backward: expected at least 5.01 times" in capsys.readouterr().out


@pytest.mark.parametrize("power", [1, 2])
def test_time_is_foreseen(power: int, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Contestant):
        def __init__(self, problem: Problem) -> None:
            self.seconds = 0.01 * (len(problem.x) / 100) ** power

        def forward_backward(self) -> list[Tensor]:
            now[0] += self.seconds
            return []

    monkeypatch.setattr(measure, "make", lambda name, problem: Slow(problem))
    problem = Problem.of(Shape(2000, 1, 2, 3))
    assert measure.expected_seconds("slow", problem) == pytest.approx(Slow(problem).seconds)
