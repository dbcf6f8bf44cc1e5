"""Steps of neurons for tests, the loop that they are compared with, and operators that are that
loop."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import Neuron, _ops
from lsnn_ext.codegen import kernels

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


class LoopOperators:
    """alif_forward and alif_backward of neurons by the loop, in place of the compiled ones; saves
    what they need in the four tensors of the contract."""

    def __init__(self) -> None:
        self.steps: dict[int, Any] = {}
        self.calls: list[str] = []
        self.made = 0

    def make(self, neuron: Neuron, parts: Any, like: Tensor, coefficients: Any,
             N: Any) -> Any:
        self.made += 1
        key = 1 + len(self.steps)
        names = list(coefficients)
        is_number = neuron.step is analog
        self.steps[key] = neuron.step, names, is_number
        K, S = len(parts.currents), len(parts.states)
        _ops.register_sizes(key, _ops.NeuronSizes(S, K, len(names), len(names), is_number))
        return kernels.Kernel(
            key, lambda given, _: [torch.as_tensor(c, dtype=like.dtype) for c in given], len(names),
            False)

    def __call__(self, op: Any, *args: Any) -> Any:
        forward = op is torch.ops.lsnn.alif_forward
        if not forward and op is not torch.ops.lsnn.alif_backward:
            return op(*args)
        self.calls.append("forward" if forward else "backward")
        return self.forward(*args) if forward else self.backward(*args)

    def run(self, key: int, x: Tensor, state: Any, rows: Tensor, recurrence: Any, delays: Any,
            c: Any, lengths: Any) -> Any:
        step, names, _ = self.steps[key]
        sizes = _ops.find_sizes(key)
        S, K, N = sizes.states, sizes.currents, rows.shape[1]
        T, B, _ = x.shape
        assert rows.shape == (len(names), N) and x.shape[2] == K * N
        each = [T] * B if lengths is None else lengths.tolist()
        assert each == sorted(each, reverse=True)
        w_rec, delay = recurrence
        if w_rec is not None and c.without_autapses:
            w_rec = w_rec * (1 - torch.eye(N, dtype=w_rec.dtype))
        if w_rec is not None and delay is None:
            delay = list(delays) if w_rec.dim() > 2 + (K > 1) else delays[0]
        first = (state[:-1], state[-1]) if state else None
        return one_by_one(step, K, x.view(T, B, K, N), w_rec, delay, S,
                          dict(zip(names, rows, strict=True)), each, first)

    def forward(self, x, state, rows, recurrence, delays, projection, readout, constants, numbers,
                options, lengths, sources, row_numbers, key):
        assert projection == readout == sources == row_numbers == []
        c = _ops.Constants(*constants)
        with torch.no_grad():
            z, states, past, traces = self.run(key, x, state, rows, recurrence, delays, c, lengths)
        T, B, N = z.shape
        nothing, save = x.new_empty(0), _ops.has_bit("outputs", c.outputs, "saved")
        assert _ops.has_bit("outputs", c.outputs, "spikes")
        if not _ops.has_bit("outputs", c.outputs, "traces"):
            traces = [nothing] * len(states)
        saved = [x.clone() if save and not c.checkpoint else nothing,
                 torch.zeros(T, B, (N + 31) // 32, dtype=torch.int32),
                 z.clone() if save and self.steps[key][2] else nothing, nothing.clone()]
        return z, [*states, past], traces, [], saved

    def backward(self, g_spikes, g_traces, g_state, g_readout, x, state, rows, recurrence, delays,
                 projection, readout, saved, constants, numbers, options, lengths, key):
        c = _ops.Constants(*constants)
        assert (x is not None) == bool(c.checkpoint)
        x = x if c.checkpoint else saved[0]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            state = [one.detach().requires_grad_() for one in state]
            rows = rows.detach().requires_grad_()
            w, delay = recurrence
            w = None if w is None else w.detach().requires_grad_()
            z, states, past, traces = self.run(key, x, state, rows, (w, delay), delays, c, lengths)
        pairs = [(z, g_spikes), *zip([*states, past], g_state, strict=True),
                 *(zip(traces, g_traces, strict=True) if g_traces else ())]
        pairs = [(one, g) for one, g in pairs if g is not None]
        inputs = [x, *([] if w is None else [w]), rows, *state]
        found = iter(torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs],
                                         allow_unused=True, materialize_grads=True))
        gx, gw = next(found), x.new_empty(0) if w is None else next(found)
        if w is not None and c.existing:
            gw = gw.masked_fill(w == 0, 0.0)
        stack = next(found)
        whole = torch.stack([one if c.coefficient_gradients >> k & 1 else torch.zeros_like(one)
                             for k, one in enumerate(stack)]) if len(stack) else stack
        S = _ops.find_sizes(key).states
        of_state = list(found) or [x.new_empty(0)] * (S + 1)
        asked = {name: _ops.has_bit("gradients", c.gradients, name) for name in ("x", "w_rec", "z")}
        nothing = x.new_empty(0)
        return (gx if asked["x"] else nothing, [gw if asked["w_rec"] else nothing, nothing],
                whole, [*of_state[:-1], of_state[-1] if asked["z"] else nothing], [], [])
