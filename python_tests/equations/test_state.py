"""State is explicit: two calls that pass it on equal one call, bit for bit."""
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case, Problem, build
from compare import assert_all_same, assert_same
from lsnn_ext import functional
from lsnn_ext.models import MODELS

BUSY = Case("busy", T=40, N=33, delay="each", refractory=5, state="real")


def _in_chunks(problem: Problem, lengths: list[int],
               leaves: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Everything that comes out when the sequence is cut into pieces of these lengths."""
    arguments: dict[str, Any] = problem.arguments(leaves)
    spikes, traces = [], []
    for current in arguments.pop("current").split(lengths):
        z, arguments["state"], trace = functional.alif(current, **arguments, trace=True)
        spikes.append(z)
        traces.append(trace)
    return {"spikes": torch.cat(spikes),
            **{f"trace.{name}": torch.cat([getattr(trace, name) for trace in traces])
               for name in traces[0]._fields},
            **{f"state.{name}": value for name, value in arguments["state"]._asdict().items()}}


@pytest.mark.parametrize(("changes", "dtype", "lengths"), [
    *(({"delay": delay}, dtype, lengths) for delay in ("none", "one", "each", "kernel")
      for dtype in (torch.float64, torch.float32)
      for lengths in ([40], [0, 40], [40, 0], [1, 39], [3, 2, 35], [17, 23], [1] * 40)),
    *(({"dynamics": dynamics}, torch.float32, [13, 27]) for dynamics in MODELS)], ids=str)
def test_chunks_equal_one_call(changes: Any, dtype: torch.dtype, lengths: list[int]) -> None:
    problem = build(replace(BUSY, **changes), dtype)
    assert_all_same(_in_chunks(problem, lengths), problem.outputs(functional.alif))


@pytest.mark.parametrize("dynamics", MODELS)
def test_gradients_pass_between_chunks(dynamics: str) -> None:
    problem = build(replace(BUSY, dynamics=dynamics))
    _, want = problem.run(functional.alif)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in problem.leaves.items()}
    outputs = _in_chunks(problem, [2, 13, 25], leaves)
    found = torch.autograd.grad([outputs[name] for name in problem.weights], list(leaves.values()),
                                list(problem.weights.values()), allow_unused=True)
    got = {name: torch.zeros_like(leaf) if value is None else value
           for (name, leaf), value in zip(leaves.items(), found, strict=True)}
    assert_all_same(got, want, tolerance=1e-11)


def test_no_state_is_all_zeros() -> None:
    problem = build(replace(BUSY, state="none"), torch.float32)
    want, zero = problem.outputs(functional.alif), torch.zeros(3, 33)
    problem.fixed["state"] = functional.State(zero, zero, zero, zero, torch.zeros(4, 3, 33))
    assert_all_same(problem.outputs(functional.alif), want)


def test_more_past_steps_than_needed() -> None:
    """The newest are used, and as many as the delays need come back."""
    problem = build(replace(BUSY, delay="one"), torch.float32)
    want, arguments = problem.outputs(functional.alif), problem.arguments()
    older = torch.full((2, 3, 33), 7.0)
    arguments["state"] = arguments["state"]._replace(z=torch.cat([arguments["state"].z, older]))
    spikes, state = functional.alif(**arguments)
    assert_same("spikes", spikes, want["spikes"])
    assert_same("state.z", state.z, want["state.z"])


@pytest.mark.parametrize("n", [0, 1, 5])
def test_refractory_steps_are_silent(n: int) -> None:
    """Equation (9): between two spikes of a neuron lie at least n steps, and some lie exactly n."""
    problem = build(replace(BUSY, refractory=n, state="none", T=200), torch.float32)
    spikes = problem.outputs(functional.alif)["spikes"].flatten(1).bool()
    gaps = torch.cat(
        [times[1:] - times[:-1] for times in (column.nonzero().flatten() for column in spikes.T)])
    assert int(gaps.min()) == n + 1
