"""Models in the manner of public programs, each with a time loop of its own.

They are converted, equal and faster: SpyTorch's tutorial with two loops, two adaptive layers whose
states are arguments, and a membrane that LayerNorm acts on. Layers and cells of packages are in
test_packages.py, dendritic branches in test_component_axes.py.
"""
import math
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compare import assert_same, outputs_and_gradients
from lsnn_ext.loops import convert
from surrogates import MultiGaussian, SpyTorch

T, B, I, N, CLASSES = 60, 8, 24, 32, 5


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
    """LayerNorm and clamp act on the first membrane, so that this recurrence stays a loop."""

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
    "two loops": TwoLoops, "states as arguments": Adaptive, "normalized": Normalized}


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
    return outputs_and_gradients(model, [*model.parameters(), *args], *args)


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
        assert_same("results and gradients", step(model, args), want,
                    tolerance=1e-9 if dtype == torch.float64 else 1e-4)


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
