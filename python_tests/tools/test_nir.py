"""NIR: graphs compute the same, come back, and refuse what they cannot hold."""
from collections import OrderedDict
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compare import assert_same
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, Linear
from lsnn_ext.models import MODELS
from lsnn_ext.tools.nir import Network, from_nir, to_nir

nir = pytest.importorskip("nir")
# Since nir 1.0.6 a spike of nir.LIF sets the membrane to v_reset; before, it subtracts.
HARD = "v_reset" in nir.LIF.__dataclass_fields__
ONE, DETACHED, OTHER = ("sj_hard", "sj_hard_det", "sinabs_zero") if HARD else (
    "sj_soft", "sj_soft_det", "sinabs_sub")


def _lif(inputs: int, neurons: int, **other: Any) -> LIF:
    given = {"dynamics": ONE, "tau_mem": torch.linspace(5, 20, neurons), "threshold": 0.1,
             "refractory": 0, "autapses": True, **other}
    return LIF(inputs, neurons, **given)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: nn.Sequential(_lif(5, 8), LeakyReadout(8, 2, 15.0)),
    "delayed": lambda: nn.Sequential(_lif(5, 8, delay=3, autapses=False, dt=0.5)),
    "stacked": lambda: nn.Sequential(_lif(5, 8, num_layers=2), nn.Linear(8, 3)),
    "forward": lambda: nn.Sequential(_lif(5, 8, recurrent=False, autapses=None, bias=False),
                                     Linear(8, 6), _lif(6, 4, dynamics=OTHER),
                                     LeakyReadout(4, 2, bias=False)),
    "alif": lambda: nn.Sequential(ALIF(5, 8, dynamics=DETACHED, tau_mem=10.0, tau_adapt=1.0,
                                       beta=0.0, threshold=0.5, refractory=0, autapses=True,
                                       surrogate="arctan", dampening=0.5,
                                       surrogate_cutoff=0.01, width=torch.linspace(0.1, 0.8, 8)))}


class Doubled(nn.Sequential):
    """A chain that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for key, p in network.named_parameters():
            if "bias" in key:
                p.uniform_(-0.1, 0.3)
    return network


def _run(network: nn.Module, x: Tensor) -> list[Tensor]:
    """What each module returns."""
    found = []
    for module in network:
        out = module(x)
        x = out if isinstance(out, Tensor) else out[0]
        found.append(x)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_through_a_file(name: str, tmp_path: Path) -> None:
    network, x = _network(name), 5 * torch.randn(60, 4, 5)
    nir.write(tmp_path / "g.nir", to_nir(network))
    other = from_nir(nir.read(tmp_path / "g.nir"))
    want, (got, _) = _run(network, x), other(x)
    assert want[0].any() and want[-1].any()
    assert_same("output", got.detach(), want[-1].detach(), tolerance=1e-5)
    layers = [m for m in other if isinstance(m, LIF)]
    if name == "alif":
        assert (layers[0].dynamics, layers[0].surrogate, layers[0].dampening,
                layers[0].surrogate_cutoff) == (DETACHED, "arctan", 0.5, 0.01)
    if name == "forward":
        assert [m.dynamics for m in layers] == [ONE, OTHER]
        assert not layers[0].recurrent and not layers[0].bias
    for key, bias in network.named_parameters():
        if "bias" in key:
            assert any(p.shape == bias.shape and torch.equal(p, bias)
                       for n, p in other.named_parameters() if "bias" in n), key


def _by_the_graph(graph: Any, x: np.ndarray, dt: float) -> np.ndarray:
    """Steps of the graph's equations; spikes go around circles in one step."""
    nodes, edges = graph.nodes, graph.edges
    circles = {n for n in nodes if n.endswith(("_recurrent", "_delay"))}
    before = {n: {s for s, t in edges if t == n} - circles for n in nodes.keys() - circles}
    order = [*TopologicalSorter(before).static_order(), *sorted(circles)]  # _delay first
    T, B, _ = x.shape
    value: dict[str, np.ndarray] = {}
    v: dict[str, np.ndarray] = {}
    line: dict[str, list[np.ndarray]] = {n: [] for n in nodes}
    out = []
    for t in range(T):
        now: dict[str, np.ndarray] = {}
        for name in order:
            node = nodes[name]
            came = [now.get(s, value.get(s)) for s, target in edges if target == name]
            total = sum(c for c in came if c is not None) if name != "input" else x[t]
            if isinstance(node, nir.Linear | nir.Affine):
                total = total @ node.weight.T + getattr(node, "bias", 0.0)
            elif isinstance(node, nir.LIF | nir.LI):
                decay = np.exp(-dt / node.tau)
                v[name] = decay * v.get(name, 0.0) + (1 - decay) * (node.v_leak + node.r * total)
                total = v[name]
                if isinstance(node, nir.LIF):
                    total = (v[name] > node.v_threshold).astype(float)
                    v[name] = (1 - total) * v[name] + total * node.v_reset if HARD else (
                        v[name] - total * node.v_threshold)
            elif isinstance(node, nir.Delay):
                line[name].append(total)
                steps = round(float(node.delay[0] / dt))
                total = line[name][-1 - steps] if len(line[name]) > steps else 0 * total
            now[name] = total
        value = now
        out.append(now["output"])
    return np.stack(out)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_the_same_by_its_own_equations(name: str) -> None:
    """Its numbers are copies."""
    network, x = _network(name).double(), 5 * torch.randn(60, 4, 5, dtype=torch.float64)
    want, graph = _run(network, x)[-1].detach(), to_nir(network)
    for p in network.parameters():
        p.detach().zero_()
    got = _by_the_graph(graph, x.numpy(), getattr(network[0], "dt", 1.0) * 1e-3)
    assert want.any()
    assert_same("output", torch.as_tensor(got), want, tolerance=1e-9)


@pytest.mark.parametrize("dynamics", [
    "norse_lif", "sj_hard", "sj_hard_det", "snntorch_zero_now", "sinabs_zero", "sj_soft",
    "sj_soft_det", "sinabs_sub"])
def test_a_spike_resets_as_nir_says(dynamics: str) -> None:
    """A graph is only made where nir.LIF resets as the model does, to any value."""
    hard = MODELS[dynamics].reset == "to"
    given = {"tau_mem": torch.linspace(5, 20, 8), "dtype": torch.float64, "sigma": 0.0,
             **({"R": torch.linspace(-0.3, 0.05, 8)} if hard else {})}
    torch.manual_seed(0)
    network = nn.Sequential(_lif(5, 8, dynamics=dynamics, **given))
    if hard != HARD:
        with pytest.raises(ValueError, match=f"expected spikes that .* got {dynamics}"):
            to_nir(network)
        return
    graph, x = to_nir(network), 5 * torch.randn(60, 4, 5, dtype=torch.float64)
    want = _run(network, x)[-1]
    assert 0.03 < want.mean() < 0.97
    assert_same("by the graph", torch.as_tensor(_by_the_graph(graph, x.numpy(), 1e-3)), want)
    assert_same("read", from_nir(graph, dtype=torch.float64)(x)[0], want)
    graph.nodes["layer0"].metadata = {}
    (plain,) = from_nir(graph, dtype=torch.float64)
    assert plain.dynamics == ("norse_lif" if HARD else "sj_soft")
    assert_same("without metadata", plain(x)[0], want)


def test_a_subtraction_is_read_where_it_is_asked_for() -> None:
    graph = to_nir(_network("delayed"))
    graph.nodes["layer0"].metadata = {}
    (layer,) = from_nir(graph, dynamics="sj_soft")
    assert layer.dynamics == "sj_soft"
    for other in ("snntorch_sub_now", "snntorch_sub"):  # a threshold that moves, a later reset
        with pytest.raises(ValueError, match=f"node layer0: expected dynamics .* got {other}"):
            from_nir(graph, dynamics=other)
    if HARD:
        graph.nodes["layer0"].v_reset = np.full(8, 0.1)
        with pytest.raises(ValueError, match="node layer0: expected v_reset, .*'sj_soft' .* 0.0"):
            from_nir(graph, dynamics="sj_soft")


def test_resistances_go_into_weights() -> None:
    graph = to_nir(_network("recurrent"))
    graph.nodes["layer0"].r = np.linspace(0.5, 2.0, 8)
    x = 5 * torch.randn(60, 4, 5, dtype=torch.float64)
    got, states = from_nir(graph, dtype=torch.float64)(x)
    want = _by_the_graph(graph, x.numpy(), 1e-3)
    assert_same("output", got.detach(), torch.as_tensor(want), tolerance=1e-6)
    assert len(states) == len(graph.nodes) - 5  # a LIF, a readout, its bias


def test_gradients_come_back_too(tmp_path: Path) -> None:
    """What acts only on gradients: surrogate, its width and height, and synapses without one."""
    for given in ({"width": 0.3}, {"width": torch.linspace(0.1, 2, 8), "dampening": 0.7},
                  {"surrogate": "triangle", "width": 0.05}, {"surrogate_cutoff": 0.01},
                  {"dynamics": OTHER, "autapses": False}):
        torch.manual_seed(0)
        network = nn.Sequential(_lif(5, 8, **given))
        nir.write(tmp_path / "g.nir", to_nir(network))
        other, x = from_nir(nir.read(tmp_path / "g.nir")), 5 * torch.randn(40, 4, 5)
        found = []
        for layer in (network[0], other[0]):
            (layer(x)[0] * torch.linspace(-1, 1, 8)).sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
        assert found[0].any()
        assert_same(f"gradients with {given}", found[1], found[0], tolerance=1e-5)


def test_one_number_stands_for_all_neurons() -> None:
    graph, x = to_nir(_network("recurrent")), torch.randn(20, 4, 5)
    want = from_nir(graph)(x)[0]
    for key in ("r", "v_leak"):
        for name in ("layer0", "layer1"):
            setattr(graph.nodes[name], key, getattr(graph.nodes[name], key)[0])
    assert torch.equal(from_nir(graph)(x)[0], want)


def test_a_step_is_read_in_any_unit() -> None:
    graph = to_nir(_network("delayed"))
    for given, dt in (({}, 0.5), ({"dt": 1.5}, 1.5), ({"time_unit": 1.0}, 5e-4),
                      ({"dt": 0.25, "time_unit": 1e-3}, 0.25)):
        (layer,) = from_nir(graph, **given)
        assert (layer.dt, layer.delay * layer.dt * given.get("time_unit", 1e-3)) == pytest.approx(
            (dt, 1.5e-3))
    with pytest.raises(ValueError, match="^time_unit: expected a number > 0, got 0"):
        to_nir(_network("delayed"), time_unit=0)
    with pytest.raises(ValueError, match="^time_unit: expected a number > 0, got -1"):
        from_nir(graph, time_unit=-1)


def test_a_module_that_comes_twice_stands_twice() -> None:
    torch.manual_seed(0)
    shared = Linear(5, 5, bias=False)
    network, x = nn.Sequential(shared, Linear(5, 5), shared), torch.randn(7, 2, 5)
    assert_same("output", from_nir(to_nir(network))(x)[0].detach(), network(x).detach(),
                tolerance=1e-6)


def test_bfloat16_and_dropout_that_does_not_act() -> None:
    network = _lif(5, 8, num_layers=2, dropout=0.5).eval().bfloat16()
    graph, x = to_nir(network), torch.randn(7, 2, 5)
    first, second = from_nir(graph, dtype=torch.float32)
    assert torch.equal(first.weight_ih_l0, network.weight_ih_l0.float())
    assert torch.equal(second.weight_hh_l0, network.weight_hh_l1.float())
    assert not second(first(x)[0])[0].isnan().any()
    assert {p.dtype for p in from_nir(graph).parameters()} == {torch.bfloat16}


def test_double_precision_comes_back(tmp_path: Path) -> None:
    """In the dtype of the network, and under names that are not ASCII."""
    given = {"dtype": torch.float64}
    network = nn.Sequential(OrderedDict({"Größe 1": _lif(5, 8, **given),
                                         "y": LeakyReadout(8, 2, **given)}))
    nir.write(tmp_path / "g.nir", to_nir(network))
    other, x = from_nir(nir.read(tmp_path / "g.nir")), 5 * torch.randn(60, 4, 5, **given)
    assert_same("output", other(x)[0].detach(), _run(network, x)[-1].detach(), tolerance=1e-12)


def test_states_are_carried() -> None:
    network = from_nir(to_nir(_network("stacked")))
    assert isinstance(network, Network)
    x = 5 * torch.randn(60, 4, 5)
    whole, _ = network(x)
    first, state = network(x[:25])
    second, _ = network(x[25:], state)
    assert_same("outputs", torch.cat([first, second]).detach(), whole.detach(), tolerance=1e-6)


@pytest.mark.parametrize(("module", "error", "message"), [
    (lambda: LSNN(5, 4, 3, 2), ValueError, r"lsnn_neurons \(ALIF\) in NIR: expected spikes that "
                                           r"(set|subtract) .* in their step, .* got lsnn"),
    (lambda: _lif(5, 8, dynamics="sj_soft" if HARD else "sj_hard"), ValueError,
     r"module layer \(LIF\) in NIR: expected spikes that (set|subtract) .* got sj_"),
    (lambda: nn.Sequential(nn.Linear(5, 5), ALIF(5, 8, dynamics=ONE, tau_mem=10.0,
                                                 tau_adapt=100.0, beta=1.0, threshold=0.5,
                                                 refractory=0, autapses=True)),
     ValueError, r"layer1 \(ALIF\) in NIR: .* got adaptation"),
    (lambda: _lif(5, 8, refractory=2), ValueError, "expected refractory=0, got 2"),
    (lambda: _lif(5, 8, bidirectional=True), ValueError, "one direction"),
    (lambda: _lif(5, 8, delay=torch.arange(64).view(8, 8) % 2), ValueError, "one for each"),
    (lambda: _lif(5, 8, dynamics="snntorch_zero"), ValueError, "got snntorch_zero"),
    (lambda: _lif(5, 8, dynamics="norse_lif" if HARD else ONE, sigma=0.5), ValueError,
     "got a synaptic current"),
    (lambda: _lif(5, 3, tau_mem=None, alpha=torch.tensor([0.5, 0.0, 0.5])), ValueError,
     r"module layer \(LIF\) in NIR: expected alpha between 0 and 1, .* got \[0.5, 0.0, 0.5\]"),
    (lambda: _lif(5, 8, tau_mem=None, alpha=1.0), ValueError, r"alpha between .* got 1.0"),
    (lambda: nn.Sequential(OrderedDict(a=nn.Sequential(OrderedDict(b=Linear(5, 5))),
                                       a_b=Linear(5, 5))), ValueError,
     "module layera_b: expected a unique name without /"),
    (lambda: nn.Sequential(OrderedDict({"a/b": Linear(5, 5)})), ValueError, "module layera/b: exp"),
    (lambda: nn.Sequential(_lif(5, 8, dt=0.5), LeakyReadout(8, 2)), ValueError,
     r"module layer1 \(LeakyReadout\) in NIR: expected the dt of previous modules, 0.5, got 1.0"),
    (lambda: _lif(5, 8, num_layers=2, dropout=0.5), ValueError, "dropout=0.0, or eval"),
    (lambda: nn.Sequential(nn.PReLU()), TypeError, "layer0: expected .* got PReLU"),
    (lambda: Doubled(Linear(5, 5)), TypeError, "layer: expected .* got Doubled"),
    (lambda: nn.Sequential(_lif(5, 8), nn.LSTM(8, 2)), TypeError, "layer1: expected .* got LSTM"),
    (lambda: nn.Sequential(prune.identity(Linear(5, 5), "weight")), TypeError, "layer0: .* hooks"),
    *((lambda path=path: _with_forward(path), TypeError, f"module{name}: .* replaced forward")
      for path, name in (("", ""), ("1", " layer1")))])
def test_what_nir_cannot_say_is_refused(module: Callable[[], nn.Module], error: type[Exception],
                                        message: str) -> None:
    with pytest.raises(error, match=message):
        to_nir(module())


def _with_forward(path: str) -> nn.Module:
    (network := _network("recurrent")).get_submodule(path).forward = abs
    return network


def _changed(**changes: Any) -> Any:
    graph = to_nir(_network("delayed" if "delay" in changes else "recurrent"))
    for key, value in changes.items():
        setattr(graph.nodes["layer0_delay" if key == "delay" else "layer0"], key, value)
    return graph


def _rewired(edges: list[tuple[str, str]], instead: Any = None, **nodes: Any) -> Any:
    """The recurrent network with these edges for its cycle or for all, and more nodes."""
    graph = to_nir(_network("recurrent"))
    graph.nodes |= {"m": nir.Linear(np.eye(8)), "d": nir.Delay(np.full(8, 1e-3)),
                    "e": nir.Delay(np.zeros(8)), **nodes}
    kept = [edge for edge in graph.edges if "layer0_recurrent" not in edge]
    graph.edges = instead or kept + edges
    return graph


@pytest.mark.parametrize(("told", "message"), [
    ({"dtype": "load"}, "dtype: expected one of float16, .* got 'load'"),
    ({"dtype": 3}, "expected str as dtype, got 3"), ({"dt": "1"}, "expected int or float as dt, "),
    ({"dt": 0.5}, "time_unit: expected a number > 0, got nan"), ([], "expected a dict as metadata"),
    ({"dt": -1.0, "time_unit": -1.0}, "dt: expected a number > 0")])
def test_metadata_of_others_are_refused(told: Any, message: str) -> None:
    graph = to_nir(_network("recurrent"))
    graph.metadata = {"lsnn_ext": told}
    with pytest.raises(ValueError, match=f"^graph.metadata: {message}"):
        from_nir(graph)


@pytest.mark.parametrize(("graph", "message"), [
    (lambda: _changed(v_leak=np.full(8, 0.1)), "node layer0: expected v_leak 0.0 for all"),
    (lambda: _rewired([], layer0=nir.I(np.ones(8))), "node layer0: expected Affine .* got I$"),
    (lambda: _changed(delay=np.full(8, 1.3e-3)), "node layer0_delay: expected one delay of whole"),
    (lambda: _rewired([("layer0", "layer0_recurrent"), ("layer0_recurrent", "m"), ("m", "layer0")]),
     r"node layer0: expected one map .* got \['layer0_recurrent', 'm'\]"),
    (lambda: _rewired([("layer0", "m"), ("m", "layer0_recurrent"), ("layer0_recurrent", "m")]),
     "node layer0: expected one node after it"),
    (lambda: _rewired([("layer0", "d"), ("d", "layer0")]), "node layer0: expected one map .* got"),
    (lambda: _rewired([("layer0", "d"), ("d", "layer0_recurrent"), ("layer0_recurrent", "e"),
                       ("e", "layer0")]), "node layer0: expected one map and at most one"),
    (lambda: _rewired([("layer0", "layer0")]), "node layer0: expected one map"),
    (lambda: _rewired([("layer0", "m"), ("m", "layer0_recurrent"), ("m", "layer0")]),
     "node layer0: expected one node after it, got"),
    (lambda: _rewired(2 * [("layer0", "layer0_recurrent")] + [("layer0_recurrent", "layer0")]),
     "node layer0_recurrent: expected one chain .* got an edge from layer0 "),
    (lambda: _rewired([("m", "layer0")]), "node layer0: expected one chain .* got an edge from m "),
    (lambda: _rewired([("layer0", "nowhere")]), "node nowhere: expected a node of the graph, got"),
    (lambda: _rewired([], [("input", "a"), ("a", "b"), ("b", "a")], a=nir.Linear(np.eye(5)),
                      b=nir.Linear(np.eye(5))),
     "node a: expected cycles through a nir.LIF only, got one through a Linear"),
    (lambda: _rewired([], more=nir.Input(np.array([5]))),
     r"graph: expected one nir.Input, got \['input', 'more'\]"),
    (lambda: _changed(tau=np.full(8, -1.0)), "node layer0: tau_mem: expected numbers > 0, got -1"),
    (lambda: _changed(tau=np.full(8, np.nan)), r"node layer0: expected finite tau of shape \(8,\)"),
    (lambda: _changed(v_threshold=np.ones(3)), "node layer0: expected finite v_threshold"),
    (lambda: _changed(delay=np.full(8, -1e-3)), "node layer0_delay: expected one delay of whole"),
    (lambda: _changed(delay=np.full(8, np.nan)), "node layer0_delay: expected finite delay"),
    (lambda: _changed(metadata={"lsnn_ext": {"surrogate": "odd"}}), "node layer0: surrogate: "),
    (lambda: _changed(metadata={"lsnn_ext": {"autapses": "no"}}), "node layer0: expected bool"),
    (lambda: _changed(metadata={"lsnn_ext": {"width": ["a"]}}), "node layer0: "),
    (lambda: _changed(metadata={"lsnn_ext": {"dynamics": "lsnn"}}), "node layer0: expected dynami"),
])
def test_what_modules_cannot_say_is_refused(graph: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_nir(graph())
