"""lsnn_ext.plot: what is drawn is what was given."""
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lsnn_ext import ALIF
from lsnn_ext.tools import plot
from operator_calls import python_output

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  # after the choice of what it draws with


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def _spikes() -> torch.Tensor:
    spikes = torch.zeros(10, 2, 4)
    spikes[3, 0, 1] = spikes[7, 0, 1] = spikes[2, 1, 3] = 1
    return spikes


def test_raster() -> None:
    for batch, want in ((0, [(1.5, 1), (3.5, 1)]), (1, [(1.0, 3)])):
        ax = plot.raster(_spikes(), batch=batch, dt=0.5)
        (line,) = ax.lines
        assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == want
        assert ax.get_xlim() == (-0.25, 4.75) and ax.get_ylim() == (-0.5, 3.5)
    given = plt.figure().subplots()
    assert plot.raster(_spikes()[:, 0].bool(), given, color="red") is given
    assert given.lines[0].get_color() == "red" and len(given.lines[0].get_xdata()) == 2


def test_membrane_with_moving_threshold() -> None:
    torch.manual_seed(0)
    layer, x = ALIF(5, 7), torch.randn(30, 2, 5)
    spikes, _, traces = layer(x, trace=True)
    neuron = int(spikes[:, 1].sum(0).argmax())
    ax = plot.membrane(traces, neuron=neuron, batch=1, spikes=spikes, dt=2.0)
    v, threshold, *marks = ax.lines
    assert [v.get_label(), threshold.get_label()] == ["v", "threshold"]
    np.testing.assert_array_equal(v.get_xdata(), np.arange(30) * 2.0)
    for line, trace in ((v, traces.v), (threshold, traces.threshold)):
        np.testing.assert_array_equal(line.get_ydata(), trace[:, 1, neuron].detach().numpy())
    assert np.ptp(threshold.get_ydata()) > 0
    fired = spikes[:, 1, neuron].nonzero().flatten() * 2.0
    assert len(fired) > 0
    assert [mark.get_xdata()[0] for mark in marks] == fired.tolist()


def test_rates() -> None:
    ax = plot.rates(_spikes(), dt=0.5, bins=4)
    # of 20 steps of half a unit two and one with a spike, neurons 1 and 3: 0.2 and 0.1 per unit
    heights = [bar.get_height() for bar in ax.patches]
    assert sum(heights) == 4 and heights == [2, 0, 1, 1]
    assert ax.patches[-1].get_x() + ax.patches[-1].get_width() == pytest.approx(0.2)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(0.075)


def test_weights_and_connectivity() -> None:
    weight = torch.tensor([[0.5, 0.0, -2.0], [0.0, 1.0, 0.25]], requires_grad=True)
    ax = plot.weights(weight)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), weight.detach().numpy())
    assert image.get_clim() == (-2.0, 2.0) and len(ax.figure.axes) == 2
    ax = plot.connectivity(weight)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0, -1], [0, 1, 1]])
    assert ax.get_title() == "66.7 % of 6 synapses"
    ax = plot.connectivity(weight, mask=torch.tensor([[True, True, False], [True, True, True]]))
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0, 0], [0, 1, 1]])
    ax = plot.weights(torch.zeros(2, 2), colorbar=False)
    assert ax.images[0].get_clim() == (-1.0, 1.0) and len(ax.figure.axes) == 1


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: plot.raster([1]), TypeError, "spikes: expected a tensor, got list"),
    (lambda: plot.raster(torch.zeros(3)), ValueError, r"spikes: .* got \(3,\)"),
    (lambda: plot.raster(_spikes(), batch=2), IndexError,
     "batch: expected an index of 2 sequences, got 2"),
    (lambda: plot.membrane(_spikes()), TypeError, "traces: expected Traces"),
    (lambda: plot.rates(_spikes()[:0]), ValueError, "spikes: expected one step or more"),
    (lambda: plot.weights(_spikes()), ValueError, "weight: expected shape"),
    (lambda: plot.connectivity(torch.zeros(2, 2), mask=torch.ones(2, 3)), ValueError,
     "mask: expected shape")])
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    """The package does without it, and says how to get it."""
    code = ("import sys; sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
            "import lsnn_ext, torch\n"
            "try: lsnn_ext.plot.raster(torch.zeros(2, 3))\n"
            "except ImportError as error: print(error)")
    assert 'pip install "matplotlib>=3.8"' in python_output(code)
