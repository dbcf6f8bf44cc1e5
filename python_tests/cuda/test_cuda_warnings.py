"""CUDA kernels warn once of each feature that only the CPU kernels have.

The CUDA kernels are a GPU's, or emulated: LSNN_EMULATE=1 in a build with the emulator.
"""
import warnings
from typing import Any

import pytest
import torch
from test_cuda_bits import unsaid  # noqa: F401
from torch import Tensor

from compare import assert_same, saved_tensors
from lsnn_ext import ALIF, functional
from operator_calls import DEVICE, EMULATED, needs_compiled, needs_cuda_kernels

K: dict[str, Any] = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}


def _tensors(T: int = 40, B: int = 3, I: int = 8, N: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(T, B, I, generator=generator) < 0.3).float()
    w_in = torch.randn(N, I, generator=generator).mul(2**8).round() / 2**8
    w_rec = torch.randn(N, N, generator=generator).mul(2**6).round() / 2**9
    return x.to(DEVICE), w_in.to(DEVICE).requires_grad_(), w_rec.to(DEVICE).requires_grad_()


def _said(**given: Any) -> tuple[functional.Layered, list[str]]:
    x, w_in, w_rec = _tensors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = functional.layer(given.pop("x", x), w_in, w_rec, **K, **given)
    return out, [str(one.message) for one in caught]


@needs_cuda_kernels
def test_what_the_gpu_lacks_is_said_once() -> None:
    plain, nothing = _said()
    assert nothing == []
    out, said = _said(checkpoint_every=16)
    assert len(said) == 1 and "(shown once)" in said[0]
    assert "checkpoint_every: expected CPU tensors for a state every 16 steps" in said[0]
    assert _said(checkpoint_every=16)[1] == []
    assert_same("spikes", out.spikes.detach(), plain.spikes.detach())


@needs_cuda_kernels
def test_a_module_says_so_too_and_says_nothing_where_nothing_is_saved() -> None:
    layer, (x, *_) = ALIF(8, 33, checkpoint_every=16).to(DEVICE), _tensors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            layer(x)
    with pytest.warns(UserWarning, match="checkpoint_every: .* the membrane of every step is "
                                         "saved"):
        layer(x)


@needs_cuda_kernels
def test_saved_dtype_is_what_the_gpu_has() -> None:
    """Half the bytes of the membrane, and no warning."""
    said: list[str] = []
    kept = {}
    for dtype in (None, torch.bfloat16):
        saved = saved_tensors(lambda dtype=dtype: said.extend(_said(saved_dtype=dtype)[1]))
        kept |= {one.dtype: one.nbytes for one in saved if one.shape == (40, 3, 33)}
    assert not said
    assert kept == {torch.float32: 40 * 3 * 33 * 4, torch.bfloat16: 40 * 3 * 33 * 2}


@needs_compiled
@pytest.mark.skipif(EMULATED, reason="the emulated kernels stand in for those of the CPU")
def test_the_cpu_kernels_say_nothing() -> None:
    layer = ALIF(8, 33, checkpoint_every=16, saved_dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer((torch.rand(40, 3, 8) < 0.3).float())[0].sum().backward()
