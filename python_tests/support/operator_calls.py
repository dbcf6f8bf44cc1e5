"""Records of operator calls, and runs of code in another process."""
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Case, build
from compare import detached, named
from lsnn_ext import _ops, functional
from lsnn_ext.tools.passes import counting

needs_compiled = pytest.mark.skipif(not _ops.available,
                                    reason="the compiled part of lsnn_ext is not built")
EMULATED = _ops.available and _ops._C.emulator and "LSNN_EMULATE" in os.environ
CUDA = _ops.available and bool(_ops._C.cuda) and torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"  # of tests of CUDA kernels
needs_cuda_kernels = pytest.mark.skipif(not (EMULATED or CUDA),
                                        reason="no CUDA kernels run here, not even emulated")
REFUSING = ("alif_forward", "alif_backward", "linear_events", "linear_events_backward")
NAMES = (*REFUSING, "leaky_readout", "leaky_readout_backward")


class Call(NamedTuple):
    operator: Any
    args: tuple[Any, ...]  # detached
    result: Any

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name, those in lists too."""
        return named(self.operator, self.args)


class Calls(TorchDispatchMode):
    """Records calls of the operators of lsnn_ext, and counts those of all operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.made: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts[func._opname] += 1
        if func.namespace == "lsnn" and func._opname != "buffer":
            self.made.append(Call(func, detached(args), result))
        return result

    @property
    def last(self) -> dict[str, Call]:
        """The last call of each operator, in the order of the first calls."""
        return {call.operator._opname: call for call in self.made}

    @property
    def forward(self) -> list[Call]:
        """Calls of alif_forward."""
        return [call for call in self.made if call.operator._opname == "alif_forward"]


def count(call: Callable[[], Any]) -> dict[str, int]:
    """The counters of the kernels after a call."""
    with counting():
        call()
        return _ops._C.counters()


def call_all_operators(case: Case, smooth: bool = False,
                       more: Callable[[], Any] = lambda: None) -> dict[str, Call]:
    """The last call of each operator: of a training step, then of `more`."""
    x, w = torch.eye(5, 4), torch.rand(3, 4)
    with Calls() as calls:
        build(case, torch.float32, dyadic=True).run(functional.alif, smooth=smooth)
        more()
        torch.ops.lsnn.linear_events(x, w, w[:, 0])
        torch.ops.lsnn.linear_events_backward(x @ w.T, x)
        torch.ops.lsnn.leaky_readout_backward(
            *torch.ops.lsnn.leaky_readout(x[None], w[0].expand(5, 4), 0.9), 0.9)
    assert set(calls.last) == set(NAMES)
    return calls.last


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code that may import the tests of operators, with these variables set too."""
    path = os.pathsep.join([str(Path(__file__).parents[1] / "operators"), *sys.path])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": path, **environment})


def python_output(code: str, **environment: str) -> str:
    """What a process with this code prints; it exits with 0."""
    ran = run_python(code, **environment)
    assert ran.returncode == 0, f"{ran.returncode}\n{ran.stdout}\n{ran.stderr[-3000:]}"
    return ran.stdout
