"""Spikes as bits, also between layers: bitwise identical to numbers."""
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from compare import assert_same, changed, outputs_and_gradients
from lsnn_ext import ALIF, functional
from lsnn_ext.functional import PackedSpikes, layer, pack_spikes
from lsnn_ext.modules import recurrent
from operator_calls import Calls

T, B, I, N, M = 40, 9, 21, 100, 70
NEURON: dict[str, Any] = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.2}


def weights() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random) / shape[-1] ** 0.5).requires_grad_()

    x = (torch.rand(T, B, I, generator=random) < 0.1).float().requires_grad_()
    return {"x": x, "in": drawn(N, I), "rec": drawn(N, N), "next": drawn(M, N), "bias": drawn(M),
            "again": drawn(M, M)}


def two_layers(w: dict[str, Tensor]) -> None:
    """A training step of two layers, with bits between them."""
    first = layer(w["x"], w["in"] * 3, w["rec"], spikes="bits", **NEURON)
    second = layer(first.packed, w["next"] * 3, w["again"], bias=w["bias"], **NEURON)
    assert second.spikes is not None and 0.002 < float(second.spikes.detach().mean()) < 0.5
    torch.autograd.grad(second.spikes.sum() + second.state.v.sum(), list(w.values()))


def test_packing_and_unpacking() -> None:
    for n in (1, 31, 32, 33, 96):
        z = (torch.rand(3, 2, n) < 0.5).float().requires_grad_()
        packed = pack_spikes(z)
        assert packed.bits.dtype == torch.int32 and packed.bits.shape == (3, 2, (n + 31) // 32)
        assert packed.shape == z.shape and packed.carrier.untyped_storage().nbytes() <= 16
        assert_same("numbers", packed.numbers().detach(), z.detach())
        factor = torch.rand(3, 2, n)
        (g,) = torch.autograd.grad((packed.numbers() * factor).sum(), z)
        assert_same("gradient", g, factor)


def test_bits_are_where_they_should_be() -> None:
    z = torch.zeros(1, 1, 40)
    z[0, 0, 3] = z[0, 0, 31] = z[0, 0, 39] = 1
    assert pack_spikes(z).bits.flatten().tolist() == [8 - 2**31, 128]


def test_numbers_are_never_made() -> None:
    w = weights()
    with Calls() as calls:
        two_layers(w)
    first, second = (call.given for call in calls.forward)
    spikes, *_, (_, bits, _, _) = calls.forward[0].result
    assert spikes.numel() == 0 and first["requested"] == {"bits", "saved"}
    # the bits that the backward pass of the first one keeps
    assert second["x_bits"].data_ptr() == bits.data_ptr()
    assert second["x"].untyped_storage().nbytes() == 4


def _stack(dropout: float = 0.0, bidirectional: bool = False) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = ALIF(20, 128, num_layers=3, dropout=dropout, bidirectional=bidirectional)
    for name, value in net.named_parameters():
        if name.startswith("weight_ih"):
            value.data *= 4
    return net, (torch.rand(200, 16, 20) < 0.1).float()


def test_stacked_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _stack()
    leaves = [x.requires_grad_(), *net.parameters()]
    with Calls() as calls:
        got = outputs_and_gradients(net, leaves, x)
    assert float(got[0].mean()) > 0.001
    assert ["bits" in call.given["requested"] for call in calls.forward] == [True, True, False]
    assert [call.given["x_bits"] is not None for call in calls.forward] == [False, True, True]
    monkeypatch.setattr(recurrent, "is_packing_faster", lambda x, w: False)
    assert_same("results", got, outputs_and_gradients(net, leaves, x))


@pytest.mark.parametrize(("dropout", "bidirectional", "training", "bits"), [
    (0.5, False, True, False), (0.5, False, False, True), (0.0, True, True, False)])
def test_numbers_where_others_see_them(dropout: float, bidirectional: bool, training: bool,
                                       bits: bool) -> None:
    net, x = _stack(dropout, bidirectional)
    net.train(training)
    with Calls() as calls:
        net(x)
    assert ("bits" in calls.forward[0].given["requested"]) == bits


def test_fallbacks() -> None:
    """Half precision and compiled graphs have no kernels for bits: they are unpacked."""
    w = {name: value.detach() for name, value in weights().items()}
    z = (torch.rand(T, B, N) < 0.1).half()
    got = layer(pack_spikes(z), w["next"].half(), w["again"].half(), **NEURON).spikes
    assert_same("half", got, layer(z, w["next"].half(), w["again"].half(), **NEURON).spikes)

    def both(x: Tensor) -> Tensor:
        first = layer(x, w["in"] * 3, w["rec"], spikes="bits", **NEURON)
        return layer(first.packed, w["next"] * 3, w["again"], **NEURON).spikes

    assert_same("compiled", torch.compile(both, backend="eager")(w["x"]), both(w["x"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_between_modules(dtype: torch.dtype) -> None:
    """Each module takes the bits of a layer as it takes the numbers."""
    torch.manual_seed(0)
    x, first = (torch.rand(T, B, I) < 0.2).to(dtype), ALIF(I, N, threshold=0.1)
    z, bits = first(x)[0], first(x, spikes="bits")[0]
    assert bits.carrier.dtype == dtype and bool(z.any())
    following = [ALIF(N, M, threshold=0.05), ALIF(N, M, 2, threshold=0.05, bidirectional=True),
                 lsnn_ext.LIF(N, M, threshold=0.05), lsnn_ext.LSNN(N, M, M, 5, threshold=0.05)]
    for module in following:
        found, wanted = module(bits)[0], module(z)[0]
        assert found.dtype == wanted.dtype and bool(wanted.any())
        assert_same(type(module).__name__, found.detach(), wanted.detach())
        weight = next(module.parameters())
        of_bits, of_numbers = (torch.autograd.grad(y.float().sum(), weight)[0]
                               for y in (found, wanted))
        assert_same("gradient", of_bits, of_numbers)


@pytest.mark.parametrize("part", [
    (slice(3, 9),), (slice(None), slice(2, 5)), (slice(None, None, 3),),
    (slice(None), slice(None, None, 2)), (slice(None), slice(None), slice(0, 32))], ids=str)
def test_parts_of_bits(part: tuple[slice, ...]) -> None:
    """Steps, sequences, whole words of neurons: as the numbers of the part."""
    torch.manual_seed(0)
    whole = pack_spikes((torch.rand(T, B, N) < 0.1).float())
    words = tuple(slice(0, 1) if one.stop == 32 else one for one in part)
    packed = PackedSpikes(whole.bits[words], whole.carrier[part])
    z = whole.numbers()[part]
    module, w = ALIF(z.shape[2], M, threshold=0.05), torch.randn(9, z.shape[2], requires_grad=True)
    wanted = module(z)[0]
    assert bool(wanted.any())
    assert_same("layer", module(packed)[0].detach(), wanted.detach())
    found = [[y, *torch.autograd.grad(y.square().sum(), w)]
             for y in (functional.linear(packed, w), functional.linear(z, w))]
    assert_same("linear", *found, tolerance=1e-5)


def test_profile_of_stacked_layers() -> None:
    net, x = _stack()
    report = lsnn_ext.profile(net, x, repeats=3, file=io.StringIO())
    assert report.calls == 3 and report.input_density is not None and 0 < report.input_density < 0.2


def test_errors() -> None:
    w = {name: value.detach() for name, value in weights().items()}
    with pytest.raises(ValueError, match=r"spikes: expected shape \(T, B, N\), got \(3,\)"):
        pack_spikes(torch.zeros(3))
    with pytest.raises(ValueError, match="spikes: expected only 0 and 1"):
        pack_spikes(torch.full((1, 1, 3), 0.5))
    with pytest.raises(ValueError, match="spikes: expected True, False or 'bits', got 'words'"):
        layer(w["x"], w["in"], w["rec"], spikes="words", **NEURON)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spikes: expected only 0 and 1"):
        layer(w["x"], w["in"], w["rec"], spikes="bits", smooth=True, **NEURON)
    with pytest.raises(ValueError, match="w_in: expected shape"):
        layer(pack_spikes(torch.zeros(T, B, N)), w["in"], w["rec"], **NEURON)


def test_operator_checks() -> None:
    with Calls() as calls:
        two_layers(weights())
    for call in calls.forward:
        operator, args, _ = call
        requested = call.given["requested"]
        for outputs in (requested - {"saved"}, requested | {"saved"}):
            torch.library.opcheck(operator, changed(operator, args, requested=outputs),
                                  test_utils=("test_schema", "test_faketensor"))


def test_vmap_over_bits() -> None:
    """Of a batch along any axis, and of layers that return bits."""
    torch.manual_seed(0)
    x, w = pack_spikes((torch.rand(20, 6, 40) < 0.3).float()), torch.randn(5, 40)
    batch = PackedSpikes(x.bits.unflatten(1, (3, 2)), x.carrier.unflatten(1, (3, 2)))

    def bits(x: PackedSpikes, w: Tensor) -> PackedSpikes:
        return functional.layer(x, w, None, spikes="bits", alpha=0.9, theta=0.3).packed

    found = torch.vmap(bits, (1, None), 1)(batch, w)
    assert torch.equal(found.bits.flatten(1, 2), bits(x, w).bits) and bool(found.bits.any())
    several = torch.vmap(bits, (None, 0))(x, torch.stack([w, w / 2]))
    assert torch.equal(several.bits[1], bits(x, w / 2).bits)


@pytest.mark.parametrize("over", ["bias", "w_in", "w_rec"])
def test_vmap_over_weights_beside_bits(over: str) -> None:
    """As one call for each, gradients too."""
    torch.manual_seed(0)
    x = functional.pack_spikes((torch.rand(20, 3, 8) < 0.3).float())
    weights = {"w_in": torch.randn(5, 8), "w_rec": torch.randn(5, 5) / 4, "bias": torch.randn(5)}
    several = torch.stack([weights[over], weights[over] / 2])

    def loss(weight: Tensor) -> Tensor:
        out = functional.layer(x, **(weights | {over: weight}), alpha=0.9, theta=0.3)
        return (out.spikes * torch.arange(20.0)[:, None, None]).mean()

    for each, weight in zip(torch.vmap(torch.func.grad(loss))(several), several, strict=True):
        assert torch.allclose(each, torch.func.grad(loss)(weight)) and bool(each.any())
