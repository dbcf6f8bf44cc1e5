"""Functions of TorchScript: inside of a surrogate, and called by the loop."""
import math
import threading
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
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


class Resonator(nn.Module):
    """Two states that rotate, a threshold that rises with each spike."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6 + 8, 8)
        self.linear.weight.data.mul_(30.0)
        self.omega = nn.Parameter(torch.empty(8).uniform_(5.0, 10.0))

    def forward(self, x: Tensor) -> Tensor:
        u = v = z = q = x.new_zeros(x.shape[1], 8)
        spikes = []
        for x_t in x:
            current = self.linear(torch.cat((x_t, z), 1))
            b = (torch.sqrt(1 - (0.01 * self.omega) ** 2) - 1) / 0.01 - q
            u, v = (u + 0.01 * (b * u - self.omega * v + current),
                    v + 0.01 * (self.omega * u + b * v))
            z = ScriptedSpike.apply(u - 0.1 - q)
            q = 0.9 * q + z
            spikes.append(z)
        return torch.stack(spikes)


class Direct(Resonator):
    """The surrogate gradient as a difference of detached values, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        del self.omega

    def forward(self, x: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1], 8)
        spikes = []
        for x_t in x:
            v = 0.9 * v + 0.03 * self.linear(torch.cat((x_t, z), 1)) - z.detach()
            slope = bell(v - 1.0, width=0.5).detach() * v
            z = slope - slope.detach() + heaviside(v - 1.0).detach()
            spikes.append(bell(z))
        return torch.stack(spikes)


@pytest.mark.parametrize("kind", [Resonator, Direct])
def test_scripted_functions_are_fused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    original = kind().double()
    x = (torch.rand(30, 3, 6) < 0.4).double().requires_grad_()
    want = original(x)
    model, report = convert(original, x)
    kept = [one.reason for one in report.loops[0].unfused]
    assert report.converted and report.fused, str(report)
    assert kept == (["no rule of torch.vmap"] if kind is Direct else []), str(report)
    assert 0.02 < float(want.detach().mean()) < 0.9
    torch.manual_seed(1)
    weight = torch.rand_like(want)
    wanted = torch.autograd.grad((want * weight).sum(), [*model.parameters(), x])
    got = model(x)
    gradients = torch.autograd.grad((got * weight).sum(), [*model.parameters(), x])
    assert torch.equal(got, want)
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-9 * float(other.abs().max()))


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


def run(function: Any, x: Tensor) -> Any:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        v = z = x.new_zeros(x.shape[1:])
        spikes = []
        for x_t in x:
            v = 0.5 * v + function(x_t + z @ w)
            z = ScriptedSpike.apply(v - 0.5)
            spikes.append(z)
        return torch.stack(spikes)

    torch.manual_seed(1)
    w = torch.rand(8, 8).double() / 8
    fused = lsnn_ext.fuse(loop, (x, w))
    assert torch.equal(fused(x, w), loop(x, w))
    return fused


@pytest.mark.parametrize("function, text", [
    (traced, "TorchScript that does nothing but compute"),
    (calls_python, "TorchScript that does nothing but compute"),
    (prints, "TorchScript that does nothing but compute"),
    (branches, "no branch that depends on numbers"),
    (random, "random numbers that depend on no number")],
    ids=["traced", "calls_python", "prints", "branches", "random"])
def test_refused(function: Any, text: str) -> None:
    x = (torch.rand(9, 3, 8) < 0.4).double()
    with pytest.raises(lsnn_ext.Refused, match=text):
        run(function, x)


def test_write_in_place_of_a_script() -> None:
    run(writes, (torch.rand(9, 3, 8) < 0.4).double())


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
