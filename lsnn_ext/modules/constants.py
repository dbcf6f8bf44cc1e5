"""The constants of the neurons of a layer: buffers, or Parameters that are learned without bounds;
how they become coefficients, how they are copied, saved and loaded."""
import copy
import operator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._core.coefficients import Decay
from .._core.options import PASSED_TO_NEURONS, NeuronArguments
from .._core.resolve import rows_of
from .._core.rows import is_plain_eager
from .._core.state import State
from .._core.torch_internals import is_forward_mode
from ..models import named_model
from .checks import HALF
from .extra_state import encode_settings, register_loading
from .layer import Layer
from .layer_arguments import CheckedArguments
from .neuron import DECAYS, RANGES, Kind, check_units, constant, hold_range, put, warn_of_explosion
from .parametrizations import check_start, fill_parameter, find_parametrization, make_forms


class Constants(Layer):
    """What the neurons of ALIF and LIF are, layer by layer and direction by direction."""

    # prepared layers, delays seen, coefficients
    _caches = ("_prepared", "_seen", "_seen_there", "_coefficients")
    _kind: ClassVar[Kind]

    def _make_constants(self, arguments: CheckedArguments) -> None:
        """Registers them, without values; reset_parameters fills them."""
        dtype, N, dt = arguments.dtype, self.hidden_size, arguments.dt
        self._neuron, self.dt = tuple(arguments.constants), dt
        forms = make_forms(arguments.given.learn, self._neuron, self._kind, self.dynamics, dt)
        self.learn = tuple(forms)
        each = arguments.select_per_neuron(self.learn)
        # What reset_parameters gives the neurons again.
        self._first = {name: constant(name, value, ((), (N,)), dtype)
                       for name, value in arguments.constants.items()}
        check_units(self._first, dt)
        warn_of_explosion(self._first, self.dynamics, dt, arguments.height)
        for name in each:
            self._first[name] = self._first[name].expand(N).clone()
        for name, form in forms.items():
            check_start(name, form, self._first[name])
        for suffix in self._suffixes:
            for name, first in self._first.items():
                data = torch.empty(first.shape, device=arguments.given.device, dtype=dtype)
                if name not in forms:
                    self.register_buffer(name + suffix, data)
                    continue
                self.register_parameter(name + suffix, nn.Parameter(data))
                form = forms[name]
                if form is not None:
                    parametrize.register_parametrization(self, name + suffix, copy.deepcopy(form))
        register_loading(self)

    def _reset_constants(self, suffix: str) -> None:
        for name, first in self._first.items():
            fill_parameter(self, name + suffix, partial(put, name, value=first))

    def _class_name(self) -> str:
        """The name of its class, as it was made."""
        return parametrize.type_before_parametrizations(self).__name__

    def _all_recurrent(self, suffix: str) -> Tensor | None:
        """w_rec of equation (1): the stored matrix is output-major as in nn.LSTM. Without autapses
        its diagonal does not act."""
        return getattr(self, "weight_hh" + suffix).t() if self.recurrent else None

    def _recurrent_weight(self, suffix: str) -> Tensor | None:
        """The same with 0 for what does not act."""
        w_rec = self._all_recurrent(suffix)
        if w_rec is None or self.autapses:
            return w_rec
        return w_rec.masked_fill(torch.eye(self.hidden_size, dtype=torch.bool, device=w_rec.device),
                                 0.0)

    def _neuron_arguments(self, suffix: str,
                          copies: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """Fields of NeuronArguments; copies: what to take in place of what is stored.

        alpha = exp(-dt / tau_mem) and rho = exp(-dt / tau_adapt) of equations (5) and (3), theta
        and beta of (4).
        """
        k: dict[str, Tensor] = {}
        for name in self._neuron:
            full = name + suffix
            stored = None if copies is None else copies.get(full)
            if stored is None:
                value = getattr(self, full)
            else:
                found = find_parametrization(self, full)
                value = stored if found is None else found[1](stored)
            hold_range(self._class_name(), full, value, RANGES[name], name in self.learn)
            k[name] = value.float() if value.dtype in HALF else value
        given: dict[str, Any] = {"theta": k.pop("threshold")}
        for tau, name in DECAYS.items():
            if tau in k:
                decay = Decay(k.pop(tau), self.dt)
                given[name] = decay.value() if tau in self.learn else decay
        if self._kind == "LIF" and named_model(self.dynamics).eta:
            given["eta"] = 0.0
        return given | k | {name: getattr(self, name) for name in PASSED_TO_NEURONS}

    def _kept_neuron(self, suffix: str, device: torch.device) -> NeuronArguments:
        """The neuron of a call on this device. Its coefficients are those of the call before where
        nothing learns and the numbers are the same, which on the CPU are compared; on a GPU the
        kernels read them at each call."""
        if self.learn or "parametrizations" in self._modules:
            return NeuronArguments(**self._neuron_arguments(suffix))
        sources: list[Any] = [self._buffers.get(name + suffix) for name in self._neuron]
        if not is_plain_eager(device) or is_forward_mode() or not all(
                type(one) in (Tensor, nn.Buffer) and one.device == device
                and one.dtype not in HALF and not one.requires_grad for one in sources):
            return NeuronArguments(**self._neuron_arguments(suffix))
        settings = (self.hidden_size, self.dt, device,
                    *(getattr(self, name) for name in PASSED_TO_NEURONS),
                    *(one.dtype for one in sources))
        everything: dict[str, Any] = self.__dict__.setdefault("_coefficients", {})
        known = everything.get(suffix)
        if known is not None:
            before, objects, numbers, made = known
            if before == settings and all(map(operator.is_, objects, sources)) and all(
                    map(torch.equal, numbers, sources)):
                unchanged: NeuronArguments = made
                return unchanged
        neuron = NeuronArguments(**self._neuron_arguments(suffix))
        rows = rows_of(neuron, self.hidden_size, device)
        on_cpu = device.type == "cpu"
        neuron = neuron._replace(rows=rows._replace(stacks={} if on_cpu else None))
        numbers = [one.clone() for one in sources] if on_cpu else []
        everything[suffix] = settings, sources, numbers, neuron
        return neuron

    def _stored(self) -> dict[str, Tensor | None]:
        """Parameters by the name of what is computed of them, buffers apart."""
        if "parametrizations" not in self._modules:
            return self._parameters  # type: ignore[return-value]  # it is not changed
        found: dict[str, Tensor | None] = dict(self._parameters)
        for name in self.learn:
            for suffix in self._suffixes:
                one = find_parametrization(self, name + suffix)
                if one is not None:
                    found[name + suffix] = one[0]
        return found

    def _forms(self) -> tuple[Any, ...]:
        """How what learns is computed of what is stored, as numbers that can be compared."""
        if "parametrizations" not in self._modules:
            return ()
        return tuple((name + suffix, type(found[1]), *getattr(found[1], "ends", ()))
                     for name in self.learn for suffix in self._suffixes
                     if (found := find_parametrization(self, name + suffix)) is not None)

    def get_extra_state(self) -> Tensor:
        """What a state dict says beside the numbers: model and version, as bytes."""
        return encode_settings(self)

    def set_extra_state(self, state: Any) -> None:
        """Nothing: it was compared before anything was loaded."""


def state_after(leaves: list[State]) -> State:
    """The states of all layers and directions as one."""
    if len(leaves) == 1:
        return State(*(leaf.unsqueeze(0) for leaf in leaves[0]))
    return State(*(torch.stack(parts) for parts in zip(*leaves, strict=True)))
