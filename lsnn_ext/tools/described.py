"""Modules as descriptions in JSON, from which lsnn_ext.load makes them again."""
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from .._core.torch_internals import has_registered_hooks
from ..modules import ALIF, LIF, LSNN, LeakyReadout, Linear
from ..modules.parametrizations import describe_form, find_parametrization

# kind; arguments of the constructor; dtype; parts: pairs of a name and a description or None
Description = dict[str, Any]
_before = nn.utils.parametrize.type_before_parametrizations
_DTYPES = {str(dtype).removeprefix("torch."): dtype
           for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_LONGEST = 1000  # letters of a path


def at(*names: str) -> str:
    """A module or one of its values, as messages name it."""
    return ".".join(name for name in ("module", *names) if name)


def under(path: str, key: str) -> str:
    """The path of a part. Raises ValueError for a long one: every part copies the keys above it."""
    path = f"{path}.{key}" if path else key
    if len(path) > _LONGEST:
        raise ValueError(f"{at(path):.60}...: expected a path of at most {_LONGEST} letters, got "
                         f"{len(path)}")
    return path


def short(value: Any) -> str:
    """A value in a message."""
    return f"{repr(value):.60}"


def name_dtype(dtype: torch.dtype) -> str:
    """The name of a dtype in a file or graph."""
    return str(dtype).removeprefix("torch.")


def find_dtype(name: Any, where: str) -> torch.dtype:
    """The dtype of a name. Raises ValueError for all but those that parameters can have."""
    if type(name) is not str or name not in _DTYPES:
        raise ValueError(f"{where}: expected one of {', '.join(_DTYPES)}, got {short(name)}")
    return _DTYPES[name]


def _of_layer(layer: Any) -> Description:
    """The arguments that a layer of neurons was made with, and what has been set since."""
    given = {name: getattr(layer, name) for name in inspect.signature(_before(layer)).parameters
             if name not in ("device", "dtype", "learn") and hasattr(layer, name)}
    if isinstance(given.get("delay"), Tensor):
        given["delay"] = layer._first_delay
    if not layer.recurrent:
        given["autapses"] = None
    forms = {}
    for name in layer.learn:
        found = find_parametrization(layer, name + layer._suffixes[0])
        forms[name] = describe_form(None if found is None else found[1])
    return {**given, **layer._first, "learn": forms}


def _of_lsnn(network: LSNN) -> Description:
    return {"n_regular": network.n_regular, "n_adaptive": network.n_adaptive}


def _of_readout(readout: LeakyReadout) -> Description:
    learned = {"learn": {name: ["log"] for name in readout.learn},
               "per_neuron": readout.per_neuron} if readout.learn else {}
    tau, tau_syn = (readout._given[name] if name in readout.learn else getattr(readout, name)
                    for name in ("tau", "tau_syn"))
    synapse = {} if tau_syn is None else {"tau_syn": tau_syn}  # older versions read files without
    return {"n": readout.n, "output_size": readout.output_size, "tau": tau, "dt": readout.dt,
            "bias": readout.bias is not None, "batch_first": readout.batch_first, **learned,
            **synapse}


def _of_linear(linear: nn.Linear) -> Description:
    return {"in_features": linear.in_features, "out_features": linear.out_features,
            "bias": linear.bias is not None}


# By the name in the file; a class stands for itself only, since a subclass may compute otherwise.
KINDS: dict[str, tuple[type[nn.Module], Callable[[Any], Description]]] = {
    "ALIF": (ALIF, _of_layer),
    "LIF": (LIF, _of_layer),
    "LSNN": (LSNN, _of_lsnn),
    "LeakyReadout": (LeakyReadout, _of_readout),
    "Linear": (Linear, _of_linear),
    "torch.nn.Linear": (nn.Linear, _of_linear),
}
PARTS = {"LSNN": {"neurons": "ALIF", "readout": "LeakyReadout"}}  # described by themselves
CONTAINERS: dict[str, type[nn.Module]] = {
    "torch.nn.Sequential": nn.Sequential, "torch.nn.ModuleList": nn.ModuleList,
    "torch.nn.ModuleDict": nn.ModuleDict,
}


def _coded(value: Any, name: str, path: str, tensors: dict[str, Tensor]) -> Any:
    """An argument in JSON; a tensor goes to tensors."""
    if isinstance(value, Tensor):
        if value.is_meta:
            raise ValueError(f"{at(path, name)}: expected numbers, got a meta tensor, which has "
                             f"none")
        tensors[f"arguments.{path}.{name}"] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": name_dtype(value)}
    if isinstance(value, dict):
        return {"forms": value}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Real):  # numbers of numpy are no int or float
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{at(path, name)}: expected a number or a word, got {type(value).__name__}")


def check_code(module: nn.Module, where: str) -> None:
    """Raises TypeError for hooks and for methods of the object itself, such as its forward."""
    own = [name for name in vars(module) if callable(getattr(type(module), name, None))]
    if own or has_registered_hooks(module):
        raise TypeError(f"{where}: expected a module without hooks and without a "
                        f"{own[0] if own else 'forward'} of its own, which are code; remove them "
                        f"first")


def _check_plain(module: nn.Module, where: str) -> None:
    """Raises TypeError for what would be lost: code, a wrapper, and parametrizations other than
    those of learn=."""
    parts = [*module._modules]
    if parts in (["module"], ["_orig_mod"]) and type(module) not in CONTAINERS.values():
        raise TypeError(f"{where}: expected a module that nothing wraps, got "
                        f"{type(module).__name__}; save its .{parts[0]}")
    check_code(module, where)
    if not nn.utils.parametrize.is_parametrized(module):
        return
    own = {name + suffix for name in getattr(module, "learn", ())
           for suffix in getattr(module, "_suffixes", ("",))}
    for name in module.parametrizations:  # type: ignore[union-attr]
        if name not in own or find_parametrization(module, name) is None:
            raise TypeError(f"{where}: expected plain parameters, got a parametrized {name}; "
                            f"remove the parametrization first")


def describe(module: nn.Module, path: str, tensors: dict[str, Tensor],
             above: tuple[nn.Module, ...] = ()) -> Description:
    """The description of a module at this path; tensors among its arguments go to tensors.

    Raises TypeError for what a description cannot hold, ValueError for a meta tensor and for a
    module inside of itself.
    """
    if any(module is one for one in above):
        raise ValueError(f"{at(path)}: expected no module inside of itself, got one")
    if isinstance(module, nn.Module):
        _check_plain(module, at(path))

    def parts(names: Iterable[str]) -> list[Any]:
        found = {key: module._modules[key] for key in names}
        return [[key, None if part is None else describe(part, under(path, key), tensors,
                                                         (*above, module))]
                for key, part in found.items()]

    for name, container in CONTAINERS.items():
        if type(module) is container:
            return {"kind": name, "parts": parts(module._modules)}
    for name, (kind, arguments) in KINDS.items():
        if _before(module) is not kind:
            continue
        given = {key: _coded(value, key, path, tensors) for key, value in arguments(module).items()}
        if name not in PARTS:
            dtype = next(iter(module.state_dict().values())).dtype
            return {"kind": name, "dtype": name_dtype(dtype), "arguments": given}
        for key, wanted in PARTS[name].items():
            part = module._modules.get(key)
            if part is None or _before(part) is not KINDS[wanted][0]:
                raise TypeError(f"{at(path, key)}: expected {wanted}, as in any {name}, got "
                                f"{type(part).__name__}")
        return {"kind": name, "arguments": given, "parts": parts(PARTS[name])}
    known = ", ".join([*KINDS, *CONTAINERS])
    raise TypeError(f"{at(path)}: expected one of {known}, got {type(module).__name__}; save the "
                    f"state_dict of a class of your own")


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names, several names of one that is tied."""
    return dict([*module.named_parameters(remove_duplicate=False),
                 *module.named_buffers(remove_duplicate=False)])


def groups(named: Mapping[str, object]) -> list[list[str]]:
    """The names of each object that has several."""
    found: dict[int, list[str]] = {}
    for name, one in named.items():
        found.setdefault(id(one), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def walk(description: Description | None, path: str = "") -> Iterator[tuple[str, Description]]:
    """All descriptions within one, by their paths."""
    if description is not None:
        yield path, description
        for key, part in description.get("parts", ()):
            yield from walk(part, under(path, key))
