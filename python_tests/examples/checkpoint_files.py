"""Tiny networks in the form of the published checkpoints."""
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

YIN = {"r1": (8, 6, "i2h", "h2h"), "r2": (6, 7, "h2d", "d2d"), "d1": (7, 5, "dense1", None),
       "o": (5, 10, "d2o", None)}


def _few_bits(random: torch.Generator, *shape: int) -> Tensor:
    """Weights with which sums do not round."""
    return torch.round(512 * torch.randn(shape, generator=random)) / 1024


def _draw(module: nn.Module, random: torch.Generator) -> None:
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "tau" not in name:
                p.copy_(_few_bits(random, *p.shape))


class RNN_custom(nn.Module):  # noqa: N801  the name in the published file
    """The parameters of Yin et al.'s module for S-MNIST."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        for name, (inputs, N, linear, past) in YIN.items():
            setattr(self, linear, nn.Linear(inputs, N))
            if past is not None:
                setattr(self, past, nn.Linear(N, N))
            for kind, low, high in (("m", 10, 30), ("adp", 100, 900)):
                setattr(self, f"tau_{kind}_{name}", nn.Parameter(
                    low + (high - low) * torch.rand(N, generator=random)))
        _draw(self, random)


class Dendrites(nn.Module):
    """A layer of DH-SNN; its weights are masked, and inputs without a branch are padded."""

    def __init__(self, inputs: int, N: int, K: int, random: torch.Generator) -> None:
        super().__init__()
        self.pad, self.device = -inputs % K, torch.device("cpu")
        self.dense = nn.Linear(inputs + self.pad, N * K)
        self.tau_m = nn.Parameter(4 * torch.rand(N, generator=random))
        self.tau_n = nn.Parameter(4 * torch.rand(N, K, generator=random))


class DH(nn.Module):
    """The parameters of DH-SNN's module with K branches."""

    def __init__(self, K: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        self.rnn_1, self.rnn_2 = Dendrites(7, 6, K, random), Dendrites(15, 9, K, random)
        self.dense_2 = nn.Module()
        self.dense_2.dense = nn.Linear(9, 10)
        self.dense_2.tau_m = nn.Parameter(4 * torch.rand(10, generator=random))
        _draw(self, random)
        with torch.no_grad():
            for layer in self.rnn_1, self.rnn_2, self.dense_2:
                layer.dense.weight.mul_(32 / K)


def higuchi(kind: str, inputs: int, outputs: int) -> dict[str, Any]:
    """A file of brf-neurons, with a layer of 12 neurons."""
    random, N = torch.Generator().manual_seed(7), 12

    def spread(low: float, high: float, n: int = N) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=random)

    constants = ({"tau_mem": -spread(5, 20), "tau_adp": spread(20, 90)} if kind == "ALIF"
                 else {"omega": -spread(3, 20), "b_offset": spread(-3, -1)})
    return {"epoch": 3, "loss": 0.5, "model_state_dict": {
        **{f"hidden.{name}": value for name, value in constants.items()},
        "hidden.linear.weight": (2 if kind == "ALIF" else 120) * _few_bits(random, N, inputs + N),
        "hidden.linear.mask": torch.ones(N, inputs + N),
        "out.tau_mem": spread(-20, -10, outputs),
        "out.linear.weight": _few_bits(random, outputs, N)}}


def yin_ecg() -> dict[str, Tensor]:
    """Yin et al.'s file for electrocardiograms, with 9 neurons."""
    random = torch.Generator().manual_seed(7)
    shapes = {"i2h.weight": (9, 4), "i2h.bias": (9,), "h2h.weight": (9, 9), "h2h.bias": (9,),
              "h2o.weight": (6, 9), "h2o.bias": (6,)}
    taus = {"tau_m_h": 9, "tau_adp_h": 9, "tau_m_o": 6, "tau_adp_o": 6}
    return {**{name: _few_bits(random, *shape) for name, shape in shapes.items()},
            **{name: 5 + 40 * torch.rand(n, generator=random) for name, n in taus.items()}}


def write(path: Path, held: Any, legacy: bool = False) -> Path:
    """Writes a file of torch.save; legacy: in the old format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, path, _use_new_zipfile_serialization=not legacy)
    return path
