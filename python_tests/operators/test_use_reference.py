"""use_reference(): plain PyTorch computes what is called inside, and what comes out is the same."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from compare import assert_same, outputs_and_gradients
from lsnn_ext import ALIF, LIF, LSNN, _ops, functional
from operator_calls import Calls, needs_compiled

pytestmark = needs_compiled
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ALIF": lambda: ALIF(5, 7, 2, bidirectional=True, learn=("tau_mem",), refractory=2),
    "LIF": lambda: LIF(5, 7, delay=torch.arange(49).view(7, 7) % 3),
    "LSNN": lambda: LSNN(5, 4, 3, 2)}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("error")  # who asks for it is not warned of it
def test_modules(name: str) -> None:
    torch.manual_seed(0)
    module, x = MODULES[name](), torch.randn(20, 3, 5)
    with Calls() as compiled:
        want = outputs_and_gradients(module, module.parameters(), x)
    with Calls() as plain, lsnn_ext.use_reference():
        got = outputs_and_gradients(module, module.parameters(), x)
    assert "alif_backward" in compiled.last and plain.made == []
    assert any(gradient.any() for gradient in want[-len(list(module.parameters())):])
    assert_same(name, got, want, tolerance=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_single_steps(grad: bool) -> None:
    """Those have ways of their own past the operators, which the switch closes too."""
    module, x = ALIF(5, 7), torch.randn(3, 5)
    with torch.set_grad_enabled(grad):
        want = module.step(x)
        with lsnn_ext.use_reference():
            got = module.step(x)
    assert_same("v", got[1].v.detach(), want[1].v.detach(), tolerance=1e-6)
    names = [type(one[1].v.grad_fn).__name__ for one in (want, got)]
    assert names[0] != names[1] if grad else names == ["NoneType"] * 2


def test_it_nests_decorates_and_ends() -> None:
    @functional.use_reference()
    def inside() -> bool:
        return _ops.is_compiled_active()

    assert not inside() and _ops.is_compiled_active()
    with pytest.raises(KeyError), lsnn_ext.use_reference():
        with lsnn_ext.use_reference():
            assert not _ops.is_compiled_active()
        assert not _ops.is_compiled_active()
        raise KeyError
    assert _ops.is_compiled_active()


@pytest.mark.slow
def test_compiled_graphs_see_it() -> None:
    """Around a compiled module, and inside of what is compiled."""
    module, x = ALIF(5, 7), torch.randn(6, 3, 5)
    module.requires_grad_(False)
    operators: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        operators.append({str(node.target) for node in graph.graph.nodes
                          if "alif_forward" in str(node.target)})
        return graph.forward

    compiled = torch.compile(module, backend=backend, fullgraph=True)
    want = compiled(x)[0]
    with lsnn_ext.use_reference():
        assert_same("spikes", compiled(x)[0], want)
    assert_same("spikes", compiled(x)[0], want)

    def switches(x: Tensor) -> Tensor:
        with lsnn_ext.use_reference():
            return module(x)[0]

    assert_same("spikes", torch.compile(switches, backend=backend, fullgraph=True)(x), want)
    assert [len(each) for each in operators] == [1, 0, 0]


@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_ensembles_of_the_reference() -> None:
    torch.manual_seed(0)
    x, w = torch.rand(20, 3, 5) * 3, torch.rand(4, 5, 5) - 0.5

    def loss(w: Tensor) -> Tensor:
        return functional.alif(x, w, alpha=0.9, theta=0.3)[0].square().sum()

    def gradients() -> Tensor:
        return torch.func.vmap(torch.func.grad(loss))(w)

    want = gradients()
    with lsnn_ext.use_reference():
        assert want.any()
        assert_same("gradients", gradients(), want, tolerance=1e-5)
