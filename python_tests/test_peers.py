"""Other libraries' own layers, reproduced by one model each: the same spikes, and gradients to
rounding.

The packages are optional (extra [peers]); a test whose package is absent is skipped and says so.
Parameters and inputs are leaves shared by both sides, and the conversion to coefficients is written
in torch, so gradients are compared for the parameters that users of those libraries train.
"""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compare import assert_same
from lsnn_ext import functional

T, B, I, N = 40, 4, 5, 12


def _peer(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed; pip install lsnn_ext[peers] "
                                            f"brings it")


def _uniform(low: float, high: float, *shape: int, dtype: torch.dtype = torch.float64,
             seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    return (torch.round(values * 1024) / 1024).to(dtype)


def _compare(theirs: Callable[[], Tensor], ours: Callable[[], Tensor], leaves: dict[str, Tensor],
             tolerance: float,
             ) -> None:
    """Spikes (T,B,N) of both sides, and the gradients of a weighted sum of them for every leaf."""
    results = []
    for side in (theirs, ours):
        spikes = side()
        weights = _uniform(-1, 1, *spikes.shape, dtype=spikes.dtype, seed=99)
        found = torch.autograd.grad((spikes * weights).sum(), list(leaves.values()),
                                    allow_unused=True)
        results.append((spikes.detach(), [torch.zeros_like(leaf) if gradient is None else gradient
                                          for leaf, gradient in zip(leaves.values(), found,
                                                                    strict=True)]))
    (want, want_gradients), (got, got_gradients) = results
    assert 0.03 < float(want.mean()) < 0.7, "a silent layer would show nothing"
    assert_same("spikes", got, want)
    for name, gradient, expected in zip(leaves, got_gradients, want_gradients, strict=True):
        assert_same(f"gradient of {name}", gradient, expected, tolerance=tolerance)


def _later(current: Tensor) -> Tensor:
    """The same current, one step later."""
    return torch.cat([torch.zeros_like(current[:1]), current[:-1]])


# -------------------------------------------------------------------------------------------- norse
def _norse_slope(norse: Any) -> float:
    """alpha of their 1 / (alpha |u| + 1)^2, read off at u = 1: the published 1.1.0 ignores the
    alpha it is given."""
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(
        norse.functional.threshold.threshold(one, "super", torch.as_tensor(100.0)), one
    )
    return float(slope) ** -0.5 - 1


@pytest.mark.parametrize("autapses", [False, True])
@pytest.mark.parametrize("adaptive", [True, False], ids=["LSNNRecurrent", "LIFRecurrent"])
def test_norse(adaptive: bool, autapses: bool) -> None:
    """Membrane, threshold and reset are counted from v_leak; in their LSNN a step's current acts in
    the next one."""
    norse = _peer("norse.torch")
    values = {"tau_syn_inv": 200.0, "tau_mem_inv": 150.0, "v_leak": 0.1, "v_th": 0.6,
              "v_reset": 0.05}
    if adaptive:
        values |= {"tau_adapt_inv": 30.0, "beta": 0.3}
    parameters = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
                  for name, value in values.items()}
    Layer, Parameters, State = ((norse.LSNNRecurrent, norse.LSNNParameters, norse.LSNNState)
                                if adaptive
                                else (norse.LIFRecurrent, norse.LIFParameters, norse.LIFState))
    w_in = nn.Parameter(_uniform(-0.5, 1.5, N, I, seed=1))
    w_rec = nn.Parameter(_uniform(-1.0, 1.0, N, N, seed=2))
    layer = Layer(I, N, p=Parameters(**parameters, method="super", alpha=torch.as_tensor(100.0)),
                  autapses=autapses, input_weights=w_in, recurrent_weights=w_rec, dt=0.001)
    x, slope = _uniform(0, 1, T, B, I, seed=3).requires_grad_(), _norse_slope(norse)
    # A state of our own: the one that their LIF starts from is float32.
    first = {"v": _uniform(0, 0.5, B, N, seed=4), "i": _uniform(0, 0.5, B, N, seed=5)}
    if adaptive:
        first["b"] = _uniform(0.4, 0.8, B, N, seed=6)
    for value in first.values():
        value.requires_grad_()
    zero = torch.zeros(B, N, dtype=torch.float64)
    leaves = {"x": x, "input_weights": w_in, "recurrent_weights": w_rec, **parameters, **first}

    def ours() -> Tensor:
        p, dt = parameters, 0.001
        k = dt * p["tau_mem_inv"]
        # Their gradient hook keeps autapses from growing; here the mask does.
        w = w_rec if autapses else w_rec * (1 - torch.eye(N, dtype=torch.float64))
        current = x @ w_in.T
        adaptation: dict[str, Any] = {}
        sigma = 1 - dt * p["tau_syn_inv"]
        state = functional.State(first["v"] - p["v_leak"], zero, first["i"] / sigma, zero,
                                 zero.expand(2, B, N))
        if adaptive:
            rho = 1 - dt * p["tau_adapt_inv"]
            adaptation = {"rho": rho, "q": rho * p["beta"], "beta": 1.0, "delay": 1}
            state = state._replace(a=first["b"] - p["v_th"])
            current = _later(current)
        spikes: Tensor = functional.alif(
            current, w.T, alpha=1 - k, kappa=k, sigma=sigma, theta=p["v_th"] - p["v_leak"],
            R=p["v_reset"] - p["v_leak"], dynamics="norse_lsnn" if adaptive else "norse_lif",
            state=state, dampening=1 / slope, width=1 / slope, **adaptation)[0]
        return spikes

    def theirs() -> Tensor:
        spikes: Tensor = layer(x, State(z=zero, **first))[0]
        return spikes

    _compare(theirs, ours, leaves, 1e-11)


# ----------------------------------------------------------------------------------------- snntorch
SNNTORCH = [("subtract", True, "snntorch_sub"), ("zero", True, "snntorch_zero"),
            ("none", True, "snntorch_sub"), ("subtract", False, "snntorch_sub_now"),
            ("zero", False, "snntorch_zero_now")]


def _snntorch(layer: nn.Module, steps: Callable[[Tensor], Tensor], leaves: dict[str, Tensor],
              dynamics: str, reset: str) -> None:
    recurrent: Any = layer.recurrent
    with torch.no_grad():
        recurrent.weight.copy_(_uniform(-0.5, 0.5, N, N, dtype=torch.float32, seed=1))
        recurrent.bias.copy_(_uniform(0, 0.2, N, dtype=torch.float32, seed=2))
    x = _uniform(-0.5, 0.9, T, B, N, dtype=torch.float32, seed=3).requires_grad_()
    leaves = {"x": x, "weight": recurrent.weight, "bias": recurrent.bias, **leaves}

    def ours() -> Tensor:
        spikes: Tensor = functional.alif(
            x + recurrent.bias, recurrent.weight.T, alpha=leaves["beta"].clamp(0, 1),
            theta=leaves["threshold"], sigma=leaves["alpha"].clamp(0, 1) if "alpha" in leaves
            else None, dynamics=dynamics,
            R=0.0 if reset == "none" else None)[0]
        return spikes

    # They compute in float32 only.
    _compare(lambda: steps(x), ours, leaves, 1e-4)


@pytest.mark.parametrize(("reset", "late", "dynamics"), SNNTORCH)
def test_snntorch_rleaky(reset: str, late: bool, dynamics: str) -> None:
    snntorch = _peer("snntorch")
    layer = snntorch.RLeaky(beta=_uniform(0.7, 0.95, N, dtype=torch.float32), linear_features=N,
                            threshold=0.8, learn_beta=True, learn_threshold=True,
                            reset_mechanism=reset, reset_delay=late)

    def steps(x: Tensor) -> Tensor:
        spike, membrane = torch.zeros(B, N), torch.zeros(B, N)
        spikes = []
        for current in x:
            spike, membrane = layer(current, spike, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    _snntorch(layer, steps, {"beta": layer.beta, "threshold": layer.threshold}, dynamics, reset)


# without delay their RSynaptic raises
@pytest.mark.parametrize(("reset", "late", "dynamics"), SNNTORCH[:3])
def test_snntorch_rsynaptic(reset: str, late: bool, dynamics: str) -> None:
    snntorch = _peer("snntorch")
    layer = snntorch.RSynaptic(alpha=_uniform(0.2, 0.6, N, dtype=torch.float32, seed=7),
                               beta=_uniform(0.6, 0.9, N, dtype=torch.float32), linear_features=N,
                               threshold=0.8, learn_alpha=True, learn_beta=True,
                               learn_threshold=True, reset_mechanism=reset, reset_delay=late)

    def steps(x: Tensor) -> Tensor:
        spike, current, membrane = torch.zeros(B, N), torch.zeros(B, N), torch.zeros(B, N)
        spikes = []
        for x_t in x:
            spike, current, membrane = layer(x_t, spike, current, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    _snntorch(layer, steps, {"alpha": layer.alpha, "beta": layer.beta,
                             "threshold": layer.threshold}, dynamics, reset)


# ------------------------------------------------------------------------------------------- sinabs
@pytest.mark.parametrize("norm_input", [True, False])
@pytest.mark.parametrize("synapse", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "reset"])
def test_sinabs(reset: str, synapse: bool, norm_input: bool) -> None:
    """Their synaptic current carries the gain; ours is theirs divided by it."""
    _peer("sinabs")
    from sinabs.activation import MembraneReset, MembraneSubtract
    from sinabs.layers import ALIFRecurrent

    recurrent = nn.Linear(N, N, bias=False)
    gain = (6.0 if norm_input else 1.0) * (1.5 if synapse else 1.0)
    with torch.no_grad():
        recurrent.weight.copy_(_uniform(-0.3 * gain, 0.3 * gain, N, N, dtype=torch.float32, seed=1))
    layer = ALIFRecurrent(tau_mem=torch.tensor(8.0), tau_adapt=torch.tensor(15.0),
                          rec_connect=recurrent, tau_syn=torch.tensor(4.0) if synapse else None,
                          adapt_scale=1.3, norm_input=norm_input, spike_threshold=torch.tensor(0.5),
                          reset_fn=MembraneSubtract() if reset == "subtract" else MembraneReset())
    x = _uniform(-0.4 * gain, 0.8 * gain, T, B, N, dtype=torch.float32, seed=3).requires_grad_()
    leaves = {"x": x, "weight": recurrent.weight, "tau_mem": layer.tau_mem,
              "tau_adapt": layer.tau_adapt}
    if synapse:
        leaves["tau_syn"] = layer.tau_syn

    def theirs() -> Tensor:
        layer.reset_states()
        spikes: Tensor = layer(x.transpose(0, 1)).transpose(0, 1)
        return spikes

    def ours() -> Tensor:
        alpha, rho = torch.exp(-1 / layer.tau_mem), torch.exp(-1 / layer.tau_adapt)
        kappa = 1 - alpha if norm_input else torch.tensor(1.0)
        if synapse:
            kappa = kappa * torch.exp(-1 / layer.tau_syn)
        spikes: Tensor = functional.alif(
            x, recurrent.weight.T, alpha=alpha, kappa=kappa, sigma=kappa if synapse else None,
            rho=rho, beta=1.3, theta=0.5, dynamics="sinabs_sub" if reset == "subtract"
            else "sinabs_zero")[0]
        return spikes

    # They compute in float32 only.
    _compare(theirs, ours, leaves, 1e-4)


# ------------------------------------------------------------------------------------- spikingjelly
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.2])
def test_spikingjelly(v_reset: float | None, detach: bool, decay_input: bool) -> None:
    """The membrane is counted from v_reset."""
    _peer("spikingjelly")
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based.layer import LinearRecurrentContainer
    from spikingjelly.activation_based.neuron import LIFNode

    tau = 3.0
    layer = LinearRecurrentContainer(
        LIFNode(tau=tau, decay_input=decay_input, v_threshold=0.7, v_reset=v_reset,
                detach_reset=detach), N, N).double()
    gain = 3.0 if decay_input else 1.0
    with torch.no_grad():
        layer.rc.weight.copy_(_uniform(-0.6 * gain, 0.6 * gain, N, 2 * N, seed=1))
        layer.rc.bias.copy_(_uniform(0.0, 0.3 * gain, N, seed=2))
    x = _uniform(-0.6, 1.0, T, B, N, seed=3).requires_grad_()

    def theirs() -> Tensor:
        sj.reset_net(layer)
        return torch.stack([layer(current) for current in x])

    def ours() -> Tensor:
        w_in, w_rec = layer.rc.weight[:, :N], layer.rc.weight[:, N:]
        spikes: Tensor = functional.alif(
            x @ w_in.T + layer.rc.bias, w_rec.T, alpha=1 - 1 / tau,
            kappa=1 / tau if decay_input else 1.0, theta=0.7 - (v_reset or 0.0),
            dynamics=("sj_soft" if v_reset is None else "sj_hard") + ("_det" if detach else ""))[0]
        return spikes

    _compare(theirs, ours, {"x": x, "weight": layer.rc.weight, "bias": layer.rc.bias}, 1e-11)
