"""functional.layer with projection and readout inside, and with both apart."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compare import weighted_gradients
from lsnn_ext import functional

T, B, I, N, O = 60, 17, 23, 300, 7
NEURON: dict[str, Any] = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.2, "refractory": 2}
FUSED = {"float32": torch.float32, "float64": torch.float64}


class First(nn.Module):
    """The first of a module's results, so that layers fit into an nn.Sequential."""

    def forward(self, results: tuple[Tensor, ...]) -> Tensor:
        return results[0]


def grid(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Multiples of 2^-10 in float64, so that sums in any order agree."""
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return (drawn * 1024).round() / 1024


def problem(dtype: torch.dtype, share: float = 0.1, seed: int = 0) -> dict[str, Tensor]:
    """Inputs, weights and the readout's state. Weights are multiples of 2^-10."""
    random = torch.Generator().manual_seed(seed)

    sizes = {"w_in": (0.8, N, I), "w_rec": (0.05, N, N), "bias": (0.1, N), "w_out": (0.1, O, N),
             "readout_state": (1.0, B, O)}
    return {"x": (torch.rand(T, B, I, generator=random) < share).to(dtype)} | {
        name: grid(random, *shape, scale=scale).to(dtype)
        for name, (scale, *shape) in sizes.items()}


def run(call: Any, given: dict[str, Tensor],
        learn: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Values of a functional.Layered, and gradients of those that learn (None: all)."""
    learn = list(given) if learn is None else learn
    leaves = {name: value.clone().requires_grad_(name in learn) for name, value in given.items()}
    out = call(**leaves)
    results = {"spikes": out.spikes, "readout": out.readout, "readout_state": out.readout_state,
               "v": out.state.v}
    found = {name: value for name, value in results.items() if value is not None}
    gradients = weighted_gradients(found.values(), [leaves[name] for name in learn])
    found |= {f"d {name}": g for name, g in zip(learn, gradients, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def inside(x: Tensor | functional.PackedSpikes, w_in: Tensor, w_rec: Tensor,
           bias: Tensor | None = None, w_out: Tensor | None = None,
           readout_state: Tensor | None = None, **neuron: Any) -> functional.Layered:
    return functional.layer(x, w_in, w_rec, bias=bias, w_out=w_out, k_out=0.75,
                            readout_state=readout_state, **NEURON, **neuron)


def apart(x: Tensor, w_in: Tensor, w_rec: Tensor, bias: Tensor | None = None,
          w_out: Tensor | None = None, readout_state: Tensor | None = None,
          **neuron: Any) -> functional.Layered:
    current = nn.functional.linear(x, w_in, bias)
    spikes, state, *_ = functional.alif(current, w_rec, **NEURON, **neuron)
    y = last = None
    if w_out is not None:
        y, last = functional.leaky_readout(spikes, w_out, 0.75, readout_state)
    return functional.Layered(spikes, state, None, y, last)
