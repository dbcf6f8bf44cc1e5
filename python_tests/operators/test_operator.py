"""What PyTorch asks of an operator: compiled graphs, autocast, tensors without data, torch.func.

The operators are called as functional.alif calls them; what they compute is compared with the
reference elsewhere.
"""
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from test_export import Functional, K
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from cases import Case, build
from compare import assert_same, assert_same_runs, cast, changed, flat, named, weighted_gradients
from lsnn_ext import ALIF, LIF, LSNN, functional
from operator_calls import NAMES, REFUSING, call_all_operators, needs_compiled

pytestmark = needs_compiled
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None,
                                    reason="inductor needs a C++ compiler")
BUSY = Case("busy", T=40, delay="each", refractory=2, state="real")
PLAIN = Case("plain", T=40)


# ------------------------------------------------------------------------------------------ opcheck
@pytest.mark.parametrize(
    ("case", "smooth"),
    [(replace(BUSY, T=6), True), (replace(PLAIN, T=6), False), (replace(BUSY, T=0), False)],
    ids=["smooth", "plain", "empty"])
def test_opcheck(case: Case, smooth: bool) -> None:
    """On tensors that want no gradient; the raw operators refuse others (below)."""
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor",
                 "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    made = call_all_operators(case, smooth=smooth)
    # even empty ones are not the same tensor: the schema says so
    for _, _, result in made.values():
        assert len({id(value) for value in flat(result)}) == len(flat(result))
    operator, args, _ = made["alif_forward"]
    for requested in ((), ("traces",), ("saved",), ("traces", "saved")):
        torch.library.opcheck(operator, changed(operator, args, requested={"spikes", *requested}),
                              test_utils=utilities)
    operator, args, _ = made["alif_backward"]
    for coefficients, others in ((0, 0), (0, 2), (2047, 63)):
        masks = {"coefficient_gradients": coefficients, "gradients": others}
        torch.library.opcheck(operator, changed(operator, args, **masks), test_utils=utilities)
    for name in NAMES[2:]:
        torch.library.opcheck(*made[name][:2], test_utils=utilities)
    # Its values are nobody's promise, so there is nothing to compare after dispatch.
    torch.library.opcheck(torch.ops.lsnn.buffer.default, (torch.zeros(3), 4, 5),
                          test_utils=utilities[:3])


# ------------------------------------------------------------------------------------ torch.compile
class Graphs:
    """A backend that keeps both graphs, parted as inductor does, and runs them."""

    def __init__(self) -> None:
        self.forward: list[torch.fx.GraphModule] = []
        self.backward: list[torch.fx.GraphModule] = []
        self.backend = aot_autograd(fw_compiler=self._keep(self.forward),
                                    bw_compiler=self._keep(self.backward),
                                    partition_fn=min_cut_rematerialization_partition)

    @staticmethod
    def _keep(graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
        return lambda graph, _: graphs.append(graph) or make_boxed_func(graph.forward)  # type: ignore[func-returns-value]

    def nodes(self) -> list[int]:
        """Counts of forward in forward, of forward in backward, of backward in either."""
        forward, backward = ([str(node.target) for graph in graphs for node in graph.graph.nodes]
                             for graphs in (self.forward, self.backward))
        return [forward.count("lsnn.alif_forward.default"),
                backward.count("lsnn.alif_forward.default"),
                (forward + backward).count("lsnn.alif_backward.default")]


# The module, and how often the recurrence runs in it.
MODULES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "functional": (Functional, 1),
    "ALIF": (lambda: ALIF(5, 7), 1),
    "ALIF-stacked": (lambda: ALIF(5, 7, 2, bidirectional=True, learn=("tau_mem", "beta"),
                                  refractory=2, delay=1), 4),
    "ALIF-delays": (lambda: ALIF(5, 7, delay=torch.arange(49).view(7, 7) % 3), 1),
    "LIF": (lambda: LIF(5, 7), 1),
    "LSNN": (lambda: LSNN(5, 4, 3, 2), 1),  # the readout is an operator of its own
}


def _step(call: Callable[[Tensor], Any], module: nn.Module, x: Tensor,
          dynamic: tuple[int, ...] = ()) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All outputs by place, and the gradients of a weighted sum of them."""
    leaves = {"x": x.clone().requires_grad_(), **dict(module.named_parameters())}
    for axis in dynamic:
        torch._dynamo.mark_dynamic(leaves["x"], axis)
    outputs = flat(call(leaves["x"]))
    gradients = weighted_gradients(outputs, leaves.values())
    named = {f"{k} {out.requires_grad}": out.detach() for k, out in enumerate(outputs)}
    return named, dict(zip(leaves, gradients, strict=True))


@pytest.fixture
def fresh() -> None:
    torch.manual_seed(0)


@pytest.mark.filterwarnings("error:.*may not alias")
@pytest.mark.parametrize("name", MODULES)
def test_compiled(name: str, fresh: None) -> None:
    """One graph, compiled once, with one node for each pass of each recurrence."""
    module, graphs, x = MODULES[name][0](), Graphs(), torch.randn(40, 3, 5)
    compiled = torch.compile(module, fullgraph=True, backend=graphs.backend)
    for sequence in (x, 2 * x):
        want = _step(module, module, sequence)
        assert any(value.any() for value in want[1].values())
        assert_same_runs(_step(compiled, module, sequence), want)
    assert len(graphs.forward) == len(graphs.backward) == 1
    assert graphs.nodes() == [MODULES[name][1], 0, MODULES[name][1]]


@pytest.mark.parametrize("name", ["functional", "ALIF", "LSNN"])
def test_compiled_for_any_length_and_batch(name: str, fresh: None) -> None:
    module, graphs = MODULES[name][0](), Graphs()
    compiled = torch.compile(module, fullgraph=True, backend=graphs.backend)
    for steps, batch in ((40, 3), (100, 9), (7, 2), (130, 3), (300, 4)):
        x = torch.randn(steps, batch, 5)
        # products of matrices, in another order
        assert_same_runs(_step(compiled, module, x, (0, 1)), _step(module, module, x),
                         tolerance=1e-6)
        assert len(graphs.forward) == len(graphs.backward) == 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["functional", "LSNN"])
def test_inductor(name: str, fresh: None) -> None:
    module, x = MODULES[name][0](), torch.randn(40, 3, 5)
    assert_same_runs(_step(torch.compile(module, fullgraph=True), module, x),
                     _step(module, module, x), tolerance=1e-5, values=1e-5)


# --------------------------------------------------------------------------- autocast, fake tensors
def test_autocast() -> None:
    """Both passes run in float32, those of float64 in float64."""
    problem = build(BUSY, torch.bfloat16, dyadic=True)
    want = problem.run(functional.alif)
    operator, args, _ = call_all_operators(BUSY)["alif_forward"]
    low = cast(args, torch.bfloat16)
    high = cast(low, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = problem.run(functional.alif)
        assert_same("raw", flat(operator(*low)), flat(operator(*high)))
        assert build(BUSY, torch.float64).run(functional.alif)[0]["state.v"].dtype == torch.float64
        layer = LSNN(5, 4, 3, 2)
        y, state = layer(torch.randn(40, 3, 5))
    assert_same_runs(got, want)
    assert state.neurons.v.dtype == torch.float32
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 and p.grad.dtype == p.dtype
               for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("where", ["fake", "meta"])
def test_shapes_without_data(where: str, learns: bool, dtype: torch.dtype) -> None:
    problem = build(replace(BUSY, delay="one", learn=None if learns else ()), dtype)
    want, want_gradients = problem.run(functional.alif)
    mode = FakeTensorMode()

    def empty(value: Tensor) -> Tensor:
        return mode.from_tensor(value) if where == "fake" else value.to("meta")

    bare = replace(problem, leaves={name: empty(leaf) for name, leaf in problem.leaves.items()},
                   r0=None if problem.r0 is None else empty(problem.r0),
                   weights={name: empty(weight) for name, weight in problem.weights.items()})
    with nullcontext() if where == "meta" else mode:
        got, gradients = bare.run(functional.alif)
    for name, value in {**want, **want_gradients}.items():
        other = {**got, **gradients}[name]
        assert (other.shape, other.dtype, other.stride()) == (
            value.shape, value.dtype, value.stride()), name


# ------------------------------------------------------------------- derivatives that are not there
@pytest.mark.parametrize("name", REFUSING)
def test_raw_operators_refuse_tensors_that_want_a_gradient(name: str, fresh: None) -> None:
    operator, args, result = call_all_operators(PLAIN)[name]
    want = flat(result)[0]
    if name == "alif_forward":
        # with what it saves it has one: test_export.py
        args = changed(operator, args, requested={"spikes"})
    compiled = torch.compile(lambda *args: flat(operator(*args)), fullgraph=True,
                             backend="aot_eager")
    given = named(operator, args)
    tensors = [
        key for key, arg in given.items() if isinstance(arg, Tensor) and arg.is_floating_point()]
    assert len(tensors) >= 2
    for tensor in tensors:
        wanting = changed(operator, args, **{tensor: given[tensor].clone().requires_grad_()})
        with pytest.raises(RuntimeError, match=f"{name}: expected tensors that do not"):
            operator(*wanting)
        for silent in (torch.no_grad, torch.inference_mode):
            with silent():
                assert_same(name, flat(operator(*wanting))[0], want)
    with pytest.raises(RuntimeError, match=f"{name}: expected tensors that do not"):
        compiled(*wanting)
    with torch.no_grad():
        assert_same(name, compiled(*wanting)[0], want)


def test_forward_mode_is_refused() -> None:
    """An error, never a zero; second derivatives: test_second_derivatives.py, test_ensembles.py."""
    x, w = torch.rand(20, 3, 5), torch.rand(5, 5)
    refused = pytest.raises(RuntimeError, match="implement the jvp function")
    with refused:
        torch.func.jvp(lambda x: functional.alif(x, w, **K)[1].v, (x,), (torch.ones_like(x),))
    with refused, torch.autograd.forward_ad.dual_level():
        functional.alif(torch.autograd.forward_ad.make_dual(x, x), w.requires_grad_(), **K)
