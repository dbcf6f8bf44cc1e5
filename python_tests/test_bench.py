"""The benchmark runs end to end, and what it reports means what its columns say."""
import csv
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.contestants import MAKERS, OURS, Problem, Shape, make
from bench.measure import PASSES, Result, find_scale, saved_bytes
from lsnn_ext import reference

TINY = Shape(60, 8, 20, 40)
TEXT = ",".join(map(str, TINY))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run on the tiny shape."""
    out = tmp_path_factory.mktemp("bench")
    main(["--shape", TEXT, "--rates", "2,10", "--repeats", "2", "--no-memory", "--out", str(out)])
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
    assert names == ["processor", "cores", "instruction set", "torch", "threads", "lsnn_ext"]
    pytest.importorskip("matplotlib")
    for plot in ("times.png", "rates.png"):
        assert (written / plot).stat().st_size > 10_000


@pytest.mark.parametrize("name", [OURS, "eager loop", "jax scan, jit"])
def test_contestants_compute_the_same(name: str) -> None:
    """What is called the same equations gives the same spikes and gradients as the reference."""
    if name == "jax scan, jit":
        pytest.importorskip("jax")
    problem = Problem.of(TINY).scaled(3.0)
    w_in, w_rec = problem.w_in.clone().requires_grad_(), problem.w_rec.clone().requires_grad_()
    from bench.contestants import ALPHA, BETA, RHO, THETA

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


def test_unknown_yardstick_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["Q"])
    assert "yardsticks: expected some of P, M, L, got 'Q'" in capsys.readouterr().err
    assert OURS in MAKERS
