"""Whether this build has kernels for a call: an error or a warning where it does not."""
import warnings

import torch
from torch import Tensor

from .. import _ops
from .decisions import report


def check_kernels(name: str, x: Tensor) -> None:
    """Raises RuntimeError for a device without kernels; name: of the argument x."""
    if x.device.type not in _ops.DEVICES:
        raise RuntimeError(
            f"{name}: expected a tensor on {' or '.join(_ops.DEVICES)}, for which this build of "
            f"lsnn_ext has kernels, got device {x.device}; move the tensors there, or use the slow "
            f"reference, which runs on every device: with lsnn_ext.use_reference(). "
            f"lsnn_ext.show_config() describes this build")


_warned: set[str] = set()


def warn_if_cpu_only(name: str, what: str, x: Tensor, instead: str, stacklevel: int,
                     expected: str = "CPU tensors") -> None:
    """Warns, once for each argument of this name, where the kernels for x do not support its value,
    what; expected: the tensors whose kernels do."""
    if (torch.compiler.is_compiling() or x.device.type == "meta" or not _ops.available
            or _ops.has_cpu_kernels(x) or name in _warned):
        return
    _warned.add(name)
    warnings.warn(f"{name}: expected {expected} for {what}, got CUDA tensors; {instead} (shown "
                  f"once)", UserWarning, stacklevel=stacklevel)


def warn_of_slow_reference(stacklevel: int) -> None:
    """Warns where the reference computes outside of use_reference()."""
    report("reference")
    if _ops.is_reference_active():
        return
    warnings.warn(f"lsnn_ext: expected the compiled part, got none ({_ops.load_error}); the slow "
                  f"reference is used", RuntimeWarning, stacklevel=stacklevel)
