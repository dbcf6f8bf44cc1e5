"""functional.linear equals torch's own, by events, by a product in reused memory, or plainly."""
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compare import VIEWS, assert_same, run_on_copies
from lsnn_ext import functional
from operator_calls import needs_compiled

# Above 2^18 results, or numbers of x, the ways part; above 2^20 of x also the way back to it, and
# more than 16 outputs take another one than fewer do.
SIZES = [(40, 9, 7, 5), (300, 20, 33, 70), (900, 30, 65, 10), (1100, 8, 1, 33), (60, 64, 128, 10),
         (300, 40, 100, 12), (300, 40, 100, 35)]
LINEAR = (functional.linear, torch.nn.functional.linear)
RATES = {"spikes": 0.03, "half": 0.5, "dense": 1.0, "nothing": 0.0}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_as_torch(size: tuple[int, ...], rate: float, dtype: torch.dtype, bias: bool) -> None:
    T, B, inputs, outputs = size
    random = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=dtype)

    x = drawn(T, B, inputs)
    if rate < 1:
        x = (torch.rand(T, B, inputs, generator=random) < rate).to(dtype)
    leaves = [x, drawn(outputs, inputs), *([drawn(outputs)] if bias else [])]
    found = [run_on_copies(linear, *leaves) for linear in LINEAR]
    assert_same("y, x, weight, bias", *found, tolerance=1e-5 if dtype == torch.float32 else 1e-13)


def test_inputs_in_any_layout() -> None:
    """Transposed, strided and expanded inputs, by events."""
    spikes = (torch.rand(64, 700, 40, generator=torch.Generator().manual_seed(2)) < 0.05).float()
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(3))
    for x in (spikes.transpose(0, 1), spikes.repeat_interleave(2, 2)[:, :, ::2],
              spikes[:1].expand(64, 700, 40)):
        got = functional.linear(x, weight.t().contiguous().t())
        assert_same("y", got, torch.nn.functional.linear(x, weight), tolerance=1e-5)


@pytest.mark.parametrize("layout", VIEWS)
def test_gradients_in_any_layout(layout: str) -> None:
    """By events, with gradients that are not contiguous."""
    random = torch.Generator().manual_seed(4)
    x = (torch.rand(40, 300, 30, generator=random) < 0.05).double()
    leaves = [leaf.requires_grad_() for leaf in (x, *(
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((24, 30), (24,))))]
    drawn = torch.randn(40, 300, 24, generator=random, dtype=torch.float64)
    found = [torch.autograd.grad(linear(*leaves), leaves, VIEWS[layout](drawn))
             for linear in LINEAR]
    assert_same("x, weight, bias", *found, tolerance=1e-13)


REDUCED = {"mean": lambda y: y.mean(0), "sum": lambda y: y.sum(0), "last": lambda y: y[-1],
           "first-two-alike": lambda y: torch.cat([y[:2].sum(0, keepdim=True), y[2:]]).cumsum(0)}


@pytest.mark.parametrize("rate", [0.03, 1.0], ids=["spikes", "dense"])
@pytest.mark.parametrize("reduce", REDUCED.values(), ids=REDUCED)
@pytest.mark.parametrize("outputs", [3, 10, 35])
def test_gradients_that_repeat_over_time(outputs: int, reduce: Callable[..., Tensor],
                                         rate: float) -> None:
    """As those behind a mean or sum over time do: gradients agree, and that of x is there once."""
    random = torch.Generator().manual_seed(4)
    x = (torch.rand(40, 60, 120, generator=random) < rate).double()
    leaves = [x, *(torch.randn(*shape, generator=random, dtype=torch.float64)
                   for shape in ((outputs, 120), (outputs,)))]
    found = [run_on_copies(lambda *copies, linear=linear: reduce(linear(*copies)), *leaves)
             for linear in LINEAR]
    assert_same("y, x, weight, bias", *found, tolerance=1e-12)
    assert (found[0][1].stride(0) == 0) == (reduce in (REDUCED["mean"], REDUCED["sum"]))


@pytest.mark.parametrize("reduce", [REDUCED["mean"], REDUCED["first-two-alike"]],
                         ids=["mean", "each-step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(300, 40, 100, 12), (300, 40, 33, 70), (2, 3, 64, 5)], ids=str)
def test_spikes_as_bits(size: tuple[int, ...], dtype: torch.dtype, reduce: object) -> None:
    """Results and gradients are those of the same spikes as numbers, of the second order too."""
    T, B, inputs, outputs = size
    random = torch.Generator().manual_seed(6)
    spikes = (torch.rand(T, B, inputs, generator=random) < 0.03).to(dtype)
    leaves = [torch.randn(*shape, generator=random).to(dtype)
              for shape in ((outputs, inputs), (outputs,))]
    found = []
    for packs in (True, False):
        copies = [leaf.clone().requires_grad_() for leaf in (spikes, *leaves)]
        x = functional.pack_spikes(copies[0]) if packs else copies[0]
        y = functional.linear(x, *copies[1:])
        assert y.dtype == dtype
        gradients = torch.autograd.grad(reduce(y).square().sum(), copies, create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in gradients), copies[1])
        found.append([y, *gradients, *second])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
    assert_same("y, x, weight, bias, second", *found, tolerance=tolerance)


@needs_compiled
def test_bits_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By events the spikes are never numbers, whatever the size; under torch.compile they are."""
    made: list[object] = []
    through = functional.PackedSpikes.numbers
    monkeypatch.setattr(functional.PackedSpikes, "numbers",
                        lambda packed: made.append(0) or through(packed))
    packed = functional.pack_spikes(torch.ones(2, 3, 40).requires_grad_())
    weight = torch.randn(5, 40, requires_grad=True)
    functional.linear(packed, weight).square().sum().backward()
    assert not made
    wrong = packed._replace(bits=packed.bits[:1])
    with pytest.raises(ValueError, match=r"x\.bits: expected int32 of shape"):
        functional.linear(wrong, weight)


@pytest.mark.parametrize("penalty_first", [True, False])
def test_two_consumers(penalty_first: bool) -> None:
    """A readout and a penalty on the rate: their gradients of the spikes add up."""
    random = torch.Generator().manual_seed(4)
    spikes = (torch.rand(40, 60, 120, generator=random) < 0.03).double()
    weight = torch.randn(10, 120, generator=random, dtype=torch.float64)
    found = []
    for linear in LINEAR:
        x = spikes.clone().requires_grad_()
        terms = [lambda x=x: x.mean() * 3,
                 lambda x=x, f=linear: f(x, weight).mean(0).square().sum()]
        loss = sum(term() for term in (terms if penalty_first else terms[::-1]))
        found.append(torch.autograd.grad(loss, x)[0])
    assert_same("x", *found, tolerance=1e-12)


@pytest.mark.parametrize("wanted", [False, True])
def test_gradient_of_x_is_made_where_it_is_wanted(wanted: bool,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    module = sys.modules["lsnn_ext._ops.linear"]
    through = module._input_gradient
    monkeypatch.setattr(module, "_input_gradient", lambda g, w: made.append(g) or through(g, w))
    x = (torch.rand(70, 40, 120, generator=torch.Generator().manual_seed(2)) < 0.05).float()
    weight = torch.randn(10, 120, requires_grad=True)
    functional.linear(x.requires_grad_(wanted), weight).square().sum().backward()
    assert len(made) == wanted and weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    x, weight, bias = (
        torch.ones(3, 2, 5, dtype=dtype), torch.eye(4, 5, dtype=dtype), torch.arange(4).to(dtype))
    assert_same("y", functional.linear(x, weight, bias), (bias + 1).expand(3, 2, 4))


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (5, 4, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    assert functional.linear(torch.zeros(shape), torch.zeros(6, shape[-1])).shape == (*shape[:2], 6)
