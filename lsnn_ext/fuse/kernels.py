"""From a step to kernels that the process has registered: traced, compiled or interpreted."""
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._core.coefficients import Coefficient
from .closure import Watch
from .neuron import Neuron, Parts

_lock = threading.RLock()
_registered: set[str] = set()


class Kernel(NamedTuple):
    """A step in one dtype, with coefficients of these forms."""

    key: str  # of the registered kernels
    prologue: Callable[[Sequence[Coefficient]], Sequence[Tensor]]  # the rows that they read
    n_rows: int

    def rows(self, coefficients: Mapping[str, Coefficient], N: int, like: Tensor) -> Tensor:
        """(C, N) in the dtype of like, without a graph."""
        if not self.n_rows:
            return like.new_empty(0, N)
        with torch.no_grad():
            found = self.prologue(list(coefficients.values()))
            return torch.stack([row.expand(N) for row in found])


def can_run() -> bool:
    """Whether this build has a place for such kernels."""
    return hasattr(_ops._C, "register_neuron")


def form_of(value: Coefficient) -> str:
    """What a trace depends on."""
    if not isinstance(value, Tensor):
        return "number"
    return "()" if value.dim() == 0 else "(N,)"


def kernel_of(neuron: Neuron, parts: Parts, dtype: torch.dtype,
              coefficients: Mapping[str, Coefficient]) -> Kernel:
    """Makes it at the first call, and again where something changed that the step reads.

    Raises:
        TypeError: the step reads a tensor that requires a gradient and is no argument.
    """
    key = dtype, tuple((name, form_of(value)) for name, value in coefficients.items())
    found = neuron.kept.get(key)
    if found is not None and found[0].is_current():
        return found[1]  # type: ignore[no-any-return]
    with _lock:
        watch = Watch(neuron.step)
        if (name := watch.learned()) is not None:
            raise TypeError(f"step: expected a keyword-only argument for what has a gradient, got "
                            f"{name}, which the step reads from outside; such a gradient would be "
                            f"lost")
        kernel = _make(neuron, parts, dtype, coefficients)
        neuron.kept[key] = watch, kernel
    return kernel


def _make(neuron: Neuron, parts: Parts, dtype: torch.dtype,
          coefficients: Mapping[str, Coefficient]) -> Kernel:
    from .compile import shared_object
    from .generate import generate
    from .trace import trace

    program, prologue = trace(neuron.step, currents=len(parts.currents), states=len(parts.states),
                              dtype=dtype, coefficients=coefficients)
    source = generate(program)
    path = shared_object(source)
    key = hashlib.sha256(source.encode()).hexdigest() + ("" if path else " interpreted")
    _ops.keep_sizes(key, _ops.NeuronSizes(
        program.states, program.currents, program.coefficients, len(program.gradients),
        not program.is_spike))
    if key not in _registered:
        if path is None:
            from .encode import encode

            _ops._C.register_program(key, dtype == torch.float64, *encode(program))
        else:
            _ops._C.register_neuron(key, str(path))
        _registered.add(key)
    return Kernel(key, prologue, program.coefficients)
