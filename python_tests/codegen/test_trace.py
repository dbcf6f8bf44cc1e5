"""Programs of traced steps against the steps themselves and autograd."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsnn_ext import zoo
from lsnn_ext.codegen.calls import CPU
from lsnn_ext.codegen.trace import StepError
from surrogates import ArcTan, SetupContext, SpyTorch, Triangle, apply_soft
from traced_steps import NEURONS, TOLERANCES, check_step, trace_step
from zoo_loops import count_currents, parts_of, zoo_coefficients

DTYPES = [torch.float32, torch.float64]
THETA = torch.linspace(0.5, 1.5, NEURONS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in zoo.NEURONS if name != "c_silif"])  # complex
def test_models(name: str, dtype: torch.dtype) -> None:
    module = zoo.NEURONS[name]
    coefficients = {key: THETA.to(dtype) * value for key, value in zoo_coefficients(name).items()
                    if key != "dt"}
    assert check_step(module.step, coefficients, currents=count_currents(name),
                      states=len(parts_of(name).states), dtype=dtype, batch=200).program.is_spike


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_reset_that_passes_gradients(dtype: torch.dtype) -> None:
    def step(c, v, z, *, tau):
        h = v + (c - v) / tau
        z = apply_soft(h - 1.0)
        return h * (1 - z), z

    check_step(step, {"tau": 2.0}, dtype=dtype, is_exact=False, batch=200)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kinds_of_coefficients(dtype: torch.dtype) -> None:
    kinds = [20.0, 20, torch.tensor(20.0, dtype=dtype), THETA.to(dtype) * 20, torch.tensor(20),
             torch.tensor(20.0), torch.tensor(20.0, dtype=torch.float64)]

    def step(c, v, z, *, tau, other):
        decay = 1 - 0.3 / tau
        gain = (tau + other) * 0.1 - other / tau
        return decay * v + c * gain, (v > decay).to(v)

    for i, tau in enumerate(kinds):
        for other in kinds[:4 if i < 4 else 1]:
            check_step(step, {"tau": tau, "other": other}, dtype=dtype)


# ----------------------------------------------------------------------------------- operators
EXACT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "no integer is -0": lambda a, b, c: b * (
        (1 / (-(a > 0).to(a)).long()).clamp(-2, 2)
        + (1 / -torch.where(b > 0, 0, 0)).clamp(-3, 3)) + c,
    "larger integers": lambda a, b, c: -((a > 0).long() - 2 * (b > 0).int()) * (c > 0) * a,
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
    "fmod": lambda a, b, c: a.fmod(0.3) + torch.fmod(b, c),
    "remainder": lambda a, b, c: a % 6.3 + torch.remainder(b, c) - c % -0.3,
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
    "integers": lambda a, b, c: (a > 0).int().to(a) * b + (c > 0).long() + (1 - (b > 0).int()) * a,
    "mask times": lambda a, b, c: (a > 0) * b + (b > 0) * 0.3,
    "heaviside": lambda a, b, c: torch.heaviside(a.detach(), torch.tensor(1.0).to(a)) * b,
    "masked fill": lambda a, b, c: a.masked_fill(b > 0, 0.7) * c,
    "bool": lambda a, b, c: a.relu().bool().to(a) * b - c,
    "tensors": lambda a, b, c: a * torch.tensor(0.3) + torch.full_like(b, 0.7) * torch.ones(
        b.shape, dtype=b.dtype) - torch.zeros_like(c) + b.new_full(b.shape, 0.1),
    "shapes": lambda a, b, c: a.view_as(b) + b.reshape(b.shape).expand_as(c).contiguous(),
    "nan": lambda a, b, c: (a / a.relu()).maximum(b) + (c.relu() / c.relu()).clamp(-1, 1),
    "nan compared": lambda a, b, c: torch.where((a / 0 * 0) > 0, b, c) + torch.isnan(a / b).to(a)}
APPROXIMATE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exp": lambda a, b, c: a.exp() + torch.log(b.abs()) * torch.tanh(c),
    "sigmoid": lambda a, b, c: torch.sigmoid(a) * b.sin() - torch.cos(c),
    "erf": lambda a, b, c: torch.erf(a) + torch.atan(b) - (c.abs() + 0.1) ** 1.3,
    "sqrt": lambda a, b, c: a.abs().sqrt() + (b.abs() + 0.1).rsqrt() + c.abs() ** 0.5,
    "pow of tensors": lambda a, b, c: (a.abs() + 0.1) ** b + 1.3 ** c + torch.pow(a, 4),
    "silu": lambda a, b, c: F.silu(a) * b + (c.abs() + 0.1) ** -0.5}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*EXACT, *APPROXIMATE])
def test_operators(name: str, dtype: torch.dtype) -> None:
    function, is_exact = (EXACT | APPROXIMATE)[name], name in EXACT

    def step_of_rows(a, c, b, z):
        return function(a, b, c), (a > 0).to(a)

    check_step(step_of_rows, currents=2, dtype=dtype, is_exact=is_exact, batch=9100)
    for c in (THETA.to(dtype) - 1, torch.tensor(0.7, dtype=dtype)):
        check_step(lambda a, b, z, *, c: step_of_rows(a, c.expand_as(a), b, z), {"c": c},
                   dtype=dtype, is_exact=is_exact)
    check_step(lambda a, b, z, *, c: step_of_rows(a, c + torch.zeros_like(a), b, z), {"c": 0.7},
               dtype=dtype, is_exact=is_exact)


# ------------------------------------------------------------------------- writes, detach, casts
def write_in_place(c, v, w, z, *, tau):
    v += c
    v.mul_(0.9).sub_(w)
    w = w.clone()
    w.view_as(c).mul_(c)
    alias = w.detach()
    w[v > 0] = 1.0
    w[v < -1] = 0.25
    v.add_(alias * c).div_(tau)
    mask = v > 0
    mask &= w > 0.5
    out = torch.zeros_like(v)
    out[mask] = 1
    v.clamp_(-1, 1)
    return v, w, out


def detach_paths(c, v, z, *, theta):
    v = 0.9 * v.detach() + c - z.detach() * theta.detach()
    return v, Triangle.apply(v - theta)


def return_arguments(c, v, w, z, *, theta):
    return w, v, z * 1


def return_constants(c, v, w, z, *, theta):
    return torch.zeros_like(v), theta, (v > theta).to(v)


def branch_by_mask(c, v, w, z, *, v_reset):
    refractory = w > 0
    v = torch.where(refractory, v, v + 0.1 * (c - v))
    spike = SetupContext.apply(v - 1)
    v = v.masked_fill(spike > 0, v_reset)
    w = torch.where(spike.bool(), torch.full_like(w, 5.0), (w - 1).clamp(min=0))
    return v, w, spike


def no_gradient(c, v, z):
    with torch.no_grad():
        v = v * 0.9 + c
    return v, (v > 1).to(v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_and_detached_paths(dtype: torch.dtype) -> None:
    theta = THETA.to(dtype)
    check_step(write_in_place, {"tau": theta}, states=2, dtype=dtype)
    check_step(write_in_place, {"tau": 3}, states=2, dtype=dtype)
    program = check_step(detach_paths, {"theta": theta}, dtype=dtype).program
    assert program.d_z is None and program.d_states == (None,) and program.gradients != (None,)
    program = check_step(return_arguments, {"theta": theta}, states=2, dtype=dtype).program
    assert program.d_currents == program.gradients == (None,) and program.slopes is None
    program = check_step(return_constants, {"theta": theta}, states=2, dtype=dtype).program
    assert program.d_states == (None, None) and program.slopes == () and program.is_spike
    check_step(return_constants, {"theta": theta[0]}, states=2, dtype=dtype)
    for v_reset in (0.5, theta[0]):
        program = check_step(branch_by_mask, {"v_reset": v_reset}, states=2, dtype=dtype).program
        assert program.is_spike and program.d_z is None
    check_step(lambda c, v, z: (0.9 * v + c, ArcTan.apply(v - 1, 0.3)), dtype=dtype)
    program = check_step(no_gradient, dtype=dtype).program
    assert program.d_currents == program.d_states == (None,) and program.slopes == ()


def test_casts_round_to_float32_in_a_step_of_float64() -> None:
    def step(c, v, z, *, tau):
        u = (v * 1.1).float() * 0.3 + c.float() / 3 - z.float()
        u = torch.where(u > 0.7, u * u, u.abs() - 0.1)
        v = 0.9 * v + u.double() / tau
        u += v  # stays float32
        return v, (u > 0.1).float().to(v)

    check_step(step, {"tau": 3.0}, scale=1.0, tolerance=2e-7, batch=999)
    program = check_step(step, {"tau": THETA}, scale=1.0, tolerance=2e-7).program
    assert program.is_spike and sum(node.operator == "float32" for node in program.nodes) > 5

    def step_32(c, v, z):
        return (v.float() * c.to(torch.float32)), (v > 0).to(z.dtype)

    assert all(node.operator != "float32" for node in check_step(
        step_32, dtype=torch.float32).program.nodes)


def test_numbers_follow_python() -> None:
    def step(c, v, z, *, tau, n, theta):
        decay = 1 - 0.7 / (tau * 3 - tau // 2) ** 0.5 + n % 7 * -abs(-tau) / 100
        mask = v > theta
        v = torch.clamp(decay * v, -1.0, tau) + mask * tau + torch.where(mask, tau, 0.3)
        v = torch.where(c > 0.5, v, torch.full_like(v, tau).lerp(c, n / 30))
        return v + theta / tau - tau / theta - torch.as_tensor(tau) * c, mask * 1.0

    for theta in (torch.tensor(0.7), THETA):
        check_step(step, {"tau": 2.3, "n": 18, "theta": theta}, dtype=torch.float32)


def test_as_tensor_of_a_number_is_float32() -> None:
    def step(c, v, z, *, tau):
        return torch.exp(-1 / torch.as_tensor(tau)) * v + c, (v > 0).to(v)

    check_step(step, {"tau": 20.0}, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_closed_over_tensors_are_read_again(dtype: torch.dtype) -> None:
    gain, offset = torch.rand(NEURONS, dtype=dtype), torch.tensor(0.3, dtype=dtype)

    def step(c, v, z):
        listed = torch.tensor([0.1 * i for i in range(NEURONS)], dtype=dtype)
        return v * gain + c * (1 - offset) + listed, (v > offset.expand_as(v)).to(v)

    traced = check_step(step, dtype=dtype)
    before = traced.prologue([], CPU)
    with torch.no_grad():
        gain.mul_(2)
    assert sum(not torch.equal(a, b)
               for a, b in zip(before, traced.prologue([], CPU), strict=True)) == 1
    with pytest.raises(StepError, match=r"expected closed-over tensors of one size, got \(11,\)"):
        other = torch.rand(NEURONS + 1)
        trace_step(lambda c, v, z: (v * gain + c * other, v * 1), dtype)
    with pytest.raises(StepError, match="expected one number of neurons"):
        trace_step(lambda c, v, z, *, tau: (v * gain + c * tau, v * 1), dtype,
                   {"tau": gain}).prologue([torch.rand(7, dtype=dtype)], CPU)


def test_checkpoints_are_traced() -> None:
    def step(c, v, z):
        v = v - torch.utils.checkpoint.checkpoint(lambda x: Triangle.apply(x * x) * x, c,
                                                  use_reentrant=False)
        return v, Triangle.apply(v - 1)

    check_step(step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_coefficients_inside_expressions(dtype: torch.dtype) -> None:
    def step(c, v, z, *, tau, theta, gain):
        alpha = torch.exp(-1 / tau.relu()).clamp(0.1, 0.99) * torch.sigmoid(gain) ** 2
        gain = F.softplus(gain) + F.elu(-gain) * 0.1 + torch.log1p(gain)
        scale = torch.where(theta > 1, theta * gain, theta.tanh() + gain)
        v = torch.lerp(c, v, alpha) + torch.addcmul(z, scale, gain * theta)
        return v, Triangle.apply(v - theta.expand_as(v) * scale)

    for tau in (torch.tensor(20.0), THETA * 20):
        for gain in (torch.tensor(0.3), THETA / 3):
            given = {"tau": tau.to(dtype), "theta": THETA.to(dtype), "gain": gain.to(dtype)}
            check_step(step, given, dtype=dtype, tolerance=10 * TOLERANCES[dtype])


# ------------------------------------------------------------------------------ what kernels ask
def test_is_spike_and_slopes() -> None:
    def trace_surrogate(spike: Callable) -> Any:
        def step(c, v, z):
            v = 0.9 * v + c - z
            return v, spike(v - 1)

        return check_step(step).program

    for spike, slopes in ((Triangle.apply, 1), (SetupContext.apply, 1),  # the latter has a mask
                          (lambda x: (x > 0).double(), 0),
                          (lambda x: Triangle.apply(x) * Triangle.apply(x - 1), 2)):
        program = trace_surrogate(spike)
        assert program.is_spike and len(program.slopes) == slopes
    program = trace_surrogate(SpyTorch.apply)  # never 0
    assert program.is_spike and program.slopes is None
    assert not trace_surrogate(lambda x: Triangle.apply(x) * 0.5).is_spike
    assert not trace_surrogate(lambda x: x.relu()).is_spike
    assert trace_surrogate(lambda x: 1 - torch.heaviside(x.detach(), x.new_ones(()))).is_spike
    assert trace_surrogate(lambda x: Triangle.apply(x).clamp(-1, 1)).slopes is not None
    assert trace_surrogate(lambda x: x.clamp(-1, 1)).slopes is not None


def test_equal_nodes_are_shared() -> None:
    def step(c, v, z):
        a, b = v * c + 1 - 0, c * v * 1 / 1 + 1.0
        unused = torch.sin(a)
        del unused
        return a + b, ((a > 0) & (b > 0)).to(v)

    operators = [node.operator for node in check_step(step).program.nodes]
    assert operators.count("mul") <= 3 and "sin" not in operators and operators.count("gt") == 1


def test_in_place_operators_on_numbers() -> None:
    def step(c, v, z, *, k):
        before = k
        k += 1
        return v * k + before * c, z * 1

    check_step(step, {"k": 2.5}, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_that_are_zero_for_coefficients(dtype: torch.dtype) -> None:
    def step(c, v, z, *, a, b):
        sign = a * torch.sign(b) + torch.heaviside(a.detach(), b.detach())
        return v * sign + c * torch.where(a == b, a, b * 0.5) + torch.sign(a), z * 1

    for a in (THETA.to(dtype), THETA[3].to(dtype)):
        for b in (a, THETA.flip(0).to(dtype)):
            check_step(step, {"a": a, "b": b}, dtype=dtype, tolerance=1e-5)
    program = check_step(lambda c, v, z, *, a: (v * torch.sign(a), z * 1), {"a": a},
                         dtype=dtype).program
    assert program.gradients == (None,)
