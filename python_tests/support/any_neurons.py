"""Steps of neurons for tests, and the loop that they are compared with."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import Neuron

SCALE = 0.7  # read by steps below


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return g / (1 + m.abs()) ** 2


def adaptive(c, v, w, z, *, tau=5.0, theta):
    """K = 1, S = 2."""
    v = v + (c - v - w) / tau - theta * z.detach()
    w = 0.9 * w + 0.2 * z
    return v, w, Spike.apply(v - theta)


def branches(c, d, u, v, z, *, tau, gain):
    """K = 2, S = 2."""
    u = 0.8 * u + d * SCALE
    v = v + (c + torch.tanh(u) * gain - v) / tau
    v = v * (1 - z)
    return u, v, Spike.apply(v - 0.5)


def analog(c, v, z, *, tau=4.0):
    """K = 1, S = 1, spikes that are numbers."""
    v = v + (c - v) / tau - 0.3 * z
    return v, torch.sigmoid(v)


ADAPTIVE, BRANCHES, ANALOG = Neuron(adaptive), Neuron(branches), Neuron(analog)
NEURONS: dict[str, tuple[Neuron, int, tuple[str, ...]]] = {  # with K, and the names of the states
    "adaptive": (ADAPTIVE, 1, ("v", "w")), "branches": (BRANCHES, 2, ("u", "v")),
    "analog": (ANALOG, 1, ("v",))}


def one_by_one(step: Callable[..., Any], K: int, x: Tensor, w_rec: Tensor | None,
               delays: Tensor | list[int] | int, S: int, coefficients: dict[str, Any],
               lengths: list[int], first: tuple[list[Tensor], Tensor] | None,
               ) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Each sequence for itself: spikes, states, z, traces. x (T, B, K, N)."""
    T, B, _, N = x.shape
    by_delay = isinstance(delays, list)
    largest = (max(delays) if by_delay else int(torch.as_tensor(delays).max())
               ) if w_rec is not None else 0
    D = 1 + largest
    found: list[Any] = []
    for b in range(B):
        states = [x.new_zeros(N) for _ in range(S)] if first is None else [s[b] for s in first[0]]
        past = [x.new_zeros(N) for _ in range(D)] if first is None else list(first[1][:D, b])
        rows = []
        for t in range(lengths[b]):
            currents = []
            for k in range(K):
                c = x[t, b, k]
                if w_rec is not None and by_delay:
                    for s, d in enumerate(delays):
                        w = w_rec[s] if K == 1 else w_rec[s, k]
                        c = c + (past[d][:, None] * w).sum(0)
                elif w_rec is not None:
                    w = w_rec if K == 1 else w_rec[k]
                    each = torch.as_tensor(delays).expand(w_rec.shape)
                    each = each if K == 1 else each[k]
                    c = c + (torch.stack(past)[each, torch.arange(N)[:, None]] * w).sum(0)
                currents.append(c)
            *states, z = step(*currents, *states, past[0], **coefficients)
            past = [z, *past][:D]
            rows.append([z, *states])
        zero = [x.new_zeros(N)] * (1 + S)
        rows += [zero] * (T - lengths[b])
        found.append((rows, states, torch.stack(past)))
    every = [torch.stack([torch.stack([rows[t][i] for rows, _, _ in found]) for t in range(T)])
             for i in range(1 + S)]
    after = [torch.stack([states[s] for _, states, _ in found]) for s in range(S)]
    return every[0], after, torch.stack([past for _, _, past in found], 1), every[1:]
