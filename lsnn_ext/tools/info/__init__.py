"""show_config, and python -m lsnn_ext.tools.info: what is installed and what runs."""
import importlib.metadata
import os
import platform
from typing import Any

import torch

from ... import _ops, functional, reference

_PACKAGES = ("numpy", "norse", "snntorch", "sinabs", "spikingjelly", "nir", "lightning",
             "accelerate")
# only these, as a report is public and others may hold secrets
_VARIABLES = ("LSNN_CPU", "LSNN_PRODUCT", "LSNN_TEAM_SIZE", "LSNN_L1_SIZE", "LSNN_DESIGN",
              "LSNN_KERNELS", "LSNN_CACHE_MB", "LSNN_COMPILE", "LSNN_EMULATE",
              "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def show_config() -> str:
    """The build, the instruction set, the number of threads and what is missing, as text.

    Example:
        >>> print(lsnn_ext.show_config())
    """
    if _ops._C is None:
        return (f"lsnn_ext: NO COMPILED PART ({_ops.load_error}); functional.alif falls back to "
                f"the slow reference\ntorch {torch.__version__}")
    return "\n".join([
        f"lsnn_ext, compiled with GCC-compatible {_ops._C.compiler}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        f"CPU kernels: {_ops._C.instruction_set()} (LSNN_CPU=avx512|avx2|neon|portable overrides)",
        f"CUDA kernels: {_cuda()}",
        f"models: {', '.join(_ops.DYNAMICS)}"])


def _cuda() -> str:
    cuda = _ops._C.cuda
    if _ops._C.emulator:
        return "emulated, for tests; LSNN_EMULATE=1 runs them on the CPU (LSNN_DESIGN overrides)"
    if cuda is None:
        return "none in this build; make CUDA=1 builds them where nvcc is found"
    device = ("no device: this torch is a CPU build" if torch.version.cuda is None
              else "torch sees no device")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    built = f"nvcc {cuda['version']} for {cuda['architectures']}"
    if cuda["driver"]:
        built += f", needs an NVIDIA driver {cuda['driver']} or newer"
    ours, of_torch = (int(version.partition(".")[0]) for version in
                      (cuda["version"], torch.version.cuda or cuda["version"]))
    if of_torch < ours:
        built += (f"; this torch (CUDA {torch.version.cuda}) also runs on older drivers, for which "
                  f"an nvcc {of_torch} has to build lsnn_ext")
    return f"{built}; {device} (LSNN_DESIGN=block|gather|cluster|step overrides)"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def find_processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file
                     if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _comparison() -> tuple[bool, str]:
    """Whether a small layer computes the same as the reference, here and now."""
    if not _ops.available:
        return True, "nothing to compare: the compiled part is missing"
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (30, 3, 40), generator=generator) / 8
    w = torch.randint(-8, 9, (40, 40), generator=generator) / 64
    k: dict[str, Any] = {"alpha": 0.9375, "theta": 0.03125, "rho": 0.96875, "beta": 0.5}
    got, want = functional.alif(x, w, **k)[0], reference.alif(x, w, **k)[0]
    wrong = int((got != want).sum())
    if wrong:
        return False, f"SPIKES DIFFER from the reference in {wrong} of {want.numel()} places"
    return True, f"spikes of a small layer are those of the reference ({int(want.sum())} of them)"


def main() -> int:
    """Prints versions, processor, show_config(), environment and the comparison."""
    from ... import __version__

    is_equal, comparison = _comparison()
    print("\n".join([
        f"lsnn_ext {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"{find_processor()}, {os.cpu_count()} processors",
        show_config(),
        "; ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "environment: " + (", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES
                                     if name in os.environ) or "nothing set"),
        comparison]))
    return 0 if is_equal else 1
