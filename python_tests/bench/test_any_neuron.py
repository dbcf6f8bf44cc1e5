"""The comparison of neurons written as a step: one that computes something else is refused."""
import importlib.util
from pathlib import Path

import pytest
import torch

from bench import any_neuron
from bench.__main__ import main
from bench.any_neuron import KINDS, OURS, Line, NotAlikeError
from bench.problem import Shape, custom
from bench.tables import read_csv

TINY = custom(Shape(60, 4, 20, 32))


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
    monkeypatch.setattr(any_neuron.Ours, "fixed", {"dt": 0.0101}, raising=False)
    spikes = any_neuron.Ours.spikes

    def other(layer: any_neuron.Ours) -> torch.Tensor:
        layer.fixed = {"dt": 0.0101}
        return spikes(layer)

    monkeypatch.setattr(any_neuron.Ours, "spikes", other)
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
