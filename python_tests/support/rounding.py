"""torch's products as matrix tiles round them after "medium", on every processor."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# How many arguments stand before the factors.
_PRODUCTS: dict[Callable[..., Any], int] = {
    nn.functional.linear: 0, torch.einsum: 1,
    **dict.fromkeys((torch.mm, torch.bmm, torch.matmul, Tensor.mm, Tensor.bmm, Tensor.matmul,
                     Tensor.__matmul__, Tensor.__rmatmul__), 0),
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.addbmm, Tensor.addmm, Tensor.addmm_,
                     Tensor.baddbmm, Tensor.baddbmm_, Tensor.addbmm, Tensor.addbmm_), 1)}


def rounded(factor: Any) -> Any:
    """A factor in float32 with 8 bits of precision, others as they are."""
    if isinstance(factor, Tensor) and factor.dtype == torch.float32:
        return factor.bfloat16().float()
    return factor


class RoundedProducts(TorchFunctionMode):
    """Rounds both factors of products in Python; not those of autograd's own passes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = _PRODUCTS.get(func)
        if first is not None:
            assert len(args) >= first + 2, "factors by name"
            factors = [rounded(factor) for factor in args[first : first + 2]]
            args = (*args[:first], *factors, *args[first + 2 :])
        return func(*args, **(kwargs or {}))


@contextmanager
def rounding_after_medium() -> Iterator[None]:
    """While this lasts torch.set_float32_matmul_precision("medium") makes torch's products round,
    and every other precision ends that; afterwards torch's switch is as before."""
    set_precision, before = torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()
    active: list[RoundedProducts] = []

    def set_and_round(precision: str) -> None:
        set_precision(precision)
        if precision == "medium" and not active:
            active.append(RoundedProducts())
            active[0].__enter__()
        elif precision != "medium" and active:
            active.pop().__exit__(None, None, None)

    torch.set_float32_matmul_precision = set_and_round
    try:
        yield
    finally:
        set_and_round("highest")
        torch.set_float32_matmul_precision = set_precision
        set_precision(before)
