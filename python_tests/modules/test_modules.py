"""The layers against a plain loop over the reference, in every form of input, and what else nn.LSTM
lets one expect."""
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import lsnn_ext
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, State, reference
from lsnn_ext.models import find_defaults
from lsnn_ext.modules.parametrizations import Clamp
from module_kinds import round_weights, run_steps

T, B, I, N = 40, 3, 6, 8


def exact(module: nn.Module) -> Any:
    return round_weights(module, 1024)


def spikes_in(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def by_reference(layer: ALIF | LIF, x: Tensor, suffix: str = "_l0",
                 state: State | None = None) -> Any:
    """One direction of one layer as the equations say, x (T, B, I)."""
    p = dict(layer.named_parameters()) | dict(layer.named_buffers())
    current = x @ p["weight_ih" + suffix].t()
    if layer.bias:
        current = current + p["bias_ih" + suffix]
    k = {"alpha": torch.exp(-layer.dt / p["tau_mem" + suffix]), "theta": p["threshold" + suffix]}
    if isinstance(layer, ALIF):
        k |= {"rho": torch.exp(-layer.dt / p["tau_adapt" + suffix]), "beta": p["beta" + suffix]}
    w_rec = p["weight_hh" + suffix].t().clone()
    if not layer.autapses:
        w_rec = w_rec - torch.diag(w_rec.diagonal())
    return reference.alif(current, w_rec, **k, refractory=layer.refractory, delay=layer.delay,
                          dynamics=layer.dynamics, surrogate=layer.surrogate,
                          dampening=layer.dampening, state=state, trace=True)


def same(one: State, other: State, **tolerance: float) -> None:
    for name, left, right in zip(State._fields, one, other, strict=True):
        torch.testing.assert_close(left, right, msg=lambda m, name=name: f"state.{name}: {m}",
                                   **tolerance)


@pytest.mark.parametrize("kind", [ALIF, LIF])
@pytest.mark.parametrize("options", [{}, {"refractory": 3, "delay": 2},
                                     {"dynamics": "srnn", "threshold": 0.05},
                                     {"autapses": True, "bias": False},
                                     {"dt": 2.0, "dampening": 0.7}])
def test_against_reference(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    if "dynamics" in options:  # the constants of the paper with another model
        options = {**find_defaults("lsnn", kind._kind), **options}
    layer = exact(kind(I, N, **options))
    x = spikes_in(T, B, I)
    out, state, traces = layer(x, trace=True)
    want, want_state, want_traces = by_reference(layer, x)
    assert 0 < out.mean() < 1
    assert torch.equal(out, want)
    same(State(*(leaf[0] for leaf in state)), want_state)
    for got, expected in zip(traces, want_traces, strict=True):
        torch.testing.assert_close(got, expected)
    weight = torch.randn(T, B, N)
    parameters = list(layer.parameters())
    got_gradients = torch.autograd.grad((out * weight).sum(), parameters)
    want_gradients = torch.autograd.grad((want * weight).sum(), parameters)
    for got, expected in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4,
                                   atol=1e-4 * float(expected.abs().max()))


def test_per_neuron_values_and_delays() -> None:
    delay = torch.randint(0, 3, (N, N), generator=torch.Generator().manual_seed(0))
    layer = exact(ALIF(I, N, tau_mem=torch.linspace(10, 30, N), tau_adapt=torch.linspace(50, 500,
                                                                                         N),
                       beta=torch.linspace(0, 2, N), threshold=torch.full((N,), 0.02), delay=delay))
    x = spikes_in(T, B, I)
    assert torch.equal(layer(x)[0], by_reference(layer, x)[0])
    assert layer(x)[1].z.shape == (1, 3, B, N)


def test_batch_first_and_unbatched() -> None:
    layer = exact(ALIF(I, N, 2))
    other = copy.deepcopy(layer)
    other.batch_first = True
    x = spikes_in(T, B, I)
    out, state = layer(x)
    transposed, transposed_state = other(x.transpose(0, 1))
    assert torch.equal(transposed, out.transpose(0, 1))
    same(transposed_state, state, rtol=0, atol=0)
    for module in (layer, other):
        single, single_state, traces = module(x[:, 0], trace=True)
        assert torch.equal(single, out[:, 0]) and traces.v.shape == (T, N)
        same(single_state, State(*(leaf[..., 0, :] for leaf in state)), rtol=0, atol=0)
        again, _ = module(x[:5, 1], single_state)
        assert again.shape == (5, N)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[40, 25, 25, 7], [7, 40, 1, 25]])
def test_packed(bidirectional: bool, lengths: list[int]) -> None:
    layer = exact(ALIF(I, N, 2, bidirectional=bidirectional, refractory=2, delay=1))
    sequences = [spikes_in(length, I, seed=length + index) for index, length in enumerate(lengths)]
    packed = pack_sequence(sequences, enforce_sorted=lengths == sorted(lengths, reverse=True))
    _, start = layer(spikes_in(30, len(lengths), I, seed=9))
    for initial in (None, start):
        out, state, traces = layer(packed, initial, trace=True)
        padded, out_lengths = pad_packed_sequence(out)
        threshold = pad_packed_sequence(out._replace(data=traces.threshold))[0]
        assert out_lengths.tolist() == lengths
        for b, x in enumerate(sequences):
            own = None if initial is None else State(*(leaf[..., b, :] for leaf in initial))
            want, want_state, want_traces = layer(x, own, trace=True)
            assert torch.equal(padded[:len(x), b], want) and padded[len(x):, b].abs().sum() == 0
            same(State(*(leaf[..., b, :] for leaf in state)), want_state, rtol=0, atol=0)
            assert torch.equal(threshold[:len(x), b], want_traces.threshold)


def test_bidirectional_and_layers() -> None:
    layer = exact(ALIF(I, N, 2, bidirectional=True))
    x = spikes_in(T, B, I)
    out, state = layer(x)
    inner = x
    for number in range(2):
        ahead, ahead_state, _ = by_reference(layer, inner, f"_l{number}")
        back, back_state, _ = by_reference(layer, inner.flip(0), f"_l{number}_reverse")
        inner = torch.cat([ahead, back.flip(0)], -1)
        same(State(*(leaf[2 * number] for leaf in state)), ahead_state)
        same(State(*(leaf[2 * number + 1] for leaf in state)), back_state)
    assert torch.equal(out, inner)
    assert (
        out.shape == (T, B, 2 * N) and state.v.shape == (4, B, N) and state.z.shape == (4, 1, B, N)
    )


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "delay": 2, "refractory": 3}])
def test_chunks_and_steps_equal_one_call(options: dict[str, Any]) -> None:
    layer = exact(ALIF(I, N, **options))
    x = spikes_in(T, B, I)
    out, state = layer(x)
    first, middle = layer(x[:17])
    second, end = layer(x[17:], middle)
    assert torch.equal(torch.cat([first, second]), out)
    same(end, state, rtol=0, atol=0)
    for form in (x, x[:, 0]):
        whole, whole_state = layer(form)
        outs, carried = run_steps(layer, form)
        assert torch.equal(outs, whole)
        same(carried, whole_state, rtol=0, atol=0)


def test_state_carries_gradient() -> None:
    layer = exact(ALIF(I, N))
    x = spikes_in(T, B, I)
    _, state = layer(x[:10])
    out, _ = layer(x[10:], state)
    (through,) = torch.autograd.grad(out.sum(), state.v, retain_graph=True)
    assert through.abs().sum() > 0


def test_learn() -> None:
    names = ("tau_mem", "tau_adapt", "beta", "threshold")
    layer = exact(ALIF(I, N, learn=names, beta=torch.ones(N)))
    x = spikes_in(T, B, I)
    out, _ = layer(x)
    (out * torch.randn(T, B, N)).sum().backward()
    for name in names:
        stored = name + "_l0" if name == "beta" else f"parametrizations.{name}_l0.original"
        parameter = layer.get_parameter(stored)
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert parameter.shape == ((N,) if name == "beta" else ())
    assert {name for name, _ in ALIF(I, N, learn=["beta"]).named_buffers()} == {
        "tau_mem_l0", "tau_adapt_l0", "threshold_l0"}
    assert LIF(I, N, learn="tau_mem").learn == ("tau_mem",)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = ALIF(100, 200)
    assert abs(float(layer.weight_ih_l0.std()) * 10 - 1) < 0.05
    assert abs(float(layer.weight_hh_l0.std()) * 200**0.5 - 1) < 0.05
    assert layer.bias_ih_l0.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = spikes_in(T, B, I).to(dtype)
    for layer in (exact(ALIF(I, N)), exact(ALIF(I, N)).to(dtype)):
        out, state = layer(x)
        assert out.dtype == dtype and 0 < out.float().mean() < 1
        assert state.v.dtype == torch.float32
        out.sum().backward()
        assert layer.weight_ih_l0.grad.dtype == layer.weight_ih_l0.dtype
    logits, _ = LSNN(I, 4, 4, 2)(x)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(("make", "shown"), [
    (lambda: ALIF(I, N), "ALIF(6, 8)"), (lambda: LIF(I, N), "LIF(6, 8)"),
    (lambda: ALIF(I, N, 2, tau_mem=15.0, beta=torch.ones(N), learn=("beta",), batch_first=True),
     "ALIF(6, 8, num_layers=2, batch_first=True, tau_mem=15.0, beta=<(8,)>, learn=('beta',))"),
    (lambda: ALIF(I, N, 2, learn=("tau_mem", "beta")), "ALIF(6, 8, num_layers=2, "
                                                       "learn=('tau_mem', 'beta'))"),
    (lambda: LIF(I, N, learn="threshold", per_neuron=True),
     "LIF(6, 8, threshold=<(8,)>, learn=('threshold',))"),
    (lambda: ALIF(I, N, learn={"tau_mem": "plain", "threshold": "log", "beta": Clamp(1, 2)}),
     "ALIF(6, 8, learn={'tau_mem': 'plain', 'threshold': 'log', 'beta': Clamp(1, 2)})"),
    (lambda: LeakyReadout(N, 3, learn="tau"), "LeakyReadout(8, 3, tau=20.0, learn=('tau',))"),
    (lambda: LeakyReadout(N, 3, learn="tau", per_neuron=True, batch_first=True),
     "LeakyReadout(8, 3, tau=<(3,)>, learn=('tau',), batch_first=True)"),
    (lambda: LeakyReadout(N, 3, learn="tau", device="meta"),
     "LeakyReadout(8, 3, tau=<()>, learn=('tau',))"),
    (lambda: LeakyReadout(N, 3, 7.0, tau_syn=3.0), "LeakyReadout(8, 3, tau=7.0, tau_syn=3.0)"),
    (lambda: LeakyReadout(N, 3, tau_syn=5.0, learn=("tau_syn",)),
     "LeakyReadout(8, 3, tau=20.0, tau_syn=5.0, learn=('tau_syn',))")])
def test_repr_of_a_layer_is_one_line(make: Callable[[], nn.Module], shown: str) -> None:
    assert repr(make()) == repr(copy.deepcopy(make())) == shown


def test_repr_of_networks_and_others_parametrizations() -> None:
    """One line for each part; what torch has parametrized is shown as torch shows it."""
    net = LSNN(I, 4, 4, 2, learn=("tau_mem", "tau_out"), per_neuron=True)
    assert len(repr(net).splitlines()) == 4
    layer = ALIF(I, N, learn="tau_mem")
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    assert "_WeightNorm()" in repr(layer) and "(0): Log()" in repr(layer)
    with torch.device("meta"):
        assert "spread=<()>" in repr(lsnn_ext.LearnedDelay(I, N, 2))


@pytest.mark.parametrize(("options", "match"), [
    ({"tau_mem": -1.0}, "tau_mem"), ({"tau_adapt": 0.0}, "tau_adapt"),
    ({"threshold": -0.1}, "threshold"), ({"beta": float("nan")}, "beta"),
    ({"beta": torch.ones(3)}, r"beta: expected .*\(8,\), got shape \(3,\)"),
    ({"learn": ("tau",)}, "learn: expected .*, got 'tau'"), ({"refractory": -1}, "refractory"),
    ({"delay": -1}, "delay"), ({"delay": torch.ones(N, N)}, "delay: expected an integer tensor"),
    ({"dynamics": "no"}, "dynamics"), ({"surrogate": "no"}, "surrogate"),
    ({"dampening": 0.0}, "dampening"), ({"dt": 0.0}, "dt"), ({"dropout": 2.0}, "dropout"),
    ({"num_layers": 0}, "num_layers"), ({"dtype": torch.int64}, "dtype")])
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError if match.endswith("an integer tensor") else ValueError,
                       match=match):
        ALIF(I, N, **options)


X = spikes_in(T, B, I)
END = ALIF(I, N)(X)[1].detach()
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "width": (lambda: ALIF(I, N)(X[..., :3]), ValueError,
              r"x: expected shape .*I = 6, got \(40, 3, 3\)"),
    "4d": (lambda: ALIF(I, N)(X[None]), ValueError, r"x: expected shape .*, got \(1, 40, 3, 6\)"),
    "double": (lambda: ALIF(I, N)(X.double()), ValueError,
               "x: expected torch.float32 .*, got torch.float64"),
    "batch": (lambda: ALIF(I, N)(X[:, :2], END), ValueError,
              r"state.v: expected shape \(1, 2, 8\), got \(1, 3, 8\)"),
    "z": (lambda: ALIF(I, N)(X, END._replace(z=END.z[0])), ValueError,
          r"state.z: expected shape \(1, D, 3, 8\), got"),
    "readout": (lambda: LeakyReadout(N, 2)(X), ValueError,
                r"x: expected shape \(T, B, 8\) or \(T, 8\), got \(40, 3, 6\)"),
    "tau": (lambda: LeakyReadout(N, 2, -1.0), ValueError, "tau"),
    "n_regular": (lambda: LSNN(I, -1, 4, 2), ValueError, "n_regular"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_readout() -> None:
    readout = LeakyReadout(N, 2, 10.0)
    nn.init.normal_(readout.bias)
    z = spikes_in(T, B, N).requires_grad_()
    y, end = readout(z)
    k = torch.exp(torch.tensor(-0.1))
    p, want = torch.zeros(B, N), []
    for z_t in z:  # the filter first, then the product, as the paper writes it
        p = k * p + (1 - k) * z_t
        want.append(p @ readout.weight.t() + readout.bias)
    torch.testing.assert_close(y, torch.stack(want))
    torch.testing.assert_close(end, p @ readout.weight.t())
    inputs = [z, *readout.parameters()]
    for got, expected in zip(torch.autograd.grad(y.square().sum(), inputs),
                             torch.autograd.grad(torch.stack(want).square().sum(), inputs),
                             strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    first, middle = readout(z[:15])
    torch.testing.assert_close(torch.cat([first, readout(z[15:], middle)[0]]), y)
    torch.testing.assert_close(readout(z[:, 0])[0], y[:, 0])
    transposed = copy.deepcopy(readout)
    transposed.batch_first = True
    torch.testing.assert_close(transposed(z.transpose(0, 1))[0], y.transpose(0, 1))


def test_lsnn() -> None:
    model = exact(LSNN(I, 5, 3, 2))
    assert model.neurons.beta_l0.tolist() == pytest.approx([0.0] * 5 + [1.8] * 3)
    x = spikes_in(T, B, I)
    y, state, spikes = model(x, return_spikes=True)
    assert torch.equal(spikes, by_reference(model.neurons, x)[0])
    torch.testing.assert_close(y, model.readout(spikes)[0])
    first, middle = model(x[:20])
    torch.testing.assert_close(torch.cat([first, model(x[20:], middle)[0]]), y)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model(x[:, 0])[0].shape == (T, 2)
    assert pickle.loads(pickle.dumps(state)).readout.shape == (B, 2)


@pytest.mark.parametrize("kind", ["ALIF", "LIF", "LSNN"])
@pytest.mark.parametrize("form", ["spikes", "normal"])
def test_defaults_live(kind: str, form: str) -> None:
    """A fresh layer fires in 1 to 15 % of all steps."""
    torch.manual_seed(0)
    x = spikes_in(300, 4, 80, rate=0.05) if form == "spikes" else torch.randn(300, 4, 80)
    with torch.no_grad():
        if kind == "LSNN":
            rate = LSNN(80, 120, 100, 10)(x, return_spikes=True)[2].mean()
        else:
            rate = {"ALIF": ALIF, "LIF": LIF}[kind](80, 220)(x)[0].mean()
    assert 0.01 <= rate <= 0.15
