"""The compiled part: whether it is there, what it knows by name, and which tensors its CPU kernels
take."""
import importlib.util
import os
import sys
from collections import namedtuple
from collections.abc import Iterable
from contextlib import ContextDecorator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.torch_internals import is_batched, is_zero_tensor
from ..models import COEFFICIENTS, MODELS, SURROGATE_NAMES

_FOLDER = Path(__file__).absolute().parents[1]  # not resolved: its files may be links


def has_compiled_part(folder: Path) -> bool:
    """Whether one for this Python lies in the folder of a package."""
    return any((folder / f"_C{end}").is_file() for end in EXTENSION_SUFFIXES)


def explain_absence() -> str:
    """Why there is none in the folder of this package."""
    if not (_FOLDER.parent / "setup.py").is_file():
        return "it was not built when the package was installed"
    others = [Path(entry).resolve() / _FOLDER.name for entry in sys.path]
    lent = importlib.util.find_spec("lsnn_ext._C")  # by the finder of an editable installation
    if lent is not None and lent.origin is not None:
        others.append(Path(lent.origin).parent)
    for other in others:
        if has_compiled_part(other):
            return (f"Python has imported the sources in {_FOLDER}, which are not built, in place "
                    f"of the installed package in {other}; start Python outside of "
                    f"{_FOLDER.parent}, or run make build there")
    return f"the sources in {_FOLDER} are not built; run make build in {_FOLDER.parent}"


try:
    # That of an editable installation would be imported otherwise, which may be of other sources.
    if "lsnn_ext._C" not in sys.modules and not has_compiled_part(_FOLDER):
        raise ImportError(explain_absence())
    from .. import _C  # type: ignore[attr-defined]

    load_error: Exception | None = None
except ImportError as error:  # no compiler at installation, or a torch older than 2.11
    _C = None
    load_error = error

available = _C is not None

# Devices with kernels; "meta" stands for none, shapes only.
DEVICES: tuple[str, ...] = ("cpu", "meta")
# What csrc/torch/boundary.h names: the places of numbers in the lists that operators take, and the
# bits of their masks.
_named_tuple: Any = namedtuple  # of names that are known when this is imported
Constants = _named_tuple("Constants", () if _C is None else _C.constants)
Numbers = _named_tuple("Numbers", () if _C is None else _C.numbers)
# What may be forced, see options.py; 0: the library chooses.
_options = () if _C is None else _C.options
Options: Any = namedtuple("Options", _options, defaults=[0] * len(_options))  # type: ignore[misc]
_BITS: dict[str, dict[str, int]] = {}


def check_tables(compiled: Any) -> None:
    """Raises ImportError where a compiled part was made of another lsnn_ext/models.py than ours."""
    fields = "test", "ge", "scale", "reset", "when", "drive"
    models = [{"name": name, **{field: getattr(model, field) for field in fields},
               "detach": set(model.detach)}
            for name, model in MODELS.items()]
    wanted = {"coefficients": list(COEFFICIENTS), "surrogates": list(SURROGATE_NAMES),
              "dynamics": models}
    for what, expected in wanted.items():
        if (found := getattr(compiled, what)()) != expected:
            raise ImportError(
                f"lsnn_ext._C: expected the {what} of lsnn_ext/models.py, got those of another "
                f"version; compile it anew: {found}"
            )


if _C is not None:
    DEVICES = ("cpu", "cuda", "meta") if _C.cuda else DEVICES
    DYNAMICS = {model["name"]: k for k, model in enumerate(_C.dynamics())}
    SURROGATES = {name: k for k, name in enumerate(_C.surrogates())}
    check_tables(_C)
    _BITS = {kind: {name: 1 << k for k, name in enumerate(names)}
             for kind, names in (("outputs", _C.outputs), ("gradients", _C.gradients))}


def make_mask(kind: str, names: Iterable[str]) -> int:
    """The bits of these names in a mask of this kind, outputs or gradients."""
    return sum(_BITS[kind][name] for name in names)


def has_bit(kind: str, value: int, name: str) -> bool:
    """Whether a mask has the bit of this name."""
    return bool(value & _BITS[kind][name])


def materialize(tensor: Tensor | None) -> Tensor | None:
    """The tensor as its memory says, neither lazily negated nor zeros without memory."""
    if tensor is None or torch.compiler.is_compiling():
        return tensor
    if is_zero_tensor(tensor):
        return torch.zeros_like(tensor)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


_inside = 0  # use_reference() that have been entered and not left


class use_reference(ContextDecorator):  # noqa: N801  # named as a function, as torch.no_grad is
    """The reference, plain PyTorch operations in a loop over time, computes what is called inside.

    It runs on every device that PyTorch runs on, MPS and XPU among them, can be looked into step by
    step, and gives the same spikes, to rounding, in many times the time. Functions and modules of
    lsnn_ext alike take it, also their single steps. A result keeps its kind: the backward pass of
    what was computed inside is the reference's wherever it runs.

    It acts on all threads of the process, as torch.backends does, and torch.compile compiles anew
    where it changes. checkpoint_every and saved_dtype have no effect inside.

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
    """Whether a use_reference() is open."""
    return _inside > 0


def is_compiled_active() -> bool:
    """Whether compiled code is there, and no use_reference() is open."""
    return available and not is_reference_active()


def compiled_models() -> list[dict[str, Any]]:
    """The compiled table of models, in the words of models.Model."""
    if _C is None:
        raise RuntimeError(f"lsnn_ext: the compiled part is missing ({load_error})")
    return list(_C.dynamics())


def has_cpu_kernels(x: Tensor) -> bool:
    """Whether the CPU kernels run what lies where x does: tests have the CUDA kernels emulated for
    such tensors."""
    return x.device.type == "cpu" and not (_C.emulator and "LSNN_EMULATE" in os.environ)


def can_use_cpu_operators(x: Tensor, weight: Tensor) -> bool:
    """Whether operators that only the CPU kernels have take x and weight."""
    return not (
        not is_compiled_active() or type(x) is not Tensor or torch.compiler.is_compiling()
        or not has_cpu_kernels(x) or is_batched(x) or is_batched(weight)
        or torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64)
        or x.dtype != weight.dtype
    )


def can_use_cuda_operators(x: Tensor, weight: Tensor) -> bool:
    """The same of operators around the recurrence that the CUDA kernels have."""
    return (
        is_compiled_active() and type(x) is Tensor and not torch.compiler.is_compiling()
        and x.device.type in ("cpu", "cuda") and not has_cpu_kernels(x) and not is_batched(x)
        and not is_batched(weight) and not torch.is_autocast_enabled(x.device.type)
        and x.dtype in (torch.float32, torch.float64) and x.dtype == weight.dtype
    )


def can_fuse_readout(x: Tensor, w_out: Tensor) -> bool:
    """Whether the CUDA kernels compute the readout w_out (O, N) of a call with x, too."""
    return can_use_cuda_operators(x, w_out) and bool(
        _C.readout_fits(w_out.shape[1], w_out.shape[0], x.dtype == torch.float64))


def can_read_bits(x: Tensor) -> bool:
    """Whether CUDA kernels multiply spikes as bits, whose carrier is x: of this dtype, on this
    GPU, which nobody asks for tensors elsewhere."""
    is_there = x.device.type == "cuda" or x.device.type == "cpu" and not has_cpu_kernels(x)
    return (is_there and x.dtype == torch.float32
            and bool(_C.multiplies_bits(x.device.index or 0)))


def can_multiply_bits(x: Tensor, weight: Tensor) -> bool:
    """Whether they do so with weight."""
    return can_use_cuda_operators(x, weight) and can_read_bits(x)


def is_memory_reused(x: Tensor, weight: Tensor) -> bool:
    """Whether operators that reuse memory take x (..., I) and weight (N, I): as above, and long
    enough to be worth it."""
    return (
        can_use_cpu_operators(x, weight)
        and x.numel() // max(1, x.shape[-1]) * weight.shape[0] >= 1 << 18
    )


def is_gradient_memory_reused(x: Tensor, weight: Tensor) -> bool:
    """The same of the gradient of x, which has its size."""
    return can_use_cpu_operators(x, weight) and x.numel() >= 1 << 18
