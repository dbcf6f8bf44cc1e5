"""The operators on tensors that have no memory: shapes, dtypes and devices of what they return.

A real tensor among meta tensors would make torch take these for the whole call and return memory
that nobody wrote.
"""
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .._core.bits import count_words
from .._core.state import count_past_steps
from ..models import COEFFICIENTS
from .load import _C, Constants, has_bit
from .neuron_sizes import CHUNK, NeuronSizes, find_sizes

# v, a, i, r; of the results of a model
_MODEL = NeuronSizes(4, 1, len(COEFFICIENTS), len(COEFFICIENTS), False)
_META = torch.device("meta")


def _sizes(given: Any) -> NeuronSizes | None:
    """Of the neuron that an operator is called with; None: it is a model."""
    return find_sizes(given.neuron) if given.neuron else None


def _forward(given: Any) -> tuple[Any, ...]:
    c, new, delays = Constants(*given.constants), given.x.new_empty, given.delays
    neuron = _sizes(given)
    S, K = (neuron or _MODEL)[:2]
    (T, B, inputs), k = given.x.shape, given.coefficients
    w_rec = given.recurrence[0] if given.recurrence else None
    # made of rows where there are none, on a GPU, which projects no inputs
    N = k.shape[1] if k is not None else inputs if w_rec is None else w_rec.shape[-1]
    w_out = given.readout[0] if given.readout else None
    O = 0 if w_out is None else w_out.shape[0]  # noqa: E741

    def when(wanted: Any, *shape: Any) -> Tensor:
        return new(shape if wanted else (0,))

    def requested(name: str) -> bool:
        return has_bit("outputs", c.outputs, name)

    save, every = requested("saved"), c.checkpoint or (CHUNK if neuron else _C.segment)
    is_number = c.smooth or neuron is not None and neuron.has_number_spikes
    y = new((T, B, K * N) if save and not c.checkpoint else (0,),
            dtype=torch.bfloat16 if requested("saved_bf16") else None)
    bits = new((T, B, count_words(N)) if save or requested("bits") else (0,), dtype=torch.int32)
    saved = [
        y,
        bits,
        when(save and is_number, T, B, N),
        when(save, S * ((T + every - 1) // every), B, N),  # never one row: torch tells that apart
        *([] if k is not None else [new(len(COEFFICIENTS), N)]),
    ]
    last = [*(new(B, N) for _ in range(S)), new(count_past_steps(delays), B, N)]
    traces = [when(requested("traces"), T, B, N) for _ in range(S if neuron else 3)]
    return when(requested("spikes"), T, B, N), last, traces, [when(O, T, B, O),
                                                              when(O, B, O)], saved


def _backward(given: Any) -> tuple[Any, ...]:
    c, coefficients = Constants(*given.constants), given.coefficients
    new = coefficients.new_empty
    has_state = bool(given.state)
    neuron = _sizes(given)
    S, K, _, G, _ = neuron or _MODEL
    _, bits, *_ = given.saved
    (T, B, _), N = bits.shape, coefficients.shape[1]
    w_in, bias, _ = (*given.projection, None, None, None)[:3]
    w_out, _, b_out = (*given.readout, None, None, None)[:3]
    w_rec = given.recurrence[0] if given.recurrence else None
    cuda = coefficients.device.type == "cuda"

    def when(wanted: Any, shape: Any) -> Tensor:
        return new(shape if wanted else (0,))

    def requested(name: str) -> bool:
        return has_bit("gradients", c.gradients, name)

    to_inputs = w_in is not None and (requested("w_in") or requested("bias"))
    inputs = K * N if w_in is None else w_in.shape[1]
    return (
        when(requested("x") or cuda, (T, B, inputs)),
        when(w_rec is not None and requested("w_rec"), () if w_rec is None else w_rec.shape),
        when(c.coefficient_gradients, (G, N)),
        [*(when(has_state, (B, N)) for _ in range(S if neuron else 3)),
         when(has_state and (requested("z") or cuda), given.state[-1].shape if has_state else ())],
        [when(to_inputs, (N, inputs)), when(to_inputs and bias is not None, (N,))],
        [when(w_out is not None and requested("w_out"), () if w_out is None else w_out.shape),
         when(w_out is not None, () if w_out is None else (B, w_out.shape[0])),
         when(requested("b_out") and b_out is not None, () if b_out is None else b_out.shape)],
    )


def _linear(given: Any) -> Tensor:
    return given.x.new_empty(given.x.shape[0], given.weight.shape[0])


def _linear_backward(given: Any) -> tuple[Tensor, Tensor]:
    g, x = given.g, given.x
    N = g.shape[1]
    return x.new_empty(N, x.shape[1]), x.new_empty(N if given.bias else 0)


def _spike_bits(given: Any) -> Tensor:
    R, I = given.x.shape
    return given.x.new_empty(R, count_words(I), dtype=torch.int32)


def _leaky_readout(given: Any) -> tuple[Tensor, Tensor]:
    return given.x.new_empty(given.x.shape), given.x.new_empty(given.x.shape[1:])


def _leaky_readout_backward(given: Any) -> tuple[Tensor, Tensor]:
    return given.g_p.new_empty(given.g_p.shape), given.g_p.new_empty(given.g_p.shape[1:])


def bind_arguments(op: Any, args: Iterable[Any]) -> SimpleNamespace:
    """The arguments of an operator by the names of its schema; torch leaves out those at the end
    that are defaults."""
    given = {argument.name: argument.default_value for argument in op._schema.arguments}
    return SimpleNamespace(**given | dict(zip(given, args, strict=False)))


def find_tensors(args: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of an operator, those in lists too."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (part for part in value if isinstance(part, Tensor))


def _on_one_device(name: str, kernel: Callable[[Any], Any]) -> Callable[..., Any]:
    """The kernel, given arguments by name, where they lie on one device; an error for others.

    Lengths lie on the CPU always, as the host plans the work by them.
    """
    op = getattr(torch.ops.lsnn, name).default

    def checked(*args: Any) -> Any:
        given = bind_arguments(op, args)
        for argument in op._schema.arguments:
            # torch lets it through
            if getattr(given, argument.name) is None and str(argument.type) == "Tensor":
                raise RuntimeError(f"{argument.name}: expected a tensor, got None")
        tensors = vars(given).copy()
        lengths = tensors.pop("lengths", None)
        devices = {tensor.device for tensor in find_tensors(tensors.values())}
        if lengths is not None and not lengths.is_cpu and devices | {lengths.device} != {_META}:
            raise RuntimeError(f"lengths: expected a tensor on the CPU, where the work is planned, "
                               f"got device {lengths.device}")
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"torch.ops.lsnn.{name}: expected all tensors on one device, got "
                               f"{found}")
        return kernel(given)

    return checked


def make_kernels() -> dict[str, Callable[..., Any]]:
    """By the name of the operator."""
    found: dict[str, Callable[[Any], Any]] = {
        "alif_forward": _forward, "alif_backward": _backward,
        "linear_events": _linear, "linear_events_backward": _linear_backward,
        "spike_bits": _spike_bits,
        "leaky_readout": _leaky_readout, "leaky_readout_backward": _leaky_readout_backward,
    }
    return {name: _on_one_device(name, kernel) for name, kernel in found.items()}
