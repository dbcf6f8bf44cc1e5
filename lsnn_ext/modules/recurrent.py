"""What ALIF and LIF share: parameters, forms of input and state, and the way through layers and
directions."""
import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._core.arguments import refuse_freed_graph
from .._core.call import of_inputs
from .._core.lengths import Lengths, LengthsArgument
from .._core.options import PASSED_TO_CALLS, PASSED_TO_NEURONS, CallArguments
from .._core.route import is_packing_faster
from .._core.state import State, Traces
from .._core.torch_internals import has_hooks
from ..functional import Layered, PackedSpikes
from ..models import Rate, default_values
from .checks import (
    cast_weights,
    check_input,
    check_lengths,
    check_state,
    check_tensor,
    convert_input,
    unwrap_optional,
)
from .constants import Constants, state_after
from .delays import read_delay, reset_delay, set_delay
from .inference import prepared_call, prepared_sequence, recorded_call
from .layer_arguments import check_arguments
from .neuron import check_whole_number, rounded, shown
from .outputs import Record, compute_rates, join_directions, select_neurons, select_traces
from .packed import flip_time, repack, run_packed, run_padded
from .parametrizations import fill_parameter, format_forms

Sequence: TypeAlias = Tensor | PackedSequence | PackedSpikes


class Recurrent(Constants):
    """What ALIF and LIF share; the constants that the neuron has are the names of `_neuron`."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, bias: bool,
                 batch_first: bool, dropout: float, bidirectional: bool,
                 options: Mapping[str, Any]) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_whole_number(name, size, 1)
        arguments = check_arguments(self._kind, {
            "num_layers": num_layers, "bias": bias, "batch_first": batch_first,
            "dropout": dropout, "bidirectional": bidirectional, **options})
        given = arguments.given
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.recurrent = bidirectional, given.recurrent
        for name in (*PASSED_TO_NEURONS, *PASSED_TO_CALLS):
            setattr(self, name, getattr(given, name))
        self.refractory, self.autapses = arguments.refractory, arguments.autapses
        self._first_delay, self._distinct = None, ()
        set_delay(self, arguments.delay, given.device)
        directions = ("", "_reverse") if bidirectional else ("",)
        self._suffixes = [f"_l{layer}{direction}" for layer in range(num_layers)
                          for direction in directions]
        for index, suffix in enumerate(self._suffixes):
            inputs = (
                input_size if index <= bidirectional else hidden_size * (1 + bidirectional)
            )
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (hidden_size, inputs)}
            if given.recurrent:
                shapes["weight_hh"] = (hidden_size, hidden_size)
            if bias:
                shapes["bias_ih"] = (hidden_size,)
            for name, shape in shapes.items():
                data = torch.empty(shape, device=given.device, dtype=arguments.dtype)
                self.register_parameter(name + suffix, nn.Parameter(data))
        self._make_constants(arguments)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights N(0, 1) / sqrt(fan in), as in the paper's code, biases 0; all else as the layer
        was made.

        Time constants, beta, threshold and delays take the values that were given to the
        constructor, also where they have been learned or loaded since.
        """
        with torch.no_grad():
            for suffix in self._suffixes:
                for name in ("weight_ih", "weight_hh") if self.recurrent else ("weight_ih",):
                    fill_parameter(self, name + suffix,
                                   lambda weight: weight.normal_(0, 1 / math.sqrt(weight.shape[1])))
                if self.bias:
                    fill_parameter(self, "bias_ih" + suffix, Tensor.zero_)
                self._reset_constants(suffix)
            reset_delay(self)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As of nn.LSTM: of each layer and direction input weights, recurrent weights, bias, those
        that there are."""
        names = [("weight_ih", True), ("weight_hh", self.recurrent), ("bias_ih", self.bias)]
        return [[getattr(self, name + suffix) for name, there in names if there]
                for suffix in self._suffixes]

    def flatten_parameters(self) -> None:
        """As of nn.LSTM, whose weights lie best in one piece of memory; here it has no effect."""

    def extra_repr(self) -> str:
        """Sizes, then whatever is not the default."""
        parts = [str(self.input_size), str(self.hidden_size)]
        defaults = default_values(self.dynamics, self._kind)
        signature = inspect.signature(type(self)).parameters
        arguments = {name: one.default for name, one in signature.items()
                     if one.kind is not one.VAR_KEYWORD}
        for name in (*arguments, *(name for name in self._neuron if name not in arguments)):
            value = getattr(self, name + self._suffixes[0] if name in self._neuron else name, None)
            if name == "learn":
                value = format_forms(self, self.learn, self._suffixes[0])
            if isinstance(value, Tensor) and not value.dim() and not value.is_meta:
                value = rounded(value)
            default = arguments.get(name)
            if default is None:
                default = defaults.get(name)
                default = default.decay(self.dt) if isinstance(default, Rate) else default
            if value is not None and name not in ("input_size", "hidden_size") and (
                    isinstance(value, Tensor) or value != default):
                parts.append(f"{name}={shown(value)}")
        return ", ".join(parts)

    def _one_direction(self, x: Tensor | PackedSpikes, weights: tuple[Tensor, Tensor | None],
                       lengths: Lengths | None, suffix: str, initial: State | None,
                       trace: bool | Tensor, **readout: Any) -> Layered:
        """One direction of one layer over x (T, B, inputs): spikes, state, traces of the same
        form; trace: True, or the neurons whose traces are wanted."""
        weight, w_rec = weights
        like = x.carrier if isinstance(x, PackedSpikes) else x
        weight, bias = cast_weights(like, weight, getattr(self, "bias_ih" + suffix, None))
        reverse = suffix.endswith("_reverse")
        if reverse:
            x = flip_time(x.numbers() if isinstance(x, PackedSpikes) else x, lengths)
        options = CallArguments(
            state=initial, trace=trace is not False, lengths=lengths,
            delay=read_delay(self),  # type: ignore[arg-type]
            autapses=self.autapses or not self.recurrent,
            **{name: getattr(self, name) for name in PASSED_TO_CALLS})
        out = of_inputs(x, weight, w_rec, bias, self._kept_neuron(suffix, like.device), options,
                        "x", **readout)
        traces = select_traces(out.traces, trace)
        if not reverse:
            return out._replace(traces=traces)
        if traces is not None:
            traces = Traces(*(flip_time(value, lengths) for value in traces))
        return out._replace(spikes=flip_time(unwrap_optional(out.spikes), lengths), traces=traces)

    def _run(self, inputs: Tensor | PackedSpikes, lengths: Lengths | None, state: State | None,
             trace: bool | Tensor, found_rates: list[Tensor] | None = None,
             **readout: Any) -> Layered:
        """All layers: x, spikes and traces are (T, B, .); lengths fall, or all are T; state is
        stacked.

        readout: arguments of functional.layer, for the last layer. found_rates gets the firing
        rates (layers and directions, B, N), where they are wanted.
        """
        directions = 1 + self.bidirectional
        x: Tensor | PackedSpikes = inputs
        after: list[State] = []
        means: list[Tensor] = []
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            outs: list[Layered] = []
            # Looked up once: a parametrized weight is computed each time, and spectral_norm counts
            # how often.
            weights = [(getattr(self, "weight_ih" + suffix), self._all_recurrent(suffix))
                       for suffix in self._suffixes[layer * directions:(layer + 1) * directions]]
            # Where nothing but the next layer sees the spikes a bit for each will do.
            bits = (not last and directions == 1 and not (self.dropout and self.training)
                    and is_packing_faster(x, weights[0][0]))
            requested: dict[str, Any] = readout if last else {"spikes": "bits"} if bits else {}
            counted = last and found_rates is not None and readout.get("spikes") is False
            if counted:  # without a number for each
                requested = {**readout, "spikes": is_packing_faster(x, weights[0][0]) and "bits"
                             or True}
            for direction in range(directions):
                index = layer * directions + direction
                initial = None if state is None else State(*(leaf[index] for leaf in state))
                outs.append(self._one_direction(x, weights[direction], lengths,
                                                self._suffixes[index], initial,
                                                trace if last else False, **requested))
                after.append(outs[-1].state)
            means += [] if found_rates is None else [compute_rates(out, lengths) for out in outs]
            if counted:
                outs = [out._replace(spikes=None, packed=None) for out in outs]
            if last:
                break
            x = outs[0].packed or nn.functional.dropout(
                join_directions(outs)[0], self.dropout, self.training
            )
        end = state_after(after)
        if found_rates is not None:
            found_rates.append(torch.stack(means))
        if directions == 1:
            return outs[0]._replace(state=end)
        spikes, traces = join_directions(outs)
        return Layered(spikes, end, traces, None, None)

    def _check(self, x: Tensor, dims: tuple[int, ...], form: str, state: State | None,
               batch: tuple[int, ...]) -> None:
        check_input(x, dims, form, self.input_size, self._dtype())
        if state is not None:
            want = (len(self._suffixes), *batch, self.hidden_size)
            check_state(state, want, x, self.batch_first)

    def _dtype(self) -> torch.dtype:
        weight = self._parameters.get("weight_ih_l0")
        if weight is None:  # parametrized, or no parameter
            weight = next(self.parameters(), None)
        found = self.weight_ih_l0 if weight is None else weight
        assert isinstance(found, Tensor)
        return found.dtype

    def forward(self, x: Sequence, state: State | None = None, *,
                lengths: LengthsArgument | None = None, trace: bool = False,
                record: Record | None = None, return_rates: bool = False,
                spikes: Literal[True, "bits"] = True) -> tuple[Any, ...]:
        """The whole sequence: (spikes, state), then traces with trace=True or record, then rates
        with return_rates=True.

        x          (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence,
                   sorted or not; of the parameters' dtype, or float16 / bfloat16, then the spikes
                   have that dtype and the state float32; bool and uint8 are taken as numbers of the
                   parameters' dtype. Or PackedSpikes (T, B, I), not with batch_first
        state      State with leaves v, a, i, r (L, B, N) and z (L, D, B, N), newest spikes first, D
                   = 1 + the largest delay, L = num_layers * directions in the order of nn.LSTM;
                   without B if unbatched; None is all zeros
        lengths    (B,) steps of each sequence of a padded batch, from 0 to T in any order, whole
                   numbers on the CPU: each ends after its own last step, as in a PackedSequence;
                   what x has after it is not read, and spikes and traces are 0 there
        record     indices of neurons, or a slice: their traces alone
        spikes=    "bits": PackedSpikes (T, B, N) in place of spikes, a thirty-second of the memory
                   and of the time to write and read it, for the next layer or Linear; not with
                   batch_first or bidirectional, unbatched or of a PackedSequence
        spikes     as x with N * directions in place of I
        state      after the last step; of sequences of unequal length each one's own last step, in
                   the order in which they were given
        traces     Traces v, a, threshold of the last layer, each of the shape of spikes, or with
                   the recorded neurons of each direction in place of N (packed: of spikes.data)
        rates      (L, B, N), without B if unbatched: the mean of the spikes of each neuron of each
                   layer over the steps of its sequence, differentiable

        A PackedSequence takes one call of the operator, or a few where the longest of its sequences
        has more than twice the steps of the shortest. Raises ValueError for wrong shapes or dtypes,
        TypeError for a state that is none.
        """
        means: list[Tensor] | None = [] if return_rates else None
        self._check_spikes(spikes, x)
        bits: dict[str, Any] = {} if spikes is True else {"spikes": spikes}
        found = self._observed(x, state, trace, record, means, lengths=lengths, **bits)
        fired: Any = found.spikes if found.packed is None else found.packed
        if isinstance(x, PackedSequence):
            fired = repack(fired, x)
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
            raise ValueError("spikes: expected True for what is not (T, B, I), got 'bits'")

    def _observed(self, x: Sequence, state: State | None, trace: bool, record: Record | None,
                  means: list[Tensor] | None, p: Tensor | None = None,
                  lengths: LengthsArgument | None = None, **readout: Any) -> Layered:
        """A call of any form; record, trace, lengths: as of forward. means gets the rates, where
        they are wanted."""
        x = convert_input(x, self._dtype, self.batch_first)
        data = x.data if isinstance(x, PackedSequence) else (
            x.carrier if isinstance(x, PackedSpikes) else x)
        neurons = select_neurons(record, self.hidden_size, data.device)
        if neurons is not None and trace:
            raise ValueError("record: expected None with trace=True, which returns all neurons, "
                             f"got {record}")
        refuse_freed_graph(state)
        chosen = trace if neurons is None else neurons
        check_lengths(x, lengths, self.batch_first)
        if isinstance(x, PackedSequence):
            return self._packed(x, state, chosen, means, p, **readout)
        call = self._bits if isinstance(x, PackedSpikes) else self._dense
        found: Layered = call(x, state, chosen, means, p, lengths, **readout)  # type: ignore[arg-type]
        return found

    def _bits(self, x: PackedSpikes, state: State | None, trace: bool | Tensor,
              means: list[Tensor] | None = None, p: Tensor | None = None,
              lengths: LengthsArgument | None = None, **readout: Any) -> Layered:
        """PackedSpikes (T, B, I). readout, p: of functional.layer."""
        if self.batch_first:
            raise ValueError(f"x: expected a tensor (B, T, I) of a layer with batch_first=True, "
                             f"got PackedSpikes, whose shape {tuple(x.shape)} is (T, B, I)")
        self._check(x.carrier, (3,), "(T, B, I)", state, (x.shape[1],))
        return self._padded(x, state, trace, means, p, lengths, **readout)

    def _padded(self, x: Tensor | PackedSpikes, state: State | None, trace: bool | Tensor,
                means: list[Tensor] | None, p: Tensor | None, lengths: LengthsArgument | None,
                **readout: Any) -> Layered:
        """Of (T, B, I), and results of this form."""
        def run(x: Tensor | PackedSpikes, lengths: Lengths | None, state: State | None,
                p: Tensor | None) -> Layered:
            return self._run(x, lengths, state, trace, means, readout_state=p, **readout)

        return run_padded(x, lengths, state, p, means, run)

    def _packed(self, x: PackedSequence, state: State | None, trace: bool | Tensor,
                means: list[Tensor] | None = None, p: Tensor | None = None,
                **readout: Any) -> Layered:
        """A PackedSequence: results have rows as x.data. readout, p: of functional.layer."""
        check_tensor("x.data", x.data)
        self._check(x.data, (2,), "packed rows (sum of lengths, I)", state,
                    (int(x.batch_sizes[0]),))

        def run(x: Tensor, lengths: Lengths | None, state: State | None,
                p: Tensor | None) -> Layered:
            return self._run(x, lengths, state, trace, groups,
                             **(readout and {**readout, "readout_state": p}))

        groups: list[Tensor] | None = None if means is None else []
        found = run_packed(x, state, p, run)
        if means is not None and groups is not None:
            mean, order = torch.cat(groups, 1), x.unsorted_indices
            means.append(mean if order is None else mean.index_select(1, order))
        return found

    def _dense(self, x: Tensor, state: State | None, trace: bool | Tensor,
               means: list[Tensor] | None = None, p: Tensor | None = None,
               lengths: LengthsArgument | None = None, **readout: Any) -> Layered:
        """A tensor of any form, and results of the same form. readout, p: of functional.layer;
        unbatched p has no B."""
        batched, first = x.dim() == 3, self.batch_first and x.dim() == 3
        batch = (x.shape[0 if first else 1],) if batched else ()
        quick = None
        if trace is False and means is lengths is None and readout.get("spikes") != "bits":
            quick = prepared_sequence(self, x, state, p, **readout)
        if quick is not None:
            return quick
        self._check(x, (2, 3), "(B, T, I) or (T, I)" if self.batch_first else "(T, B, I) or (T, I)",
                    state, batch)
        x = x.transpose(0, 1) if first else x if batched else x.unsqueeze(1)
        if not batched:
            state = None if state is None else State(*(leaf.unsqueeze(-2) for leaf in state))
            p = None if p is None else p.unsqueeze(0)
        out, state, traces, y, p, packed = self._padded(x, state, trace, means, p, lengths,
                                                        **readout)
        if means is not None and not batched:
            means[0] = means[0].squeeze(1)

        def given_form(value: Tensor) -> Tensor:
            return value.transpose(0, 1) if first else value if batched else value.squeeze(1)

        if not batched:
            state = State(*(leaf.squeeze(-2) for leaf in state))
            p = None if p is None else p.squeeze(0)
        traces = None if traces is None else Traces(*map(given_form, traces))
        return Layered(None if out is None else given_form(out), state, traces,
                       None if y is None else given_form(y), p, packed)

    def step(self, x_t: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step, for control loops: x_t (B, I) or (I,) -> spikes (B, N) or (N,) and the state as
        in forward.

        Bitwise identical to forward on a sequence of one step. T such calls equal one call on the
        sequence to the rounding of the input projection, whose sums have another order there. Hooks
        see such a call. Raises ValueError for a bidirectional layer, which needs the end of the
        sequence first.
        """
        if self.bidirectional:
            raise ValueError("step: expected a layer with bidirectional=False, got a bidirectional "
                             "one")
        check_tensor("x_t", x_t)
        x_t = convert_input(x_t, self._dtype, self.batch_first)
        refuse_freed_graph(state)
        if has_hooks(self):
            time = 1 if self.batch_first and x_t.dim() == 2 else 0
            spikes, state = self(x_t.unsqueeze(time), state)
            return spikes.squeeze(time), state
        batch = tuple(x_t.shape[:-1])
        call = recorded_call if torch.is_grad_enabled() else prepared_call
        quick = call(self, x_t, 1, batch, state) if len(batch) < 2 else None
        if quick is not None:
            return quick if batch else (quick[0][0], quick[1])
        self._check(x_t, (1, 2), "(B, I) or (I,)", state, batch)
        if state is not None and not batch:
            state = State(*(leaf.unsqueeze(-2) for leaf in state))
        alive = batch[0] if batch else 1
        out, state, *_ = self._run(x_t.reshape(1, alive, self.input_size), None, state, False)
        out = unwrap_optional(out)
        return (out[0], state) if batch else (out[0, 0],
                                              State(*(leaf.squeeze(-2) for leaf in state)))
