"""lsnn_ext.Recurrent: parameters, forms of input and state, state dicts, copies and pickles."""
import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import lsnn_ext
from any_neurons import ADAPTIVE, ANALOG, BRANCHES, adaptive
from compare import through_file
from lsnn_ext import Neuron, NeuronState, Recurrent
from lsnn_ext.codegen import call as codegen_call
from lsnn_ext.functional import pack_spikes, recurrent
from module_kinds import run_steps

I, N, T, B = 4, 6, 9, 3


@pytest.fixture(autouse=True)
def loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen_call, "explain_loop", lambda x: "kernels are off")


def layer_of(neuron: Neuron = ADAPTIVE, **given: Any) -> Recurrent:
    torch.manual_seed(0)
    more: dict[str, Any] = {"theta": 0.2} if neuron is ADAPTIVE else {}
    layer = Recurrent(neuron, I, N, **{**more, **given})
    with torch.no_grad():
        layer.weight_ih_l0.mul_(5)
    return layer


def inputs(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(*shape, I) < 0.5).float()


def test_equals_the_function() -> None:
    layer = layer_of(learn="theta", positive=("tau",), bias=True, autapses=False,
                     delay=torch.randint(0, 3, (N, N)))
    with torch.no_grad():
        layer.bias_ih_l0.uniform_()
    x = inputs(T, B)
    spikes, state, traces = layer(x, trace=True)
    wanted, after, every = recurrent(
        x, layer.weight_hh_l0.t(), ADAPTIVE, w_in=layer.weight_ih_l0, bias=layer.bias_ih_l0,
        delay=layer.delay, autapses=False, trace=True, tau=layer.tau, theta=layer.theta)
    assert torch.equal(spikes, wanted) and torch.equal(state.z, after.z) and spikes.any()
    assert all(torch.equal(traces[name], every[name]) for name in ("v", "w"))
    spikes.sum().backward()
    for name, one in layer.named_parameters():
        assert one.grad is not None and bool(one.grad.any()), name


def test_parameters_and_buffers() -> None:
    each = torch.rand(N) + 1
    layer = layer_of(learn=("theta",), positive="tau", tau=each)
    shapes = {name: tuple(one.shape) for name, one in layer.named_parameters()}
    assert shapes == {"weight_ih_l0": (N, I), "weight_hh_l0": (N, N), "theta": (),
                      "parametrizations.tau.original": (N,)}
    torch.testing.assert_close(layer.tau, each)
    assert layer.learn == ("theta", "tau") and not list(layer.buffers())
    layer = layer_of(tau=each.double(), dtype=torch.float64)
    assert [name for name, _ in layer.named_buffers()] == ["tau"] and layer.theta == 0.2
    assert layer.tau.dtype == torch.float64 and layer.tau is not each
    assert layer.float()(inputs(T, B))[0].dtype == torch.float32
    several = layer_of(BRANCHES, tau=3.0, gain=torch.ones(N), bias=True, learn="gain")
    assert several.weight_ih_l0.shape == (2, N, I) and several.weight_hh_l0.shape == (2, N, N)
    assert several.bias_ih_l0.shape == (2, N)
    x = inputs(T, B)
    wanted, _ = recurrent(x, several.weight_hh_l0.transpose(1, 2), BRANCHES,
                          w_in=several.weight_ih_l0, tau=3.0, gain=torch.ones(N))
    assert torch.equal(several(x)[0], wanted)


def test_weights_start_as_those_of_other_layers() -> None:
    layer = Recurrent(ANALOG, 300, 200, bias=True)
    assert abs(float(layer.weight_ih_l0.detach().std()) * math.sqrt(300) - 1) < 0.02
    assert abs(float(layer.weight_hh_l0.detach().std()) * math.sqrt(200) - 1) < 0.02
    assert not layer.bias_ih_l0.any()
    layer = layer_of(positive="tau", delay=torch.randint(0, 3, (N, N)))
    first = layer.delay.clone()
    with torch.no_grad():
        layer.parametrizations.tau.original.add_(1.0)
        layer.delay.zero_()
    layer.reset_parameters()
    assert float(layer.tau) == pytest.approx(5.0) and torch.equal(layer.delay, first)


def test_forms_of_input() -> None:
    layer, x = layer_of(), inputs(T, B)
    spikes, state, traces = layer(x, trace=True)
    first = copy.deepcopy(layer)
    first.batch_first = True
    again, end, every = first(x.transpose(0, 1), trace=True)
    assert torch.equal(again.transpose(0, 1), spikes) and torch.equal(end.z, state.z)
    assert torch.equal(every["v"].transpose(0, 1), traces["v"])
    one, after, of_one = layer(x[:, 0], trace=True)
    assert torch.equal(one, spikes[:, 0]) and after.z.shape == (1, N)
    assert after.states["v"].shape == (N,) and of_one["v"].shape == (T, N)
    rest, _ = layer(x[:4, 0])
    goes_on, _ = layer(x[4:, 0], layer(x[:4, 0])[1])
    torch.testing.assert_close(torch.cat([rest, goes_on]), one)
    for other in (x.bool(), x.to(torch.uint8), pack_spikes(x)):
        assert torch.equal(layer(other)[0], spikes)
    half, state = layer(x.half())
    assert half.dtype == torch.float16 and state.z.dtype == torch.float32
    quiet = layer_of(recurrent=False)
    assert "weight_hh_l0" not in dict(quiet.named_parameters())
    assert quiet(x)[0].shape == (T, B, N)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_sequences_of_unequal_length(is_sorted: bool) -> None:
    layer = layer_of(delay=2)
    lengths = [9, 9, 4] if is_sorted else [4, 9, 9]
    x = inputs(T, B)
    spikes, state = layer(x, lengths=lengths)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
    out, end, traces = layer(packed, trace=True)
    assert isinstance(out, PackedSequence) and torch.equal(out.batch_sizes, packed.batch_sizes)
    assert torch.equal(nn.utils.rnn.pad_packed_sequence(out)[0], spikes)
    assert torch.equal(end.z, state.z) and isinstance(traces["v"], PackedSequence)
    for b, n in enumerate(lengths):
        alone, after = layer(x[:n, b])
        torch.testing.assert_close(alone, spikes[:n, b])
        torch.testing.assert_close(after.states["v"], state.states["v"][b])
    whole = layer(pack_sequence([x[:n, b] for b, n in enumerate(lengths)],
                                enforce_sorted=is_sorted), state)[0]
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(whole)[0],
                               layer(x, state, lengths=lengths)[0])


def test_copies_pickles_and_state_dicts() -> None:
    layer = layer_of(learn="theta", positive="tau", tau=torch.rand(N) + 2, bias=True,
                     delay=torch.randint(0, 3, (N, N)))
    x = inputs(T, B)
    wanted, _ = layer(x)
    saved = through_file(layer, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved):
        assert torch.equal(other(x)[0], wanted) and other.neuron == ADAPTIVE
        assert repr(other) == repr(layer)
        assert {id(p) for p in other.parameters()}.isdisjoint(map(id, layer.parameters()))
    other = layer_of(learn="theta", positive="tau", tau=torch.ones(N), bias=True,
                     delay=torch.zeros(N, N, dtype=torch.int64))
    loaded = through_file(layer.state_dict(), weights_only=True)
    assert not other.load_state_dict(loaded).missing_keys
    assert torch.equal(other(x)[0], wanted)


def test_a_state_dict_of_other_numbers_warns() -> None:
    layer, other = layer_of(), layer_of(tau=9.0, delay=1)
    with pytest.warns(UserWarning, match="tau=5.0 there and 9.0 here.*delay=0 there and 1 here|"
                                         "delay=0 there and 1 here.*tau=5.0 there and 9.0 here"):
        other.load_state_dict(layer.state_dict())
    plain = {name: one for name, one in layer.state_dict().items() if name != "_extra_state"}
    other.load_state_dict(plain)
    with pytest.raises(RuntimeError, match="expected the extra state of a Recurrent of lsnn_ext"):
        other.load_state_dict({**plain, "_extra_state": torch.zeros(3)})


def test_numbers_may_be_set() -> None:
    layer, x = layer_of(), inputs(T, B)
    layer.tau = 2.0
    assert torch.equal(layer(x)[0], layer_of(tau=2.0)(x)[0])
    with pytest.raises(TypeError, match="tau: expected a number or a tensor, got str"):
        layer.tau = "2"
        layer(x)


def test_repr_has_what_is_not_the_default() -> None:
    assert repr(layer_of()) == f"Recurrent(Neuron(adaptive), {I}, {N}, theta=0.2)"
    layer = layer_of(positive="tau", learn="theta", bias=True, checkpoint_every=16)
    assert repr(layer) == (f"Recurrent(Neuron(adaptive), {I}, {N}, learn=('theta',), "
                           f"positive=('tau',), bias=True, checkpoint_every=16, tau=5.0, "
                           f"theta=0.2)")


def test_trains() -> None:
    layer = layer_of(positive="tau", learn="theta", delay=1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    x, losses = inputs(T, 8), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (layer(x)[0].mean(0) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0] and bool((layer.tau > 0).all())


def clashing(c, v, z, *, half=1.0):
    return v, z


WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "neuron: expected a Neuron, got function", {"neuron": adaptive}),
    (ValueError, "input_size: expected a whole number >= 1", {"input_size": 0}),
    (ValueError, "hidden_size: expected a whole number >= 1", {"hidden_size": True}),
    (TypeError, "theta: expected a number or a tensor, got none", {"theta": None}),
    (TypeError, "rho: expected a coefficient of Neuron.adaptive.", {"rho": 1.0}),
    (ValueError, "theta: expected a number or shape", {"theta": torch.ones(3)}),
    (ValueError, "learn: expected coefficients of Neuron.adaptive., which are tau, theta, got 'a'",
     {"learn": "a"}),
    (TypeError, "positive: expected names", {"positive": 3}),
    (ValueError, "tau: expected numbers > 0, which have a logarithm", {"positive": "tau",
                                                                      "tau": -1.0}),
    (TypeError, "bias: expected True or False", {"bias": 1}),
    (ValueError, "delay: expected extra steps >= 0", {"delay": -1}),
    (ValueError, "delay: expected integers", {"delay": torch.zeros(2, 2, dtype=torch.int64)}),
    (ValueError, "delay: expected 0 with recurrent=False", {"delay": 1, "recurrent": False}),
    (ValueError, "sparse_grad", {"sparse_grad": "some"}),
    (ValueError, "dtype: expected a floating point dtype", {"dtype": torch.int64}),
    (TypeError, "another name for the coefficient half", {"neuron": Neuron(clashing)})]


@pytest.mark.parametrize(("kind", "message", "changed"), WRONG, ids=[w[1] for w in WRONG])
def test_wrong_arguments_are_named(kind: type[Exception], message: str,
                                   changed: dict[str, Any]) -> None:
    given = {"neuron": ADAPTIVE, "input_size": I, "hidden_size": N, "theta": 0.2, **changed}
    if given["theta"] is None or given["neuron"] is not ADAPTIVE:
        del given["theta"]
    with pytest.raises(kind, match=message):
        Recurrent(**given)


CALLS: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
    (TypeError, "x: expected a tensor, a PackedSequence or PackedSpikes", ([1.0],), {}),
    (ValueError, r"x: expected shape \(T, B, I\) or \(T, I\) with I = 4", (torch.ones(T, 7),), {}),
    (ValueError, "x: expected torch.float32 as the parameters", (torch.ones(T, I).double(),), {}),
    (TypeError, "state: expected a NeuronState", (torch.ones(T, B, I), torch.ones(B, N)), {}),
    (ValueError, "state.z: expected shape .*x seems to be",
     (torch.ones(T, B, I), NeuronState({"v": torch.ones(T, N), "w": torch.ones(T, N)},
                                       torch.ones(1, T, N))), {}),
    (ValueError, "lengths: expected shape", (torch.ones(T, B, I),), {"lengths": [1]}),
    (ValueError, "lengths: expected None with an unbatched sequence", (torch.ones(T, I),),
     {"lengths": [1]})]


@pytest.mark.parametrize(("kind", "message", "args", "more"), CALLS, ids=[c[1] for c in CALLS])
def test_wrong_calls_are_named(kind: type[Exception], message: str, args: tuple[Any, ...],
                               more: dict[str, Any]) -> None:
    with pytest.raises(kind, match=message):
        layer_of()(*args, **more)


def test_is_made_on_meta() -> None:
    layer = Recurrent(ADAPTIVE, I, N, theta=0.2, positive="tau", device="meta")
    assert layer.weight_ih_l0.is_meta
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.isfinite(layer.weight_hh_l0).all() and float(layer.tau) == pytest.approx(5.0)
    with lsnn_ext.use_reference():
        assert layer(inputs(T, B))[0].shape == (T, B, N)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch", [(), (B,)])
def test_steps_equal_a_sequence(batch: tuple[int, ...], batch_first: bool) -> None:
    layer = layer_of(ADAPTIVE, batch_first=batch_first).double()
    x = inputs(T, *batch).double()
    steps, state = run_steps(layer, x)
    swapped = batch_first and bool(batch)
    expected, after = layer(x.transpose(0, 1) if swapped else x)
    expected = expected.transpose(0, 1) if swapped else expected
    assert expected.any()
    torch.testing.assert_close(steps, expected)
    torch.testing.assert_close(state.z, after.z)
    with pytest.raises(TypeError, match="x_t: expected a tensor"):
        layer.step([1.0])  # type: ignore[arg-type]
