"""Memory, copies, threads, processes and instruction sets."""
import copy
import hashlib
import os
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cases import Case, build
from compare import assert_all_same, assert_same, count_saved_bytes, saved_storages, through_file
from lsnn_ext import ALIF, LSNN, functional
from operator_calls import Calls, needs_compiled, python_output, run_python

pytestmark = needs_compiled
K = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}


# ------------------------------------------------------------------------------------------- memory
def test_memory_kept_for_the_backward_pass() -> None:
    """Per neuron and step: the membrane, a bit for the spike, and a state every 128 steps. A layer
    also keeps W_rec without its diagonal, and where that was."""
    T, B, N = 784, 8, 220
    x, w = torch.rand(T, B, N).requires_grad_(), (torch.randn(N, N) / N**0.5).requires_grad_()
    kept = count_saved_bytes(lambda: functional.alif(x, w, **K), [x, w])
    assert 4.0 <= kept / (T * B * N) <= 4.3
    layer, x = ALIF(80, N), torch.rand(T, B, 80)
    kept = count_saved_bytes(lambda: layer(x), [x, *layer.parameters()])
    assert 4.0 <= (kept - 5 * N * N) / (T * B * N) <= 4.3


def test_inference_keeps_nothing() -> None:
    x, w = torch.rand(40, 3, 5), torch.rand(5, 5)
    layer = ALIF(5, 7)
    with torch.no_grad(), Calls() as calls:
        assert not saved_storages(lambda: functional.alif(x, w.requires_grad_(), **K), [])
        assert not saved_storages(lambda: layer(x), [])
    assert all(value.numel() == 0 for value in calls.made[-1].result[6:])
    with Calls() as calls:
        assert not saved_storages(lambda: functional.alif(x, w.detach(), **K), [])
    assert all(value.numel() == 0 for value in calls.made[-1].result[6:])


# ----------------------------------------------------------------------- copies, threads, processes
def test_copies_after_use() -> None:
    x = torch.randn(9, 3, 5)
    for module in (LSNN(5, 4, 3, 2), ALIF(5, 7, delay=2)):
        y, state = module(x)
        y.sum().backward()
        # the default refuses classes that are not registered as safe
        loaded = through_file({"model": module.state_dict(), "state": state})
        other = copy.deepcopy(module)
        nn.init.zeros_(next(other.parameters()))
        other.load_state_dict(loaded["model"])
        assert type(loaded["state"]) is type(state)
        assert_same("copy", other(x, loaded["state"])[0], module(x, state)[0])


BUSY = Case("busy", T=150, B=17, N=33, delay="each", refractory=2, state="real")
CASES = [BUSY, Case("paper", T=40, B=9, N=220, given=("alpha", "theta", "rho", "beta"),
                    learn=("x", "w")),
         Case("hard", dynamics="sj_hard", T=40, B=2, N=64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_callers_at_once_change_no_bit(dtype: torch.dtype) -> None:
    """For threads of one call see test_table_of_models.py."""
    problems = [build(case, dtype) for case in CASES]
    want = [problem.run(functional.alif) for problem in problems]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda problem: problem.run(functional.alif), problems * 4))
    for run, wanted in zip(found, want * 4, strict=True):
        for got, values in zip(run, wanted, strict=True):
            assert_all_same(got, values)


class Forked(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        outputs, gradients = build(CASES[index], torch.float32).run(functional.alif)
        return outputs | gradients


def _check_forked() -> None:
    want = [Forked()[0], Forked()[1]]
    loader = torch.utils.data.DataLoader(Forked(), batch_size=None, num_workers=1,
                                         multiprocessing_context="fork")
    for got, wanted in zip(loader, want, strict=True):
        assert_all_same(got, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd's threads of GPUs cannot fork")
def test_worker_of_a_data_loader() -> None:
    """A forked process works after the parent has used the operators. The parent is a new one,
    because another test may have started threads of autograd."""
    python_output("import test_memory_and_processes as t; t._check_forked()")


def _digest() -> str:
    """Of all outputs of some cases, whose numbers round differently in any other order."""
    total = hashlib.sha256()
    for case in (
        *CASES, replace(BUSY, dynamics="adlif"), replace(BUSY, dynamics="eprop_timit", N=31)):
        for dtype in (torch.float32, torch.float64):
            with torch.no_grad():
                outputs = build(case, dtype).outputs(functional.alif)
            assert outputs["spikes"].any()
            for value in outputs.values():
                total.update(value.contiguous().numpy().tobytes())
    return total.hexdigest()


INSTRUCTIONS = {"x86_64": ["avx512", "avx2", "portable"], "aarch64": ["neon", "portable"]}.get(
    platform.machine(), ["portable"])


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_instruction_sets_agree(instructions: str) -> None:
    code = ("import test_memory_and_processes as t; from lsnn_ext import _ops\n"
            "print(_ops._C.instruction_set(), t._digest())")
    ran = run_python(code, LSNN_CPU=instructions)
    if "expected an instruction set of this processor" in ran.stderr:
        assert instructions not in ("neon", "portable")
        pytest.skip(f"this processor has no {instructions}")
    assert ran.stdout.split() == [instructions, _digest()], ran.stderr


@pytest.mark.slow
def test_unknown_instruction_set() -> None:
    ran = run_python("import torch; from lsnn_ext import functional\n"
                  "functional.alif(torch.zeros(2, 2, 2), torch.zeros(2, 2), alpha=0.9, theta=0.5)",
                  LSNN_CPU="nonsense")
    assert ran.returncode == 1
    known = ", ".join(INSTRUCTIONS[:-1]) + " or " * (len(INSTRUCTIONS) > 1) + INSTRUCTIONS[-1]
    assert re.search(f"RuntimeError: .*LSNN_CPU.*{known}.*nonsense", ran.stderr), ran.stderr


OUT_OF_MEMORY = """
import resource, torch
from lsnn_ext import functional
torch.set_num_threads(1)
def call(steps, learn=False):
    current = torch.ones(1, 1, 1, requires_grad=learn).expand(steps, 1, 1)
    return functional.alif(current, torch.zeros(1, 1, requires_grad=learn), alpha=0.9, theta=0.5)[0]
def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + more, -1))
want = call(20)
try:
    {}
except (MemoryError, RuntimeError) as error:
    print("REFUSED", error)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert torch.equal(call(20), want)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize(("code", "wanted"), [
    ("call(2**45)", 2**45), ("call(2**45, True)", 2**45), ("call(2**61)", 2**61),
    ("call(2**62)", 2**62), ("limit(2**28); call(2**28)", 2**28),
    ("spikes = call(2**22, True); limit(2**22); spikes.sum().backward()", 2**22)])
def test_out_of_memory(code: str, wanted: int) -> None:
    """Refused with the size that was wanted, in bytes or as a shape; the process lives on."""
    ran = run_python(OUT_OF_MEMORY.format(code))
    assert ran.returncode == 0, f"{ran.returncode}\n{ran.stderr[-2000:]}"
    assert re.search(f"REFUSED .*memory.*({wanted}|{4 * wanted})", ran.stdout), ran.stdout
