"""AOTInductor: an exported network is compiled into a package, which runs without the module."""
import os
import shutil
from pathlib import Path

import pytest
import torch

from compare import assert_same, flat
from lsnn_ext import LSNN
from operator_calls import needs_compiled

COMPILER = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
pytestmark = [
    needs_compiled,
    pytest.mark.skipif(COMPILER is None, reason="AOTInductor needs a C++ compiler, found none")]
# The least time of the compiler: the operators are compiled already.
QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}


def test_a_package_computes_what_the_network_computes(tmp_path: Path) -> None:
    """For other lengths and batches than it was exported with, and in inference mode too."""
    torch.manual_seed(0)
    net = LSNN(5, 4, 3, 2)
    with torch.no_grad():
        sizes = {0: torch.export.Dim("T", min=2, max=500), 1: torch.export.Dim("B", max=64)}
        program = torch.export.export(net, (torch.randn(40, 3, 5),), dynamic_shapes=(sizes,))
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2"), inductor_configs=QUICK)
    run = torch._inductor.aoti_load_package(package)
    for steps, batch in ((40, 3), (150, 5)):
        x = torch.randn(steps, batch, 5)
        with torch.no_grad():
            want = flat(net(x))
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                got = flat(run(x))
            assert want[0].abs().max() > 0.01
            assert_same(f"{steps} steps", got, want, tolerance=1e-6)
