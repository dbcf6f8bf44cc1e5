"""Layers of other packages in the settings that are compared, with weights of few bits."""
from typing import Any

import torch
from torch import Tensor, nn

import papers
from originals import I, N, package, uniform

DOUBLE, SINGLE = torch.float64, torch.float32


def norse_parameters(kind: str, dtype: torch.dtype, per_neuron: bool = False) -> dict[str, Tensor]:
    # v_leak has few bits: norse's LIF starts from a float32, also in float64
    numbers = {"tau_syn_inv": 200.0, "tau_mem_inv": 150.0, "v_leak": 0.125, "v_th": 0.6,
               "v_reset": 0.05}
    if kind == "LSNNRecurrent":
        numbers |= {"tau_adapt_inv": 30.0, "beta": 0.3}
    shape = (N,) if per_neuron else ()
    spread = 1 + (0.1 * torch.linspace(-1, 1, N, dtype=dtype) if per_neuron else 0.0)
    return {name: (value * spread * torch.ones(shape, dtype=dtype)).requires_grad_()
            for name, value in numbers.items()}


def norse(kind: str, dtype: torch.dtype, parameters: dict[str, Tensor], method: str = "super",
          alpha: float = 100.0, **arguments: Any) -> Any:
    package_of = package("norse.torch")
    kinds = {"LSNNRecurrent": package_of.LSNNParameters, "LIFRecurrent": package_of.LIFParameters}
    p = kinds[kind](**parameters, method=method, alpha=torch.as_tensor(alpha))
    w_in = nn.Parameter(uniform(-0.5, 1.5, N, I, dtype=dtype, seed=1))
    w_rec = nn.Parameter(uniform(-1.0, 1.0, N, N, dtype=dtype, seed=2))
    return getattr(package_of, kind)(I, N, p=p, input_weights=w_in, recurrent_weights=w_rec,
                                     **arguments)


def values(low: float, high: float, *shape: int, seed: int = 0) -> Tensor:
    """uniform() in float32."""
    return uniform(low, high, *shape, dtype=SINGLE, seed=seed)


def snntorch(kind: str, **arguments: Any) -> Any:
    package_of = package("snntorch")
    decays = {"beta": values(0.7, 0.95, N), "learn_beta": True}
    if kind == "RSynaptic":
        decays |= {"alpha": values(0.2, 0.6, N, seed=7), "learn_alpha": True}
    own = {"linear_features": N, "threshold": values(0.7, 0.9, N, seed=8), "learn_threshold": True}
    layer = getattr(package_of, kind)(**(decays | own | arguments))
    if layer.all_to_all:
        with torch.no_grad():
            layer.recurrent.weight.copy_(values(-0.5, 0.5, N, N, seed=1))
            layer.recurrent.bias.copy_(values(0, 0.2, N, seed=2))
    return layer


def linear_of(gain: float, bias: bool) -> nn.Linear:
    made = nn.Linear(N, N, bias=bias)
    with torch.no_grad():
        made.weight.copy_(values(-0.3 * gain, 0.3 * gain, N, N, seed=1))
        if bias:
            made.bias.copy_(values(-0.1 * gain, 0.3 * gain, N, seed=2))
    return made


def sinabs(kind: str, synapse: bool = False, norm_input: bool = True, bias: bool = True,
           **arguments: Any) -> Any:
    package("sinabs")
    from sinabs import layers
    from sinabs.activation import SingleSpike
    gain = (6.0 if norm_input else 1.0) * (1.5 if synapse else 1.0)
    given: dict[str, Any] = {
        "tau_mem": values(6, 10, N, seed=5), "rec_connect": linear_of(gain, bias),
        "tau_syn": values(3, 5, N, seed=6) if synapse else None, "norm_input": norm_input,
        "spike_threshold": torch.tensor(0.5), "spike_fn": SingleSpike}
    if kind == "ALIFRecurrent":
        if synapse:  # sinabs takes one number there, as it asks for its truth
            given["tau_syn"] = torch.tensor(4.0)
        given |= {"tau_adapt": values(10, 20, N, seed=7), "adapt_scale": 1.3}
    return getattr(layers, kind)(**(given | arguments))


def spikingjelly(kind: str = "LIFNode", dtype: torch.dtype = DOUBLE, projected: bool = False,
                 bias: bool = True, step_mode: str = "s", **arguments: Any) -> Any:
    package("spikingjelly")
    from spikingjelly.activation_based import layer, neuron
    node = getattr(neuron, kind)(**({"v_threshold": 0.7} | arguments))
    inputs = I if projected else N
    sub = nn.Sequential(nn.Linear(I, N), node) if projected else node
    container = layer.LinearRecurrentContainer(sub, inputs, N, bias, step_mode).to(dtype)
    gain = 3.0 if arguments.get("decay_input", True) else 1.0
    with torch.no_grad():
        container.rc.weight.copy_(uniform(-0.6 * gain, 0.6 * gain, inputs, inputs + N, seed=1))
        if bias:
            container.rc.bias.copy_(uniform(0.0, 0.3 * gain, inputs, seed=2))
        if projected:
            sub[0].weight.copy_(uniform(-0.8, 0.8, N, I, seed=5))
            sub[0].bias.copy_(uniform(-0.2, 0.6, N, seed=6))
    return container


def fill(module: nn.Module, gain: float) -> None:
    """Weights and coefficients of few bits."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in ("alpha", "beta", "a", "b", "W.bias"):
                parameter.copy_(torch.round(parameter * 64) / 64)
            if "weight" in name and parameter.dim() == 2 or name == "recurrent":
                parameter.copy_(uniform(-gain, gain, *parameter.shape, seed=len(name)))


def spike_rnn(**arguments: Any) -> papers.SpikeRNN:
    return papers.SpikeRNN(I, N, 8, 20, tauM_inital_std=1, tauAdp_inital_std=2, **arguments)
