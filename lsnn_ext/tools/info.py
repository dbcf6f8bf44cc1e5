"""python -m lsnn_ext.tools.info: what is installed and what runs, for bug reports."""
import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

from .. import _ops, functional, reference
from .config import show_config

_BESIDE = ("numpy", "norse", "snntorch", "sinabs", "spikingjelly", "nir", "safetensors",
           "lightning", "accelerate")
# these alone, as a report is public and others may hold secrets
_VARIABLES = ("LSNN_CPU", "LSNN_PRODUCT", "LSNN_TEAM_SIZE", "LSNN_L1_SIZE", "LSNN_DESIGN",
              "LSNN_KERNELS", "LSNN_CACHE_MB", "LSNN_COMPILE", "LSNN_EMULATE",
              "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file
                     if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _check() -> str:
    """Whether a layer computes what the reference computes, here and now."""
    if not _ops.available:
        return "nothing to compare: the compiled part is missing"
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (30, 3, 40), generator=generator) / 8
    w = torch.randint(-8, 9, (40, 40), generator=generator) / 64
    k: dict[str, Any] = {"alpha": 0.9375, "theta": 0.03125, "rho": 0.96875, "beta": 0.5}
    got, want = functional.alif(x, w, **k)[0], reference.alif(x, w, **k)[0]
    if torch.equal(got, want):
        return f"spikes of a small layer are those of the reference ({int(want.sum())} of them)"
    wrong = int((got != want).sum())
    return f"SPIKES DIFFER from the reference in {wrong} of {want.numel()} places"


def info() -> str:
    """Versions, processor, kernels, environment, and whether a small layer computes what the
    reference computes.

    Example:
        >>> print(lsnn_ext.tools.info.info())
    """
    from .. import __version__

    lines = [
        f"lsnn_ext {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"{_processor()}, {os.cpu_count()} processors",
        show_config(),
        "; ".join(f"{name} {_version(name)}" for name in _BESIDE),
        "environment: " + (", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES
                                     if name in os.environ) or "nothing set"),
        _check(),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(info())
    sys.exit(0 if "DIFFER" not in _check() else 1)
