"""What stands around the recurrence: the projection in front of it and the readout behind."""
import warnings
from numbers import Real

import torch
from torch import Tensor

from .. import _ops, reference
from .arguments import check_beside, readable
from .bits import PackedSpikes
from .coefficients import Coefficient
from .lengths import Lengths, LengthsArgument, mask_readout, resolve_lengths
from .route import choose_linear


def linear(x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of a whole sequence: in reused memory, and by events where x is mostly zero, as
    spikes are.

    Args:
        x: (..., I), or spikes (T, B, I) as bits: those of layer(..., spikes="bits").packed, which
            are never written as numbers on the CPU, nor on CUDA in float32 from compute capability
            8.0 on.
        weight: (N, I).
        bias: (N,) or None.

    Returns:
        (..., N) of the dtype of x. Gradients of any order, as of F.linear; those of spikes as bits
        flow through their carrier.

    Raises:
        TypeError, ValueError: an argument of a wrong kind or device.

    Equivalent to:
        >>> y = torch.nn.functional.linear(x, weight, bias)
    """
    if isinstance(x, PackedSpikes):
        x.check("x")
    like = x.carrier if isinstance(x, PackedSpikes) else x
    for name, value in (("x", like), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value is not None and value.device != like.device:
            raise ValueError(f"{name}: expected device {like.device} as x, got {value.device}")
    return _ops.linear(x, weight, bias, choose_linear(x, weight))


def check_kernels(name: str, x: Tensor) -> None:
    if x.device.type not in _ops.DEVICES:
        raise RuntimeError(
            f"{name}: expected a tensor on {' or '.join(_ops.DEVICES)}, for which this build of "
            f"lsnn_ext has kernels, got device {x.device}; move the tensors there, or have the "
            f"reference compute it, which is slow and runs on every device: with "
            f"lsnn_ext.use_reference(). lsnn_ext.show_config() says what this build has"
        )


_said: set[str] = set()


def warn_if_cpu_only(name: str, what: str, x: Tensor, instead: str, stacklevel: int,
                     known: str = "the CPU kernels alone") -> None:
    """A warning, once for each argument, where x lies on a device whose kernels have not what the
    argument asks for, so that it changes nothing there.

    name: of the argument; what: which of its values; instead: what is done; known: to which
    kernels.
    """
    if torch.compiler.is_compiling() or x.device.type == "meta" or not _ops.available:
        return
    if _ops.has_cpu_kernels(x) or name in _said:
        return
    _said.add(name)
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


def check_readout(x: Tensor, w_out: Tensor, p: Tensor | None) -> None:
    """Raises TypeError or ValueError for what is not x (T, B, N), w_out (O, N) and p (B, O)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (T, B, N), got {tuple(x.shape)}")
    check_beside("w_out", w_out, ("O", x.shape[2]), x, "x")
    if p is None:
        return
    check_beside("p", p, (x.shape[1], w_out.shape[0]), x, "x")
    dtype = torch.promote_types(x.dtype, torch.float32)
    if p.dtype != dtype:
        raise TypeError(f"p: expected {dtype}, got {p.dtype}")


def project_to_outputs(x: Tensor, w_out: Tensor) -> Tensor:
    """w_out x_t of all steps, (T, B, O), float32 where x is float16 or bfloat16."""
    product = linear(x.contiguous(), w_out.to(x.dtype))
    return product.to(torch.promote_types(product.dtype, torch.float32))


def check_decay(name: str, k: Coefficient, w_out: Tensor | None, x: Tensor, of: str) -> None:
    """Raises TypeError or ValueError for what is no decay, or decays (), (O,), of a readout w_out
    (O, N) of x, called `of`."""
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not isinstance(k, Real):
            raise TypeError(f"{name}: expected a number from 0 to 1 or a tensor of such, got "
                            f"{type(k).__name__}")
        if not 0 <= k <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {k}")
        return
    if w_out is None:
        raise ValueError(f"{name}: expected w_out beside a tensor, got none")
    check_beside(name, k, () if k.dim() == 0 else (w_out.shape[0],), x, of)
    if not readable(k) or not k.numel():
        return
    low, high = (float(end) for end in k.detach().aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name}: expected numbers from 0 to 1, got "
                         f"{high if 0 <= low else low:.6g}")


def run_readout(x: Tensor, w_out: Tensor, k: float, p: Tensor | None = None,
                lengths: LengthsArgument | Lengths | None = None) -> tuple[Tensor, Tensor]:
    """functional.leaky_readout with a number as its decay, of arguments that are checked."""
    each = resolve_lengths(lengths, x.shape[0], x.shape[1], x.device)
    if each is not None:
        x = x.masked_fill(each.ended(x.shape[0], x.device), 0.0)
        return mask_readout(run_readout(x, w_out, k, p)[0], p, each)
    product = project_to_outputs(x, w_out)
    if not _ops.is_compiled_active():
        warn_of_slow_reference(3)
        return reference.leaky_readout(product, p, k)
    check_kernels("x", x)
    return _ops.leaky_readout(product, p, float(k))
