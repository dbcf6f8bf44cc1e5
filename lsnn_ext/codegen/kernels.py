"""From a step to kernels that the process has registered: traced, compiled or interpreted."""
import functools
import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._core.coefficients import Coefficient, Rows
from .._core.torch_internals import mark_constant, without_modes, without_saved_tensor_hooks
from .closure import Watch
from .form import join_states, make_examples, split_coefficient
from .neuron import Neuron, Parts, by_name, check_results, without_autocast
from .program import Program, Prologue, is_linear

_lock = threading.RLock()
_registered: set[int] = set()
MANY = 8  # kernels of one step, each for other numbers
MOST_OPERATORS = 2000  # for which a compiler takes some ten seconds


class NoKernelsError(Exception):
    """Why there are no CUDA kernels of a step."""


class Kernel(NamedTuple):
    """A step in one dtype, with coefficients of these forms."""

    key: int  # of the registered kernels
    prologue: Prologue  # computes the rows that they read
    n_rows: int
    is_compiled: bool  # else interpreted
    has_fixed_numbers: bool = False  # made for the numbers among the coefficients of one call
    why_not: str = ""  # why there are no kernels

    def rows(self, coefficients: Sequence[Coefficient], like: Tensor) -> Tensor:
        """Returns (C, N) without a graph; like: (..., N) of the dtype of the computation."""
        N = like.shape[-1]
        if not self.n_rows:
            return like.new_empty(0, N)
        with torch.no_grad():
            return torch.stack([row.expand(N) for row in self.prologue(coefficients, like.device)])


# By name those that compiled graphs hold, with what their steps read then.
_of_graphs: dict[str, tuple[Watch, Kernel]] = {}


def find_key_and_rows(neuron: Neuron, parts: Parts, x: Tensor,
                      coefficients: Mapping[str, Coefficient]) -> tuple[int, Tensor]:
    """Returns the key of the kernels of a step, and the coefficients (C, N) that they read.

    x: (T, B, K, N). The kernels are made at the first call, and again where something changed that
    the step reads. A graph of torch.compile keeps its kernels, and refuses to run after that.
    Raises TypeError if the step reads a tensor that requires a gradient and is no argument, and
    NoKernelsError if x is on a GPU, for which the step was not compiled.
    """
    if not torch.compiler.is_compiling():
        with without_autocast(x.device):
            _, kernel = find_kernel(neuron, parts, x, coefficients)
            return kernel.key, kernel.rows(list(coefficients.values()), x)
    name, key = _make_key_for_graph(neuron.name, str(x.dtype), parts.kinds).split("|")
    values = coefficients.values()
    tensors = [one.detach() if isinstance(one, Tensor) else None for one in values]
    numbers = [0.0 if isinstance(one, Tensor) else one for one in values]
    return int(key), torch.ops.lsnn.neuron_rows(x.detach(), tensors, numbers, name)


def find_kernel(neuron: Neuron, parts: Parts, x: Tensor,
                coefficients: Mapping[str, Coefficient]) -> tuple[Watch, Kernel]:
    """Returns the kernels, and what the step reads, outside of torch.compile. Raises as above."""
    watch, kernel = _find_or_make(neuron, parts, x, coefficients, x.shape[-1])
    if kernel.why_not:
        raise NoKernelsError(kernel.why_not)
    return watch, kernel


def _find_or_make(neuron: Neuron, parts: Parts, like: Tensor,
                  coefficients: Mapping[str, Coefficient],
                  N: int | None = None) -> tuple[Watch, Kernel]:
    form = like.dtype, torch.get_default_dtype(), parts.kinds, _find_architecture(like)
    numbers = tuple(one for one in coefficients.values() if not isinstance(one, Tensor))
    for key in (form, (form, numbers)):
        found: tuple[Watch, Kernel] | None = neuron.kernels.get(key)
        if found is not None and found[0].is_current():
            return found
    with _lock:
        watch = Watch(neuron.step)
        if (name := watch.find_learned()) is not None:
            raise TypeError(f"step: expected a keyword-only argument for what has a gradient, got "
                            f"{name}, which the step reads from outside; such a gradient would be "
                            f"lost")
        with (without_modes(), without_saved_tensor_hooks(),  # kernels outlive them
              torch.autograd.set_detect_anomaly(False)):
            found = watch, _make_kernel(neuron, parts, like, coefficients, N)
        if (name := watch.find_changed()) is not None:
            raise TypeError(f"step: expected a function that changes nothing that it reads, got a "
                            f"change of {name}; what lasts from step to step is a state")
        neuron.kernels[(form, numbers) if found[1].has_fixed_numbers else form] = found
        if found[1].has_fixed_numbers and sum(len(one) == 2 for one in neuron.kernels) == MANY:
            warnings.warn(f"{neuron!r}: compiled for {MANY} numbers, as the step reads its numbers "
                          f"in Python; pass what changes as a tensor, or compute it with torch",
                          stacklevel=2)
    return found


def _make_key_for_graph(name: str, dtype: str, forms: str) -> str:
    """Returns the name in _of_graphs and the key of the kernels, a constant of torch.compile."""
    neuron, of = by_name[name], getattr(torch, dtype.removeprefix("torch."))
    with without_modes():
        given = make_examples(forms, 2, of)
        like = torch.empty(0, dtype=of, device="cpu")
        made = _find_or_make(neuron, neuron.parts_of(given, like, 2), like, given)
    of_graph = f"{name} {len(_of_graphs)}"
    _of_graphs[of_graph] = made
    _define_rows()
    return f"{of_graph}|{made[1].key}"


mark_constant(_make_key_for_graph)


@functools.cache
def _define_rows() -> torch.library.Library:
    """Defines the operator that computes the rows in a graph, bitwise as outside of one."""
    library = torch.library.Library("lsnn", "FRAGMENT")
    library.define("neuron_rows(Tensor like, Tensor?[] coefficients, float[] numbers, str name) -> "
                   "Tensor")
    library.impl("neuron_rows", _compute_rows_of_graph, "CompositeExplicitAutograd")
    torch.library.register_fake("lsnn::neuron_rows", lambda like, coefficients, numbers, name:
                                like.new_empty(_of_graphs[name][1].n_rows, like.shape[-1]))
    return library


def _compute_rows_of_graph(like: Tensor, coefficients: Sequence[Tensor | None],
                           numbers: Sequence[float], name: str) -> Tensor:
    watch, kernel = _of_graphs[name]
    if not watch.is_current():
        raise RuntimeError(f"neuron: expected what the step {name.split('#')[0]} reads as it was "
                           f"when torch.compile traced it, got other numbers or objects; call "
                           f"torch.compiler.reset()")
    with without_autocast(like.device):
        return kernel.rows([number if one is None else one for one, number in
                            zip(coefficients, numbers, strict=True)], like)


def _find_architecture(like: Tensor) -> str:
    """Returns what kernels for a tensor are compiled for: cpu, host (the emulator), or sm_90."""
    if like.device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(like.device))
    return "cpu" if _ops.has_cpu_kernels(like) else "host"


def _make_kernel(neuron: Neuron, parts: Parts, like: Tensor,
                 coefficients: Mapping[str, Coefficient], N: int | None) -> Kernel:
    from .compile import CompileError
    from .generate import generate
    from .trace import StepError, trace

    sizes: Any = {"currents": len(parts.currents), "states": len(parts.states), "dtype": like.dtype,
                  "forms": parts.forms, **getattr(neuron.step, "integers", {})}
    tensors = {name: one for name, one in coefficients.items() if isinstance(one, Tensor)}
    numbers = {name: one for name, one in coefficients.items() if name not in tensors}
    is_fixed = False
    try:
        program, prologue = trace(neuron.step, coefficients=coefficients, **sizes)
    except StepError as error:
        # Python functions of numbers, such as math.exp and range, need their values.
        try:
            if not numbers or N is None:
                raise
            program, of_tensors = trace(functools.partial(neuron.step, **numbers),
                                        coefficients=tensors, **sizes)
        except StepError:
            if ";" in str(error):
                raise error from None
            raise StepError(f"{error}; with lsnn_ext.use_reference() the step runs as a loop over "
                            f"time") from error
        is_fixed = True
        each = iter(program.gradients)
        program = program._replace(gradients=tuple(
            next(each) if name in tensors else None for name, one in coefficients.items()
            for _ in (split_coefficient(one) if isinstance(one, Tensor) else [None])))

        def prologue(given: Sequence[Coefficient], device: torch.device) -> list[Tensor]:
            return of_tensors([one for one in given if isinstance(one, Tensor)], device)

    if getattr(neuron.step, "needs_linear_backward", False) and not is_linear(program):
        raise StepError("step: expected a backward that is linear in the gradient, as several "
                        "recurrent products need it, got another one")
    if len(program.nodes) > MOST_OPERATORS:
        raise StepError(f"step: expected at most {MOST_OPERATORS} operators, got "
                        f"{len(program.nodes)}")
    architecture = _find_architecture(like)
    if architecture == "cpu":
        key, is_compiled = _register(program, generate(program))
    elif program.means:
        return Kernel(0, prologue, program.coefficients, False, is_fixed, "a LayerNorm in a step")
    else:
        try:
            key, is_compiled = _register_cuda(program, architecture), True
        except (CompileError, OSError, RuntimeError) as error:
            if not _is_lasting(error):
                raise
            return Kernel(0, prologue, program.coefficients, False, is_fixed, str(error))
    _ops.register_sizes(key, _ops.NeuronSizes(
        program.states, program.states, program.currents, program.coefficients,
        len(program.gradients), not program.is_spike))
    kernel = Kernel(key, prologue, program.coefficients, is_compiled, is_fixed)
    if N is not None:
        try:
            _check(kernel, neuron, parts, like, coefficients, N)
        except RuntimeError as error:
            if architecture == "cpu" or not _is_lasting(error):
                raise
            return kernel._replace(why_not=str(error))
    return kernel


def _is_lasting(error: Exception) -> bool:
    """Returns whether the compiler, the loader or the driver refuses the kernels. Any other error,
    such as too little memory, may not occur in the next call."""
    return (not isinstance(error, RuntimeError)
            or str(error).startswith(("neuron: ", "driver: ")))  # of csrc/cuda/neuron_launch.cpp


def _register(program: Program, source: str) -> tuple[int, bool]:
    from .compile import shared_object, warn_of_interpreter
    from .encode import encode

    key = _hash_text(source)
    if (path := shared_object(source)) is not None:
        try:
            if key not in _registered:
                _ops._C.register_neuron(key, str(path))
                _registered.add(key)
            return key, True
        except RuntimeError as error:  # a folder from which nothing may be loaded
            warn_of_interpreter(str(error))
    key = _hash_text(source + "interpreted")
    if key not in _registered:
        _ops._C.register_program(key, program.dtype == torch.float64, *encode(program))
        _registered.add(key)
    return key, False


def _register_cuda(program: Program, architecture: str) -> int:
    from .cuda import compile_kernels
    from .generate import generate

    source = generate(program, is_cuda=True)
    path = compile_kernels(source, architecture)
    key = _hash_text(source + architecture)
    if key not in _registered:
        sizes = [program.states, program.currents, program.coefficients, len(program.gradients)]
        has_product = any(one is not None for one in program.d_currents)
        _ops._C.register_cuda_neuron(key, str(path), program.dtype == torch.float64, sizes,
                                     not program.is_spike, has_product)
        _registered.add(key)
    return key


def _hash_text(text: str) -> int:
    """Returns 63 bits of a hash, an int argument of the operators."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _check(kernel: Kernel, neuron: Neuron, parts: Parts, like: Tensor,
           coefficients: Mapping[str, Coefficient], N: int) -> None:
    """Raises StepError if most results of a step of the kernels differ from those of the step
    itself. One that looks at the types of its coefficients may be another while it is traced."""
    from .trace import StepError

    random = torch.Generator().manual_seed(0)
    B, K, S = 4, len(parts.currents), sum(form.rows() for form in parts.forms)
    c, s = (torch.randn(n, B, N, generator=random, device="cpu").to(like) for n in (K, S))
    if getattr(neuron.step, "integers", {}):  # some of them are
        c, s = c.round(), s.round()
    z = (torch.rand(B, N, generator=random, device="cpu") < 0.5).to(like)
    with torch.no_grad():
        states = join_states(list(s.clone()), parts.forms)
        wanted = check_results(neuron.step(*c.clone(), *states, z.clone(), **coefficients))
        rows = kernel.rows(list(coefficients.values()), c)
        tensors = _ops.Tensors(c.transpose(0, 1).reshape(1, B, K * N), z[None], None, rows=rows)
        made = _ops.run_recurrence(_ops.Settings.of_neuron(kernel.key, (), ["spikes"]), tensors,
                                   list(s), Rows((), ()), None)
    names = *parts.states, neuron.inputs[-1]
    results = (*join_states(made.state[:-1], parts.forms), made.spikes[0])
    for name, got, want in zip(names, results, wanted, strict=True):
        close = torch.isclose(got, want.to(got.dtype), rtol=1e-3, atol=1e-3, equal_nan=True)
        if close.double().mean() < 0.5:
            raise StepError(f"step: expected the same {name} from the step and from its trace, got "
                            f"others; write it without a look at the types of its coefficients")
