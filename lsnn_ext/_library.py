"""The compiled operators: loading, fake kernels, autocast, autograd.

torch.ops.lsnn.alif_forward and alif_backward know nothing of autograd; ``alif`` ties them together. The operators
refuse tensors that require a gradient, since they would return none, silently.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .reference import COEFFICIENTS

FEW_OUTPUTS = 32  # up to which adding the weight rows of a readout beats torch's matrix product

try:
    from . import _C  # type: ignore[attr-defined]

    load_error: Exception | None = None
except ImportError as error:  # no compiler at installation, or a torch older than 2.11
    _C = None
    built = importlib.util.find_spec("lsnn_ext._C") is not None
    load_error = error if built else ImportError("it was not built when the package was installed")

available = _C is not None


def compiled_rows() -> list[dict[str, Any]]:
    """The compiled table of models, in the words of reference.Row."""
    if _C is None:
        raise RuntimeError(f"lsnn_ext: the compiled part is missing ({load_error})")
    return list(_C.dynamics())


# Devices with kernels; "meta" stands for none, shapes only.
DEVICES: tuple[str, ...] = ("cpu", "meta")

if _C is not None:
    DEVICES = ("cpu", "cuda", "meta") if _C.cuda else DEVICES
    DYNAMICS = {row["name"]: k for k, row in enumerate(_C.dynamics())}
    SURROGATES = {name: k for k, name in enumerate(_C.surrogates())}
    if tuple(_C.coefficients()) != COEFFICIENTS:
        other = f"those of another version: {_C.coefficients()}"
        raise ImportError(f"lsnn_ext._C: expected the coefficients {COEFFICIENTS}, got {other}")


def _refuse_second_derivative() -> None:
    """once_differentiable does not notice torch.func.grad inside torch.func.grad: the outer one would get zeros."""
    if torch.compiler.is_compiling():
        return
    transforms = torch._C._functorch.get_interpreter_stack() or []
    if sum(t.key() == torch._C._functorch.TransformType.Grad for t in transforms) > 1:
        raise RuntimeError("lsnn_ext: expected one derivative, got a second derivative, which spikes do not have")


class _Alif(torch.autograd.Function):
    """current, w_rec, coefficients, v, a, i, r, z, delay, *constants -> what alif_forward returns, differentiable."""

    @staticmethod
    def forward(
        current: Tensor, w_rec: Tensor, coefficients: Tensor, v: Tensor, a: Tensor, i: Tensor, r: Tensor, z: Tensor,
        delay: Tensor | None, delays: list[int], dynamics: int, surrogate: int, dampening: float, refractory: int,
        smooth: bool, trace: bool, want: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return torch.ops.lsnn.alif_forward(
            current, w_rec, coefficients, delay, delays, v, a, i, r, z, dynamics, surrogate, dampening, refractory,
            smooth, trace, True,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, w_rec, coefficients, v, a, i, r, z, delay, *constants = inputs
        r_last, y, bits, smooth_z, carry = output[4], *output[9:]
        ctx.mark_non_differentiable(r_last, y, bits, smooth_z, carry)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(w_rec, coefficients, v, a, i, r, z, delay, y, bits, smooth_z, carry)
        ctx.constants = constants

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        w_rec, coefficients, v, a, i, r, z, delay, y, bits, smooth_z, carry = ctx.saved_tensors
        delays, dynamics, surrogate, dampening, refractory, smooth, trace, want = ctx.constants
        # A compiled graph makes zeros of shape (0,) for traces that were not asked for.
        g_traces = g[6:9] if trace else (None, None, None)
        g_current, g_w, g_coefficients, g_v, g_a, g_i, g_z = torch.ops.lsnn.alif_backward(
            g[0], *g_traces, g[1], g[2], g[3], g[5], w_rec, coefficients, delay, delays, v, a, i, r, z, y, bits,
            smooth_z, carry, dynamics, surrogate, dampening, refractory, smooth, want, ctx.needs_input_grad[1],
        )  # fmt: skip
        return (
            g_current, g_w if ctx.needs_input_grad[1] else None, g_coefficients if want else None, g_v, g_a, g_i, None,
            g_z, *[None] * 9,
        )  # fmt: skip


def alif(
    current: Tensor, w_rec: Tensor, coefficients: Tensor, delay: Tensor | None, delays: list[int],
    state: tuple[Tensor, ...], *, dynamics: str, surrogate: str, dampening: float, refractory: int, smooth: bool,
    trace: bool, want: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The nine differentiable outputs: spikes; v, a, i, r, z after the last step; traces v, a, threshold.

    want: bit k set where the gradient of row k of coefficients (11,N) is asked for.
    """
    forward_mode = not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0
    constants = (delays, DYNAMICS[dynamics], SURROGATES[surrogate], dampening, refractory, smooth, trace)
    if forward_mode or torch.is_grad_enabled() and any(t.requires_grad for t in (current, w_rec, coefficients, *state)):
        return _Alif.apply(current, w_rec, coefficients, *state, delay, *constants, want)[:9]
    with torch.no_grad():
        outputs = torch.ops.lsnn.alif_forward(
            current, w_rec, coefficients, delay, delays, *state, *constants[1:], False
        )
        return outputs[:9]


class _Linear(torch.autograd.Function):
    """x (..., I), weight (N,I), bias (N) or None -> x weight^T + bias in reused memory; events: most of x is zero."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, events: bool) -> Tensor:
        rows, shape = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], weight.shape[0])
        if events:
            return torch.ops.lsnn.linear_events(rows, weight, bias).view(shape)
        out = torch.ops.lsnn.buffer(x, rows.shape[0], weight.shape[0])
        if bias is None:
            return torch.mm(rows, weight.t(), out=out).view(shape)
        return torch.addmm(bias, rows, weight.t(), out=out).view(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.events = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, weight = ctx.saved_tensors
        g, x_rows = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        want_x, want_weight, want_bias, _ = ctx.needs_input_grad
        g_x = None
        if want_x and weight.shape[0] <= FEW_OUTPUTS:
            g_x = torch.ops.lsnn.linear_events(g, weight.t(), None).view(x.shape)
        elif want_x:
            g_x = torch.mm(g, weight, out=torch.ops.lsnn.buffer(g, *x_rows.shape)).view(x.shape)
        if ctx.events and (want_weight or want_bias):
            g_weight, g_bias = torch.ops.lsnn.linear_events_backward(g, x_rows)
            return g_x, g_weight if want_weight else None, g_bias if want_bias else None, None
        return g_x, torch.mm(g.t(), x_rows) if want_weight else None, g.sum(0) if want_bias else None, None


def _mostly_zero(x: Tensor) -> bool:
    """Whether adding rows for what is not zero beats a dense product, judged by a sample of the rows (R,I)."""
    sample = x[:: max(1, x.shape[0] // 512)]
    return bool(torch.count_nonzero(sample) < 0.2 * sample.numel())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of a whole sequence (..., I): in reused memory, and by events where x is mostly zero, as spikes are."""
    rows = x.numel() // max(1, x.shape[-1])
    plain = (
        not available or type(x) is not Tensor or torch.compiler.is_compiling() or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype
        or rows * weight.shape[0] < 1 << 18
    )  # fmt: skip
    if plain:
        return torch.nn.functional.linear(x, weight, bias)
    with torch.no_grad():
        events = _mostly_zero(x.reshape(rows, x.shape[-1]))
    return _Linear.apply(x, weight, bias, events)


def _words(N: int) -> int:
    return (N + 31) // 32


def _fake_forward(
    current: Tensor, w_rec: Tensor, coefficients: Tensor, delay: Tensor | None, delays: list[int], v: Tensor, a: Tensor,
    i: Tensor, r: Tensor, z: Tensor, dynamics: int, surrogate: int, dampening: float, refractory: int, smooth: bool,
    trace: bool, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    T, B, N = current.shape
    new = current.new_empty
    traces = [new(T, B, N) if trace else new(0) for _ in range(3)]
    y, smooth_z = new(T, B, N) if save else new(0), new(T, B, N) if save and smooth else new(0)
    bits = new((T, B, _words(N)) if save else (0,), dtype=torch.int32)
    carry = new((T + _C.segment - 1) // _C.segment, 4, B, N) if save else new(0)
    return (new(T, B, N), *(new(B, N) for _ in range(4)), new(1 + delays[-1], B, N), *traces, y, bits, smooth_z, carry)


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    w_rec, coefficients, z, y, want, want_w = args[8], args[9], args[16], args[17], args[26], args[27]
    new, (T, B, N) = y.new_empty, y.shape
    return (
        new(T, B, N), new(w_rec.shape) if want_w else new(0), new(coefficients.shape) if want else new(0),
        *(new(B, N) for _ in range(3)), new(z.shape),
    )  # fmt: skip


def _refusing(name: str) -> Callable[..., Any]:
    """The autograd kernel of a raw operator: an error where a gradient would be lost without a word."""
    op = getattr(torch.ops.lsnn, name).default

    def kernel(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            raise RuntimeError(
                f"torch.ops.lsnn.{name} has no gradient of its own: expected tensors that do not require grad, got "
                "some that do; call the functions of lsnn_ext.functional, which are differentiable"
            )
        return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    return kernel


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_linear_backward(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(g.shape[1], x.shape[1]), x.new_empty(g.shape[1])


if available:
    _registry = torch.library.Library("lsnn", "IMPL")
    _fakes: dict[str, Callable[..., Any]] = {
        "alif_forward": _fake_forward, "alif_backward": _fake_backward,
        "linear_events": _fake_linear, "linear_events_backward": _fake_linear_backward,
    }  # fmt: skip
    for _name, _fake in _fakes.items():
        torch.library.register_fake(f"lsnn::{_name}", _fake)
        for _device in ("cpu", "cuda"):
            torch.library.register_autocast(f"lsnn::{_name}", _device, torch.float32)
        _registry.impl(_name, _refusing(_name), "Autograd", with_keyset=True)
    torch.library.register_fake("lsnn::buffer", lambda like, rows, columns: like.new_empty(rows, columns))
