"""The leaky readout: its arguments checked, its product with the weights, its operator."""
from numbers import Real

import torch
from torch import Tensor

from .. import _ops, reference
from .arguments import check_carried, check_operand, is_readable
from .coefficients import Coefficient
from .device_checks import check_kernels, warn_of_slow_reference
from .route import linear


def check_readout(x: Tensor, w_out: Tensor, p: Tensor | None) -> None:
    """Raises TypeError or ValueError unless these are x (T, B, N), w_out (O, N) and p (B, O)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (T, B, N), got {tuple(x.shape)}")
    check_operand("w_out", w_out, ("O", x.shape[2]), x, "x")
    if p is not None:
        check_carried("p", p, (x.shape[1], w_out.shape[0]), x, "x")


def project_to_outputs(x: Tensor, w_out: Tensor) -> Tensor:
    """w_out x_t of every step, (T, B, O); float32 where x is float16 or bfloat16."""
    product = linear(x.contiguous(), w_out.to(x.dtype))
    return product.to(torch.promote_types(product.dtype, torch.float32))


def check_decay(name: str, k: Coefficient, w_out: Tensor | None, x: Tensor, of: str) -> None:
    """Raises TypeError or ValueError unless k is a decay, or decays () or (O,), of a readout w_out
    (O, N) of x; of: the name of x."""
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not isinstance(k, Real):
            raise TypeError(f"{name}: expected a number from 0 to 1 or a tensor of such, got "
                            f"{type(k).__name__}")
        if not 0 <= k <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {k}")
        return
    if w_out is None:
        raise ValueError(f"{name}: expected a number without w_out, got a tensor")
    check_operand(name, k, () if k.dim() == 0 else (w_out.shape[0],), x, of)
    if not is_readable(k) or not k.numel():
        return
    low, high = (float(end) for end in k.detach().aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name}: expected numbers from 0 to 1, got "
                         f"{high if 0 <= low else low:.6g}")


def run_readout(product: Tensor, k: float, p: Tensor | None) -> tuple[Tensor, Tensor]:
    """functional.leaky_readout of a product (T, B, O), with a number k."""
    if not _ops.is_compiled_active():
        warn_of_slow_reference(4)
        return reference.leaky_readout(product, p, k)
    check_kernels("x", product)
    return _ops.leaky_readout(product, p, float(k))
