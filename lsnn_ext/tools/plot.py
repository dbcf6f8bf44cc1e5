"""Pictures of spikes, membranes and weights, by matplotlib: pip install "matplotlib>=3.8".

Every function draws into the axes that it is given, or into new ones, and returns them. Tensors may
lie anywhere and want gradients; times are in the unit of dt.
"""
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["connectivity", "membrane", "raster", "rates", "weights"]


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('lsnn_ext.plot: expected matplotlib, which is not installed; pip install '
                          '"matplotlib>=3.8"') from error
    made: Axes = plt.subplots(layout="constrained")[1]
    return made


def _numbers(name: str, value: Any, batch: int, dims: int = 2) -> np.ndarray:
    """(T, N) of a tensor (T, N) or (T, B, N), of which one sequence is taken; with dims=3 the
    latter stays."""
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
    if array.ndim not in (2, 3):
        raise ValueError(f"{name}: expected shape (T, N) or (T, B, N), got {tuple(array.shape)}")
    if array.ndim == 3 and dims == 2:
        if not -array.shape[1] <= batch < array.shape[1]:
            raise IndexError(f"batch: expected a sequence of {array.shape[1]}, got {batch}")
        array = array[:, batch]
    return array


def raster(spikes: Tensor, ax: "Axes | None" = None, *, batch: int = 0, dt: float = 1.0,
           **line: Any) -> "Axes":
    """A mark for each spike: time to the right, neurons upwards.

    Args:
        spikes: (T, N), or (T, B, N) of which the sequence number batch is drawn. Whatever is not 0
            is a spike.
        ax: matplotlib axes to draw into. Default: new ones.
        batch: the sequence. Default the first.
        dt: duration of a step; step t stands at t dt. Default 1.
        **line: of Axes.plot, marker and color for instance.

    Returns:
        The axes; the marks are their last line.

    Raises:
        TypeError, ValueError, IndexError: no tensor, another shape, no such sequence.
        ImportError: matplotlib is not installed.
    """
    array, ax = _numbers("spikes", spikes, batch), _axes(ax)
    steps, neurons = np.nonzero(array)
    style = {"linestyle": "none", "marker": "|", "markersize": 3, "color": "black", **line}
    ax.plot(steps * dt, neurons, **style)
    ax.set(xlim=(-dt / 2, (len(array) - 0.5) * dt), ylim=(-0.5, array.shape[1] - 0.5),
           xlabel="time", ylabel="neuron")
    return ax


def membrane(traces: Any, ax: "Axes | None" = None, *, neuron: int = 0, batch: int = 0,
             spikes: Tensor | None = None, dt: float = 1.0) -> "Axes":
    """The membrane of one neuron and its moving threshold.

    Args:
        traces: Traces of trace=True, or anything with tensors v and threshold (T, B, N) or (T, N).
        ax: matplotlib axes to draw into. Default: new ones.
        neuron, batch: which neuron, of which sequence. Default the first.
        spikes: (T, B, N) or (T, N): also a dotted vertical line for each spike of the neuron.
        dt: duration of a step. Default 1.

    Returns:
        The axes, whose lines are labelled v and threshold.

    Raises:
        TypeError, ValueError, IndexError: no traces, another shape, no such neuron or sequence.
        ImportError: matplotlib is not installed.
    """
    for name in ("v", "threshold"):
        if not hasattr(traces, name):
            raise TypeError(f"traces: expected Traces, of trace=True, got {type(traces).__name__}")
    curves = {name: _numbers(name, getattr(traces, name), batch) for name in ("v", "threshold")}
    T, N = curves["v"].shape
    if not -N <= neuron < N:
        raise IndexError(f"neuron: expected one of {N}, got {neuron}")
    ax, times = _axes(ax), np.arange(T) * dt
    ax.plot(times, curves["v"][:, neuron], label="v")
    ax.plot(times, curves["threshold"][:, neuron], "--", label="threshold")
    if spikes is not None:
        fired = np.nonzero(_numbers("spikes", spikes, batch)[:, neuron])[0]
        for time in fired * dt:
            ax.axvline(time, color="grey", linewidth=0.8, linestyle=":")
    ax.set(xlabel="time", ylabel=f"neuron {neuron}")
    ax.legend()
    return ax


def rates(spikes: Tensor, ax: "Axes | None" = None, *, dt: float = 1.0, bins: int = 20) -> "Axes":
    """How many neurons fire how often: a histogram of rates, means over steps and sequences.

    Args:
        spikes: (T, N) or (T, B, N).
        ax: matplotlib axes to draw into. Default: new ones.
        dt: duration of a step: rates are spikes per unit of time, at most 1 / dt. Default 1.
        bins: bars. Default 20.

    Returns:
        The axes; a dashed line stands at the mean rate.

    Raises:
        TypeError, ValueError: no tensor, another shape, no steps.
        ImportError: matplotlib is not installed.
    """
    array = _numbers("spikes", spikes, 0, dims=3)
    if not array.shape[0] or not array.size:
        raise ValueError(f"spikes: expected one step or more, got shape {tuple(array.shape)}")
    each = (array != 0).reshape(-1, array.shape[-1]).mean(0) / dt
    ax = _axes(ax)
    ax.hist(each, bins=bins)
    ax.axvline(float(each.mean()), color="black", linestyle="--",
               label=f"mean {each.mean():.3g}")
    ax.set(xlabel="spikes per unit of time", ylabel="neurons")
    ax.legend()
    return ax


def _matrix(weight: Any) -> np.ndarray:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    if weight.dim() != 2:
        raise ValueError(f"weight: expected shape (targets, sources), as a module has it, got "
                         f"{tuple(weight.shape)}")
    array: np.ndarray = weight.detach().to("cpu", torch.float32).numpy()
    return array


def weights(weight: Tensor, ax: "Axes | None" = None, *, colorbar: bool = True) -> "Axes":
    """A weight matrix as a picture: red excites, blue inhibits, white is 0.

    Args:
        weight: (N, I) or (N, N), targets first, as weight_ih and weight_hh of a module.
        ax: matplotlib axes to draw into. Default: new ones.
        colorbar: whether to draw the scale beside it. Default True.

    Returns:
        The axes; the picture is their last image.

    Raises:
        TypeError, ValueError: no tensor, another shape.
        ImportError: matplotlib is not installed.
    """
    array, ax = _matrix(weight), _axes(ax)
    most = float(np.abs(array).max(initial=0.0)) or 1.0
    image = ax.imshow(array, cmap="bwr", vmin=-most, vmax=most, aspect="auto",
                      interpolation="nearest")
    ax.set(xlabel="from", ylabel="to")
    if colorbar:
        ax.figure.colorbar(image, ax=ax)
    return ax


def connectivity(weight: Tensor, ax: "Axes | None" = None, *, mask: Tensor | None = None) -> "Axes":
    """Which synapses there are: +1 excites, -1 inhibits, 0 is none; the title has their share.

    Args:
        weight: (N, I) or (N, N), targets first.
        ax: matplotlib axes to draw into. Default: new ones.
        mask: booleans of the same shape: only what is true counts, whatever its weight.

    Returns:
        The axes; the picture is their last image.

    Raises:
        TypeError, ValueError: no tensor, another shape.
        ImportError: matplotlib is not installed.
    """
    sign = np.sign(_matrix(weight))
    if mask is not None:
        kept = _matrix(mask) != 0
        if kept.shape != sign.shape:
            raise ValueError(f"mask: expected shape {sign.shape} as weight, got {kept.shape}")
        sign = np.where(kept, sign, 0.0)
    ax = _axes(ax)
    ax.imshow(sign, cmap="bwr", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    share = float((sign != 0).mean()) if sign.size else 0.0
    ax.set(xlabel="from", ylabel="to", title=f"{100 * share:.3g} % of {sign.size} synapses")
    return ax
