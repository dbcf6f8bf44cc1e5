"""Copies, pickles and repr of modules whose constants are parametrized: torch makes a class with
properties for each such module, which neither copy nor pickle knows."""
import copy
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn.utils import parametrize

from .parametrizations import find_parametrization


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


class ParametrizedModule(nn.Module):
    """A module that is copied and pickled with its parametrizations.

    _kept   attributes that follow from the others, such as prepared layers: a copy has none
    """

    _kept: ClassVar[tuple[str, ...]] = ()

    def _plain_state(self) -> dict[str, Any]:
        """Without what is kept: a copy or a pickle is the module alone."""
        return {name: value for name, value in self.__dict__.items() if name not in self._kept}

    def __getstate__(self) -> dict[str, Any]:
        return self._plain_state()

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = parametrize.type_before_parametrizations(self)
        return _new, (kind,), self._plain_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        lists = self._modules.get("parametrizations")
        if not isinstance(lists, nn.ModuleDict):
            return
        # The class with the properties is made for each module anew, by registering something that
        # is then replaced by what was there.
        self._modules = {name: part for name, part in self._modules.items()
                         if name != "parametrizations"}
        self._parameters = dict(self._parameters)
        for name, found in lists.items():
            self.register_parameter(name, nn.Parameter(torch.empty(0)))
            parametrize.register_parametrization(self, name, nn.Identity())
            made: Any = self.parametrizations
            made[name] = found

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        make, arguments, state = self.__reduce_ex__(4)
        replica: Self = make(*arguments)
        memo[id(self)] = replica
        replica.__setstate__(copy.deepcopy(state, memo))
        return replica

    def __repr__(self) -> str:
        """One line, also where constants learn: extra_repr names them and their forms."""
        kind = parametrize.type_before_parametrizations(self)
        lists: Any = self._modules.get("parametrizations") or {}
        if len(self._modules) == bool(lists) and all(
                find_parametrization(self, name) for name in lists):
            return f"{kind.__name__}({self.extra_repr()})"
        return super().__repr__()

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        for name in self._kept:  # they hold the memory that the parameters leave
            self.__dict__.pop(name, None)
        return super()._apply(*arguments, **named)
