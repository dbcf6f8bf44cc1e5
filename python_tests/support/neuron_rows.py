"""Calls the row functions of neuron.h, of generated code and of the interpreter."""
import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_bool, c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lsnn_ext.codegen.encode import encode
from lsnn_ext.codegen.generate import generate
from lsnn_ext.codegen.program import Program

ROOT = Path(__file__).resolve().parents[2]
CODEGEN = ROOT / "lsnn_ext" / "codegen"
FLAGS = ("-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-shared",
         "-fPIC", f"-I{CODEGEN}")
MAX_ITEMS, PADDING = 16, 32


class Target(NamedTuple):
    name: str
    bits: int
    flags: tuple[str, ...]


@cache
def targets() -> list[Target]:
    """The instruction sets of csrc/cpu/instruction_sets.h that this processor has."""
    text = (ROOT / "csrc/cpu/instruction_sets.h").read_text()
    rows = re.findall(r'X\((\w+), \w+, (\d+), "([^"]*)",', text)
    try:
        has = set(re.findall(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[0]
                  .split())
    except (OSError, IndexError):
        has = set()
    renamed = {"bmi": "bmi1"}
    needed = {name: {renamed.get(flag, flag) for flag in re.findall(r"-m([a-z0-9]+)", flags)}
              for name, _, flags in rows}
    return [Target(name, int(bits), tuple(flags.split())) for name, bits, flags in rows
            if name != "neon" and needed[name] <= has]


def compile_source(source: str | Path, folder: Path, target: Target,
                   more: Sequence[str] = ("-O3",)) -> ctypes.CDLL:
    """Compiles C++ text or a file and loads it."""
    number = len(list(folder.iterdir()))
    path = folder / f"source{number}.cpp"
    if isinstance(source, Path):
        path = source
    else:
        path.write_text(source)
    library = folder / f"library{number}.so"
    command = [os.environ.get("CXX", "g++"), *FLAGS, *more, *target.flags,
               f"-DLSNN_VECTOR_BITS={target.bits}", str(path), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


class Spikes(ctypes.Structure):
    _fields_ = [("bits", c_void_p), ("numbers", c_void_p), ("numbers_end", c_int64)]


class SpikesOfItems(ctypes.Structure):
    _fields_ = [("first", Spikes), ("bits_stride", c_int64), ("numbers_stride", c_int64)]


class Rows(ctypes.Structure):
    _fields_ = [("first", c_void_p), ("stride", c_int64)]


_RANGE = [("n0", c_int64), ("n1", c_int64), ("N", c_int64)]


class StepRow(ctypes.Structure):
    _fields_ = [("coefficients", c_void_p), *_RANGE, ("c", Rows), ("before", Spikes),
                ("states", Rows), ("is_last", c_bool), ("z_numbers", c_void_p), ("bits", c_void_p),
                ("saved", Rows), ("z", c_void_p), ("traces", c_void_p)]


class ReplaySteps(ctypes.Structure):
    _fields_ = [("coefficients", c_void_p), *_RANGE, ("steps", c_int64), ("before", Spikes),
                ("after", Spikes), ("bits_stride", c_int64), ("numbers_stride", c_int64),
                ("saved", Rows), ("saved_bf16", c_void_p), ("saved_stride", c_int64),
                ("read", Rows), ("left", Rows)]


class ReplayRow(ctypes.Structure):
    _fields_ = [("coefficients", c_void_p), *_RANGE, ("before", Spikes), ("after", Spikes),
                ("saved", Rows), ("read", Rows), ("left", Rows), ("active", c_void_p)]


class AdjointRows(ctypes.Structure):
    _fields_ = [("coefficients", c_void_p), ("items", c_int64), *_RANGE, ("NP", c_int64),
                ("saved", Rows), ("saved_items", c_int64), ("before", SpikesOfItems),
                ("after", SpikesOfItems), ("read", Rows), ("d_states", Rows), ("dz", c_void_p),
                ("dz_stride", c_int64), ("gz", c_void_p), ("gz_next", c_void_p),
                ("gz_stride_b", c_int64), ("gz_stride_n", c_int64), ("g_traces", c_void_p),
                ("dc", Rows), ("gx", Rows), ("gx_items", c_int64), ("sums", c_void_p),
                ("want", c_uint32), ("is_first", c_bool), ("is_last", c_bool),
                ("saved_before", c_void_p), ("saved_ahead", c_void_p),
                ("before_that", SpikesOfItems)]


class NeuronTable(ctypes.Structure):
    _fields_ = [*((name, c_int32) for name in ("abi_version", "number_bytes", "lanes", "states",
                                               "currents", "gradients", "traces", "packed",
                                               "saved")),
                *((name, c_bool) for name in ("saves_currents", "has_number_spikes",
                                              "has_inactive", "replays", "has_product",
                                              "whole_rows")),
                ("carried", c_uint32), ("settings", c_void_p),
                *((name, c_void_p) for name in ("step", "replay_steps", "replay", "adjoint"))]


STRUCTS = (NeuronTable, StepRow, ReplaySteps, ReplayRow, AdjointRows)


class Neuron:
    """A table, and the tensors that its functions are called with."""

    def __init__(self, address: int, program: Program, target: Target) -> None:
        self.table = NeuronTable.from_address(address)
        self.program = program
        self.lanes = target.bits // 8 // program.dtype.itemsize

    def call(self, name: str, rows: ctypes.Structure) -> int:
        function = ctypes.CFUNCTYPE(c_int64, c_void_p, c_void_p)(getattr(self.table, name))
        return function(self.table.settings, ctypes.addressof(rows))

    def pack(self, coefficients: Tensor) -> Tensor:
        """(C, NP) as the row functions read it."""
        C, NP = coefficients.shape
        return coefficients.view(C, NP // self.lanes, self.lanes).transpose(0, 1).contiguous()


def load_generated(program: Program, folder: Path, target: Target,
                   more: Sequence[str] = ("-O3",)) -> Neuron:
    library = compile_source(generate(program), folder, target, more)
    library.lsnn_neuron.restype = c_void_p
    return Neuron(library.lsnn_neuron(), program, target)


class Interpreter:
    """csrc/tests/cpu/interpreted.cpp for one instruction set."""

    def __init__(self, folder: Path, target: Target, more: Sequence[str] = ("-O3",)) -> None:
        self.target = target
        self.library = compile_source(ROOT / "csrc/tests/cpu/interpreted.cpp", folder, target, more)
        self.library.interpreted_neuron.restype = c_void_p
        self.library.interpreter_error.restype = ctypes.c_char_p
        self.library.operator_names.restype = ctypes.c_char_p

    def load_code(self, wide: bool, code: list[int], constants: list[float]) -> int:
        """Returns the address of a table, or raises what decode() throws."""
        address = self.library.interpreted_neuron(
            c_bool(wide), (c_int64 * len(code))(*code), c_int64(len(code)),
            (ctypes.c_double * len(constants))(*constants), c_int64(len(constants)))
        if address is None:
            raise RuntimeError(self.library.interpreter_error().decode())
        return address

    def load(self, program: Program) -> Neuron:
        wide = program.dtype == torch.float64
        return Neuron(self.load_code(wide, *encode(program)), program, self.target)


@cache
def load_interpreter(target: Target, more: tuple[str, ...] = ("-O3",)) -> Interpreter:
    """Compiled once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        return Interpreter(Path(folder), target, more)


def rows(x: Tensor | None) -> Rows:
    """Of a tensor whose first dimension goes from row to row."""
    if x is None or x.numel() == 0:
        return Rows(None, 0)
    return Rows(x.data_ptr(), x.stride(0))


def pointers(tensors: Sequence[Tensor | None] | None) -> ctypes.Array | None:
    if tensors is None:
        return None
    return (c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


def to_bits(z: Tensor) -> Tensor:
    """(..., N) spikes as (..., words) int32."""
    padded = torch.nn.functional.pad((z > 0).to(torch.int64), (0, -z.shape[-1] % 32))
    words = padded.unflatten(-1, (-1, 32)) << torch.arange(32)
    return words.sum(-1).to(torch.uint32).view(torch.int32)


def pad(x: Tensor, value: float = 0.0) -> Tensor:
    """(..., N) to (..., NP)."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % PADDING), value=value).contiguous()
