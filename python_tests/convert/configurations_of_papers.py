"""The settings of the recurrent layers of Yin et al., of Bittar and Garner, and of Baronig et al.,
a row each."""
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

import peer_layers as peers
import published
from configuration_rows import DOUBLE, Make, Package, Row, Values
from originals import B, I, N, T, uniform


def _srnn_loop(layer: Any, x: Tensor) -> Values:
    layer.set_neuron_state(B)
    found = [layer(x_t) for x_t in x]
    return {"spikes": torch.stack([spike for _, spike in found]),
            "membranes": torch.stack([mem for mem, _ in found]), "b": layer.b}


def _srnn_sequence(layer: Any, x: Tensor) -> Values:
    layer.set_neuron_state(B)
    membranes, spikes = layer(x, trace=True)
    return {"spikes": spikes, "membranes": membranes, "b": layer.b}


def _sparch_sequence(layer: Any, x: Tensor) -> Values:
    torch.manual_seed(7)  # of the states that are drawn
    return {"spikes": layer(x)}


def _se_adlif_sequence(layer: Any, x: Tensor) -> Values:
    spikes, states = layer(x)
    return {"spikes": spikes, "states": states}


def _inputs(*shape: int) -> Callable[[Any], Tensor]:
    return lambda layer: uniform(-1, 2, *shape, dtype=next(layer.parameters()).dtype, seed=3)


YIN = Package(_inputs(T, B, I), _srnn_sequence, _srnn_loop)
SPARCH = Package(_inputs(B, T, I), _sparch_sequence)
SE_ADLIF = Package(_inputs(B, T, I), _se_adlif_sequence)


def _published(make: Make, gain: float, change: Callable[[Any], None] | None = None) -> Make:
    def made() -> Any:
        torch.manual_seed(2)
        layer = make().double()
        peers.fill(layer, gain)
        if change is not None:
            change(layer)
        return layer

    return made


def _twice(layer: Any) -> None:
    layer.spike_fct = lambda u: published._spike(u, lambda m: 2 * published._boxcar(m))


def rows() -> list[Row]:
    rows = [Row(f"Yin SRNN {more or ''}", YIN, _published(
        lambda more=more: peers.spike_rnn(**more), 2.0), DOUBLE)  # type: ignore[misc]
        for more in ({}, {"is_adaptive": 0}, {"bias": False})]
    settings: list[dict[str, Any]] = [
        {"normalization": "none"}, {"normalization": "none", "use_bias": True, "threshold": 0.75},
        {"normalization": "none", "bidirectional": True}, {"normalization": "batchnorm"},
        {"normalization": "layernorm"}]
    for kind, more in product(("RadLIFLayer", "RLIFLayer"), settings):
        if kind == "RLIFLayer" and more["normalization"] != "none":
            more = more | {"threshold": 0.25}  # noqa: PLW2901  it would be silent
        rows.append(Row(f"sparch {kind} {more}", SPARCH, _published(
            lambda kind=kind, more=more: getattr(published, kind)(I, N, B, **more),  # type: ignore[misc]
            2.0), DOUBLE))
    rows += [Row(f"sparch {kind} refused", SPARCH, _published(
        lambda kind=kind: getattr(published, kind)(I, N, B), 2.0, _twice), DOUBLE,  # type: ignore[misc]
        "spike_fct: expected the derivative") for kind in ("RadLIFLayer", "RLIFLayer")]
    for more in ({}, {"use_recurrent": False}, {"thr": 0.75, "alpha": 4.0, "c": 0.3, "q": 10.0}, {
            "train_tau_u_method": "interpolation", "train_tau_w_method": "interpolation",
            "tau_u_range": (5, 25), "tau_w_range": (60, 300)}):
        rows.append(Row(f"SEAdLIF {more or ''}", SE_ADLIF, _published(
            lambda more=more: published.SEAdLIF(I, N, **more), 12.0), DOUBLE))  # type: ignore[misc,arg-type]
    return rows
