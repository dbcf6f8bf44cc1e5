"""Recurrent: a layer of neurons of any step, called as nn.LSTM is."""
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import functional
from .._core.coefficients import Coefficient
from .._core.lengths import LengthsArgument
from ..codegen.neuron import Neuron, check_coefficient
from ..functional import NeuronState, PackedSpikes
from ..models import check_sparse_grad
from . import checks
from .delays import read_delay, reset_delay, set_delay
from .extra_state import KEY, decode, encode, list_settings, warn_of_differences
from .neuron import format_value, write_constant
from .packed import to_time_first
from .parametrizations import Log, ParametrizedModule, fill_parameter
from .recurrent import Sequence
from .recurrent_dropout import check_dropout, drop_synapses, refuse_steps


class Recurrent(ParametrizedModule):
    """Recurrent neurons whose step is written in PyTorch.

    Args:
        neuron: lsnn_ext.Neuron(step).
        input_size, hidden_size, bias, batch_first: as in nn.LSTM; without bias by default.
        learn: names of coefficients that become Parameters, of the shape that is given: a number
            for all neurons, or (N,); for a state with an axis also (1, size) or (N, size).
        positive: names of coefficients that are learned as their logarithm, so that they stay > 0;
            their Parameter is parametrizations.NAME.original.
        delay: extra delay in steps on top of the one step that every spike takes: an int, or
            integers (N, N), with several currents also (K, N, N), from neuron j to neuron n.
        autapses: False: the diagonals of weight_hh_l0 act as 0.
        recurrent: False: no recurrent weights.
        recurrent_dropout: as of ALIF.
        checkpoint_every, sparse_grad: as of functional.recurrent.
        dtype, device: of parameters and buffers.
        **coefficients: of the step, numbers or tensors, as of functional.recurrent. Those that are
            not learned: numbers stay numbers, tensors become buffers. Default: that of the step.

    Parameters, named as in nn.LSTM: weight_ih_l0 (N, I), weight_hh_l0 (N, N) with the target neuron
    first, bias_ih_l0 (N,); for a neuron of K > 1 currents with K in front. Coefficients have the
    names that the step gives them.

    Raises:
        TypeError, ValueError: an argument of a wrong kind or range, or a coefficient without a
            value; the message names it.

    Example:
        >>> layer = lsnn_ext.Recurrent(neuron, 80, 220, learn=("tau",), tau=20.0)
        >>> spikes, state = layer(x)
    """

    _caches: ClassVar[tuple[str, ...]] = ("_seen", "_seen_there")
    delay: int | Tensor
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    def __init__(self, neuron: Neuron, input_size: int, hidden_size: int, *,
                 learn: str | Iterable[str] = (), positive: str | Iterable[str] = (),
                 bias: bool = False, delay: int | Tensor = 0, autapses: bool = True,
                 batch_first: bool = False, checkpoint_every: int | str | None = None,
                 sparse_grad: str = "all", recurrent: bool = True, recurrent_dropout: float = 0.0,
                 dtype: torch.dtype | None = None, device: torch.device | str | None = None,
                 **coefficients: Coefficient) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise TypeError(f"neuron: expected a Neuron, got {type(neuron).__name__}; "
                            f"lsnn_ext.Neuron(step) makes one")
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            checks.check_whole_number(name, size, 1)
        checks.check_flags(bias=bias, autapses=autapses, batch_first=batch_first,
                           recurrent=recurrent)
        check_sparse_grad(sparse_grad)
        check_dropout(recurrent_dropout, recurrent)
        if not recurrent and (isinstance(delay, Tensor) or delay):
            raise ValueError("delay: expected 0 with recurrent=False, got delays of recurrent "
                             "spikes")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating point dtype, got {dtype}")
        self.neuron, self.input_size, self.hidden_size = neuron, input_size, hidden_size
        self.bias, self.autapses, self.batch_first = bias, autapses, batch_first
        self.checkpoint_every, self.sparse_grad = checkpoint_every, sparse_grad
        self.recurrent, self.recurrent_dropout = recurrent, recurrent_dropout
        self.positive = _check_names("positive", positive, neuron)
        self.learn = tuple(dict.fromkeys((*_check_names("learn", learn, neuron), *self.positive)))
        self._make_coefficients(coefficients, dtype, device)
        set_delay(self, delay, device, len(self._currents))
        several = (len(self._currents),) if len(self._currents) > 1 else ()
        shapes = {"weight_ih_l0": (*several, hidden_size, input_size)}
        if recurrent:
            shapes["weight_hh_l0"] = (*several, hidden_size, hidden_size)
        if bias:
            shapes["bias_ih_l0"] = (*several, hidden_size)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device,
                                                                   dtype=dtype)))
        self.register_load_state_dict_pre_hook(_before_loading)
        self.reset_parameters()

    def _make_coefficients(self, given: dict[str, Coefficient], dtype: torch.dtype,
                           device: torch.device | str | None) -> None:
        """Sets numbers as attributes and registers tensors, which reset_parameters fills."""
        N, neuron = self.hidden_size, self.neuron
        values = neuron.all_coefficients(given)
        self._first: dict[str, Tensor] = {}  # the values for reset_parameters
        for name, value in values.items():
            check_coefficient(name, value)
            if hasattr(self, name):
                raise TypeError(f"step: expected another name for the coefficient {name}, which "
                                f"every module has as an attribute")
            if name not in self.learn and not isinstance(value, Tensor):
                setattr(self, name, value)
                continue
            first = _make_initial(name, value, N, name in self.positive, set(neuron.axes.values()))
            self._first[name] = first
            of = dtype.to_complex() if first.is_complex() else dtype
            data = torch.empty(first.shape, device=device, dtype=of)
            if name not in self.learn:
                self.register_buffer(name, data)
                continue
            self.register_parameter(name, nn.Parameter(data))
            if name in self.positive:
                parametrize.register_parametrization(self, name, Log())
        like = torch.empty(0, dtype=torch.promote_types(dtype, torch.float32), device="cpu")
        for name, first in self._first.items():
            if not first.is_meta:
                of = like.dtype.to_complex() if first.is_complex() else like.dtype
                values[name] = first.to(of)
        self._currents = neuron.parts(values, like, N).currents

    def reset_parameters(self) -> None:
        """Draws weights from N(0, 1) / sqrt(fan in); sets biases to 0, and coefficients and delays
        to those of the constructor."""
        with torch.no_grad():
            for name in ("weight_ih_l0", "weight_hh_l0") if self.recurrent else ("weight_ih_l0",):
                fill_parameter(self, name,
                               lambda weight: weight.normal_(0, 1 / math.sqrt(weight.shape[-1])))
            if self.bias:
                fill_parameter(self, "bias_ih_l0", Tensor.zero_)
            for name, first in self._first.items():
                fill_parameter(self, name, partial(write_constant, name, value=first))
            reset_delay(self)

    def forward(self, x: Sequence, state: NeuronState | None = None, *,
                lengths: LengthsArgument | None = None, trace: bool = False) -> tuple[Any, ...]:
        """Runs a whole sequence.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence; of the
                parameters' dtype, float16 or bfloat16; bool and uint8 are converted to the
                parameters' dtype. Or PackedSpikes (T, B, I), not with batch_first.
            state: NeuronState of states (B, N) and z (D, B, N), without B if unbatched. Default
                zeros.
            lengths: (B,) steps of each sequence of a padded batch, as of functional.recurrent.
            trace: also return the states of every step.

        Returns:
            spikes as x with N in place of I, the state after the last step, and with trace=True a
            dict of the states at every step, of the form of spikes.

        Raises:
            TypeError, ValueError: as functional.recurrent.
        """
        x = checks.convert_input(x, self._dtype, self.batch_first)
        checks.check_lengths(x, lengths, self.batch_first)
        checks.check_sequence(x, self.batch_first, self.input_size, self._dtype())
        is_batch = not isinstance(x, Tensor) or x.dim() == 3
        sequence, lengths, restore = to_time_first(x, lengths, self.batch_first)
        if not is_batch and isinstance(state, NeuronState):  # else an error is raised later
            states = {name: leaf.unsqueeze(0) for name, leaf in state.states.items()}
            state = NeuronState(states, state.z.unsqueeze(-2))
        spikes, state, *traces = self._run(sequence, state, lengths, trace)
        if not is_batch:
            state = NeuronState({name: leaf.squeeze(0) for name, leaf in state.states.items()},
                                state.z.squeeze(-2))
        return (restore(spikes), state,
                *({name: restore(value) for name, value in one.items()} for one in traces))

    def step(self, x_t: Tensor, state: NeuronState | None = None) -> tuple[Tensor, NeuronState]:
        """Runs one step, for control loops; bitwise identical to forward on one step.

        Args:
            x_t: (B, I) or (I,).
            state: as in forward. Default None: zeros.

        Returns:
            spikes (B, N) or (N,), and the NeuronState after the step.

        Raises:
            TypeError, ValueError: as forward.
        """
        refuse_steps(self)
        checks.check_tensor("x_t", x_t)
        return checks.step_by_sequence(self, self.batch_first, x_t, state)

    def _run(self, x: Tensor | PackedSpikes, state: NeuronState | None,
             lengths: LengthsArgument | None, trace: bool) -> tuple[Any, ...]:
        """A call with x (T, B, I), and results of this form."""
        like = x.carrier if isinstance(x, PackedSpikes) else x
        self._check_batch(state, like)
        weight, bias = checks.cast_weights(like, self.weight_ih_l0,
                                           getattr(self, "bias_ih_l0", None))
        w_rec = self.weight_hh_l0.transpose(-1, -2) if self.recurrent else None
        w_rec, mask = drop_synapses(self, w_rec, like)
        coefficients = {name: getattr(self, name) for name in self.neuron.coefficients}
        return functional.recurrent(
            x, w_rec, self.neuron, w_in=weight, bias=bias, delay=read_delay(self),
            recurrent_mask=mask, state=state, trace=trace, checkpoint_every=self.checkpoint_every,
            sparse_grad=self.sparse_grad, lengths=lengths, autapses=self.autapses, **coefficients)

    def _check_batch(self, state: NeuronState | None, x: Tensor) -> None:
        """Raises ValueError if the batch and steps of x seem to be swapped."""
        z = getattr(state, "z", None)
        if isinstance(z, Tensor) and z.dim() == 3:
            shape = (x.shape[1], self.hidden_size)
            seen = x.transpose(0, 1) if self.batch_first else x
            hint = checks.hint_batch_first(tuple(z.shape[1:2]), shape[:1], seen, self.batch_first)
            if hint:
                raise ValueError(f"state.z: expected shape (D, {shape[0]}, {shape[1]}), got "
                                 f"{tuple(z.shape)}{hint}")

    def _dtype(self) -> torch.dtype:
        return self.weight_ih_l0.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Applies a change of dtype to the real and imaginary parts of complex tensors."""
        def change(tensor: Tensor) -> Any:
            if not tensor.is_complex():
                return fn(tensor)
            return torch.view_as_complex(fn(torch.view_as_real(tensor)))

        return super()._apply(change, recurse)

    def extra_repr(self) -> str:
        """Neuron and sizes, then all that differs from the defaults."""
        parts = [repr(self.neuron), str(self.input_size), str(self.hidden_size)]
        for name, value in (("learn", tuple(n for n in self.learn if n not in self.positive)),
                            ("positive", self.positive)):
            parts += [f"{name}={value}"] if value else []
        defaults = {"bias": False, "delay": 0, "autapses": True, "batch_first": False,
                    "checkpoint_every": None, "sparse_grad": "all", "recurrent": True,
                    "recurrent_dropout": 0.0}
        for name, default in {**defaults, **self.neuron.coefficients}.items():
            value = getattr(self, name)
            if isinstance(value, Tensor) or value != default:
                parts.append(f"{name}={format_value(value)}")
        return ", ".join(parts)

    def get_extra_state(self) -> Tensor:
        """The settings as bytes, for a state dict."""
        return encode(self._describe_settings())

    def set_extra_state(self, state: Any) -> None:
        """A no-op: a hook compares it before loading."""

    def _describe_settings(self) -> dict[str, Any]:
        numbers = [name for name in self.neuron.coefficients if name not in self._first]
        return list_settings(self, ("autapses", "recurrent", *numbers))


def _before_loading(layer: Recurrent, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Warns if a state dict has other settings than this layer."""
    saved = state_dict.setdefault(prefix + KEY, layer.get_extra_state())
    warn_of_differences("Recurrent", decode(saved, "Recurrent"), layer._describe_settings())


def _check_names(argument: str, value: Any, neuron: Neuron) -> tuple[str, ...]:
    names = tuple(checks.read_names(argument, value, "names of coefficients"))
    for name in names:
        if name not in neuron.coefficients:
            expected = ", ".join(neuron.coefficients) or "none"
            raise ValueError(f"{argument}: expected coefficients of {neuron!r}, which are "
                             f"{expected}, got {name!r}")
    return names


def _make_initial(name: str, value: Coefficient, N: int, is_positive: bool,
                  axes: set[int]) -> Tensor:
    """A copy of the initial value of a coefficient on the CPU; a meta tensor stays on meta."""
    if not isinstance(value, Tensor):
        first = torch.tensor(float(value), dtype=torch.float64, device="cpu")
    else:
        first = value.detach().clone() if value.is_meta else value.detach().to("cpu", copy=True)
    has_axis = first.dim() == 2 and first.shape[0] in (1, N) and first.shape[1] in axes
    if first.shape not in ((), (N,)) and not has_axis:
        more = "".join(f" or ({N}, {size})" for size in sorted(axes))
        raise ValueError(f"{name}: expected a number or shape ({N},){more}, got "
                         f"{tuple(first.shape)}")
    if is_positive and first.is_complex():
        raise ValueError(f"{name}: expected real numbers > 0, which have a logarithm, got "
                         f"{first.dtype}")
    if is_positive and not first.is_meta and not bool((first > 0).all()):
        raise ValueError(f"{name}: expected numbers > 0, which have a logarithm, got "
                         f"{float(first.min()):.6g}")
    return first
