"""functional.linear: the projection in front of a recurrence, or the readout behind it."""
from torch import Tensor

from .. import _ops
from .bits import PackedSpikes
from .decisions import report
from .route import choose_linear


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
