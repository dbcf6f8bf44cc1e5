"""From a step to kernels that the process has registered: traced, compiled or interpreted."""
import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._core.coefficients import Coefficient
from .._core.torch_internals import mark_constant, without_modes
from .closure import Watch
from .neuron import Neuron, Parts, by_name, examples_of, forms_of, without_autocast

_lock = threading.RLock()
_registered: set[str] = set()


class Kernel(NamedTuple):
    """A step in one dtype, with coefficients of these forms."""

    key: str  # of the registered kernels
    prologue: Callable[[Sequence[Coefficient]], Sequence[Tensor]]  # the rows that they read
    n_rows: int

    def rows(self, coefficients: Sequence[Coefficient], like: Tensor) -> Tensor:
        """(C, N) without a graph; like: (..., N) of the dtype of the computation."""
        N = like.shape[-1]
        if not self.n_rows:
            return like.new_empty(0, N)
        with torch.no_grad():
            return torch.stack([row.expand(N) for row in self.prologue(coefficients)])


# By name those that compiled graphs hold, with what their steps read then.
_of_graphs: dict[str, tuple[Watch, Kernel]] = {}


def key_and_rows(neuron: Neuron, parts: Parts, x: Tensor,
                 coefficients: Mapping[str, Coefficient]) -> tuple[str, Tensor]:
    """The key of the kernels of a step, and the coefficients (C, N) that they read.

    x: (T, B, K, N). The kernels are made at the first call, and again where something changed that
    the step reads. A graph of torch.compile keeps its kernels, and refuses to run after that.

    Raises:
        TypeError: the step reads a tensor that requires a gradient and is no argument.
    """
    if not torch.compiler.is_compiling():
        with without_autocast(x.device):
            _, kernel = _find_or_make(neuron, parts, x.dtype, coefficients)
            return kernel.key, kernel.rows(list(coefficients.values()), x)
    name, key = _key_for_graph(neuron.name, len(parts.currents), str(x.dtype),
                               forms_of(coefficients)).split("|")
    values = coefficients.values()
    tensors = [one.detach() if isinstance(one, Tensor) else None for one in values]
    numbers = [0.0 if isinstance(one, Tensor) else one for one in values]
    return key, torch.ops.lsnn.neuron_rows(x.detach(), tensors, numbers, name)


def _find_or_make(neuron: Neuron, parts: Parts, dtype: torch.dtype,
                  coefficients: Mapping[str, Coefficient]) -> tuple[Watch, Kernel]:
    form = dtype, forms_of(coefficients)
    found: tuple[Watch, Kernel] | None = neuron.kept.get(form)
    if found is not None and found[0].is_current():
        return found
    with _lock:
        watch = Watch(neuron.step)
        if (name := watch.learned()) is not None:
            raise TypeError(f"step: expected a keyword-only argument for what has a gradient, got "
                            f"{name}, which the step reads from outside; such a gradient would be "
                            f"lost")
        with without_modes():
            found = neuron.kept[form] = watch, _make(neuron, parts, dtype, coefficients)
    return found


def _key_for_graph(name: str, currents: int, dtype: str, forms: str) -> str:
    """The name of _of_graphs and the key of the kernels, as a constant of torch.compile."""
    neuron, of = by_name[name], getattr(torch, dtype.removeprefix("torch."))
    parts = Parts(neuron.inputs[:currents], neuron.inputs[currents:-1])
    with without_modes():
        made = _find_or_make(neuron, parts, of, examples_of(forms, 2, of))
    of_graph = f"{name} {len(_of_graphs)}"
    _of_graphs[of_graph] = made
    _define_rows()
    return f"{of_graph}|{made[1].key}"


mark_constant(_key_for_graph)


@functools.cache
def _define_rows() -> torch.library.Library:
    """The operator that computes the rows in a graph as outside of one, bit for bit."""
    library = torch.library.Library("lsnn", "FRAGMENT")
    library.define("neuron_rows(Tensor like, Tensor?[] coefficients, float[] numbers, str name) -> "
                   "Tensor")
    library.impl("neuron_rows", _rows_of_graph, "CompositeExplicitAutograd")
    torch.library.register_fake("lsnn::neuron_rows", lambda like, coefficients, numbers, name:
                                like.new_empty(_of_graphs[name][1].n_rows, like.shape[-1]))
    return library


def _rows_of_graph(like: Tensor, coefficients: Sequence[Tensor | None], numbers: Sequence[float],
                   name: str) -> Tensor:
    watch, kernel = _of_graphs[name]
    if not watch.is_current():
        raise RuntimeError(f"neuron: expected what the step {name.split('#')[0]} reads as it was "
                           f"when torch.compile traced it, got other numbers or objects; call "
                           f"torch.compiler.reset()")
    with without_autocast(like.device):
        return kernel.rows([number if one is None else one for one, number in
                            zip(coefficients, numbers, strict=True)], like)


def _make(neuron: Neuron, parts: Parts, dtype: torch.dtype,
          coefficients: Mapping[str, Coefficient]) -> Kernel:
    from .compile import shared_object
    from .generate import generate
    from .trace import StepError, trace

    try:
        program, prologue = trace(neuron.step, currents=len(parts.currents),
                                  states=len(parts.states), dtype=dtype, coefficients=coefficients)
    except StepError as error:
        if ";" in str(error):
            raise
        raise StepError(f"{error}; with lsnn_ext.use_reference() the step runs as a loop over "
                        f"time") from error
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
