"""What the page of torch.nn.LSTM promises, of nn.LSTM, ALIF, LIF and LSNN."""
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout
from module_kinds import make_kinds, neurons_of, round_weights
from steps import flat

T, B, I, N, O = 12, 3, 5, 8, 2
DELAYED = {"delay": 1, "refractory": 2}  # which nn.LSTM lacks
KINDS: dict[str, Callable[..., Any]] = {
    "LSTM": lambda **options: nn.LSTM(I, N, **{
        name: value for name, value in options.items() if name not in DELAYED}),
    **make_kinds(I, N, O)}
every = pytest.mark.parametrize("kind", KINDS)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {}, "two-layers": {"num_layers": 2}, "both": {"bidirectional": True},
    "two-layers-both": {"num_layers": 2, "bidirectional": True},
    "batch-first": {"batch_first": True}, "delayed": {"num_layers": 2, **DELAYED}}
of_every_form = pytest.mark.parametrize("form", FORMS)


def _x(*shape: int, seed: int = 0) -> Tensor:
    """Multiples of 1/64, as the weights: sums are exact in any order."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2
    return (x * 64).round() / 64


def _made(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return round_weights(KINDS[kind](**options), 64)


def _layers(state: Any) -> list[Tensor]:
    """The tensors of a state with the layers in front, batch and neurons at the end."""
    return flat(state[0] if type(state).__name__ == "LSNNState" else state)


def _width(kind: str, directions: int) -> int:
    return O if kind == "LSNN" else directions * N


def _same(kind: str, got: Any, want: Any) -> None:
    """Bitwise identical, but for nn.LSTM."""
    tolerance = {} if kind == "LSTM" else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(flat(got), flat(want), **tolerance)


# ------------------------------------------------------------------------------------- construction
def test_arguments_in_the_same_order() -> None:
    names = ["num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    for kind in (ALIF, LIF, LSNN):
        found = list(inspect.signature(kind).parameters)
        first = 4 if kind is LSNN else 2
        assert found[first:first + 5] == names
        assert {"device", "dtype"} <= set(found)
    assert ALIF(I, N, 2, False, True, 0.0, True).weight_ih_l1_reverse.shape == (N, 2 * N)
    assert nn.LSTM(I, N, 2, False, True, 0.0, True).weight_ih_l1_reverse.shape == (4 * N, 2 * N)


@every
@of_every_form
@pytest.mark.parametrize("bias", [True, False])
def test_parameters(kind: str, form: str, bias: bool) -> None:
    """Shapes of weight_ih_l[k], weight_hh_l[k] and `_reverse`; a bias on request."""
    part = neurons_of(KINDS[kind](**FORMS[form], bias=bias))
    gates = 4 if kind == "LSTM" else 1
    directions, layers = 1 + part.bidirectional, part.num_layers
    suffixes = [f"_l{k}{end}" for k in range(layers) for end in ("", "_reverse")[:directions]]
    for suffix in suffixes:
        inputs = I if suffix.startswith("_l0") else directions * N
        assert getattr(part, f"weight_ih{suffix}").shape == (gates * N, inputs)
        assert getattr(part, f"weight_hh{suffix}").shape == (gates * N, N)
        assert hasattr(part, f"bias_ih{suffix}") == bias
    assert len(part.all_weights) == len(suffixes)
    assert part.all_weights[-1][0] is getattr(part, f"weight_ih{suffixes[-1]}")
    part.flatten_parameters()


@every
def test_device_and_dtype(kind: str) -> None:
    out, state = KINDS[kind](dtype=torch.float64)(_x(T, B, I).double())
    assert {value.dtype for value in [out, *flat(state)]} == {torch.float64}
    meta = KINDS[kind](device="meta")
    assert all(p.is_meta for p in meta.parameters())
    assert meta(torch.empty(T, B, I, device="meta"))[0].is_meta


# ------------------------------------------------------------------------------- inputs and outputs
@every
@of_every_form
def test_shapes(kind: str, form: str) -> None:
    """Batched, batch first, unbatched; batch_first does not apply to the state."""
    module = _made(kind, **FORMS[form])
    part, first = neurons_of(module), FORMS[form].get("batch_first", False)
    directions = 1 + part.bidirectional
    x = _x(T, B, I)
    out, state = module(x.transpose(0, 1) if first else x)
    assert out.shape == ((B, T) if first else (T, B)) + (_width(kind, directions),)
    for leaf in _layers(state):
        assert leaf.shape[0] == part.num_layers * directions and leaf.shape[-2:] == (B, N)
    one, one_state = module(x[:, 1])
    assert one.shape == (T, _width(kind, directions))
    _same(kind, one, (out.transpose(0, 1) if first else out)[:, 1])
    for leaf, whole in zip(_layers(one_state), _layers(state), strict=True):
        _same(kind, leaf, whole[..., 1, :])


@pytest.mark.parametrize(("steps", "items"), [(0, B), (T, 0), (0, 0)])
@pytest.mark.parametrize("kind", ["ALIF", "LIF", "LSNN"])  # nn.LSTM refuses them
@of_every_form
def test_no_steps_or_no_items(form: str, kind: str, steps: int, items: int) -> None:
    module = KINDS[kind](**FORMS[form])
    part = neurons_of(module)
    directions, shape = 1 + part.bidirectional, (steps, items)
    shape = shape[::-1] if part.batch_first else shape
    out, state = module(torch.rand(*shape, I))
    assert out.shape == (*shape, _width(kind, directions))
    *leaves, z = _layers(state)
    assert {leaf.shape for leaf in leaves} == {(part.num_layers * directions, items, N)}
    assert z.shape == (part.num_layers * directions, 1 + part.delay, items, N)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    if not part.bidirectional:
        assert module.step(torch.rand(0, I))[0].shape == (0, _width(kind, 1))


@every
@pytest.mark.parametrize("form", ["plain", "two-layers", "batch-first", "delayed"])
def test_two_calls_equal_one(kind: str, form: str) -> None:
    module = _made(kind, **FORMS[form])
    x, axis = _x(T, B, I), 1 if form == "batch-first" else 0
    x = x.transpose(0, 1) if axis else x
    out, state = module(x)
    first, middle = module(x.narrow(axis, 0, 5))
    second, end = module(x.narrow(axis, 5, T - 5), middle)
    _same(kind, [torch.cat([first, second], axis), end], [out, state])


@every
@pytest.mark.parametrize("layers", [1, 2])
def test_both_directions(kind: str, layers: int) -> None:
    """Side by side; the last state of the backward direction is that at the first step."""
    module = _made(kind, num_layers=layers, bidirectional=True)
    part, x = neurons_of(module), _x(T, B, I)
    seen: Any = x
    for layer in range(layers):
        ends, outs = [], []
        for end, backwards in (("", False), ("_reverse", True)):
            alone: Any = nn.LSTM(seen.shape[-1], N) if kind == "LSTM" else type(part)(
                seen.shape[-1], N, **({} if kind != "LSNN" else {
                    "beta": part.beta_l0, "tau_adapt": 700.0, "refractory": 5}))
            with torch.no_grad():
                for name, parameter in alone.named_parameters():
                    parameter.copy_(getattr(part, name.replace("_l0", f"_l{layer}{end}"),
                                            torch.zeros(())))
            out, state = alone(seen.flip(0) if backwards else seen)
            outs.append(out.flip(0) if backwards else out)
            ends.append(state)
        seen = torch.cat(outs, -1)
        got = _layers(module(x)[1])
        for direction in (0, 1):
            for leaf, want in zip(got, flat(ends[direction]), strict=True):
                _same(kind, leaf[2 * layer + direction], want[0])
    _same(kind, module(x)[0] if kind != "LSNN" else module(x, return_spikes=True)[2], seen)


def _run_packed(kind: str, module: Any, x: Tensor, packed: PackedSequence, lengths: list[int],
                initial: Any = None) -> PackedSequence:
    """The output, in which each sequence is as if it were alone, from its own state to the end."""
    out, state = module(packed, initial)
    padded, found = pad_packed_sequence(out)
    assert found.tolist() == lengths
    for b, steps in enumerate(lengths):
        own = initial and tree_map(lambda leaf, b=b: leaf[..., b, :], initial)
        want, end = module(x[:steps, b], own)
        _same(kind, padded[:steps, b], want)
        for leaf, alone in zip(_layers(state), _layers(end), strict=True):
            _same(kind, leaf[..., b, :], alone)
    return out


@every
@pytest.mark.parametrize("form", [form for form in FORMS if form != "batch-first"])
@pytest.mark.parametrize("lengths", [[12, 7, 7], [7, 1, 12]])
def test_packed(kind: str, form: str, lengths: list[int]) -> None:
    module, x = _made(kind, **FORMS[form]), _x(T, B, I)
    _, start = module(_x(4, B, I, seed=5))
    is_sorted = lengths == sorted(lengths, reverse=True)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
    for initial in (None, start):
        _run_packed(kind, module, x, packed, lengths, initial)


@every
def test_packed_by_hand(kind: str) -> None:
    """Equal lengths stay in the order of the argument, which torch's packing would not choose."""
    module, x = _made(kind), _x(T, B, I)
    order = torch.tensor([2, 1, 0])
    rows = pack_padded_sequence(x[:, order], [12, 7, 7])
    packed = PackedSequence(rows.data, rows.batch_sizes, order, order.argsort())
    out = _run_packed(kind, module, x, packed, [7, 7, 12])
    assert all(map(torch.equal, out[1:], packed[1:]))


@pytest.mark.parametrize("tau_syn", [None, 5.0])
def test_packed_by_hand_for_a_readout(tau_syn: float | None) -> None:
    """Also of means over windows."""
    x, order = _x(T, B, I), torch.tensor([2, 1, 0])
    rows = pack_padded_sequence(x[:, order], [12, 12, 6])
    packed = PackedSequence(rows.data, rows.batch_sizes, order, order.argsort())
    for module, options in ((LeakyReadout(I, O, tau_syn=tau_syn), {}),
                            (LSNN(I, N, N, O), {"readout_every": 3})):
        out, _ = module(packed, **options)
        assert torch.equal(out.sorted_indices, order)
        padded, lengths = pad_packed_sequence(out)
        for b, (steps, rows_of) in enumerate(zip((6, 12, 12), lengths, strict=True)):
            torch.testing.assert_close(padded[:rows_of, b], module(x[:steps, b], **options)[0])


@every
def test_dropout(kind: str) -> None:
    """On the outputs of each layer but the last, in training alone; with one layer a warning."""
    module, x = _made(kind, num_layers=2, dropout=0.5), _x(T, B, I)
    torch.manual_seed(1)
    one, two = module(x)[0], module(x)[0]
    assert not torch.equal(one, two)
    module.eval()
    _same(kind, module(x)[0], module(x)[0])
    _same(kind, module(x)[0], _made(kind, num_layers=2)(x)[0])
    with pytest.warns(UserWarning, match="dropout"):
        alone = _made(kind, dropout=0.5)
    _same(kind, alone(x)[0], alone(x)[0])


# ----------------------------------------------------------------------------------- beyond nn.LSTM
def test_steps_need_one_direction() -> None:
    for module in (ALIF(I, N, bidirectional=True), LSNN(I, 3, 5, O, bidirectional=True)):
        with pytest.raises(ValueError, match="^step: expected a .*bidirectional=False"):
            module.step(_x(B, I))


@pytest.mark.parametrize("form", FORMS)
def test_readout_of_the_network(form: str) -> None:
    """Fused or separate, results are bitwise identical; without a filter a product."""
    x = _x(T, B, I)
    x = x.transpose(0, 1) if form == "batch-first" else x
    for tau in (7.0, None):
        net = _made("LSNN", **FORMS[form], tau_out=tau)
        nn.init.normal_(net.readout.bias)
        y, state = net(x)
        spikes, end = net.neurons(x)
        want, p = net.readout(spikes)
        assert spikes.any()
        _same("LSNN", [y, state], [want, [end, p]])
        if tau is None:
            _same("LSNN", y, nn.functional.linear(spikes, net.readout.weight, net.readout.bias))


@every
def test_attributes_and_moves(kind: str) -> None:
    """What it was made with can be read; .double() and .to() take parameters and constants."""
    module = _made(kind, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25)
    part = neurons_of(module)
    assert (part.input_size, part.hidden_size, part.num_layers) == (I, N, 2)
    assert (part.bias, part.batch_first, part.dropout, part.bidirectional) == (
        kind not in ("LSNN",), True, 0.25, True)
    for text in ("num_layers=2", "batch_first=True", "dropout=0.25", "bidirectional=True"):
        assert text in repr(module)
    module.eval()
    assert not module.training and not part.training
    out, state = module.double()(_x(B, T, I).double())
    assert {value.dtype for value in [out, *flat(state)]} == {torch.float64}
    without_data = flat(module.to("meta")(torch.empty(B, T, I, dtype=torch.float64, device="meta")))
    assert [value.shape for value in without_data] == [value.shape for value in flat([out, state])]
    assert all(value.is_meta for value in without_data)
