"""Layers and networks as one file, without loss: safetensors, with a description in JSON.

The file holds numbers and words alone: whoever loads it runs no code of whoever made it. pip
install "safetensors>=0.4.3".
"""
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .modules import ALIF, LIF, LSNN, LeakyReadout, Linear
from .modules.parametrizations import described, form_described, sole

__all__ = ["load", "save"]

_FORMAT = 1
_KEY = "lsnn_ext"
Description = dict[str, Any]


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('lsnn_ext: expected safetensors, which is not installed; pip install '
                          '"safetensors>=0.4.3"') from error
    return safetensors


def _of_layer(layer: Any, names: list[str]) -> Description:
    """The arguments that a layer of neurons was made with, those in names."""
    given = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    if isinstance(given.get("delay"), Tensor):
        given["delay"] = layer._first_delay
    if not layer.recurrent:
        given["autapses"] = None
    forms = {}
    for name in layer.learn:
        found = sole(layer, name + layer._suffixes[0])
        forms[name] = described(None if found is None else found[1])
    return {**given, **layer._first, "learn": forms}


def _arguments_of(kind: type[nn.Module]) -> list[str]:
    """Names of the arguments that a layer keeps under the same name."""
    return [name for name in inspect.signature(kind).parameters
            if name not in ("device", "dtype", "learn")]


def _check_parametrizations(module: nn.Module, where: str) -> None:
    """Learned constants may be parametrized in the ways that learn= has, and nothing else."""
    part: Any
    for part in module.modules():
        if not nn.utils.parametrize.is_parametrized(part):
            continue
        suffixes = getattr(part, "_suffixes", ("",))
        own = {name + suffix for name in getattr(part, "learn", ()) for suffix in suffixes}
        for name in part.parametrizations:
            if name not in own or sole(part, name) is None:
                raise TypeError(f"{where}: expected plain parameters, got a parametrized {name}; "
                                f"remove the parametrization first")


def _of_lsnn(network: LSNN) -> Description:
    before = nn.utils.parametrize.type_before_parametrizations
    if before(network.neurons) is not ALIF or before(network.readout) is not LeakyReadout:
        raise TypeError(f"module: expected an LSNN with its own parts, got "
                        f"{type(network.neurons).__name__} and {type(network.readout).__name__}")
    own = {"n_regular", "n_adaptive", "output_size", "tau_out"}
    shared = _of_layer(network.neurons, [n for n in _arguments_of(LSNN) if n not in own])
    readout = network.readout
    if readout.learn:
        shared["learn"]["tau_out"] = ["log"]
    if readout.per_neuron:
        shared["per_neuron"] = ["tau_out"]
    return {**shared, "n_regular": network.n_regular, "n_adaptive": network.n_adaptive,
            "output_size": readout.output_size, "tau_out": readout._first_tau}


def _of_readout(readout: LeakyReadout) -> Description:
    learned = {"learn": {"tau": ["log"]}, "per_neuron": readout.per_neuron} if readout.learn else {}
    return {"n": readout.n, "output_size": readout.output_size, "tau": readout._first_tau,
            "dt": readout.dt, "bias": readout.bias is not None,
            "batch_first": readout.batch_first, **learned}


def _of_linear(linear: nn.Linear) -> Description:
    return {"in_features": linear.in_features, "out_features": linear.out_features,
            "bias": linear.bias is not None}


# By the name in the file; a class stands for itself alone, since a subclass may compute otherwise.
_KINDS: dict[str, tuple[type[nn.Module], Callable[[Any], Description]]] = {
    "ALIF": (ALIF, lambda layer: _of_layer(layer, _arguments_of(ALIF))),
    "LIF": (LIF, lambda layer: _of_layer(layer, _arguments_of(LIF))),
    "LSNN": (LSNN, _of_lsnn),
    "LeakyReadout": (LeakyReadout, _of_readout),
    "Linear": (Linear, _of_linear),
    "torch.nn.Linear": (nn.Linear, _of_linear),
}
_CONTAINERS: dict[str, type[nn.Module]] = {
    "torch.nn.Sequential": nn.Sequential, "torch.nn.ModuleList": nn.ModuleList,
    "torch.nn.ModuleDict": nn.ModuleDict,
}


def _coded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """In JSON; a tensor goes to tensors, under the name."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return {"forms": value} if isinstance(value, dict) else value


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "forms" in value:
        return {name: "plain" if words == ["plain"] else form_described(words)
                for name, words in value["forms"].items()}
    return tensors[value["tensor"]] if "tensor" in value else getattr(torch, value["dtype"])


def _described(module: nn.Module, path: str, tensors: dict[str, Tensor]) -> Description:
    where = f"module{'.' if path else ''}{path}"
    for name, container in _CONTAINERS.items():
        if type(module) is container:
            return {"kind": name, "parts": [[key, _described(part, f"{path}.{key}".strip("."),
                                                             tensors)]
                                            for key, part in module.named_children()]}
    _check_parametrizations(module, where)
    for name, (kind, arguments) in _KINDS.items():
        if nn.utils.parametrize.type_before_parametrizations(module) is not kind:
            continue
        dtype = next(module.parameters()).dtype
        given = {key: _coded(value, f"arguments.{path}.{key}", tensors)
                 for key, value in arguments(module).items()}
        return {"kind": name, "dtype": str(dtype).removeprefix("torch."), "arguments": given}
    known = ", ".join([*_KINDS, *_CONTAINERS])
    raise TypeError(f"{where}: expected one of {known}, got {type(module).__name__}; save the "
                    f"state_dict of a class of your own")


def save(module: nn.Module, path: str | Path) -> None:
    """Writes a module with all that it was made with: load gives the same one again, to the bit.

    The file is one of safetensors, whose metadata hold a description in JSON. Beside the state_dict
    it has the arguments of the constructor, so that reset_parameters and learn work as before.

    Args:
        module: ALIF, LIF, LSNN, LeakyReadout, Linear or torch.nn.Linear, or these in Sequential,
            ModuleList and ModuleDict, also inside each other.
        path: of the file, which is overwritten.

    Raises:
        TypeError: another module, a subclass or a parametrized parameter; the message names it.
        ImportError: safetensors is not installed.
    """
    from . import __version__

    safetensors = _safetensors()
    tensors: dict[str, Tensor] = {}
    description = {"format": _FORMAT, "version": __version__,
                   "module": _described(module, "", tensors)}
    state = module.state_dict()
    tensors |= {f"state.{name}": value for name, value in state.items()}
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    safetensors.torch.save_file(whole, str(path), metadata={_KEY: json.dumps(description)})


def _built(description: Description, tensors: dict[str, Tensor]) -> nn.Module:
    name = description["kind"]
    if name in _CONTAINERS:
        parts = {key: _built(part, tensors) for key, part in description["parts"]}
        if name == "torch.nn.ModuleDict":
            return nn.ModuleDict(parts)
        made = _CONTAINERS[name](*([] if name.endswith("List") else parts.values()))
        return made.extend(parts.values()) if isinstance(made, nn.ModuleList) else made
    if name not in _KINDS:
        raise ValueError(f"path: expected modules that this version knows, got {name!r}")
    given = {key: _decoded(value, tensors) for key, value in description["arguments"].items()}
    return _KINDS[name][0](**given, dtype=getattr(torch, description["dtype"]))


def load(path: str | Path, device: torch.device | str | None = None) -> nn.Module:
    """The module that save has written.

    Args:
        path: of the file.
        device: where its tensors shall lie. Default the CPU.

    Raises:
        ValueError: a file that save has not written, or a newer version of it has.
        ImportError: safetensors is not installed.
    """
    safetensors = _safetensors()
    with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
        told = (file.metadata() or {}).get(_KEY)
        if told is None:
            raise ValueError(f"path: expected a file that lsnn_ext.save has written, got one "
                             f"without its description: {path}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    description = json.loads(told)
    if description["format"] != _FORMAT:
        raise ValueError(f"path: expected format {_FORMAT}, got {description['format']} of "
                         f"lsnn_ext {description['version']}")
    module = _built(description["module"], tensors)
    state = {name.removeprefix("state."): value for name, value in tensors.items()
             if name.startswith("state.")}
    module.load_state_dict(state, strict=True)
    return module if device is None else module.to(device)
