"""Sequences of unequal length in one call: each as if it were alone."""
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from compare import assert_all_same, assert_same, changed
from layers import grid
from lsnn_ext import ALIF, functional, reference
from module_kinds import round_weights
from operator_calls import Calls, needs_compiled

T, I, N, O = 40, 9, 33, 3
K = {"alpha": 0.9, "theta": 0.4, "rho": 0.95, "beta": 0.5}
ORDERS = {"falling": (40, 40, 25, 7, 1, 0), "any": (7, 40, 0, 25, 40, 1)}


# --------------------------------------------------------------------------------------- functional
@needs_compiled
@pytest.mark.parametrize("route", ["inside", "bits", "outside"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("checkpoint_every", [None, 16])
def test_layer_is_each_sequence_alone(route: str, order: str, checkpoint_every: int | None) -> None:
    """Values and all gradients; what stands after the end of a sequence is not read."""
    B, generator = 36, torch.Generator().manual_seed(1)
    lengths = ORDERS[order] * 6
    lengths = tuple(sorted(lengths, reverse=True)) if order == "falling" else lengths
    many = 300  # neurons: so many that mostly zero inputs meet their weights inside
    share = 0.6 if route == "outside" else 0.1
    drawn = (torch.rand(T, B, I, generator=generator) < share).double()
    leaves = {"w_in": grid(generator, many, I), "w_out": grid(generator, O, many),
              "w_rec": grid(generator, many, many, scale=0.05), "p": grid(generator, B, O)}

    def call(x: Any, own: dict[str, Tensor], p: Tensor, each: Any) -> functional.Layered:
        return functional.layer(x, own["w_in"], own["w_rec"], w_out=own["w_out"], k_out=0.75,
                                readout_state=p, trace=True, lengths=each,
                                checkpoint_every=checkpoint_every, **K)

    def outputs(out: functional.Layered) -> list[Tensor]:
        return [out.spikes, out.readout, out.traces.v, out.readout_state, out.state.v, out.state.a,
                out.state.z]

    own = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    x = drawn.clone()
    for b, steps in enumerate(lengths):
        x[steps:, b] = 0.0 if route == "bits" else torch.nan
    x.requires_grad_(route != "bits")
    given = functional.pack_spikes(x) if route == "bits" else x
    together = outputs(call(given, own, own["p"], torch.tensor(lengths)))
    weights = [torch.linspace(-1, 1.5, value.numel(), dtype=value.dtype).view_as(value)
               for value in together]
    for place in (0, 1, 2):  # gradients given after the end are not read
        for b, steps in enumerate(lengths):
            weights[place][steps:, b] = torch.nan
    inputs = [*own.values()] + ([] if route == "bits" else [x])
    got = torch.autograd.grad(together, inputs, weights)

    alone = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    seen = drawn.clone().requires_grad_()
    want: list[Tensor] = [torch.zeros_like(leaf) for leaf in [*alone.values(), seen]]
    for b, steps in enumerate(lengths):
        parts = outputs(call(seen[:steps, b : b + 1], alone, alone["p"][b : b + 1], None))
        for place, (whole, part) in enumerate(zip(together, parts, strict=True)):
            own = whole[:steps, b : b + 1] if place < 3 else whole.narrow(-2, b, 1)
            assert_same(f"output {place}", own, part, tolerance=1e-12)
            assert place >= 3 or not bool(whole[steps:, b].any())
        own_weights = [w[:steps, b : b + 1] if place < 3 else w.narrow(-2, b, 1)
                       for place, w in enumerate(weights)]
        found = torch.autograd.grad(parts, [*alone.values(), seen], own_weights, allow_unused=True)
        want = [total if one is None else total + one
                for total, one in zip(want, found, strict=True)]
    for name, one, other in zip([*leaves, "x"], got, want, strict=False):
        assert_same(f"d {name}", one, other, tolerance=1e-11)


@pytest.mark.parametrize("given", ["list", "int32", "int64"])
def test_forms_of_lengths(given: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = grid(generator, T, 6, N, scale=2.0), grid(generator, N, N, scale=0.2)
    each = ORDERS["any"]
    lengths: Any = (
        list(each) if given == "list" else torch.tensor(each, dtype=getattr(torch, given)))
    spikes, state = functional.alif(x, w, lengths=lengths, **K)
    want, want_state = reference.alif(x, w, lengths=torch.tensor(each), **K)
    assert bool(spikes.any())
    assert_all_same({"z": spikes, **state._asdict()}, {"z": want, **want_state._asdict()},
                    tolerance=1e-12)


@pytest.mark.parametrize(("lengths", "error", "message"), [
    ([1, 2], ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
    ([1, 2, 5], ValueError, r"lengths: expected steps from 0 to T = 4, got 5"),
    ([1, 2, -1], ValueError, r"lengths: expected steps from 0 to T = 4, got -1"),
    (torch.tensor([1.0, 2, 3]), TypeError, r"lengths: expected whole numbers, got torch.float32"),
    (torch.tensor([1, 2, 3], device="meta"), ValueError,
     r"lengths: expected a tensor on the CPU, .* got meta"),
    ([1.0, 2.0, 3.0], TypeError, r"lengths: expected whole numbers \(B,\), got list"),
    (3, TypeError, r"lengths: expected whole numbers \(B,\), got int")])
def test_what_is_refused(lengths: Any, error: type[Exception], message: str) -> None:
    x = torch.zeros(4, 3, 2)
    with pytest.raises(error, match=message):
        functional.alif(x, torch.zeros(2, 2), lengths=lengths, **K)
    with pytest.raises(error, match=message):
        functional.layer(x, torch.zeros(5, 2), None, lengths=lengths, **K)
    with pytest.raises(error, match=message):
        functional.leaky_readout(x, torch.zeros(5, 2), 0.9, lengths=lengths)


@needs_compiled
def test_operator_refuses_what_does_not_descend() -> None:
    x, w = torch.zeros(4, 3, 2), torch.zeros(2, 2)
    with Calls() as calls:
        functional.alif(x, w, lengths=[4, 2, 1], **K)
    (operator, args, _), = calls.forward
    for wrong, message in (([2, 4, 1], "from 0 to 2 at item 1"),
                           ([5, 2, 1], "from 0 to 4 at item 0"),
                           ([4, 2, -1], "from 0 to 2 at item 2"), ([4, 2], "lengths")):
        with pytest.raises(RuntimeError, match=message):
            operator(*changed(operator, args, lengths=torch.tensor(wrong)))
    with pytest.raises(RuntimeError, match="lengths: expected an int64 tensor on the CPU"):
        operator(*changed(operator, args, lengths=torch.tensor([4, 2, 1], dtype=torch.int32)))


# ------------------------------------------------------------------------------------------ modules
@needs_compiled
@pytest.mark.parametrize(("lengths", "groups"), [
    ((40, 25, 25, 22), 1), ((9, 40, 17), 1), ((40, 3, 300, 1, 39), 2),
    ((1000, *[100] * 63), 2), (range(1, 257), 4)])
def test_a_packed_sequence_takes_few_calls(lengths: Sequence[int], groups: int) -> None:
    """One for each group of similar lengths. Padding: less than the rows and 64 sequences."""
    layer = round_weights(ALIF(I, N), matrices_only=False)
    packed = pack_sequence([(torch.rand(n, I) < 0.3).float() for n in lengths],
                           enforce_sorted=False)
    with Calls() as calls:
        layer(packed)
    assert len(calls.forward) == groups
    assert sum(args[0].shape[:2].numel() for _, args, _ in calls.forward) <= (
        2 * sum(lengths) + 64 * max(lengths))
