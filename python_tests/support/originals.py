"""Layers of other packages beside the classes of ours that stand for them."""
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same

T, B, I, N = 40, 4, 5, 12


def package(name: str) -> Any:
    """The package, or a skip that says how it would come."""
    return pytest.importorskip(name, reason=f"{name} is not installed; pip install \".[peers]\" "
                                            f"in the folder of the sources brings it")


def uniform(low: float, high: float, *shape: int, dtype: torch.dtype = torch.float64,
            seed: int = 0) -> Tensor:
    """Multiples of 1/1024, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    values = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    return (torch.round(values * 1024) / 1024).to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    """Of states and gradients, by the largest of each."""
    return 1e-12 if dtype == torch.float64 else 2e-5


Run = Callable[[], dict[str, Tensor]]


def results(run: Run, leaves: dict[str, Tensor], names: Iterable[str] = ()
            ) -> dict[str, Tensor | None]:
    """What run gives, and the gradients of a weighted sum of all that is named; none: of all."""
    found = run()
    loss = sum((value * uniform(-1, 1, *value.shape, dtype=value.dtype, seed=90 + index)).sum()
               for index, (name, value) in enumerate(found.items()) if name in (names or found))
    gradients: Any = [None] * len(leaves)
    if isinstance(loss, Tensor) and loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: value.detach().clone() for name, value in found.items()} | {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def assert_equal(theirs: Run, ours: Run, leaves: dict[str, Tensor], within: float) -> None:
    """Bitwise identical "spikes"; all else and all gradients to rounding."""
    for names in (("spikes",), ()):
        want, got = ({name: torch.zeros(()) if one is None else one for name, one in results(
            side, leaves, names).items()} for side in (theirs, ours))
        assert 0.03 < float(want["spikes"].mean()) < 0.97, "a silent layer would show nothing"
        assert want.keys() == got.keys()
        for name, value in want.items():
            assert_same(name, got[name], value, tolerance=0 if name == "spikes" else within)
    assert float(want["gradient of x"].abs().max()) > 0
