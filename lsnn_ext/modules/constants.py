"""The constants of a layer, buffers or learned Parameters, and the coefficients they determine."""
import copy
import operator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._core.coefficients import Decay, is_plain_eager
from .._core.options import PASSED_TO_NEURONS, NeuronArguments
from .._core.resolve import make_rows
from .._core.torch_internals import is_forward_mode
from ..models import find_model
from .checks import HALF
from .extra_state import before_loading, encode_settings
from .layer_arguments import CheckedArguments
from .neuron import DECAYS, RANGES, Kind, check_range, check_units, make_constant, warn_of_explosion
from .parametrizations import ParametrizedModule, check_start, find_parametrization, make_forms


class Constants(ParametrizedModule):
    """The constants of ALIF and LIF, for each layer and direction; and the types of attributes that
    Recurrent assigns and the files of this folder share."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    recurrent_dropout: float
    bidirectional: bool
    recurrent: bool
    autapses: bool
    checkpoint_every: int | str | None
    saved_dtype: torch.dtype | None
    sparse_grad: str
    dynamics: str
    surrogate: str | None
    dampening: float | None
    surrogate_cutoff: float
    refractory: int
    delay: int | Tensor
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    _suffixes: list[str]  # one for each layer and direction
    _first_delay: Tensor | None  # as the layer was made
    _distinct: tuple[int, ...]  # values of a delay tensor, when it was last read

    # prepared layers, delays seen, coefficients
    _caches = ("_prepared", "_seen", "_seen_there", "_coefficients")
    _kind: ClassVar[Kind]

    def _make_constants(self, arguments: CheckedArguments) -> None:
        """Registers constants without values; reset_parameters fills them."""
        dtype, N, dt = arguments.dtype, self.hidden_size, arguments.dt
        self._neuron, self.dt = tuple(arguments.constants), dt
        forms = make_forms(arguments.options.learn, self._neuron, self._kind, self.dynamics, dt)
        self.learn = tuple(forms)
        each = arguments.select_per_neuron(self.learn)
        # the values for reset_parameters
        self._first = {name: make_constant(name, value, ((), (N,)), dtype)
                       for name, value in arguments.constants.items()}
        check_units(self._first, dt)
        warn_of_explosion(self._first, self.dynamics, dt, arguments.height)
        for name in each:
            self._first[name] = self._first[name].expand(N).clone()
        for name, form in forms.items():
            check_start(name, form, self._first[name])
        for suffix in self._suffixes:
            for name, first in self._first.items():
                data = torch.empty(first.shape, device=arguments.options.device, dtype=dtype)
                if name not in forms:
                    self.register_buffer(name + suffix, data)
                    continue
                self.register_parameter(name + suffix, nn.Parameter(data))
                if (form := forms[name]) is not None:
                    parametrize.register_parametrization(self, name + suffix, copy.deepcopy(form))
        self.register_load_state_dict_pre_hook(before_loading)

    def _class_name(self) -> str:
        return parametrize.type_before_parametrizations(self).__name__

    def _get_recurrent_weight(self, suffix: str) -> Tensor | None:
        """w_rec of equation (1), with its diagonal, or None; the stored matrix is its transpose."""
        return getattr(self, "weight_hh" + suffix).t() if self.recurrent else None

    def _mask_recurrent_weight(self, suffix: str) -> Tensor | None:
        """w_rec of equation (1), its diagonal 0 without autapses, or None."""
        w_rec = self._get_recurrent_weight(suffix)
        if w_rec is None or self.autapses:
            return w_rec
        return w_rec.masked_fill(torch.eye(self.hidden_size, dtype=torch.bool, device=w_rec.device),
                                 0.0)

    def _compute_neuron_arguments(self, suffix: str,
                                  copies: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """Fields of NeuronArguments; copies: tensors by name that replace the stored ones.

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
            check_range(self._class_name(), full, value, RANGES[name], name in self.learn)
            k[name] = value.float() if value.dtype in HALF else value
        arguments: dict[str, Any] = {"theta": k.pop("threshold")}
        for tau, name in DECAYS.items():
            if tau in k:
                decay = Decay(k.pop(tau), self.dt)
                arguments[name] = decay.value() if tau in self.learn else decay
        if self._kind == "LIF" and find_model(self.dynamics).eta:
            arguments["eta"] = 0.0
        return arguments | k | {name: getattr(self, name) for name in PASSED_TO_NEURONS}

    def _cache_neuron_arguments(self, suffix: str, device: torch.device) -> NeuronArguments:
        """The neuron of a call on this device. If no constant is learned or changed, its rows are
        those of the previous call; numbers are compared on the CPU, and read by each call on a
        GPU."""
        sources: list[Any] = [self._buffers.get(name + suffix) for name in self._neuron]
        if not is_plain_eager(device) or is_forward_mode() or not all(
                type(one) in (Tensor, nn.Buffer) and one.device == device
                and one.dtype not in HALF and not one.requires_grad for one in sources):
            return NeuronArguments(**self._compute_neuron_arguments(suffix))
        settings = (self.hidden_size, self.dt, device,
                    *(getattr(self, name) for name in PASSED_TO_NEURONS),
                    *(one.dtype for one in sources))
        cache: dict[str, Any] = self.__dict__.setdefault("_coefficients", {})
        before, objects, numbers, cached = cache.get(suffix, ((), [], [], None))
        if before == settings and all(map(operator.is_, objects, sources)) and all(
                map(torch.equal, numbers, sources)):
            return cached
        neuron = NeuronArguments(**self._compute_neuron_arguments(suffix))
        rows = make_rows(neuron, self.hidden_size, device)
        on_cpu = device.type == "cpu"
        neuron = neuron._replace(rows=rows._replace(stacks={} if on_cpu else None))
        numbers = [one.clone() for one in sources] if on_cpu else []
        cache[suffix] = settings, sources, numbers, neuron
        return neuron

    def _list_forms(self) -> list[tuple[str, Tensor, nn.Module]]:
        """The name, original Parameter and parametrization of constants that have one of ours."""
        return [(name + suffix, *found) for name in self.learn for suffix in self._suffixes
                if (found := find_parametrization(self, name + suffix)) is not None]

    def _find_parameters(self) -> dict[str, Tensor | None]:
        """Parameters by name; a parametrized constant stands for its original Parameter."""
        if "parametrizations" not in self._modules:
            return self._parameters  # type: ignore[return-value]  # read only
        return {**self._parameters, **{name: stored for name, stored, _ in self._list_forms()}}

    def _describe_forms(self) -> tuple[Any, ...]:
        """The parametrizations of learned constants, as tuples to compare."""
        if "parametrizations" not in self._modules:
            return ()
        return tuple((name, type(form), *getattr(form, "ends", ()))
                     for name, _, form in self._list_forms())

    def get_extra_state(self) -> Tensor:
        """Model, version and settings as bytes, for a state dict."""
        return encode_settings(self)

    def set_extra_state(self, state: Any) -> None:
        """A no-op: a hook compares it before loading."""
