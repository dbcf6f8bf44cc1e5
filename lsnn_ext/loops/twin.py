"""Twin: a copy of a model, whose call is recorded where an Unread takes the place of numbers.

The recorded call is none of the program's: it has the numbers, but no results that the program may
see. What it changes of the copy is dropped, and what it changes of objects that the model shares,
such as globals, is restored and refused. The model itself runs as always.
"""
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .._core.torch_internals import find_storage
from ..codegen.plain import Same, generator_states, set_generator_states
from .ir import Refused
from .origins import Origins
from .paths import ATTRIBUTE, Path, format_path, resolve, set_step
from .snapshot import Snapshot
from .unread import Steps


class Twin:
    """A copy.deepcopy of a converted model.

    Args:
        before: of the model.

    Raises:
        Refused: a model that cannot be copied.
    """

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, before: Origins) -> None:
        self._before, self._model = before, model
        tensors = before.list_tensors()
        storages = list(map(find_storage, tensors))
        # What functions and classes hold, too, such as defaults, is shared.
        copies: dict[int, Any] = {}
        for node in before.snapshot.nodes:
            if isinstance(node.value, (FunctionType, ModuleType, type)):
                for held in node.held.values():
                    parts = [held, *tree_leaves(held)] if isinstance(held, tuple) else [held]
                    copies.update((id(one), one) for one in parts if one is not model)
        for one, storage in zip(tensors, storages, strict=True):
            if one.is_leaf or id(one) in copies:
                continue
            with torch.enable_grad():  # a state with a history has one in the copy, too
                copies[id(one)] = made = one.detach().requires_grad_().clone()
            if storages.count(storage) > 1 or made.stride() != one.stride():
                kind, path = before.find(one) or ("", ())
                name = f"argument {path[0]}" if kind == "input" else format_path(path)
                raise Refused(f"{name}: expected a dense state in memory of its own, for a call "
                              f"with numbers of tensors or counters, got a view; clone() it")
        try:
            self.model, self.args, self.kwargs = copy.deepcopy((model, args, kwargs), copies)
        except Exception as error:
            raise Refused(f"{type(model).__name__}: expected a model that copy.deepcopy copies, "
                          f"got {type(error).__name__}: {error}") from None
        vars(self.model).pop(ATTRIBUTE, None)
        for one in tensors:  # Parameter.__deepcopy__ drops them
            if vars(one) and copies.get(id(one), one) is not one:
                vars(copies[id(one)]).update(copy.deepcopy(vars(one), copies))
        self._copies, self._snapshot = copies, Snapshot(self.model)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the copy, which has its original class meanwhile."""
        kind = type(self.model)
        object.__setattr__(self.model, "__class__", vars(kind)["_lsnn_original"])
        try:
            return self.model.forward(*args, **kwargs)
        finally:
            object.__setattr__(self.model, "__class__", kind)

    def set_unread(self, path: Path, steps: Steps) -> None:
        """Sets an attribute to an Unread. Raises Refused where it is shared with the model."""
        holder = resolve(self.model, path[:-1])
        if holder is resolve(self._model, path[:-1]):
            raise Refused(f"{path[-1][1]}: expected a number of a tensor, or a counter, to be an "
                          f"attribute of the model")
        set_step(holder, path[-1], steps.get(path, resolve(self.model, path)))

    def find_difference(self, after: Origins, codes: set[CodeType] | None) -> Refused | None:
        """Returns why a call of the copy, of functions with these codes, was none of the model."""
        mine = Snapshot(self.model, codes, self._snapshot)
        theirs = Snapshot(self._model, codes, self._before.snapshot)
        for path, held in mine.list_held():
            if self._copies.get(id(held), held) is not held:
                return Refused(f"{format_path(path)}: expected a part of the model only inside of "
                               f"the model, for a call with numbers of tensors or counters")
        one, other = _describe(mine), _describe(theirs)
        for path in one.keys() ^ other.keys() or [key for key in one if one[key] != other[key]]:
            return Refused(f"{format_path(path)}: expected a model that copy.deepcopy copies, for "
                           f"a call with numbers of tensors or counters, got another copy")
        for name in after.list_changes_of(self._before):
            return Refused(f"{name}: expected a call with numbers of tensors or counters to change "
                           f"only attributes of the model")
        return None


def _describe(snapshot: Snapshot) -> dict[Path, Any]:
    """Returns what is at each path, in any order; of objects whose state is out of reach the
    class."""
    paths = [node.path for node in snapshot.nodes]
    tensors = [snapshot.path_of(places[0]) for _, places in snapshot.tensors.values()]
    found: dict[Path, Any] = {}
    for path, (head, parts) in zip(paths, snapshot.description, strict=True):
        found[path] = head
        for step, kind, value, *rest in parts:
            if kind == "tensor":
                value = tensors[value], *rest
            elif kind == "node":
                value = type(value.value) if isinstance(value, Same) else paths[value]
            found[(*path, step)] = kind, value
    return found


@contextmanager
def restored_modes() -> Iterator[None]:
    """Restores generators and settings, which a call that raises may leave changed."""
    states, dtype, errors = generator_states(), torch.get_default_dtype(), np.geterr()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_default_dtype(dtype)
        np.seterr(**errors)
        set_generator_states(states)
