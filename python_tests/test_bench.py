"""The benchmark runs end to end, and what it reports means what its columns say."""
import csv
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import contestants, measure, page, report, roofline, sweep, ways
from bench.__main__ import main
from bench.contestants import OURS, Contestant, make
from bench.measure import PASSES, Entry, Limits, OverLimitError, Result, active_share, alternate, find_scale
from bench.memory import needed_bytes, saved_bytes
from bench.peers import LAYERS
from bench.problem import ALPHA, BETA, RHO, THETA, YARDSTICKS, Problem, Shape, custom
from lsnn_ext import reference

TINY = Shape(60, 8, 20, 40)
TEXT = ",".join(map(str, TINY))
PACKAGE = dict(zip(LAYERS, ("norse", "snntorch", "sinabs", "spikingjelly"), strict=True))
ARGUMENTS = ["--shape", TEXT, "--rates", "2,10", "--repeats", "2", "--no-memory", "--sweep", "threads", "--sweep-shape",
             "20,2,5,16"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run on the tiny shape."""
    out = tmp_path_factory.mktemp("bench")
    main([*ARGUMENTS, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def rows(written: Path) -> list[dict[str, str]]:
    """The lines of its CSV."""
    lines = (written / "bench.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_columns_are_there(rows: list[dict[str, str]]) -> None:
    assert set(rows[0]) == set(Result.__dataclass_fields__)
    assert [(row["rate_asked"], row["timed"]) for row in rows] == [(rate, p) for rate in ("2", "10") for p in PASSES]
    for row in rows:
        assert row["yardstick"] == TEXT and row["contestant"] == OURS
        assert 0 < float(row["min_ms"]) <= float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])


def test_ratios_refer_to_ours_at_two_percent(rows: list[dict[str, str]]) -> None:
    for timed in PASSES:
        base, other = (row for row in rows if row["timed"] == timed)
        assert base["base"] == "True" and float(base["ratio_to_ours"]) == 1
        expected = float(other["median_ms"]) / float(base["median_ms"])
        assert float(other["ratio_to_ours"]) == pytest.approx(expected, rel=1e-4)


def test_measured_rate_is_near_the_asked_one(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert float(row["rate_measured"]) == pytest.approx(float(row["rate_asked"]), rel=0.1)


def test_machine_and_plots_are_written(written: Path) -> None:
    head = [line for line in (written / "bench.csv").read_text().splitlines() if line.startswith("#")]
    names = [line[2:].split(":")[0] for line in head]
    assert "LSNN_CACHE_MB" in names  # as there are sweeps
    always = [name for name in names if not name.startswith("LSNN_")]
    assert ", ".join(always) == "processor, cores, instruction set, torch, threads, lsnn_ext, date, packages, command"
    assert "command: python -m bench " + " ".join(ARGUMENTS) in head[-1]  # and not where it was written
    pytest.importorskip("matplotlib")
    for plot in ("times.png", "rates.png", "sweep_threads.png"):
        assert (written / plot).stat().st_size > 10_000


@pytest.mark.parametrize("name", [OURS, "eager loop", "jax scan, jit"])
def test_contestants_compute_the_same(name: str) -> None:
    """What is called the same equations gives the same spikes and gradients as the reference."""
    if name == "jax scan, jit":
        pytest.importorskip("jax")
    problem = Problem.of(TINY).scaled(3.0)
    w_in, w_rec = problem.w_in.clone().requires_grad_(), problem.w_rec.clone().requires_grad_()
    out = reference.alif(problem.x @ w_in.T, w_rec, alpha=ALPHA, theta=THETA, rho=RHO, beta=BETA)[0]
    out.backward(problem.cotangent)
    contestant = make(name, problem)
    # Sums are taken in another order, so that a spike at the very threshold may go the other way.
    assert (contestant.forward() != out).float().mean() < 1e-3
    d_in, d_rec = contestant.forward_backward()
    assert w_in.grad is not None and w_rec.grad is not None
    torch.testing.assert_close(d_in, w_in.grad, rtol=1e-3, atol=1e-3 * float(w_in.grad.abs().max()))
    d_rec = d_rec.T if name == OURS else d_rec
    torch.testing.assert_close(d_rec, w_rec.grad, rtol=1e-3, atol=1e-3 * float(w_rec.grad.abs().max()))


def test_saved_bytes_leave_out_inputs_weights_and_outputs() -> None:
    """The eager loop keeps v, a, z or m of each step at least; its stacked output is a copy, which backward leaves."""
    total, beyond = saved_bytes(make("eager loop", Problem.of(TINY)))
    assert 8 <= beyond <= total <= 64


def test_a_rate_is_found_by_scaling() -> None:
    scale, rate = find_scale(Problem.of(TINY), 0.05)
    assert scale > 0 and rate == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(("arguments", "message"), [
    (["Q"], "yardsticks: expected some of P, M, L, SHD, long, got 'Q'"),
    (["--sweep", "N,Q"], "argument --sweep: expected all, none or some of N,B,T,rate,active,threads, got 'Q'"),
    (["--seconds", "0"], "--seconds: expected a number > 0, got '0'"),
    (["--memory-limit", "much"], "--memory-limit: expected a number > 0, got 'much'"),
])
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_page_shows_the_numbers_of_the_csv(written: Path, rows: list[dict[str, str]]) -> None:
    text = (written / "README.md").read_text()
    assert "python -m bench " + " ".join(ARGUMENTS) in text
    assert f"{TINY.T} steps, batch {TINY.B}, {TINY.I} inputs, {TINY.N} neurons; 5 % of the inputs are spikes" in text
    line = next(line for line in text.splitlines() if line.startswith("| lsnn_ext at 10 %"))
    for row in rows[2:]:
        assert page.number(float(row["median_ms"])) in line and page.number(float(row["ratio_to_ours"])) in line
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert {"times.png", "rates.png", "sweep_threads.csv", "sweep_threads.png"} <= set(linked)
    assert all((written / name).exists() for name in linked)


def test_page_follows_from_the_csvs_alone(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in written.iterdir():
        if path.name != "README.md":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    page.main([str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == (written / "README.md").read_text()
    with pytest.raises(SystemExit):
        page.main([str(tmp_path / "empty")])
    assert "folder: expected bench.csv or sweep_*.csv of a run, got none" in capsys.readouterr().err


def test_page_says_who_did_not_run(tmp_path: Path) -> None:
    results = [_result(timed=timed, peak_mib=100.0) for timed in PASSES]
    results += [replace(r, contestant="nn.LSTM", base=False, peak_mib=300.0) for r in results]
    skips = [measure.Skip("P", "norse LSNN", "not run: would need about 7.0 GB, the limit is 3.0 GB")]
    report.write(tmp_path, {"processor": "none", "cores": "1", "torch": "2", "threads": "1"}, results, skips)
    text = page.write_page(tmp_path).read_text()
    assert "* norse LSNN: not run: would need about 7.0 GB" in text
    assert "| nn.LSTM | 1.00 | 300 (3.00) |" in text
    assert "| norse LSNN | - | would need about 7.0 GB, the limit is 3.0 GB |" in text


def test_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = [_result(timed=timed, rate_measured=1 / 3) for timed in PASSES]
    report.write(tmp_path, {"processor": "a: b", "threads": "1", "torch": "2"}, written)
    facts, back = report.read(Result, tmp_path / "bench.csv")
    assert facts["processor"] == "a: b" and all(math.isnan(r.peak_mib) for r in back)
    assert [str(r) for r in back] == [str(replace(r, rate_measured=0.333333)) for r in written]


def test_a_contestant_takes_part_in_as_many_rounds_as_it_may() -> None:
    class Counting(Contestant):
        def __init__(self) -> None:
            self.name, self.backward = "counts", 0

        def forward(self) -> Tensor:
            return torch.zeros(1)

        def forward_backward(self) -> list[Tensor]:
            self.backward += 1
            return []

    many, two = Counting(), Counting()
    seconds = alternate([many, two], 5, [5, 2])
    assert [len(one) for both in seconds for one in both] == [5, 5, 2, 2]
    assert (many.backward, two.backward) == (6, 3)  # and one that is not timed


def test_a_peer_over_its_limits_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, ours = Problem.of(TINY), Entry(make(OURS, Problem.of(TINY)), 1.0, measured=2.0)
    needed = needed_bytes("eager loop", problem)
    assert 16 * 60 * 8 * 40 < needed < 100 * 60 * 8 * 40
    for limits, message in [(Limits(bytes=needed / 2), "would need about"), (Limits(seconds=1e-6), "would take about")]:
        with pytest.raises(OverLimitError, match=f"not run: .*{message}"):
            measure._peer("eager loop", problem, ours, limits, 3, print)

    def absent(*_: object) -> Contestant:
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setattr(measure, "MAKERS", dict.fromkeys((OURS, "eager loop", "absent")))
    monkeypatch.setitem(contestants.MAKERS, "absent", absent)
    said: list[str] = []
    results, skipped = measure.measure(custom(TINY), [2.0], peers=True, repeats=2, memory=False, say=said.append)
    assert [r.contestant for r in results] == [OURS] * 2 + ["eager loop"] * 2
    assert skipped == [measure.Skip(TEXT, "absent", "skipped: ModuleNotFoundError: No module named 'absent'")]
    assert any("No module named 'absent'" in text for text in said)
    assert results[3].ratio_to_ours == pytest.approx(results[3].median_ms / results[1].median_ms)


@pytest.mark.parametrize("name", LAYERS)
def test_a_peer_fires_and_learns(name: str) -> None:
    """Its state starts anew in each call, or the second would continue the first."""
    pytest.importorskip(PACKAGE[name])
    problem = Problem.of(Shape(60, 4, 20, 32))
    scale, rate = find_scale(problem, 0.03, tolerance=0.2, most=15, name=name)
    assert 0.01 < rate < 0.12
    peer = make(name, problem.scaled(scale))
    first, second = peer.forward(), peer.forward()
    assert first.shape == (60, 4, 32) and set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(first, second)
    gradients = peer.forward_backward()
    assert len(gradients) >= 2 and all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients)
    assert all(map(torch.equal, peer.forward_backward(), gradients))


def test_a_yardstick_has_the_inputs_that_it_names() -> None:
    shd = replace(YARDSTICKS["SHD"], shape=Shape(50, 8, 700, 4))
    assert float(shd.problem().x.mean()) == pytest.approx(0.02, rel=0.05)


def _result(**changes: object) -> Result:
    nan = math.nan
    times = 8.0, 7.0, 7.5, 8.5
    result = Result("P", 10, 2, 3, 4, OURS, 2.0, 2.0, PASSES[1], *times, 1.0, 1.0, 1.0, nan, 2, 1, True, 5.0, 50.0)
    return replace(result, **changes)  # type: ignore[arg-type]


def test_bound_is_the_larger_of_arithmetic_and_bytes() -> None:
    """Rates of 1e-6 Gflop/s and so on make the times milliseconds that can be followed by hand."""
    flops, steps = 2 * 10 * 2 * 4 * 4, 10 * 2 * 4
    read, written = 2 * 4 * 10 * 2 * 3 + steps * 8.125, steps * 8.125
    slow = [roofline.Rate(what, 1e-6, "", "") for what in ("fma", "read", "write")]
    bound = roofline.bound(_result(), slow)
    assert bound.dense_ms == pytest.approx(flops) and bound.active_ms == pytest.approx(flops / 2)
    assert bound.bytes_ms == pytest.approx(read + written)
    assert bound.events_ms == pytest.approx(2 * steps * 2 * (0.02 * 4 + 0.05 * 3))
    assert bound.bound_dense_ms == pytest.approx(read + written)
    fast = [slow[0], *(replace(rate, value=1.0) for rate in slow[1:])]
    bound = roofline.bound(_result(), fast)
    assert (bound.bound_dense_ms, bound.bound_active_ms) == pytest.approx((flops, flops / 2))
    assert (bound.ours_by_dense, bound.ours_by_active) == pytest.approx((8 / flops, 16 / flops))
    assert len(roofline.bounds([_result(), _result(base=False), _result(timed=PASSES[0])], fast)) == 1


@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
def test_active_share_is_that_of_the_loop(width: float) -> None:
    problem = Problem.of(TINY).scaled(0.3)
    v = a = z = torch.zeros(TINY.B, TINY.N)
    active = 0.0
    for x in problem.x @ problem.w_in.T:
        A = THETA + BETA * (RHO * a + (1 - RHO) * z)
        active += float((((v - A) / (width * A)).abs() < 1).float().mean()) / TINY.T
        v, a, z = contestants.lsnn_step(x, problem.w_rec, v, a, z)
    assert active_share(problem, width) == pytest.approx(active, abs=1e-3)


def test_width_varies_active_neurons_and_not_the_spikes() -> None:
    points = sweep.sweep("active", TINY, repeats=1, limits=Limits(), values=(0.2, 1, 4))
    both = [p for p in points if p.timed == PASSES[1]]
    assert [p.value for p in both] == [0.2, 1, 4] and len({p.rate_measured for p in both}) == 1
    assert both[0].x < 20 < both[1].x < 60 < both[2].x and all(p.x == p.active_share for p in both)


def test_sweep_changes_the_shape_and_keeps_the_threads() -> None:
    before = torch.get_num_threads()
    points = sweep.sweep("B", TINY, repeats=1, limits=Limits(bytes=40.0 * 60 * 16 * 41), values=(1, 4, 4096))
    assert [(p.T, p.B, p.I, p.N, p.x) for p in points[::2]] == [(60, 1, 20, 40, 1), (60, 4, 20, 40, 4)]  # no 4096
    points = sweep.sweep("threads", TINY, repeats=1, limits=Limits(), values=(1,))
    assert points[0].threads == 1 and torch.get_num_threads() == before
    assert sweep.thread_counts(6) == (1, 2, 4, 6) and sweep.thread_counts(1) == (1,)


def test_slope_is_the_exponent_of_the_larger_half_or_the_rise() -> None:
    def points(name: str, times: Iterator[tuple[float, float]]) -> list[sweep.Point]:
        return [sweep.Point(name, x, x, 1, 1, 1, 1, 2.0, 50.0, PASSES[0], ms, ms, ms, ms, 1, 1) for x, ms in times]

    power = points("N", ((x, 7.0 if x < 64 else x**1.5) for x in (16, 32, 64, 128, 256, 512)))
    assert sweep.slope(power, PASSES[0]) == pytest.approx(1.5)
    assert sweep.slope_text(power, PASSES[0]) == "~ N^1.50"
    line = points("rate", ((x, 3 + 0.25 * x) for x in (1.0, 5.0, 20.0)))
    assert sweep.slope_text(line, PASSES[0]) == "+0.250 ms per percent"
    assert math.isnan(sweep.slope(line[:1], PASSES[0]))


def test_times_outlive_a_process_that_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "peak_mib", lambda *_: 1 / 0)
    said: list[str] = []
    results, _ = measure.measure(custom(TINY), [2.0], peers=False, repeats=1, memory=True, say=said.append)
    assert all(r.median_ms > 0 and r.saved_bytes > 4 and math.isnan(r.peak_mib) for r in results)
    assert any("not measured: ZeroDivisionError" in text for text in said)


@pytest.mark.parametrize("name", ways.COMPARISONS)
def test_all_ways_lead_to_the_same_gradients(name: str) -> None:
    """On a small shape; those in bfloat16 to its precision."""
    of = ways.COMPARISONS[name]
    N, B = (192 if of.shape.B == 1 else 64), min(of.shape.B, 32)
    problem = Problem.of(Shape(40, B, 20, N)).scaled(2.0)
    try:
        results = [ways.Layers(problem, way, of.density, of.delays) for way in of.ways]
        want, *others = [[layer.forward(), *layer.forward_backward()] for layer in results]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert 0.005 < float(want[0].mean()) < 0.5
    for way, got in zip(of.ways[1:], others, strict=True):
        assert torch.equal(got[0], want[0])
        for a, b in zip(got[1:], want[1:], strict=True):
            small = "bfloat16" in way.name
            torch.testing.assert_close(a, b, rtol=0, atol=(0.03 if small else 1e-4) * float(b.abs().max()))


def test_ways_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = replace(ways.COMPARISONS["membranes P"], shape=TINY)
    monkeypatch.setattr(ways, "COMPARISONS", {"membranes P": tiny})
    monkeypatch.setattr(ways, "LONG", Shape(500, 2, 8, 64))
    ways.main(["--repeats", "2"])
    out = capsys.readouterr().out
    assert re.search(r"y saved as bfloat16 +forward +[\d.]+ +[\d.]+x +forward\+backward +[\d.]+ +[\d.]+x", out)
    assert re.search(r"checkpoint_every=256 +\d+ MB", out)
    with pytest.raises(SystemExit):
        ways.main(["nothing of that name"])
    assert "expected words of" in capsys.readouterr().err
