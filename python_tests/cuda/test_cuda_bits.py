"""Spikes as bits on a GPU: inputs are multiplied as bits, forwards and backwards, and layers return
bits, with the results of numbers.

The CUDA kernels are a GPU's, or emulated: LSNN_EMULATE=1 in a build with the emulator.
"""
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same, run_on_copies
from lsnn_ext import ALIF, _ops, functional
from lsnn_ext._core import device_checks
from lsnn_ext._ops import autograd
from lsnn_ext.functional import PackedSpikes
from operator_calls import CUDA, DEVICE, needs_cuda_kernels

pytestmark = [needs_cuda_kernels, pytest.mark.filterwarnings("error")]
K: dict[str, Any] = {"alpha": 0.9, "theta": 0.05, "rho": 0.95, "beta": 0.5}


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been said before."""
    monkeypatch.setattr(device_checks, "_warned", set())


def _random(*shape: int, step: int = 9) -> Tensor:
    """Multiples of a power of two, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator).mul(2**step / 4).round() / 2**step).to(DEVICE)


def _spikes(T: int, B: int, I: int) -> Tensor:
    generator = torch.Generator().manual_seed(I)
    return (torch.rand(T, B, I, generator=generator) < 0.2).float().to(DEVICE)


def _run(x: Tensor | PackedSpikes, N: int, **given: Any) -> list[Tensor]:
    """Spikes of a layer with inputs x, and gradients of the weights."""
    def call(w_in: Tensor, w_rec: Tensor, bias: Tensor) -> Tensor:
        return functional.layer(x, w_in, w_rec, bias=bias, **K, **given).spikes

    return run_on_copies(call, _random(N, x.shape[2]), _random(N, N) / 8, _random(N))


def _compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert_same("spikes", found[0], wanted[0])
    assert_same("gradients", found[1:], wanted[1:], tolerance=1e-5)


@pytest.mark.parametrize(("T", "B", "I", "N"), [
    (40, 3, 8, 33), (17, 5, 33, 64), (30, 2, 100, 20), (1, 1, 1, 1), (20, 9, 64, 132)])
def test_inputs_as_bits(T: int, B: int, I: int, N: int) -> None:
    x = _spikes(T, B, I)
    wanted = _run(x, N)
    _compare(_run(functional.pack_spikes(x), N), wanted)
    if T > 5:
        assert 0.01 < float(wanted[0].mean()) < 0.9


@pytest.mark.parametrize("lengths", [[40, 31, 7], [7, 40, 31]], ids=["descending", "any order"])
def test_bits_of_unequal_length(lengths: list[int]) -> None:
    x = _spikes(40, 3, 8)
    _compare(_run(functional.pack_spikes(x), 33, lengths=torch.tensor(lengths)),
             _run(x, 33, lengths=torch.tensor(lengths)))


@pytest.mark.parametrize("shape", [(0, 3, 8), (5, 0, 8), (5, 3, 0)])
def test_nothing_as_bits(shape: tuple[int, int, int]) -> None:
    x = torch.zeros(shape, device=DEVICE)
    _compare(_run(functional.pack_spikes(x), 4), _run(x, 4))


def test_inputs_that_do_not_exist() -> None:
    """Bits beyond the last input change nothing; on a GPU nobody looks for them before."""
    x = _spikes(6, 2, 8)
    packed, w = functional.pack_spikes(x), _random(5, 8)
    more = packed._replace(bits=packed.bits | -256)
    if CUDA:
        assert_same("y", functional.linear(more, w), functional.linear(x, w))
    else:
        with pytest.raises(RuntimeError, match="zeros in the bits beyond"):
            functional.linear(more, w)


def test_layers_on_top_of_each_other() -> None:
    """Spikes go from one to the next as bits, gradients back through their carrier; what is saved
    holds no numbers."""
    def numbers(*weights: Tensor) -> Tensor:
        below = functional.layer(_spikes(30, 3, 8), *weights[:2], **K)
        assert below.packed is None
        return functional.layer(below.spikes, *weights[2:], **K).spikes

    def bits(*weights: Tensor) -> Tensor:
        below = functional.layer(_spikes(30, 3, 8), *weights[:2], **K, spikes="bits")
        assert below.spikes is None and below.packed.carrier.untyped_storage().nbytes() == 4
        return functional.layer(below.packed, *weights[2:], **K).spikes

    weights = _random(40, 8), _random(40, 40) / 8, _random(20, 40), _random(20, 20) / 8
    found = run_on_copies(bits, *weights)
    assert float(found[0].mean()) > 0.01
    _compare(found, run_on_copies(numbers, *weights))


@pytest.mark.parametrize("design", ["block", "gather", "step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_without_gradients(design: str, dtype: torch.dtype) -> None:
    """Also where nothing is saved for a backward pass."""
    x, w_in, w_rec = (t.to(dtype) for t in (_spikes(20, 3, 8), _random(33, 8), _random(33, 33)))
    with torch.no_grad(), _ops.forced(design=design):
        bits = functional.layer(x, w_in, w_rec, **K, spikes="bits")
        numbers = functional.layer(x, w_in, w_rec, **K)
    assert bits.packed is not None and bits.spikes is None and numbers.spikes is not None
    assert_same("bits", bits.packed.numbers(), numbers.spikes)


def test_a_readout_and_bits() -> None:
    x, w_out = _spikes(20, 3, 8), _random(4, 33)
    given: dict[str, Any] = {"w_out": w_out, "k_out": 0.8, **K}
    bits = functional.layer(functional.pack_spikes(x), _random(33, 8), _random(33, 33), **given,
                            spikes="bits")
    numbers = functional.layer(x, _random(33, 8), _random(33, 33), **given)
    assert_same("bits", bits.packed.numbers(), numbers.spikes)
    assert_same("readout", bits.readout, numbers.readout)


@pytest.mark.parametrize("lengths", [None, [20, 10, 5], [5, 20, 10]])
@pytest.mark.parametrize("outputs", [4, 1000])
def test_a_readout_behind_inputs_as_bits(lengths: list[int] | None, outputs: int) -> None:
    """Also where the kernels have not the readout: it stands behind then."""
    x, w_out, b_out = _spikes(20, 3, 8), _random(outputs, 33), _random(outputs)
    given: dict[str, Any] = {"w_out": w_out, "k_out": 0.8, "b_out": b_out, **K}
    if lengths is not None:
        given["lengths"] = torch.tensor(lengths)
    bits = functional.layer(functional.pack_spikes(x), _random(33, 8), _random(33, 33), **given)
    numbers = functional.layer(x, _random(33, 8), _random(33, 33), **given)
    assert_same("readout", bits.readout, numbers.readout)


def test_autocast_says_nothing_of_the_gpu() -> None:
    x = functional.pack_spikes(_spikes(10, 2, 8))
    with torch.autocast(DEVICE, torch.bfloat16):
        functional.layer(x, _random(5, 8), _random(5, 5), **K)


def test_a_module_takes_and_returns_bits() -> None:
    torch.manual_seed(0)
    layer, x = ALIF(8, 33).to(DEVICE), _spikes(20, 3, 8)
    with torch.no_grad():
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            weight.copy_(_random(*weight.shape))
        packed, _ = layer(functional.pack_spikes(x), spikes="bits")
        numbers, _ = layer(x)
    assert isinstance(packed, PackedSpikes) and float(numbers.mean()) > 0.01
    assert_same("spikes", packed.numbers(), numbers)


def test_float64_is_said_to_become_numbers() -> None:
    x = _spikes(10, 2, 8).double()
    w_in, w_rec = _random(5, 8).double(), _random(5, 5).double()
    with pytest.warns(UserWarning, match="x: expected CPU tensors, or float32 .* for inputs as "
                                         "bits in float64, got CUDA tensors"):
        out = functional.layer(functional.pack_spikes(x), w_in, w_rec, **K)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        functional.layer(functional.pack_spikes(x), w_in, w_rec, **K)
    assert_same("spikes", out.spikes, functional.layer(x, w_in, w_rec, **K).spikes)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_spikes_that_are_not_wanted_are_not_written(smooth: bool, grad: bool,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of which only the readout and the last state are wanted: the same without (T, B, N)
    numbers of spikes."""
    T, B, I, N, O = 140, 3, 8, 36, 5
    written: list[int] = []
    call = autograd.call_interruptible

    def counted(op: Any, *args: Any) -> Any:
        found = call(op, *args)
        if op is torch.ops.lsnn.alif_forward:
            written.append(found[0].numel())
        return found

    monkeypatch.setattr(autograd, "call_interruptible", counted)
    results = []
    for spikes in (True, False):
        w_in, w_rec, w_out = (w.requires_grad_(grad) for w in (
            _random(N, I), _random(N, N) / 8, _random(O, N)))
        out = functional.layer(_spikes(T, B, I), w_in, w_rec, w_out=w_out, k_out=0.9,
                               spikes=spikes, smooth=smooth, **K)
        assert out.readout is not None and (out.spikes is not None) == spikes
        if grad:
            (out.readout * _random(T, B, O, step=3)).sum().backward()
        results.append([out.readout.detach(), *(part.detach() for part in out.state),
                        *(w.grad for w in (w_in, w_rec, w_out) if w.grad is not None)])
    assert written == [T * B * N, 0]
    assert len(results[0]) == (9 if grad else 6)
    for k, (wanted, found) in enumerate(zip(*results, strict=True)):
        assert_same(f"result {k}", found, wanted)
