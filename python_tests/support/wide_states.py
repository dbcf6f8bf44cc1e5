"""Compares a neuron of complex states or axes with a loop of its own, and its gradients."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import Neuron
from lsnn_ext.functional import recurrent

T, B, N = 30, 3, 13
TOLERANCES = {torch.float64: (1e-12, 1e-9), torch.float32: (1e-4, 1e-3)}


def leaves_of(values: dict[str, Any]) -> dict[str, Any]:
    return {name: one.detach().clone().requires_grad_()
            if isinstance(one, Tensor) else one for name, one in values.items()}


def total(results: list[Tensor], seed: int = 7) -> Tensor:
    """A random real sum of the parts of all results."""
    random = torch.Generator().manual_seed(seed)
    parts = [torch.view_as_real(one) if one.is_complex() else one for one in results]
    return sum(((part * torch.randn(part.shape, generator=random).to(part)).sum()
                for part in parts), torch.zeros(()))


def plain_loop(step: Callable[..., Any], x: Tensor, w: Tensor, states: list[Tensor], z: Tensor,
               coefficients: dict[str, Any]) -> list[Tensor]:
    """Spikes, states after the last step, traces."""
    spikes, traces = [], []
    for now in x:
        *states, z = step(now + z @ w, *states, z, **coefficients)
        spikes.append(z)
        traces.append(states)
    return [torch.stack(spikes), *states, *(torch.stack(one) for one in zip(*traces, strict=True))]


def check(neuron: Neuron, loop_step: Callable[..., Any], zeros: list[Tensor],
          coefficients: dict[str, Any], *, drive: float = 2.0, mean: float = 0.5, seed: int = 0,
          dtype: torch.dtype = torch.float64, are_used: bool = True, **more: Any) -> None:
    """Spikes equal, states, traces and gradients close to those of the loop; are_used: no gradient
    is 0."""
    random = torch.Generator().manual_seed(seed)
    x = (mean + drive * torch.randn(T, B, N, generator=random, dtype=torch.float64)).to(dtype)
    w = (0.5 * torch.randn(N, N, generator=random, dtype=torch.float64)).to(dtype)
    given = {"x": x, "w_rec": w, **coefficients}
    mine, theirs = leaves_of(given), leaves_of(given)
    spikes, state, traces = recurrent(neuron=neuron, trace=True, **mine, **more)
    got = [spikes, *state.states.values(), *traces.values()]
    named = {name: theirs[name] for name in coefficients}
    wanted = plain_loop(loop_step, theirs["x"], theirs["w_rec"], zeros, x.new_zeros(B, N), named)
    assert 0.01 < float(spikes.detach().mean()) < 0.9
    assert torch.equal(spikes, wanted[0])
    close, of_gradients = TOLERANCES[dtype]
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        one, other = one.detach(), other.detach()
        assert float((one - other).abs().max()) <= close * max(1.0, float(other.abs().max()))
    wanted_leaves = [one for one in theirs.values() if isinstance(one, Tensor)]
    expected = torch.autograd.grad(total(wanted), wanted_leaves)
    names = [name for name, one in mine.items() if isinstance(one, Tensor)]
    found = torch.autograd.grad(total(got), [mine[name] for name in names])
    for name, one, other in zip(names, found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype, name
        largest = float(other.abs().max())
        assert largest > 0 or not are_used, name
        error = float((one - other).abs().max())
        assert error <= of_gradients * largest + 1e-13, (name, error, largest)
