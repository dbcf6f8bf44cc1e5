"""Random calls of functional, see fuzz_functions.py: the kernels compute what the reference does,
by each product of spikes and weights, whatever the layouts and whatever follows the last step.

LSNN_FUNCTION_CASES sets the number of calls (1000).
"""
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fuzz_functions
from compare import assert_same
from fuzz_calls import Call, Draw
from fuzz_judge import _given, _tensors
from fuzz_mutations import LAYOUTS, mapped
from lsnn_ext import _ops, functional, use_reference
from operator_calls import Calls, needs_compiled

pytestmark = needs_compiled
CASES = int(os.environ.get("LSNN_FUNCTION_CASES", "1000"))
MAKERS: list[Callable[[Draw], Call]] = [
    *[fuzz_functions.alif] * 3, *[fuzz_functions.layer] * 5, fuzz_functions.linear,
    fuzz_functions.leaky_readout]


class Plain(Draw):
    """Draws sizes of tensors that have memory, often so many that mostly zero inputs meet their
    weights inside, and numbers in float64."""

    def sizes(self) -> dict[str, int]:
        size = super().sizes()
        while self.odd:
            self.odd = False
            size = super().sizes()
        many = {"T": 33, "B": self.one_of(7, 12), "N": self.one_of(130, 192), "I": 100}
        return size | many if self.chance(0.2) else size

    def one_of(self, *values: Any) -> Any:
        value = super().one_of(*values)
        return torch.float64 if isinstance(value, torch.dtype) else value


def _draw(seed: int) -> tuple[Draw, Call]:
    """A call in which nothing is rounded on purpose."""
    for attempt in range(100):
        d = Plain(seed, attempt)
        call = d.one_of(*MAKERS)(d)
        if not d.odd and call.args.get("saved_dtype") is None:
            break
    if "state" in call.args:
        call.args["state"].r.requires_grad_(False)  # a counter
    name = "current" if "current" in call.args else "x"
    x, lengths = call.args[name], call.args.get("lengths")
    if isinstance(x, Tensor) and lengths is not None:
        runs = (torch.arange(len(x))[:, None] < lengths)[:, :, None]
        call.args[name] = x.detach().where(runs, torch.nan).requires_grad_(x.requires_grad)

    def laid_out(t: Tensor) -> Tensor:
        if not t.is_floating_point() or d.chance(0.7):
            return t
        return d.one_of(*LAYOUTS)(d, t.detach()).requires_grad_(t.requires_grad)

    call.args = mapped(call.args, laid_out)
    return d, call


def _run(call: Call) -> list[Tensor]:
    """Results, and gradients of a weighted sum of all that have one, which are not contiguous."""
    found = list(_tensors(call.function(**call.args)))
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(one.shape[::-1], generator=draw, dtype=torch.float64).permute(
        *reversed(range(one.dim()))) for one in found]
    places = [place for place, one in enumerate(found) if one.requires_grad]
    leaves = [one for one in _given(call) if one.requires_grad]
    if not places:
        return [*found, *map(torch.zeros_like, leaves)]
    return [*found, *torch.autograd.grad([found[place] for place in places], leaves,
                                         [weights[place] for place in places], allow_unused=True,
                                         materialize_grads=True)]


def _apart(w_in: Tensor, w_rec: Tensor | None, x: Any = None, current: Any = None,
           bias: Tensor | None = None, w_out: Tensor | None = None, k_out: Any = 0.0,
           readout_state: Tensor | None = None, b_out: Tensor | float = 0.0,
           spikes: bool | str = True, lengths: Any = None, **neuron: Any) -> functional.Layered:
    """A layer, or alif with a projection, in three parts."""
    x = current if x is None else x
    x = x.numbers() if isinstance(x, functional.PackedSpikes) else x
    each = torch.full(x.shape[1:2], len(x)) if lengths is None else lengths
    runs = (torch.arange(len(x))[:, None] < each)[:, :, None]
    projected = torch.nn.functional.linear(x.where(runs, 0.0), w_in, bias)
    z, state, *traces = functional.alif(projected, w_rec, lengths=lengths, **neuron)
    y = p = None
    if w_out is not None:
        y, p = functional.leaky_readout(z, w_out, k_out, readout_state, lengths=lengths)
        y = (y + b_out).where(runs, 0.0)
    packed = functional.pack_spikes(z) if spikes == "bits" else None
    shown = z if packed is None and (spikes or w_out is None) else None
    return functional.Layered(shown, state, traces[0] if traces else None, y, p, packed)


@pytest.mark.parametrize("first", range(0, CASES, 20))
def test_kernels_and_reference(first: int) -> None:
    for seed in range(first, first + 20):
        d, call = _draw(seed)
        with _ops.forced(product=d.one_of("automatic", "dense", "active", "sparse")):
            got = _run(call)
        if "w_in" in call.args:
            call.function = _apart
        with use_reference(), Calls() as calls:
            want = _run(call)
        assert not calls.made
        for place, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(f"case {seed}, {call.name}, {place}", one, other, tolerance=1e-9)
