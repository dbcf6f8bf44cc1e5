"""Whether this build has kernels for a call: an error or a warning where it does not."""
import warnings

import torch
from torch import Tensor

from .. import _ops


def check_kernels(name: str, x: Tensor) -> None:
    if x.device.type not in _ops.DEVICES:
        raise RuntimeError(
            f"{name}: expected a tensor on {' or '.join(_ops.DEVICES)}, for which this build of "
            f"lsnn_ext has kernels, got device {x.device}; move the tensors there, or have the "
            f"reference compute it, which is slow and runs on every device: with "
            f"lsnn_ext.use_reference(). lsnn_ext.show_config() says what this build has"
        )


_warned: set[str] = set()


def warn_if_cpu_only(name: str, what: str, x: Tensor, instead: str, stacklevel: int,
                     known: str = "the CPU kernels alone") -> None:
    """A warning, once for each argument, where x lies on a device whose kernels have not what the
    argument asks for, so that it changes nothing there.

    name: of the argument; what: which of its values; instead: what is done; known: to which
    kernels.
    """
    if torch.compiler.is_compiling() or x.device.type == "meta" or not _ops.available:
        return
    if _ops.has_cpu_kernels(x) or name in _warned:
        return
    _warned.add(name)
    warnings.warn(f"{name}: {what}: known to {known}, got tensors for those of CUDA: {instead}; "
                  "this is said once", UserWarning, stacklevel=stacklevel)


def warn_of_slow_reference(stacklevel: int) -> None:
    """Warns where the reference computes although nobody has asked for it."""
    if _ops.is_reference_active():
        return
    message = (
        f"lsnn_ext: the compiled part is missing ({_ops.load_error}); using the slow reference"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)
