"""Recurrent dropout of the layers: a mask of presynaptic neurons for each call."""
from typing import Any

import pytest
import torch
from torch import Tensor

from any_neurons import ADAPTIVE, BRANCHES
from compare import through_file
from lsnn_ext import ALIF, LIF, LSNN, LearnedDelay, Recurrent

I, N, P = 6, 20, 0.4
KINDS: dict[str, Any] = {
    "ALIF": lambda **options: ALIF(I, N, **options),
    "LIF": lambda **options: LIF(I, N, dynamics="sj_hard", **options),
    "delays": lambda **options: ALIF(I, N, delay=torch.arange(N * N).view(N, N) % 3, **options),
    "LearnedDelay": lambda **options: LearnedDelay(I, N, 4, **options),
    "of synapses": lambda **options: LearnedDelay(I, N, 4, per="synapse", **options),
    "Recurrent": lambda **options: Recurrent(ADAPTIVE, I, N, theta=0.5, **options),
    "BRANCHES": lambda **options: Recurrent(BRANCHES, I, N, tau=4.0, gain=1.5, **options),
    "LSNN": lambda **options: LSNN(I, N // 2, N // 2, 3, **options)}
STEPPED = ("ALIF", "LIF", "Recurrent", "LSNN", "LSNN of Recurrent", "LSNN of LearnedDelay")


def _make(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    network, _, kind = kind.rpartition(" of ") if kind in STEPPED else ("", "", kind)
    module = KINDS[kind](**options)
    if network:
        neurons, module = module, KINDS[network]()
        module.neurons = neurons
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_hh" in name:
                weight.mul_(3)
    return module


def _x(T: int = 40, B: int = 8) -> Tensor:
    return 2 * (torch.rand(T, B, I, generator=torch.Generator().manual_seed(9)) < 0.4).float()


def _get_weight(module: Any) -> Tensor:
    layer = module if hasattr(module, "weight_hh_l0") else module.neurons
    return layer.weight_hh_l0  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_eval_drops_nothing(kind: str) -> None:
    plain, dropping = _make(kind), _make(kind, recurrent_dropout=P)
    wanted = plain(_x())[0]
    assert torch.equal(dropping.eval()(_x())[0], wanted)
    assert not torch.equal(dropping.train()(_x())[0], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_presynaptic_neurons_for_the_sequence(kind: str) -> None:
    """As weights of dropped neurons 0, others scaled; the gradient too."""
    module, plain = _make(kind, recurrent_dropout=P), _make(kind)
    torch.manual_seed(5)
    out = module(_x())[0]
    torch.manual_seed(5)
    mask = torch.rand(8, N) >= P
    assert bool(mask.any()) and not bool(mask.all())
    weight, like = _get_weight(module), _get_weight(plain)
    gradient, = torch.autograd.grad(out.square().sum(), weight)
    sum_of_all = torch.zeros_like(gradient)
    for b in range(8):
        with torch.no_grad():
            like.copy_(weight * mask[b] / (1 - P))  # the target neuron first
        one = plain(_x()[:, b : b + 1])[0]
        torch.testing.assert_close(one, out[:, b : b + 1], rtol=1e-4, atol=1e-5)
        found, = torch.autograd.grad(one.square().sum(), like)
        sum_of_all += found * mask[b] / (1 - P)
    scale = float(gradient.abs().max())
    assert scale > 0
    torch.testing.assert_close(sum_of_all, gradient, rtol=1e-4, atol=1e-4 * scale)


def test_each_call_layer_and_direction_draws() -> None:
    layer, x = ALIF(I, N, num_layers=2, bidirectional=True, recurrent_dropout=P), _x()
    drawn: list[Tensor] = []
    rand = torch.rand
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **more: drawn.append(
            rand(*size, **more)) or drawn[-1])
        for _ in range(2):
            layer(x)
    assert [one.shape for one in drawn] == [(4, 8, N)] * 2  # layers and directions
    assert len({float(u) for one in drawn for u in one[:, 0, 0]}) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_short_calls_without_gradients_drop_too(kind: str) -> None:
    module, x = _make(kind, recurrent_dropout=P), _x(8, 1)
    with torch.no_grad():
        module(x)
        results = []
        for _ in range(2):
            torch.manual_seed(1)
            results.append(module(x)[0])
    torch.manual_seed(1)
    assert torch.equal(*results) and torch.equal(module(x)[0], results[0])


@pytest.mark.parametrize(("kind", "more"), [("Recurrent", {}), *(
    (kind, {"num_layers": layers, "bidirectional": bidirectional})
    for kind in ("ALIF", "LSNN") for layers in (1, 2) for bidirectional in (False, True))])
def test_padded_and_packed_sequences(kind: str, more: dict[str, Any]) -> None:
    """Row b of the mask acts on sequence b, whatever the order of the lengths."""
    module = _make(kind, recurrent_dropout=P, **more)
    x, lengths = _x(), torch.tensor([7, 40, 2, 21, 40, 3, 1, 12])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    results = []
    for given, options in ((x, {"lengths": lengths}), (packed, {}), (x, {})):
        torch.manual_seed(6)
        results.append(module(given, **options)[0])
    padded, of_packed, wanted = results
    assert bool(padded.any())
    assert torch.equal(torch.nn.utils.rnn.pad_packed_sequence(of_packed)[0], padded)
    for b, n in enumerate(lengths.tolist()):
        assert not bool(padded[n:, b].any())
        assert more.get("bidirectional") or torch.equal(padded[:n, b], wanted[:n, b])


@pytest.mark.parametrize("kind", STEPPED)
def test_steps_need_eval(kind: str) -> None:
    module = _make(kind, recurrent_dropout=P)
    with pytest.raises(ValueError, match="step: expected recurrent_dropout=0 or a layer in eval "
                                         "mode, got 0.4 in training mode"):
        module.step(_x()[0])
    module.eval().step(_x()[0])


@pytest.mark.parametrize("kind", ["ALIF", "LSNN", "Recurrent"])
def test_steps_without_recurrent_weights(kind: str) -> None:
    module = _make(kind, recurrent=False)
    wanted = module.step(_x()[0])[0]
    getattr(module, "neurons", module).recurrent_dropout = P  # drops nothing
    assert torch.equal(module.step(_x()[0])[0], wanted)


def test_settings_are_kept() -> None:
    layer = ALIF(I, N, recurrent_dropout=P)
    assert "recurrent_dropout=0.4" in repr(layer) and "dropout" not in repr(ALIF(I, N))
    assert "recurrent_dropout=0.4" in repr(_make("Recurrent", recurrent_dropout=P))
    assert through_file(layer, weights_only=False).recurrent_dropout == P


@pytest.mark.parametrize("kind", ["ALIF", "LSNN", "Recurrent"])
@pytest.mark.parametrize(("p", "error"), [
    (1.0, ValueError), (-0.1, ValueError), (float("nan"), ValueError), (True, TypeError),
    ("0.5", TypeError), (None, TypeError), (torch.tensor(0.5), TypeError)])
def test_what_is_wrong_is_named(kind: str, p: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="recurrent_dropout: expected a probability >= 0 and < 1, got"):
        _make(kind, recurrent_dropout=p)
    with pytest.raises(ValueError, match="recurrent_dropout: expected 0 with recurrent=False"):
        KINDS[kind](recurrent_dropout=P, recurrent=False)
