"""torch.compile of functional.recurrent and Recurrent: one operator, no stale kernels."""
from typing import Any

import pytest
import torch
from torch import Tensor

from any_neurons import ADAPTIVE, BRANCHES, adaptive
from lsnn_ext import Neuron, NeuronState, Recurrent
from lsnn_ext.functional import recurrent

pytestmark = pytest.mark.usefixtures("interpreted")
T, B, I, N = 9, 3, 5, 6
GAIN = 1.0


def gained(c, v, z, *, tau=3.0):
    v = v + (c * GAIN - v) / tau
    return v, torch.sigmoid(v)


def without_coefficients(c, v, z):
    return v * 0.5 + c * GAIN, torch.sigmoid(v)


def layer_of(neuron: Neuron, **given: Any) -> Recurrent:
    torch.manual_seed(0)
    layer = Recurrent(neuron, I, N, bias=True, **given)
    with torch.no_grad():
        layer.weight_ih_l0.mul_(4)
    return layer


LAYERS: dict[str, dict[str, Any]] = {
    "adaptive": {"neuron": Neuron(adaptive), "theta": 0.2, "positive": "tau", "delay": 2},
    "branches": {"neuron": BRANCHES, "tau": 3.0, "gain": torch.ones(N), "learn": "gain",
                 "delay": torch.arange(N * N).view(N, N) % 3, "autapses": False}}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_graph(name: str, backend: str) -> None:
    layer, x = layer_of(**LAYERS[name]), torch.randn(T, B, I)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    found: list[Any] = []
    for call in (compiled, layer):
        _, state = call(x[:4])
        spikes, end, traces = call(x[4:], state, trace=True)
        (spikes.sum() + end.states["v"].sum() + traces["v"].square().sum()).backward()
        found.append([spikes, *end.states.values(), end.z, *traces.values(),
                      *(p.grad.clone() for p in layer.parameters())])
        layer.zero_grad()
    assert found[0][0].any()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5 if backend == "inductor" else 0.0)


def test_the_graph_has_one_operator_and_no_step() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    x, w = torch.randn(T, B, N), torch.randn(N, N)
    with torch.no_grad():
        wanted, _ = recurrent(x, w, ADAPTIVE, theta=0.2)
        compiled = torch.compile(recurrent, backend=keep, fullgraph=True)
        spikes, _ = compiled(x, w, ADAPTIVE, theta=0.2)
    assert torch.equal(spikes, wanted) and len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes if "lsnn" in str(node.target)]
    assert called == ["lsnn.neuron_rows", "lsnn.alif_forward"]


def test_other_sizes_and_lengths() -> None:
    w = torch.randn(N, N)

    def call(x: Tensor, tau: Tensor, lengths: Tensor, state: Any) -> Any:
        return recurrent(x, w, ADAPTIVE, theta=0.2, tau=tau, lengths=lengths, state=state)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for steps, batch in ((T, B), (T + 1, B + 2), (4, 2)):
        x = torch.randn(steps, batch, N) * 3
        state = NeuronState({"v": torch.rand(batch, N), "w": torch.rand(batch, N)},
                            torch.ones(1, batch, N))
        lengths = torch.randint(0, steps + 1, (batch,))
        torch.testing.assert_close(compiled(x, torch.tensor(4.0), lengths, state),
                                   call(x, torch.tensor(4.0), lengths, state), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("step", "given"), [
    (gained, {"tau": 3.0}), (gained, {"tau": torch.tensor(3.0)}), (without_coefficients, {})])
def test_a_graph_does_not_outlive_what_the_step_reads(
        step: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    neuron, x = Neuron(step), torch.randn(T, B, N)
    compiled = torch.compile(lambda x: recurrent(x, None, neuron, **given)[0],
                             backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), recurrent(x, None, neuron, **given)[0])
    monkeypatch.setitem(globals(), "GAIN", 2.0)
    with pytest.raises(RuntimeError, match=f"what the step {step.__name__} reads as it was when"):
        compiled(x)
    torch.compiler.reset()
    assert torch.equal(compiled(x), recurrent(x, None, neuron, **given)[0])


def test_is_exported_for_inference() -> None:
    layer, x = layer_of(Neuron(adaptive), theta=0.2, positive="tau"), torch.randn(T, B, I)
    program = torch.export.export(layer, (x,))
    with torch.no_grad():
        assert torch.equal(program.module()(x)[0], layer(x)[0])
    with pytest.raises(RuntimeError, match="alif_forward: expected tensors that do not"):
        program.module()(x)
