"""The operators on tensors that have no memory: shapes, dtypes and devices of what they return.

A real tensor among meta tensors would make torch take these for the whole call and return memory that nobody wrote.
"""
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def _words(N: int) -> int:
    return (N + 31) // 32


def _forward(
    segment: int, current: Tensor, w_rec: Tensor, coefficients: Tensor, delay: Tensor | None, delays: list[int],
    v: Tensor, a: Tensor, i: Tensor, r: Tensor, z: Tensor, w_in: Tensor | None, bias: Tensor | None,
    w_out: Tensor | None, p: Tensor | None, dynamics: int, surrogate: int, dampening: float, refractory: int,
    smooth: bool, trace: bool, save: bool, checkpoint: int, k_out: float, spikes: bool, x_bits: Tensor | None,
    as_bits: bool, small_y: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    T, B, N = *current.shape[:2], w_rec.shape[0]
    every, new = checkpoint or segment, current.new_empty

    def when(wanted: bool, *shape: Any) -> Tensor:
        return new(shape if wanted else (0,))

    p_all, p_last = (new(0), new(0)) if w_out is None else (new(T, B, w_out.shape[0]), new(B, w_out.shape[0]))
    bits = new((T, B, _words(N)) if save or as_bits else (0,), dtype=torch.int32)
    y = new((T, B, N) if save and not checkpoint else (0,), dtype=torch.bfloat16 if small_y else None)
    return (
        when(spikes, T, B, N), *(new(B, N) for _ in range(4)), new(1 + delays[-1], B, N),
        *(when(trace, T, B, N) for _ in range(3)), p_all, p_last, y, bits,
        when(save and smooth, T, B, N), when(save, (T + every - 1) // every, 4, B, N),
    )  # fmt: skip


def _backward(*args: Any) -> tuple[Tensor, ...]:
    w_rec, coefficients, z, w_in, bias, w_out, p, _, bits = args[11], args[12], *args[19:26]
    want, wanted = args[35:37]
    new, (T, B, _), N = w_rec.new_empty, bits.shape, w_rec.shape[0]

    def when(wanted: Any, shape: Any) -> Tensor:
        return new(shape if wanted else (0,))

    asked = [wanted >> bit & 1 for bit in range(6)]
    cuda = w_rec.device.type == "cuda"
    to_inputs = w_in is not None and (asked[2] or asked[3])
    return (
        when(asked[0] or cuda, (T, B, N)), when(asked[1], w_rec.shape), when(want, coefficients.shape),
        *(new(B, N) for _ in range(3)), when(asked[5] or cuda, z.shape),
        when(to_inputs, () if w_in is None else w_in.shape), when(to_inputs and bias is not None, (N,)),
        when(w_out is not None and asked[4], () if w_out is None else w_out.shape),
        when(p is not None, () if p is None else p.shape),
    )  # fmt: skip


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _linear_backward(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(g.shape[1], x.shape[1]), x.new_empty(g.shape[1])


def _on_one_device(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel for arguments that all lie on one device, an error for others."""

    def checked(*args: Any) -> Any:
        devices = {x.device for x in args if isinstance(x, Tensor)}
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"torch.ops.lsnn.{name}: expected all tensors on one device, got {found}")
        return kernel(*args)

    return checked


def kernels(segment: int) -> dict[str, Callable[..., Any]]:
    """By the name of the operator; segment: steps between two saved states."""
    found: dict[str, Callable[..., Any]] = {
        "alif_forward": partial(_forward, segment), "alif_backward": _backward,
        "linear_events": _linear, "linear_events_backward": _linear_backward,
    }  # fmt: skip
    return {name: _on_one_device(name, kernel) for name, kernel in found.items()}
