"""Steps that no program expresses are refused with their line."""
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsnn_ext.codegen.trace import StepError
from surrogates import Triangle
from traced_steps import trace_step


def spike_with(slope: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """A spike with this slope of what it is a function of."""
    class Spike(Triangle):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * slope(ctx.saved_tensors[0])  # REFUSED

    return Spike.apply


WEIGHT = torch.nn.Parameter(torch.ones(3))
LARGE = torch.rand(4, 4)


class Counter:
    calls = 0

    def __call__(self, c, v, z):
        self.calls += 1
        return v + self.calls * c, z


REFUSED: dict[str, tuple[Callable, str]] = {
    "matmul": (lambda v: v @ v.t(), "aten.t"),
    "mm": (lambda v: torch.mm(v, v), "aten.mm"),
    "mean": (lambda v: v - v.mean(), "aten.mean"),
    "sum": (lambda v: v - v.sum(1, keepdim=True), "aten.sum"),
    "softmax": (lambda v: v.softmax(-1), "softmax"),
    "index": (lambda v: v[:, :1] + v, "aten.slice"),
    "roll": (lambda v: v.roll(1, 1), "aten.roll"),
    "masked read": (lambda v: v[v > 0], "aten.index"),
    "masked write of rows": (lambda v: torch.zeros_like(v).masked_scatter(v > 0, v), "scatter"),
    "cumsum": (lambda v: v.cumsum(0), "aten.cumsum"),
    "bits of integers": (lambda v: v - (2 * (v > 0).int() & 3), "aten.bitwise_and of torch.int32"),
    "small integers": (lambda v: v - (1 - 2 * (v > 0).to(torch.int8)), "aten.mul of torch.int8"),
    "unbounded integers": (lambda v: v.long().to(v), "got a cast to torch.int64"),
    "sinh": (torch.sinh, "aten.sinh"),
    "exp2": (torch.exp2, "aten.exp2"),
    "decimals": (lambda v: v.round(decimals=2), "aten.round.decimals"),
    "rand": (lambda v: v + torch.rand_like(v), "no random numbers, got aten.rand_like"),
    "dropout": (lambda v: F.dropout(v, 0.5), "no random numbers"),
    "bool": (lambda v: v if v.sum() > 0 else -v, "aten.sum"),
    "branch": (lambda v: v if v[0, 0] > 0 else -v, "aten.select"),
    "equal": (lambda v: v if torch.equal(v, v) else -v, "aten.equal"),
    "item": (lambda v: v * v.relu().item(), "RuntimeError: a Tensor with"),
    "float": (lambda v: v * float(v), "ValueError"),
    "numpy": (lambda v: v * torch.from_numpy(v.detach().numpy()), "to numpy"),
    "half": (lambda v: v.half().to(v), "torch.float16"),
    "double": (lambda v: (v.double() * 2).to(v), "torch.float64"),
    "wide tensor": (lambda v: v * torch.ones(v.shape[1], dtype=torch.float64), "torch.float64"),
    "complex": (lambda v: torch.exp(torch.complex(v, v)).real, "operators that complex rows have"),
    "long": (lambda v: (v.long() % 3).to(v), "torch.int64"),
    "shape": (lambda v: v.unsqueeze(0) + v.unsqueeze(1), "values of shape"),
    "parameter": (lambda v: v * WEIGHT, "pass it as a keyword-only argument"),
    "large": (lambda v: v * LARGE, r"closed-over tensors of shape \(\) or \(N,\)"),
    "error": (lambda v: v * torch.ones(3, 4), "values of shape"),
    "attribute": (lambda v: v.no_such_attribute, "AttributeError"),
    "branch in backward": (spike_with(lambda x: 0 if x.abs().max() > 10 else 1), "aten.max"),
    "any in backward": (spike_with(lambda x: 2 if (x > 0).any() else 1), "aten.any"),
    "numpy in backward": (spike_with(lambda x: torch.from_numpy(abs(x.numpy()))), "numpy"),
    "sum in backward": (spike_with(torch.sum), "aten.mul of a sum over the batch")}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_line(name: str) -> None:
    function, text = REFUSED[name]

    def step(c, v, z):
        v = 0.9 * v + c
        v = function(v)  # REFUSED
        return v * 1, z

    with pytest.raises(StepError, match=text) as raised:
        trace_step(step)
    message = str(raised.value)
    assert message.startswith("step: expected ")
    found = re.search(r"in test_trace_refused.py line (\d+) \(`(.*)`\)$", message)
    assert found and "REFUSED" in found[2], message
    assert "REFUSED" in open(__file__).read().splitlines()[int(found[1]) - 1]


def refuse(step: Callable, text: str, k: Any = None, dtype: torch.dtype = torch.float32) -> None:
    """The message has this text before it shows the line of the step."""
    with pytest.raises(StepError, match=rf"^[^`]*({text})"):
        trace_step(step, dtype, {} if k is None else {"k": k})


def test_refused_results_and_coefficients() -> None:
    refuse(lambda c, v, z: (v, v > 0), "got the spike of torch.bool; cast it")
    refuse(lambda c, v, z: (v, (v > 0).float()), "got the spike of torch.float32",
           dtype=torch.float64)
    refuse(lambda c, v, z: (v, 0.0), "got the spike of type float")
    refuse(lambda c, v, z: v, "expected 2 results, got one")
    refuse(lambda c, v, z: (v, v, z), "expected 2 results, got 3")
    refuse(lambda c, v: (v, v), "TypeError")
    for k, text in ((torch.ones(2, 3, 4), "k: expected a tensor of shape"),
                    (torch.ones(3).half(), "k: expected float32"), ("a", "k: expected a number"),
                    (torch.ones(3).double(), "of torch.float64")):
        refuse(lambda c, v, z, *, k: (v * k, z), text, k)
    refuse(lambda c, v, z, *, k: (v * math.exp(k), z), "no float", 1.0)
    refuse(lambda c, v, z, *, k: (v * (2 if k > 1 else 3), z), "no branch", 1.0)
    refuse(lambda c, v, z, *, k: (v * k.add_(1), z), "no write in place|leaf", torch.ones(3))
    refuse(lambda c, v, z, *, k: (v * k.detach().add_(1), z), "no write in place", torch.ones(3))
    row = torch.ones(3)
    refuse(lambda c, v, z: (v * row.add_(0), z), "no write in place")
    refuse(Counter(), "got others; the size or a counter enters a value")
    refuse(lambda c, v, z: (v / v.shape[0], z), "the size or a counter enters a value")
    refuse(lambda c, v, z: (v if v.shape[0] > 100 else -v, z), "the size or a counter enters")
    refuse(lambda c, v, z, *, k: (v * k ** c.shape[1], z), "the size or a counter enters", 2.0)
    refuse(lambda c, v, z: (v, z), "float32 or float64", dtype=torch.float16)


def test_refused_although_the_step_catches_errors() -> None:
    def step(c, v, z):
        try:
            gain = v[0, 0].item()
        except RuntimeError:
            gain = 1.0
        return v * gain, z

    refuse(step, "aten.select")


def test_sums_of_the_step_are_not_gradients() -> None:
    class Expanded(Triangle):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g.sum(0, keepdim=True).expand_as(g)

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, k: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
            ctx.change = change
            return x * k

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return g, ctx.change(g.sum(0)), None

    refuse(lambda c, v, z: (Expanded.apply(v + c), z), "aten.expand of a sum over the batch")
    for name, change in (("add", lambda total: total + 1), ("mul", lambda total: total * total),
                         ("div", lambda total: torch.div(total, 2, rounding_mode="trunc"))):
        refuse(lambda c, v, z, *, k, change=change: (Summed.apply(v, k, change), z),
               f"aten.{name} of a sum over the batch", torch.ones(3))
