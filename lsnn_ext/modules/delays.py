"""Delays of each synapse in a buffer that may be changed, and their distinct values."""
from typing import Any

import torch
from torch import Tensor

from .._core.arguments import is_readable
from ..functional import Delays
from .neuron import write_constant


def set_delay(layer: Any, delay: int | Tensor, device: torch.device | str | None,
              currents: int = 1) -> None:
    """Sets the delay of a new layer: an int, or a buffer for integers (N, N), which reset_delay
    fills; with K > 1 currents also (K, N, N)."""
    N, layer._first_delay, layer._distinct = layer.hidden_size, None, ()
    if isinstance(delay, bool) or not isinstance(delay, int | Tensor):
        raise TypeError(f"delay: expected an int or an integer tensor ({N}, {N}), got "
                        f"{type(delay).__name__}")
    if isinstance(delay, int):
        if delay < 0:
            raise ValueError(f"delay: expected extra steps >= 0, got {delay}")
        layer.delay = delay
        return
    shapes = [(N, N)] if currents == 1 else [(N, N), (currents, N, N)]
    if delay.shape not in shapes:
        raise ValueError(f"delay: expected integers {' or '.join(map(str, shapes))}, got shape "
                         f"{tuple(delay.shape)}")
    layer._distinct = Delays.of(delay).distinct
    layer._first_delay = delay.detach().to("cpu", copy=True)
    layer.register_buffer("delay", torch.empty(delay.shape, device=device, dtype=delay.dtype))
    layer.__dict__["_seen"] = layer._first_delay, layer._distinct
    layer.register_load_state_dict_post_hook(_refresh)


def _refresh(layer: Any, _: object) -> None:
    read_delay(layer)  # torch.compile, which may follow, cannot read numbers


def reset_delay(layer: Any) -> None:
    """Writes the delays of the constructor."""
    if layer._first_delay is not None:
        write_constant("delay", layer.delay, layer._first_delay)


def read_delay(layer: Any) -> int | Delays:
    """The current delay as functional.alif takes it.

    On the CPU all numbers of the buffer are read and, unless all are equal, compared with the last
    ones, since version counters miss writes through .data or NumPy. On other devices reading would
    synchronize, so the version counter is used; inside torch.compile nothing is compared.
    functional.alif raises an error for delays that are not among the distinct values.
    """
    delay: int | Tensor = layer.delay
    if isinstance(delay, int):
        return delay
    if is_readable(delay):
        if (delay.shape[-2:] == (layer.hidden_size, layer.hidden_size)
                and delay.dtype in (torch.int64, torch.int32)):
            low, high = (int(bound) for bound in delay.aminmax())
            if low == high:
                layer.__dict__["_distinct"] = (low,)
                return low
        seen, distinct = layer.__dict__.get("_seen", (None, ()))
        if seen is None or seen.dtype != delay.dtype or not torch.equal(seen, delay):
            distinct = Delays.of(delay).distinct
            layer.__dict__["_seen"] = delay.detach().clone(), distinct
        layer.__dict__["_distinct"] = distinct
        return Delays(delay, distinct)
    if not torch.compiler.is_compiling() and not delay.is_meta and not delay.is_cpu:
        version = None if delay.is_inference() else delay._version
        seen = layer.__dict__.get("_seen_there")
        if seen is None or seen[0] is not delay or seen[1] != version:
            layer._distinct = Delays.of(delay).distinct
            layer.__dict__["_seen_there"] = delay, version
    return Delays(delay, layer._distinct)
