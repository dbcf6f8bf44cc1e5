"""Traces of selected neurons, firing rates, and states that are detached, moved and reset."""
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from compare import assert_same
from draws import draw
from lsnn_ext import ALIF, LSNN, LSNNState, State
from module_kinds import make_kinds, neurons_of
from steps import flat

T, B, I, N, O = 14, 3, 5, 8, 2
KINDS = make_kinds(I, N, O)
every = pytest.mark.parametrize("kind", KINDS)
FORMS = pytest.mark.parametrize("form", [{}, {"num_layers": 2}, {"bidirectional": True},
                                         {"batch_first": True}], ids=str)


def _made(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return KINDS[kind](**options)


# ------------------------------------------------------------------------------------------- traces
@every
@FORMS
@pytest.mark.parametrize("record", [[2, 5], slice(0, 8, 3), torch.tensor([7, -1]), range(2), [0]],
                         ids=str)
def test_recorded_neurons(kind: str, form: dict[str, Any], record: Any) -> None:
    """Of all traces those of these neurons, of both directions."""
    module, drawn = _made(kind, **form), draw(B, T, I)
    for given in (drawn if form.get("batch_first") else drawn.transpose(0, 1), drawn[0]):
        out, state, traces = module(given, trace=True)
        got, end, chosen = module(given, record=record)
        neurons = torch.arange(N)[record.tolist() if isinstance(record, Tensor) else
                                  list(record) if isinstance(record, range) else record]
        columns = torch.cat([neurons + N * k for k in range(1 + ("bidirectional" in form))])
        assert_same("traces", chosen, [whole[..., columns] for whole in traces])
        assert_same("results", flat([got, end]), flat([out, state]))


@every
def test_recorded_neurons_of_packed_sequences(kind: str) -> None:
    module = _made(kind)
    packed = pack_padded_sequence(draw(T, B, I), torch.tensor([9, 14, 2]), enforce_sorted=False)
    *_, traces = module(packed, trace=True)
    *_, chosen = module(packed, record=[3])
    assert torch.equal(chosen.threshold, traces.threshold[:, 3:4])


def test_recorded_neurons_have_gradients() -> None:
    layer = _made("ALIF")
    *_, chosen = layer(draw(T, B, I), record=[1])
    chosen.v.sum().backward()
    assert layer.weight_ih_l0.grad[1].any()


def test_bad_records() -> None:
    layer, x = _made("ALIF"), draw(T, B, I)
    for record, error, message in (
            ([8], ValueError, "^record: expected neurons below 8, got 8"),
            ("all", TypeError, "^record: expected indices of neurons or a slice, got str"),
            (torch.ones(8) > 0, TypeError, "^record: expected indices of neurons, got .*bool")):
        with pytest.raises(error, match=message):
            layer(x, record=record)
    with pytest.raises(ValueError, match="^record: expected None with trace=True"):
        layer(x, record=[1], trace=True)


# -------------------------------------------------------------------------------------------- rates
@every
@FORMS
def test_rates(kind: str, form: dict[str, Any]) -> None:
    """Means of the spikes of every layer and direction, with the gradient of such means."""
    module, drawn = _made(kind, **form), draw(B, T, I)
    x = drawn if form.get("batch_first") else drawn.transpose(0, 1)
    *_, rates = module(x, return_rates=True)
    neurons = neurons_of(module)
    layers, directions = neurons.num_layers, 1 + neurons.bidirectional
    assert rates.shape == (layers * directions, B, N)
    spikes, _ = neurons(x)
    spikes = spikes.transpose(0, 1) if form.get("batch_first") else spikes
    last = torch.cat(list(rates[-directions:]), -1)
    assert 0 < float(last.mean()) < 0.9
    torch.testing.assert_close(last, spikes.mean(0))
    weight = torch.linspace(1, 2, last.numel()).view_as(last)
    parameters = list(neurons.parameters())
    got = torch.autograd.grad((last * weight).sum(), parameters)
    want = torch.autograd.grad((spikes.mean(0) * weight).sum(), parameters)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module(drawn[0], return_rates=True)[-1], rates[:, 0])


@every
def test_rates_of_packed_sequences(kind: str) -> None:
    """Over the steps of each sequence; lengths far apart take several calls."""
    module, x, lengths = _made(kind, num_layers=2), draw(T, B, I), [5, 14, 3]
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    *_, rates = module(packed, return_rates=True)
    for b, steps in enumerate(lengths):
        torch.testing.assert_close(rates[:, b], module(x[:steps, b], return_rates=True)[-1])


def test_rates_of_lengths_far_apart() -> None:
    """A long group of sequences counts bits, a short one numbers."""
    torch.manual_seed(0)
    net = LSNN(I, 60, 60, 2)
    for lengths in ([200] * 12 + [20], [500] + [150] * 30):
        x = [3 * torch.rand(steps, I) for steps in lengths]
        y, _, rates = net(pack_sequence(x), return_rates=True)
        want = torch.stack([net(one, return_rates=True)[-1][0] for one in x], 0)
        torch.testing.assert_close(rates[0], want)
        assert rates.any()
        (one,) = torch.autograd.grad(rates.square().sum(), net.neurons.weight_ih_l0)
        (other,) = torch.autograd.grad(want.square().sum(), net.neurons.weight_ih_l0)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_rates_come_last() -> None:
    net, x = _made("LSNN"), draw(T, B, I)
    y, state, spikes, traces, rates = net(x, return_spikes=True, trace=True, return_rates=True)
    assert spikes.shape == traces.v.shape == (T, B, N) and rates.shape == (1, B, N)
    torch.testing.assert_close(rates[0], spikes.mean(0))
    assert torch.equal(y, net(x)[0]) and isinstance(state, LSNNState)


@pytest.mark.parametrize("network", [True, False])
def test_rates_of_long_sequences_need_no_spikes(network: bool) -> None:
    """Spikes handed on as bits are counted as bits."""
    torch.manual_seed(0)
    net: Any = LSNN(100, 100, 120, 4, num_layers=2) if network else ALIF(100, 220, 2)
    x = (torch.rand(100, 40, 100, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    *_, rates = net(x, return_rates=True)
    first = neurons_of(net)
    alone = ALIF(100, 220, bias=not network, tau_adapt=float(first.tau_adapt_l0),
                 beta=first.beta_l0, refractory=first.refractory)
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(getattr(first, name))
    spikes, _ = alone(x)
    torch.testing.assert_close(rates[0], spikes.mean(0))
    last = first(x)[0]
    torch.testing.assert_close(rates[1], last.mean(0))
    (got,) = torch.autograd.grad(rates.square().sum(), first.weight_hh_l1)
    (want,) = torch.autograd.grad(last.mean(0).square().sum(), first.weight_hh_l1)
    assert want.any()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------- states
@every
def test_state_detached_moved_reset(kind: str) -> None:
    module, x = _made(kind, num_layers=2), draw(T, B, I)
    _, state = module(x)
    free = state.detach()
    assert type(free) is type(state)
    assert not any(leaf.requires_grad for leaf in flat(free))
    assert all(torch.equal(a, b) for a, b in zip(flat(free), flat(state), strict=True))
    assert {leaf.dtype for leaf in flat(state.to(torch.float64))} == {torch.float64}
    assert all(leaf.is_meta for leaf in flat(state.to("meta")))
    mask = torch.tensor([False, True, False])
    anew, _ = module(x)
    out, _ = module(x, state.reset(mask))
    carried, _ = module(x, state)
    assert torch.equal(out[:, 1], anew[:, 1])
    assert torch.equal(out[:, ::2], carried[:, ::2]) and not torch.equal(out, carried)
    assert not any(leaf.any() for leaf in flat(module(x[:, 0])[1].reset(torch.tensor(True)))[:4])


def test_reset_keeps_gradients_of_others() -> None:
    layer, x = _made("ALIF"), draw(T, B, I).requires_grad_()
    _, state = layer(x)
    layer(draw(T, B, I, seed=1), state.reset(torch.tensor([1, 0, 0])))[1].v.sum().backward()
    assert not x.grad[:, 0].any() and x.grad[:, 1].any()


def test_bad_masks() -> None:
    _, state = _made("ALIF")(draw(T, B, I))
    with pytest.raises(TypeError, match="^mask: expected a bool tensor .B,.*got list"):
        state.reset([True, False, False])
    with pytest.raises(TypeError, match="^mask: .*got torch.float32"):
        state.reset(torch.ones(B))
    with pytest.raises(ValueError, match=r"^mask: expected shape \(3,\), .*got \(4,\)"):
        state.reset(torch.ones(4, dtype=torch.bool))


def test_states_stay_what_they_were() -> None:
    """Methods do not make them other tuples: torch compiles, saves and maps over them."""
    _, state = _made("ALIF")(draw(T, B, I))
    assert isinstance(state, tuple) and State._fields == ("v", "a", "i", "r", "z")
    leaves, spec = torch.utils._pytree.tree_flatten(state)
    assert len(leaves) == 5 and type(torch.utils._pytree.tree_unflatten(leaves, spec)) is State

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(state: State, mask: Tensor) -> State:
        return state.detach().reset(mask)

    mask = torch.tensor([True, False, False])
    assert_same("state", compiled(state, mask), state.reset(mask))
