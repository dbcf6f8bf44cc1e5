"""A profiler that runs while a model is converted and called."""
import cProfile
import pstats
import sys

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext.loops import convert


class Filter(nn.Module):
    """A leaky membrane."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, 3, 4)."""
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = 0.9 * v + torch.tanh(v) * x_t + x_t
        return v


def test_convert_runs_under_a_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    x = torch.randn(8, 3, 4)
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        model, report = convert(Filter(), x)
        model(x)
    finally:
        profiler.disable()
    assert report.converted, str(report)
    assert sys.getprofile() is None
    assert any(function == "forward" for _, _, function in pstats.Stats(profiler).stats)
