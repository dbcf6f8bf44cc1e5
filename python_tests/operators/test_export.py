"""torch.export of the bare operators; AOTInductor; torch.compile with everything dynamic."""
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compare import assert_same, flat, outputs_and_gradients, through_exported_file
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, _ops, functional
from lsnn_ext.models import COEFFICIENTS
from operator_calls import needs_compiled

pytestmark = needs_compiled
K = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}


class Functional(nn.Module):
    """The recurrence with learned coefficients; sparse: only synapses that are not zero learn."""

    def __init__(self, sparse: bool = False, kernel: bool = False) -> None:
        super().__init__()
        w = torch.randn(5, 5) / 2
        self.w_rec = nn.Parameter(torch.where(w > 0, w, 0.0))
        self.k = nn.ParameterDict({name: torch.full((5,), value) for name, value in K.items()})
        self.sparse = sparse
        self.delay_kernel = nn.Parameter(torch.randn(3, 5)) if kernel else None
        self.mask = torch.rand(3, 5) < 0.7 if kernel else None

    def forward(self, x: Tensor) -> Any:
        return functional.alif(x, self.w_rec, **{name: self.k[name] for name in K},
                               delay=0 if self.mask is None else (0, 1, 3), trace=True,
                               delay_kernel=self.delay_kernel, recurrent_mask=self.mask,
                               sparse_grad="existing" if self.sparse else "all")


MODULES: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "sparse": lambda: Functional(sparse=True),
    "kernel and mask": lambda: Functional(kernel=True),
    "ALIF": lambda: ALIF(5, 7, 2, bidirectional=True, learn=("tau_mem", "beta"), refractory=2,
                         delay=1),
    "LIF": lambda: LIF(5, 7),
    "LSNN": lambda: LSNN(5, 4, 3, 2),
    "learned readout": lambda: LSNN(5, 4, 3, 2, learn="tau_out", per_neuron=True),
    "readout": lambda: LeakyReadout(5, 3)}


@pytest.mark.parametrize("grad", [False, True], ids=["exported-without-grad", "exported-with-grad"])
@pytest.mark.parametrize("name", MODULES)
def test_exported_program(name: str, grad: bool) -> None:
    torch.manual_seed(0)
    module, x = MODULES[name](), torch.randn(40, 3, 5)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, (x,))
    for exported in (program.module(), through_exported_file(program).module()):
        with torch.no_grad():
            assert_same(name, flat(exported(x)), flat(module(x)))
        assert dict(exported.named_parameters()).keys() == dict(module.named_parameters()).keys()
        if not grad and name != "readout":  # whose operator needs nothing saved
            with pytest.raises(RuntimeError, match=r"run it under torch\.no_grad\(\), or export"):
                exported(x)
            continue
        got, want = (
            outputs_and_gradients(call, call.parameters(), x) for call in (exported, module))
        assert_same(name, got, want, tolerance=1e-6)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "readout"])
def test_exported_by_another_version(name: str) -> None:
    """Numbers that stand for names may mean something else there: refused, not misread."""
    module, x = MODULES[name](), torch.randn(9, 3, 5)
    exported = torch.export.export(module, (x,)).module()
    calls = [node for node in exported.graph.nodes
             if node.target is torch.ops.lsnn.alif_forward.default]
    assert calls
    exported(x)
    for node in calls:
        constants = _ops.Constants(*node.args[7])
        node.update_arg(7, list(constants._replace(interface=constants.interface + 1)))
    exported.recompile()
    with pytest.raises(RuntimeError, match="constants: expected a call of this version"):
        exported(x)


def test_bare_operator_learns_where_it_saves() -> None:
    x, w = torch.rand(40, 3, 5) * 3, torch.rand(5, 5) - 0.5
    k = torch.tensor([0.9, 0.1, 0.95, 0.05, 0, 0.5, 0, 0.3, 0, 1, 0])[:, None].expand(11, 5)
    leaves = [leaf.clone().requires_grad_() for leaf in (x, w, k)]
    state = [torch.zeros(3, 5)] * 4 + [torch.zeros(1, 3, 5)]
    x_leaf, w_leaf, k_leaf = leaves
    constants = _ops.Constants(outputs=_ops.make_mask("outputs", ["spikes", "saved"]))
    spikes, *_ = torch.ops.lsnn.alif_forward(
        x_leaf, state, k_leaf, [w_leaf], [0], [], [], list(constants), [0.3, 0.0, math.inf], [])
    found = torch.autograd.grad(spikes.square().sum(), leaves)
    other = [leaf.clone().requires_grad_() for leaf in (x, w)]
    named = {name: row.clone().requires_grad_() for name, row in zip(COEFFICIENTS, k, strict=True)}
    want = torch.autograd.grad(functional.alif(*other, **named)[0].square().sum(),
                               [*other, *named.values()])
    assert_same("gradients", found, [*want[:2], torch.stack(want[2:])], nonzero=True)


def test_compiled_with_dynamic_numbers() -> None:
    """Floats of the caller become symbols: each call may have another one."""
    x, w = torch.rand(20, 3, 5) * 3, torch.rand(5, 5) - 0.5

    def run(alpha: float, dampening: float, k: float) -> list[Tensor]:
        spikes, state = functional.alif(x, w, alpha=alpha, theta=0.3, dampening=dampening)
        return [spikes, state.v, functional.leaky_readout(spikes, w[:2], k)[0]]

    compiled = torch.compile(run, dynamic=True, fullgraph=True, backend="aot_eager")
    for numbers in ((0.9, 0.3, 0.8), (0.7, 0.5, 0.6), (0.5, 0.25, 0.9)):
        assert_same("dynamic", compiled(*numbers), run(*numbers), tolerance=1e-6)


# The least time of the compiler: the operators are compiled already.
QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")),
                    reason="AOTInductor needs a C++ compiler, found none")
def test_a_compiled_package_computes_what_the_network_computes(tmp_path: Path) -> None:
    """It runs without the module, for other lengths and batches, and in inference mode too."""
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
