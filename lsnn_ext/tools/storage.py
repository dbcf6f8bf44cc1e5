"""Layers and networks as one lossless file: safetensors with a description in JSON.

The file holds numbers and text only: loading never executes code from it, and needs memory in
proportion to its size. pip install "safetensors>=0.4.3".
"""
import json
import warnings
from collections.abc import Mapping
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.torch_internals import list_hooks, list_state_hooks
from ..modules import LSNN
from ..modules.parametrizations import parse_form
from ..modules.recurrent import Recurrent
from .description import (
    CONTAINERS,
    KINDS,
    PARTS,
    describe,
    find_dtype,
    group_names,
    iterate_parts,
    join_path,
    locate,
    name_tensors,
    shorten,
)

__all__ = ["load", "save"]

_FORMAT = 2  # 1 had neither ties nor flags nor the parts of an LSNN
_KEY = "lsnn_ext"
# What constructors raise for a description that was changed.
_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError)


class _Saved(NamedTuple):
    tensors: Mapping[str, Tensor]
    numbers: int  # elements of all of them


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('lsnn_ext: expected the package safetensors, which is not installed; pip '
                          'install "safetensors>=0.4.3"') from error
    return safetensors


def _check_memory(named: Mapping[str, Tensor]) -> None:
    """Raises ValueError for meta tensors, and for different tensors that share memory, since the
    file would hold them apart."""
    spans = []
    for name, value in named.items():
        if value.is_meta:
            raise ValueError(f"{locate(name)}: expected a tensor with data, got a meta tensor")
        if value.numel():
            last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
            start = value.data_ptr()
            spans.append((str(value.device), start, start + (last + 1) * value.itemsize, name))
    before, end, other = "", 0, ""
    for device, start, stop, name in sorted(spans):
        if device == before and start < end and named[name] is not named[other]:
            raise ValueError(f"{locate(name)}: expected separate memory, got memory shared with "
                             f"{locate(other)}; clone it, or tie it: one Parameter in both places")
        if device != before or stop > end:
            before, end, other = device, stop, name


def save(module: nn.Module, path: str | Path) -> None:
    """Writes a module to a file from which load restores it, bitwise identical.

    The file is a safetensors file whose metadata hold a description in JSON. Besides the state_dict
    it holds the constructor arguments, so reset_parameters and learn work as before; which modules
    and parameters are tied; requires_grad; and training or eval mode.

    Args:
        module: ALIF, LIF, LSNN, LeakyReadout, Linear or torch.nn.Linear, or these in Sequential,
            ModuleList and ModuleDict, which may be nested.
        path: the file. An existing one is overwritten.

    Raises:
        TypeError: the file cannot hold the module: another class, a subclass, a parametrized
            parameter, a wrapper, hooks, or a change that the constructor cannot make. The message
            names it, and nothing is written.
        ValueError: a meta tensor, different Parameters that share memory, or a module path of more
            than 1000 characters.
        ImportError: safetensors is not installed.

    Example:
        >>> lsnn_ext.save(net, "net.safetensors")
        >>> net = lsnn_ext.load("net.safetensors")
    """
    from .. import __version__

    safetensors = _safetensors()
    tensors: dict[str, Tensor] = {}
    described = describe(module, "", tensors)
    state = module.state_dict()
    named = {name: value for name, value in name_tensors(module).items() if name in state}
    _check_memory(named)
    paths = dict(iterate_parts(described))
    modules = dict(module.named_modules(remove_duplicate=False))
    description = {
        "format": _FORMAT, "version": __version__, "module": described,
        "one_module": group_names({name: one for name, one in modules.items() if name in paths}),
        "one_tensor": group_names(named),
        "requires_grad": [name for name, value in named.items() if value.requires_grad],
        "eval": [name for name, one in modules.items() if not one.training]}
    tensors |= {f"state.{name}": value for name, value in state.items()}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(description)
    try:
        made = _restore(json.loads(text), plain)
    except _ERRORS as error:
        raise TypeError(
            f"{error}; the module has a change that its constructor cannot make") from error
    _check_same(module, made)
    safetensors.torch.save_file(plain, str(path), metadata={_KEY: text})


def _check_same(module: nn.Module, made: nn.Module) -> None:
    """Raises TypeError for changes that the file cannot hold, so load would make another module."""
    for kind, of in (("modules", nn.Module.named_modules),
                     ("Parameters", nn.Module.named_parameters),
                     ("buffers", nn.Module.named_buffers)):
        one, other = (dict(of(each, remove_duplicate=False))  # type: ignore[operator]
                      for each in (module, made))
        for name in sorted(one.keys() ^ other.keys()):
            raise TypeError(f"{locate(name)}: expected the {kind} that the constructor makes, got "
                            f"{'an additional' if name in one else 'a missing'} one")
    for name, value in name_tensors(module).items():
        if list_hooks(value):
            raise TypeError(f"{locate(name)}: expected a tensor without hooks, which are code, got "
                            f"some; remove them first")
    for path, part in module.named_modules():
        same = made.get_submodule(path)
        if list_state_hooks(part) != list_state_hooks(same):
            raise TypeError(f"{locate(path)}: expected the state dict hooks that the constructor "
                            f"registers, got others, which are code; remove them first")
        there = _list_settings(same)
        for name, value in _list_settings(part).items():
            loaded = there.get(name)
            if name in there and value is not loaded and (
                    isinstance(value, Tensor) or value != loaded):
                raise TypeError(f"{locate(path, name)}: expected {loaded!r}, as load would set, "
                                f"got {value!r}")


def _list_settings(part: Any) -> dict[str, Any]:
    """Public attributes, and the parametrizations of a layer."""
    forms = part._describe_forms() if isinstance(part, Recurrent) else ()
    return {"parametrizations": forms} | {name: value for name, value in vars(part).items()
                                          if name[0] != "_"}


# ---------------------------------------------------------------------------------------- loading
def _get_entry(description: Any, name: str, kind: type, where: str) -> Any:
    """A value of a description. Raises ValueError unless it has this type."""
    value = description.get(name) if isinstance(description, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{where}.{name}: expected {kind.__name__}, got {shorten(value)}")
    return value


def _check_names(values: Any, name: str) -> list[str]:
    if type(values) is not list or any(type(value) is not str for value in values):
        raise ValueError(f"description.{name}: expected names, got {shorten(values)}")
    return values


def _decode(value: Any, name: str, path: str, saved: _Saved) -> Any:
    where = locate(path, name)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:  # per_neuron of format 1
        return _check_names(value, name)
    if type(value) is dict and value.keys() == {"tensor"}:
        found = saved.tensors.get(f"arguments.{path}.{name}")
        if found is None:
            raise ValueError(f"{where}: expected a tensor of the file, got none")
        return found
    if type(value) is dict and value.keys() == {"dtype"}:
        return find_dtype(value["dtype"], where)
    return {key: "plain" if words == ["plain"] else parse_form(words)
            for key, words in _get_entry(value, "forms", dict, where).items()}


_SIZES = ("input_size", "hidden_size", "n_regular", "n_adaptive", "n", "output_size",
          "in_features", "out_features")


def _build_layer(name: str, description: dict[str, Any], path: str, saved: _Saved) -> nn.Module:
    """A layer on the meta device, without memory for its weights, which are in the file."""
    where, prefix = locate(path), f"state.{path}." if path else "state."
    weights = prefix + ("neurons." if name in PARTS else "") + "weight_ih_l"
    layers = next(n for n in count() if f"{weights}{n}" not in saved.tensors)
    arguments = {key: _decode(value, key, path, saved)
                 for key, value in _get_entry(description, "arguments", dict, where).items()}
    limits = {**dict.fromkeys(_SIZES, saved.numbers), "num_layers": layers}
    for key in limits.keys() & arguments.keys():
        if type(arguments[key]) is not int or not 0 <= arguments[key] <= limits[key]:
            raise ValueError(f"{where}.{key}: expected a size that fits the tensors of the file, "
                             f"got {shorten(arguments[key])}")
    if name in PARTS and "parts" in description:
        made = LSNN(1, 0, 1, 1, device="meta")  # whose parts are replaced
        made.n_regular, made.n_adaptive = arguments["n_regular"], arguments["n_adaptive"]
        return made
    dtype = find_dtype(description.get("dtype"), f"{where}.dtype")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the original constructor has warned
        try:
            layer = KINDS[name][0](**arguments, dtype=dtype, device="meta")
        except _ERRORS as error:
            raise ValueError(f"{where}: {error}") from error
    for key, value in layer.state_dict().items():
        found = saved.tensors.get(prefix + key)
        if "_extra_state" in key:
            continue
        if found is None or found.shape != value.shape or (
                found.is_floating_point() != value.is_floating_point()):
            got = "none" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise ValueError(f"{locate(path, key)}: expected {value.dtype} of shape "
                             f"{tuple(value.shape)}, got {got}")
    return layer


def _build(description: Any, path: str, saved: _Saved) -> nn.Module:
    where = locate(path)
    name = _get_entry(description, "kind", str, where)
    if name not in KINDS and name not in CONTAINERS:
        raise ValueError(f"{where}: expected a module of this version, got {shorten(name)}")
    made = (CONTAINERS[name]() if name in CONTAINERS
            else _build_layer(name, description, path, saved))
    if "parts" not in description and name not in CONTAINERS:
        return made
    pairs = _get_entry(description, "parts", list, where)
    if any(type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str for pair in pairs):
        raise ValueError(f"{where}.parts: expected pairs of a name and a module, got "
                         f"{shorten(pairs)}")
    parts = dict(pairs)
    expected = PARTS.get(name, {})
    kinds = {key: part.get("kind") if isinstance(part, dict) else None
             for key, part in parts.items()}
    if len(parts) != len(pairs) or name not in CONTAINERS and kinds != expected:
        raise ValueError(f"{where}.parts: expected {expected or 'different names'}, got "
                         f"{shorten([pair[0] for pair in pairs])}")
    for key, part in parts.items():
        made.add_module(key, None if part is None else _build(part, join_path(path, key), saved))
    return made


def _restore(description: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module of a description, with the tensors of the file."""
    saved = _Saved(tensors, sum(value.numel() for value in tensors.values()))
    module = _build(description.get("module"), "", saved)
    state = {name.removeprefix("state."): value for name, value in tensors.items()
             if name.startswith("state.")}
    module.load_state_dict(state, assign=True)
    if description["format"] > 1:
        _tie(module, description)
    return module


def _tie(module: nn.Module, description: dict[str, Any]) -> None:
    """Ties modules and tensors, and sets requires_grad and the mode."""
    for kind in ("module", "tensor"):
        kinds: dict[str, Any] = {name: (type(one), one.dtype, one.shape)
                                 for name, one in name_tensors(module).items()}
        if kind == "module":
            kinds = dict(iterate_parts(description["module"]))
        for group in _get_entry(description, f"one_{kind}", list, "description"):
            first, *others = _check_names(group, f"one_{kind}")
            for name in others:
                # Descriptions are finite, so of two equal ones neither module is inside the other.
                if name == first or name not in kinds or kinds[name] != kinds.get(first):
                    raise ValueError(f"{locate(name)}: expected the same {kind} as "
                                     f"{locate(first)}, got another")
                parent, _, key = name.rpartition(".")
                setattr(module.get_submodule(parent), key, attrgetter(first)(module))
    named, modules = name_tensors(module), dict(module.named_modules(remove_duplicate=False))
    trained, in_eval = (
        set(_check_names(_get_entry(description, key, list, "description"), key))
        for key in ("requires_grad", "eval"))
    for name in [*(trained - named.keys()), *(in_eval - modules.keys())]:
        raise ValueError(f"{locate(name)}: expected a name of the module, got another")
    for name, value in named.items():
        value.requires_grad_(name in trained)
    for name, part in modules.items():
        part.training = name not in in_eval


def load(path: str | Path, device: torch.device | str | None = None) -> nn.Module:
    """The module that save has written.

    Args:
        path: the file.
        device: of the tensors. Default the CPU.

    Raises:
        ValueError: a file that save has not written, that is damaged, or that a newer version has
            written.
        ImportError: safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_KEY)
            names = [] if text is None else file.keys()
            # clone: the file may be overwritten
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (safetensors.SafetensorError, *_ERRORS) as error:
        raise ValueError(
            f"path: expected a file in safetensors format, got {path}: {error}") from error
    if text is None:
        raise ValueError(f"path: expected a file of lsnn_ext.save, got one without its "
                         f"description: {path}")
    if device is not None:  # except what is read on the CPU
        tensors = {name: value.to(device) if name.startswith("state.")
                   and not name.endswith("_extra_state") else value
                   for name, value in tensors.items()}
    try:
        description = json.loads(text)
        number = _get_entry(description, "format", int, "description")
        if not 1 <= number <= _FORMAT:
            raise ValueError(f"expected format {_FORMAT} or older, got {number} of lsnn_ext "
                             f"{description.get('version')!s:.20}")
        return _restore(description, tensors)
    except _ERRORS as error:
        raise ValueError(f"path: expected a file of lsnn_ext.save, got {path}: {error}") from error
