"""Projection and readout inside the operator, and checkpoints, change no result."""
from functools import partial
from typing import Any

import pytest
import torch
from torch.library import opcheck

from compare import assert_all_same, assert_same, changed
from layers import FUSED, NEURON, B, I, N, O, apart, inside, problem, run
from lsnn_ext import functional
from lsnn_ext._core.arguments import resolve_checkpoint
from operator_calls import Calls


@pytest.mark.parametrize("dtype", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("share", [0.05, 0.9], ids=["sparse", "dense"])
def test_inside_is_as_apart(dtype: torch.dtype, share: float) -> None:
    given = problem(dtype, share)
    with Calls() as calls:
        got = run(inside, given)
    args = calls.forward[0].given
    assert len(calls.forward) == 1
    # w_in: only inputs that are mostly zero are projected inside
    assert (args["w_in"] is not None) == (share < 0.5)
    assert args["w_out"] is not None
    want = run(apart, given)
    assert 0.01 < float(want["spikes"].mean()) < 0.5
    assert torch.equal(got["spikes"], want["spikes"])
    assert_all_same(got, want, tolerance=1e-4)


def test_real_inputs_and_no_bias() -> None:
    given = problem(torch.float64)
    given["x"] = given["x"] * torch.tensor([1.0, 0.5, -2.0, 0.25, 1.0]).repeat(5)[:I]
    del given["bias"]
    got = run(lambda **k: inside(bias=None, **k), given)  # type: ignore[arg-type]
    want = run(lambda **k: apart(bias=None, **k), given)  # type: ignore[arg-type]
    assert torch.equal(got["spikes"], want["spikes"])
    assert_all_same(got, want, tolerance=1e-7)


@pytest.mark.parametrize("checkpoint_every", [1, 16, 33, 1000])
def test_checkpoints_change_no_bit(checkpoint_every: int) -> None:
    given = problem(torch.float32)
    want = run(inside, given)
    with Calls() as calls:
        got = run(partial(inside, checkpoint_every=checkpoint_every), given)
    checkpoint = calls.forward[0].given["checkpoint"]
    assert checkpoint >= 16 and checkpoint % 16 == 0
    assert_all_same(got, want)


def test_budget() -> None:
    T, B, N = 20000, 4, 1024
    assert resolve_checkpoint("1 GB", T, B, N, 4) == 0  # 4 bytes per neuron-step and a little
    assert 64 <= resolve_checkpoint("60 MB", T, B, N, 4) <= 1024
    with pytest.raises(ValueError, match=r"checkpoint_every: expected \d+ MB or more .*'5 MB'"):
        resolve_checkpoint("5 MB", T, B, N, 4)
    x, w = torch.zeros(1, 4, 5), torch.zeros(5, 5)
    for wrong in ("much", "5", "-3 MB", "1.2.3 GB", 0, -1, True, 2.5):
        with pytest.raises(ValueError, match="checkpoint_every: expected"):
            functional.alif(x, w, alpha=0.9, theta=1.0, checkpoint_every=wrong)


def test_spikes_are_not_written_unless_asked_for() -> None:
    given = problem(torch.float32)
    out = inside(**given, spikes=False)
    assert out.spikes is None and out.readout is not None
    assert_same("readout", out.readout, inside(**given).readout)


def test_operator_checks() -> None:
    given = problem(torch.float32)
    given["w_rec"].requires_grad_()
    with Calls() as calls:
        inside(**given)
    for checkpoint in (0, 32):
        operator, args, _ = calls.forward[0]
        opcheck(operator, changed(operator, args, checkpoint=checkpoint),
                test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("change", "message"), [
    ({"x": torch.zeros(3, 4)}, r"x: expected shape \(T, B, I\), got \(3, 4\)"),
    ({"w_out": torch.zeros(2, 3)}, r"w_out: expected shape \(O, 300\), got \(2, 3\)"),
    ({"k_out": 1.5}, "k_out: expected a number from 0 to 1, got 1.5"),
    ({"w_in": torch.zeros(N, I + 1)}, "w_in: expected shape"),
    ({"bias": torch.zeros(N + 1)}, "bias: expected shape"),
    ({"readout_state": torch.zeros(B, O + 1)}, r"readout_state: expected shape \(17, 7\), got "
                                               r"\(17, 8\)")])
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given = problem(torch.float32)
    with pytest.raises(ValueError, match=message):
        functional.layer(**(given | change), **NEURON)


def test_unknown_names() -> None:
    given = problem(torch.float32)
    with pytest.raises(TypeError, match="^tau: expected a keyword argument of layer"):
        functional.layer(**given, tau=3.0, **NEURON)
    with pytest.raises(TypeError, match="theta: expected"):
        functional.layer(**given, alpha=0.9)


def test_reduced_precision() -> None:
    """torch's switch lets the backward product round to bfloat16, where that is faster; spikes stay
    what they are where no product of torch's makes the current."""
    given = problem(torch.float32)
    torch.set_float32_matmul_precision("medium")
    got = run(inside, given)
    torch.set_float32_matmul_precision("highest")
    want = run(inside, given)
    assert torch.equal(got["spikes"], want["spikes"]) and torch.equal(
        got["readout"], want["readout"])
    assert_all_same(got, want, tolerance=0.02)
    for precision, parts in (("medium", 1), ("high", 2), ("highest", 0)):
        torch.set_float32_matmul_precision(precision)
        with Calls() as calls:
            run(inside, given)
        assert calls.last["alif_backward"].given["bf16_parts"] == parts
