"""What is installed and what will run."""

import torch

from .. import _ops


def show_config() -> str:
    """The build, the instruction set, the threads and what is missing, as text.

    Example:
        >>> print(lsnn_ext.show_config())
    """
    if _ops._C is None:
        reason = (
            f"NO COMPILED PART ({_ops.load_error}); functional.alif falls back to the slow "
            f"reference"
        )
        return f"lsnn_ext: {reason}\ntorch {torch.__version__}"
    c = _ops._C
    lines = [
        f"lsnn_ext, compiled with GCC-compatible {c.compiler}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        f"CPU kernels: {c.instruction_set()} (LSNN_CPU=avx512|avx2|neon|portable overrides)",
        _cuda(),
        f"models: {', '.join(_ops.DYNAMICS)}",
    ]
    return "\n".join(lines)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _cuda() -> str:
    cuda = _ops._C.cuda
    if _ops._C.emulator:
        return (
            "CUDA kernels: emulated, for tests; LSNN_EMULATE=1 takes them on the CPU (LSNN_DESIGN "
            "names a design)"
        )
    if cuda is None:
        return "CUDA kernels: none in this build; make CUDA=1 builds them where nvcc is found"
    device = (
        "no device: this torch is a CPU build"
        if torch.version.cuda is None
        else "torch sees no device"
    )
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    built = f"nvcc {cuda['version']} for {cuda['architectures']}"
    if cuda["driver"]:
        built += f", needs an NVIDIA driver {cuda['driver']} or newer"
    if torch.version.cuda and _major(torch.version.cuda) < _major(cuda["version"]):
        built += (f", which this torch for CUDA {torch.version.cuda} does not; build lsnn_ext with "
                  f"an nvcc {_major(torch.version.cuda)} for older drivers")
    return f"CUDA kernels: {built}; {device} (LSNN_DESIGN=block|gather|cluster|step overrides)"
