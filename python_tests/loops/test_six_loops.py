"""Six models in the manner of public programs, each with a time loop of its own.

They are converted, equal and faster: SpyTorch's tutorial with two loops, a recurrent neuron of
snnTorch between Linears, norse's LSNN cell with its readout, a layer with dendritic branches that
reads inputs and spikes together, an adaptive layer whose states are arguments, and a membrane that
LayerNorm acts on.
"""
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compare import weighted_gradients
from lsnn_ext.loops import convert
from surrogates import ArcTan, MultiGaussian, SpyTorch

T, B, I, N, CLASSES = 60, 8, 24, 32, 5  # noqa: E741


# ------------------------------------------------------------------------- SpyTorch's tutorial
fire = SpyTorch.apply


class TwoLoops(nn.Module):
    """A hidden layer and a readout, one loop after the other; weights by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.randn(I, N) * 1.5 / math.sqrt(I))
        self.w_rec = nn.Parameter(torch.randn(N, N) / math.sqrt(N))
        self.w_out = nn.Parameter(torch.randn(N, CLASSES) / math.sqrt(N))
        self.alpha, self.beta = 0.82, 0.9

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.transpose(0, 1)
        currents = torch.einsum("bti,in->btn", (x, self.w_in))
        out = torch.zeros_like(currents[:, 0])
        synapse, membrane = torch.zeros_like(out), torch.zeros_like(out)
        membranes, spikes = [], []
        for t in range(x.shape[1]):
            current = currents[:, t] + torch.einsum("bi,in->bn", (out, self.w_rec))
            out = fire(membrane - 1.0)
            membranes.append(membrane)
            spikes.append(out)
            membrane = (self.beta * membrane + synapse) * (1.0 - out.detach())
            synapse = self.alpha * synapse + current
        spikes = torch.stack(spikes, 1)
        hidden = torch.einsum("btn,nc->btc", (spikes, self.w_out))
        filtered = voltage = torch.zeros_like(hidden[:, 0])
        voltages = [voltage]
        for t in range(x.shape[1]):
            filtered, voltage = (self.alpha * filtered + hidden[:, t],
                                 self.beta * voltage + filtered)
            voltages.append(voltage)
        return torch.stack(voltages, 1), torch.stack(membranes, 1), spikes


# ------------------------------------------------------------------- a neuron called once a step
class RecurrentLeaky(nn.Module):
    """A leaky neuron with a reset by subtraction, and a Linear of its own spikes if it has one."""

    def __init__(self, beta: float, recurrent: nn.Module | None) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))
        self.recurrent = recurrent
        self.threshold = 1.0

    def forward(self, current: Tensor, spike: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        reset = ArcTan.apply(membrane - self.threshold, 2.0).clone().detach()
        if self.recurrent is not None:
            current = current + self.recurrent(spike)
        membrane = self.beta.clamp(0, 1) * membrane + current - reset * self.threshold
        return ArcTan.apply(membrane - self.threshold, 2.0), membrane


class OncePerStep(nn.Module):
    """Linear, recurrent neuron, Linear, neuron in a loop over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(I, N), nn.Linear(N, CLASSES)
        self.hidden = RecurrentLeaky(0.9, nn.Linear(N, N))
        self.out = RecurrentLeaky(0.8, None)
        self.fc1.weight.data.mul_(4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spike1 = membrane1 = x.new_zeros(x.shape[1], N)
        spike2 = membrane2 = x.new_zeros(x.shape[1], CLASSES)
        spikes, membranes = [], []
        for step in range(x.size(0)):
            spike1, membrane1 = self.hidden(self.fc1(x[step]), spike1, membrane1)
            spike2, membrane2 = self.out(self.fc2(spike1), spike2, membrane2)
            spikes.append(spike2)
            membranes.append(membrane2)
        return torch.stack(spikes), torch.stack(membranes)


# ---------------------------------------------------------------------------------- cells of norse
class LSNNState(NamedTuple):
    z: Tensor
    v: Tensor
    i: Tensor
    b: Tensor


class LSNNCell(nn.Module):
    """Current, membrane and adaptive threshold of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.input_weights = nn.Parameter(torch.randn(N, I) * 4.0 / math.sqrt(I))
        self.recurrent_weights = nn.Parameter(torch.randn(N, N) / math.sqrt(N))
        self.register_buffer("tau", torch.tensor([0.1, 0.2, 0.02]))

    def forward(self, x: Tensor, s: LSNNState | None) -> tuple[Tensor, LSNNState]:
        if s is None:
            zeros = x.new_zeros(x.shape[0], N)
            s = LSNNState(zeros, zeros.clone(), zeros.clone(), torch.ones_like(zeros))
        tau_v, tau_i, tau_b = self.tau
        v = s.v + tau_v * ((0.0 - s.v) + s.i)
        i = s.i - tau_i * s.i
        b = s.b + tau_b * (0.5 - s.b)
        z = fire(v - b)
        v = (1 - z.detach()) * v
        i = i + F.linear(x, self.input_weights) + F.linear(s.z, self.recurrent_weights)
        b = b + z * 0.3
        return z, LSNNState(z, v, i, b)


class ReadoutCell(nn.Module):
    """A linear map into a current, which a voltage filters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(CLASSES, N) / math.sqrt(N))

    def forward(self, z: Tensor, s: tuple[Tensor, Tensor] | None,
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if s is None:
            s = (z.new_zeros(z.shape[0], CLASSES), z.new_zeros(z.shape[0], CLASSES))
        v, i = s
        jump = i + F.linear(z, self.weights)
        v = v + 0.1 * ((0.0 - v) + jump)
        return v, (v, jump - 0.2 * jump)


class Cells(nn.Module):
    """An adaptive cell and a readout whose last voltage counts."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = LSNNCell(), ReadoutCell()

    def forward(self, x: Tensor) -> Tensor:
        s = so = None
        for ts in range(x.shape[0]):
            z, s = self.cell(x[ts, :], s)
            v, so = self.readout(z, so)
        return F.log_softmax(v, dim=1)


# -------------------------------------------------------------------------------------- branches
class Branches(nn.Module):
    """Inputs and spikes in one Linear, whose outputs are the currents of four dendrites."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(I + N, N * 4)
        self.dense.weight.data.mul_(10.0)
        self.tau_m = nn.Parameter(torch.empty(N).uniform_(0.0, 4.0))
        self.tau_n = nn.Parameter(torch.empty(N, 4).uniform_(0.0, 4.0))
        self.out = nn.Linear(N, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[1]
        membrane, spike = x.new_zeros(batch, N), x.new_zeros(batch, N)
        dendrite = x.new_zeros(batch, N, 4)
        total = 0
        for x_t in x:
            beta = torch.sigmoid(self.tau_n)
            both = torch.cat((x_t, spike), 1)
            dendrite = beta * dendrite + (1 - beta) * self.dense(both).reshape(-1, N, 4)
            alpha = torch.sigmoid(self.tau_m)
            membrane = alpha * membrane + (1 - alpha) * dendrite.sum(2) - spike
            spike = fire(membrane - 1.0)
            total = total + F.softmax(self.out(spike), dim=1)
        return total


# ---------------------------------------------------------------------------- states as arguments
def adapt(current: Tensor, membrane: Tensor, spike: Tensor, threshold: Tensor,
          tau_m: Tensor, tau_adp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of an adaptive neuron."""
    alpha, rho = torch.exp(-1.0 / tau_m), torch.exp(-1.0 / tau_adp)
    threshold = rho * threshold + (1 - rho) * spike
    moving = 0.01 + 1.8 * threshold
    membrane = membrane * alpha + (1 - alpha) * current - moving * spike
    return membrane, MultiGaussian.apply(membrane - moving), threshold


class Adaptive(nn.Module):
    """Two recurrent layers and a leaky readout, started by the states that are its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.dense1, self.rec1 = nn.Linear(I, N), nn.Linear(N, N)
        self.dense2, self.rec2 = nn.Linear(N, N), nn.Linear(N, N)
        self.out = nn.Linear(N, CLASSES)
        for name, mean in (("m1", 20.0), ("m2", 20.0), ("a1", 150.0), ("a2", 150.0)):
            self.register_parameter(name, nn.Parameter(mean + torch.randn(N)))
        self.m_out = nn.Parameter(20.0 + torch.randn(CLASSES))

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spike1, spike2 = torch.zeros_like(mem1), torch.zeros_like(mem2)
        b1 = b2 = torch.full_like(mem1, 0.01)
        mem_out = x.new_zeros(x.shape[1], CLASSES)
        output = torch.zeros_like(mem_out)
        for i in range(x.shape[0]):
            current = self.dense1(x[i].to(x.dtype)) + self.rec1(spike1)
            mem1, spike1, b1 = adapt(current, mem1, spike1, b1, self.m1, self.a1)
            current = self.dense2(spike1) + self.rec2(spike2)
            mem2, spike2, b2 = adapt(current, mem2, spike2, b2, self.m2, self.a2)
            alpha = torch.exp(-1.0 / self.m_out)
            mem_out = mem_out * alpha + (1 - alpha) * self.out(spike2)
            if i > 10:
                output = output + F.softmax(mem_out, dim=1)
        return output, mem1, mem2


# ------------------------------------------------------------------------ LayerNorm in the state
class Normalized(nn.Module):
    """LayerNorm and clamp act on the first membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.dense1, self.rec1 = nn.Linear(I, N), nn.Linear(N, N, bias=False)
        self.norm = nn.LayerNorm(N)
        self.dense2, self.rec2 = nn.Linear(N, N), nn.Linear(N, N, bias=False)
        self.dense3, self.rec3 = nn.Linear(N, N), nn.Linear(N, N, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v1 = v2 = v3 = x.new_zeros(x.shape[1], N)
        z1 = z2 = z3 = torch.zeros_like(v1)
        spikes = []
        for x_t in x.unbind(0):
            v1 = self.norm(0.9 * v1 + self.dense1(x_t) + self.rec1(z1)).clamp(-3.0, 3.0)
            z1 = fire(v1 - 1.0)
            v1 = v1 * (1 - z1)
            v2 = 0.9 * v2 + self.dense2(2 * z1) + self.rec2(z2) - z2
            z2 = fire(v2 - 0.5)
            v3 = 0.8 * v3 * (1 - z3) + self.dense3(2 * z2) + self.rec3(z3)
            z3 = fire(v3 - 0.5)
            spikes.append(z3)
        return torch.stack(spikes).mean(0)


# ------------------------------------------------------------------------------------------ tests
MODELS: dict[str, Callable[[], nn.Module]] = {
    "two loops": TwoLoops, "once per step": OncePerStep, "cells": Cells, "branches": Branches,
    "states as arguments": Adaptive, "normalized": Normalized}


def build(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model and its arguments."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    x = (torch.rand(T, B, I) < 0.2).to(dtype)
    states = (torch.rand(B, N, dtype=dtype), torch.rand(B, N, dtype=dtype))
    return model, (x, *states) if name == "states as arguments" else (x,)


def step(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """The results of a model and the gradients of all parameters and arguments."""
    args = tuple(arg.detach().clone().requires_grad_() for arg in args)
    found = model(*args)
    results = [found] if isinstance(found, Tensor) else list(found)
    gradients = weighted_gradients(results, [*model.parameters(), *args])
    return [*(one.detach() for one in results), *gradients]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_converted_model_equals_the_original(name: str, dtype: torch.dtype) -> None:
    original, args = build(name, dtype)
    model, _ = build(name, dtype)
    model, report = convert(model, tuple(arg.detach().clone().requires_grad_() for arg in args))
    assert report.converted, str(report)
    want = step(original, args)
    assert all(float(gradient.abs().max()) > 0 for gradient in want[-len(args):])
    for _ in range(2):  # the first call may be recorded
        got = step(model, args)
        for one, other in zip(want, got, strict=True):
            limit = 1e-9 if dtype == torch.float64 else 1e-4
            assert float((one - other).abs().max()) <= limit * float(one.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_converted_model_is_faster(name: str) -> None:
    original, args = build(name, torch.float32)
    model, _ = build(name, torch.float32)
    model, _ = convert(model, tuple(arg.detach().clone().requires_grad_() for arg in args))
    times: dict[nn.Module, list[float]] = {original: [], model: []}
    for _ in range(7):
        for one, found in times.items():
            start = time.process_time()
            step(one, args)
            found.append(time.process_time() - start)
    ratio = statistics.median(times[original]) / statistics.median(times[model])
    assert ratio > 1.2, f"expected a faster step, got {ratio:.2f} times"
