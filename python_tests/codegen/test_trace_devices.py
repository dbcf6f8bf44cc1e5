"""A trace runs on META, where nothing is computed; a step sees the CPU, and its constants count."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsnn_ext.codegen.trace import StepError
from operator_calls import python_output
from traced_steps import check_step

CPU = torch.device("cpu")


class OnDevices(torch.autograd.Function):
    """Constants that are made on the device of a tensor, and copies to it."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        z = torch.zeros_like(v).to("cpu")
        z[v > 0] = 1.0
        return z

    @staticmethod
    def backward(ctx, gradient):
        (v,) = ctx.saved_tensors
        assert gradient.device == CPU
        slope = torch.tensor(3.25, device=gradient.device)
        width = torch.as_tensor([2.0], device=v.device).to(gradient.device)
        return gradient.to(CPU) / (1 + (slope * v * width).abs()) * gradient.new_tensor(0.5)


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "cpu": lambda v: v.cpu() + 1,
    "to a string": lambda v: v.to("cpu") + 1,
    "to a device and a dtype": lambda v: v.to(CPU, v.dtype, True) + 1,
    "to by keywords": lambda v: v.to(dtype=v.dtype, device=CPU, copy=True).mul_(0.5) + v,
    "to another tensor": lambda v: v + torch.as_tensor(0.5).to(v),
    "tensor": lambda v: v + torch.tensor(0.25, device=v.device),
    "asarray": lambda v: v + torch.asarray(0.25, device=v.device),
    "new_tensor": lambda v: v + v.new_tensor([0.25]),
    "new": lambda v: v + v.new(1).fill_(0.25),
    "type of a tensor": lambda v: v + (v > 0).type(v.type()),
    "is_cpu": lambda v: v * (2 if v.is_cpu and not v.is_meta else 3),
    "vmap": lambda v: torch.vmap(lambda one: one * 2)(v),
    "FloatTensor": lambda v: v + torch.FloatTensor([0.25]),
    "full": lambda v: v + torch.full((), 0.25, device=v.device),
    "full_like": lambda v: v * torch.full_like(v, 0.25, device="cpu"),
    "zeros": lambda v: v + torch.zeros(v.shape, device=v.device, dtype=v.dtype)}


@pytest.mark.parametrize("name", CALLS)
def test_devices(name):
    def step(c, v, z):
        assert v.device == CPU
        v = CALLS[name](0.5 * v + c)
        return v, OnDevices.apply(v - 1)

    check_step(step)


def test_writes_reach_what_a_copy_shares():
    """Without a new dtype, `to` returns the tensor itself."""
    def step(c, v, z):
        v = 0.5 * v + c
        other = v.to("cpu")
        other += 1.0
        return v * 1.0, OnDevices.apply(v - 1)

    check_step(step)


def test_closed_over_tensor_is_not_written_to():
    held = torch.ones(())

    def step(c, v, z):
        other = held.to(v.device)
        other += 1.0
        return v + other * c, z * 1.0

    with pytest.raises(StepError, match="expected no write in place to a coefficient or a closed"):
        check_step(step)


FIRST_USE = """
import sys
import torch
import lsnn_ext
from surrogates import Triangle


def model(x, w):
    v = torch.zeros(2, 5)
    z, spikes = v, []
    for x_t in x:
        v = 0.9 * v + x_t + z @ w - torch.where(z > 0, v, z)
        z = Triangle.apply(v - 1)
        spikes.append(z)
    return torch.stack(spikes)


lsnn_ext.fuse(model, (torch.rand(30, 2, 5), torch.randn(5, 5).requires_grad_()))
print({"torch._dynamo", "sympy"} & {*sys.modules})
"""


def test_first_use_imports_no_compiler():
    """They take several times as long as the rest of a conversion."""
    assert python_output(FIRST_USE) == "set()\n"
