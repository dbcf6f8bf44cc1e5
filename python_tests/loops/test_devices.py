"""Loops of tensors on another device than the default one, and of a GPU without kernels."""
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lsnn_ext import _ops
from lsnn_ext.codegen import cuda, kernels
from lsnn_ext.codegen.compile import CompileError
from lsnn_ext.loops import convert
from lsnn_ext.loops.ir import Refused
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.record import record
from small_loops import run_cells
from test_six_loops import MODELS, build

META = torch.device("meta")  # stands for a GPU: its operators refuse tensors of the CPU


@pytest.mark.parametrize("name", MODELS)
def test_the_default_device_is_not_used(name: str) -> None:
    model, args = build(name, torch.float32)
    wanted = tree_leaves(model(*args))
    with META:
        model, report = convert(model, args)
        got = tree_leaves(model(*args))
    assert report.fused and not report.reason
    torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings("error::RuntimeWarning")  # of a replay that fails
def test_other_default_device_records_anew() -> None:
    """torch.zeros without a device makes tensors on the default one."""
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            w = torch.zeros(7, 7)
            return run_cells((x_t.to(w) for x_t in x), w, 2)

    x = torch.rand(5, 2, 7)
    model, report = convert(Model(), x)
    assert report.fused
    with META:
        assert model(x).device == META
    assert model(x).device == x.device


@pytest.mark.parametrize("read, is_refused", [
    (lambda x: x[:, 1], True), (lambda x: x[:, 1].t(), True), (lambda x: x[0].t(), False)])
def test_dropout_of_a_slice_on_a_gpu_is_refused(read: Any, is_refused: bool) -> None:
    """Its kernel draws in another order where memory has gaps."""
    def model(x: Tensor) -> Tensor:
        return torch.dropout(read(x), 0.5, True)

    x = torch.empty(3, 4, 5, device=META)
    _, recording = record(model, (x,), {}, Origins(model, (x,), {}))
    assert isinstance(recording, Refused) == is_refused
    assert not is_refused or "call contiguous() first" in str(recording)


@pytest.mark.skipif(not _ops.available, reason="the compiled part is missing")
def test_a_gpu_without_kernels_keeps_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise CompileError("expected NVRTC or nvcc, got neither")

    monkeypatch.setattr(kernels, "_find_architecture", lambda _: "sm_90")
    monkeypatch.setattr(cuda, "compile_kernels", refuse)
    model, args = build("two loops", torch.float32)
    _, report = convert(model, args)
    assert not report.fused
    assert "expected NVRTC or nvcc, got neither" in str(report)
