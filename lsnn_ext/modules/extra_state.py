"""The extra state of a layer in a state dict: model, settings and parametrizations as JSON.

It is compared before anything is loaded."""
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .parametrizations import describe_form, find_list, find_parametrization, parse_form

VERSION = 2  # 1 had no extra state and stored learned constants without parametrization
KEY = "_extra_state"  # of torch.nn.Module
_SETTINGS = ("dt", "refractory", "autapses")


def encode(description: Mapping[str, Any]) -> Tensor:
    """JSON as bytes: a tensor like all else in a state dict, so whatever moves those takes it."""
    text = json.dumps(description, sort_keys=True, default=float)  # float: a NumPy number
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")


def decode(state: Any, kind: str) -> dict[str, Any]:
    """The description that encode was given. Raises RuntimeError for anything else."""
    try:
        return dict(json.loads(bytes(int(byte) for byte in state.tolist()).decode()))
    except (AttributeError, RecursionError, TypeError, ValueError):
        raise wrong_state(state, kind) from None


def wrong_state(state: Any, kind: str) -> RuntimeError:
    """The error for an extra state that a layer of this class has not written."""
    return RuntimeError(f"{KEY}: expected the extra state of a {kind} of lsnn_ext, got "
                        f"{type(state).__name__}")


def warn_of_differences(kind: str, saved: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    """Warns of settings that a state dict and a layer both have, and that differ."""
    differences = [f"{name}={saved[name]} there and {value} here" for name, value in layer.items()
                   if name in saved and saved[name] != value]
    if differences:
        warnings.warn(f"{kind}: the state dict is of a layer with {', '.join(differences)}; the "
                      f"same numbers make other spikes", stacklevel=5)


def describe_learned(layer: Any) -> dict[str, list[Any] | None]:
    """The parametrization of each learned constant in words and numbers; None: one that is not
    ours. Constants that others have parametrized are left out."""
    found = {}
    for name in layer.learn:
        stored = find_parametrization(layer, name + layer._suffixes[0])
        if stored is not None or find_list(layer, name + layer._suffixes[0]) is None:
            found[name] = describe_form(None if stored is None else stored[1])
    return found


def list_settings(layer: Any, names: Iterable[str] = _SETTINGS) -> dict[str, Any]:
    """What changes the spikes of a layer and is no tensor of a state dict."""
    found = {name: getattr(layer, name) for name in names}
    return found | ({"delay": layer.delay} if isinstance(layer.delay, int) else {})


def encode_settings(layer: Any) -> Tensor:
    """Model, version, settings and parametrizations of a layer."""
    return encode({"dynamics": layer.dynamics, "version": VERSION,
                   "learn": describe_learned(layer)} | list_settings(layer))


def _read(state: Any, kind: str) -> dict[str, Any]:
    if state is None:  # of version 1, or made by hand
        return {"version": 1, "learn": {}}
    found = decode(state, kind)
    try:
        version = int(found["version"])
        forms = dict(found["learn"]) if version <= VERSION else {}
        for words in forms.values():
            if words is not None:
                parse_form(words)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise wrong_state(state, kind) from None
    if version > VERSION:
        raise RuntimeError(f"{KEY}: expected a state dict of version {VERSION} or older, got "
                           f"version {version}; a newer lsnn_ext reads it")
    return {**found, "learn": forms}


def before_loading(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook by which load_state_dict compares the extra state first."""
    kind = layer._class_name()
    saved = _read(state_dict.get(prefix + KEY), kind)
    dynamics = saved.get("dynamics", layer.dynamics)
    if dynamics != layer.dynamics:
        raise RuntimeError(
            f"dynamics: expected a state dict of model {layer.dynamics!r} for this {kind}, got one "
            f"of {dynamics!r}; make the layer with dynamics={dynamics!r} (nothing of this one has "
            f"been changed)")
    warn_of_differences(kind, saved, list_settings(layer))
    state_dict.setdefault(prefix + KEY, encode_settings(layer))
    for name in layer._neuron:
        form = saved["learn"].get(name)
        for suffix in layer._suffixes:
            _convert(layer, state_dict, prefix, name + suffix, form)


def _convert(layer: nn.Module, state_dict: dict[str, Any], prefix: str, name: str,
             words: list[Any] | None) -> None:
    """Converts one constant to the parametrization of this layer; leaves alone what others have
    parametrized."""
    plain, stored = prefix + name, f"{prefix}parametrizations.{name}.original"
    here = find_parametrization(layer, name)
    if here is None and find_list(layer, name) is not None:
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
