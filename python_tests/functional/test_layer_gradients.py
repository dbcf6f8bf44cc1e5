"""functional.layer equals projection, recurrence and readout in turn."""
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import VIEWS, assert_all_same, assert_same
from layers import NEURON, apart, inside, problem, run
from lsnn_ext import ALIF, LSNN, LeakyReadout, functional, reference
from lsnn_ext.functional import Layered, pack_spikes
from operator_calls import Calls

LEAVES = ("x", "w_in", "w_rec", "bias", "w_out", "readout_state")
LEARN = [*((name,) for name in LEAVES), *(tuple(n for n in LEAVES if n != name) for name in LEAVES)]


FORMS: dict[str, Callable[..., Layered]] = {
    "numbers": inside, "bits": lambda x, **given: inside(pack_spikes(x), **given),
    "checkpoints": partial(inside, checkpoint_every=16)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("learn", LEARN, ids="-".join)
def test_whatever_learns(learn: tuple[str, ...], form: str) -> None:
    """Each tensor alone, and all but one of them: what is frozen takes nothing from the others."""
    given = problem(torch.float64)
    with Calls() as calls:
        got = run(FORMS[form], given, learn)
    args = calls.forward[0].given
    assert len(calls.forward) == 1
    assert args["w_in"] is not None and args["w_out"] is not None
    want = run(apart, given, learn)
    assert all(bool(want[f"d {name}"].any()) for name in learn)
    assert_same("spikes", got["spikes"], want["spikes"])
    assert_all_same(got, want, tolerance=1e-11)


@pytest.mark.parametrize("dynamics", ["lsnn", "srnn", "sinabs_sub"])
@pytest.mark.parametrize("form", ["numbers", "checkpoints"])
def test_smooth_spikes(form: str, dynamics: str) -> None:
    """Spikes that are real numbers reach the readout, and its weights, as such."""
    given = problem(torch.float64)
    more: dict[str, Any] = {"dynamics": dynamics, "smooth": True}
    with Calls() as calls:
        got = run(partial(FORMS[form], **more), given)
    assert calls.forward[0].given["w_out"] is not None
    want = run(partial(apart, **more), given)
    partly = (want["spikes"] != 0) & (want["spikes"] != 1)
    assert 0.01 < float(partly.double().mean())
    assert_all_same(got, want, tolerance=1e-10)


# ------------------------------------------------------------------------------------------ layouts
@pytest.mark.parametrize(("name", "layout"), [
    *((name, "strided") for name in LEAVES),
    *((name, "swapped") for name in LEAVES if name != "bias")])
def test_tensors_in_any_layout(name: str, layout: str) -> None:
    given = problem(torch.float64)
    want = run(inside, given)
    with Calls() as calls:
        got = run(lambda **leaves: inside(**(leaves | {name: VIEWS[layout](leaves[name])})), given)
    args = calls.forward[0].given
    assert args["w_in"] is not None and args["w_out"] is not None
    assert_same("spikes", got["spikes"], want["spikes"])
    assert_all_same(got, want, tolerance=1e-12)


@pytest.mark.parametrize("name", ["readout", "readout_state", "spikes"])
@pytest.mark.parametrize("layout", VIEWS)
def test_gradients_in_any_layout(layout: str, name: str) -> None:
    """Gradients that arrive need not be contiguous, as those of a sum over a row."""
    leaves = {key: value.requires_grad_() for key, value in problem(torch.float64).items()}
    output = getattr(inside(**leaves), name)
    drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(4),
                        dtype=torch.float64)
    arriving = VIEWS[layout](drawn)
    assert not arriving.is_contiguous()
    got, want = (torch.autograd.grad(output, list(leaves.values()), g, retain_graph=True,
                                     allow_unused=True)
                 for g in (arriving, arriving.contiguous()))
    for key, one, other in zip(leaves, got, want, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_same(key, one, other)
    assert want[0] is not None and bool(want[0].any())


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
