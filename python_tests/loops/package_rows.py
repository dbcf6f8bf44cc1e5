"""The settings of other packages' recurrent layers, a row each: what convert fuses, and what it
leaves as a loop, with words of its reason."""
import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import package_models as models
import package_rows_of_papers
import peer_layers as peers
from originals import B, I, N, package
from package_models import DOUBLE, SINGLE, Make, Row, Small


# ------------------------------------------------------------------------------------------- norse
def _norse(kind: str, dtype: torch.dtype = DOUBLE, others: dict[str, Tensor] | None = None,
           **arguments: Any) -> Make:
    """others: parameters in place of those of peers."""
    def make() -> Any:
        # the gradient of its LIF's v_leak passes the float32 of the first state, in any dtype
        given = {name: value.detach() if dtype == SINGLE or (kind, name) == (
                     "LIFRecurrent", "v_leak") else value
                 for name, value in peers.norse_parameters(kind, dtype).items()}
        return peers.norse(kind, dtype, given | (others or {}), **arguments)

    return make


def _norse_other(name: str) -> Make:
    """Another class, with its own parameters."""
    def make() -> Any:
        torch.manual_seed(3)
        layer = getattr(package("norse.torch"), name)(I, N)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.copy_(torch.round(64 * weight) / 16)
        return layer

    return make


def _rows_of_norse() -> list[Row]:
    rows = []
    for kind in ("LSNNRecurrent", "LIFRecurrent"):
        settings: list[tuple[str, dict[str, Any]]] = [
            ("", {}), ("autapses", {"autapses": True}), ("records states", {"record_states": True}),
            *((method, {"method": method, "alpha": alpha}) for method, alpha in (
                ("triangle", 0.4), ("tanh", 1.5), ("heavi_erfc", 1.25), ("super", 7.0),
                ("heaviside", 1.0), ("circ", 1.0))),
            ("no decay", {"others": {"tau_mem_inv": torch.tensor(1500.0)}})]
        rows += [Row(f"norse {kind} {name}".rstrip(), models.Norse, _norse(kind, **more), DOUBLE)
                 for name, more in settings]
        rows.append(Row(f"norse {kind} float32", models.Norse, _norse(kind, SINGLE), SINGLE))
        rows += [Row(f"norse {kind} {len(batched)} axes of the batch",
                     lambda layer, batched=batched: models.Norse(layer, batched),  # type: ignore[misc]
                     _norse(kind), DOUBLE) for batched in ((), (2, 3))]
        rows.append(Row(f"norse {kind} copied", models.Norse,
                        lambda kind=kind: copy.deepcopy(_norse(kind)()), DOUBLE))  # type: ignore[misc]
    rows.append(Row("norse LSNNRecurrent adjoint", models.Norse,
                    _norse("LSNNRecurrent", adjoint=True), DOUBLE, "lsnn_adjoint.py"))
    rows += [Row(f"norse {name}", models.Norse, _norse_other(name), SINGLE)
             for name in ("LIFExRecurrent", "LIFAdExRecurrent")]
    rows += [Row(f"norse {name}", models.NorseCell, _norse_other(name), SINGLE)
             for name in ("LSNNRecurrentCell", "LIFRecurrentCell")]
    return rows


# ---------------------------------------------------------------------------------------- snnTorch
def _snntorch(kind: str, surrogate: str = "", number: float | None = None,
              attributes: dict[str, Any] | None = None, **arguments: Any) -> Make:
    def make() -> Any:
        if surrogate:
            package("snntorch")
            from snntorch import surrogate as functions
            numbers = () if number is None else (number,)
            arguments["spike_grad"] = getattr(functions, surrogate)(*numbers)
        layer = peers.snntorch(kind, **arguments)
        for name, value in (attributes or {}).items():
            setattr(layer, name, value)
        return layer

    return make


def _convolution(kind: str) -> Make:
    def make() -> Any:
        torch.manual_seed(4)
        layer = getattr(package("snntorch"), kind)(
            beta=0.5, conv2d_channels=2, kernel_size=3, **(
                {"alpha": 0.5} if kind == "RSynaptic" else {}))
        with torch.no_grad():
            for weight in layer.parameters():
                weight.copy_(torch.round(64 * weight) / 64)
        return layer

    return make


def _without_gradient(u: Tensor) -> Tensor:
    return (u > 0).float()


def _eighths(membrane: Tensor) -> Tensor:
    return torch.round(membrane * 8) / 8


def _rows_of_snntorch() -> list[Row]:
    rows: list[Row] = []

    def add(name: str, make: Make, stays: str = "", unlearned: tuple[str, ...] = (),
            model: Callable[[Any], Small] = models.SnnTorch, is_smooth: bool = False) -> None:
        rows.append(Row(f"snnTorch {name}", model, make, SINGLE, stays, unlearned, is_smooth))

    each = peers.values(-0.25, 0.5, N, seed=5)
    for kind in ("RLeaky", "RSynaptic"):
        for reset, late in product(("subtract", "zero", "none"), (True, False)):
            add(f"{kind} {reset} {'late' if late else 'now'}",
                _snntorch(kind, reset_mechanism=reset, reset_delay=late))
        one_to_one = {"all_to_all": False, "linear_features": None}
        add(f"{kind} V of each", _snntorch(kind, V=each, **one_to_one))
        add(f"{kind} one V", _snntorch(kind, V=0.75, learn_recurrent=False, **one_to_one),
            unlearned=("layer.V", "layer.recurrent.V"))
        add(f"{kind} numbers", _snntorch(kind, beta=0.875, threshold=0.75, learn_beta=False,
                                         learn_threshold=False, learn_recurrent=False,
                                         **({"alpha": 0.5, "learn_alpha": False}
                                            if kind == "RSynaptic" else {})),
            unlearned=("layer.recurrent.weight", "layer.recurrent.bias"))
        add(f"{kind} negative threshold", _snntorch(kind, threshold=-0.25, learn_threshold=False))
        surrogates = (("atan", 1.25), ("fast_sigmoid", 3.0), ("sigmoid", 25.0), ("sigmoid", 2.0),
                      ("straight_through_estimator", None), ("triangular", None))
        for function, number in surrogates:
            add(f"{kind} {function} {number or ''}".rstrip(),
                _snntorch(kind, surrogate=function, number=number),
                "got aten.index in surrogate.py" if function == "triangular" else "")
        add(f"{kind} without a gradient", _snntorch(kind, spike_grad=_without_gradient))
        add(f"{kind} surrogate_disable", _snntorch(kind, surrogate_disable=True))
        add(f"{kind} init_hidden", _snntorch(kind, init_hidden=True), model=models.SnnTorchHidden)
        add(f"{kind} reset_mem", _snntorch(kind), model=models.SnnTorchReset)
        add(f"{kind} inhibition", _snntorch(kind, inhibition=True), "as many numbers")
        add(f"{kind} state_quant", _snntorch(kind, state_quant=_eighths))
        add(f"{kind} graded spikes", _snntorch(kind, attributes={
            "graded_spikes_factor": torch.tensor(2.0)}), is_smooth=True)
        add(f"{kind} convolution", _convolution(kind), "got conv2d", model=models.SnnTorchImages)
    return rows


# ------------------------------------------------------------------------------------------ sinabs
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


def _iaf() -> Any:
    package("sinabs")
    from sinabs.layers import IAFRecurrent
    return IAFRecurrent(rec_connect=peers.linear_of(1.0, True), spike_threshold=torch.tensor(0.5))


def _rows_of_sinabs() -> list[Row]:
    rows: list[Row] = []

    def add(name: str, make: Make, stays: str = "", is_smooth: bool = False,
            model: Callable[[Any], Small] = models.Sinabs, unlearned: tuple[str, ...] = ()) -> None:
        # their threshold learns by name, and gets no gradient
        rows.append(Row(f"sinabs {name}", model, make, SINGLE, stays, unlearned, is_smooth))

    for kind in ("ALIFRecurrent", "LIFRecurrent"):
        for synapse, norm, reset in product((False, True), (False, True),
                                            ("MembraneSubtract", "MembraneReset")):
            add(f"{kind} {reset}{' synapse' * synapse}{' norm' * norm}",
                _sinabs(kind, {"reset_fn": (reset, {})}, synapse=synapse, norm_input=norm))
        for synapse in (False, True):
            # of ALIF one number for all neurons
            one = ("layer.tau_syn",) if synapse and kind == "ALIFRecurrent" else ()
            add(f"{kind} goes on{' synapse' * synapse}", _sinabs(kind, synapse=synapse),
                model=models.SinabsGoesOn, unlearned=one)
        add(f"{kind} resets itself", _sinabs(kind), model=models.SinabsResets)
        add(f"{kind} without bias", _sinabs(kind, bias=False))
        add(f"{kind} alphas", _sinabs(kind, train_alphas=True))
        add(f"{kind} alphas synapse", _sinabs(kind, train_alphas=True, synapse=True))
        add(f"{kind} two axes", _sinabs(kind), model=lambda layer: models.Sinabs(layer, (B, 2)))
        for function, values in (("SingleExponential", {"grad_width": 0.75, "grad_scale": 0.5}),
                                 ("Gaussian", {"sigma": 0.25, "grad_scale": 0.5}),
                                 ("MultiGaussian", {"grad_scale": 0.5}),
                                 ("PeriodicExponential", {})):
            add(f"{kind} {function}", _sinabs(kind, {"surrogate_grad_fn": (function, values)}))
        add(f"{kind} MultiSpike", _sinabs(kind, spike_fn="MultiSpike"))
        add(f"{kind} min_v_mem", _sinabs(kind, min_v_mem=-1.0))
        add(f"{kind} records states", _sinabs(kind, record_states=True))
        add(f"{kind} resets to 0.1",
            _sinabs(kind, {"reset_fn": ("MembraneReset", {"reset_value": 0.1})}))
        add(f"{kind} subtracts 0.3",
            _sinabs(kind, {"reset_fn": ("MembraneSubtract", {"subtract_value": 0.3})}))
        add(f"{kind} Sequential", lambda kind=kind: peers.sinabs(  # type: ignore[misc]
            kind, rec_connect=nn.Sequential(peers.linear_of(6.0, True))))
    add("IAFRecurrent", _iaf, is_smooth=True)
    return rows


# ------------------------------------------------------------------------------------ SpikingJelly
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


def _element_wise() -> Any:
    package("spikingjelly")
    from spikingjelly.activation_based import layer, neuron
    return layer.ElementWiseRecurrentContainer(neuron.LIFNode(), lambda x, y: x + y)


SURROGATES = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "Erf", "Rect",
              "LeakyKReLU", "PiecewiseLeakyReLU")


def _rows_of_spikingjelly() -> list[Row]:
    rows: list[Row] = []

    def add(name: str, make: Make, stays: str = "", is_smooth: bool = False,
            model: Callable[[Any], Small] = models.Jelly, dtype: torch.dtype = DOUBLE) -> None:
        rows.append(Row(f"SpikingJelly {name}", model, make, dtype, stays, (), is_smooth))

    for kind, tau in (("LIFNode", "tau"), ("ParametricLIFNode", "init_tau")):
        for rest, detach, decay in product((None, 0.0, -0.2), (False, True), (True, False)):
            name = (f"{kind} v_reset={rest}{' detached' * detach}"
                    f"{'' if decay else ' input as it is'}")
            add(name, _container(kind, v_reset=rest, detach_reset=detach, decay_input=decay,
                                 **{tau: 3.0}))
        add(f"{kind} float32", _container(kind, dtype=SINGLE, v_threshold=0.75, **{tau: 4.0}),
            dtype=SINGLE)
        for name, model, more in (
            ("without bias", models.Jelly, {"bias": False}),
            ("resets itself", models.JellyResets, {}),
            ("projected", models.Jelly, {"projected": True}),
            ("by steps", models.JellyByStep, {"step_mode": "s"}),
            ("projected by steps", models.JellyByStep, {"step_mode": "s", "projected": True}),
        ):
            add(f"{kind} {name}", _container(kind, **more), model=model)
    for name in SURROGATES:
        add(name, _container(surrogate=(name, 1.25)))
    add("IFNode", _container(change=_node_of("IFNode")))
    add("QIFNode", _container(change=_node_of("QIFNode")))
    add("store_v_seq", _container(
        change=lambda layer: setattr(layer.sub_module, "store_v_seq", True)))
    add("smooth", _container(change=_smooth), is_smooth=True)
    add("ElementWiseRecurrentContainer", _element_wise, model=models.JellyElementWise, dtype=SINGLE)
    return rows


PACKAGES = {"norse": _rows_of_norse, "snntorch": _rows_of_snntorch, "sinabs": _rows_of_sinabs,
            "spikingjelly": _rows_of_spikingjelly, "papers": package_rows_of_papers.rows}
ROWS = [row for rows in PACKAGES.values() for row in rows()]
