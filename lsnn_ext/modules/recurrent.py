"""The base class of ALIF and LIF: parameters, forms of inputs, layers and directions."""
import math
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._core.arguments import refuse_freed_graph
from .._core.call import run_layer
from .._core.lengths import Lengths, LengthsArgument
from .._core.options import LAYER_DEFAULTS, PASSED_TO_CALLS, PASSED_TO_NEURONS, CallArguments
from .._core.route import is_packing_faster
from .._core.state import State, Traces
from .._core.torch_internals import has_hooks
from ..functional import Layered, PackedSpikes
from ..models import Rate, find_defaults
from . import checks
from .constants import Constants
from .delays import read_delay, reset_delay, set_delay
from .inference import run_prepared, run_prepared_sequence, run_recorded
from .layer_arguments import check_arguments
from .neuron import AS_LSTM, format_value, round_number, write_constant
from .outputs import Record, compute_rates, select_neurons
from .packed import change_start, combine_results, flip_time, run_packed, run_padded
from .parametrizations import fill_parameter, format_forms
from .recurrent_dropout import draw_masks, refuse_steps, scale_synapses

Sequence: TypeAlias = Tensor | PackedSequence | PackedSpikes


class Recurrent(Constants):
    """The base class of ALIF and LIF; `_neuron` has the names of their constants."""

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            checks.check_whole_number(name, size, 1)
            setattr(self, name, size)
        arguments = check_arguments(self._kind, options)
        checked = arguments.options
        for name in (*AS_LSTM, "recurrent", "recurrent_dropout", *PASSED_TO_NEURONS,
                     *PASSED_TO_CALLS):
            setattr(self, name, getattr(checked, name))
        self.refractory, self.autapses = arguments.refractory, arguments.autapses
        set_delay(self, arguments.delay, checked.device)
        directions = ("", "_reverse") if self.bidirectional else ("",)
        self._suffixes = [f"_l{layer}{direction}" for layer in range(self.num_layers)
                          for direction in directions]
        for index, suffix in enumerate(self._suffixes):
            inputs = input_size if index < len(directions) else hidden_size * len(directions)
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (hidden_size, inputs)}
            if self.recurrent:
                shapes["weight_hh"] = (hidden_size, hidden_size)
            if self.bias:
                shapes["bias_ih"] = (hidden_size,)
            for name, shape in shapes.items():
                data = torch.empty(shape, device=checked.device, dtype=arguments.dtype)
                self.register_parameter(name + suffix, nn.Parameter(data))
        self._make_constants(arguments)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights from N(0, 1) / sqrt(fan in), as in the paper's code; sets biases to 0, and
        constants and delays to those of the constructor."""
        with torch.no_grad():
            for suffix in self._suffixes:
                for name in ("weight_ih", "weight_hh") if self.recurrent else ("weight_ih",):
                    fill_parameter(self, name + suffix,
                                   lambda weight: weight.normal_(0, 1 / math.sqrt(weight.shape[1])))
                if self.bias:
                    fill_parameter(self, "bias_ih" + suffix, Tensor.zero_)
                for name, first in self._first.items():
                    fill_parameter(self, name + suffix, partial(write_constant, name, value=first))
            reset_delay(self)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As of nn.LSTM: input weights, recurrent weights and bias of each layer and direction."""
        names = [("weight_ih", True), ("weight_hh", self.recurrent), ("bias_ih", self.bias)]
        return [[getattr(self, name + suffix) for name, is_present in names if is_present]
                for suffix in self._suffixes]

    def flatten_parameters(self) -> None:
        """A no-op, for compatibility with nn.LSTM."""

    def extra_repr(self) -> str:
        """Sizes, then all that differs from the defaults."""
        parts = [str(self.input_size), str(self.hidden_size)]
        defaults = find_defaults(self.dynamics, self._kind)
        for name, default in LAYER_DEFAULTS.items():
            value = getattr(self, name + self._suffixes[0] if name in self._neuron else name, None)
            if name == "learn":
                value = format_forms(self, self.learn, self._suffixes[0])
            if isinstance(value, Tensor) and not value.dim() and not value.is_meta:
                value = round_number(value)
            if default is None:
                default = defaults.get(name)
                default = default.decay(self.dt) if isinstance(default, Rate) else default
            if value is not None and (isinstance(value, Tensor) or value != default):
                parts.append(f"{name}={format_value(value)}")
        return ", ".join(parts)

    def _run_direction(self, x: Tensor | PackedSpikes, weights: tuple[Tensor, Tensor | None],
                       lengths: Lengths | None, suffix: str, initial: State | None,
                       mask: Tensor | None, trace: bool | Tensor, **readout: Any) -> Layered:
        """One direction of one layer over x (T, B, I); trace: True, or the neurons to trace."""
        weight, w_rec = weights
        like = x.carrier if isinstance(x, PackedSpikes) else x
        weight, bias = checks.cast_weights(like, weight, getattr(self, "bias_ih" + suffix, None))
        reverse = suffix.endswith("_reverse")
        if reverse:
            x = flip_time(x.numbers() if isinstance(x, PackedSpikes) else x, lengths)
        w_rec = scale_synapses(self, w_rec, mask)
        options = CallArguments(
            recurrent_mask=mask, state=initial, trace=trace is not False, lengths=lengths,
            delay=read_delay(self), autapses=self.autapses or not self.recurrent,
            **{name: getattr(self, name) for name in PASSED_TO_CALLS})
        neuron = self._cache_neuron_arguments(suffix, like.device)
        out = run_layer(x, weight, w_rec, bias, neuron, options, "x", **readout)
        traces = out.traces
        if traces is not None and isinstance(trace, Tensor):
            out = out._replace(traces=Traces(*(value.index_select(-1, trace) for value in traces)))
        return combine_results([out], partial(flip_time, lengths=lengths),
                               lambda leaf: leaf) if reverse else out

    def _run_layers(self, inputs: Tensor | PackedSpikes, lengths: Lengths | None,
                    state: State | None, p: Tensor | None = None, masks: Tensor | None = None, *,
                    trace: bool | Tensor = False, found_rates: list[Tensor] | None = None,
                    **readout: Any) -> Layered:
        """All layers over inputs (T, B, I).

        lengths are descending, or None; state, masks (L, B, N) have an axis of layers and
        directions. readout, p: of functional.layer for the last layer. The firing rates (L, B, N)
        are appended to found_rates.
        """
        directions, readout = 1 + self.bidirectional, {**readout, "readout_state": p}
        x: Tensor | PackedSpikes = inputs
        after: list[State] = []
        means: list[Tensor] = []
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            outs: list[Layered] = []
            # One access: it computes a parametrized weight, and changes a state of spectral_norm.
            weights = [(getattr(self, "weight_ih" + suffix), self._get_recurrent_weight(suffix))
                       for suffix in self._suffixes[layer * directions:(layer + 1) * directions]]
            # Only the next layer reads these spikes, so bits suffice.
            bits = (not last and directions == 1 and not (self.dropout and self.training)
                    and is_packing_faster(x, weights[0][0]))
            requested: dict[str, Any] = readout if last else {"spikes": "bits"} if bits else {}
            only_rates = last and found_rates is not None and readout.get("spikes") is False
            if only_rates:
                requested = {**readout, "spikes": is_packing_faster(x, weights[0][0]) and "bits"
                             or True}
            for direction in range(directions):
                index = layer * directions + direction
                outs.append(self._run_direction(
                    x, weights[direction], lengths, self._suffixes[index],
                    None if state is None else State(*(leaf[index] for leaf in state)),
                    None if masks is None else masks[index], trace if last else False,
                    **requested))
                after.append(outs[-1].state)
            means += [] if found_rates is None else [compute_rates(out, lengths) for out in outs]
            if only_rates:
                outs = [out._replace(spikes=None, packed=None) for out in outs]
            joined = outs[0] if directions == 1 else combine_results(
                outs, lambda *both: torch.cat(both, -1), lambda *both: both[0])
            if not last:
                spikes: Any = joined.spikes
                x = joined.packed or nn.functional.dropout(spikes, self.dropout, self.training)
        end = State(*map(torch.stack, zip(*after, strict=True))) if len(after) > 1 else (
            after[0].map(lambda leaf: leaf.unsqueeze(0)))
        if found_rates is not None:
            found_rates.append(torch.stack(means))
        return joined._replace(state=end)

    def _check_state(self, state: State | None, batch: tuple[int, ...], x: Tensor) -> None:
        if state is not None:
            want = (len(self._suffixes), *batch, self.hidden_size)
            checks.check_state(state, want, x, self.batch_first)

    def _dtype(self) -> torch.dtype:
        weight = self._parameters.get("weight_ih_l0")
        if weight is None:  # parametrized, or replaced
            weight = next(self.parameters(), None)
        return (self.weight_ih_l0 if weight is None else weight).dtype

    def forward(self, x: Sequence, state: State | None = None, *,
                lengths: LengthsArgument | None = None, trace: bool = False,
                record: Record | None = None, return_rates: bool = False,
                spikes: Literal[True, "bits"] = True) -> tuple[Any, ...]:
        """Runs a whole sequence.

        A PackedSequence takes one call of the operator, or a few if its lengths differ so much that
        padding takes longer.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence. Of the
                parameters' dtype; bool and uint8 are converted to it; float16 and bfloat16 give
                spikes of that dtype, as torch.autocast does, and the rest in float32. Or
                PackedSpikes (T, B, I), not with batch_first.
            state: State of v, a, i, r (L, B, N) and z (L, D, B, N), newest spikes first, without B
                if unbatched; D = 1 + the largest delay, L = num_layers * directions in the order
                of nn.LSTM. Default None: zeros.
            lengths: (B,) steps of each sequence of a padded batch, 0 to T in any order, integers on
                the CPU. After its last step a sequence is not read, and its spikes and traces are
                0. Default None: all have T steps.
            trace: also return the Traces of the last layer.
            record: indices of neurons, or a slice: return only their Traces.
            return_rates: also return the firing rates.
            spikes: "bits": return PackedSpikes (T, B, N), with 1/32 of the memory traffic, for the
                next layer or Linear; not with batch_first, bidirectional, a PackedSequence or an
                unbatched x.

        Returns:
            spikes, of the shape of x with N * directions in place of I; the State after the last
            step of each sequence, in the order of the batch. Then, if requested: Traces v, a and
            threshold, of the shape of spikes (of spikes.data if packed), with the recorded neurons
            in place of N; rates (L, B, N), without B if unbatched, differentiable: the mean spikes
            of each neuron over the steps of its sequence.

        Raises:
            TypeError, ValueError: an argument of a wrong kind, shape, dtype or range.
        """
        means: list[Tensor] | None = [] if return_rates else None
        self._check_spikes(spikes, x)
        found = self._run_sequence(x, state, trace, record, means, lengths=lengths, spikes=spikes)
        fired: Any = found.spikes if found.packed is None else found.packed
        if isinstance(x, PackedSequence):
            fired = x._replace(data=fired)
        more = [] if found.traces is None else [found.traces]
        return (fired, found.state, *more, *(means or ()))

    def _check_spikes(self, spikes: Any, x: Sequence) -> None:
        """Raises ValueError for spikes="bits" where the result would not be (T, B, N)."""
        if spikes is True:
            return
        if spikes != "bits":
            raise ValueError(f"spikes: expected True or 'bits', got {spikes!r}")
        for name in ("batch_first", "bidirectional"):
            if getattr(self, name):
                raise ValueError(f"spikes: expected True of a layer with {name}=True, got 'bits'")
        if isinstance(x, PackedSequence) or isinstance(x, Tensor) and x.dim() != 3:
            raise ValueError("spikes: expected True unless x is (T, B, I), got 'bits'")

    def _run_sequence(self, x: Sequence, state: State | None, trace: bool, record: Record | None,
                      means: list[Tensor] | None, p: Tensor | None = None,
                      lengths: LengthsArgument | None = None, **readout: Any) -> Layered:
        """A call with x of any form; other arguments as of forward. Rates are appended to means."""
        x = checks.convert_input(x, self._dtype, self.batch_first)
        data = x.data if isinstance(x, PackedSequence) else (
            x.carrier if isinstance(x, PackedSpikes) else x)
        neurons = select_neurons(record, self.hidden_size, data.device)
        if neurons is not None and trace:
            raise ValueError("record: expected None with trace=True, which returns all neurons, "
                             f"got {record}")
        refuse_freed_graph(state)
        traced = trace if neurons is None else neurons
        checks.check_lengths(x, lengths, self.batch_first)
        first = self.batch_first and isinstance(x, Tensor) and x.dim() == 3
        if (isinstance(x, Tensor) and traced is False and means is lengths is None
                and readout.get("spikes") != "bits"):
            quick = run_prepared_sequence(self, x, state, p, **readout)
            if quick is not None:
                return quick
        checks.check_sequence(x, self.batch_first, self.input_size, self._dtype())
        batch = x.batch_sizes[:1].tolist() if isinstance(x, PackedSequence) else (
            [data.shape[0 if first else 1]] if data.dim() == 3 else [])
        self._check_state(state, tuple(batch), data)
        masks = draw_masks(self, len(self._suffixes), *batch or [1], device=data.device)
        run = partial(self._run_layers, trace=traced, found_rates=means, **readout)
        if isinstance(x, PackedSequence):
            return run_packed(x, state, p, masks, means, run)
        if not batch:
            state, p = change_start(partial(torch.unsqueeze, dim=-2), state, p)
        if isinstance(x, Tensor):
            x = x.transpose(0, 1) if first else x if batch else x.unsqueeze(1)
        out = run_padded(x, lengths, state, p, masks, means, run)
        if batch:
            return combine_results([out], partial(torch.transpose, dim0=0, dim1=1),
                                   lambda leaf: leaf) if first else out
        squeeze = partial(torch.squeeze, dim=-2)
        if means is not None:
            means[:] = map(squeeze, means)
        return combine_results([out], squeeze, squeeze)

    def step(self, x_t: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs one step, for control loops, and calls hooks of the layer.

        Bitwise identical to forward on a sequence of one step. T steps equal one call on the
        sequence to rounding: the input projection is summed in another order.

        Args:
            x_t: (B, I) or (I,).
            state: the State to start from, as in forward. Default None: zeros.

        Returns:
            spikes (B, N) or (N,), and the State after the step.

        Raises:
            TypeError, ValueError: as forward, and for a bidirectional layer, which needs the end of
                the sequence first.
        """
        if self.bidirectional:
            raise ValueError("step: expected a layer with bidirectional=False, got a bidirectional "
                             "one")
        refuse_steps(self)
        checks.check_tensor("x_t", x_t)
        x_t = checks.convert_input(x_t, self._dtype, self.batch_first)
        refuse_freed_graph(state)
        if has_hooks(self):
            return checks.step_by_sequence(self, self.batch_first, x_t, state)
        batch = tuple(x_t.shape[:-1])
        call = run_recorded if torch.is_grad_enabled() else run_prepared
        quick = call(self, x_t, 1, batch, state) if len(batch) < 2 else None
        if quick is not None:
            return quick if batch else (quick[0][0], quick[1])
        checks.check_input(x_t, (1, 2), "(B, I) or (I,)", self.input_size, self._dtype())
        self._check_state(state, batch, x_t)
        if state is not None and not batch:
            state = State(*(leaf.unsqueeze(-2) for leaf in state))
        x_t = x_t.reshape(1, batch[0] if batch else 1, self.input_size)
        spikes, state, *_ = self._run_layers(x_t, None, state)
        if batch:
            return spikes[0], state  # type: ignore[index]
        return spikes[0, 0], state.map(lambda leaf: leaf.squeeze(-2))  # type: ignore[index]
