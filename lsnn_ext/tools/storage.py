"""Layers and networks as one file, without loss: safetensors, with a description in JSON.

The file holds numbers and words only: loading never executes code from the file, and needs memory
in proportion to its size. pip install "safetensors>=0.4.3".
"""
import json
import warnings
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.torch_internals import list_hooks, list_state_hooks
from ..modules import LSNN
from ..modules.parametrizations import parse_form
from ..modules.recurrent import Recurrent
from .described import (
    CONTAINERS,
    KINDS,
    PARTS,
    at,
    describe,
    find_dtype,
    groups,
    named_tensors,
    short,
    under,
    walk,
)

__all__ = ["load", "save"]

_FORMAT = 2  # 1 had no ties, no flags and no parts of an LSNN
_KEY = "lsnn_ext"
# What a description that was changed makes the constructors raise.
_CHANGED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError)


class _Saved(NamedTuple):
    """The tensors of a file, and how many numbers they have."""

    tensors: Mapping[str, Tensor]
    numbers: int


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('lsnn_ext: expected safetensors, which is not installed; pip install '
                          '"safetensors>=0.4.3"') from error
    return safetensors


def _check_memory(named: Mapping[str, Tensor]) -> None:
    """Raises ValueError for tensors without numbers, and for those that share memory without being
    one object: the file would hold them apart."""
    spans = []
    for name, value in named.items():
        if value.is_meta:
            raise ValueError(f"{at(name)}: expected numbers, got a meta tensor, which has none")
        if value.numel():
            last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
            start = value.data_ptr()
            spans.append((str(value.device), start, start + (last + 1) * value.itemsize, name))
    before, end, other = "", 0, ""
    for device, start, stop, name in sorted(spans):
        if device == before and start < end and named[name] is not named[other]:
            raise ValueError(f"{at(name)}: expected memory of its own, got a part of that of "
                             f"{at(other)}; clone it, or tie it: the same Parameter in both")
        if device != before or stop > end:
            before, end, other = device, stop, name


def save(module: nn.Module, path: str | Path) -> None:
    """Writes a module with all that it was made with: load gives the same one again, to the bit.

    The file is one of safetensors, whose metadata hold a description in JSON. Beside the state_dict
    it has the arguments of the constructors, so that reset_parameters and learn work as before;
    which modules and parameters are one object; requires_grad, and training or eval mode.

    Args:
        module: ALIF, LIF, LSNN, LeakyReadout, Linear or torch.nn.Linear, or these in Sequential,
            ModuleList and ModuleDict, also inside each other.
        path: of the file, which is overwritten.

    Raises:
        TypeError: the file cannot hold the module: another class, a subclass, a parametrized
            parameter, a wrapper, hooks, or a change that the constructor cannot make. The message
            names it, and nothing is written.
        ValueError: a meta tensor, tensors that share memory without being one Parameter, or a path
            of more than 1000 letters.
        ImportError: safetensors is not installed.
    """
    from .. import __version__

    safetensors = _safetensors()
    tensors: dict[str, Tensor] = {}
    told = describe(module, "", tensors)
    state = module.state_dict()
    named = {name: value for name, value in named_tensors(module).items() if name in state}
    _check_memory(named)
    paths, modules = dict(walk(told)), dict(module.named_modules(remove_duplicate=False))
    description = {
        "format": _FORMAT, "version": __version__, "module": told,
        "one_module": groups({name: one for name, one in modules.items() if name in paths}),
        "one_tensor": groups(named),
        "requires_grad": [name for name, value in named.items() if value.requires_grad],
        "eval": [name for name, one in modules.items() if not one.training]}
    tensors |= {f"state.{name}": value for name, value in state.items()}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    words = json.dumps(description)
    try:
        made = _restored(json.loads(words), plain)
    except _CHANGED as error:
        raise TypeError(f"{error}; the module was changed in a way that its constructor cannot "
                        f"repeat") from error
    _check_same(module, made)
    safetensors.torch.save_file(plain, str(path), metadata={_KEY: words})


def _check_same(module: nn.Module, made: nn.Module) -> None:
    """Raises TypeError where what load makes would differ: by changes that a file cannot hold."""
    for kind, of in (("modules", nn.Module.named_modules),
                     ("Parameters", nn.Module.named_parameters),
                     ("buffers", nn.Module.named_buffers)):
        one, other = (dict(of(each, remove_duplicate=False))  # type: ignore[operator]
                      for each in (module, made))
        for name in sorted(one.keys() ^ other.keys()):
            raise TypeError(f"{at(name)}: expected the {kind} that the constructor makes, got one "
                            f"{'more' if name in one else 'less'}")
    for name, value in named_tensors(module).items():
        if list_hooks(value):
            raise TypeError(f"{at(name)}: expected a tensor without hooks, which are code; remove "
                            f"them first")
    for path, part in module.named_modules():
        same = made.get_submodule(path)
        if list_state_hooks(part) != list_state_hooks(same):
            raise TypeError(f"{at(path)}: expected the hooks of state dicts that the constructor "
                            f"registers, got others, which are code; remove them first")
        there = _settings(same)
        for name, value in _settings(part).items():
            known = there.get(name)
            if name in there and value is not known and (
                    isinstance(value, Tensor) or value != known):
                raise TypeError(f"{at(path, name)}: expected {known!r}, which is what load would "
                                f"make, got {value!r}")


def _settings(part: Any) -> dict[str, Any]:
    """Public attributes, and what is learned how."""
    forms = part._forms() if isinstance(part, Recurrent) else ()
    return {"parametrizations": forms} | {name: value for name, value in vars(part).items()
                                          if name[0] != "_"}


# ------------------------------------------------------------------------------ of what is loaded
def _entry(description: Any, name: str, kind: type, where: str) -> Any:
    """A value of a description, of this type."""
    value = description.get(name) if isinstance(description, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{where}.{name}: expected {kind.__name__}, got {short(value)}")
    return value


def _words(description: dict[str, Any], name: str) -> list[str]:
    return _strings(_entry(description, name, list, "description"), name)


def _strings(values: Any, name: str) -> list[str]:
    if type(values) is not list or any(type(value) is not str for value in values):
        raise ValueError(f"description.{name}: expected names, got {short(values)}")
    return values


def _decoded(value: Any, name: str, path: str, saved: _Saved) -> Any:
    where = at(path, name)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:  # per_neuron of format 1
        return _strings(value, name)
    if type(value) is dict and value.keys() == {"tensor"}:
        found = saved.tensors.get(f"arguments.{path}.{name}")
        if found is None:
            raise ValueError(f"{where}: expected a tensor of the file, got none")
        return found
    if type(value) is dict and value.keys() == {"dtype"}:
        return find_dtype(value["dtype"], where)
    forms = _entry(value, "forms", dict, where)
    return {key: "plain" if words == ["plain"] else parse_form(words)
            for key, words in forms.items()}


_SIZES = ("input_size", "hidden_size", "n_regular", "n_adaptive", "n", "output_size",
          "in_features", "out_features")


def _layer(name: str, description: dict[str, Any], path: str, saved: _Saved) -> nn.Module:
    """A layer on the meta device, which takes no memory for weights; its tensors are in the
    file."""
    where, prefix = at(path), f"state.{path}." if path else "state."
    weights = prefix + ("neurons." if name in PARTS else "") + "weight_ih_l"
    layers = next(n for n in count() if f"{weights}{n}" not in saved.tensors)
    given = {key: _decoded(value, key, path, saved)
             for key, value in _entry(description, "arguments", dict, where).items()}
    limits = {**dict.fromkeys(_SIZES, saved.numbers), "num_layers": layers}
    for key in limits.keys() & given.keys():
        if type(given[key]) is not int or not 0 <= given[key] <= limits[key]:
            raise ValueError(f"{where}.{key}: expected a size that the file has tensors for, got "
                             f"{short(given[key])}")
    if name in PARTS and "parts" in description:
        made = LSNN(1, 0, 1, 1, device="meta")  # its parts take the place of these
        made.n_regular, made.n_adaptive = given["n_regular"], given["n_adaptive"]
        return made
    dtype = find_dtype(description.get("dtype"), f"{where}.dtype")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the constructor has warned before
        try:
            layer = KINDS[name][0](**given, dtype=dtype, device="meta")
        except _CHANGED as error:
            raise ValueError(f"{where}: {error}") from error
    for key, value in layer.state_dict().items():
        found = saved.tensors.get(prefix + key)
        if "_extra_state" in key:
            continue
        if found is None or found.shape != value.shape or (
                found.is_floating_point() != value.is_floating_point()):
            got = "none" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise ValueError(f"{at(path, key)}: expected {value.dtype} of shape "
                             f"{tuple(value.shape)}, got {got}")
    return layer


def _built(description: Any, path: str, saved: _Saved) -> nn.Module:
    where = at(path)
    name = _entry(description, "kind", str, where)
    if name not in KINDS and name not in CONTAINERS:
        raise ValueError(f"{where}: expected modules that this version knows, got {short(name)}")
    made = CONTAINERS[name]() if name in CONTAINERS else _layer(name, description, path, saved)
    if "parts" not in description and name not in CONTAINERS:
        return made
    pairs = _entry(description, "parts", list, where)
    if any(type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str for pair in pairs):
        raise ValueError(f"{where}.parts: expected pairs of a name and a module, got "
                         f"{short(pairs)}")
    parts = dict(pairs)
    wanted = PARTS.get(name, {})
    kinds = {key: part.get("kind") if isinstance(part, dict) else None
             for key, part in parts.items()}
    if len(parts) != len(pairs) or name not in CONTAINERS and kinds != wanted:
        raise ValueError(f"{where}.parts: expected {wanted or 'different names'}, got "
                         f"{short([pair[0] for pair in pairs])}")
    for key, part in parts.items():
        made.add_module(key, None if part is None else _built(part, under(path, key), saved))
    return made


def _restored(description: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module of a description, with the tensors of a file."""
    saved = _Saved(tensors, sum(value.numel() for value in tensors.values()))
    module = _built(description.get("module"), "", saved)
    state = {name.removeprefix("state."): value for name, value in tensors.items()
             if name.startswith("state.")}
    module.load_state_dict(state, assign=True)
    if description["format"] > 1:
        _tie(module, description)
    return module


def _tie(module: nn.Module, description: dict[str, Any]) -> None:
    """Makes one what was one object, and sets requires_grad and the mode."""
    paths = dict(walk(description["module"]))
    for group in _entry(description, "one_module", list, "description"):
        first, *others = _strings(group, "one_module")
        for path in others:
            # Equal descriptions are finite, so none of the two modules is inside of the other.
            if path == first or path not in paths or paths[path] != paths.get(first):
                raise ValueError(f"{at(path)}: expected the same module as {at(first)}, got "
                                 f"another")
            parent, _, key = path.rpartition(".")
            module.get_submodule(parent)._modules[key] = module.get_submodule(first)
    named = named_tensors(module)
    for group in _entry(description, "one_tensor", list, "description"):
        first, *others = _strings(group, "one_tensor")
        one = named.get(first)
        for name in others:
            other = named.get(name)
            if one is None or other is None or (type(one), one.dtype, one.shape) != (
                    type(other), other.dtype, other.shape):
                raise ValueError(f"{at(name)}: expected a tensor as {at(first)}, got another")
            parent, _, key = name.rpartition(".")
            part = module.get_submodule(parent)
            known: dict[str, Any] = part._parameters if key in part._parameters else part._buffers
            known[key] = one
    named, modules = named_tensors(module), dict(module.named_modules(remove_duplicate=False))
    learned, still = set(_words(description, "requires_grad")), set(_words(description, "eval"))
    for name in [*(learned - named.keys()), *(still - modules.keys())]:
        raise ValueError(f"{at(name)}: expected a name of the module, got another")
    for name, value in named.items():
        value.requires_grad_(name in learned)
    for name, part in modules.items():
        part.training = name not in still


def load(path: str | Path, device: torch.device | str | None = None) -> nn.Module:
    """The module that save has written.

    Args:
        path: of the file.
        device: where its tensors shall lie. Default the CPU.

    Raises:
        ValueError: a file that save has not written, that was changed since in a way that makes no
            module, or that a newer version has written.
        ImportError: safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            told = (file.metadata() or {}).get(_KEY)
            names = [] if told is None else file.keys()
            # clone: the file may be overwritten
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (safetensors.SafetensorError, *_CHANGED) as error:
        raise ValueError(f"path: expected a file of safetensors, got {path}: {error}") from error
    if told is None:
        raise ValueError(f"path: expected a file that lsnn_ext.save has written, got one "
                         f"without its description: {path}")
    if device is not None:  # but for what is read on the CPU
        tensors = {name: value.to(device) if name.startswith("state.")
                   and not name.endswith("_extra_state") else value
                   for name, value in tensors.items()}
    try:
        description = json.loads(told)
        number = _entry(description, "format", int, "description")
        if not 1 <= number <= _FORMAT:
            raise ValueError(f"expected format {_FORMAT} or older, got {number} of lsnn_ext "
                             f"{description.get('version')!s:.20}")
        return _restored(description, tensors)
    except _CHANGED as error:
        raise ValueError(f"path: expected a file that lsnn_ext.save has written, got {path}: "
                         f"{error}") from error
