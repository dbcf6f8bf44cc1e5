"""The readout as an operator: p_t = k p_{t-1} + (1 - k) x_t, differentiable to any order."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from compare import assert_same
from lsnn_ext import _ops, functional, reference
from operator_calls import CUDA, needs_compiled
from synaptic_readouts import drawn

K = 0.9
SIZES = [(1, 1, 1), (7, 3, 10), (200, 40, 17), (3, 1, 20000), (0, 3, 4), (5, 0, 4), (5, 3, 0)]


def _alone(x: Tensor, p: Tensor | None, k: float = K) -> tuple[Tensor, Tensor]:
    """The integrator of products that are made already."""
    return functional.leaky_readout(x, torch.eye(x.shape[2], dtype=x.dtype), k, p)


# ------------------------------------------------------------------------------------------- values
@needs_compiled
@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_bits_as_the_loop(size: tuple[int, ...], dtype: torch.dtype, from_zero: bool) -> None:
    T, B, O = size
    x, p = drawn(T, B, O, dtype=dtype), None if from_zero else drawn(B, O, dtype=dtype, seed=1)
    weights, of_last = drawn(T, B, O, dtype=dtype, seed=2), drawn(B, O, dtype=dtype, seed=3)
    found = []
    for readout in (torch.ops.lsnn.leaky_readout, reference.leaky_readout):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, p) if leaf is not None]
        all_p, last = readout(*leaves, *[None] * from_zero, K)
        loss = (all_p * weights).sum() + (last * of_last).sum()
        found.append([all_p, last, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    assert_same("all, last, dx, dp", *found)


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_bits_on_cuda(size: tuple[int, ...]) -> None:
    x, p = drawn(*size, dtype=torch.float32), drawn(*size[1:], dtype=torch.float32, seed=1)
    for operator in (torch.ops.lsnn.leaky_readout, torch.ops.lsnn.leaky_readout_backward):
        for got, want in zip(operator(x.cuda(), p.cuda(), K), operator(x, p, K), strict=True):
            assert_same("cuda", got.cpu(), want)


@needs_compiled
@pytest.mark.usefixtures("own_threads")
def test_threads_change_nothing() -> None:
    x, p = drawn(300, 64, 50, dtype=torch.float32), drawn(64, 50, dtype=torch.float32, seed=1)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results = torch.ops.lsnn.leaky_readout(x, p, K)
        found.append((*results, *torch.ops.lsnn.leaky_readout_backward(*results, K)))
    assert_same("threads", *found)


@pytest.mark.parametrize("k", [0, 1, 0.0, 1.0])
def test_ends_of_the_range(k: float) -> None:
    x, p = drawn(4, 2, 3), drawn(2, 3, seed=1)
    all_p, last = _alone(x, p, k)
    assert_same("all", all_p, p.expand(4, 2, 3) if k else x)
    assert_same("last", last, p if k else x[-1])


def test_large_numbers_are_read_as_they_are() -> None:
    """No threshold stands behind it that a readout could reach."""
    all_p, _ = _alone(torch.full((3, 1, 2), 3e38), torch.full((1, 2), 3e38), 0.5)
    assert_same("all", all_p, torch.full((3, 1, 2), 3e38))


@pytest.mark.parametrize(("more", "message"), [
    ({"b_out": torch.zeros(3)}, "b_out: expected w_out with it, got None"),
    ({"b_out": torch.zeros(3), "w_out": torch.zeros(2, 4)}, r"b_out: expected shape \(2,\), got")])
def test_a_wrong_bias(more: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.layer(torch.zeros(3, 1, 2), torch.zeros(4, 2), None, alpha=0.9, theta=1.0,
                         **more)


# -------------------------------------------------------------------------------------- derivatives
@pytest.mark.parametrize("from_zero", [False, True])
def test_derivatives_of_two_orders(from_zero: bool) -> None:
    leaves = [drawn(5, 2, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()]
    leaves += [] if from_zero else [drawn(2, 4, seed=2).requires_grad_()]

    def readout(x: Tensor, w_out: Tensor, p: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return functional.leaky_readout(x, w_out, K, p)

    assert gradcheck(readout, leaves)
    assert gradgradcheck(readout, leaves)


@needs_compiled
def test_operators_are_each_others_derivative() -> None:
    x, p = drawn(5, 2, 3).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    for operator in (torch.ops.lsnn.leaky_readout, torch.ops.lsnn.leaky_readout_backward):
        assert gradcheck(lambda a, b, op=operator: op(a, b, K), (x, p))
        assert gradgradcheck(lambda a, b, op=operator: op(a, b, K), (x, p))


@needs_compiled
def test_forward_mode_is_refused() -> None:
    """It has no rule; silently dropped tangents would look like constants."""
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(drawn(5, 2, 3), drawn(5, 2, 3))
        with pytest.raises((RuntimeError, NotImplementedError), match="forward mode|jvp"):
            _ops.leaky_readout(x, None, K)


# --------------------------------------------------------------------------------------- transforms
@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (2, 1), (None, 0)])
def test_vmap(in_dims: tuple[int | None, ...]) -> None:
    sizes = {0: (3, 6, 4, 5), 1: (6, 3, 4, 5), 2: (6, 4, 3, 5), None: (6, 4, 5)}
    x = drawn(*sizes[in_dims[0]])
    p = drawn(*{0: (3, 4, 5), 1: (4, 3, 5), None: (4, 5)}[in_dims[1]], seed=1)

    def element(t: Tensor, axis: int | None, i: int) -> Tensor:
        return t if axis is None else t.select(axis, i)

    got = torch.vmap(_alone, in_dims)(x, p)
    gradients = torch.vmap(torch.func.grad(lambda x, p: _alone(x, p)[0].square().sum(), (0, 1)),
                           in_dims)(x, p)
    for i in range(3):
        a, b = (element(t, axis, i).clone().requires_grad_()
                for t, axis in zip((x, p), in_dims, strict=True))
        want = _alone(a, b)
        wanted = torch.autograd.grad(want[0].square().sum(), (a, b))
        assert_same("vmap", [one[i] for one in (*got, *gradients)], [*want, *wanted])


@needs_compiled
def test_autocast_computes_in_float32() -> None:
    x, w_out = drawn(6, 2, 5, dtype=torch.float32), drawn(3, 5, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        y, last = functional.leaky_readout(x, w_out, K)
        raw, _ = torch.ops.lsnn.leaky_readout(x.bfloat16(), None, K)
    assert y.dtype == last.dtype == raw.dtype == torch.float32
    assert_same("autocast", y, functional.leaky_readout(x, w_out, K)[0], tolerance=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_integrated_in_float32(dtype: torch.dtype) -> None:
    x = torch.ones(30, 2, 4, dtype=dtype).requires_grad_()
    y, last = functional.leaky_readout(x, torch.eye(4, dtype=dtype), K)
    assert y.dtype == last.dtype == torch.float32
    assert_same("value", last, reference.leaky_readout(torch.ones(30, 2, 4), None, K)[1])
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


# ----------------------------------------------------------------------------------------- refusals
X, W, P = torch.zeros(4, 2, 3), torch.zeros(5, 3), torch.zeros(2, 5)
WRONG: list[tuple[tuple[Any, ...], str]] = [
    ((X, W, [0.5]), "k: expected a number from 0 to 1 or a tensor of such, got list"),
    ((X, W, True), "k: expected a number from 0 to 1 or a tensor of such, got bool"),
    ((X, W, 1.5), "k: expected a number from 0 to 1, got 1.5"),
    ((X, W, float("nan")), "k: expected a number from 0 to 1, got nan"),
    ((X, W, K, torch.zeros(2, 3)), r"p: expected shape \(2, 5\), got \(2, 3\)"),
    ((X, W, K, P.double()), "p: expected torch.float32, got torch.float64"),
    ((X, W, K, 0.5), "p: expected a tensor, got float")]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        functional.leaky_readout(*arguments)


RAW: list[tuple[Callable[[], Any], str]] = [
    (lambda: torch.ops.lsnn.leaky_readout(X[0], None, K),
     r"x: expected shape \(T, B, O\), got \(2, 3\)"),
    (lambda: torch.ops.lsnn.leaky_readout(X.int(), None, K), "x: expected float32 or float64"),
    (lambda: torch.ops.lsnn.leaky_readout(X, P, K), r"p: expected shape \(2, 3\), got \(2, 5\)"),
    (lambda: torch.ops.lsnn.leaky_readout(X, X[0].double(), K), "p: expected the dtype of x"),
    (lambda: torch.ops.lsnn.leaky_readout(X, None, -0.1),
     "k: expected a number from 0 to 1, got -0.1"),
    (lambda: torch.ops.lsnn.leaky_readout_backward(X, P, K),
     r"g_last: expected shape \(2, 3\), got \(2, 5\)"),
    (lambda: torch.ops.lsnn.leaky_readout_backward(X, X[0], float("nan")),
     "k: expected a number from 0 to 1")]


@needs_compiled
@pytest.mark.parametrize(("call", "message"), RAW, ids=[row[1] for row in RAW])
def test_wrong_arguments_of_the_operators(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{message}"):
        call()
