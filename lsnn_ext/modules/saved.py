"""State dicts of a layer: they say the model and the form of what was learned, and are refused by a
layer of another model."""
import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Layer
from .parametrizations import describe_form, find_list, find_parametrization, parse_form

VERSION = 2  # 1 had no extra state, and learned the numbers themselves
_KEY = "_extra_state"  # of torch.nn.Module
# What changes the spikes and is no number of a state dict.
_SETTINGS = ("dt", "refractory", "autapses")


def encode_settings(layer: Layer) -> Tensor:
    """Model, version, settings and forms of a layer: JSON as bytes, a tensor as all else of a state
    dict, so that what moves or stores tensors takes it too."""
    forms = {}
    for name in layer.learn:
        found = find_parametrization(layer, name + layer._suffixes[0])
        words = describe_form(None if found is None else found[1])
        if found is not None or find_list(layer, name + layer._suffixes[0]) is None:
            forms[name] = words
    known = {"dynamics": layer.dynamics, "version": VERSION, "learn": forms}
    known |= {name: getattr(layer, name) for name in _SETTINGS}
    if isinstance(layer.delay, int):
        known["delay"] = layer.delay
    told = json.dumps(known, sort_keys=True, default=float)  # float: a number of numpy's
    return torch.tensor(list(told.encode()), dtype=torch.uint8, device="cpu")


def _read(given: Any, kind: str) -> dict[str, Any]:
    if given is None:  # of version 1, or made by hand
        return {"version": 1, "learn": {}}
    try:
        found = json.loads(bytes(int(byte) for byte in given.tolist()).decode())
        version = int(found["version"])
        forms = dict(found["learn"]) if version <= VERSION else {}
        for words in forms.values():
            if words is not None:
                parse_form(words)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise RuntimeError(f"{_KEY}: expected what a {kind} of lsnn_ext has written, got "
                           f"{type(given).__name__}") from None
    if version > VERSION:
        raise RuntimeError(f"{_KEY}: expected a state dict of version {VERSION} or older, got "
                           f"version {version}; a newer lsnn_ext reads it")
    return {**found, "learn": forms}


def register_loading(layer: Layer) -> None:
    """Has load_state_dict look first: at the model, and at the form of what was learned."""
    layer.register_load_state_dict_pre_hook(_before_loading)


def _before_loading(
    layer: Layer, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
    *_: Any,
) -> None:
    kind = layer._own_name()
    known = _read(state_dict.get(prefix + _KEY), kind)
    dynamics = known.get("dynamics", layer.dynamics)
    if dynamics != layer.dynamics:
        raise RuntimeError(
            f"dynamics: expected a state dict of model {layer.dynamics!r} for this {kind}, got one "
            f"of {dynamics!r}; make the layer with dynamics={dynamics!r}, and nothing of this one "
            f"has been changed")
    differ = [f"{name}={known[name]} there and {getattr(layer, name)} here"
              for name in (*_SETTINGS, "delay") if name in known
              and not isinstance(getattr(layer, name), Tensor)
              and known[name] != getattr(layer, name)]
    if differ:
        warnings.warn(f"{kind}: the state dict is of a layer with {', '.join(differ)}; the same "
                      f"numbers make other spikes", stacklevel=4)
    state_dict.setdefault(prefix + _KEY, encode_settings(layer))
    for name in layer._neuron:
        form = known["learn"].get(name)
        for suffix in layer._suffixes:
            _convert(layer, state_dict, prefix, name + suffix, form)


def _convert(layer: nn.Module, state_dict: dict[str, Any], prefix: str, name: str,
             words: list[Any] | None) -> None:
    """Brings one constant into the form of this layer; leaves alone what others have
    parametrized."""
    plain, stored = prefix + name, f"{prefix}parametrizations.{name}.original"
    here, mine = find_parametrization(layer, name), find_list(layer, name)
    if mine is not None and here is None:
        return
    value = state_dict.get(plain)
    there = None if words is None else parse_form(words)
    if isinstance(state_dict.get(stored), Tensor):
        if here is not None and describe_form(here[1]) == words or there is None:
            return
        value = there(state_dict.pop(stored))
    elif not isinstance(value, Tensor) or here is None:
        return
    if here is None:
        state_dict[plain] = value
        return
    state_dict.pop(plain, None)
    inverse: Any = here[1].right_inverse
    state_dict[stored] = inverse(value)
