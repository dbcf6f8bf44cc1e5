"""The step of a neuron as a loop over time under autograd, for every device."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.coefficients import Coefficient
from .._core.lengths import Lengths
from .._core.synapses import Synapses
from .neuron import Step, check_results, without_autocast


class Result(NamedTuple):
    """The results of a call, in the dtype of the computation."""

    spikes: Tensor  # (T, B, N)
    states: list[Tensor]  # (B, N) after the last step
    z: Tensor  # (D, B, N)
    traces: list[Tensor]  # (T, B, N) of each state; none where they are not wanted


def run_loop(step: Step, x: Tensor, synapses: Synapses, states: Sequence[Tensor], z: Tensor,
             coefficients: Mapping[str, Coefficient], lengths: Lengths | None,
             trace: bool) -> Result:
    """Runs a step over currents x (T, B, K, N), with matrices (N, K * N) of synapses, from states
    (B, N) or (B, N, K) and z (D, B, N); coefficients: numbers, and tensors in the dtype of x.

    lengths: of sequences that end early. What x has after its end is not read, the state is that of
    the last step, spikes and traces are 0.
    """
    T, B, K, N = x.shape
    states = list(states)
    steps: list[list[Tensor]] = []
    each = None if lengths is None else lengths.each.to(x.device)
    with without_autocast(x.device):
        for t in range(T):
            runs = None if each is None else (t < each)[:, None]
            now = x[t] if runs is None else torch.where(runs[:, None], x[t], 0.0)
            recurrent = synapses.sum(z)
            if isinstance(recurrent, Tensor):
                now = now + recurrent.view(B, K, N)
            # a step may write to its arguments
            before = *states, z[0]
            inputs = [one.clone() for one in (*now.unbind(1), *before)]
            found = check_results(step(*inputs, **coefficients))
            if len(found) != len(before):
                raise TypeError(f"step: expected {len(before)} results at each step, got "
                                f"{len(found)}")
            after = [_cast(one, like) for one, like in zip(found, before, strict=True)]
            shown = after
            if runs is not None:
                masks = [runs.view(B, *[1] * (one.dim() - 1)) for one in after]
                shown = [torch.where(mask, one, 0.0)
                         for mask, one in zip(masks, after, strict=True)]
                after = [torch.where(mask, new, old)
                         for mask, new, old in zip(masks, after, before, strict=True)]
            pushed = torch.cat([after[-1][None], z[:-1]])
            z = pushed if runs is None else torch.where(runs, pushed, z)
            states = after[:-1]
            steps.append(shown if trace else shown[-1:])
    if not steps:
        nothing = [one.new_zeros(0, *one.shape) for one in states] if trace else []
        return Result(x[:, :, 0], states, z, nothing)
    *traces, spikes = (torch.stack(values) for values in zip(*steps, strict=True))
    return Result(spikes, states, z, traces)


def _cast(one: Tensor, like: Tensor) -> Tensor:
    """Returns a result in the form of the state that it replaces."""
    if one.is_complex() and not like.is_complex():
        raise TypeError(f"step: expected results of {like.dtype}, got {one.dtype}")
    if one.shape == like.shape:
        return one.to(like.dtype)
    try:
        return one.to(like.dtype).expand(like.shape)
    except RuntimeError:
        axis = ", K" if like.dim() > 2 else ""
        raise ValueError(f"step: expected results of shape (B, N{axis}) = {tuple(like.shape)}, got "
                         f"{tuple(one.shape)}") from None
