"""NIR, the Neuromorphic Intermediate Representation: graphs of units that other packages and
neuromorphic hardware read. pip install "nir>=1.0.4".

A graph holds differential equations, which step by step become ours: alpha = exp(-dt / tau), and
the current of a step stands still during it. What NIR has no unit for is refused by name.
lsnn_ext.save keeps everything.

Source: Pedersen et al., Nature Communications 15, 8122 (2024).
"""
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._nir_reader import OURS, Reader, subtracting
from .models import COEFFICIENTS, MODELS, Decay, coefficients
from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear

__all__ = ["Network", "from_nir", "to_nir"]


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise ImportError('lsnn_ext.nir: expected the package nir, which is not installed; pip '
                          'install "nir>=1.0.4"') from error
    return nir


def _array(value: Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy()
    return array


class Network(nn.Sequential):
    """Modules one after the other, whose states are carried: what from_nir returns."""

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None,  # type: ignore[override]
                ) -> tuple[Tensor, tuple[Any, ...]]:
        """x (T, B, I) -> what the last module returns (T, B, O), and the state of each, None of a
        linear map."""
        after = []
        for module, before in zip(self, state or (None,) * len(self), strict=True):
            call: Any = module
            if isinstance(module, nn.Linear):
                x, end = call(x), None
            else:
                x, end, *_ = call(x, before)
            after.append(end)
        return x, tuple(after)


# ------------------------------------------------------------------------------------- to a graph
class _Graph:
    """The nodes of a chain, and its edges."""

    def __init__(self, inputs: int) -> None:
        self.nir = _nir()
        self.nodes: dict[str, Any] = {"input": self.nir.Input(np.array([inputs]))}
        self.edges: list[tuple[str, str]] = []
        self.last = "input"

    def add(self, name: str, node: Any) -> str:
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last = name
        return name

    def linear(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        if bias is None:
            self.add(name, self.nir.Linear(weight=_array(weight)))
        else:
            self.add(name, self.nir.Affine(weight=_array(weight), bias=_array(bias)))


def _refuse(name: str, module: nn.Module, wanted: str, got: Any) -> None:
    raise ValueError(f"module {name} ({type(module).__name__}): NIR expects {wanted}, got {got}")


def _check_layer(name: str, layer: ALIF | LIF) -> None:
    """Raises ValueError for what nir.LIF cannot say."""
    model = MODELS[layer.dynamics]
    if layer.dynamics not in subtracting():
        _refuse(name, layer, f"a spike to subtract the threshold at once, as with dynamics= "
                             f"{', '.join(subtracting())}", layer.dynamics)
    for suffix in layer._suffixes:
        k = _coefficients(layer, suffix)
        if any(key in layer.learn for key in ("beta", "eta")) or bool(k["beta"].any() or
                                                                      k["eta"].any()):
            _refuse(name, layer, "a threshold that stands still (beta and eta 0, not learned)",
                    "adaptation; no unit of NIR has it")
        if not bool(((k["alpha"] > 0) & (k["alpha"] < 1)).all()):
            _refuse(name, layer, "alpha between 0 and 1, since tau = -dt / log(alpha)",
                    k["alpha"].tolist())
        if bool(k["sigma"].any()):
            _refuse(name, layer, "no synapse (sigma 0)", "a synaptic current")
        if model.reset == "R" and not torch.equal(k["R"].expand(layer.hidden_size),
                                                  k["theta"].expand(layer.hidden_size)):
            _refuse(name, layer, "a reset by the threshold", "another R")
    if layer.refractory:
        _refuse(name, layer, "refractory=0", layer.refractory)
    if layer.bidirectional:
        _refuse(name, layer, "one direction", "bidirectional=True")
    if isinstance(layer.delay, Tensor):
        _refuse(name, layer, "one delay for all synapses", "a delay for each")


def _coefficients(layer: ALIF | LIF, suffix: str) -> dict[str, Tensor]:
    """All of equation (1) to (9), as they are now."""
    given = layer._neuron_arguments(suffix)
    own = {key: given[key] for key in COEFFICIENTS if key in given}
    own = {key: one.value() if isinstance(one, Decay) else one for key, one in own.items()}
    return {key: torch.as_tensor(value).detach().double()
            for key, value in coefficients(layer.dynamics, **own).items()}


def _add_layer(graph: _Graph, name: str, layer: ALIF | LIF, second: float) -> None:
    """A current for each layer, nir.LIF, and back through nir.Delay and nir.Linear."""
    _check_layer(name, layer)
    nir, N = graph.nir, layer.hidden_size
    for suffix in layer._suffixes:
        own = name if len(layer._suffixes) == 1 else f"{name}{suffix}"
        graph.linear(f"{own}_input", getattr(layer, "weight_ih" + suffix),
                     getattr(layer, "bias_ih" + suffix, None))
        k = {key: value.expand(N) for key, value in _coefficients(layer, suffix).items()}
        stored = getattr(layer, "tau_mem" + suffix, None)
        tau = -layer.dt / torch.log(k["alpha"]) if stored is None else (
            stored.detach().double().expand(N))
        given = {**k, "alpha": torch.exp(-layer.dt / tau)}
        follows = "kappa" not in layer._neuron  # of alpha, then in double precision too
        kappa = torch.as_tensor(coefficients(layer.dynamics, alpha=given["alpha"],
                                             theta=k["theta"])["kappa"]) if follows else k["kappa"]
        told = {"dynamics": layer.dynamics, "surrogate": layer.surrogate or "",
                "dampening": -1.0 if layer.dampening is None else layer.dampening,
                "surrogate_cutoff": layer.surrogate_cutoff, "autapses": layer.autapses}
        if "width" in layer._neuron:
            told["width"] = _array(k["width"])
        unit = nir.LIF(tau=_array(tau * second),
                       r=_array((kappa / (1 - given["alpha"])).expand(N)), v_leak=np.zeros(N),
                       v_threshold=_array(k["theta"]), metadata={OURS: told})
        spikes = graph.add(own, unit)
        w_rec = layer._recurrent_weight(suffix)
        if w_rec is None:
            continue
        # Ours act a step later; that is how a graph with a circle is made into steps everywhere.
        back = f"{own}_recurrent"
        graph.nodes[back] = nir.Linear(weight=_array(w_rec.t()))
        first = back
        if layer.delay:
            first = f"{own}_delay"
            graph.nodes[first] = nir.Delay(delay=np.full(N, layer.delay * layer.dt * second))
            graph.edges.append((first, back))
        graph.edges += [(spikes, first), (back, spikes)]


def _add_readout(graph: _Graph, name: str, readout: LeakyReadout, second: float) -> None:
    graph.linear(f"{name}_weight", readout.weight, None)
    O = readout.output_size
    if readout.tau is None:
        _refuse(name, readout, "a time constant, or a Linear", "tau=None")
    assert readout.tau is not None
    tau = torch.as_tensor(readout.tau, dtype=torch.float64).detach().expand(O)
    graph.add(name, graph.nir.LI(tau=_array(tau * second), r=np.ones(O), v_leak=np.zeros(O)))
    if readout.bias is not None:
        graph.linear(f"{name}_bias", torch.eye(O, dtype=readout.bias.dtype), readout.bias)


def _parts(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        return [part for key, child in module.named_children()
                for part in _parts(child, f"{name}_{key}" if name else f"layer{key}")]
    if type(module) is LSNN:
        name = name or "lsnn"
        return [(f"{name}_neurons", module.neurons), (f"{name}_readout", module.readout)]
    return [(name or "layer", module)]


def to_nir(module: nn.Module, *, time_unit: float = 1e-3) -> Any:
    """A module as a nir.NIRGraph.

    ALIF and LIF become an affine map (biases are kept), nir.LIF, and back to it a linear map with
    the recurrent weights, behind a nir.Delay if the layer has a delay. LeakyReadout becomes a
    linear map and nir.LI, its bias an affine map behind. The resistance r of a unit is
    kappa / (1 - alpha), 1 in most models. Weights are those of now, alpha and dt are not said:
    whoever reads the graph chooses a step. NIR's units spike above their threshold, most of these
    models at the threshold too. What NIR does not know, model and surrogate, stands in the
    metadata, for from_nir.

    Args:
        module: ALIF, LIF, LSNN, LeakyReadout, Linear, torch.nn.Linear, or nn.Sequential of them.
        time_unit: seconds in a unit of dt and tau, as NIR counts seconds. Default 1e-3.

    Raises:
        ValueError: adaptation, a refractory time, another reset than a subtraction at once, both
            directions, or delays of each synapse, which NIR cannot say; the message names the
            module.
        TypeError: another module.
        ImportError: the package nir is not installed.
    """
    parts = _parts(module, "")
    graph: _Graph | None = None
    for name, part in parts:
        weight = getattr(part, "weight_ih_l0", getattr(part, "weight", None))
        if graph is None and weight is not None:
            graph = _Graph(weight.shape[1])
        kind = nn.utils.parametrize.type_before_parametrizations(part)
        if graph is not None and kind in (ALIF, LIF):
            _add_layer(graph, name, part, time_unit)  # type: ignore[arg-type]
        elif graph is not None and kind is LeakyReadout:
            _add_readout(graph, name, part, time_unit)  # type: ignore[arg-type]
        elif graph is not None and type(part) in (Linear, nn.Linear):
            graph.linear(name, part.weight, part.bias)  # type: ignore[arg-type]
        else:
            raise TypeError(f"module {name}: expected ALIF, LIF, LSNN, LeakyReadout, Linear or "
                            f"torch.nn.Linear, got {type(part).__name__}, which NIR has no unit "
                            f"for here")
    if graph is None:
        raise TypeError("module: expected one layer or more, got none")
    width = graph.nodes[graph.last].output_type["output"]
    graph.add("output", graph.nir.Output(np.array(width)))
    return graph.nir.NIRGraph(graph.nodes, graph.edges)


# ----------------------------------------------------------------------------------- from a graph
def from_nir(graph: Any, *, dt: float = 1.0, time_unit: float = 1e-3, dynamics: str = "sj_soft",
             dtype: torch.dtype | None = None) -> Network:
    """A nir.NIRGraph as a network: nir.Affine and nir.Linear, nir.LIF and nir.LI, one after the
    other, with recurrent weights around a LIF, behind a nir.Delay or not.

    Args:
        graph: the graph, of nir.read for instance.
        dt: duration of a step. Default 1.0.
        time_unit: seconds in a unit of dt. Default 1e-3.
        dynamics: the model of units whose metadata name none: one that subtracts the threshold at
            once. Default "sj_soft"; models differ in their surrogate gradients.
        dtype: of the parameters. Default torch's.

    Returns:
        Network: x (T, B, I) -> (y, states). Time constants are those of the graph, biases are kept,
        a resistance that is not ours is multiplied into weights and bias.

    Raises:
        ValueError: a unit or a value of it that these modules cannot say; the message names the
            node.
        ImportError: the package nir is not installed.
    """
    if not math.isfinite(dt) or dt <= 0:
        raise ValueError(f"dt: expected a number > 0, got {dt}")
    kept = torch.get_default_dtype() if dtype is None else dtype
    return Network(*Reader(_nir(), graph, dt, time_unit, dynamics, kept).modules())
