"""Conversion to and from NIR, the Neuromorphic Intermediate Representation: graphs for other
packages and neuromorphic hardware. pip install "nir>=1.0.4".

A graph holds differential equations. A step solves them exactly for a current that is constant
during the step: alpha = exp(-dt / tau). What NIR cannot express raises an error that names the
module or node.

norse, SpikingJelly, snnTorch and sinabs each read a part of such graphs: docs/modules.md has a
table of what they read and whether they compute the same spikes.

Source: Pedersen et al., Nature Communications 15, 8122 (2024).
"""
import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from .._core.coefficients import Decay, complete_coefficients
from .._core.torch_internals import has_registered_hooks
from ..models import COEFFICIENTS, MODELS
from ..modules import ALIF, LIF, LSNN, LeakyReadout, Linear
from ..modules.recurrent_dropout import is_dropping
from . import import_extra
from .nir_reader import OURS, Reader, describe_settings, find_models, has_v_reset, read_metadata

__all__ = ["Network", "from_nir", "to_nir"]

_DTYPES = {str(dtype).removeprefix("torch."): dtype
           for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def _array(value: Tensor) -> np.ndarray:
    """A copy of the numbers, float32 for bfloat16, which NumPy lacks."""
    value = value.detach().cpu()
    value = value.float() if value.dtype == torch.bfloat16 else value
    return np.array(value.numpy(), order="C")


def _check_positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")


def _check_code(module: nn.Module, where: str) -> None:
    """Raises TypeError for hooks, and for methods that an object replaces, such as its forward."""
    replaced = [name for name in vars(module) if callable(getattr(type(module), name, None))]
    if replaced or has_registered_hooks(module):
        raise TypeError(f"{where}: expected a module without hooks or a replaced "
                        f"{replaced[0] if replaced else 'forward'}, which are code, got one; "
                        f"remove them first")


class Network(nn.Sequential):
    """A sequence of modules with states, the result of from_nir."""

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None,  # type: ignore[override]
                ) -> tuple[Tensor, tuple[Any, ...]]:
        """x (T, B, I) -> the output of the last module (T, B, O), and the states of all modules,
        None for linear maps."""
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

    def __init__(self, weight: Tensor, second: float) -> None:
        self.nir = import_extra("nir", "nir", "nir>=1.0.4")
        self.second, self.dtype = second, weight.dtype
        self.nodes: dict[str, Any] = {"input": self.nir.Input(np.array([weight.shape[1]]))}
        self.edges: list[tuple[str, str]] = []
        self.last = "input"
        self.dt: float | None = None  # of all modules that have a step

    def put(self, name: str, node: Any) -> str:
        """Adds a node without edges."""
        if name in self.nodes or "/" in name:
            raise ValueError(f"module {name}: expected a unique name without /, got it in "
                             f"addition to {sorted(self.nodes)}")
        self.nodes[name] = node
        return name

    def add(self, name: str, node: Any) -> str:
        """Adds a node after the last one."""
        self.edges.append((self.last, self.put(name, node)))
        self.last = name
        return name

    def set_dt(self, name: str, module: ALIF | LIF | LeakyReadout) -> None:
        """Stores the duration of a step. Raises ValueError if modules differ in it."""
        if self.dt not in (None, module.dt):
            _refuse(name, module, f"the dt of previous modules, {self.dt}", module.dt)
        self.dt = module.dt

    def add_linear(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        if bias is None:
            self.add(name, self.nir.Linear(weight=_array(weight)))
        else:
            self.add(name, self.nir.Affine(weight=_array(weight), bias=_array(bias)))


def _refuse(name: str, module: nn.Module, expected: str, got: Any) -> NoReturn:
    raise ValueError(f"module {name} ({type(module).__name__}) in NIR: expected {expected}, got "
                     f"{got}")


def _check_layer(name: str, layer: ALIF | LIF, to: bool) -> None:
    """Raises ValueError for what nir.LIF cannot express; to: whether its spike sets the membrane to
    a value, or subtracts the threshold."""
    model = MODELS[layer.dynamics]
    if layer.dynamics not in find_models(to):
        does = "set the membrane to v_reset" if to else "subtract the threshold"
        _refuse(name, layer, f"spikes that {does} in their step, such as of dynamics "
                             f"{', '.join(find_models(to))}", layer.dynamics)
    for suffix in layer._suffixes:
        k = _coefficients(layer, suffix)
        if any(key in layer.learn for key in ("beta", "eta")) or bool(k["beta"].any() or
                                                                      k["eta"].any()):
            _refuse(name, layer, "a constant threshold (beta and eta 0, not learned)", "adaptation")
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
    if layer.dropout and layer.training:
        _refuse(name, layer, "dropout=0.0, or eval()", f"dropout={layer.dropout} in training")
    if is_dropping(layer):
        _refuse(name, layer, "recurrent_dropout=0.0, or eval()",
                f"recurrent_dropout={layer.recurrent_dropout} in training")
    if isinstance(layer.delay, Tensor):
        _refuse(name, layer, "one delay for all synapses", "one for each")


def _coefficients(layer: ALIF | LIF, suffix: str) -> dict[str, Tensor]:
    """The current coefficients of equations (1) to (9)."""
    arguments = layer._compute_neuron_arguments(suffix)
    values = {key: one.value() if isinstance(one, Decay) else one
              for key, one in arguments.items() if key in COEFFICIENTS}
    return {key: torch.as_tensor(value).detach().double()
            for key, value in complete_coefficients(layer.dynamics, **values).items()}


def _add_layer(graph: _Graph, name: str, layer: ALIF | LIF) -> None:
    """Adds for each layer a current, nir.LIF, and a cycle through nir.Delay and nir.Linear."""
    to = has_v_reset(graph.nir)
    _check_layer(name, layer, to)
    graph.set_dt(name, layer)
    nir, N, second = graph.nir, layer.hidden_size, graph.second
    for suffix in layer._suffixes:
        label = name if len(layer._suffixes) == 1 else f"{name}{suffix}"
        graph.add_linear(f"{label}_input", getattr(layer, "weight_ih" + suffix),
                         getattr(layer, "bias_ih" + suffix, None))
        k = {key: value.expand(N) for key, value in _coefficients(layer, suffix).items()}
        stored = getattr(layer, "tau_mem" + suffix, None)
        tau = -layer.dt / torch.log(k["alpha"]) if stored is None else (
            stored.detach().double().expand(N))
        alpha, kappa = torch.exp(-layer.dt / tau), k["kappa"]
        if "kappa" not in layer._neuron:  # it follows from alpha, here in double precision
            kappa = torch.as_tensor(complete_coefficients(layer.dynamics, alpha=alpha,
                                                          theta=k["theta"])["kappa"])
        metadata = describe_settings(layer)
        if "width" in layer._neuron:
            metadata["width"] = _array(k["width"])
        reset = {"v_reset": _array(k["R"])} if to else {}
        spikes = graph.add(label, nir.LIF(
            tau=_array(tau * second), r=_array((kappa / (1 - alpha)).expand(N)),
            v_leak=np.zeros(N), v_threshold=_array(k["theta"]), metadata={OURS: metadata}, **reset))
        w_rec = layer._mask_recurrent_weight(suffix)
        if w_rec is None:
            continue
        # Recurrent spikes act a step later, as in any discretization of a cyclic graph.
        first = back = graph.put(f"{label}_recurrent", nir.Linear(weight=_array(w_rec.t())))
        if layer.delay:
            first = graph.put(f"{label}_delay", nir.Delay(
                delay=np.full(N, layer.delay * layer.dt * second)))
            graph.edges.append((first, back))
        graph.edges += [(spikes, first), (back, spikes)]


def _add_readout(graph: _Graph, name: str, readout: LeakyReadout) -> None:
    if readout.tau_syn is not None:
        _refuse(name, readout, "no synaptic current", "tau_syn")
    graph.set_dt(name, readout)
    graph.add_linear(f"{name}_weight", readout.weight, None)
    O = readout.output_size
    if readout.tau is None:
        _refuse(name, readout, "a time constant, or a Linear", "tau=None")
    tau = torch.as_tensor(readout.tau, dtype=torch.float64).detach().expand(O)
    graph.add(name, graph.nir.LI(tau=_array(tau * graph.second), r=np.ones(O), v_leak=np.zeros(O)))
    if readout.bias is not None:
        graph.add_linear(f"{name}_bias", torch.eye(O, dtype=readout.bias.dtype), readout.bias)


def _parts(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    is_chain = isinstance(module, nn.Sequential) and type(module).forward in (
        nn.Sequential.forward, Network.forward)
    if is_chain or type(module) is LSNN:
        _check_code(module, f"module {name}" if name else "module")
    if is_chain:
        # not named_children, which skips repeated modules
        return [part for key, child in module._modules.items() if child is not None
                for part in _parts(child, f"{name}_{key}" if name else f"layer{key}")]
    if type(module) is LSNN:
        name = name or "lsnn"
        return [(f"{name}_neurons", module.neurons), (f"{name}_readout", module.readout)]
    return [(name or "layer", module)]


def to_nir(module: nn.Module, *, time_unit: float = 1e-3) -> Any:
    """Returns a module as a nir.NIRGraph.

    Since nir 1.0.6 a spike of nir.LIF sets the membrane to v_reset, so layers need such a model:
    norse_lif, sj_hard, sj_hard_det, snntorch_zero_now, sinabs_zero. Before, it subtracts the
    threshold: sj_soft, sj_soft_det, sinabs_sub.

    ALIF and LIF become an affine map with the bias, nir.LIF, and a cycle through a linear map with
    the recurrent weights, after a nir.Delay if the layer has a delay. LeakyReadout becomes a linear
    map and nir.LI, then an affine map with the bias. The resistance r of a unit is
    kappa / (1 - alpha), 1 in most models. The graph holds copies of the weights. NIR units spike
    above their threshold, most of these models also at the threshold. The metadata hold what NIR
    does not express: dt, dtype, model, surrogate with its width, height and cutoff, and autapses.
    Only from_nir reads them; other readers choose their own step.

    Args:
        module: ALIF, LIF, LSNN, LeakyReadout, Linear, torch.nn.Linear, or nn.Sequential of them.
        time_unit: seconds in a unit of dt and tau, since NIR uses seconds. Default 1e-3.

    Raises:
        ValueError: NIR cannot express adaptation, a refractory time, a synaptic current, a decay of
            0 or 1, another reset, both directions, delays of each synapse, dropout in training, or
            several dt; the message names the module.
        TypeError: another module, or one with hooks or a replaced forward.
        ImportError: the package nir is not installed.

    Example:
        >>> nir.write("net.nir", lsnn_ext.nir.to_nir(net))
    """
    _check_positive("time_unit", time_unit)
    graph: _Graph | None = None
    for name, part in _parts(module, ""):
        kind = nn.utils.parametrize.type_before_parametrizations(part)
        if kind not in (ALIF, LIF, LeakyReadout) and type(part) not in (Linear, nn.Linear):
            raise TypeError(f"module {name}: expected ALIF, LIF, LSNN, LeakyReadout, Linear or "
                            f"torch.nn.Linear, got {type(part).__name__}")
        _check_code(part, f"module {name}")
        one: Any = part
        if graph is None:
            graph = _Graph(one.weight_ih_l0 if kind in (ALIF, LIF) else one.weight, time_unit)
        if kind in (ALIF, LIF):
            _add_layer(graph, name, one)
        elif kind is LeakyReadout:
            _add_readout(graph, name, one)
        else:
            graph.add_linear(name, one.weight, one.bias)
    if graph is None:
        raise TypeError("module: expected one layer or more, got none")
    graph.add("output", graph.nir.Output(np.array(graph.nodes[graph.last].output_type["output"])))
    metadata: dict[str, Any] = {"dtype": str(graph.dtype).removeprefix("torch.")}
    if graph.dt is not None:
        metadata |= {"dt": graph.dt, "time_unit": time_unit}
    return graph.nir.NIRGraph(graph.nodes, graph.edges, metadata={OURS: metadata})


# ----------------------------------------------------------------------------------- from a graph
def from_nir(graph: Any, *, dt: float | None = None, time_unit: float = 1e-3,
             dynamics: str | None = None, dtype: torch.dtype | None = None) -> Network:
    """Returns a nir.NIRGraph as a network.

    The graph is a chain of nir.Affine, nir.Linear, nir.LIF and nir.LI. A LIF may have a cycle with
    recurrent weights and a nir.Delay.

    Args:
        graph: a graph, for example of nir.read.
        dt: duration of a step. Default: that of to_nir, else 1.0.
        time_unit: seconds in a unit of dt. Default 1e-3.
        dynamics: the model of units without metadata, one that resets in the step of the spike;
            models differ in their surrogate gradients. Default: "norse_lif", whose spike sets the
            membrane to v_reset; before nir 1.0.6 "sj_soft", whose spike subtracts the threshold.
            Pass "sj_soft" for files of an older nir or of sinabs.
        dtype: of the parameters. Default: that of to_nir, else torch's default.

    Returns:
        Network: x (T, B, I) -> (y, states). Time constants and biases are those of the graph; a
        resistance other than ours is multiplied into weights and bias.

    Raises:
        ValueError: a unit or value that these modules cannot express, or invalid metadata; the
            message names the node.
        ImportError: the package nir is not installed.

    Example:
        >>> net = lsnn_ext.nir.from_nir(nir.read("net.nir"))
    """
    _check_positive("time_unit", time_unit)
    metadata = read_metadata(graph, "graph.metadata")
    if dt is None and "dt" in metadata:
        for key in ("dt", "time_unit"):
            _check_positive(f"graph.metadata: {key}", metadata.get(key, math.nan))
        dt = metadata["dt"] * (metadata["time_unit"] / time_unit)
    dt = 1.0 if dt is None else dt
    _check_positive("dt", dt)
    name = metadata.get("dtype", str(torch.get_default_dtype()).removeprefix("torch."))
    if dtype is None and name not in _DTYPES:
        raise ValueError(f"graph.metadata: dtype: expected one of {', '.join(_DTYPES)}, got "
                         f"{name!r:.60}")
    dtype = _DTYPES[name] if dtype is None else dtype
    nir = import_extra("nir", "nir", "nir>=1.0.4")
    if dynamics is None:
        dynamics = "norse_lif" if has_v_reset(nir) else "sj_soft"
    return Network(*Reader(nir, graph, dt, time_unit, dynamics, dtype).make_modules())
