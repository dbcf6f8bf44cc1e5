"""The Linears of a model that are given sequences of spikes: lsnn_ext.Linear takes those by events,
and stands for torch's."""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .. import modules
from .._original import watched
from . import known, trial
from .copies import duplicate
from .tree import Found, Plan, share
from .trial import Given

_OWN = "training", "in_features", "out_features"  # attributes of a Linear of torch
TIME_AND_BATCH = 2  # axes before that of the features; with less there is nothing to gain


def taking_spikes(model: nn.Module, given: Given, plan: Plan) -> list[str]:
    """Names of the Linears of torch outside of all spiking layers that are given sequences of 0 and
    1, and nothing else, when the model runs on a copy of it."""
    layers = {id(part) for entry in (*plan.replaced, *plan.in_loop, *plan.refused)
              for part in entry.module.modules()}
    candidates = {name: part for name, part in model.named_modules()
                  if _is_plain(part) and id(part) not in layers}
    held = known.held_elsewhere(model, {id(part): part for part in candidates.values()})
    candidates = {name: part for name, part in candidates.items() if id(part) not in held}
    if not candidates:
        return []
    few = duplicate(model)
    found: dict[str, bool] = {}

    def looks(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = found.get(name, True) and bool(args) and _spikes(args[0])

        return hook

    for name in candidates:
        few.get_submodule(name).register_forward_pre_hook(looks(name))
    trial.run(few, given, {}, backward=False)
    return [name for name, only in found.items() if only]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a Linear of torch with what torch gives it and no more: what a model has
    hung on it would be missing."""
    return (type(module) is nn.Linear and not watched(module)
            and not module._buffers and not module._modules
            and all(name.startswith("_") or name in _OWN for name in vars(module)))


def _spikes(x: Tensor) -> bool:
    return (x.dim() > TIME_AND_BATCH and bool(((x == 0) | (x == 1)).all()))


def entries(model: nn.Module, names: Iterable[str]) -> list[Found]:
    """What would stand for the Linears of these names, at all places where the model has them."""
    found = {id(module): Found(module, [], []) for module in map(model.get_submodule, names)}
    for name, holder in model.named_modules():
        for key, part in holder._modules.items():
            if part is not None and id(part) in found:
                found[id(part)].places.append((holder, key))
                found[id(part)].names.append(f"{name}.{key}".lstrip("."))
    for entry in found.values():
        entry.new = share(entry.module, _like(entry.module))
    return list(found.values())


def _like(module: nn.Module) -> modules.Linear:
    """On the very parameters of torch's."""
    assert isinstance(module, nn.Linear)
    new = modules.Linear(module.in_features, module.out_features, module.bias is not None,
                         device=torch.device("meta"))
    new._parameters.update(module._parameters)
    return new
