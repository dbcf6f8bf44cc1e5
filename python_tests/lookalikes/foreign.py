"""Small models of other packages' layers, and classes that stand for these layers wrongly."""
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Stacked(nn.Module):
    """Layers one after the other, whose states are left, and the last state."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.only = False  # whether to return no state

    def forward(self, x: Tensor) -> Any:
        state = None
        for part in self.parts:
            found = part(x)
            x, state = found if isinstance(found, tuple) else (found, state)
        return x if self.only else (x, state)


def wrong_for(package: str, name: str, change: Callable[[Any], None]) -> type[Any]:
    """A class that stands for a layer as ours does, but for a change of what it makes."""
    right = getattr(importlib.import_module(f"lsnn_ext.{package}"), name)

    class Wrong:
        original = right.original

        @classmethod
        def from_original(cls, module: nn.Module) -> nn.Module:
            layer: nn.Module = right.from_original(module)
            change(layer)
            return layer

    return Wrong
