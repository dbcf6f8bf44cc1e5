"""Plots of spikes, membranes and weights with matplotlib: pip install "matplotlib>=3.8".

Every function draws into the given axes, or into new ones, and returns them. Tensors may be on any
device and require gradients; times are in the unit of dt.
"""
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["connectivity", "membrane", "raster", "rates", "weights"]


def _get_axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    pyplot = import_extra("matplotlib.pyplot", "plot", "matplotlib>=3.8")
    return pyplot.subplots(layout="constrained")[1]


def _get_array(name: str, value: Any, batch: int, dims: int = 2) -> np.ndarray:
    """An array (T, N) of a tensor (T, N), or of a sequence of (T, B, N); dims=3: of all."""
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
    if array.ndim not in (2, 3):
        raise ValueError(f"{name}: expected shape (T, N) or (T, B, N), got {tuple(array.shape)}")
    if array.ndim == 3 and dims == 2:
        if not -array.shape[1] <= batch < array.shape[1]:
            raise IndexError(f"batch: expected an index of {array.shape[1]} sequences, got {batch}")
        array = array[:, batch]
    return array


def raster(spikes: Tensor, ax: "Axes | None" = None, *, batch: int = 0, dt: float = 1.0,
           **line: Any) -> "Axes":
    """Draws a raster plot: a mark for each spike, time on x, neurons on y.

    Args:
        spikes: (T, N), or (T, B, N) of which one sequence is drawn. Any nonzero is a spike.
        ax: matplotlib axes. Default: new ones.
        batch: index of the sequence. Default 0.
        dt: duration of a step; step t is at t dt. Default 1.
        **line: options of Axes.plot, such as marker and color.

    Returns:
        The axes; the marks are their last line.

    Raises:
        TypeError, ValueError, IndexError: not a tensor, another shape, or no such sequence.
        ImportError: matplotlib is not installed.
    """
    array, ax = _get_array("spikes", spikes, batch), _get_axes(ax)
    steps, neurons = np.nonzero(array)
    style = {"linestyle": "none", "marker": "|", "markersize": 3, "color": "black", **line}
    ax.plot(steps * dt, neurons, **style)
    ax.set(xlim=(-dt / 2, (len(array) - 0.5) * dt), ylim=(-0.5, array.shape[1] - 0.5),
           xlabel="time", ylabel="neuron")
    return ax


def membrane(traces: Any, ax: "Axes | None" = None, *, neuron: int = 0, batch: int = 0,
             spikes: Tensor | None = None, dt: float = 1.0) -> "Axes":
    """Draws the membrane and the moving threshold of one neuron.

    Args:
        traces: Traces of trace=True, or any object with tensors v and threshold (T, B, N) or
            (T, N).
        ax: matplotlib axes. Default: new ones.
        neuron, batch: indices of the neuron and of the sequence. Default 0.
        spikes: (T, B, N) or (T, N): adds a dotted vertical line for each spike of the neuron.
            Default None.
        dt: duration of a step. Default 1.

    Returns:
        The axes, whose lines are labelled v and threshold.

    Raises:
        TypeError, ValueError, IndexError: not traces, another shape, or no such neuron or sequence.
        ImportError: matplotlib is not installed.
    """
    for name in ("v", "threshold"):
        if not hasattr(traces, name):
            raise TypeError(f"traces: expected Traces of trace=True, got {type(traces).__name__}")
    curves = {name: _get_array(name, getattr(traces, name), batch) for name in ("v", "threshold")}
    T, N = curves["v"].shape
    if not -N <= neuron < N:
        raise IndexError(f"neuron: expected an index of {N} neurons, got {neuron}")
    ax, times = _get_axes(ax), np.arange(T) * dt
    ax.plot(times, curves["v"][:, neuron], label="v")
    ax.plot(times, curves["threshold"][:, neuron], "--", label="threshold")
    if spikes is not None:
        fired = np.nonzero(_get_array("spikes", spikes, batch)[:, neuron])[0]
        for time in fired * dt:
            ax.axvline(time, color="grey", linewidth=0.8, linestyle=":")
    ax.set(xlabel="time", ylabel=f"neuron {neuron}")
    ax.legend()
    return ax


def rates(spikes: Tensor, ax: "Axes | None" = None, *, dt: float = 1.0, bins: int = 20) -> "Axes":
    """Draws a histogram of the firing rates of neurons, averaged over steps and sequences.

    Args:
        spikes: (T, N) or (T, B, N).
        ax: matplotlib axes. Default: new ones.
        dt: duration of a step; rates are spikes per unit of time, at most 1 / dt. Default 1.
        bins: number of bins. Default 20.

    Returns:
        The axes; a dashed line marks the mean rate.

    Raises:
        TypeError, ValueError: not a tensor, another shape, or no steps.
        ImportError: matplotlib is not installed.
    """
    array = _get_array("spikes", spikes, 0, dims=3)
    if not array.shape[0] or not array.size:
        raise ValueError(f"spikes: expected one step or more, got shape {tuple(array.shape)}")
    each = (array != 0).reshape(-1, array.shape[-1]).mean(0) / dt
    ax = _get_axes(ax)
    ax.hist(each, bins=bins)
    ax.axvline(float(each.mean()), color="black", linestyle="--", label=f"mean {each.mean():.3g}")
    ax.set(xlabel="spikes per unit of time", ylabel="neurons")
    ax.legend()
    return ax


def _get_matrix(weight: Any) -> np.ndarray:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    if weight.dim() != 2:
        raise ValueError(f"weight: expected shape (targets, sources), as a module has it, got "
                         f"{tuple(weight.shape)}")
    return weight.detach().to("cpu", torch.float32).numpy()


def weights(weight: Tensor, ax: "Axes | None" = None, *, colorbar: bool = True) -> "Axes":
    """Draws a weight matrix as an image: red excites, blue inhibits, white is 0.

    Args:
        weight: (N, I) or (N, N), targets first, as weight_ih and weight_hh of a module.
        ax: matplotlib axes. Default: new ones.
        colorbar: whether to draw a color bar. Default True.

    Returns:
        The axes; the image is their last one.

    Raises:
        TypeError, ValueError: not a tensor, or another shape.
        ImportError: matplotlib is not installed.
    """
    array, ax = _get_matrix(weight), _get_axes(ax)
    most = float(np.abs(array).max(initial=0.0)) or 1.0
    image = ax.imshow(array, cmap="bwr", vmin=-most, vmax=most, aspect="auto",
                      interpolation="nearest")
    ax.set(xlabel="from", ylabel="to")
    if colorbar:
        ax.figure.colorbar(image, ax=ax)
    return ax


def connectivity(weight: Tensor, ax: "Axes | None" = None, *, mask: Tensor | None = None) -> "Axes":
    """Draws the signs of synapses as an image: red excites, blue inhibits, white is no synapse. The
    title has the fraction of synapses.

    Args:
        weight: (N, I) or (N, N), targets first.
        ax: matplotlib axes. Default: new ones.
        mask: bool of the same shape, False where there is no synapse. Default: all True.

    Returns:
        The axes; the image is their last one.

    Raises:
        TypeError, ValueError: not a tensor, or another shape.
        ImportError: matplotlib is not installed.
    """
    sign = np.sign(_get_matrix(weight))
    if mask is not None:
        allowed = _get_matrix(mask) != 0
        if allowed.shape != sign.shape:
            raise ValueError(f"mask: expected shape {sign.shape} as weight, got {allowed.shape}")
        sign = np.where(allowed, sign, 0.0)
    ax = _get_axes(ax)
    ax.imshow(sign, cmap="bwr", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    share = float((sign != 0).mean()) if sign.size else 0.0
    ax.set(xlabel="from", ylabel="to", title=f"{100 * share:.3g} % of {sign.size} synapses")
    return ax
