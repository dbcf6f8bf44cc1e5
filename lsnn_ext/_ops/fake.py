"""Fake kernels: shapes, dtypes and devices of the results of the operators.

A real tensor among meta tensors is an error: torch would use the fake kernel and return memory that
was never written.
"""
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .._core.bits import count_words
from .._core.state import count_past_steps
from .._core.torch_internals import bind_arguments, find_tensors
from ..models import COEFFICIENTS
from .arguments import CHUNK, find_sizes
from .load import _C, Constants, count_packed, has_bit

_META = torch.device("meta")


def _forward(args: Any) -> tuple[Any, ...]:
    c, new, delays = Constants(*args.constants), args.x.new_empty, args.delays
    neuron = find_sizes(args.neuron)
    S, K = neuron.states, neuron.currents
    (T, B, inputs), k = args.x.shape, args.coefficients
    w_rec = args.recurrence[0] if args.recurrence else None
    # On a GPU, which projects no inputs, the kernels may make k.
    N = k.shape[1] if k is not None else inputs if w_rec is None else w_rec.shape[-1]
    w_out = args.readout[0] if args.readout else None
    O = 0 if w_out is None else w_out.shape[0]

    def when(is_returned: Any, *shape: Any) -> Tensor:
        return new(shape if is_returned else (0,))

    def requested(name: str) -> bool:
        return has_bit("outputs", c.outputs, name)

    save, every = requested("saved"), c.checkpoint or (CHUNK if args.neuron else _C.segment)
    is_number = c.smooth or neuron.has_number_spikes
    y = new((T, B, K * N) if save and not c.checkpoint else (0,),
            dtype=torch.bfloat16 if requested("saved_bf16") else None)
    bits = new((T, B, count_words(N)) if save or requested("bits") else (0,), dtype=torch.int32)
    saved = [y, bits, when(save and is_number, T, B, N),
             when(save, S * ((T + every - 1) // every), B, N),  # never 1, which torch specializes
             *([] if k is not None else [new(len(COEFFICIENTS), N)]),
             *([new(count_packed(len(delays), N))] if requested("packed") else [])]
    last = [*(new(B, N) for _ in range(S)), new(count_past_steps(delays), B, N)]
    traces = [when(requested("traces"), T, B, N) for _ in range(neuron.traces)]
    return when(requested("spikes"), T, B, N), last, traces, [when(O, T, B, O),
                                                              when(O, B, O)], saved


def _backward(args: Any) -> tuple[Any, ...]:
    c, coefficients = Constants(*args.constants), args.coefficients
    new = coefficients.new_empty
    has_state = bool(args.state)
    neuron = find_sizes(args.neuron)
    K, G = neuron.currents, neuron.gradients
    _, bits, *_ = args.saved
    (T, B, _), N = bits.shape, coefficients.shape[1]
    w_in, bias, _ = (*args.projection, None, None, None)[:3]
    w_out, _, b_out = (*args.readout, None, None, None)[:3]
    w_rec, _, kernel, _ = (*args.recurrence, None, None, None, None)[:4]
    cuda = coefficients.device.type == "cuda"

    def when(is_returned: Any, shape: Any) -> Tensor:
        return new(shape if is_returned else (0,))

    def requested(name: str) -> bool:
        return has_bit("gradients", c.gradients, name)

    def of(name: str, tensor: Tensor | None) -> Tensor:
        return when(tensor is not None and requested(name), () if tensor is None else tensor.shape)

    to_inputs = w_in is not None and (requested("w_in") or requested("bias"))
    inputs = K * N if w_in is None else w_in.shape[1]
    return (
        when(requested("x") or cuda, (T, B, inputs)),
        [of("w_rec", w_rec), of("delay_kernel", kernel)],
        when(c.coefficient_gradients, (G, N)),
        [*(when(has_state, (B, N)) for _ in range(neuron.traces)),
         when(has_state and (requested("z") or cuda), args.state[-1].shape if has_state else ())],
        [when(to_inputs, (N, inputs)), when(to_inputs and bias is not None, (N,))],
        [of("w_out", w_out), when(w_out is not None, () if w_out is None else (B, w_out.shape[0])),
         of("b_out", b_out)])


def _with_last(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of every step as x, and those of the last one."""
    return x.new_empty(x.shape), x.new_empty(x.shape[1:])


def _on_one_device(name: str, kernel: Callable[[Any], Any]) -> Callable[..., Any]:
    """Returns a kernel of arguments by name, checked to be on one device, lengths on the CPU."""
    op = getattr(torch.ops.lsnn, name).default

    def checked(*values: Any) -> Any:
        args = SimpleNamespace(**bind_arguments(op, values))
        for argument in op._schema.arguments:
            # torch allows None
            if getattr(args, argument.name) is None and str(argument.type) == "Tensor":
                raise RuntimeError(f"{argument.name}: expected a tensor, got None")
        tensors = vars(args).copy()
        lengths = tensors.pop("lengths", None)
        devices = {tensor.device for tensor in find_tensors(tensors)}
        if lengths is not None and not lengths.is_cpu and devices | {lengths.device} != {_META}:
            raise RuntimeError(f"lengths: expected a tensor on the CPU, which plans the work, got "
                               f"device {lengths.device}")
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"torch.ops.lsnn.{name}: expected all tensors on one device, got "
                               f"{found}")
        return kernel(args)

    return checked


def make_kernels() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[[Any], Any]] = {
        "alif_forward": _forward, "alif_backward": _backward,
        "linear_events": lambda args: args.x.new_empty(args.x.shape[0], args.weight.shape[0]),
        "linear_events_backward": lambda args: (
            args.x.new_empty(args.g.shape[1], args.x.shape[1]),
            args.x.new_empty(args.g.shape[1] if args.bias else 0)),
        "spike_bits": lambda args: args.x.new_empty(
            *args.x.shape[:-1], count_words(args.x.shape[-1]), dtype=torch.int32),
        "leaky_readout": lambda args: _with_last(args.x),
        "leaky_readout_backward": lambda args: _with_last(args.g_p),
    }
    return {name: _on_one_device(name, kernel) for name, kernel in found.items()}
