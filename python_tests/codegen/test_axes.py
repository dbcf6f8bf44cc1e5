"""Steps whose states have an axis of their own against loops of their own."""
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lsnn_ext
import wide_states
from lsnn_ext import Neuron, Recurrent, functional
from lsnn_ext.codegen.trace import StepError
from lsnn_ext.zoo.surrogates import triangle
from traced_steps import check_step, trace_step
from wide_states import B, N, T, check

F64 = torch.float64
K = 4
WEIGHTS = torch.linspace(-0.5, 1.0, K, dtype=F64)[None]


def branches(c: Tensor, d: Tensor, v: Tensor, z: Tensor, *, beta: Any, w: Any,
             theta: Any) -> tuple[Tensor, ...]:
    d = beta * d + (1 - beta) * c.unsqueeze(-1)
    v = 0.9 * v + (w * d).sum(-1) - z * theta
    return d, v, triangle(v - theta)


def four(c: Tensor, d: Tensor, v: Tensor, z: Tensor, *, beta: Any, w: Any,
         theta: Any) -> tuple[Tensor, ...]:
    """The same branch by branch."""
    new, current = [], 0.0
    for k in range(K):
        b = beta[:, k] if beta.shape[0] > 1 else beta[0, k]
        new.append(b * d[:, :, k] + (1 - b) * c)
        current = current + (w[:, k] if w.shape[0] > 1 else w[0, k]) * new[-1]
    v = 0.9 * v + current - z * theta
    return torch.stack(new, 2), v, triangle(v - theta)


def mixed(c: Tensor, d: Tensor, e: Tensor, v: Tensor, z: Tensor, *, beta: Any, u: Any,
          theta: Any) -> tuple[Tensor, ...]:
    """Every operator on the last axis."""
    x = c[..., None]
    d = torch.where(d > 2 * x, 0.5 * d, d) * beta + torch.tanh(x) * u
    first, second, third = e.unbind(-1)
    e = torch.stack([0.5 * first + d[..., 0], d.mean(-1) + 0.3 * second, third - d[..., -1]], -1)
    e = 0.8 * e / (1 + e.abs()) + 0.1 * d[..., 1:]
    both = torch.cat([d * beta / beta.sum(-1, keepdim=True), e], dim=-1)
    v = 0.7 * v + both.amax(-1) - 0.2 * both.amin(dim=-1) + e.mean(2, keepdim=True).squeeze(-1)
    z = triangle(v - theta + (d.detach() * WEIGHTS).sum(-1))
    return d, e.clamp(-2, 2), v + 0.1 * triangle(d).sum(-1), z


def coefficients(shape: tuple[int, int] = (N, K), dtype: torch.dtype = F64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"beta": torch.rand(shape, generator=generator, dtype=F64).to(dtype),
            "w": torch.rand(1, K, generator=generator, dtype=F64).to(dtype),
            "theta": torch.ones(N, dtype=dtype)}


def zeros(*sizes: int, dtype: torch.dtype = F64) -> list[Tensor]:
    return [torch.zeros((B, N, size) if size else (B, N), dtype=dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(N, K), (1, K)])
def test_branches(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(Neuron(branches, axes={"d": K}), four, zeros(K, 0, dtype=dtype),
          coefficients(shape, dtype), dtype=dtype)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("more", [{}, {"checkpoint_every": 7}])
def test_every_operator(seed: int, more: dict[str, Any]) -> None:
    given = {"beta": coefficients()["beta"], "u": torch.full((N,), 0.7, dtype=F64)[:, None],
             "theta": torch.full((), 0.8, dtype=F64)}
    with pytest.raises(ValueError, match=r"u: expected a number or shape \(13,\) or \(13, 3\)"):
        check(Neuron(mixed, axes={"d": K, "e": 3}), mixed, zeros(K, 3, 0), given)
    given["u"] = coefficients()["w"]
    check(Neuron(mixed, axes={"d": K, "e": 3}), mixed, zeros(K, 3, 0), given, seed=seed, **more)


@pytest.mark.parametrize("size", range(2, 15))  # with s and m up to 16 states
def test_sums(size: int) -> None:
    """Of up to four numbers as torch adds them, bit for bit; of more to rounding."""
    n = 5000

    def step(c: Tensor, d: Tensor, s: Tensor, m: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return d, d.sum(-1), d.mean(-1), z

    d, x = torch.randn(1, n, size, dtype=F64).exp(), torch.zeros(1, 1, n, dtype=F64)
    state = functional.NeuronState({"d": d, "s": x[0], "m": x[0]}, x)
    found = functional.recurrent(x, None, Neuron(step, {"d": size}), state=state)[1].states
    for name, wanted in (("s", d.sum(-1)), ("m", d.mean(-1))):
        if size <= 4:
            assert torch.equal(found[name], wanted)
        torch.testing.assert_close(found[name], wanted, rtol=1e-14, atol=0)


def test_complex_states_with_an_axis() -> None:
    def step(c: Tensor, u: Tensor, z: Tensor, *, a: Any, w: Any, theta: Any) -> tuple[Tensor, ...]:
        u = a * u + c[..., None] * (1 - 0.5j)
        total = (w * u).sum(-1)
        return u, triangle(2 * total.real + u.imag.mean(-1) + 0.1 * u.abs().sum(-1) - theta)

    angle = torch.rand(N, K, dtype=F64, generator=torch.Generator().manual_seed(2)) * 2
    check(Neuron(step, axes={"u": K}), step, [torch.zeros(B, N, K, dtype=torch.complex128)],
          {"a": torch.polar(torch.full_like(angle, 0.9), angle),
           "w": torch.polar(angle[:1], angle[1:2]), "theta": torch.ones((), dtype=F64)})


def test_complex_coefficients_with_an_axis() -> None:
    """What is computed from them alone is computed once, as torch computes it."""
    def step(c: Tensor, d: Tensor, z: Tensor, *, a: Any, b: Any) -> tuple[Tensor, ...]:
        turn = torch.complex(-a, b)[..., 1:3]
        turn = torch.exp(torch.stack([turn[..., 0], turn[..., 1]], -1)).conj()
        d = d * (turn.real * 0.5).sum(-1, keepdim=True) + c[..., None]
        d = d / (1 + turn.abs().mean(-1, keepdim=True)) + torch.polar(a, b).imag
        return d, triangle(d.sum(-1) - 1)

    a, b = torch.rand(2, N, K, dtype=F64, generator=torch.Generator().manual_seed(5))
    check(Neuron(step, axes={"d": K}), step, zeros(K), {"a": a, "b": b})


def test_as_many_neurons_as_numbers() -> None:
    """What is (N,) and what is an axis is not told by sizes."""
    x = torch.randn(T, 3, K, dtype=F64) * 2
    beta, w = coefficients((13, K))["beta"][:K], coefficients()["w"]
    theta = torch.linspace(0.5, 2, K, dtype=F64)
    wide_states.check_with_the_reference(
        Neuron(branches, axes={"d": K}), {"x": x, "beta": beta, "w": w, "theta": theta}, w_rec=None)


def test_state_lengths_and_delays() -> None:
    x, w_rec = torch.randn(T, B, N, dtype=F64) * 2, torch.randn(N, N, dtype=F64) * 0.3
    neuron, given = Neuron(branches, axes={"d": K}), coefficients()
    wide_states.check_with_the_reference(neuron, {"x": x, "w_rec": w_rec, **given}, delay=2,
                             lengths=[T, 11, 0])
    state = wide_states.check_parts(neuron, x, w_rec, "d", **given)
    assert state.states["d"].shape == (B, N, K)
    narrow = state._replace(states={**state.states, "d": state.states["d"][..., 0]})
    with pytest.raises(ValueError, match=r"state.states\['d'\]: expected shape \(3, 13, 4\)"):
        functional.recurrent(x, w_rec, neuron, state=narrow, **given)


def test_no_steps_and_no_sequences() -> None:
    neuron, given = Neuron(branches, axes={"d": K}), coefficients()
    for x in (torch.zeros(0, B, N, dtype=F64), torch.zeros(T, 0, N, dtype=F64)):
        for context in (lsnn_ext.use_reference, torch.no_grad):
            with context():
                spikes, state, traces = functional.recurrent(x, None, neuron, trace=True, **given)
            assert spikes.shape == x.shape and traces["d"].shape == (*x.shape, K)
            assert state.states["d"].shape == (x.shape[1], N, K)


def test_layer() -> None:
    given, neuron = coefficients(), Neuron(branches, axes={"d": K})
    layer, other = (Recurrent(neuron, 5, N, learn=("beta",), positive=("w",), dtype=F64,
                              **{**given, "beta": beta})
                    for beta in (given["beta"], 1 - given["beta"]))
    assert layer.get_parameter("beta").shape == (N, K)
    wide_states.check_layer(layer, other, ("beta", "parametrizations.w.original"), "d")
    assert neuron.axes == {"d": K} and neuron != Neuron(branches, {"d": 3})


def test_compiled_calls() -> None:
    wide_states.check_compiled(Neuron(branches, axes={"d": K}), "d", **coefficients())


UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.neg, torch.abs, torch.sin, torch.sigmoid, lambda d: d[..., 0:1] - d, triangle,
    lambda d: d.sum(-1, keepdim=True) * 0.3 + 0 * d, lambda d: d.mean(-1)[..., None] + 0.5 * d,
    lambda d: torch.stack([d[..., k] for k in (3, 2, 1, 0)], -1), lambda d: d.detach() + 0.1 * d,
    lambda d: d - d.amax(-1, keepdim=True), lambda d: torch.cat([d[..., 2:], d[..., :2]], -1),
    lambda d: d[..., 1].unsqueeze(2).expand(-1, -1, K) * 0.5, lambda d: d.masked_fill(d > 1, 0.5)]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, lambda d, e: d * e / (1 + e * e), torch.maximum,
    lambda d, e: torch.where(d > e, d, 0.5 * e), lambda d, e: torch.lerp(d, e, 0.3),
    lambda d, e: d / (1 + e.abs()), lambda d, e: torch.add(d, e, alpha=0.3)]


@pytest.mark.parametrize("seed", range(25))
def test_random_steps(seed: int) -> None:
    draw = random.Random(seed)
    grow = wide_states.draw_operators(draw, UNARY, BINARY)

    def step(c: Tensor, d: Tensor, v: Tensor, z: Tensor, *, beta: Any, w: Any,
             theta: Any) -> tuple[Tensor, ...]:
        made = grow([beta * d + c[..., None], d - w * z[..., None], v[..., None] + w * d])
        d = made[-1] / (1 + 0.3 * made[-1].abs()) + 0.1 * beta * d
        v = 0.8 * v + torch.tanh((w * made[-2]).sum(-1)) + 0.1 * d[..., 2]
        return d, v, triangle(0.2 * d.sum(-1) + 0.2 * v + c - theta)

    shape = (N, K) if draw.random() < 0.5 else (1, K)
    check(Neuron(step, axes={"d": K}), step, zeros(K, 0), coefficients(shape), seed=seed,
          are_used=False)


@pytest.mark.parametrize("change,text", [
    (lambda d, v: d + v, "aten.add"),
    (lambda d, v: d.softmax(-1), "aten._softmax"),
    (lambda d, v: d.sum(1, keepdim=True) + d, r"aten.sum over the axes \[1\]"),
    (lambda d, v: d.sum() + d, "aten.sum over the axes"),
    (lambda d, v: d[:, 0:1] + d, "aten.slice on axis 1"),
    (lambda d, v: (d[..., :2], d.mul_(2))[1], "no write in place"),
    (lambda d, v: d.copy_(v[..., None]), "no write in place"),
    (lambda d, v: d[..., 0].add_(v)[..., None] + d, "no write in place"),
    (lambda d, v: d.transpose(0, 1), "aten.transpose"),
    (lambda d, v: torch.cat([d] * 5, -1).sum(-1, True) + d, "an axis of at most 16"),
    (lambda d, v: d + torch.rand_like(d), "no random numbers"),
    (lambda d, v: d.view(-1, 2).sum(-1)[0] + d, "aten.view from shape"),
    (lambda d, v: d + d[..., :3].sum(-1).repeat(4, 1, 1), "aten.repeat")])
def test_refused_by_name_and_line(change: Callable[..., Tensor], text: str) -> None:
    def step(c: Tensor, d: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        d = change(0.5 * d, c)
        return d, v + d.sum(-1), triangle(c)

    size = 4  # as many of each, so that torch itself takes it
    with pytest.raises(StepError, match=f"{text}.*test_axes.py line"):
        functional.recurrent(torch.ones(T, size, size), None, Neuron(step, {"d": size}))


def test_refused_declarations() -> None:
    x = torch.zeros(T, B, N)
    for axes, kind, text in (
            ({"q": 2}, ValueError, "axes: expected names of states, got 'q'"),
            ({"d": 17}, ValueError, r"axes\['d'\]: expected a size from 1 to 16, got 17"),
            ({"d": True}, ValueError, "expected a size from 1 to 16"),
            (["d"], TypeError, "axes: expected a dict")):
        with pytest.raises(kind, match=text):
            Neuron(branches, axes=axes)
    with pytest.raises(ValueError, match="expected names of states, which are v, got 'd'"):
        functional.recurrent(x[:, :, None].expand(T, B, 2, N), None, Neuron(
            lambda c, d, v, z: (v + c, z), {"d": 2}))
    with pytest.raises(StepError, match="at most 16 states, got 17.*an axis of its own as its"):
        functional.recurrent(x, None, Neuron(lambda c, d, v, z: (d + c[..., None], v, z),
                                             {"d": 16}))
    with pytest.raises(StepError, match=r"state 0 of shape \(B, N, 4\), got one of shape"):
        functional.recurrent(x, None, Neuron(lambda c, d, z: (d.sum(-1) + c, z), {"d": 4}))
    with pytest.raises(ValueError, match=r"beta: expected .* or \(13, 4\), got \(13, 3\)"):
        functional.recurrent(x.double(), None, Neuron(branches, {"d": K}), **{
            **coefficients(), "beta": torch.zeros(N, 3)})
    with lsnn_ext.use_reference(), pytest.raises(ValueError, match=r"shape \(B, N, K\)"):
        functional.recurrent(x, None, Neuron(lambda c, d, z: (torch.zeros(3, 2), z), {"d": 4}))


def test_an_axis_of_1_in_front() -> None:
    """Views, copies and sums of it, as of a sequence of one step."""
    def step(c: Tensor, v: Tensor, w: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        first, = torch.stack([v * c]).unbind(0)
        second = (w.unsqueeze(0) + v)[0] * v.view(1, *v.shape).select(0, -1)
        both = torch.stack((second,), 0) + c
        third = both.sum(0) + both.clone().mul_(0.5).squeeze(0).mul(w)
        return first, third - torch.zeros_like(both)[0], triangle(both[0] - 0.5)

    for dtype in (torch.float32, F64):
        check_step(step, states=2, dtype=dtype)


@pytest.mark.parametrize("function", [
    lambda v: torch.stack([v, v])[1], lambda v: v.unsqueeze(1).unbind(0)[0],
    lambda v: torch.stack([v])[:, 0] + v, lambda v: v[None].sum(1) + v])
def test_other_axes_in_front_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(StepError):
        trace_step(lambda c, v, z: (function(v) + c, z), F64)
