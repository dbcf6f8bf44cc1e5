"""Models named after a package or a paper: spikes and gradients of its own layer."""
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import papers
import peer_layers as peers
from compare import assert_same
from lsnn_ext import functional
from lsnn_ext.functional import State
from lsnn_ext.models import MODELS
from originals import B, I, N, T, package, tolerance, uniform

DOUBLE = torch.float64


class Case(NamedTuple):
    """Both return the spikes of x (T, B, ...) as (T, B, N); leaves: what else has a gradient."""

    theirs: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]
    x: Tensor
    leaves: dict[str, Tensor]


def _state(like: Tensor, v: Any = 0.0, a: Any = 0.0, z: Any = 0.0) -> State:
    zero = torch.zeros(B, N, dtype=like.dtype)
    return State(zero + v, zero + a, zero, zero, (zero + z)[None])


def _norse(kind: str, dynamics: str) -> Case:
    """Counted from v_leak. A current of LSNNRecurrent acts in the next step."""
    numbers = peers.norse_parameters(kind, DOUBLE)
    layer = peers.norse(kind, DOUBLE, {name: value.detach() for name, value in numbers.items()})
    p, dt = layer.p, layer.dt
    neuron = {"alpha": 1 - dt * p.tau_mem_inv, "kappa": dt * p.tau_mem_inv,
              "sigma": 1 - dt * p.tau_syn_inv, "theta": p.v_th - p.v_leak,
              "R": p.v_reset - p.v_leak}
    is_late = kind == "LSNNRecurrent"
    if is_late:
        rho = 1 - dt * p.tau_adapt_inv
        neuron |= {"rho": rho, "q": rho * p.beta, "beta": 1.0, "delay": 1}

    def ours(x: Tensor) -> Tensor:
        current = nn.functional.linear(x, layer.input_weights)
        if is_late:
            current = torch.cat([torch.zeros_like(current[:1]), current[:-1]])
        return functional.alif(current, layer.recurrent_weights.t(), dynamics=dynamics, **neuron)[0]

    return Case(lambda x: layer(x)[0], ours, uniform(0, 1, T, B, I, seed=3),
                dict(layer.named_parameters()))


def _snntorch(reset: str, is_late: bool, dynamics: str) -> Case:
    layer = peers.snntorch("RLeaky", reset_mechanism=reset, reset_delay=is_late)

    def theirs(x: Tensor) -> Tensor:
        z = v = torch.zeros_like(x[0])
        spikes = []
        for current in x:
            z, v = layer(current, z, v)
            spikes.append(z)
        return torch.stack(spikes)

    def ours(x: Tensor) -> Tensor:
        return functional.alif(x + layer.recurrent.bias, layer.recurrent.weight.t(),
                               dynamics=dynamics, alpha=layer.beta.clamp(0, 1),
                               theta=layer.threshold)[0]

    return Case(theirs, ours, peers.values(-0.5, 0.9, T, B, N, seed=3),
                dict(layer.named_parameters()))


def _sinabs(kind: str, reset: str, dynamics: str) -> Case:
    package("sinabs")
    from sinabs import activation
    layer = peers.sinabs(kind, bias=False, spike_threshold=torch.tensor(1.0),
                         reset_fn=getattr(activation, reset)())

    def ours(x: Tensor) -> Tensor:
        adaptation = {} if kind == "LIFRecurrent" else {
            "rho": torch.exp(-1 / layer.tau_adapt), "beta": layer.adapt_scale}
        return functional.alif(x, layer.rec_connect.weight.t(), dynamics=dynamics, theta=1.0,
                               alpha=torch.exp(-1 / layer.tau_mem), **adaptation)[0]

    def theirs(x: Tensor) -> Tensor:
        layer.reset_states()
        return layer(x.transpose(0, 1)).transpose(0, 1)

    leaves = {name: value for name, value in layer.named_parameters() if "threshold" not in name}
    return Case(theirs, ours, peers.values(-4.8, 9.6, T, B, N, seed=3), leaves)


def _spikingjelly(v_reset: float | None, is_detached: bool, dynamics: str) -> Case:
    package("spikingjelly")
    from spikingjelly.activation_based.functional import reset_net
    layer = peers.spikingjelly(v_reset=v_reset, detach_reset=is_detached, tau=3.0, step_mode="m")

    def theirs(x: Tensor) -> Tensor:
        reset_net(layer)
        return layer(x)

    def ours(x: Tensor) -> Tensor:
        w_in, w_rec = layer.rc.weight.split(N, dim=1)
        return functional.alif(nn.functional.linear(x, w_in, layer.rc.bias), w_rec.t(),
                               dynamics=dynamics, alpha=1 - 1 / 3, kappa=1 / 3, theta=0.7)[0]

    return Case(theirs, ours, uniform(-0.6, 1.0, T, B, N, seed=3), dict(layer.named_parameters()))


def _made(layer: Any, gain: float) -> Any:
    peers.fill(layer.to(DOUBLE), gain)
    return layer


def _srnn() -> Case:
    torch.manual_seed(2)
    layer = _made(peers.spike_rnn(), 2.0)

    def theirs(x: Tensor) -> Tensor:
        layer.set_neuron_state(B)
        return torch.stack([layer(x_t)[1] for x_t in x])

    def ours(x: Tensor) -> Tensor:
        return functional.alif(layer.dense(x) + layer.recurrent.bias, layer.recurrent.weight.t(),
                               dynamics="srnn", alpha=torch.exp(-1 / layer.tau_m),
                               rho=torch.exp(-1 / layer.tau_adp), theta=papers.b_j0_value,
                               beta=papers.beta_value, state=_state(x, a=papers.b_j0_value))[0]

    return Case(theirs, ours, uniform(-1, 2, T, B, I, seed=3), dict(layer.named_parameters()))


def _adlif() -> Case:
    """Its first states are drawn."""
    torch.manual_seed(2)
    layer = _made(papers.RadLIFLayer(I, N, B, normalization="none"), 2.0)

    def theirs(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return layer(x.transpose(0, 1)).transpose(0, 1)

    def ours(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        u, w, s = (torch.rand(B, N).to(x) for _ in range(3))
        alpha, beta, a, b = (getattr(layer, name).clamp(*getattr(layer, f"{name}_lim"))
                             for name in ("alpha", "beta", "a", "b"))
        return functional.alif(layer.W(x), layer.V.weight.clone().fill_diagonal_(0),
                               dynamics="adlif", alpha=alpha, rho=beta, p=a, q=b, theta=1.0,
                               state=_state(x, u, w, s))[0]

    return Case(theirs, ours, uniform(-1, 2, T, B, I, seed=3), dict(layer.named_parameters()))


def _se_adlif() -> Case:
    torch.manual_seed(2)
    layer = _made(papers.SEAdLIF(I, N), 12.0)

    def theirs(x: Tensor) -> Tensor:
        return layer(x.transpose(0, 1))[0].transpose(0, 1)

    def ours(x: Tensor) -> Tensor:
        rho = layer.tau_w_trainer.get_decay()
        gain = (1 - rho) * layer.q
        return functional.alif(
            nn.functional.linear(x, layer.weight, layer.bias), layer.recurrent.t(),
            dynamics="se_adlif", alpha=layer.tau_u_trainer.get_decay(), rho=rho,
            p=gain * layer.a, q=gain * layer.b, theta=layer.thr)[0]

    return Case(theirs, ours, uniform(-1, 2, T, B, I, seed=3),
                {name: value for name, value in layer.named_parameters() if value.requires_grad})


CASES: list[tuple[str, Callable[[], Case]]] = [
    ("norse_lsnn", lambda: _norse("LSNNRecurrent", "norse_lsnn")),
    ("norse_lif", lambda: _norse("LIFRecurrent", "norse_lif")),
    ("snntorch_sub", lambda: _snntorch("subtract", True, "snntorch_sub")),
    ("snntorch_zero", lambda: _snntorch("zero", True, "snntorch_zero")),
    ("snntorch_sub_now", lambda: _snntorch("subtract", False, "snntorch_sub_now")),
    ("snntorch_zero_now", lambda: _snntorch("zero", False, "snntorch_zero_now")),
    ("sinabs_sub", lambda: _sinabs("ALIFRecurrent", "MembraneSubtract", "sinabs_sub")),
    ("sinabs_zero", lambda: _sinabs("ALIFRecurrent", "MembraneReset", "sinabs_zero")),
    ("sinabs_sub", lambda: _sinabs("LIFRecurrent", "MembraneSubtract", "sinabs_sub")),
    ("sinabs_zero", lambda: _sinabs("LIFRecurrent", "MembraneReset", "sinabs_zero")),
    ("sj_soft", lambda: _spikingjelly(None, False, "sj_soft")),
    ("sj_hard", lambda: _spikingjelly(0.0, False, "sj_hard")),
    ("sj_soft_det", lambda: _spikingjelly(None, True, "sj_soft_det")),
    ("sj_hard_det", lambda: _spikingjelly(0.0, True, "sj_hard_det")),
    ("srnn", _srnn), ("adlif", _adlif), ("se_adlif", _se_adlif)]


@pytest.mark.parametrize("case", CASES, ids=[f"{name} {k}" for k, (name, _) in enumerate(CASES)])
def test_equal(case: tuple[str, Callable[[], Case]]) -> None:
    theirs, ours, x, leaves = case[1]()
    x.requires_grad_()
    cotangent = uniform(-1, 1, T, B, N, dtype=x.dtype, seed=9)
    sides = []
    for run in (ours, theirs):
        spikes = run(x)
        gradients = torch.autograd.grad((spikes * cotangent).sum(), [x, *leaves.values()],
                                        allow_unused=True)
        sides.append((spikes.detach(), gradients))
    (spikes, got), (wanted, want) = sides
    assert_same("spikes", spikes, wanted)
    assert 0.02 < float(spikes.mean()) < 0.97
    for name, one, other in zip(["x", *leaves], got, want, strict=True):
        other = torch.zeros_like(one) if other is None else other
        assert_same(name, one, other, tolerance=tolerance(x.dtype))


def test_all_models_of_packages_are_there() -> None:
    """The others are compared with the papers' own programs in test_vectors.py."""
    others = {name for name in MODELS if name == "lsnn" or name.startswith("eprop")}
    assert {name for name, _ in CASES} | others == set(MODELS)
