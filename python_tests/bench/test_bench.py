"""The benchmark runs end to end, and what it reports means what its columns say."""
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench import check, contestants, latency, measure, page, roofline, sweep, tables, variants
from bench.__main__ import main
from bench.contestants import OURS, Contestant, make
from bench.limits import Limits, OverLimitError, Skip
from bench.measure import PASSES, Entry, Result, alternate
from bench.memory import needed_bytes, saved_bytes
from bench.peers import LAYERS
from bench.problem import ALPHA, BETA, RHO, THETA, YARDSTICKS, Problem, Shape, custom
from bench.rates import active_share, find_scale
from compare import assert_same
from lsnn_ext import reference

TINY = Shape(60, 8, 20, 40)
TEXT = ",".join(map(str, TINY))
ARGUMENTS = ["--shape", TEXT, "--rates", "2,10", "--repeats", "2", "--no-memory", "--sweep",
             "threads", "--sweep-shape", "20,2,5,16"]
RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


# -------------------------------------------------------------------------------- what a run leaves
@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run on the tiny shape."""
    out = tmp_path_factory.mktemp("bench")
    main([*ARGUMENTS, "--out", str(out)])
    return out


def test_columns_mean_what_they_say(written: Path) -> None:
    facts, rows = tables.read_csv(Result, written / "bench.csv")
    # and not where it was written
    assert facts["command"] == "python -m bench " + " ".join(ARGUMENTS)
    assert "LSNN_CACHE_MB" in facts and {"processor", "cores", "torch", "threads", "date",
                                         "packages"} <= set(facts)
    want = [(rate, timed) for rate in (2, 10) for timed in PASSES]
    assert [(row.rate_asked, row.timed) for row in rows] == want
    for base, other in zip(rows[:2], rows[2:], strict=True):
        assert base.base and base.ratio_to_ours == 1
        assert other.ratio_to_ours == pytest.approx(other.median_ms / base.median_ms, rel=1e-4)
    for row in rows:
        assert row.yardstick == TEXT and row.contestant == OURS and row.repeats == 2
        assert 0 < row.min_ms <= row.q1_ms <= row.median_ms <= row.q3_ms
        assert row.rate_measured == pytest.approx(row.rate_asked, rel=0.1)


def test_page_shows_the_numbers_of_the_csv(written: Path) -> None:
    text = (written / "README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| lsnn_ext at 10 %"))
    for row in tables.read_csv(Result, written / "bench.csv")[1][2:]:
        assert tables.number(row.median_ms) in line and tables.number(row.ratio_to_ours) in line
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert "sweep_threads.csv" in linked and all((written / name).exists() for name in linked)
    pytest.importorskip("matplotlib")
    assert {"times.png", "rates.png", "sweep_threads.png"} <= set(linked)


@pytest.mark.parametrize("results", ["layer/amd-epyc-2-cores", "long/amd-epyc-2-cores",
                                     "like_for_like/amd-epyc-2-cores-converted"])
def test_the_page_in_the_project_follows_from_its_csvs(results: str, tmp_path: Path) -> None:
    folder = RESULTS / results
    if not folder.is_dir():
        pytest.skip("the results are not beside these tests")
    shutil.copytree(folder, tmp_path / "copy")
    page.main([str(tmp_path / "copy")])
    assert (tmp_path / "copy" / "README.md").read_text() == (folder / "README.md").read_text()


def test_page_says_who_did_not_run(tmp_path: Path) -> None:
    results = [_result(timed=timed, peak_mib=100.0) for timed in PASSES]
    results += [replace(r, contestant="nn.LSTM", base=False, peak_mib=300.0) for r in results]
    skips = [Skip("P", "norse LSNN", "not run: would need about 7.0 GB, the limit is 3.0 GB")]
    page.write(tmp_path, {"processor": "none", "cores": "1", "torch": "2", "threads": "1"},
               page.Run(results, skips))
    text = (tmp_path / "README.md").read_text()
    assert "* norse LSNN: not run: would need about 7.0 GB" in text
    assert "| nn.LSTM | 1.00 | 300 (3.00) |" in text
    assert "| norse LSNN | - | would need about 7.0 GB, the limit is 3.0 GB |" in text


@pytest.mark.parametrize(("arguments", "message"), [
    (["Q"], "expected some of P,M,L,SHD,small,long, got 'Q'"),
    (["--like-for-like", "--yardsticks", "P,Q"],
     "--yardsticks: expected some of P,M,L,SHD,small,long, got 'Q'"),
    (["--sweep", "N,Q"],
     "--sweep: expected some of all,none,N,B,T,rate,active,threads, got 'Q'"),
    (["--shape", "1,2,3"], "--shape: expected four whole numbers T,B,I,N >= 1, got '1,2,3'"),
    (["--seconds", "0"], "--seconds: expected a number > 0, got '0'"),
    (["--repeats", "0"], "--repeats: expected a whole number >= 1, got '0'")])
def test_bad_arguments_are_named(arguments: list[str], message: str,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------- who is compared
@pytest.mark.parametrize("name", [OURS, "eager loop", "jax scan, jit"])
def test_contestants_compute_the_same(name: str) -> None:
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
    assert_same("gradients", [d_in, d_rec.T if name == OURS else d_rec], [w_in.grad, w_rec.grad],
                tolerance=1e-3)


@pytest.mark.parametrize(("name", "package"), [*zip(LAYERS, (
    "norse", "snntorch", "sinabs", "spikingjelly"), strict=True)])
def test_a_peer_fires_and_learns(name: str, package: str) -> None:
    """Its state starts anew in each call, or the second would continue the first."""
    pytest.importorskip(package)
    problem = Problem.of(Shape(60, 4, 20, 32))
    scale, rate = find_scale(problem, 0.03, tolerance=0.2, name=name)
    assert 0.01 < rate < 0.12
    peer = make(name, problem.scaled(scale))
    first, second = peer.forward(), peer.forward()
    assert first.shape == (60, 4, 32) and set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(first, second)
    gradients = peer.forward_backward()
    assert len(gradients) >= 2
    assert_same("gradients", peer.forward_backward(), gradients, nonzero=True)


def test_a_peer_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, ours = Problem.of(TINY), Entry(make(OURS, Problem.of(TINY)), 1.0, measured=2.0)
    needed = needed_bytes("eager loop", problem)
    assert 16 * problem.cotangent.numel() < needed < 100 * problem.cotangent.numel()
    with pytest.raises(OverLimitError, match="would need about"):
        measure._peer("eager loop", problem, ours, Limits(bytes=needed / 2))

    def absent(*_: object) -> Contestant:
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setattr(measure, "MAKERS", dict.fromkeys((OURS, "eager loop", "absent")))
    monkeypatch.setitem(contestants.MAKERS, "absent", absent)
    monkeypatch.setattr(measure, "peak_mib", lambda *_: 1 / 0)  # a process that was killed
    said: list[str] = []
    results, skipped = measure.measure(custom(TINY), [2.0], peers=True, repeats=2, memory=True,
                                       say=said.append)
    assert [r.contestant for r in results] == [OURS] * 2 + ["eager loop"] * 2
    assert skipped == [Skip(TEXT, "absent",
                            "skipped: ModuleNotFoundError: No module named 'absent'")]
    assert results[3].ratio_to_ours == pytest.approx(results[3].median_ms / results[1].median_ms)
    assert all(r.median_ms > 0 and r.saved_bytes > 4 and math.isnan(r.peak_mib) for r in results)
    assert any("not measured: ZeroDivisionError" in text for text in said)


# --------------------------------------------------------------------------------- what is measured
class Slow(Contestant):
    """Takes `scale` seconds forward, 4 for both; the first pass after a rest twice that."""

    def __init__(self, clock: list[float], scale: float = 1.0) -> None:
        self.name, self.clock, self.scale = "slow", clock, scale
        self.calls: list[str] = []

    def forward(self) -> Tensor:
        self.calls.append("forward")
        self.clock[0] += self.scale
        return torch.zeros(1)

    def forward_backward(self) -> list[Tensor]:
        is_first = self.scale != 1 and self.calls[-1:] == ["forward"]
        self.calls.append("both")
        self.clock[0] += 4 * self.scale * (2 if is_first else 1)
        return []


def test_turns_and_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short pass is repeated within its turn until 100 ms are full: 8 of 12 ms after a first one
    of 24, whose time does not count. A contestant takes part in as many rounds as fit."""
    clock = [0.0]  # the seconds that `measure` sees, which pass as contestants say
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0],
                                                         sleep=lambda _: None))
    slow = Slow(clock, 3 / 1024)
    assert alternate([slow], 2) == [([3e3 / 1024] * 2, [12e3 / 1024] * 2)]
    assert slow.calls.count("both") == 1 + 2 * 8
    once = Slow(clock, 3 / 1024)
    assert alternate([once], 2, steady=0.0) == [([3e3 / 1024] * 2, [24e3 / 1024] * 2)]
    for seconds, rounds in ((math.inf, 5), (20, 5), (19, 4), (9, 2), (1, 1)):
        assert alternate([Slow(clock)], 5, seconds) == [([1e3] * rounds, [4e3] * rounds)]


def test_saved_bytes_leave_out_inputs_weights_and_outputs() -> None:
    """The eager loop keeps v, a, z or m of each step at least."""
    total, beyond = saved_bytes(make("eager loop", Problem.of(TINY)))
    assert 8 <= beyond <= total <= 64


def test_a_yardstick_has_the_inputs_that_it_names() -> None:
    shd = replace(YARDSTICKS["SHD"], shape=Shape(50, 8, 700, 4))
    assert float(shd.problem().x.mean()) == pytest.approx(0.02, rel=0.05)


def _result(**changes: object) -> Result:
    nan = math.nan
    times = 8.0, 7.0, 7.5, 8.5
    result = Result("P", 10, 2, 3, 4, OURS, 2.0, 2.0, PASSES[1], *times, 1.0, 1.0, 1.0, nan, 2, 1,
                    True, 5.0, 50.0)
    return replace(result, **changes)  # type: ignore[arg-type]


def test_bound_is_the_larger_of_arithmetic_and_bytes() -> None:
    """Rates of 1e-6 Gflop/s and so on make the times milliseconds that can be followed by hand."""
    flops, steps = 2 * 10 * 2 * 4 * 4, 10 * 2 * 4
    read, written = 2 * 4 * 10 * 2 * 3 + steps * 8.125, steps * 8.125
    slow = [roofline.Rate(what, 1e-6, "", "") for what in ("fma", "read", "write")]
    bound = roofline.bound(_result(), slow)
    assert (bound.dense_ms, bound.active_ms) == pytest.approx((flops, flops / 2))
    assert bound.bytes_ms == pytest.approx(read + written)
    assert bound.events_ms == pytest.approx(2 * steps * 2 * (0.02 * 4 + 0.05 * 3))
    assert bound.ours_by_dense == pytest.approx(8 / (read + written))
    bound = roofline.bound(_result(), [slow[0], *(replace(rate, value=1.0) for rate in slow[1:])])
    assert (bound.ours_by_dense, bound.ours_by_active) == pytest.approx((8 / flops, 16 / flops))


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


def test_sweeps_vary_one_thing() -> None:
    before = torch.get_num_threads()
    points = sweep.sweep("active", TINY, repeats=1, values=(0.2, 1, 4))[::2]
    assert len({p.rate_measured for p in points}) == 1
    assert [p.x for p in points] == [p.active_share for p in points]
    assert points[0].x < 20 < points[1].x < 60 < points[2].x
    points = sweep.sweep("B", TINY, repeats=1, limits=Limits(bytes=40.0 * 60 * 16 * 41),
                         values=(1, 4, 4096))[::2]
    # no 4096
    assert [(p.T, p.B, p.I, p.N, p.x) for p in points] == [(60, 1, 20, 40, 1), (60, 4, 20, 40, 4)]
    points = sweep.sweep("threads", TINY, repeats=1, values=(1,))
    assert points[0].threads == 1 and torch.get_num_threads() == before
    assert sweep.thread_counts(6) == (1, 2, 4, 6) and sweep.thread_counts(1) == (1,)


def test_slope_is_the_exponent_of_the_larger_half_or_the_rise() -> None:
    def points(name: str, times: Iterator[tuple[float, float]]) -> list[sweep.Point]:
        return [sweep.Point(name, x, x, 1, 1, 1, 1, 2.0, 50.0, PASSES[0], *[ms] * 4, 1, 1)
                for x, ms in times]

    power = points("N", ((x, 7.0 if x < 64 else x**1.5) for x in (16, 32, 64, 128, 256, 512)))
    assert sweep.slope(power, PASSES[0]) == pytest.approx(1.5)
    assert sweep.slope_text(power, PASSES[0]) == "~ N^1.50"
    line = points("rate", ((x, 3 + 0.25 * x) for x in (1.0, 5.0, 20.0)))
    assert sweep.slope_text(line, PASSES[0]) == "+0.250 ms per percent"
    assert math.isnan(sweep.slope(line[:1], PASSES[0]))


# ------------------------------------------------------------------------------- the other programs
@pytest.mark.parametrize("name", variants.COMPARISONS)
def test_all_ways_lead_to_the_same_gradients(name: str) -> None:
    """On a small shape, with the weights and delays that the first of several ways has; those in
    bfloat16 to its precision. Input weights are multiples of 1/16, of which torch's product rounds
    none, so that all ways have the same current."""
    of = variants.COMPARISONS[name]
    N, B = (192 if of.shape.B == 1 else 64), min(of.shape.B, 32)
    problem = Problem.of(Shape(40, B, 20, N)).scaled(2.0)
    problem = replace(problem, w_in=(problem.w_in * 16).round() / 16)
    layers = [variants.make(problem, variant) for variant in of.variants]
    results = [[layer.forward(), *layer.forward_backward()] for layer in layers]
    first: dict[tuple[float, int], list[Tensor]] = {}
    for layer, got in zip(layers, results, strict=True):
        variant = layer.inner.variant
        want = first.setdefault((variant.density, variant.delays), got)
        assert 0.005 < float(want[0].mean()) < 0.5
        assert torch.equal(got[0], want[0])
        for a, b in zip(got[1:], want[1:], strict=True):
            if variant.arguments.get("sparse_grad") == "existing" and b is want[-1]:
                b = torch.where(layer.inner.w_rec == 0, 0.0, b)
            assert_same(variant.name, a, b, tolerance=0.03 if "bfloat16" in variant.name else 1e-4)


def test_variants_are_compared(monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    tiny = replace(variants.COMPARISONS["membranes P"], shape=TINY)
    monkeypatch.setattr(variants, "COMPARISONS", {"membranes P": tiny})
    monkeypatch.setattr(variants, "LONG", Shape(500, 2, 8, 64))
    variants.main(["--repeats", "2"])
    out = capsys.readouterr().out
    assert re.search(
        r"y saved as bfloat16 +forward +[\d.]+ +[\d.]+x +forward\+backward +[\d.]+ +[\d.]+x", out)
    assert re.search(r"checkpoint_every=256 +\d+ MB", out)
    with pytest.raises(SystemExit):
        variants.main(["nothing of that name"])
    assert "words: expected some of" in capsys.readouterr().err


def test_check_fails_below_its_limit(monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    # what they are depends on the machine
    assert set(check.ratios(Shape(60, 8, 20, 40), 1)) == set(PASSES)
    ours, loop = ([1.0, 9.0, 1.0], [0.5, 0.25, 9.0]), ([3.0, 3.0, 9.0], [1.0, 2.5, 4.0])
    monkeypatch.setattr(check, "alternate", lambda contestants, repeats: [ours, loop])
    assert check.main(["--least", "5"]) == 0
    out = capsys.readouterr().out
    assert "forward+backward: lsnn_ext 0.50 ms, eager loop 2.50 ms, 5.0 times" in out
    assert check.main(["--least", "5.01"]) == 1
    assert "FAILED: forward+backward: expected at least 5.01 times" in capsys.readouterr().out


def test_latency_of_a_step_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    latency.main(["--neurons", "8", "--ticks", "3"])
    out = capsys.readouterr().out
    for name in latency.contestants(4, 8):
        assert re.search(rf"{re.escape(name)} +[\d.]+ +[\d.]+\n", out)
