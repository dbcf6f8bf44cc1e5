"""The walk through a model: which modules would be replaced, replacing them, and going back."""
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import known
from .copies import duplicate
from .known import Known

_MARK = "_converted_from"


@dataclass
class Found:
    """A module of another package, at all places where the model has it."""

    module: nn.Module
    places: list[tuple[nn.Module | None, str]]  # module that holds it, and by what name; None: root
    names: list[str]
    known: Known | None = None
    new: nn.Module | None = None
    reason: str = ""  # why it is left

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def by_step(self) -> bool:
        return self.known is not None and known.by_step(self.module, self.known)

    @property
    def keeps(self) -> bool:
        """Whether the layer keeps its state from one call to the next."""
        return self.known is not None and self.known.kin in known.KEEPING

    @property
    def time(self) -> int:
        """The axis of steps in inputs and results; -1: each call is a step."""
        return -1 if self.by_step else self.known.time if self.known else 0

    @property
    def spikes(self) -> int:
        """Which of the results are the spikes."""
        return self.known.spikes if self.known else 0

    @property
    def original(self) -> str:
        return known.qualified(type(self.module))


@dataclass
class Plan:
    """What the walk has found."""

    replaced: list[Found] = field(default_factory=list)
    in_loop: list[Found] = field(default_factory=list)  # called by steps, and left in their loops
    refused: list[Found] = field(default_factory=list)


class Kept:
    """The module that another one stands for; no child of it, so that state dicts do not see it.

    A copy has a copy of it, on the parameters of the copy; a pickle has none.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        return Kept(None if self.module is None else duplicate(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (None,)


def plan(model: nn.Module, table: dict[str, Known], steps: bool) -> Plan:
    """Looks at every module; makes what would stand in its place, and changes nothing.

    steps: whether modules of which a call is one step are to be replaced too.
    """
    found: dict[int, Found] = {}
    seen: set[int] = set()

    def visit(holder: nn.Module | None, key: str, name: str, module: nn.Module,
              inside: str) -> None:
        if (entry := found.get(id(module))) is not None:
            entry.places.append((holder, key))
            entry.names.append(name)
            return
        entry = Found(module, [(holder, key)], [name], known.known_as(type(module), table))
        entry.reason = inside if entry.known else known.why_not(module, table) or ""
        if entry.known or entry.reason:
            found[id(module)] = entry
        elif id(module) not in seen:
            seen.add(id(module))
            inside = inside or known.resetting(module)
            for child, part in module._modules.items():
                if part is not None:
                    visit(module, child, f"{name}.{child}".lstrip("."), part, inside)

    visit(None, "", "", model, "")
    held = known.held_elsewhere(model, found)
    made = Plan()
    for entry in found.values():
        if entry.known and not entry.reason:
            _make(entry, held.get(id(entry.module)))
        if entry.new is None:
            made.refused.append(entry)
        elif entry.by_step and not steps:
            made.in_loop.append(entry)
        else:
            made.replaced.append(entry)
    return made


def _make(entry: Found, holder: str | None) -> None:
    """Sets what is to stand in place of a module, or the reason why nothing can."""
    assert entry.known is not None
    if holder is not None:
        entry.reason = f"{holder} holds it too, in a list or dict, where it would stay"
        return
    entry.reason = known.obstacle(entry.module)
    if entry.reason:
        return
    try:
        new = entry.known.ours.from_original(entry.module)
    except known.Refused as refusal:
        entry.reason = str(refusal)
        return
    except (AttributeError, TypeError) as error:
        # their attributes are not what they were in the versions that from_original was written for
        entry.reason = (f"its settings could not be read, as by another version of the package: "
                        f"{type(error).__name__}: {error}")
        return
    entry.new = share(entry.module, new)


def _named(module: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    for name, part in module.named_modules(remove_duplicate=False):
        for key, parameter in part._parameters.items():
            if parameter is not None:
                yield part, key, f"{name}.{key}".lstrip("."), parameter


def attribute(module: Any, name: str) -> Any:
    """What stands behind a name with dots, "" is the module; None where there is nothing."""
    for part in name.split(".") if name else ():
        module = getattr(module, part, None)
    return module


def share(old: nn.Module, new: nn.Module) -> nn.Module:
    """Has the new module take the very Parameters of the old one where they have the same name
    and numbers, so that optimizers, weight tying and what else holds them go on."""
    for part, key, name, parameter in _named(new):
        theirs = attribute(old, name)
        if isinstance(theirs, nn.Parameter) and same(theirs, parameter):
            part._parameters[key] = theirs
    _order(old, new)
    new.train(old.training)
    new.__dict__[_MARK] = Kept(old)
    return new


def _order(old: nn.Module, new: nn.Module) -> None:
    """Has the new module name its parts in the order of the old one: states of optimizers know
    parameters by their number alone."""
    for kind in ("_parameters", "_buffers", "_modules"):
        theirs, ours = getattr(old, kind), getattr(new, kind)
        parts = {name: ours[name] for name in [*theirs, *ours] if name in ours}
        ours.clear()
        ours.update(parts)
    for name, part in new._modules.items():
        other = old._modules.get(name)
        if part is not None and other is not None and part is not other:
            _order(other, part)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same form and numbers."""
    return (one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
            and torch.equal(one, other))


def replace(model: nn.Module, entries: list[Found]) -> nn.Module:
    """Puts the new modules in place of the old ones, at all their places; returns the model."""
    for entry in entries:
        for holder, key in entry.places:
            assert entry.new is not None
            if holder is None:
                model = entry.new
            else:
                holder._modules[key] = entry.new
    _forget_resets(model)
    return model


def _forget_resets(model: nn.Module) -> None:
    """SpikingJelly remembers which modules of a model it is to reset; they are others now."""
    package = sys.modules.get("spikingjelly.activation_based.functional")
    forget = getattr(package, "invalidate_reset_cache", None)
    if forget is not None:
        for module in model.modules():
            forget(module)


def converted(model: nn.Module) -> dict[str, tuple[nn.Module, Kept]]:
    """What stands for another package's module, by its name, with that module."""
    return {name: (module, vars(module)[_MARK]) for name, module in model.named_modules()
            if _MARK in vars(module)}


def go_back(model: nn.Module) -> nn.Module:
    """Puts the modules of the other package back, with the parameters of those that stood for
    them; changes nothing where one has no place there."""
    found = converted(model)
    for name, (module, kept) in found.items():
        if kept.module is None:
            raise RuntimeError(f"{name or 'model'}: expected the original beside it, got a module "
                               f"that was pickled, which leaves it out; make the original model, "
                               f"and load the state dict")
        for _, _, own, _ in _named(module):
            if attribute(kept.module, own) is None:
                raise RuntimeError(f"{name or 'model'}: expected parameters that "
                                   f"{type(kept.module).__name__} has too, got {own}")
    entries = {id(module): Found(module, [], [name], new=kept.module)
               for name, (module, kept) in found.items()}
    for holder in list(model.modules()):
        for key, part in holder._modules.items():
            if id(part) in entries:
                entries[id(part)].places.append((holder, key))
    if id(model) in entries:
        entries[id(model)].places.append((None, ""))
    for module, kept in found.values():
        assert kept.module is not None
        _hand_over(module, kept.module)
    return replace(model, list(entries.values()))


def _hand_over(module: nn.Module, old: nn.Module) -> None:
    """Gives the old module the parameters and the state of the one that stood for it."""
    with torch.no_grad():
        for _, _, name, parameter in _named(module):
            path, _, key = name.rpartition(".")
            holder = attribute(old, path)
            if isinstance(getattr(holder, key), nn.Parameter) and isinstance(holder, nn.Module):
                holder._parameters[key] = parameter
            else:
                getattr(holder, key).copy_(parameter)
    first = next(module.parameters(), None)
    if first is not None:
        old.to(device=first.device, dtype=first.dtype)
    old.train(module.training)
    for name, part in old.named_modules():
        twin = attribute(module, name)
        if twin is None or twin is part:
            continue
        memories = vars(part).get("_memories")
        kept = {key: part.__dict__ for key, value in vars(part).items()
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)}
        kept |= dict.fromkeys(part._buffers, part._buffers)
        kept |= dict.fromkeys(memories, memories) if isinstance(memories, dict) else {}
        for key, where in kept.items():
            if hasattr(twin, key):
                value = getattr(twin, key)
                where[key] = value.detach().clone() if isinstance(value, Tensor) else value
