"""The step of a neuron as a plain loop over time under autograd: what the kernels compute, on every
device."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.coefficients import Coefficient
from .._core.lengths import Lengths
from .neuron import Step, results_of, without_autocast


class Result(NamedTuple):
    """What a call computes, in the dtype of the computation."""

    spikes: Tensor  # (T, B, N)
    states: list[Tensor]  # (B, N) after the last step
    z: Tensor  # (D, B, N)
    traces: list[Tensor]  # (T, B, N) of each state; none where they are not wanted


def run_loop(
    step: Step, x: Tensor, synapses: Sequence[tuple[int, Tensor]], states: Sequence[Tensor],
    z: Tensor, coefficients: Mapping[str, Coefficient], lengths: Lengths | None, trace: bool,
) -> Result:
    """The step over a whole sequence.

    Args:
        step: as of Neuron.
        x: (T, B, K, N) currents.
        synapses: for each delay d its weights (N, K * N).
        states, z: (B, N) each and (D, B, N), before the first step.
        coefficients: numbers, and tensors in the dtype of x.
        lengths: of sequences that end early: what x has after its end is not read, the state is
            that of the last step, spikes and traces are 0.
        trace: whether traces are wanted.
    """
    T, B, K, N = x.shape
    states = list(states)
    steps: list[list[Tensor]] = []
    each = None if lengths is None else lengths.each.to(x.device)
    with without_autocast(x.device):
        for t in range(T):
            runs = None if each is None else (t < each)[:, None]
            now = x[t] if runs is None else torch.where(runs[:, None], x[t], 0.0)
            if synapses:
                recurrent = sum((z[d] @ w for d, w in synapses[1:]), z[synapses[0][0]]
                                @ synapses[0][1])
                now = now + recurrent.view(B, K, N)
            # a step may write to what it is given
            inputs = [one.clone() for one in (*now.unbind(1), *states, z[0])]
            after = _checked(step(*inputs, **coefficients), states, z[0])
            shown = after
            if runs is not None:
                shown = [torch.where(runs, one, 0.0) for one in after]
                after = [torch.where(runs, new, old)
                         for new, old in zip(after, (*states, z[0]), strict=True)]
            pushed = torch.cat([after[-1][None], z[:-1]])
            z = pushed if runs is None else torch.where(runs, pushed, z)
            states = after[:-1]
            steps.append(shown if trace else shown[-1:])
    if not steps:
        nothing = [x[:, :, 0]] * (1 + trace * len(states))
        return Result(nothing[0], states, z, nothing[1:])
    *traces, spikes = (torch.stack(values) for values in zip(*steps, strict=True))
    return Result(spikes, states, z, traces)


def _checked(results: object, states: Sequence[Tensor], z: Tensor) -> list[Tensor]:
    """The results of one step as numbers (B, N). Raises TypeError or ValueError for others."""
    found = results_of(results)
    if len(found) != len(states) + 1:
        raise TypeError(f"step: expected {len(states) + 1} results at each step, got {len(found)}")
    return [_form(one, z) for one in found]


def _form(one: Tensor, z: Tensor) -> Tensor:
    if one.shape == z.shape:
        return one.to(z.dtype)
    try:
        return one.to(z.dtype).expand(z.shape)
    except RuntimeError:
        raise ValueError(f"step: expected results of shape (B, N) = {tuple(z.shape)}, got "
                         f"{tuple(one.shape)}") from None
