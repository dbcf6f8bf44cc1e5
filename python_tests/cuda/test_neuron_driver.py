"""The host's side of a neuron on a GPU with a driver that calls its kernels on the CPU."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lsnn_ext.codegen.cuda import compile_kernels
from lsnn_ext.codegen.generate import generate
from lsnn_ext.codegen.trace import trace

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not (SOURCES / "tests" / "cuda").is_dir(),
                                 reason="these tests stand apart from the sources"),
              pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")]


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, m: Tensor) -> Tensor:
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g


def integrator(c: Tensor, v: Tensor, z: Tensor, *, k: Tensor) -> tuple[Tensor, Tensor]:
    v = k * v + c
    return v, Fire.apply(v - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the test program, the driver, and "machine code", which is the path of the kernels."""
    made = tmp_path_factory.mktemp("driver")
    model_table = [sys.executable, "-B", str(SOURCES / "model_table.py"), str(made)]
    subprocess.run(model_table, check=True, timeout=60)
    cuda = SOURCES / "tests" / "cuda"
    for command in (
        ["-shared", "-fPIC", str(cuda / "fake_driver.cpp"), "-o", "libcuda.so.1"],
        ["-I.", str(cuda / "test_neuron.cpp"), str(SOURCES / "cuda" / "neuron.cpp"),
         str(SOURCES / "cuda" / "neuron_launch.cpp"), "-o", "test_neuron", "-ldl"]):
        subprocess.run(["g++", "-std=gnu++20", "-O1", *command], cwd=made, check=True, timeout=300)
    program = trace(integrator, currents=1, states=1, dtype=torch.float64,
                    coefficients={"k": torch.ones(3, dtype=torch.float64)}).program
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSNN_CACHE_DIR", str(made / "cache"))
        kernels = compile_kernels(generate(program, is_cuda=True), "host")
    (made / "code").write_text(str(kernels))
    return made


def _run(folder: Path, code: str, **environment: str) -> tuple[int, str]:
    ran = subprocess.run(
        [str(folder / "test_neuron"), code], cwd=folder, capture_output=True, text=True, timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **environment})
    return ran.returncode, ran.stdout


def test_both_directions(folder: Path) -> None:
    status, text = _run(folder, "code")
    assert status == 0, text


@pytest.mark.parametrize(("code", "fails", "message"), [
    ("missing", "", "neuron: expected a file with kernels, got missing"),
    ("code", "cuLibraryLoadData", "neuron: loading the kernels: device kernel image is invalid"),
    ("code", "cuLaunchKernel",
     "neuron: launching lsnn_pack_weights (1 blocks of 256 threads): another error"),
    ("code", "memory",
     "CUDA: launching lsnn_pack_weights (1 blocks of 256 threads): out of memory")])
def test_errors_are_named(folder: Path, code: str, fails: str, message: str) -> None:
    assert _run(folder, code, FAKE_DRIVER_FAILS=fails) == (3, f"{message}\n")


def test_a_machine_without_a_driver(folder: Path, tmp_path: Path) -> None:
    status, text = _run(folder, "code", LD_LIBRARY_PATH=str(tmp_path))
    if "libcuda.so.1" not in text:
        pytest.skip("this machine has a driver")
    assert (status, text) == (3, "driver: expected libcuda.so.1, got none\n")
