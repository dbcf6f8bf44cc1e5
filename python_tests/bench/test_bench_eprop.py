"""`python -m bench.eprop`: e-prop's gradients by several ways; other gradients are refused."""
from pathlib import Path

import pytest
import torch

from bench import eprop
from bench.like_for_like import NotAlikeError
from bench.problem import Shape
from bench.tables import read_csv

TINY = Shape(60, 4, 20, 32)


def test_ways_compute_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_threads: None,
                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(eprop, "SHAPES", {"tiny": TINY})
    eprop.main(["tiny", "--repeats", "2", "--out", str(tmp_path / "eprop.csv")])
    assert "| tiny: 60, 4, 20, 32 | eligibility traces |" in capsys.readouterr().out
    facts, lines = read_csv(eprop.Line, tmp_path / "eprop.csv")
    assert facts["command"] == "python -m bench.eprop tiny --repeats 2"
    ours, full, loop, traces = lines
    assert ours.ratio == 1 and traces.way == eprop.TRACES
    for line in lines:
        assert line.differing == 0 and line.rounds == 2
        assert (line.gradient_difference < 1e-4) == (line is not full)


def test_other_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(net: eprop.Net, learn: bool) -> eprop.Found:
        spikes, gradients = eprop.fused(net, "eprop_elig_stop", learn)
        return spikes, {name: 1.02 * one for name, one in gradients.items()}

    monkeypatch.setattr(eprop, "_traces", other)
    with pytest.raises(NotAlikeError, match="expected equal spikes and gradients, got 0 other sp"):
        eprop.measure("tiny", TINY, 1, 1.0)


def test_traces_without_learning_have_the_spikes() -> None:
    net = eprop.Net.of(TINY, lif=True)
    spikes, gradients = eprop.sum_traces(net.x, **net.weights, target=net.target, k=eprop.K,
                                        learn=False, **net.coefficients)
    assert torch.equal(spikes, eprop.fused(net, "eprop_elig", False)[0]) and not gradients
