"""Modules as descriptions in JSON, from which lsnn_ext.load builds them."""
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from .._core.torch_internals import has_registered_hooks
from ..modules import ALIF, LIF, LSNN, LeakyReadout, Linear
from ..modules.extra_state import describe_learned
from ..modules.parametrizations import find_parametrization

# kind; arguments of the constructor; dtype; parts: pairs of a name and a description or None
Description = dict[str, Any]
_get_class = nn.utils.parametrize.type_before_parametrizations
_DTYPES = {str(dtype).removeprefix("torch."): dtype
           for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_LONGEST = 1000  # characters of a path


def locate(*names: str) -> str:
    """The name of a module or of one of its values in a message."""
    return ".".join(name for name in ("module", *names) if name)


def join_path(path: str, key: str) -> str:
    """The path of a part. Raises ValueError for a long one, since every part copies the keys above
    it."""
    path = f"{path}.{key}" if path else key
    if len(path) > _LONGEST:
        raise ValueError(f"{locate(path):.60}...: expected a path of at most {_LONGEST} "
                         f"characters, got {len(path)}")
    return path


def shorten(value: Any) -> str:
    """A value for a message, in at most 60 characters."""
    return f"{repr(value):.60}"


def name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def find_dtype(name: Any, where: str) -> torch.dtype:
    """The dtype of this name. Raises ValueError for one that parameters cannot have."""
    if type(name) is not str or name not in _DTYPES:
        raise ValueError(f"{where}: expected one of {', '.join(_DTYPES)}, got {shorten(name)}")
    return _DTYPES[name]


def _describe_layer(layer: Any) -> Description:
    """The constructor arguments of a layer of neurons, with the settings changed since."""
    arguments = {
        name: getattr(layer, name) for name in inspect.signature(_get_class(layer)).parameters
        if name not in ("device", "dtype", "learn") and hasattr(layer, name)}
    if isinstance(arguments.get("delay"), Tensor):
        arguments["delay"] = layer._first_delay
    if not layer.recurrent:
        arguments["autapses"] = None
    return {**arguments, **layer._first, "learn": describe_learned(layer)}


def _describe_readout(readout: LeakyReadout) -> Description:
    learned = {"learn": {name: ["log"] for name in readout.learn},
               "per_neuron": readout.per_neuron} if readout.learn else {}
    tau, tau_syn = (readout._initial[name] if name in readout.learn else getattr(readout, name)
                    for name in ("tau", "tau_syn"))
    return {"n": readout.n, "output_size": readout.output_size, "tau": tau, "tau_syn": tau_syn,
            "dt": readout.dt, "bias": readout.bias is not None,
            "batch_first": readout.batch_first, **learned}


def _describe_linear(linear: nn.Linear) -> Description:
    return {"in_features": linear.in_features, "out_features": linear.out_features,
            "bias": linear.bias is not None}


# By the name in the file. Subclasses are refused: they may compute something else.
KINDS: dict[str, tuple[type[nn.Module], Callable[[Any], Description]]] = {
    "ALIF": (ALIF, _describe_layer),
    "LIF": (LIF, _describe_layer),
    "LSNN": (LSNN, lambda network: {"n_regular": network.n_regular,
                                    "n_adaptive": network.n_adaptive}),
    "LeakyReadout": (LeakyReadout, _describe_readout),
    "Linear": (Linear, _describe_linear),
    "torch.nn.Linear": (nn.Linear, _describe_linear),
}
PARTS = {"LSNN": {"neurons": "ALIF", "readout": "LeakyReadout"}}  # described by themselves
CONTAINERS: dict[str, type[nn.Module]] = {
    "torch.nn.Sequential": nn.Sequential, "torch.nn.ModuleList": nn.ModuleList,
    "torch.nn.ModuleDict": nn.ModuleDict,
}


def _encode(value: Any, name: str, path: str, tensors: dict[str, Tensor]) -> Any:
    """An argument for JSON; a tensor is added to tensors."""
    if isinstance(value, Tensor):
        if value.is_meta:
            raise ValueError(f"{locate(path, name)}: expected a tensor with data, got a meta "
                             f"tensor")
        tensors[f"arguments.{path}.{name}"] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": name_dtype(value)}
    if isinstance(value, dict):
        return {"forms": value}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Real):  # NumPy numbers are no int or float
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{locate(path, name)}: expected a number or a string, got "
                    f"{type(value).__name__}")


def check_code(module: nn.Module, where: str) -> None:
    """Raises TypeError for hooks, and for methods that an object replaces, such as its forward."""
    replaced = [name for name in vars(module) if callable(getattr(type(module), name, None))]
    if replaced or has_registered_hooks(module):
        raise TypeError(f"{where}: expected a module without hooks or a replaced "
                        f"{replaced[0] if replaced else 'forward'}, which are code, got one; "
                        f"remove them first")


def _check_plain(module: nn.Module, where: str) -> None:
    """Raises TypeError for what a file cannot hold: code, wrappers, and parametrizations other
    than those of learn=."""
    parts = [*module._modules]
    if parts in (["module"], ["_orig_mod"]) and type(module) not in CONTAINERS.values():
        raise TypeError(f"{where}: expected a module without a wrapper, got "
                        f"{type(module).__name__}; save its .{parts[0]}")
    check_code(module, where)
    if not nn.utils.parametrize.is_parametrized(module):
        return
    ours = {name + suffix for name in getattr(module, "learn", ())
           for suffix in getattr(module, "_suffixes", ("",))}
    for name in module.parametrizations:  # type: ignore[union-attr]
        if name not in ours or find_parametrization(module, name) is None:
            raise TypeError(f"{where}: expected plain parameters, got a parametrized {name}; "
                            f"remove the parametrization first")


def describe(module: nn.Module, path: str, tensors: dict[str, Tensor],
             above: tuple[nn.Module, ...] = ()) -> Description:
    """The description of a module at this path; tensor arguments are added to tensors. Raises
    TypeError for what a description cannot hold, ValueError for a meta tensor and for a module
    inside of itself."""
    if any(module is one for one in above):
        raise ValueError(f"{locate(path)}: expected no module inside of itself, got one")
    if isinstance(module, nn.Module):
        _check_plain(module, locate(path))

    def parts(names: Iterable[str]) -> list[Any]:
        return [[key, None if (part := module._modules[key]) is None else describe(
            part, join_path(path, key), tensors, (*above, module))] for key in names]

    for name, container in CONTAINERS.items():
        if type(module) is container:
            return {"kind": name, "parts": parts(module._modules)}
    for name, (kind, arguments) in KINDS.items():
        if _get_class(module) is not kind:
            continue
        encoded = {key: _encode(value, key, path, tensors)
                   for key, value in arguments(module).items()}
        if name not in PARTS:
            dtype = next(iter(module.state_dict().values())).dtype
            return {"kind": name, "dtype": name_dtype(dtype), "arguments": encoded}
        for key, part_kind in PARTS[name].items():
            part = module._modules.get(key)
            if part is None or _get_class(part) is not KINDS[part_kind][0]:
                raise TypeError(f"{locate(path, key)}: expected {part_kind}, as in any {name}, got "
                                f"{type(part).__name__}")
        return {"kind": name, "arguments": encoded, "parts": parts(PARTS[name])}
    names = ", ".join([*KINDS, *CONTAINERS])
    raise TypeError(f"{locate(path)}: expected one of {names}, got {type(module).__name__}; save "
                    f"the state_dict of other classes")


def name_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one has several names."""
    return dict([*module.named_parameters(remove_duplicate=False),
                 *module.named_buffers(remove_duplicate=False)])


def group_names(named: Mapping[str, object]) -> list[list[str]]:
    """The names of each object that has more than one."""
    found: dict[int, list[str]] = {}
    for name, one in named.items():
        found.setdefault(id(one), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def iterate_parts(description: Description | None,
                  path: str = "") -> Iterator[tuple[str, Description]]:
    """The paths and descriptions of a module and of all its parts."""
    if description is not None:
        yield path, description
        for key, part in description.get("parts", ()):
            yield from iterate_parts(part, join_path(path, key))
