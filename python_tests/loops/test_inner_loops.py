"""Loops within the iterations of other loops: that over time is the one to find."""
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import fuse
from small_loops import compare_calls, random, run, spike

B, N = 3, 8


def run_layer(current: Tensor) -> Tensor:
    v = z = current.new_zeros(current.shape[1:])
    out = []
    for one in current:
        v = 0.9 * v * (1 - z.detach()) + one
        z = spike(v - 0.5)
        out.append(z)
    return torch.stack(out)


class Layers(nn.Module):
    """Equal layers, each with a loop of its own: they repeat, too."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(N, N) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = run_layer(2 * layer(x))
        return x


class Branches(Layers):
    """The same side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([run_layer(2 * layer(x)) for layer in self.layers]).sum(0)


class Chunks(nn.Module):
    """The spikes of each few steps are stacked."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.w, self.r, self.every = nn.Linear(N, N), nn.Linear(N, N), every

    def forward(self, x: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1:])
        steps: list[Tensor] = []
        chunks = []
        for t in range(len(x)):
            v = 0.9 * v * (1 - z.detach()) + self.w(x[t]) + self.r(z)
            z = spike(v - 0.5)
            steps.append(z)
            if (t + 1) % self.every == 0:
                chunks.append(torch.stack(steps))
                steps = []
        return torch.stack(chunks)


class Nested(nn.Module):
    """Some steps of the neurons for each input."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.w, self.steps = nn.Linear(N, N), steps

    def forward(self, x: Tensor) -> Tensor:
        v = x.new_zeros(x.shape[1:])
        out = []
        for one in x:
            current = self.w(one)
            for k in range(self.steps):
                v = 0.9 * v + current * current.new_full((B, N), 1 + k)
                z = spike(v - 0.5)
                v = v - z.detach() + 0.1 * one
                out.append(z)
        return torch.stack(out)


class Held(nn.Module):
    """A projected input for several steps, of every second input only; some of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = nn.Linear(N, N), nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1:])
        out = []
        currents = [self.w(one) for one in x]
        for t in range(0, len(x), 2):
            for _ in range(5):
                v = 0.9 * v + currents[t] + self.r(z) - z
                z = spike(v - 0.5)
            out.append(z)
        return torch.stack(out)


class Substeps(nn.Module):
    """Two recurrent layers, which count spikes in some steps for each input."""

    def __init__(self, draws_of_spikes: bool) -> None:
        super().__init__()
        self.w, self.r, self.u, self.s = (nn.Linear(N, N) for _ in range(4))
        self.dropout = nn.Dropout(0.0 if draws_of_spikes else 0.2)
        self.draws_of_spikes = draws_of_spikes

    def forward(self, x: Tensor) -> Tensor:
        v = z = a = y = x.new_zeros(x.shape[1:])
        out = []
        for one in x:
            noise = 0.0 if self.draws_of_spikes else torch.randn_like(one)
            current, count = self.w(one) + 0.1 * noise, 0
            for _ in range(5):
                v = 0.9 * v + current + self.r(self.dropout(z)) - z
                z = spike(v - 0.5)
                a = 0.8 * a + self.u(z) + self.s(y) - y
                y = spike(a - 0.2)
                count = count + y
            noise = torch.poisson(count.detach()) if self.draws_of_spikes else torch.randn(B, N)
            out.append(self.w(count) + noise)
        return torch.stack(out)


@pytest.mark.parametrize(("model", "T", "iterations"), [
    (Layers(3), 20, [20, 20, 20]), (Layers(4), 20, [20] * 4), (Branches(3), 20, [20, 20, 20]),
    (Chunks(10), 40, [40]), (Nested(4), 40, [40]), (Substeps(False), 20, [100, 100]),
    (Substeps(True), 20, [100, 100]), (Held(), 20, [50])],
    ids=lambda one: type(one).__name__)
def test_the_loop_that_is_a_kernel_is_found(model: Any, T: int, iterations: list[int]) -> None:
    original = copy.deepcopy(model.double())
    x = random(T, B, N).requires_grad_()
    fuse(model, x)
    plan = model._lsnn_replayer.all()[0].plan
    found = [(stage.kind, loop.iterations) for loop, stages in plan.loops for stage in stages
             if stage.kind in ("fused", "loop")]
    # a first iteration may stay outside
    assert all(one in (("fused", n), ("fused", n - 1))
               for one, n in zip(found, iterations, strict=True))
    compare_calls(model, original, x, rtol=1e-9, atol=1e-9)


def test_the_shortest_iteration_of_a_loop():
    """Not four iterations as one, though the calls of a recurrence behind it repeat in such a
    distance, which is no loop since a tensor grows."""
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for x_t in x.unbind(0):
            v = 0.5 * v + x_t
        grown = v[None]
        for _ in range(len(x)):
            v = (grown[-1] @ w).sin().cos().tanh().exp()
            grown = torch.cat((grown, v[None]))
        return grown

    *_, plan = run(model, (torch.rand(16, B, N), torch.rand(N, N)))
    loop, = (part[0] for part in plan.parts if isinstance(part, tuple))
    assert (loop.iterations, len(loop.body)) == (16, 2)
