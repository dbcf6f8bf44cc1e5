"""Inputs of tests, the same ones for the same seed."""
import torch
from torch import Tensor


def draw(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers with a deviation of 2."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def draw_spikes(*shape: int, rate: float = 0.05, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros and ones."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < rate).to(dtype)
