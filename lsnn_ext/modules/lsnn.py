"""LSNN: the paper's network, regular and adaptive neurons in one layer with a leaky readout."""
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._core.coefficients import Coefficient
from .._core.lengths import LengthsArgument
from .._core.options import LAYER_DEFAULTS, LayerOptions, document
from .._core.state import State, describe_kind, reset_sequences
from .._core.torch_internals import has_plain_call, make_savable
from ..functional import PackedSpikes
from .alif import ALIF
from .checks import check_positive, check_tensor, check_whole_number, read_names, step_by_sequence
from .neuron import RANGES, Kind, check_names, complete_constants, make_constant
from .outputs import Record
from .readout import LeakyReadout, ReadoutState, average_windows, check_filter
from .recurrent import Recurrent, Sequence
from .recurrent_dropout import refuse_steps


class LSNNState(NamedTuple):
    """The state of an LSNN between two calls."""

    neurons: State  # as ALIF
    readout: Tensor | ReadoutState  # (B, output_size): as LeakyReadout

    def detach(self) -> "LSNNState":
        """The state without its graph, as truncated BPTT needs between two chunks."""
        return LSNNState(self.neurons.detach(), self.readout.detach())

    def to(self, *args: Any, **kwargs: Any) -> "LSNNState":
        """Tensor.to of each tensor: another device or dtype."""
        return LSNNState(self.neurons.to(*args, **kwargs), self.readout.to(*args, **kwargs))

    def reset(self, mask: Tensor) -> "LSNNState":
        """Zeros for the sequences where the bool mask (B,) is True, such as ended episodes; the
        others keep their numbers and gradients."""
        readout = self.readout
        return LSNNState(self.neurons.reset(mask), readout.reset(mask) if isinstance(
            readout, ReadoutState) else reset_sequences(readout, mask))


make_savable(LSNNState)


def _split_state(state: LSNNState | None) -> tuple[State | None, Any]:
    """The states of the neurons and of the readout. Raises TypeError for another type."""
    if state is None:
        return None, None
    if not isinstance(state, LSNNState):
        hint = ("; an ALIF returns a State without a readout: pass LSNNState(state, readout) with "
                "readout zeros (B, output_size)" if isinstance(state, State) else "")
        raise TypeError(f"state: expected an LSNNState{LSNNState._fields}, as an LSNN returns it, "
                        f"got {type(state).__name__ + hint if hint else describe_kind(state)}")
    return state


def _split_learn(learn: Any, per_neuron: Any) -> tuple[Any, Any, dict[str, Any], bool]:
    """learn and per_neuron of the neurons, then those of the readout."""
    if not isinstance(learn, Iterable):
        return learn, per_neuron, {}, False  # ALIF raises the error
    forms = read_names("learn", learn, "")
    if "tau_out" not in forms:
        return forms, per_neuron, {}, False
    readout = {"tau": forms.pop("tau_out")}
    if isinstance(per_neuron, bool) or not isinstance(per_neuron, Iterable):
        return forms, per_neuron, readout, per_neuron is True
    names = (per_neuron,) if isinstance(per_neuron, str) else tuple(per_neuron)
    return forms, tuple(n for n in names if n != "tau_out"), readout, "tau_out" in names


class LSNNOptions(LayerOptions, total=False):
    tau_out: Annotated[float | None, "time constant of the readout in ms. None: no filter, W z_t + "
                       "b of each step. In learn: the readout learns its logarithm."]


@document(LSNNOptions, {**LAYER_DEFAULTS, "tau_out": 20.0})
class LSNN(nn.Module):
    """The long short-term memory network of spiking neurons of Bellec et al. 2018.

    The parts are `neurons` (ALIF) and `readout` (LeakyReadout, of the last layer's spikes, of both
    directions). Both run in one operator, unless tau_out learns or a part has hooks, another
    forward, or another module in its place.

    Args:
        input_size, output_size: channels in and out.
        n_regular, n_adaptive: neurons without (beta = 0 in equation (4)) and with adaptation, in
            this order, of each layer; N in all.
        num_layers, bias, batch_first, dropout, bidirectional: as of nn.LSTM; bias of the input is
            False as in the paper.
        **options
            The defaults of "lsnn" are those of the paper for sequential MNIST: 20 and 700 ms, beta
            1.8, threshold 0.01, 5 refractory steps, no autapses. beta: a number, (n_adaptive,), or
            (N,) with 0 for the regular neurons.

    Raises:
        TypeError, ValueError: as ALIF.

    Source: Bellec et al., NeurIPS 2018 (arXiv 1803.09574).
    """

    _kind: ClassVar[Kind] = "LSNN"

    def __init__(self, input_size: int, n_regular: int, n_adaptive: int, output_size: int,
                 num_layers: int = 1, bias: bool = False, batch_first: bool = False,
                 dropout: float = 0.0, bidirectional: bool = False,
                 **options: Unpack[LSNNOptions]) -> None:
        super().__init__()
        for name, size in (("n_regular", n_regular), ("n_adaptive", n_adaptive)):
            check_whole_number(name, size, 0)
        if n_regular + n_adaptive == 0:
            raise ValueError("n_adaptive: expected one neuron or more in all, got 0 with n_regular "
                             "0")
        check_names(self._kind, options, LSNNOptions.__annotations__)
        self.n_regular, self.n_adaptive = n_regular, n_adaptive
        others: dict[str, Any] = {**options}
        tau_out, dtype = others.pop("tau_out", 20.0), others.get("dtype")
        dynamics, dt = others.get("dynamics", "lsnn"), others.get("dt", 1.0)
        check_positive("dt", dt)
        dt = float(dt)
        constants = complete_constants(self._kind, dynamics, {
            name: others.pop(name, None) for name in (*RANGES, "refractory")}, dt)
        for name in ("autapses", "delay"):  # of which ALIF knows the defaults
            constants.pop(name)
        if "beta" not in constants:
            raise TypeError(f"beta: expected a value with dynamics={dynamics!r}, whose default, "
                            f"the threshold, would act on regular neurons too, got None")
        constants["beta"] = self._make_betas(constants["beta"], dtype)
        N = n_regular + n_adaptive
        learn, per_neuron, learn_out, per_output = _split_learn(others.pop("learn", ()),
                                                                others.pop("per_neuron", False))
        if tau_out is not None:
            check_filter("tau_out", tau_out, dt)
        if learn_out and tau_out is None:
            raise ValueError("tau_out: expected a number to learn from, got None")
        self.neurons = ALIF(input_size, N, num_layers, bias, batch_first, dropout, bidirectional,
                            learn=learn, per_neuron=per_neuron, **others, **constants)
        self.readout = LeakyReadout(N * (1 + bidirectional), output_size, tau_out, dt=dt,
                                    batch_first=batch_first, learn=learn_out,
                                    per_neuron=per_output, device=others.get("device"), dtype=dtype)

    def _make_betas(self, beta: Coefficient, dtype: torch.dtype | None) -> Tensor:
        """beta (N,), 0 for the regular neurons. Raises TypeError or ValueError naming beta."""
        regular, adaptive = self.n_regular, self.n_adaptive
        shapes = ((), (adaptive,), (regular + adaptive,))
        dtype = torch.get_default_dtype() if dtype is None else dtype
        value = make_constant("beta", beta, shapes, dtype)
        if value.dim() == 0 or value.shape == (adaptive,):
            return torch.cat([value.new_zeros(regular), value.expand(adaptive)])
        if not value.is_meta and bool(value[:regular].any()):
            raise ValueError(f"beta: expected 0 for the first n_regular = {regular} neurons, which "
                             f"do not adapt, got {value[:regular].tolist()}")
        return value

    def reset_parameters(self) -> None:
        """Draws all weights as in the paper's code and resets constants and delays to those of the
        constructor."""
        self.neurons.reset_parameters()
        self.readout.reset_parameters()

    def forward(self, x: Sequence, state: LSNNState | None = None, *,
                lengths: LengthsArgument | None = None, return_spikes: bool = False,
                trace: bool = False, record: Record | None = None, return_rates: bool = False,
                readout_every: int | None = None) -> tuple[Any, ...]:
        """Runs a whole sequence.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, a PackedSequence or
                PackedSpikes, as in ALIF.
            state: the LSNNState to start from. Default None: zeros.
            lengths: (B,) steps of each sequence of a padded batch, as in ALIF; after them the
                readout is 0. Default None: all have T steps.
            return_spikes: also return the spikes of the last layer.
            trace: also return its Traces.
            record: indices of neurons, or a slice: return only their Traces.
            return_rates: also return the firing rates, to regularize them without storing spikes.
            readout_every: K: return the mean of the readout over each K steps. Default None: the
                readout of every step.

        Returns:
            readout, of the shape of x with output_size in place of I, and T / K in place of T with
            readout_every; the LSNNState after the last step of each sequence, in the order of the
            batch. Then, if requested: spikes, of the shape of x with N * directions in place of I;
            the Traces; the rates (L, B, N), see ALIF.forward. All but spikes: float32 or float64.

        Raises:
            TypeError, ValueError: an invalid x, state, lengths or record, or a K that does not
                divide the steps of each sequence.
        """
        if not isinstance(x, PackedSequence | PackedSpikes):
            check_tensor("x", x, ", a PackedSequence or PackedSpikes")
        neurons, readout = self.neurons, self.readout
        carried, p = _split_state(state)
        more: list[Any]
        is_fused = self._has_plain_parts() and not (  # then the difference is not observable
            readout.learn or isinstance(readout.tau, Tensor) or readout.tau_syn is not None)
        if not is_fused:
            options = {"lengths": lengths, "trace": trace, "record": record,
                       "return_rates": return_rates}  # a replaced part need not accept unused ones
            spikes, end, *more = neurons(x, carried, **{
                name: value for name, value in options.items()
                if value is not False and value is not None})
            y, p = readout(spikes, p) if lengths is None else readout(spikes, p, lengths=lengths)
        else:
            like: Any = x.carrier if isinstance(x, PackedSpikes) else x
            readout.check_state(p, readout.batch_of(like), like, "state.readout")
            means: list[Tensor] | None = [] if return_rates else None
            out: Any = neurons._run_sequence(
                x, carried, trace, record, means, p, lengths, w_out=readout.weight,
                k_out=readout.decay, b_out=readout.bias, spikes=return_spikes)
            y, p, end, spikes = out.readout, out.readout_state, out.state, out.spikes
            if isinstance(x, PackedSequence):
                y = x._replace(data=y)
                spikes = x._replace(data=spikes) if spikes is not None else None
            more = [*([] if out.traces is None else [out.traces]), *(means or ())]
        if readout_every is not None:
            each = None if lengths is None else torch.as_tensor(lengths)
            y = average_windows(y, readout_every, readout.batch_first, each)
        return (y, LSNNState(end, p), *([spikes] if return_spikes else []), *more)

    def _has_plain_parts(self) -> bool:
        """Whether the parts are those of the constructor, without hooks or another forward."""
        neurons, readout = self.neurons, self.readout
        return (
            has_plain_call(neurons, Recurrent) and has_plain_call(readout, LeakyReadout)
            and not neurons.bidirectional and neurons.batch_first == readout.batch_first)

    def step(self, x_t: Tensor, state: LSNNState | None = None) -> tuple[Tensor, LSNNState]:
        """Runs one step, for control loops.

        Bitwise identical to forward on a sequence of one step. T steps equal one call on the
        sequence to rounding: products with input and readout weights are summed in another order.

        Args:
            x_t: (B, I) or (I,).
            state: the LSNNState to start from. Default None: zeros.

        Returns:
            readout (B, output_size) or (output_size,), and the LSNNState after the step.

        Raises:
            TypeError, ValueError: an invalid x_t or state, or a bidirectional network.
        """
        check_tensor("x_t", x_t)
        if getattr(self.neurons, "bidirectional", False):
            raise ValueError("step: expected a network with bidirectional=False, got a "
                             "bidirectional one")
        carried, p = _split_state(state)
        if not self._has_plain_parts():
            for part in self.neurons.modules():
                refuse_steps(part)
            return step_by_sequence(self.forward, getattr(self.neurons, "batch_first", False), x_t,
                                    state)
        self.readout.check_state(p, tuple(x_t.shape[:-1]), name="state.readout")
        spikes, end = self.neurons.step(x_t, carried)
        y, p = self.readout.step(spikes, p)
        return y, LSNNState(end, p)
