"""functional.layer, and functional.alif with a projection, equal projection, recurrence and readout
in turn; checkpoints change no result."""
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from compare import assert_all_same, assert_same, changed
from layers import FUSED, NEURON, B, I, N, O, apart, inside, problem, run
from lsnn_ext import ALIF, LSNN, LeakyReadout, functional, reference
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


# ------------------------------------------------------------------------------------------- biases
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.9], ids=["sparse", "dense"])
def test_bias_in_half_precision(dtype: torch.dtype, share: float) -> None:
    """Short sums of multiples of 1/8 are exact: the spikes are those of float32."""
    random = torch.Generator().manual_seed(3)

    def eighths(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=random) / 8

    given = {"w_in": eighths(40, 5), "w_rec": eighths(40, 40) / 8, "bias": eighths(40)}
    x = (torch.rand(30, 4, 5, generator=random) < share).float()
    want: Any = reference.alif(torch.nn.functional.linear(x, given["w_in"], given["bias"]),
                               given["w_rec"], **NEURON)
    leaves = {name: value.to(dtype).requires_grad_() for name, value in given.items()}
    out = functional.layer(x.to(dtype), **leaves, **NEURON)
    assert out.spikes is not None and 0.01 < float(want[0].mean()) < 0.5
    assert_same("spikes", out.spikes, want[0].to(dtype))
    assert_same("v", out.state.v, want[1].v)
    out.spikes.sum().backward()
    assert leaves["bias"].grad is not None and bool(leaves["bias"].grad.any())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["ALIF", "LSNN", "LeakyReadout"])
def test_biases_of_modules_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Without inputs and spikes, only biases drive the membranes and the readout."""
    torch.manual_seed(0)
    silent: dict[str, Any] = {"threshold": 100.0}  # a spike more or less would hide a bias
    net: Any = {"ALIF": lambda: ALIF(5, 40, **silent),
                "LSNN": lambda: LSNN(5, 20, 20, 3, bias=True, **silent),
                "LeakyReadout": lambda: LeakyReadout(5, 3)}[kind]()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "bias" in name:
                value.copy_(torch.arange(value.numel()) % 9 / 8)
    x = torch.zeros(30, 4, 5)
    want = net(x)
    for module in (net, net.to(dtype)):
        got = module(x.to(dtype))
        if kind != "ALIF":
            assert bool(want[0].any())
            assert_same("y", got[0], want[0])
        if kind != "LeakyReadout":
            v, want_v = (end if kind == "ALIF" else end.neurons for end in (got[1], want[1]))
            assert bool(want_v.v.any())
            assert_same("v", v.v, want_v.v)


# ------------------------------------------------------------------------- alif with a projection
@pytest.mark.parametrize(("share", "fused"), [(0.1, True), (1.0, False)])
def test_alif_takes_the_ways_of_a_layer(share: float, fused: bool) -> None:
    drawn = problem(torch.float32, share)
    with Calls() as calls:
        functional.alif(drawn["x"], drawn["w_rec"], w_in=drawn["w_in"], **NEURON)
    call, = calls.forward
    assert (call.given.get("w_in") is not None) == fused


BAD = [
    (lambda g: {"bias": g["bias"]}, ValueError, "bias: expected w_in with it, got None"),
    (lambda g: {"w_in": g["w_in"][:, 1:]}, ValueError,
     r"w_in: expected shape \(N, 23\), got \(300, 22\)"),
    (lambda g: {"w_in": [1.0]}, TypeError, "w_in: expected a tensor, got list"),
    (lambda g: {"w_in": g["w_in"].to("meta")}, ValueError,
     "w_in: expected device cpu as current, got meta"),
    (lambda g: {"w_in": g["w_in"], "bias": g["bias"][1:]}, ValueError,
     r"bias: expected shape \(300,\)"),
    (lambda g: {"w_in": g["w_in"], "current": g["x"][0]}, ValueError,
     r"current: expected shape \(T, B, I\)"),
    (lambda g: {"w_in": g["w_in"][1:]}, ValueError, r"w_rec: expected shape \(299, 299\)")]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[row[2] for row in BAD])
def test_alif_refuses_bad_input(change: Any, kind: type[Exception], message: str) -> None:
    given = problem(torch.float32)
    arguments = {"current": given["x"], "w_rec": given["w_rec"], **change(given)}
    with pytest.raises(kind, match=message):
        functional.alif(**arguments, **NEURON)
