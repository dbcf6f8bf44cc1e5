"""Compiles the CUDA kernels of a neuron: by NVRTC or nvcc; for the emulator as C++."""
import ctypes
import functools
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from . import cache
from . import compile as cxx

# No contraction, as on the CPU: spikes would differ.
CUDA_FLAGS = ("--std=c++20", "--fmad=false")
HINT = ("install the package nvidia-cuda-nvrtc for the CUDA version of torch, or put nvcc into "
        "PATH, or name it in CUDACXX")


def compile_kernels(source: str, architecture: str) -> Path:
    """Returns the path of the kernels of a source of generate(): machine code for a GPU, or PTX for
    one that is newer than the compiler. Files are cached as those of compile.shared_object.

    Args:
        source: C++ that includes headers of this folder.
        architecture: such as sm_90, or host.

    Raises:
        CompileError: LSNN_COMPILE=0, no compiler, or one that fails.
        OSError: no folder for the file.
    """
    if not cxx.is_enabled():
        raise cxx.CompileError("LSNN_COMPILE=0 allows no compiler")
    if architecture == "host":
        return _compile_by_command(source, cxx.find_compiler(), cxx.FLAGS)
    nvrtc = find_nvrtc()
    if nvrtc is None:
        path = shutil.which(os.environ.get("CUDACXX", "").strip() or "nvcc")
        if path is None:
            raise cxx.CompileError(f"expected NVRTC or nvcc, found neither; {HINT}")
        return _compile_by_command(source, cxx.check_compiler((os.path.abspath(path),)), (
            *CUDA_FLAGS, "--cubin", f"--gpu-architecture={architecture}", "-x", "cu"))
    flags = (*CUDA_FLAGS, nvrtc.target_flag(architecture))
    return cache.get(cxx.make_key(source, nvrtc.compiler, flags),
                     lambda work: nvrtc.compile(source, flags, work))


def _compile_by_command(source: str, compiler: cxx.Compiler, flags: Sequence[str]) -> Path:
    return cache.get(cxx.make_key(source, compiler, flags),
                     lambda work: cxx.compile_with(source, (*compiler.words, *flags), work))


class Nvrtc:
    def __init__(self, library: Any, name: str) -> None:
        self._library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.compiler = cxx.Compiler((name,), f"NVRTC {major.value}.{minor.value}")

    def _call(self, name: str, *arguments: Any) -> None:
        """Raises CompileError unless the function succeeds."""
        status = getattr(self._library, name)(*arguments)
        if status:
            text = self._library.nvrtcGetErrorString
            text.restype = ctypes.c_char_p
            raise cxx.CompileError(f"{name} of {self.compiler.version} fails: "
                                   f"{text(status).decode(errors='replace')}")

    def target_flag(self, architecture: str) -> str:
        """Returns the flag for an architecture, or for PTX of the newest one that is known."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        wanted = int(architecture.removeprefix("sm_"))
        if wanted in known:
            return f"--gpu-architecture={architecture}"
        older = [one for one in known if one < wanted]
        if not older:
            raise cxx.CompileError(f"{self.compiler.version}: expected a GPU of compute capability "
                                   f"{min(known) / 10} or more, got {wanted / 10}")
        return f"--gpu-architecture=compute_{max(older)}"

    def compile(self, source: str, flags: Sequence[str], work: Path) -> Path:
        kind = "PTX" if "compute_" in flags[-1] else "CUBIN"
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"neuron.cu", 0,
                   None, None)
        try:
            options = [flag.encode() for flag in (*flags, f"--include-path={cxx.HEADERS}")]
            try:
                self._call("nvrtcCompileProgram", program, len(options),
                           (ctypes.c_char_p * len(options))(*options))
            except cxx.CompileError as error:
                log = self._read(program, "nvrtcGetProgramLog").decode(errors="replace")
                lines = [line for line in log.splitlines() if line.strip()]
                first = next((line for line in lines if "error" in line), *lines[:1] or [""])
                raise cxx.CompileError(f"{error}: {first.strip()[:300]}") from None
            made = work / "neuron.so"
            made.write_bytes(self._read(program, f"nvrtcGet{kind}"))
            return made
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: Any, name: str) -> bytes:
        """Returns what a function writes, whose size name + "Size" returns."""
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(name, program, text)
        return text.raw


@functools.cache
def find_nvrtc() -> Nvrtc | None:
    """Returns NVRTC of the CUDA version of torch, from a wheel or as the linker finds it."""
    major = (torch.version.cuda or "").partition(".")[0]
    if not major:
        return None
    name = f"libnvrtc.so.{major}"
    for path in (path for entry in sys.path for path in Path(entry).glob(f"nvidia/*/lib/{name}")):
        with suppress(OSError, AttributeError):
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):  # looked up by name only
                ctypes.CDLL(str(builtins))
            return Nvrtc(ctypes.CDLL(str(path)), str(path))
    with suppress(OSError, AttributeError):
        return Nvrtc(ctypes.CDLL(name), name)
    return None
