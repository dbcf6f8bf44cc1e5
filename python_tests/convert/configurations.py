"""The settings of other packages' recurrent layers, a row each: what lsnn_ext.convert has to
reproduce, and what it has to refuse, with the words of the reason."""
import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import configurations_of_papers
import peer_layers as peers
from configuration_rows import DOUBLE, SINGLE, Make, Package, Row, Values
from originals import B, I, N, T, package, uniform


# ------------------------------------------------------------------------------------------- norse
def _norse_sequence(layer: Any, x: Tensor) -> Values:
    spikes, state = layer(x)
    return {"spikes": spikes, **state._asdict()}


NORSE = Package(lambda layer: uniform(0, 1, T, B, I, dtype=layer.input_weights.dtype, seed=3),
                _norse_sequence)


def _norse(kind: str, dtype: torch.dtype = DOUBLE, change: Callable[[Any], None] | None = None,
           **arguments: Any) -> Make:
    def make() -> Any:
        # the gradient of its LIF's v_leak passes the float32 of the first state, in any dtype
        given = {name: value.detach() if dtype == SINGLE or (kind, name) == (
                     "LIFRecurrent", "v_leak") else value
                 for name, value in peers.norse_parameters(kind, dtype).items()}
        layer = peers.norse(kind, dtype, given, **arguments)
        if change is not None:
            change(layer)
        return layer

    return make


def _norse_changed(**changes: Any) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        layer.p = layer.p._replace(**changes)

    return change


def _rows_of_norse() -> list[Row]:
    rows = []
    for kind in ("LSNNRecurrent", "LIFRecurrent"):
        settings: list[tuple[str, dict[str, Any]]] = [
            ("", {}), (" autapses", {"autapses": True}),
            *((f" {method}", {"method": method, "alpha": alpha}) for method, alpha in (
                ("triangle", 0.4), ("tanh", 1.5), ("heavi_erfc", 1.25), ("super", 7.0)))]
        rows += [Row(f"norse {kind}{name}", NORSE, _norse(kind, **more), DOUBLE)
                 for name, more in settings]
        rows.append(Row(f"norse {kind} float32", NORSE, _norse(kind, SINGLE), DOUBLE))
        refused: list[tuple[str, Make]] = [
            ("record_states: expected False", _norse(kind, record_states=True)),
            ("p.method: expected super", _norse(kind, method="circ")),
            ("1 - dt tau_mem_inv: expected a decay",
             _norse(kind, change=_norse_changed(tau_mem_inv=torch.tensor(1500.0)))),
        ]
        if kind == "LSNNRecurrent":
            refused.append(("activation: expected lsnn_step", _norse(kind, adjoint=True)))
        rows += [Row(f"norse {kind} refused {reason.split(':')[0]}", NORSE, make, DOUBLE, reason)
                 for reason, make in refused]
    return rows


# ---------------------------------------------------------------------------------------- snnTorch
def _snntorch_loop(layer: Any, x: Tensor) -> Values:
    state: Any = [torch.zeros_like(x[0])] * (3 if hasattr(layer, "alpha") else 2)
    steps = []
    for current in x:
        state = layer(current, *state)
        steps.append(state)
    spikes, *others = (torch.stack(each) for each in zip(*steps, strict=True))
    return {"spikes": spikes, "membranes": others[-1], **(
        {"synapse": others[0][-1]} if len(others) > 1 else {})}


def _snntorch_sequence(layer: Any, x: Tensor) -> Values:
    spikes, *synapse, membranes = layer(x, trace=True)
    return {"spikes": spikes, "membranes": membranes, **(
        {"synapse": synapse[0]} if synapse else {})}


SNNTORCH = Package(lambda layer: peers.values(-0.5, 0.9, T, B, N, seed=3), _snntorch_sequence,
                   _snntorch_loop)


def _snntorch(kind: str, change: Callable[[Any], None] | None = None, surrogate: str = "",
              number: float = 1.0, **arguments: Any) -> Make:
    def make() -> Any:
        if surrogate:
            package("snntorch")
            from snntorch import surrogate as functions
            arguments["spike_grad"] = getattr(functions, surrogate)(number)
        layer = peers.snntorch(kind, **arguments)
        if change is not None:
            change(layer)
        return layer

    return make


def _factor(layer: Any) -> None:
    layer.graded_spikes_factor = torch.tensor(2.0)


def _convolution(kind: str) -> Make:
    def make() -> Any:
        return getattr(package("snntorch"), kind)(
            beta=0.5, conv2d_channels=2, kernel_size=3, **(
                {"alpha": 0.5} if kind == "RSynaptic" else {}))

    return make


def _custom(u: Tensor) -> Tensor:
    return (u > 0).float()


def _rows_of_snntorch() -> list[Row]:
    rows: list[Row] = []

    def add(name: str, make: Make, reason: str = "", unlearned: tuple[str, ...] = ()) -> None:
        rows.append(Row(f"snnTorch {name}", SNNTORCH, make, SINGLE, reason, unlearned))

    each = peers.values(-0.25, 0.5, N, seed=5)
    for kind in ("RLeaky", "RSynaptic"):
        for reset, late in product(("subtract", "zero", "none"), (True, False)):
            wrong = kind == "RSynaptic" and not late and reset != "none"
            add(f"{kind} {reset} {'late' if late else 'now'}",
                _snntorch(kind, reset_mechanism=reset, reset_delay=late),
                "reset_delay: expected True" if wrong else "")
        one_to_one = {"all_to_all": False, "linear_features": None}
        add(f"{kind} V of each", _snntorch(kind, V=each, **one_to_one))
        add(f"{kind} one V", _snntorch(kind, V=0.75, learn_recurrent=False, **one_to_one),
            unlearned=("V", "recurrent.V"))
        add(f"{kind} numbers", _snntorch(kind, beta=0.875, threshold=0.75, learn_beta=False,
                                         learn_threshold=False, learn_recurrent=False,
                                         **({"alpha": 0.5, "learn_alpha": False}
                                            if kind == "RSynaptic" else {})),
            unlearned=("recurrent.weight", "recurrent.bias"))
        for function, number in (("atan", 1.25), ("fast_sigmoid", 3.0)):
            add(f"{kind} {function}", _snntorch(kind, surrogate=function, number=number))
        add(f"{kind} refused sigmoid", _snntorch(kind, surrogate="sigmoid", number=25.0),
            "spike_grad: expected the derivative")
        add(f"{kind} refused straight-through", _snntorch(kind, spike_grad=_custom),
            "spike_grad: expected None, or atan")
        for argument, value in (("init_hidden", True), ("inhibition", True),
                                ("state_quant", _custom)):
            add(f"{kind} refused {argument}", _snntorch(kind, **{argument: value}),
                f"{argument}: expected False")
        add(f"{kind} refused graded spikes", _snntorch(kind, _factor),
            "graded_spikes_factor: expected 1")
        add(f"{kind} refused convolution", _convolution(kind), "conv2d_channels: expected None")
    return rows


# ------------------------------------------------------------------------------------------ sinabs
def _sinabs_sequence(layer: Any, x: Tensor) -> Values:
    layer.reset_states()
    return {"spikes": layer(x), **dict(layer.named_buffers())}


def _sinabs_inputs(layer: Any) -> Tensor:
    synapse = getattr(layer, "alpha_syn" if layer.train_alphas else "tau_syn")
    gain = (6.0 if layer.norm_input else 1.0) * (1.0 if synapse is None else 1.5)
    return peers.values(-0.4 * gain, 0.8 * gain, B, T, N, seed=3)


SINABS = Package(_sinabs_inputs, _sinabs_sequence)


def _sinabs(kind: str, of: dict[str, tuple[str, dict[str, Any]]] | None = None,
            **arguments: Any) -> Make:
    """of: arguments that are made by a class of sinabs.activation."""
    def make() -> Any:
        package("sinabs")
        from sinabs import activation
        made = {name: getattr(activation, function)(**values)
                for name, (function, values) in (of or {}).items()}
        if arguments.get("spike_fn"):
            made["spike_fn"] = getattr(activation, arguments["spike_fn"])
        return peers.sinabs(kind, **(arguments | made))

    return make


def _rows_of_sinabs() -> list[Row]:
    rows: list[Row] = []

    def add(name: str, make: Make, reason: str = "") -> None:
        # their threshold learns by name, and gets no gradient
        rows.append(Row(f"sinabs {name}", SINABS, make, SINGLE, reason))

    for kind in ("ALIFRecurrent", "LIFRecurrent"):
        for synapse, norm, reset in product((False, True), (False, True),
                                            ("MembraneSubtract", "MembraneReset")):
            add(f"{kind} {reset}{' synapse' * synapse}{' norm' * norm}",
                _sinabs(kind, {"reset_fn": (reset, {})}, synapse=synapse, norm_input=norm))
        add(f"{kind} without bias", _sinabs(kind, bias=False))
        add(f"{kind} alphas", _sinabs(kind, train_alphas=True))
        add(f"{kind} alphas synapse", _sinabs(kind, train_alphas=True, synapse=True))
        add(f"{kind} width", _sinabs(kind, {"surrogate_grad_fn": (
            "SingleExponential", {"grad_width": 0.75, "grad_scale": 0.5})}))
        wide = "surrogate_grad_fn: expected SingleExponential" if kind == "ALIFRecurrent" else ""
        for function, more in (("Gaussian", {"sigma": 0.25}), ("MultiGaussian", {})):
            add(f"{kind} {'refused ' if wide else ''}{function}",
                _sinabs(kind, {"surrogate_grad_fn": (function, {"grad_scale": 0.5, **more})}), wide)
        refused = [
            ("spike_fn: expected SingleSpike, got MultiSpike",
             _sinabs(kind, spike_fn="MultiSpike")),
            ("min_v_mem: expected None", _sinabs(kind, min_v_mem=-1.0)),
            ("record_states: expected False", _sinabs(kind, record_states=True)),
            ("reset_fn: expected MembraneSubtract",
             _sinabs(kind, {"reset_fn": ("MembraneReset", {"reset_value": 0.1})})),
            ("reset_fn: expected Membrane",
             _sinabs(kind, {"reset_fn": ("MembraneSubtract", {"subtract_value": 0.3})})),
            ("surrogate_grad_fn: expected SingleExponential",
             _sinabs(kind, {"surrogate_grad_fn": ("PeriodicExponential", {})})),
            ("rec_connect: expected a torch.nn.Linear, got Sequential",
             _sinabs(kind, rec_connect=nn.Sequential(nn.Linear(N, N)))),
        ]
        for index, (reason, make) in enumerate(refused):
            add(f"{kind} refused {reason.split(':')[0]} {index}", make, reason)
    return rows


# ------------------------------------------------------------------------------------ SpikingJelly
def _state_of_container(layer: Any, spikes: Tensor) -> Values:
    sub = layer.sub_module
    return {"spikes": spikes, "y": layer.y, "v": (sub[1] if isinstance(sub, nn.Sequential)
                                                  else sub).v}


def _spikingjelly(layer: Any, x: Tensor) -> Values:
    from spikingjelly.activation_based import functional
    functional.reset_net(layer)
    layer.step_mode = "m"
    return _state_of_container(layer, layer(x))


def _spikingjelly_loop(layer: Any, x: Tensor) -> Values:
    from spikingjelly.activation_based import functional
    functional.reset_net(layer)
    layer.step_mode = "s"
    return _state_of_container(layer, torch.stack([layer(x_t) for x_t in x]))


def _container_inputs(layer: Any) -> Tensor:
    rc = layer.rc
    return uniform(-0.6, 1.0, T, B, rc.in_features - N, dtype=rc.weight.dtype, seed=3)


JELLY = Package(_container_inputs, _spikingjelly)
JELLY_BY_STEP = Package(_container_inputs, _spikingjelly, _spikingjelly_loop)


def _container(kind: str = "LIFNode", change: Callable[[Any], None] | None = None,
               surrogate: tuple[str, Any] | None = None, step_mode: str = "m",
               **arguments: Any) -> Make:
    def make() -> Any:
        if surrogate is not None:
            package("spikingjelly")
            from spikingjelly.activation_based import surrogate as functions
            name, number = surrogate
            arguments["surrogate_function"] = getattr(functions, name)(number)
        layer = peers.spikingjelly(kind, step_mode=step_mode, **arguments)
        if change is not None:
            change(layer)
        return layer

    return make


def _node_of(name: str) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        from spikingjelly.activation_based import neuron
        layer.sub_module = getattr(neuron, name)()

    return change


def _smooth(layer: Any) -> None:
    # of its own: all neurons share the default one
    layer.sub_module.surrogate_function = copy.deepcopy(layer.sub_module.surrogate_function)
    layer.sub_module.surrogate_function.spiking = False


def _stored(layer: Any) -> None:
    layer.sub_module.store_v_seq = True


def _rows_of_spikingjelly() -> list[Row]:
    from lsnn_ext.spikingjelly import _SHAPES

    rows: list[Row] = []
    for kind, tau in (("LIFNode", "tau"), ("ParametricLIFNode", "init_tau")):
        for rest, detach, decay in product((None, 0.0, -0.2), (False, True), (True, False)):
            name = (f"{kind} v_reset={rest}{' detached' * detach}"
                    f"{'' if decay else ' input as it is'}")
            rows.append(Row(f"SpikingJelly {name}", JELLY, _container(
                kind, v_reset=rest, detach_reset=detach, decay_input=decay, **{tau: 3.0}), DOUBLE))
        for name, package_of, more in (
            ("without bias", JELLY, {"bias": False}), ("projected", JELLY, {"projected": True}),
            ("by steps", JELLY_BY_STEP, {"step_mode": "s"}),
            ("projected by steps", JELLY_BY_STEP, {"step_mode": "s", "projected": True}),
        ):
            rows.append(Row(f"SpikingJelly {kind} {name}", package_of, _container(kind, **more),
                            DOUBLE))
    rows += [Row(f"SpikingJelly {name}", JELLY, _container(surrogate=(name, 1.25)), DOUBLE)
             for name in _SHAPES]
    refused: list[tuple[str, str, Make]] = [
        ("IFNode", "sub_module: expected a LIFNode or ParametricLIFNode",
         _container(change=_node_of("IFNode"))),
        ("QIFNode", "sub_module: expected a LIFNode or ParametricLIFNode",
         _container(change=_node_of("QIFNode"))),
        ("store_v_seq", "store_v_seq: expected False", _container(change=_stored)),
        ("smooth", "surrogate_function: expected spiking=True", _container(change=_smooth)),
        ("Rect", "surrogate_function: expected one of Sigmoid",
         _container(surrogate=("Rect", 1.0))),
    ]
    rows += [Row(f"SpikingJelly refused {name}", JELLY, make, DOUBLE, reason)
             for name, reason, make in refused]
    return rows


def _rows_of_other_classes() -> list[Row]:
    """Recurrent layers for which nothing stands."""
    def norse(name: str) -> Make:
        return lambda: getattr(package("norse.torch"), name)(I, N)

    def sinabs() -> Any:
        package("sinabs")
        from sinabs.layers import IAFRecurrent
        return IAFRecurrent(rec_connect=nn.Linear(N, N))

    def spikingjelly() -> Any:
        package("spikingjelly")
        from spikingjelly.activation_based import layer, neuron
        return layer.ElementWiseRecurrentContainer(neuron.LIFNode(), lambda x, y: x + y)

    none = "no class of lsnn_ext stands for it"
    made = [("norse LIFExRecurrent", NORSE, norse("LIFExRecurrent"), none),
            ("norse LIFAdExRecurrent", NORSE, norse("LIFAdExRecurrent"), none),
            ("norse LSNNRecurrentCell", NORSE, norse("LSNNRecurrentCell"), none),
            ("sinabs IAFRecurrent", SINABS, sinabs,
             "its class is made of sinabs.layers.lif.LIFRecurrent"),
            ("SpikingJelly ElementWiseRecurrentContainer", JELLY, spikingjelly, none)]
    return [Row(f"{name} is another class", package_of, make, SINGLE, reason)
            for name, package_of, make, reason in made]


PACKAGES = {"norse": _rows_of_norse, "snntorch": _rows_of_snntorch, "sinabs": _rows_of_sinabs,
            "spikingjelly": _rows_of_spikingjelly, "papers": configurations_of_papers.rows,
            "others": _rows_of_other_classes}
ROWS = [row for rows in PACKAGES.values() for row in rows()]
