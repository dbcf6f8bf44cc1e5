"""The zoo: each neuron against a loop, its defaults against the papers' numbers, pictures."""
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

import lsnn_ext
from compare import assert_same, run_on_copies
from lsnn_ext import functional, zoo
from lsnn_ext.zoo.__main__ import main
from zoo_loops import DEFAULTS, DRIVE, LOOPS, draw_call, zoo_coefficients

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", zoo.NEURONS)
def test_neuron_is_that_of_the_paper(name: str, seed: int) -> None:
    module = zoo.NEURONS[name]
    x, w, values = draw_call(name, seed)

    def mine(x: Tensor, w: Tensor, *coefficients: Tensor) -> list[Tensor]:
        named = dict(zip(values, coefficients, strict=True))
        current, weights = (x, w) if len(w) > 1 else (x[:, :, 0], w[0])
        spikes, state = functional.recurrent(current, weights, module.neuron, **named)
        return [spikes, *(part for one in state.states.values()
                          for part in ((one.real, one.imag) if one.is_complex() else (one,)))]

    def theirs(x: Tensor, w: Tensor, *coefficients: Tensor) -> list[Tensor]:
        named = dict(zip(values, coefficients, strict=True))
        spikes, states = LOOPS[name](x.transpose(1, 2), w, **named)
        return [spikes, *states]

    got, wanted = (run_on_copies(call, x, w, *values.values()) for call in (mine, theirs))
    assert 0.02 < float(got[0].mean()) < 0.6
    assert set(got[0].unique().tolist()) == {0.0, 1.0}
    assert_same("spikes", got[0], wanted[0])
    labels, first = ["x", "w_rec", *values], -2 - len(values)
    assert_same("states", got[1:first], wanted[1:first], tolerance=1e-12)
    for label, one, other in zip(labels, got[first:], wanted[first:], strict=True):
        assert bool(other.any()), label
        assert_same(label, one, other, tolerance=1e-9)


@pytest.mark.parametrize("name", zoo.NEURONS)
def test_defaults_are_those_of_the_paper(name: str) -> None:
    assert zoo_coefficients(name) == pytest.approx(DEFAULTS[name], rel=1e-12)


def test_every_file_is_listed_and_tested() -> None:
    files = {path.stem for path in (ROOT / "lsnn_ext" / "zoo").glob("*.py")}
    assert files - {"__init__", "__main__", "surrogates"} == set(zoo.NEURONS)
    assert set(zoo.NEURONS) == set(LOOPS) == set(DEFAULTS) == set(DRIVE)
    for module in zoo.NEURONS.values():
        assert module.neuron.inputs[-1] == "z"
        assert isinstance(module.neuron, lsnn_ext.Neuron)
        assert pickle.loads(pickle.dumps(module.neuron)) == module.neuron
        assert "Source:" in module.step.__doc__


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(["--out", str(tmp_path), "rf", "dh_srnn", "c_silif"])
    for name in ("rf", "dh_srnn", "c_silif"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_an_unknown_neuron_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "lif"])
    assert "neurons: expected some of rf, brf" in capsys.readouterr().err


def test_an_import_loads_neither_matplotlib_nor_the_compiler_of_torch() -> None:
    ran = subprocess.run([sys.executable, "-c", "import sys, lsnn_ext.zoo.__main__; "
                          "assert not {'matplotlib', 'torch._dynamo'} & {*sys.modules}"], cwd=ROOT,
                         capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
