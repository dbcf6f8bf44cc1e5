"""Which code computes a call of functional.layer or functional.linear, chosen once."""
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .bits import PackedSpikes
from .decisions import report
from .lengths import Lengths

ProjectionKind = Literal["fused", "events", "product", "torch"]

_BITS = "its inputs are bits"
_MOSTLY_ZERO = f"less than {_ops.SPARSE:.0%} of a sample of its inputs is nonzero"
_DENSE = f"{_ops.SPARSE:.0%} or more of a sample of its inputs is nonzero"
_FEW_ROWS = "its matrix is large for so few rows"
_SCARCE = f"it has fewer than {_ops.SCARCE_OUTPUTS} outputs"
_MANY_MULTIPLICATIONS = 1 << 21  # from which on adding rows is faster than a small product
_OTHER_DTYPES = "w_rec or bias has another dtype"


class Route(NamedTuple):
    """How functional.layer computes a call.

    All routes compute the same. Spikes are equal where the sums of the projection are exact, since
    events and matrix products sum in different orders.

    The projection of the inputs:

    ``fused``    inside the operator of the recurrence, event by event: neither the current (T, B,
                 N) nor its gradient is ever written. On the CPU, for inputs that are mostly zero
                 and for spikes as bits
    ``events``   in front of it, an operator that adds the rows of w_in of nonzero inputs. For the
                 same inputs as fused, where w_rec or bias has another dtype; on CUDA for spikes as
                 bits in float32, from compute capability 8.0 on
    ``product``  in front of it, a matrix product in reused memory. On the CPU, for dense inputs and
                 for few rows (T B) and a large w_in
    ``torch``    in front of it, torch.nn.functional.linear: short calls, dense ones up to a larger
                 size, other devices, autocast, torch.compile, tensor subclasses; and all other
                 bits, unpacked

    The readout is fused too where its decay is a number, on CUDA only where its weights fit and all
    sequences have T steps. Otherwise it is a separate operator that reads the spikes as numbers.
    Spikes are returned as bits by the operator, or packed from numbers.

    Short calls of a module on the CPU without gradients take none of these routes:
    modules/inference.py selects a prepared layer before. Without the compiled part the reference
    computes all.
    """

    projection: ProjectionKind
    fused_readout: bool
    returns_bits: bool  # from the operator
    why: str  # the condition that chose the projection
    why_readout: str  # the same for the readout; empty without one

    @property
    def is_fused(self) -> bool:
        return self.projection == "fused"


def choose_route(x: Tensor | PackedSpikes, w_in: Tensor, others: tuple[Tensor | None, ...],
                 w_out: Tensor | None, spikes: bool | Literal["bits"], lengths: Lengths | None,
                 smooth: bool, decay_is_tensor: bool = False) -> Route:
    """others: w_rec and bias."""
    projection: ProjectionKind = "torch"
    keeps_order = lengths is None or lengths.order is None  # is not sorted for the operator
    like = x.carrier if isinstance(x, PackedSpikes) else x
    alike = all(other is None or other.dtype == like.dtype for other in others)
    if isinstance(x, PackedSpikes):
        why = _ops.why_not_cpu(like, w_in) or ("" if keeps_order else "lengths do not descend")
        if alike and not why:
            projection, why = "fused", _BITS
        elif alike and _ops.can_multiply_bits(like, w_in):
            projection, why = "events", _BITS
        else:
            why = why or _OTHER_DTYPES
    else:
        projection, why = _choose_product(x, w_in, _ops.why_not_reused(x, w_in))
        if projection == "events" and alike:
            projection = "fused"
    why_apart = "" if w_out is None else _why_apart(like, w_out, projection, lengths is None,
                                                    decay_is_tensor)
    fused_readout = w_out is not None and not why_apart
    returns_bits = (spikes == "bits" and keeps_order and not smooth and not why_apart
                    and (not _ops.why_not_cpu(like, w_in)
                         or _ops.can_use_cuda_operators(like, w_in)))
    chosen = Route(projection, fused_readout, returns_bits, why,
                   "its decay is a number" if fused_readout else why_apart)
    report("projection", x, w_in, chosen)
    return chosen


def _why_apart(x: Tensor, w_out: Tensor, projection: ProjectionKind, has_no_lengths: bool,
               decay_is_tensor: bool) -> str:
    """Why the readout is an operator of its own; empty: the recurrence computes it too."""
    if decay_is_tensor:
        return "its decay is a tensor"
    if not _ops.is_compiled_active():
        return "use_reference() is active, or the compiled part is missing"
    if not _ops.has_cpu_kernels(x):
        if not has_no_lengths:
            return "the sequences have lengths"
        return "" if _ops.can_fuse_readout(x, w_out) else "the CUDA kernels do not take its weights"
    if projection == "torch":
        return "the projection is a product of torch"
    return "" if w_out.dtype == x.dtype else "its weights have another dtype"


def _choose_product(x: Tensor, weight: Tensor,
                    why: str) -> tuple[Literal["events", "product", "torch"], str]:
    """why: the product is not computed in reused memory."""
    is_short = x.numel() * weight.shape[0] < _MANY_MULTIPLICATIONS
    if why and (is_short or _ops.why_not_cpu(x, weight)):
        return "torch", why
    has_few_rows = _ops.has_few_rows(x.numel() // max(1, x.shape[-1]), weight.numel())
    if not has_few_rows and _ops.is_mostly_zero(x):
        return "events", _MOSTLY_ZERO
    return ("torch", why) if why else ("product", _FEW_ROWS if has_few_rows else _DENSE)


def choose_linear(x: Tensor | PackedSpikes,
                  weight: Tensor) -> tuple[Literal["events", "product", "torch"], str]:
    """How functional.linear multiplies x (..., I) with weight (N, I), and why. It may be a readout,
    whose input and its gradient are larger than the product."""
    if isinstance(x, PackedSpikes):
        why = _ops.why_not_cpu(x.carrier, weight)
        takes = not why or _ops.can_multiply_bits(x.carrier, weight)
        return ("events", _BITS) if takes else ("torch", why)
    is_large = x.numel() >= _ops.MANY
    why = _ops.why_not_cpu(x, weight) if is_large else _ops.why_not_reused(x, weight)
    if weight.shape[0] < _ops.SCARCE_OUTPUTS:
        return ("torch", why) if why else ("product", _SCARCE)
    return _choose_product(x, weight, why)


def linear(x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns F.linear of a whole sequence, computed in reused memory, and event by event where x
    is mostly zero.

    Args:
        x: (..., I), or spikes (T, B, I) as bits: layer(..., spikes="bits").packed. Bits are not
            unpacked on the CPU, nor on CUDA in float32 from compute capability 8.0 on.
        weight: (N, I).
        bias: (N,). Default None.

    Returns:
        (..., N) of the dtype of x, differentiable to any order. The gradient of bits flows through
        their carrier.

    Raises:
        TypeError, ValueError: an argument of the wrong type or device.

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
    chosen, why = choose_linear(x, weight)
    report("linear", x, weight, chosen, why)
    return _ops.linear(x, weight, bias, chosen)


def pack_sparse_input(x: Tensor, dtype: torch.dtype) -> PackedSpikes | None:
    """Inputs (T, B, I) of a layer of this dtype as bits; None unless they are 0 and 1, mostly 0,
    and large enough for bits to be faster. x may be bool or uint8."""
    carrier = x.new_zeros((), dtype=dtype).expand(x.shape)
    if x.dim() != 3 or _ops.why_not_cpu(carrier, carrier) or not _ops.is_mostly_zero(x):
        return None
    bits = _ops.pack_inputs(x)
    return None if bits is None else PackedSpikes(bits, carrier)


def is_packing_faster(x: Tensor | PackedSpikes, w_in: Tensor) -> bool:
    """Whether spikes of a layer with inputs x and weights w_in (N, I) should be passed as bits."""
    return not _ops.why_not_reused(x.carrier if isinstance(x, PackedSpikes) else x, w_in)
