"""The one comparison of this test suite, and calls of operators by name."""
from typing import Any

import torch
from torch import Tensor


def assert_same(name: str, got: Tensor, want: Tensor, *, tolerance: float = 0.0, scale: float | None = None) -> None:
    """Equal to tolerance times the largest magnitude of want (or times scale); tolerance 0: equal in every value.

    A NaN or an infinity on either side never passes: outputs that nobody wrote must not look like agreement.
    """
    if got.shape != want.shape or got.dtype != want.dtype or got.device != want.device:
        raise AssertionError(f"{name}: got {tuple(got.shape)} {got.dtype} on {got.device}, "
                             f"expected {tuple(want.shape)} {want.dtype} on {want.device}")
    if want.numel() == 0:
        return
    a, b = got.detach().double(), want.detach().double()
    error = (a - b).abs()
    error[~(torch.isfinite(a) & torch.isfinite(b))] = torch.inf
    largest = float(b[torch.isfinite(b)].abs().max()) if bool(torch.isfinite(b).any()) else 0.0
    limit = tolerance * (largest if scale is None else scale)
    if float(error.max()) <= limit:
        return
    position = tuple(int(index) for index in torch.unravel_index(error.argmax(), error.shape))
    raise AssertionError(
        f"{name}{list(position)}: got {float(a[position])!r}, expected {float(b[position])!r}; off by "
        f"{float(error.max()):.3g}, allowed {limit:.3g}; {int((error > limit).sum())} of {error.numel()} values differ")


def assert_all_same(got: dict[str, Tensor], want: dict[str, Tensor], *, tolerance: float = 0.0,
                    scale: float | None = None) -> None:
    """assert_same for every name; the names must be the same too."""
    if got.keys() != want.keys():
        raise AssertionError(f"got {sorted(got)}, expected {sorted(want)}")
    for name, value in want.items():
        assert_same(name, got[name], value, tolerance=tolerance, scale=scale)


def named(operator: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of a call of an operator by the names of its schema."""
    return dict(zip((argument.name for argument in operator._schema.arguments), args, strict=False))


def changed(operator: Any, args: tuple[Any, ...], **changes: Any) -> tuple[Any, ...]:
    """The same with some others."""
    given = named(operator, args)
    assert set(changes) <= set(given)
    return tuple((given | changes).values())
