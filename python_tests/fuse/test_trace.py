"""Programs of traced steps against the steps themselves and autograd."""
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from traced_steps import NEURONS, check_step

from lsnn_ext.fuse.trace import StepError, trace

DTYPES = [torch.float32, torch.float64]
THETA = torch.linspace(0.5, 1.5, NEURONS)


class Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return g * 0.3 * torch.clamp(1 - x.abs(), min=0)


class SpyTorch(torch.autograd.Function):
    """The surrogate of SpyTorch's tutorials, with its masked write."""

    scale = 100.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return g.clone() / (SpyTorch.scale * torch.abs(x) + 1.0) ** 2


class SetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        g = g.clone()
        g[x.abs() > 0.5] = 0
        return g


def apply_soft(x: Tensor) -> Tensor:
    """A straight-through estimator."""
    soft = torch.sigmoid(4 * x)
    return ((x > 0).to(x) - soft).detach() + soft


def lsnn(c, v, a, z, *, alpha, rho, beta, theta):
    a = rho * a + (1 - rho) * z
    threshold = theta + beta * a
    v = alpha * v + (1 - alpha) * c - z * threshold
    return v, a, Triangle.apply((v - threshold) / threshold)


def spytorch(c, syn, mem, z, *, alpha, beta):
    rst = z.detach()
    new_syn = alpha * syn + c
    new_mem = (beta * mem + syn) * (1.0 - rst)
    return new_syn, new_mem, SpyTorch.apply(new_mem - 1.0)


def resonate(c, u, v, q, z, *, omega, b, dt=0.01):
    p = (-1 + torch.sqrt(1 - (dt * omega) ** 2)) / dt
    decay = p - b - q
    u_new = u + dt * (decay * u - omega * v + c)
    v = v + dt * (omega * u + decay * v)
    z = Triangle.apply(u_new - 1 - q)
    return u_new, v, 0.9 * q + z, z


def tc_lif(c, v1, v2, z, *, g1, g2, gamma, theta):
    v1 = v1 - torch.sigmoid(g1) * v2 + c
    v2 = v2 + torch.sigmoid(g2) * v1
    z = SetupContext.apply(v2 - theta)
    return v1 - gamma * z, v2 - theta * z, z


def dh_srnn(c0, c1, d0, d1, v, z, *, tau_0, tau_1, tau):
    n0, n1, alpha = tau_0.sigmoid(), tau_1.sigmoid(), tau.sigmoid()
    d0 = n0 * d0 + (1 - n0) * c0
    d1 = n1 * d1 + (1 - n1) * c1
    v = alpha * v + (1 - alpha) * (d0 + d1) - z
    return d0, d1, v, Triangle.apply(v - 1)


def izhikevich(c, v, u, z, *, a, b, d, reset=-65.0, dt=0.5):
    v = v + dt * (0.04 * v * v + 5 * v + 140 - u + c)
    u = u + dt * a * (b * v - u)
    z = Triangle.apply(v - 30)
    return v + z * (reset - v), u + z * d, z


def attached_reset(c, v, z, *, tau):
    h = v + (c - v) / tau
    z = apply_soft(h - 1.0)
    return h * (1 - z), z


NEURON = {"alpha": 0.9, "rho": 0.97, "beta": 1.7, "theta": THETA}
MODELS: dict[str, tuple[Callable, dict[str, Any], int, int, bool]] = {
    "lsnn": (lsnn, NEURON, 1, 2, True),
    "spytorch": (spytorch, {"alpha": 0.8, "beta": torch.tensor(0.9)}, 1, 2, True),
    "resonate": (resonate, {"omega": THETA * 10, "b": torch.tensor(0.3)}, 1, 3, True),
    "tc_lif": (tc_lif, {"g1": torch.tensor(0.5), "g2": THETA, "gamma": 0.5, "theta": 1.0}, 1, 2,
               True),
    "dh_srnn": (dh_srnn, {"tau_0": THETA, "tau_1": -THETA, "tau": torch.tensor(1.0)}, 2, 3, True),
    "izhikevich": (izhikevich, {"a": 0.02, "b": THETA, "d": 8}, 1, 2, True),
    "attached reset": (attached_reset, {"tau": 2.0}, 1, 1, False),
}


def convert(coefficients: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) if isinstance(x, Tensor) and x.dtype.is_floating_point else x
            for name, x in coefficients.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, dtype: torch.dtype) -> None:
    step, coefficients, currents, states, is_exact = MODELS[name]
    for seed in range(3):
        check_step(step, convert(coefficients, dtype), currents=currents, states=states,
                   dtype=dtype, is_exact=is_exact, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kinds_of_coefficients(dtype: torch.dtype) -> None:
    kinds = [20.0, 20, torch.tensor(20.0, dtype=dtype), THETA.to(dtype) * 20, torch.tensor(20),
             torch.tensor(20.0), torch.tensor(20.0, dtype=torch.float64)]

    def step(c, v, z, *, tau, other):
        decay = 1 - 0.3 / tau
        gain = (tau + other) * 0.1 - other / tau
        return decay * v + c * gain, (v > decay).to(v)

    for tau in kinds:
        for other in kinds:
            check_step(step, {"tau": tau, "other": other}, dtype=dtype)


# ----------------------------------------------------------------------------------- operators
EXACT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "add alpha": lambda a, b, c: torch.add(a, b, alpha=0.3),
    "sub alpha": lambda a, b, c: torch.sub(a, b, alpha=0.3),
    "sub alpha 1": lambda a, b, c: torch.sub(a, b, alpha=-1),
    "rsub": lambda a, b, c: torch.rsub(a, b, alpha=0.7) + (1.3 - a),
    "addcmul": torch.addcmul,
    "addcmul value": lambda a, b, c: torch.addcmul(a, b, c, value=0.3),
    "addcdiv": torch.addcdiv,
    "addcdiv value": lambda a, b, c: torch.addcdiv(a, b, c, value=0.3),
    "lerp": torch.lerp,
    "lerp number": lambda a, b, c: torch.lerp(a, b, 0.3) + torch.lerp(a, b, 0.8),
    "pow": lambda a, b, c: a ** 2 + b ** 3 - c ** -2 + a ** -1 + b ** 1 + a ** 0,
    "square": lambda a, b, c: a.square() * b.reciprocal(),
    "divide": lambda a, b, c: a / 20.0 + 3 / b + a.div(c),
    "abs, sign": lambda a, b, c: a.abs() * b.sign() + c.sgn(),
    "clamp": lambda a, b, c: a.clamp(-1, 1) + b.clamp(min=0.1) + c.clamp(max=0.3),
    "clamp tensor": lambda a, b, c: a.clamp(b, c) + a.clamp(min=b) + torch.clamp_max(a, 0.2),
    "relu": lambda a, b, c: a.relu() + F.relu6(b) + F.hardtanh(c, -0.5, 0.25),
    "maximum": lambda a, b, c: torch.maximum(a, b) * torch.minimum(b, c),
    "threshold": lambda a, b, c: F.threshold(a, 0.3, -0.7) + F.leaky_relu(b, 0.03),
    "where": lambda a, b, c: torch.where(a > b, c, a) + torch.where(b >= 0, 1.0, 0.3),
    "masks": lambda a, b, c: (((a > 0) & ~(b > 1)) | ((c < 0) ^ (a <= b))).to(a) * b,
    "logical": lambda a, b, c: torch.logical_and(a > 0, torch.logical_or(b > 0, c)).to(a)
    + torch.logical_not(c.relu()).to(a) + torch.logical_xor(a, b > 0).to(a),
    "compare": lambda a, b, c: ((a == a.relu()).to(a) - (b != b.relu()).to(a)) * c,
    "integers": lambda a, b, c: (a > 0).int().to(a) * b + (c > 0).long(),
    "mask times": lambda a, b, c: (a > 0) * b + (b > 0) * 0.3,
    "heaviside": lambda a, b, c: torch.heaviside(a.detach(), torch.tensor(1.0).to(a)) * b,
    "masked fill": lambda a, b, c: a.masked_fill(b > 0, 0.7) * c,
    "bool": lambda a, b, c: a.relu().bool().to(a) * b - c,
    "tensors": lambda a, b, c: a * torch.tensor(0.3) + torch.full_like(b, 0.7) * torch.ones(
        b.shape, dtype=b.dtype) - torch.zeros_like(c) + b.new_full(b.shape, 0.1),
    "shapes": lambda a, b, c: a.view_as(b) + b.reshape(b.shape).expand_as(c).contiguous(),
    "nan": lambda a, b, c: (a / a.relu()).maximum(b) + (c.relu() / c.relu()).clamp(-1, 1),
    "nan compared": lambda a, b, c: torch.where((a / 0 * 0) > 0, b, c) + torch.isnan(a / b).to(a),
}
APPROXIMATE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exp": lambda a, b, c: a.exp() + torch.log(b.abs()) * torch.tanh(c),
    "sigmoid": lambda a, b, c: torch.sigmoid(a) * b.sin() - torch.cos(c),
    "erf": lambda a, b, c: torch.erf(a) + torch.atan(b) - (c.abs() + 0.1) ** 1.3,
    "sqrt": lambda a, b, c: a.abs().sqrt() + (b.abs() + 0.1).rsqrt() + c.abs() ** 0.5,
    "pow of tensors": lambda a, b, c: (a.abs() + 0.1) ** b + 1.3 ** c + torch.pow(a, 4),
    "silu": lambda a, b, c: F.silu(a) * b + (c.abs() + 0.1) ** -0.5,
}


def make_step(function: Callable) -> Callable:
    def step(a, b, z, *, c):
        return function(a, b, c.expand_as(a)), (a > 0).to(a)

    def step_of_rows(a, c, b, z):
        return function(a, b, c), (a > 0).to(a)

    def step_of_numbers(a, b, z, *, c):
        return function(a, b, c + torch.zeros_like(a)), (a > 0).to(a)

    return {1: step_of_rows, 2: step, 3: step_of_numbers}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*EXACT, *APPROXIMATE])
def test_operators(name: str, dtype: torch.dtype) -> None:
    steps = make_step((EXACT | APPROXIMATE)[name])
    is_exact = name in EXACT
    check_step(steps[1], currents=2, dtype=dtype, is_exact=is_exact)
    for c in (THETA.to(dtype) - 1, torch.tensor(0.7, dtype=dtype)):
        check_step(steps[2], {"c": c}, dtype=dtype, is_exact=is_exact)
    check_step(steps[3], {"c": 0.7}, dtype=dtype, is_exact=is_exact)
