"""Steps with complex states and coefficients against loops of their own."""
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
from wide_states import B, N, T, check

F64 = torch.float64
Z = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def rf(c: Tensor, u: Tensor, z: Tensor, *, b: Any, omega: Any, theta: Any,
       dt: float = 0.1) -> tuple[Tensor, Tensor]:
    u = torch.exp(torch.complex(-b, omega) * dt) * u + c
    return u, triangle(u.real - theta)


def turned(c: Tensor, u: Tensor, v: Tensor, z: Tensor, *, alpha: Any, gain: Any,
           theta: float = 1.0) -> tuple[Tensor, ...]:
    """Every operator that complex rows have."""
    u = alpha * (u - 0.5 * z) + torch.conj(u) * 0.1j - u / (2 + 1j) + c
    u = torch.where(u.real > 4, 0.5 * u, u) + (gain - u) / (3 + u * u.conj())
    u = u / alpha.abs() - torch.view_as_complex(torch.stack([c, v], -1)) / (4 + v * v)
    v = 0.9 * v + 0.2 * u.abs() + torch.view_as_real(u)[..., 1] - 0.1 * torch.complex(v, c).imag
    z = triangle(u.real + 0.5 * u.imag + 0.1 * v - theta)
    return u.neg().mul_(-1), v, z


def coefficients(dtype: torch.dtype = F64, shape: tuple[int, ...] = (N,)) -> dict[str, Tensor]:
    b, omega = torch.rand(2, *shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    return {"b": (b + 0.5).to(dtype), "omega": (9 * omega).to(dtype),
            "theta": torch.ones((), dtype=dtype)}


def complex_coefficients(shape: tuple[int, ...] = (N,)) -> dict[str, Any]:
    angle = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=F64) * 2
    return {"alpha": torch.polar(torch.full_like(angle, 0.8), angle),
            "gain": torch.tensor(0.3 - 0.2j, dtype=torch.complex128), "theta": 1.0}


def zeros(dtype: torch.dtype = F64) -> list[Tensor]:
    return [torch.zeros(B, N, dtype=Z[dtype]), torch.zeros(B, N, dtype=dtype)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(N,), ()])
def test_resonate_and_fire(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(Neuron(rf), rf, zeros(dtype)[:1], coefficients(dtype, shape), dtype=dtype)


@pytest.mark.parametrize("more", [{}, {"seed": 1}, {"checkpoint_every": 7}], ids=str)
@pytest.mark.parametrize("shape", [(N,), ()])
def test_every_operator(shape: tuple[int, ...], more: dict[str, int]) -> None:
    check(Neuron(turned), turned, zeros(), complex_coefficients(shape), drive=1.0, **more)


@pytest.mark.parametrize("shape", [(N,), ()])
def test_operators_of_coefficients(shape: tuple[int, ...]) -> None:
    def step(c: Tensor, u: Tensor, v: Tensor, z: Tensor, *, b: Any, omega: Any,
             theta: Any) -> tuple[Tensor, ...]:
        turn = torch.exp(torch.complex(-b, omega).conj() * (0.1 - 0.05j))
        u = turn.conj() * u + c
        v = torch.polar(0.5 * theta, omega) * v + (1 - turn) / torch.complex(b, omega) * c
        return u, v, triangle(u.real + v.imag - theta)

    check(Neuron(step), step, [zeros()[0]] * 2, coefficients(shape=shape))


def test_state_in_and_out() -> None:
    x, neuron, given = torch.randn(T, B, N, dtype=F64), Neuron(rf), coefficients()
    state = wide_states.check_parts(neuron, x, None, "u", **given)
    assert state.states["u"].dtype == torch.complex128
    assert state.to(torch.float32).states["u"].dtype == torch.complex64
    wrong = state.map(lambda leaf: leaf.real if leaf.is_complex() else leaf)
    with pytest.raises(TypeError, match=r"state.states\['u'\]: expected torch.complex128"):
        functional.recurrent(x, None, neuron, state=wrong, **given)


@pytest.mark.parametrize("lengths", [None, [T, 4, 0]])
def test_a_first_state_and_lengths(lengths: list[int] | None) -> None:
    u0 = torch.randn(B, N, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    tensors = {"x": torch.randn(T, B, N, dtype=F64), "w_rec": 0.3 * torch.randn(N, N, dtype=F64)}
    wide_states.check_with_the_reference(
        Neuron(rf), {**tensors, "u0": u0, **coefficients()},
        lambda leaves: functional.NeuronState({"u": leaves["u0"]}, torch.zeros(3, B, N, dtype=F64)),
        delay=2, lengths=lengths)


def test_no_steps_of_the_loop() -> None:
    x = torch.zeros(0, B, N, dtype=F64)
    with lsnn_ext.use_reference():
        traces = functional.recurrent(x, None, Neuron(rf), trace=True, **coefficients())[2]
    assert traces["u"].shape == (0, B, N) and traces["u"].is_complex()


def test_which_states_are_complex() -> None:
    def step(c: Tensor, a: Tensor, v: Tensor, u: Tensor, z: Tensor, *,
             alpha: Any) -> tuple[Tensor, ...]:
        a = 0.5 * a + u.imag  # of a state that is complex below
        return a, 0.5 * v + u, alpha * u + c, triangle(a - 1)

    neuron = Neuron(step)
    for alpha, forms in ((torch.tensor(0.5j), "0 0c 0c"), (0.5, "0 0 0")):
        found = neuron.parts({"alpha": alpha}, torch.zeros(0), 3).forms
        assert " ".join(map(str, found)) == forms
    x = torch.randn(T, B, N, dtype=F64) * 3
    spikes, state = functional.recurrent(x, None, neuron, alpha=torch.tensor(0.9j))
    assert state.states["v"].is_complex() and not state.states["a"].is_complex()
    with lsnn_ext.use_reference():
        same, _ = functional.recurrent(x, None, neuron, alpha=torch.tensor(0.9j))
    assert torch.equal(same, spikes)


def test_layer() -> None:
    given = complex_coefficients()
    layer, other = (Recurrent(Neuron(turned), 5, N, learn=("alpha",), dtype=F64,
                              **{**given, "alpha": alpha})
                    for alpha in (given["alpha"], given["alpha"] * 1j))
    assert layer.get_parameter("alpha").dtype == torch.complex128
    assert layer.get_buffer("gain").is_complex()
    wide_states.check_layer(layer, other, ("alpha",), "u")
    layer.to(torch.float32)
    assert layer.get_parameter("alpha").dtype == torch.complex64
    assert layer(torch.randn(T, B, 5))[1].states["u"].dtype == torch.complex64
    layer.reset_parameters()
    torch.testing.assert_close(layer.get_parameter("alpha").data, given["alpha"].cfloat())


def test_a_closed_over_tensor() -> None:
    turn = torch.polar(torch.full((N,), 0.9, dtype=F64), torch.linspace(0.1, 2, N, dtype=F64))

    def step(c: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        u = turn * u + c * torch.tensor(0.5 + 0.5j, dtype=torch.complex128)
        return u, triangle(u.real - 1)

    check(Neuron(step), step, zeros()[:1], {})


def test_compiled_calls() -> None:
    wide_states.check_compiled(Neuron(rf), "u", **coefficients())


ROUNDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda u, v: u + v, "sub": lambda u, v: u - v, "mul": lambda u, v: u * v,
    "div": lambda u, v: u / v, "by real": lambda u, v: u / v.real, "scaled": lambda u, v: u * 0.3,
    "of real": lambda u, v: u.real * v, "add alpha": lambda u, v: torch.add(u, v, alpha=0.3),
    "abs": lambda u, v: u.abs() + 0j, "by number": lambda u, v: u / 1.1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(name: str, dtype: torch.dtype) -> None:
    """As torch's vector kernels round; abs, and the rest of a row, within 2 ulp of the size."""
    function, n = ROUNDED[name], 100_000
    u, v = torch.randn(2, 1, n, generator=torch.Generator().manual_seed(0), dtype=Z[dtype])

    def step(c: Tensor, u: Tensor, v: Tensor, w: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return 1j * u, 1j * v, function(u, v), z

    x = torch.zeros(1, 1, n, dtype=dtype)
    state = functional.NeuronState({"u": u, "v": v, "w": torch.zeros_like(u)}, x)
    got = functional.recurrent(x, None, Neuron(step), state=state)[1].states["w"]
    wanted = function(u, v)
    if name != "abs":
        assert float((got == wanted).double().mean()) > 0.999
    error = ((got - wanted).abs() / wanted.abs().clamp(min=1e-30)).max()
    assert error <= 2 * torch.finfo(dtype).eps


UNARY: list[Callable[[Tensor], Tensor]] = [
    lambda u: -u, torch.conj, lambda u: u * 0.5j, lambda u: u * (0.3 - 0.6j), lambda u: u / 1.5,
    lambda u: u / (1 + 2j), lambda u: torch.complex(u.imag, u.real), lambda u: u - 1j, torch.clone,
    lambda u: u.detach() * 0.5, lambda u: torch.view_as_complex(0.7 * torch.view_as_real(u)),
    lambda u: u.real + 0j * u, lambda u: u / (1 + u.abs()), lambda u: u.masked_fill(u.real > 0, 1)]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, lambda u, v: u * v / (2 + (v * v.conj()).real), lambda u, v: 0.5 * u * v,
    lambda u, v: torch.where(u.real > v.imag, u, v), lambda u, v: torch.add(u, v, alpha=0.3),
    lambda u, v: u.real * v, lambda u, v: u / (3 + v.abs() + v)]


@pytest.mark.parametrize("seed", range(25))
def test_random_steps(seed: int) -> None:
    draw = random.Random(seed)
    grow = wide_states.draw_operators(draw, UNARY, BINARY)

    def step(c: Tensor, u: Tensor, v: Tensor, z: Tensor, *, alpha: Any,
             gain: Any) -> tuple[Tensor, ...]:
        made = grow([alpha * u + c, u - gain * z, torch.complex(v, c)])
        u = made[-1] / (1 + 0.3 * made[-1].abs()) + 0.1 * alpha * u + gain
        v = 0.8 * v + made[-2].imag / (1 + made[-2].abs()) + 0.1 * u.real
        return u, v, triangle(0.2 * u.real + 0.2 * v + c - 0.5)

    given = complex_coefficients((N,) if draw.random() < 0.5 else ())
    del given["theta"]
    check(Neuron(step), step, zeros(), given, seed=seed, drive=1.0, are_used=False)


@pytest.mark.parametrize("step,text", [
    (lambda c, u, z: (torch.exp(1j * u) + c, triangle(u.real)), "operators that complex rows have"),
    (lambda c, u, z: (1j * u.angle() + c, triangle(c)), "aten.angle"),
    (lambda c, u, z: ((0.5j * u).real.add_(c) * 1j, triangle(c)), "no write in place to a part"),
    (lambda c, u, z: (1j * u + u.sum(), triangle(c)), "aten.sum")])
def test_refused_by_name_and_line(step: Callable[..., Any], text: str) -> None:
    with pytest.raises(StepError, match=f"{text}.*test_complex.py line"):
        functional.recurrent(torch.ones(T, N, N), None, Neuron(step))


def test_refused_calls_and_a_logarithm_of_complex_numbers() -> None:
    with pytest.raises(ValueError, match="alpha: expected real numbers > 0"):
        Recurrent(Neuron(turned), 5, N, positive=("alpha",), **complex_coefficients())
    x = torch.zeros(T, B, N)
    with pytest.raises(TypeError, match="expected real numbers as the spike"):
        functional.recurrent(x, None, Neuron(lambda c, u, z: (1j * u + c, u * 1j)))
    with pytest.raises(TypeError, match="alpha: expected a tensor for a complex number"):
        functional.recurrent(x, None, Neuron(turned), alpha=0.5j, gain=1.0)
    names = ", ".join(f"s{i}" for i in range(9))
    scope: dict[str, Any] = {}
    exec(f"def step(c, {names}, z):\n    return ({names.replace('s', '1j * s')}, z)", scope)
    with pytest.raises(StepError, match="at most 16 states, got 18; a complex number counts as 2"):
        functional.recurrent(x, None, Neuron(scope["step"]))
