"""A tiny network in a file of the form of Yin et al.'s published checkpoint."""
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {"r1": 6, "r2": 7, "d1": 5, "o": 10}
LINEARS = {"r1": ("i2h", "h2h"), "r2": ("h2d", "d2d"), "d1": ("dense1", None), "o": ("d2o", None)}


class RNN_custom(nn.Module):  # noqa: N801  the name in the published file
    """Parameters of the published module with the same names, few of them, of few bits."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        before = 8
        for name, (linear, recurrent) in LINEARS.items():
            N = SIZES[name]
            setattr(self, linear, nn.Linear(before, N))
            if recurrent is not None:
                setattr(self, recurrent, nn.Linear(N, N))
            for kind, low, high in (("m", 10, 30), ("adp", 100, 900)):
                setattr(self, f"tau_{kind}_{name}", nn.Parameter(
                    low + (high - low) * torch.rand(N, generator=random)))
            before = N
        with torch.no_grad():
            for part in self.children():
                for p in part.parameters():
                    p.copy_(torch.round(512 * torch.randn(p.shape, generator=random)) / 1024)


def write(path: Path, module: Any = None, legacy: bool = True) -> Path:
    """The file; legacy: in the old format, as the published one."""
    torch.save(RNN_custom() if module is None else module, path,
               _use_new_zipfile_serialization=not legacy)
    return path


def digits(n: int) -> tuple[Tensor, Tensor]:
    """Random pixels (n, 784) and labels (n,)."""
    random = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (n, 784), generator=random, dtype=torch.uint8)
    return pixels, torch.randint(10, (n,), generator=random)
