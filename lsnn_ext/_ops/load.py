"""The compiled part: its tables, which tensors its kernels take, and options to force on it."""
import importlib.util
import os
import sys
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.torch_internals import is_batched, is_zero_tensor
from ..models import COEFFICIENTS, MODELS, SURROGATE_NAMES

_FOLDER = Path(__file__).absolute().parents[1]  # not resolved: its files may be links


def has_compiled_part(folder: Path) -> bool:
    """Whether the folder of a package has one for this Python."""
    return any((folder / f"_C{end}").is_file() for end in EXTENSION_SUFFIXES)


def explain_absence() -> str:
    """Why the folder of this package has none."""
    if not (_FOLDER.parent / "setup.py").is_file():
        return "it was not built when the package was installed"
    others = [Path(entry).resolve() / _FOLDER.name for entry in sys.path]
    editable = importlib.util.find_spec("lsnn_ext._C")  # of an editable installation
    if editable is not None and editable.origin is not None:
        others.append(Path(editable.origin).parent)
    for other in others:
        if has_compiled_part(other):
            return (f"Python has imported the sources in {_FOLDER}, which are not built, instead "
                    f"of the installed package in {other}; start Python outside of "
                    f"{_FOLDER.parent}, or run make build there")
    return f"the sources in {_FOLDER} are not built; run make build in {_FOLDER.parent}"


try:
    # Otherwise that of an editable installation is imported, which may be of other sources.
    if "lsnn_ext._C" not in sys.modules and not has_compiled_part(_FOLDER):
        raise ImportError(explain_absence())
    from .. import _C  # type: ignore[attr-defined]

    load_error: Exception | None = None
except ImportError as error:  # for example no compiler at installation
    _C = None
    load_error = error

available = _C is not None

# Devices with kernels; "meta" has shapes only.
DEVICES = ("cpu", *(["cuda"] if _C is not None and _C.cuda else []), "meta")
# The names of csrc/torch/boundary.h, in order: of numbers in lists that operators take, and of bits
# in masks.
def _make_tuple(kind: str, names: Sequence[str], **defaults: int) -> Any:
    return namedtuple(kind, names, defaults=[defaults.get(name, 0) for name in names])  # type: ignore[misc]


Constants = _make_tuple("Constants", () if _C is None else _C.constants,
                        interface=getattr(_C, "interface", 0))
Numbers = _make_tuple("Numbers", () if _C is None else _C.numbers)
# Options that may be forced, see forced(); 0: the library chooses.
Options = _make_tuple("Options", () if _C is None else _C.options)
# Elements of a result from which on reused memory is faster.
MANY = 1 << 18
_FEW = f"the product has fewer than {MANY:,} elements"


def check_tables(compiled: Any) -> None:
    """Raises ImportError if the compiled part was built from another lsnn_ext/models.py."""
    fields = "test", "ge", "scale", "reset", "when", "drive"
    models = [{"name": name, **{field: getattr(model, field) for field in fields},
               "detach": set(model.detach)}
            for name, model in MODELS.items()]
    tables = {"coefficients": list(COEFFICIENTS), "surrogates": list(SURROGATE_NAMES),
              "dynamics": models}
    for what, expected in tables.items():
        if (found := getattr(compiled, what)()) != expected:
            raise ImportError(
                f"lsnn_ext._C: expected the {what} of lsnn_ext/models.py, got those of another "
                f"version: {found}; rebuild it")


if _C is not None:
    DYNAMICS = {model["name"]: k for k, model in enumerate(_C.dynamics())}
    SURROGATES = {name: k for k, name in enumerate(_C.surrogates())}
    check_tables(_C)
    _BITS = {kind: {name: 1 << k for k, name in enumerate(names)}
             for kind, names in (("outputs", _C.outputs), ("gradients", _C.gradients))}
    # The names of the choices of an option (csrc/options.h); 0 is "automatic", also for numbers.
    _WORDS = {"product": _C.products, "design": _C.designs, "kernels": _C.kernels}


def make_mask(kind: str, names: Iterable[str]) -> int:
    """The mask of these names; kind: outputs or gradients."""
    return sum(_BITS[kind][name] for name in names)


def has_bit(kind: str, value: int, name: str) -> bool:
    return bool(value & _BITS[kind][name])


def materialize(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its numbers in memory: neither lazily negated nor zeros without memory."""
    if tensor is None or torch.compiler.is_compiling():
        return tensor
    if is_zero_tensor(tensor):
        return torch.zeros_like(tensor)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


_inside = 0  # use_reference() entered and not left


class use_reference(ContextDecorator):  # noqa: N801  # named as a function, as torch.no_grad is
    """Computes calls inside with the reference, plain PyTorch operations in a loop over time.

    The reference runs on every device of PyTorch, such as MPS and XPU, and can be debugged step by
    step. Its spikes are the same up to rounding, but it is many times slower. Functions, modules
    and single steps of lsnn_ext use it. The backward pass of its results is also the reference's,
    inside or outside.

    It affects all threads of the process, as torch.backends does, and a change makes torch.compile
    recompile. checkpoint_every and saved_dtype have no effect inside.

    Example:
        >>> with lsnn_ext.use_reference():
        ...     spikes, state = layer(x.to("mps"))
    """

    def __enter__(self) -> None:
        global _inside
        _inside += 1

    def __exit__(self, *_: Any) -> None:
        global _inside
        _inside -= 1


def is_reference_active() -> bool:
    return _inside > 0


def is_compiled_active() -> bool:
    return available and not is_reference_active()


def has_cpu_kernels(x: Tensor) -> bool:
    """Whether the CPU kernels compute calls with x: on the CPU, without emulated CUDA kernels."""
    return x.device.type == "cpu" and not (_C.emulator and "LSNN_EMULATE" in os.environ)


def why_not_cpu(x: Tensor, weight: Tensor) -> str:
    """Why operators with CPU kernels only may not be called with x and weight, else empty."""
    return _why_not(x, weight) or ("" if has_cpu_kernels(x) else "x is not on the CPU")


def can_use_cuda_operators(x: Tensor, weight: Tensor) -> bool:
    """Whether the CUDA kernels of operators in front of and behind the recurrence take them."""
    return not _why_not(x, weight) and not has_cpu_kernels(x)


def _why_not(x: Tensor, weight: Tensor) -> str:
    """Why operators may not be called with x and weight, wherever these are; empty if they may."""
    if not is_compiled_active():
        return "use_reference() is active, or the compiled part is missing"
    if type(x) is not Tensor:
        return "x is of a subclass of Tensor"
    if torch.compiler.is_compiling():
        return "torch.compile traces the call"
    if x.device.type not in ("cpu", "cuda"):
        return "x is not on the CPU"
    if is_batched(x) or is_batched(weight):
        return "torch.vmap maps over the call"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is enabled"
    if x.dtype not in (torch.float32, torch.float64):
        return "x is neither float32 nor float64"
    return "" if x.dtype == weight.dtype else "x and its weights have different dtypes"


def can_fuse_readout(x: Tensor, w_out: Tensor) -> bool:
    """Whether the CUDA kernels fuse a readout w_out (O, N) into a call with x."""
    return can_use_cuda_operators(x, w_out) and bool(
        _C.readout_fits(w_out.shape[1], w_out.shape[0], x.dtype == torch.float64))


def can_read_bits(x: Tensor) -> bool:
    """Whether CUDA kernels multiply spikes as bits with carrier x: of this dtype, on this GPU."""
    is_on_gpu = x.device.type == "cuda" or x.device.type == "cpu" and not has_cpu_kernels(x)
    return (is_on_gpu and x.dtype == torch.float32
            and bool(_C.multiplies_bits(x.device.index or 0)))


def can_multiply_bits(x: Tensor, weight: Tensor) -> bool:
    """Whether CUDA kernels multiply spikes as bits with carrier x and this weight."""
    return can_use_cuda_operators(x, weight) and can_read_bits(x)


def why_not_reused(x: Tensor, weight: Tensor) -> str:
    """Why the product of x (..., I) and weight (N, I) is not computed in reused memory: not on the
    CPU, or too small to be faster; empty if it is."""
    if why := why_not_cpu(x, weight):
        return why
    return "" if x.numel() // max(1, x.shape[-1]) * weight.shape[0] >= MANY else _FEW


_forced: ContextVar[tuple[int, ...]] = ContextVar("lsnn_ext forced", default=())


def forced_options() -> tuple[int, ...]:
    """The options of a call that starts now; empty: those of the environment.

    Compiled graphs have none, since torch.compile does not trace context variables. Exported
    programs have zeros, which force nothing: AOTInductor turns an empty list into None.
    """
    if torch.compiler.is_exporting():
        return tuple(Options())
    return () if torch.compiler.is_compiling() else _forced.get()


def _choose(**choices: str | int) -> Any:
    numbers: dict[str, int] = {}
    for name, choice in choices.items():
        if name not in Options._fields:
            raise TypeError(f"forced: expected some of {', '.join(Options._fields)}, got {name!r}")
        words = _WORDS.get(name, ("automatic",))
        if isinstance(choice, str):
            if choice not in words:
                raise ValueError(f"{name}: expected {' or '.join(words)}, got {choice!r}")
            choice = words.index(choice)
        numbers[name] = choice
    return Options(*(_forced.get() or _C.default_options()))._replace(**numbers)


@contextmanager
def forced(**choices: str | int) -> Iterator[None]:
    """Forces choices on calls that start inside, and on their backward passes.

    Other options keep their values; "automatic" overrides the environment. Other threads and
    compiled graphs are not affected.

    Example:
        >>> with forced(product="sparse", team_size=2):
        ...     spikes, _ = functional.alif(current, w_rec, alpha=0.9, theta=0.3)
    """
    token = _forced.set(tuple(_choose(**choices)) if choices else _forced.get())
    try:
        yield
    finally:
        _forced.reset(token)


def count_bf16_parts() -> int:
    """The number of bfloat16 parts of a factor of a product that
    torch.set_float32_matmul_precision allows; 0: factors are not rounded."""
    if torch.compiler.is_compiling():
        return 0
    return {"medium": 1, "high": 2}.get(torch.get_float32_matmul_precision(), 0)


def count_packed(S: int, N: int) -> int:
    """Numbers of packed weights: packed_numbers of csrc/cuda/plan.h."""
    return (S * N + len(COEFFICIENTS)) * ((N + 3) // 4 * 4) + 1 + S
