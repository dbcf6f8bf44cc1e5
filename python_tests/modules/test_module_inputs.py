"""Spikes that are not numbers of the parameters' dtype, into and out of the modules."""
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from compare import assert_same
from draws import draw_spikes
from lsnn_ext import ALIF, LIF, LSNN, _ops
from lsnn_ext.functional import PackedSpikes, pack_spikes

T, B, I, N = 30, 7, 40, 33
DTYPES = (torch.float32, torch.float64)
MODULES: dict[str, Callable[..., nn.Module]] = {
    "ALIF": lambda **more: ALIF(I, N, threshold=0.03, **more),
    "LIF of two layers": lambda **more: LIF(I, N, 2, threshold=0.03, **more),
    "both directions": lambda **more: ALIF(I, N, bidirectional=True, threshold=0.03, **more),
    "LSNN": lambda **more: LSNN(I, 13, 20, 3, threshold=0.03, **more)}
fired = partial(draw_spikes, rate=0.2, dtype=torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODULES)
def test_every_kind_of_spikes_is_the_same_input(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    module, x = MODULES[name](dtype=dtype), fired(T, B, I)
    with torch.no_grad():  # sums of inputs do not round, in any order
        for weight in module.parameters():
            weight.copy_(torch.round(64 * weight) / 64)
    want, state = module(x.to(dtype))
    assert float(want.detach().abs().mean()) > 0.005
    grads = torch.autograd.grad((want * want.cos()).sum(), list(module.parameters()))
    for other in (x, x.to(torch.uint8), pack_spikes(x.to(dtype))):
        got, after = module(other)
        assert got.dtype is dtype
        assert torch.equal(got, want)
        torch.testing.assert_close(tuple(after), tuple(state), rtol=0, atol=0)
        mine = torch.autograd.grad((got * got.cos()).sum(), list(module.parameters()))
        torch.testing.assert_close(mine, grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", ["ALIF", "LSNN"])
def test_many_inputs_are_read_as_bits(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same spikes and gradients, to the bit, as when they are read as numbers."""
    asked: list[tuple[int, ...]] = []
    made = _ops.pack_inputs

    def pack_inputs(x: Tensor) -> Tensor | None:
        bits = made(x)
        asked.append((0,) if bits is None else tuple(bits.shape))
        return bits

    monkeypatch.setattr(_ops, "pack_inputs", pack_inputs)
    x, net = fired(70, 201, I) & fired(70, 201, I).roll(1, 0), MODULES[module]()
    results = []
    for given in (x.float(), x, x.to(torch.uint8), x.float().requires_grad_(), x.float().clone()):
        out, _ = net(given)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*net.parameters()])])
    assert asked == [(70, 201, 2)] * 3 + [(0,), (70, 201, 2)]
    for other in results[1:]:
        assert_same("bits", other, results[0])
    asked.clear()
    analog = x.float()
    analog[-1, -1, -1] = 0.5
    two = x.to(torch.uint8)
    two[3, 3, 3] = 2
    for other in (analog, two):
        out, _ = net(other)
        reference, _ = net(other.to(torch.float64).float().requires_grad_())
        assert torch.equal(out, reference)
    assert all(shape == (0,) for shape in asked) and len(asked) >= 4


def test_tangents_of_many_inputs_are_not_lost() -> None:
    """Forward mode is refused, as for few inputs, where bits would drop the tangent."""
    layer = MODULES["ALIF"]()
    for x in (fired(20, 3, I).float(), fired(70, 201, I).float()):
        with pytest.raises(RuntimeError, match="jvp|forward mode"):
            torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))


def test_of_packed_sequences_and_single_steps() -> None:
    layer, x, lengths = MODULES["ALIF"](), fired(T, B, I), torch.tensor([30, 21, 20, 9, 9, 3, 1])
    want, _ = layer(pack_padded_sequence(x.float(), lengths))
    got, _ = layer(pack_padded_sequence(x.to(torch.uint8), lengths))
    assert torch.equal(got.data, want.data) and float(want.data.detach().sum()) > 0
    numbers, bools = layer.step(x[0].float()), layer.step(x[0])
    assert torch.equal(numbers[0], bools[0])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("steps", [T, 1, 0])
def test_bits_out_are_the_spikes(steps: int, grad: bool) -> None:
    below, above = MODULES["ALIF"](), LIF(N, 5, threshold=0.03)
    x = fired(T, B, I)[:steps]
    with torch.set_grad_enabled(grad):
        want, state = below(x)
        bits, after, rates = below(x, spikes="bits", return_rates=True)
        assert isinstance(bits, PackedSpikes) and torch.equal(bits.numbers(), want)
        assert all(torch.equal(one, other) for one, other in zip(state, after, strict=True))
        torch.testing.assert_close(rates[0], want.sum(0) / max(steps, 1))
        numbers, again = above(want)[0], above(bits)[0]
    assert torch.equal(numbers, again) and (steps < T or float(numbers.detach().sum()) > 0)
    if not grad:
        return
    both = [*below.parameters(), *above.parameters()]
    torch.testing.assert_close(torch.autograd.grad(numbers.sum(), both),
                               torch.autograd.grad(again.sum(), both), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_bits_is_refused() -> None:
    x, layer = fired(T, B, I), MODULES["ALIF"]()
    with pytest.raises(ValueError, match="spikes: expected True or 'bits', got False"):
        layer(x, spikes=False)
    for name in ("batch_first", "bidirectional"):
        with pytest.raises(ValueError, match=f"spikes: expected True of a layer with {name}=True"):
            ALIF(I, N, **{name: True})(x, spikes="bits")
    for other in (x[:, 0], pack_padded_sequence(x, torch.full((B,), T))):
        with pytest.raises(ValueError, match="spikes: expected True unless x is"):
            layer(other, spikes="bits")
    with pytest.raises(ValueError, match=r"x: expected a tensor \(B, T, I\) .*batch_first=True"):
        ALIF(I, N, batch_first=True)(pack_spikes(x.float()))
    with pytest.raises(ValueError, match="x: expected shape"):
        ALIF(I + 1, N)(pack_spikes(x.float()))
    with pytest.raises(ValueError, match="x: expected torch.float64 as the parameters"):
        ALIF(I, N, dtype=torch.float64)(pack_spikes(x.float()))
    for module in (layer, MODULES["LSNN"]()):
        with pytest.raises(TypeError, match="x: expected a tensor, a PackedSequence or PackedSpik"):
            module([1])
