"""Like for like: both sides of every pair compute the same, and a pair that does not is refused."""
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import like_for_like, machine, pairs, rows, tables
from bench.__main__ import main
from bench.like_for_like import Alike, NotAlikeError, NotFusedError, prepared
from bench.limits import NO_LIMITS, Limits, OverLimitError, Skip
from bench.measure import PASSES
from bench.pairs import PAIRS
from bench.problem import YARDSTICKS, Problem, Shape, custom
from compare import assert_same
from lsnn_ext.models import MODELS

SHAPE = Shape(60, 4, 20, 32)
TINY = custom(SHAPE)
SRNN = "Yin et al., SRNN loop"
RADLIF = "Bittar and Garner, RadLIF loop"


@pytest.mark.parametrize("name", PAIRS)
def test_both_sides_compute_the_same(name: str) -> None:
    if not PAIRS[name].is_loop:
        pytest.importorskip(name.split()[0].lower())
    (theirs, ours), differing, gradient, rate, _ = prepared(name, TINY, NO_LIMITS, print)
    assert differing == 0 and gradient < 1e-4 and 2 < rate < 4
    want = theirs.gradients()
    assert len(want) >= 4 + len(PAIRS[name].learned)  # two weights, the readout's two
    assert theirs.spikes().shape == (SHAPE.T, SHAPE.B, SHAPE.N)
    assert torch.equal(ours.spikes(), theirs.spikes())
    got = ours.gradients()
    assert_same("gradients", [got[name] for name in want], [*want.values()], tolerance=1e-4,
                nonzero=True)


@pytest.mark.parametrize(("change", "message"), [
    (lambda pair: pair.alpha.data.mul_(0.9), "expected equal spikes, got"),
    (lambda pair: pair.project.weight.register_hook(lambda gradient: 2 * gradient),
     "expected equal gradients, got"),
    (lambda pair: pair.project.weight.register_hook(lambda gradient: math.nan * gradient),
     "expected equal gradients, got a relative difference of nan"),
    (lambda pair: pair.b.requires_grad_(False), "got none of ['pair.b']")])
def test_a_pair_that_is_not_alike_is_refused(change: Callable[[Any], None], message: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the spikes are right and a gradient is not."""
    def converted(name: str, problem: Problem, scale: float) -> like_for_like.Step:
        step = like_for_like.step_of(name, problem, scale)
        change(step.module.pair)
        return step

    monkeypatch.setattr(like_for_like, "converted", converted)
    with pytest.raises(NotAlikeError) as refused:
        like_for_like.measure(TINY, [RADLIF], repeats=1)
    assert message in str(refused.value)


def test_a_model_that_stays_a_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def random(pair: pairs.Yin, x: Tensor) -> Tensor:
        steps = [torch.bernoulli(0.03 * torch.ones(pair.items, pair.size)) for _ in x]
        return torch.stack(steps) + 0 * pair.project(x).sum()

    monkeypatch.setattr(pairs.Yin, "theirs", random)
    with pytest.raises(NotFusedError, match="no recurrence"):
        like_for_like.converted(SRNN, TINY.problem(1), 1.0)
    lines, (left,) = like_for_like.measure(TINY, [SRNN], repeats=1)
    assert lines == [] and "no recurrence" in left.reason


def test_other_weights_are_drawn_where_too_many_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until no more do than the bound allows; an error if they never are so few."""
    answers = iter([7, 4, 3, 0])
    monkeypatch.setattr(like_for_like, "_differing", lambda *steps: (next(answers), 0.03))
    monkeypatch.setattr(like_for_like, "MOST_DIFFERING", 3 / (60 * 4 * 32))
    said: list[str] = []
    _, differing, _, _, seed = prepared(SRNN, TINY, NO_LIMITS, said.append)
    assert (differing, seed, len(said)) == (3, 3, 2)
    answers = iter([7, 4, 5, 9, 4])
    with pytest.raises(NotAlikeError, match="got 4 that differ of 7,680"):
        prepared(SRNN, TINY, NO_LIMITS, print)


def test_who_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setattr(pairs.Yin, "build", absent)
    lines, skipped = like_for_like.measure(TINY, [SRNN], repeats=1)
    assert lines == [] and skipped == [
        Skip(TINY.name, SRNN, "skipped: ModuleNotFoundError: No module named 'absent'")]
    with pytest.raises(OverLimitError, match="would need about"):
        prepared(RADLIF, TINY, Limits(bytes=1e5), print)
    assert PAIRS["SpikingJelly LIFNode"].indexed
    with pytest.raises(OverLimitError, match="square of the steps"):
        prepared("SpikingJelly LIFNode", YARDSTICKS["long"], NO_LIMITS, print)


def test_a_run_leaves_numbers_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(like_for_like, "names_of", lambda peers: [SRNN, RADLIF])
    monkeypatch.chdir(tmp_path)
    main(["--like-for-like", "--shape", ",".join(map(str, SHAPE)), "--repeats", "2"])
    folder = tmp_path / "bench/results/like_for_like" / machine.slug()
    facts, lines = tables.read_csv(Alike, folder / "like_for_like.csv")
    assert facts["command"] == "python -m bench --like-for-like --shape 60,4,20,32 --repeats 2"
    assert [(line.pair, line.way, line.timed) for line in lines] == [
        (pair, like_for_like.WAY, timed) for pair in (SRNN, RADLIF) for timed in PASSES]
    text = (folder / "README.md").read_text()
    out = capsys.readouterr().out
    for line in lines:
        assert 0 < line.min_ms <= line.median_ms and line.differing == 0 and line.repeats == 2
        assert line.entries == 60 * 4 * 32
        assert line.times_faster == pytest.approx(line.theirs_median_ms / line.median_ms, rel=1e-4)
        assert line.times_faster_min == pytest.approx(line.theirs_min_ms / line.min_ms, rel=1e-4)
        overview, row = (row for row in text.splitlines() if row.startswith(f"| {line.pair} "))
        assert tables.number(line.times_faster) in row
        if line.timed == PASSES[1]:
            assert f"{line.times_faster:.1f}" in overview
            assert f"  {line.pair:32}{line.times_faster:8.1f}" in out
    assert not (folder / "bench.csv").exists()
    assert tables.read_csv(Skip, folder / "like_for_like_skipped.csv")[1] == []


# ---------------------------------------------------------------------------------- row against row
@pytest.mark.parametrize("row", MODELS)
def test_every_row_fires_and_learns(row: str) -> None:
    """At the rate that was asked for, and what its neuron has beside its weights has a gradient."""
    problem = Problem.of(Shape(80, 8, 20, 64))
    line, = rows.compare([row], problem, 1, ways=[True])
    assert line.rate == pytest.approx(rows.RATE, rel=0.25)
    learned = ("alpha", "theta", *rows.find_settings(row).learned)
    assert line.learned == " ".join(learned)
    gradients = rows.Row(row, problem, True, 4.0).forward_backward()
    assert len(gradients) == 2 + len(learned)
    # its threshold is a constant to the test, and nothing else looks at it
    silent = {"theta", "rho", "beta"} if row == "sinabs_zero" else set()
    for name, gradient in zip(("w_in", "w_rec", *learned), gradients, strict=True):
        assert gradient.isfinite().all()
        assert bool(gradient.any()) != (name in silent), name


def test_rows_are_printed_beside_the_first(monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(rows.YARDSTICKS, "P", custom(SHAPE))
    monkeypatch.setattr(rows.roofline, "rates", lambda: [
        rows.roofline.Rate("fma", 2 * 60 * 4 * 32 * 32 / 1e6 / 0.5, "", "")])
    rows.main(["--rows", "srnn,adlif", "--yardsticks", "P", "--repeats", "1", "--coefficients",
               "learned"])
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines() if "forward+backward" in line]
    assert names == ["lsnn", "srnn", "adlif"]
    assert out.count("multi_gaussian, at least ") == 1 and out.count("dense product 0.50 ms") == 1
    assert out.count(" %, product ") == 3
    assert "learned: alpha theta rho p q: adlif" in out
    with pytest.raises(SystemExit):
        rows.main(["--rows", "nobody"])
    assert "--rows: expected some of lsnn," in capsys.readouterr().err


def test_ratios_are_to_the_first_row() -> None:
    first = rows.Line("lsnn", 3.0, "", 2.0, 10.0, 1.0, 9.0, 40.0, 4.0)
    text = rows.table([first, rows.Line("srnn", 3.0, "", 3.0, 25.0, 2.0, 20.0, 100.0, 8.0)], 6.5)
    assert "1.50x" in text and "2.50x" in text and "active  40.0 %, product   4.0" in text
    assert "at least 12.5: 2.00x" in text  # 10 - 4 + 6.5
