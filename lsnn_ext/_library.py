"""The compiled operators: loading, fake kernels, autocast, autograd.

torch.ops.lsnn.alif_forward and alif_backward know nothing of autograd; ``alif`` ties them together. Tensors that
require a gradient are refused by the operators, which would return none, silently; alif_forward takes them where it
saves what the backward pass needs, since torch.export leaves the bare operator in its programs.
"""

import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _fake
from ._bits import empty_carrier
from .reference import COEFFICIENTS, only_once

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
    """torch.func.grad inside torch.func.grad records nothing that could raise later: the outer one would get zeros."""
    if torch.compiler.is_compiling():
        return
    transforms = torch._C._functorch.get_interpreter_stack() or []
    if sum(t.key() == torch._C._functorch.TransformType.Grad for t in transforms) > 1:
        raise RuntimeError("lsnn_ext: expected one derivative, got a second derivative, which spikes do not have")


def _transformed() -> bool:
    """Whether a transform of torch.func runs, or a compiler: they always record the backward pass."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _interruptible(op: Callable[..., Any], *args: Any) -> Any:
    """Calls an operator; what a signal handler raised meanwhile (KeyboardInterrupt) takes the place of its error."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return op(*args)
    except RuntimeError:
        raised = _C.take_signal_exception()
        if raised is None:
            raise
        raise raised from None


def _forward(*args: Any, as_bits: bool, small_y: bool) -> tuple[Tensor, ...]:
    """alif_forward; the spikes that it returns as bits have a tensor for their gradients in place of the numbers."""
    out = _interruptible(torch.ops.lsnn.alif_forward, *args, as_bits, small_y)
    if not as_bits:
        return tuple(out)
    return empty_carrier(out[1], *args[0].shape[:2], args[1].shape[0]), *out[1:]


class _Alif(torch.autograd.Function):
    """The tensors of alif_forward, then *constants -> what it returns, differentiable; `want` is the last constant."""

    @staticmethod
    def forward(
        current: Tensor, w_rec: Tensor, coefficients: Tensor, v: Tensor, a: Tensor, i: Tensor, r: Tensor, z: Tensor,
        w_in: Tensor | None, bias: Tensor | None, w_out: Tensor | None, p: Tensor | None, delay: Tensor | None,
        x_bits: Tensor | None, delays: list[int], dynamics: int, surrogate: int, dampening: float, refractory: int,
        smooth: bool, checkpoint: int, k_out: float, trace: bool, spikes: bool, small_y: bool, as_bits: bool,
        sparse_grad: bool, reduced: bool, want: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return _forward(
            current, w_rec, coefficients, delay, delays, v, a, i, r, z, w_in, bias, w_out, p, dynamics, surrogate,
            dampening, refractory, smooth, trace, True, checkpoint, k_out, spikes, x_bits, as_bits=as_bits,
            small_y=small_y,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        current, *others, delay, x_bits = inputs[:14]
        ctx.constants, (w_in, checkpoint) = inputs[14:], (inputs[8], inputs[20])
        r_last, saved = output[4], output[11:]
        ctx.mark_non_differentiable(r_last, *saved)
        ctx.set_materialize_grads(False)
        again = current if w_in is not None or checkpoint else None  # otherwise it is not read again
        ctx.save_for_backward(again, *others, delay, x_bits, *saved)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        with torch.no_grad():
            gradients = _Alif.gradients(ctx, g)
        if torch.is_grad_enabled() and not _transformed():
            gradients = only_once(gradients, (*g, *ctx.saved_tensors))
        return *gradients, *[None] * 17

    @staticmethod
    def gradients(ctx: Any, g: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """Of the tensors that forward begins with, given those of what it returns."""
        current, w_rec, coefficients, v, a, i, r, z, w_in, bias, w_out, p, delay, x_bits, *saved = ctx.saved_tensors
        delays, *numbers, trace, spikes, _, as_bits, sparse_grad, reduced, want = ctx.constants
        # A compiled graph makes zeros of shape (0,) for what was not asked for.
        g_spikes = g[0] if spikes or as_bits else None
        g_traces = g[6:9] if trace else (None, None, None)
        g_readout = (None, None) if w_out is None else g[9:11]
        needed = ctx.needs_input_grad
        wanted = sum(1 << bit for bit, k in enumerate((0, 1, 8, 9, 10, 7)) if needed[k])
        g_current, g_w, g_coefficients, g_v, g_a, g_i, g_z, g_in, g_bias, g_out, g_p = _interruptible(
            torch.ops.lsnn.alif_backward,
            g_spikes, *g_traces, g[1], g[2], g[3], g[5], *g_readout, current, w_rec, coefficients, delay, delays, v, a,
            i, r, z, w_in, bias, w_out, p, *saved, *numbers, want, wanted, reduced, x_bits,
        )  # fmt: skip
        if sparse_grad and needed[1]:
            g_w = g_w.masked_fill_(w_rec == 0, 0.0)
        if w_in is not None and needed[0]:
            rows = g_current.flatten(0, 1)
            g_current = torch.mm(rows, w_in, out=torch.ops.lsnn.buffer(rows, rows.shape[0], w_in.shape[1]))
            g_current = g_current.view(current.shape)
        found = (g_current, g_w, None, g_v, g_a, g_i, None, g_z, g_in, g_bias, g_out, g_p)
        gradients = [x if need else None for x, need in zip(found, needed, strict=False)]
        gradients[2] = g_coefficients if want else None
        return tuple(gradients)


def _reduced() -> bool:
    """Whether products may round to bfloat16: torch's own switch for its matrix products in float32 says so."""
    return not torch.compiler.is_compiling() and torch.get_float32_matmul_precision() == "medium"


class Projection(NamedTuple):
    """What stands in front of the recurrence inside the operator: weights (N, I), bias (N) or None.

    bits (T, B, ceil(I / 32)): the inputs where they are bits, for which the current is only a carrier; or None.
    """

    w_in: Tensor
    bias: Tensor | None
    bits: Tensor | None = None


class Readout(NamedTuple):
    """What stands behind it: weights (O, N), state p (B, O), decay k."""

    w_out: Tensor
    p: Tensor
    k: float


def alif(
    current: Tensor, w_rec: Tensor, coefficients: Tensor, delay: Tensor | None, delays: list[int],
    state: tuple[Tensor, ...], *, dynamics: str, surrogate: str, dampening: float, refractory: int, smooth: bool,
    trace: bool, want: int, checkpoint: int = 0, projection: Projection | None = None, readout: Readout | None = None,
    spikes: bool = True, as_bits: bool = False, small_y: bool = False, sparse_grad: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The eleven differentiable outputs, and the spikes as bits.

    That is: spikes; v, a, i, r, z after the last step; traces v, a, threshold; p, last p. want: bit k set where the
    gradient of row k of coefficients (11,N) is asked for. checkpoint: 0, or steps between two saved states. spikes
    False: they are not written as numbers. as_bits: their bits are asked for, and the first output is their carrier;
    otherwise bits may be empty. small_y: y is saved as bfloat16. sparse_grad: no gradient where w_rec is 0.
    """
    forward_mode = not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0
    w_in, bias, x_bits = projection if projection else (None, None, None)
    w_out, p, k_out = readout if readout else (None, None, 0.0)
    if sparse_grad and torch.compiler.is_exporting():  # the bare operator of the program knows nothing of it
        w_rec = torch.where(w_rec == 0, 0.0, w_rec)
    tensors = (current, w_rec, coefficients, *state, w_in, bias, w_out, p)
    numbers = (DYNAMICS[dynamics], SURROGATES[surrogate], dampening, refractory, smooth)
    if forward_mode or torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        constants = (delays, *numbers, checkpoint, k_out, trace, spikes, small_y, as_bits, sparse_grad,
                     _reduced(), want)
        out = _Alif.apply(*tensors, delay, x_bits, *constants)
    else:
        with torch.no_grad():
            out = _forward(
                current, w_rec, coefficients, delay, delays, *state, w_in, bias, w_out, p, *numbers, trace, False, 0,
                k_out, spikes, x_bits, as_bits=as_bits, small_y=False,
            )  # fmt: skip
    return *out[:11], out[12]


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
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, x_rows = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        want_x, want_weight, want_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the backward pass is recorded, for second derivatives: by torch's own products
            g_x = (g @ weight).view(x.shape) if want_x else None
            return g_x, g.t() @ x_rows if want_weight else None, g.sum(0) if want_bias else None, None
        g_x = None
        if want_x and weight.shape[0] <= FEW_OUTPUTS:
            g_x = torch.ops.lsnn.linear_events(g, weight.t(), None).view(x.shape)
        elif want_x:
            g_x = torch.mm(g, weight, out=torch.ops.lsnn.buffer(g, *x_rows.shape)).view(x.shape)
        if ctx.events and (want_weight or want_bias):
            g_weight, g_bias = torch.ops.lsnn.linear_events_backward(g, x_rows)
            return g_x, g_weight if want_weight else None, g_bias if want_bias else None, None
        return g_x, torch.mm(g.t(), x_rows) if want_weight else None, g.sum(0) if want_bias else None, None


def cpu_kernels(x: Tensor) -> bool:
    """Whether the CPU kernels run what lies where x does: tests have the CUDA kernels emulated for such tensors."""
    return x.device.type == "cpu" and not (_C.emulator and "LSNN_EMULATE" in os.environ)


def plain(x: Tensor, weight: Tensor) -> bool:
    """Whether operators that only the CPU kernels have take x and weight."""
    return not (
        not available or type(x) is not Tensor or torch.compiler.is_compiling() or not cpu_kernels(x)
        or torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype
    )  # fmt: skip


def reused(x: Tensor, weight: Tensor) -> bool:
    """Whether the operators of this file take x (..., I) and weight (N, I): plain, and long enough to be worth it."""
    return plain(x, weight) and x.numel() // max(1, x.shape[-1]) * weight.shape[0] >= 1 << 18


def mostly_zero(x: Tensor) -> bool:
    """Whether adding rows for what is not zero beats a dense product, judged by a sample of the rows (..., I)."""
    with torch.no_grad():
        rows = x.reshape(-1, x.shape[-1])
        sample = rows[:: max(1, rows.shape[0] // 512)]
        return bool(torch.count_nonzero(sample) < 0.2 * sample.numel())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of a whole sequence (..., I): in reused memory, and by events where x is mostly zero, as spikes are."""
    if not reused(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, mostly_zero(x))


def _differentiated(args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """alif_forward with gradients, as exported programs call it, where its arguments have it save what they need."""
    schema = torch.ops.lsnn.alif_forward.default._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args, strict=True)}
    if not given.pop("save") or given["as_bits"]:
        return None
    named = inspect.signature(_Alif.forward).parameters
    all_coefficients = (1 << len(COEFFICIENTS)) - 1
    given["want"] = all_coefficients if given["coefficients"].requires_grad else 0
    given["sparse_grad"], given["reduced"] = False, _reduced()
    return _Alif.apply(*(given[name] for name in named))


def _autograd_kernel(name: str) -> Callable[..., Any]:
    """The autograd kernel of a raw operator: an error where a gradient would be lost without a word."""
    op = getattr(torch.ops.lsnn, name).default

    def kernel(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            out = _differentiated(args) if name == "alif_forward" else None
            if out is not None:
                return out
            raise RuntimeError(
                f"torch.ops.lsnn.{name} has no gradient of its own: expected tensors that do not require grad, got "
                "some that do; call the functions of lsnn_ext.functional, which are differentiable"
            )
        return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    return kernel


if available:
    _registry = torch.library.Library("lsnn", "IMPL")
    for _name, _kernel in _fake.kernels(_C.segment).items():
        torch.library.register_fake(f"lsnn::{_name}", _kernel)
        for _device in ("cpu", "cuda"):
            torch.library.register_autocast(f"lsnn::{_name}", _device, torch.float32)
        _registry.impl(_name, _autograd_kernel(_name), "Autograd", with_keyset=True)
    torch.library.register_fake("lsnn::buffer", lambda like, rows, columns: like.new_empty(rows, columns))
