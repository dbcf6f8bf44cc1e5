"""The settings of the recurrent layers of Yin et al., of Bittar and Garner, and of Baronig et al.,
a row each."""
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

import package_models as models
import papers
import peer_layers as peers
from lsnn_ext.zoo.surrogates import _make_spike
from originals import B, I, N
from package_models import DOUBLE, SINGLE, Make, Row


def _published(make: Make, gain: float, dtype: torch.dtype = DOUBLE,
               change: Callable[[Any], None] | None = None) -> Make:
    def made() -> Any:
        torch.manual_seed(2)
        layer = make().to(dtype)
        peers.fill(layer, gain)
        if change is not None:
            change(layer)
        return layer

    return made


def _twice(layer: Any) -> None:
    layer.spike_fct = _make_spike(lambda gradient, u: 2 * gradient * ((u > -0.5) & (u <= 0.5)))


def _of(kind: Callable[..., Any], *arguments: Any, **more: Any) -> Make:
    return lambda: kind(*arguments, **more)


def _name(kind: str, more: dict[str, Any], dtype: torch.dtype) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in more.items())
    return f"{kind} {settings}{' float32' * (dtype == SINGLE)}".rstrip()


def rows() -> list[Row]:
    """Of all three."""
    rows = []
    for dtype in (DOUBLE, SINGLE):
        for more in ({}, {"is_adaptive": 0}, {"bias": False}):
            rows.append(Row(_name("Yin SRNN", more, dtype), models.Yin,
                            _published(_of(peers.spike_rnn, **more), 2.0, dtype), dtype))
        rows.append(Row(_name("Yin SRNN from numbers", {}, dtype), models.YinFromInputs,
                        _published(peers.spike_rnn, 2.0, dtype), dtype))
    rows.append(Row("Yin SRNN whose adaptation starts elsewhere", models.Yin,
                    _published(peers.spike_rnn, 2.0, change=lambda layer: setattr(
                        layer, "b_j0", 0.25)), DOUBLE))
    settings: list[dict[str, Any]] = [
        {"normalization": "none"}, {"normalization": "none", "use_bias": True, "threshold": 0.75},
        {"normalization": "none", "bidirectional": True},
        {"normalization": "none", "dropout": 0.5}, {"normalization": "batchnorm"},
        {"normalization": "layernorm"}]
    for kind, more, dtype in product(("RadLIFLayer", "RLIFLayer"), settings, (DOUBLE, SINGLE)):
        if kind == "RLIFLayer" and more["normalization"] != "none":
            more = more | {"threshold": 0.25}  # noqa: PLW2901  it would be silent
        # a normalization rounds, so that in float32 a spike may differ
        if dtype == DOUBLE or more["normalization"] == "none":
            rows.append(Row(_name(f"sparch {kind}", more, dtype), models.Sparch,
                            _published(_of(getattr(papers, kind), I, N, B, **more), 2.0, dtype),
                            dtype))
    rows += [Row(f"sparch {kind} with another surrogate", models.Sparch, _published(
        _of(getattr(papers, kind), I, N, B, threshold), 2.0, change=_twice), DOUBLE)
        for kind, threshold in (("RadLIFLayer", 1.0), ("RLIFLayer", 0.25))]
    kinds: tuple[dict[str, Any], ...] = (
        {}, {"use_recurrent": False}, {"thr": 0.75, "alpha": 4.0, "c": 0.3, "q": 10.0},
        {"train_tau_u_method": "interpolation", "train_tau_w_method": "interpolation",
         "tau_u_range": (5, 25), "tau_w_range": (60, 300)})
    for more, dtype in product(kinds, (DOUBLE, SINGLE)):
        rows.append(Row(_name("SEAdLIF", more, dtype), models.SEAdLIF,
                        _published(_of(papers.SEAdLIF, I, N, **more), 12.0, dtype), dtype))
    return rows
