"""Functions of TorchScript: inside of a surrogate, and called by the loop."""
import copy
import math
import threading
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from compare import assert_same, outputs_and_gradients
from lsnn_ext.loops import convert
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.record import record


@torch.jit.script
def heaviside(x: Tensor) -> Tensor:
    return x.gt(0.0).to(x.dtype)


@torch.jit.script
def bell(x: Tensor, width: float = 1.0) -> Tensor:
    return torch.exp(-(x**2) / (2.0 * width**2)) / (width * torch.sqrt(2 * torch.tensor(math.pi)))


class ScriptedSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return heaviside(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (1.15 * bell(x, 0.5) - 0.3 * bell(x, 3.0))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6 + 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1], 8)
        out = []
        for x_t in x:
            v = 0.9 * v + self.linear(torch.cat((x_t, z), 1)) - z.detach()
            z = self.spike(v - 0.5)
            out.append(self.read(z))
        return torch.stack(out)

    def spike(self, v: Tensor) -> Tensor:
        return ScriptedSpike.apply(v)

    def read(self, z: Tensor) -> Tensor:
        return z


class Direct(Layer):
    """The surrogate gradient as a difference of detached values, and a readout."""

    def spike(self, v: Tensor) -> Tensor:
        slope = bell(v, width=0.5).detach() * v
        return slope - slope.detach() + heaviside(v).detach()

    def read(self, z: Tensor) -> Tensor:
        return bell(z)


@pytest.mark.parametrize("kind", [Layer, Direct])
def test_scripted_functions_are_fused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    original = kind().double()
    x = (torch.rand(30, 3, 6) < 0.4).double().requires_grad_()
    model, report = convert(copy.deepcopy(original), x)
    kept = [one.reason for one in report.loops[0].unfused]
    assert report.converted and report.fused, str(report)
    assert kept == (["no rule of torch.vmap"] if kind is Direct else []), str(report)
    assert 0.02 < float(original(x).detach().mean()) < 0.9
    for one in (model, original):
        one.leaves = outputs_and_gradients(one, [*one.parameters(), x], x)
    assert torch.equal(model.leaves[0], original.leaves[0])
    assert_same("gradients", model.leaves, original.leaves, tolerance=1e-9)


# ------------------------------------------------------------------------------- what is refused
CONSTANT = torch.full((8,), 0.5, dtype=torch.float64)
traced = torch.jit.trace(lambda x: x * CONSTANT, torch.ones(3, 8, dtype=torch.float64))


@torch.jit.ignore
def plain(x: Tensor) -> Tensor:
    return x * 0.5


@torch.jit.script
def calls_python(x: Tensor) -> Tensor:
    return plain(x)


@torch.jit.script
def prints(x: Tensor) -> Tensor:
    print("x")
    return x * 0.5


@torch.jit.script
def branches(x: Tensor) -> Tensor:
    return x * 0.5 if bool(x.sum() > 8) else x * 0.25


@torch.jit.script
def random(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


@torch.jit.script
def writes(x: Tensor) -> Tensor:
    return x.mul_(0.5)


@torch.jit.script
def integrate(x: Tensor) -> Tensor:
    v = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
    return v


def run(function: Any) -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1:])
        for x_t in x:
            v = 0.5 * v + function(x_t + z @ w)
            z = ScriptedSpike.apply(v - 0.5)
        return z

    torch.manual_seed(1)
    x, w = (torch.rand(9, 3, 8) < 0.4).double(), torch.rand(8, 8).double() / 8
    assert torch.equal(lsnn_ext.fuse(loop, (x, w))(x, w), loop(x, w))


@pytest.mark.parametrize("function, text", [
    (traced, "TorchScript that does nothing but compute"),
    (calls_python, "TorchScript that does nothing but compute"),
    (prints, "TorchScript that does nothing but compute"),
    (branches, "no branch that depends on numbers"),
    (random, "random numbers that depend on no number")],
    ids=["traced", "calls_python", "prints", "branches", "random"])
def test_refused(function: Any, text: str) -> None:
    with pytest.raises(lsnn_ext.Refused, match=text):
        run(function)


def test_a_loop_inside_of_a_script_is_named() -> None:
    with pytest.raises(lsnn_ext.Refused, match=r"surrogate\.py:\d+: a loop inside of torch.jit"):
        lsnn_ext.fuse(lambda x: integrate(x) * 2, torch.rand(9, 3, 8))


def test_write_in_place_of_a_script() -> None:
    run(writes)


def test_other_threads_pass_through() -> None:
    call, seen = torch.jit.ScriptFunction.__call__, SimpleQueue[Tensor]()

    def in_thread() -> None:
        seen.put(heaviside(torch.ones(3)))

    def function(x: Tensor) -> Tensor:
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        return heaviside(x)

    x = torch.rand(3, 8)
    _, recording = record(function, (x,), {}, Origins(function, (x,), {}))
    assert torch.jit.ScriptFunction.__call__ == call
    assert seen.qsize() == 1 and bool((seen.get() == 1).all())
    assert not isinstance(recording, lsnn_ext.Refused) and len(recording.calls) == 1
