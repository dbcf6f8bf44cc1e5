"""The memory that lsnn_ext.plan estimates, against the peak of a fresh process."""
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # also of a spawned process, for bench

import lsnn_ext  # noqa: E402
from bench.memory import peak_of  # noqa: E402
from draws import draw_spikes  # noqa: E402
from layers import First  # noqa: E402
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, _ops  # noqa: E402
from lsnn_ext.tools.plan_report import MARGIN  # noqa: E402

pytestmark = pytest.mark.skipif(
    _ops._C is None or "LSNN_EMULATE" in os.environ or not sys.platform.startswith("linux"),
    reason="needs CPU kernels and /proc")
INPUTS = 80
NETS: dict[str, Callable[[], nn.Module]] = {
    "lsnn": lambda: LSNN(INPUTS, 120, 100, 10),
    "wide": lambda: ALIF(INPUTS, 1500),
    "checkpoints": lambda: ALIF(INPUTS, 220, checkpoint_every=64),
    "bidirectional": lambda: ALIF(INPUTS, 100, 2, bidirectional=True),
    "stack": lambda: nn.Sequential(
        ALIF(INPUTS, 220), First(), nn.Dropout(0.1), LIF(220, 100, 2), First(),
        LeakyReadout(100, 20), First())}


def _train(net: nn.Module, x: Tensor) -> None:
    out = net(x)
    out = out[0] if isinstance(out, tuple) else out
    torch.autograd.grad(out, [p for p in net.parameters() if p.requires_grad],
                        torch.ones_like(out), allow_unused=True)


def prepare(name: str, T: int, B: int) -> Callable[[], object]:
    """A step of a net in this process, after a small one."""
    net, x = NETS[name](), draw_spikes(T, B, INPUTS)
    _train(net, draw_spikes(20, 4, INPUTS))
    _ops._C.empty_cache()
    return lambda: _train(net, x)


def _measured(*args: Any) -> float:
    return peak_of(prepare, *args) * 2**20


@pytest.mark.parametrize("name", NETS)
def test_the_peak_is_that_of_a_fresh_process(name: str) -> None:
    T, B = (60, 16) if name == "wide" else (400, 32)
    estimate = lsnn_ext.plan(NETS[name](), draw_spikes(T, B, INPUTS)).peak_bytes
    assert estimate == pytest.approx(_measured(name, T, B), rel=MARGIN)


@pytest.mark.parametrize("name", ["lsnn", "stack"])
def test_sizes_that_fit_do_fit(name: str) -> None:
    """And a step of them takes most of the memory, inputs included."""
    T, B, memory = 200, 32, 300e6
    found = lsnn_ext.plan(NETS[name](), draw_spikes(T, B, INPUTS), memory="300 MB")
    assert found.most_steps and found.most_sequences
    for size in ((found.most_steps, B), (T, found.most_sequences)):
        taken = _measured(name, *size) + draw_spikes(*size, INPUTS).nbytes
        assert 0.5 * memory < taken <= memory, (size, taken)
