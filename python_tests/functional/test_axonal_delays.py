"""Axonal delays (delay_kernel) and masks of recurrent spikes (recurrent_mask) of the functions."""
from typing import Any

import pytest
import torch
from torch import Tensor

from any_neurons import ADAPTIVE, ANALOG, BRANCHES
from cases import Case, build
from compare import assert_all_same, assert_same, changed, run_on_copies
from lsnn_ext import functional, use_reference
from operator_calls import call_all_operators, needs_compiled
from surrogates import Triangle

DELAYS = (0, 2, 5)


def _loop(x: Tensor, w: Tensor, kernel: Tensor, mask: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
    """The LSNN paper's neuron without refractory period, written out: spikes and membranes."""
    spike: Any = Triangle.apply
    v = a = torch.zeros_like(x[0])
    z, spikes, membranes = list(z0), [], []
    for x_t in x:
        filtered = sum(k * z[d] for k, d in zip(kernel, DELAYS, strict=True))
        a = 0.95 * a + 0.05 * z[0]
        A = 0.5 + 1.2 * a
        m = (v - A) / A
        v = 0.9 * v + 0.1 * (x_t + (filtered * mask) @ w) - z[0] * A
        z = [spike(m), *z[:-1]]
        spikes.append(z[0])
        membranes.append(v)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("B", [1, 3, 17])
def test_plain_loop(B: int) -> None:
    random = torch.Generator().manual_seed(B)
    T, N = 60, 37

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64)

    leaves = (8 * draw(T, B, N) - 2, 2 * draw(N, N) - 1, draw(3, N) - 0.3,
              (draw(6, B, N) < 0.3).double())
    mask = draw(B, N) < 0.7
    zero = torch.zeros(B, N, dtype=torch.float64)

    def operator(x: Tensor, w: Tensor, kernel: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
        z, _, traces = functional.alif(
            x, w, alpha=0.9, rho=0.95, theta=0.5, beta=1.2, delay=DELAYS, delay_kernel=kernel,
            recurrent_mask=mask, trace=True, state=functional.State(zero, zero, zero, zero, z0))
        return z, traces.v

    want = run_on_copies(lambda x, w, kernel, z0: _loop(x, w, kernel, mask, z0), *leaves)
    found = run_on_copies(operator, *leaves)
    assert 0.05 < float(want[0].mean()) < 0.5
    assert torch.equal(found[0], want[0])
    assert_same("z, v, gradients", found, want, tolerance=1e-9)


def _case(**more: Any) -> Any:
    return build(Case("", T=50, B=5, N=33, delay="kernel", refractory=1, state="real", **more),
                 dyadic=True)


def test_a_kernel_equals_a_matrix_for_each_delay() -> None:
    """To rounding: the sums of (1) have another order."""
    problem = _case()
    outputs, gradients = problem.run(functional.alif)

    def spread(current: Tensor, w_rec: Tensor, delay_kernel: Tensor, **options: Any) -> Any:
        return functional.alif(current, w_rec * delay_kernel[:, :, None], **options)

    wanted, of_spread = problem.run(spread)
    assert torch.equal(outputs["spikes"], wanted["spikes"])
    assert_all_same(gradients, of_spread, tolerance=1e-11)


def test_a_mask_drops_the_rows_of_neurons() -> None:
    """A mask that is the same for all sequences equals rows of weights that are 0."""
    arguments = build(Case("", T=40, B=4, N=20, delay="each")).arguments()
    keep = torch.rand(20, generator=torch.Generator().manual_seed(1)) < 0.5
    current, w, *_ = arguments.pop("current"), arguments.pop("w_rec")
    masked = functional.alif(current, w, recurrent_mask=keep.expand(4, 20), **arguments)
    assert torch.equal(masked[0], functional.alif(current, w * keep[:, None], **arguments)[0])
    assert not torch.equal(masked[0], functional.alif(current, w, **arguments)[0])


@pytest.mark.parametrize("neuron", [ADAPTIVE, BRANCHES, ANALOG])
@pytest.mark.parametrize("has_kernel", [True, False])
def test_any_neuron(neuron: Any, has_kernel: bool) -> None:
    """The kernels against the loop over time, for several currents and spikes that are numbers."""
    random = torch.Generator().manual_seed(3)
    K = 2 if neuron is BRANCHES else 1
    several = (K,) * (K > 1)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-64, 64, shape, generator=random).double() / 64

    leaves = [3 * draw(30, 4, *several, 19) + 0.5, draw(*several, 19, 19) / 4]
    if has_kernel:
        leaves.append(draw(3, 19))
    coefficients = {ADAPTIVE: {"theta": 0.5}, BRANCHES: {"tau": 4.0, "gain": 1.5},
                    ANALOG: {}}[neuron]
    delay: Any = DELAYS if has_kernel else torch.randint(3, (19, 19), generator=random)
    mask = torch.rand(4, 19, generator=random) < 0.7

    def call(x: Tensor, w_rec: Tensor, kernel: Tensor | None = None) -> list[Tensor]:
        spikes, state, traces = functional.recurrent(
            x, w_rec, neuron, delay=delay, delay_kernel=kernel, recurrent_mask=mask, trace=True,
            lengths=[30, 7, 0, 21], **coefficients)
        return [spikes, state.z, *traces.values()]

    found = run_on_copies(call, *leaves)
    with use_reference():
        want = run_on_copies(call, *leaves)
    assert_same("spikes, z", found[:2], want[:2], tolerance=1e-12 if neuron is ANALOG else 0)
    assert_same("traces, gradients", found[2:], want[2:], tolerance=1e-11)


def test_vmap_over_kernels() -> None:
    arguments = _case(mask=True).arguments()
    kernel = arguments.pop("delay_kernel")
    kernels = torch.stack([kernel, 0.5 * kernel])

    def run(kernel: Tensor) -> Tensor:
        v: Tensor = functional.alif(**arguments, delay_kernel=kernel, trace=True)[2].v
        return v.square().sum()

    gradients = torch.func.vmap(torch.func.grad(run))(kernels)
    for kernel, gradient in zip(kernels, gradients, strict=True):
        assert torch.equal(torch.func.grad(run)(kernel), gradient) and bool(gradient.any())


KERNEL, MASK = torch.ones(3, 4), torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(("change", "error", "said"), [
    ({"delay_kernel": torch.ones(3, 5)}, ValueError,
     r"delay_kernel: expected shape \(S, 4\), got \(3, 5\)"),
    ({"delay_kernel": torch.ones(2, 4)}, ValueError,
     r"delay: expected 2 ascending delays >= 0, one for each row of delay_kernel \(2, 4\), got "),
    ({"delay": 0}, ValueError, "delay: expected 3 ascending delays"),
    ({"delay": (0, 5, 2)}, ValueError, "delay: expected 3 ascending delays"),
    ({"delay": torch.zeros(4, 4, dtype=torch.int64)}, TypeError,
     r"delay: expected an int for each row of delay_kernel \(3, 4\), got Tensor"),
    ({"delay_kernel": KERNEL.double()}, TypeError, "delay_kernel: expected torch.float32, got"),
    ({"delay_kernel": KERNEL.long()}, TypeError, "delay_kernel: expected a floating point dtype"),
    ({"delay_kernel": [1.0]}, TypeError, "delay_kernel: expected a tensor, got list"),
    ({"w_rec": torch.ones(3, 4, 4)}, ValueError,
     r"w_rec: expected one matrix with delay_kernel, got shape \(3, 4, 4\)"),
    ({"w_rec": None, "delay": 0}, ValueError,
     "delay_kernel: expected None without w_rec, got Tensor"),
    ({"w_rec": None, "delay": 0, "delay_kernel": None, "recurrent_mask": MASK}, ValueError,
     "recurrent_mask: expected None without w_rec, got Tensor"),
    ({"recurrent_mask": MASK[:1]}, ValueError,
     r"recurrent_mask: expected shape \(2, 4\), got \(1, 4\)"),
    ({"recurrent_mask": MASK.float()}, TypeError, "recurrent_mask: expected torch.bool, got"),
    ({"recurrent_mask": True}, TypeError, "recurrent_mask: expected a bool tensor, got bool"),
    ({"recurrent_mask": MASK.to("meta")}, ValueError, "recurrent_mask: expected device cpu as")])
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], said: str) -> None:
    arguments: dict[str, Any] = {"w_rec": torch.ones(4, 4), "delay": DELAYS,
                                 "delay_kernel": KERNEL} | change
    current = torch.ones(5, 2, 4)
    with pytest.raises(error, match=said):
        functional.alif(current, arguments.pop("w_rec"), alpha=0.9, theta=1.0, **arguments)
    arguments = {"w_rec": torch.ones(4, 4), "delay": DELAYS, "delay_kernel": KERNEL} | change
    with pytest.raises(error, match=said):
        functional.recurrent(current, arguments.pop("w_rec"), ADAPTIVE, theta=1.0, **arguments)


@needs_compiled
@pytest.mark.parametrize("name", ["alif_forward", "alif_backward"])
def test_operators_check_too(name: str) -> None:
    operator, args, _ = call_all_operators(Case("", T=6, delay="kernel", mask=True))[name]
    kernel, mask = torch.ones(3, 6), torch.ones(3, 6, dtype=torch.bool)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"delay_kernel": kernel[:2]}, r"delay_kernel: expected shape \(3, 6\), got \(2, 6\)"),
        ({"delay_kernel": kernel.double()}, "delay_kernel: expected the dtype of "),
        ({"w_rec": torch.ones(3, 6, 6)}, "w_rec: expected one matrix with delay_kernel, got shape"),
        ({"w_rec": None, "delays": []}, "w_rec: expected a tensor with delay_kernel, got None"),
        ({"recurrent_mask": mask[:, :5]}, r"recurrent_mask: expected shape \(3, 6\), got"),
        ({"recurrent_mask": mask.float()}, "recurrent_mask: expected bool, got float32"),
        ({"delay": torch.zeros(6, 6, dtype=torch.int64)}, "delay: expected a tensor for several")]
    for change, said in wrong:
        with pytest.raises(RuntimeError, match=said):
            operator(*changed(operator, args, **change))
