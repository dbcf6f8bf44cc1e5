"""Contestants on a card: those of the CPU benchmark, cuDNN's layers in two precisions, and the loop
as a CUDA graph."""
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench import contestants as cpu
from bench.contestants import OURS, Contestant, TorchContestant
from bench.problem import Problem
from lsnn_ext.functional import pack_spikes

OURS_GRAPHED = f"{OURS}, CUDA graph"  # what is left of our own call when the host costs nothing
OURS_BITS = f"{OURS}, inputs as bits"
GRAPHED, COMPILED, EAGER = "eager loop, CUDA graph", "compiled step", "eager loop"


class _RNN(cpu._LSTM):
    """cuDNN's fastest recurrent layer: one matrix product and a tanh in each step."""

    kind = nn.RNN


class _OursOfBits(cpu.Ours):
    """Ours, with the inputs of the problem packed to bits beforehand."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.packed = pack_spikes(problem.x)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.packed)[0]


class Graphed(Contestant):
    """Another contestant, its kernels launched by one call: a loop without the overhead of Python.
    """

    def __init__(self, name: str, inner: TorchContestant) -> None:
        self.name, self.inner = name, inner
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # cuBLAS and the allocator need all sizes before the capture
        with torch.cuda.stream(side):
            for _ in range(2):
                inner.forward()
                inner.forward_backward()
        torch.cuda.current_stream().wait_stream(side)
        inner.module.zero_grad(set_to_none=True)
        self._forward, self._both = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward):
            self._out = inner.forward()
        with torch.cuda.graph(self._both):
            self._gradients = inner.forward_backward()

    def forward(self) -> Tensor:
        """The outputs, in memory that the next call writes again."""
        self._forward.replay()
        return self._out

    def forward_backward(self) -> list[Tensor]:
        """The gradients, in memory that the next call writes again."""
        self._both.replay()
        return self._gradients


def _halved(problem: Problem) -> Problem:
    return replace(problem, x=problem.x.half(), cotangent=problem.cotangent.half())


Maker = Callable[[str, Problem], Contestant]
# (name, dtype) -> how it is made.
MAKERS: dict[tuple[str, str], Maker] = {
    (OURS, "float32"): cpu.MAKERS[OURS],
    # Inputs and spikes in half precision, weights and state in float32, as under autocast.
    (OURS, "float16"): lambda name, p: TorchContestant(name, cpu.Ours(p), _halved(p)),
    ("nn.LSTM", "float32"): cpu.MAKERS["nn.LSTM"],
    ("nn.LSTM", "float16"): lambda name, p: TorchContestant(name, cpu._LSTM(p).half(), _halved(p)),
    ("nn.RNN", "float32"): cpu.maker_of(_RNN),
    ("nn.RNN", "float16"): lambda name, p: TorchContestant(name, _RNN(p).half(), _halved(p)),
    (EAGER, "float32"): cpu.MAKERS[EAGER],
    (COMPILED, "float32"): cpu.MAKERS[COMPILED],
    (OURS_BITS, "float32"): cpu.maker_of(_OursOfBits),
    (OURS_GRAPHED, "float32"): lambda name, p: Graphed(name, cpu.MAKERS[OURS](OURS, p)),
    (GRAPHED, "float32"): lambda name, p: Graphed(name, cpu.MAKERS[EAGER](EAGER, p)),
}


def make(name: str, dtype: str, problem: Problem) -> Contestant:
    """The named contestant, its weights drawn from a fixed seed."""
    torch.manual_seed(3)
    return MAKERS[name, dtype](name, problem)


def precision(name: str, dtype: str) -> str:
    """The dtype, and whether float32 products may be rounded to tf32, which is torch's default for
    cuDNN's layers."""
    cudnn = name in ("nn.LSTM", "nn.RNN")
    switches = torch.backends.cudnn if cudnn else torch.backends.cuda.matmul
    return f"{dtype} (tf32 products)" if dtype == "float32" and switches.allow_tf32 else dtype
