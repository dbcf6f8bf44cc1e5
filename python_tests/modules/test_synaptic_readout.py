"""A readout with a synaptic current in front of its membrane: values, gradients, forms of input."""
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from compare import assert_same, flat
from lsnn_ext import ReadoutState, use_reference
from module_kinds import run_steps
from synaptic_readouts import BOTH, B, N, O, T, drawn, loop_of, make, spikes, start

KINDS: dict[str, dict[str, Any]] = {
    "fixed": {}, "dt": {"dt": 0.5}, "without-bias": {"bias": False}, "no-decay": {"tau_syn": 0},
    "no-filter": {"tau": None}, "neither": {"tau": None, "tau_syn": 0},
    "tau": {"learn": "tau"}, "tau_syn": {"learn": "tau_syn", "per_neuron": True},
    "both": {"learn": BOTH}, "each": {"learn": BOTH, "per_neuron": True},
    "tau-of-one": {"tau_syn": 0.0, "learn": "tau", "per_neuron": True}}


# ------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("reference", [False, True], ids=["kernels", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_loop(kind: str, reference: bool,
                                                    from_zero: bool) -> None:
    made = make(**KINDS[kind])
    found = []
    for call in (made, partial(loop_of, made)):
        x = spikes(T, B, N).requires_grad_()
        state = None if from_zero else start().map(Tensor.requires_grad_)
        with use_reference() if reference else nullcontext():
            y, end = call(x, state)
        assert type(end) is ReadoutState
        loss = sum((leaf * drawn(*leaf.shape, seed=6)).sum() for leaf in (y, *end))
        leaves = [x, *made.parameters(), *(state or ())]
        found.append(([y, *end], torch.autograd.grad(loss, leaves)))
    assert_same("value", found[0][0], found[1][0], tolerance=1e-12)
    for got, want in zip(found[0][1], found[1][1], strict=True):
        # of a current without decay into the next step, the first one counts for nothing
        assert bool(want.any()) or made.tau_syn == 0 or made.tau is None
        assert_same("gradient", got, want, tolerance=1e-9)


def test_as_other_programs_compute_it() -> None:
    """norse's LILinearCell, the output of SpyTorch's tutorials and that of Yin et al."""
    x, made = spikes(T, B, N), make(bias=False)
    y, end = made(x)
    h = x @ made.weight.detach().T
    # norse: Euler steps, the membrane reads the current of the step before
    rate, rate_syn = 1 - math.exp(-1 / 7.0), 1 - math.exp(-1 / 3.0)
    assert math.isclose(-1 / math.log(1 - rate), 7.0)
    v, i, found = torch.zeros(B, O).double(), torch.zeros(B, O).double(), []
    for h_t in h:
        v = v + rate * (i - v)
        i = i - rate_syn * i + h_t
        found.append(v)
    assert not found[0].any()
    assert_same("norse", torch.stack(found[1:]), y[:-1].detach(), tolerance=1e-12)
    assert_same("its current", i, end.i.detach(), tolerance=1e-12)
    alpha, beta = math.exp(-1 / 3.0), math.exp(-1 / 7.0)
    flt, out, found = torch.zeros(B, O).double(), torch.zeros(B, O).double(), []
    for h_t in h:
        flt, out = alpha * flt + h_t, beta * out + flt
        found.append(out)
    assert_same("SpyTorch", torch.stack(found[1:]), y[:-1].detach() / (1 - beta), tolerance=1e-12)
    made = make(tau_syn=0)
    mem, found = torch.zeros(B, O).double(), []
    for h_t in h:
        mem = mem * beta + (1 - beta) * (h_t + made.bias.detach())
        found.append(mem)
    assert_same("Yin", torch.stack(found), made(x)[0].detach(), tolerance=1e-12)


def test_steps_are_bitwise_those_of_the_sequence() -> None:
    """A step takes no kernel; products of few bits are exact, in whatever order."""
    for options in (KINDS["fixed"], KINDS["each"], KINDS["no-decay"]):
        made = make(**options, dtype=torch.float32)
        with torch.no_grad():
            made.weight.mul_(64).round_().div_(64)
        x = spikes(T, B, N).float()
        steps, after = run_steps(made, x)
        y, end = made(x)
        assert torch.equal(steps, y) and torch.equal(after.i, end.i)


# -------------------------------------------------------------------------------------------- forms
@pytest.mark.parametrize("options", [
    KINDS["fixed"], KINDS["each"], {"tau_syn": None},
    {"tau_syn": None, "learn": "tau", "per_neuron": True}], ids=str)
def test_every_form_of_input(options: dict[str, Any]) -> None:
    made, x = make(**options), spikes(T, B, N)
    state: Any = start() if made.tau_syn is not None else start().p

    def item(leaves: Any, b: int) -> Any:
        return tree_map(lambda leaf: leaf[b], leaves)

    def same(name: str, got: Any, want: Any) -> None:
        """A sum of the library's product may depend on how many rows there are."""
        assert_same(name, flat(got), flat(want), tolerance=1e-15)

    y, end = made(x, state)
    first, its_state = make(**options, batch_first=True)(x.transpose(0, 1), state)
    assert_same("batch first", first.transpose(0, 1), y)
    same("its state", its_state, end)
    alone, last = made(x[:, 0], item(state, 0))
    assert all(leaf.shape == (O,) for leaf in flat(last))
    same("unbatched", [alone, last], [y[:, 0], item(end, 0)])
    half, middle = made(x[:20], state)
    rest, again = made(x[20:], middle)
    same("two calls", [torch.cat([half, rest]), again], [y, end])
    same("steps", run_steps(made, x, state), [y, end])
    same("steps of one", run_steps(made, x[:, 0], item(state, 0)), [y[:, 0], item(end, 0)])
    lengths = [5, T, 17]
    packed, ends = made(pack_padded_sequence(x, lengths, enforce_sorted=False), state)
    padded, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths
    for b, n in enumerate(lengths):
        same("packed", [padded[:n, b], item(ends, b)], made(x[:n, b], item(state, b)))
    none, kept = made(x[:0], state)
    assert none.shape == (0, B, O)
    same("no step", kept, state)
    empty, nothing = made(x[:, :0])
    assert empty.shape == (T, 0, O) and all(leaf.shape == (0, O) for leaf in flat(nothing))
    assert made.step(x[0, :0])[0].shape == (0, O)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Computed in float32 behind the product, state and output too."""
    made = make(learn=BOTH, per_neuron=True, dtype=dtype)
    y, end = made(spikes(T, B, N).to(dtype))
    assert {y.dtype, end.p.dtype, end.i.dtype, made.decay.dtype} == {torch.float32}
    again, _ = made(spikes(T, B, N).to(dtype), end)
    want, _ = loop_of(made.double(), spikes(T, B, N))
    assert_same("y", y.detach().double(), want.detach(), tolerance=0.02)
    assert not torch.equal(again, y)


def test_autocast() -> None:
    made, x = make(dtype=torch.float32), spikes(T, B, N).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, end = made(x)
    assert y.dtype == end.i.dtype == torch.float32
    assert_same("y", y.detach(), made(x)[0].detach(), tolerance=0.02)
