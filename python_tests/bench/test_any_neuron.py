"""Comparisons of neurons written as a step and of ways to e-prop: other results are refused."""
import importlib.util
from pathlib import Path

import pytest
import torch

from bench import any_neuron, eprop
from bench.__main__ import main
from bench.any_neuron import KINDS, OURS, Line, NotAlikeError
from bench.problem import Shape, custom
from bench.tables import read_csv

SHAPE = Shape(60, 4, 20, 32)
TINY = custom(SHAPE)


@pytest.mark.parametrize("name", KINDS)
def test_contestants_compute_the_same(name: str) -> None:
    lines, skipped = any_neuron.measure(name, TINY, repeats=2, seconds=1.0)
    wanted = [OURS, *any_neuron.makers_of(KINDS[name])]
    without = [] if importlib.util.find_spec("jax") else ["jax.lax.scan"]
    assert [line.contestant for line in lines] == [one for one in wanted if one not in without]
    assert [skip.contestant for skip in skipped] == [
        f"{name}: {one}" for one in wanted if one in without]
    for line in lines:
        assert line.differing == 0 and line.gradient_difference < 1e-4, line
        assert 2 < line.rate_measured < 4 and line.rounds == 2 and line.ratio > 0
    assert lines[0].ratio == 1


def test_other_spikes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = any_neuron.Layer.coefficients
    monkeypatch.setattr(any_neuron.Ours, "coefficients",
                        property(lambda layer: given.fget(layer) | {"dt": 0.0101}))
    with pytest.raises(NotAlikeError, match="rf on 60,4,20,32: expected equal spikes, got"):
        any_neuron.measure("rf", TINY, repeats=1, seconds=1.0)


def test_other_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = any_neuron.Ours.forward_backward
    monkeypatch.setattr(any_neuron.Ours, "forward_backward",
                        lambda layer: [1.02 * one for one in backward(layer)])
    with pytest.raises(NotAlikeError, match="expected equal gradients, got a relative difference"):
        any_neuron.measure("tc_lif", TINY, repeats=1, seconds=1.0)


def test_command_writes_a_page(tmp_path: Path) -> None:
    command = "--any-neuron --neurons lsnn --shape 60,4,20,32 --repeats 1"
    main([*command.split(), "--out", str(tmp_path)])
    page = (tmp_path / "README.md").read_text()
    assert f"python -m bench {command}\n" in page
    assert "| `lsnn` | functional.alif |" in page and "## 60,4,20,32: 60 steps" in page
    _, lines = read_csv(Line, tmp_path / "any_neuron.csv")
    assert [line.contestant for line in lines] == [OURS, "functional.alif"]


# ------------------------------------------------------------------------------------- bench.eprop
def test_ways_compute_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_threads: None,
                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(eprop, "SHAPES", {"tiny": SHAPE})
    eprop.main(["tiny", "--repeats", "2", "--out", str(tmp_path / "eprop.csv")])
    assert "| tiny: 60, 4, 20, 32 | eligibility traces |" in capsys.readouterr().out
    facts, lines = read_csv(eprop.Line, tmp_path / "eprop.csv")
    assert facts["command"] == "python -m bench.eprop tiny --repeats 2"
    ours, full, loop, traces = lines
    assert ours.ratio == 1 and traces.way == eprop.TRACES
    for line in lines:
        assert line.differing == 0 and line.rounds == 2
        assert (line.gradient_difference < 1e-4) == (line is not full)


def test_other_gradients_of_eprop_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(net: eprop.Net, learn: bool) -> eprop.Found:
        spikes, gradients = eprop.fused(net, "eprop_elig_stop", learn)
        return spikes, {name: 1.02 * one for name, one in gradients.items()}

    monkeypatch.setattr(eprop, "_traces", other)
    with pytest.raises(NotAlikeError, match="expected equal spikes and gradients, got 0 other sp"):
        eprop.measure("tiny", SHAPE, 1, 1.0)


def test_traces_without_learning_have_the_spikes() -> None:
    net = eprop.Net.of(SHAPE, lif=True)
    spikes, gradients = eprop.sum_traces(net.x, **net.weights, target=net.target, k=eprop.K,
                                        learn=False, **net.coefficients)
    assert torch.equal(spikes, eprop.fused(net, "eprop_elig", False)[0]) and not gradients
