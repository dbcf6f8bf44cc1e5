"""LSNN: the paper's network, regular and adaptive neurons in one recurrent layer with a leaky
readout."""
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._core.coefficients import Coefficient
from .._core.lengths import LengthsArgument
from .._core.options import LAYER_DEFAULTS, LayerOptions, document
from .._core.state import State, describe_kind, reset_sequences
from .._core.torch_internals import has_plain_call, make_savable
from .._ops import can_fuse_readout
from ..functional import PackedSpikes
from .alif import ALIF
from .checks import check_tensor, unwrap_optional
from .neuron import (
    RANGES,
    Kind,
    check_names,
    check_positive,
    check_whole_number,
    complete,
    constant,
)
from .outputs import Record
from .packed import repack
from .readout import LeakyReadout, ReadoutState, add_readout_bias, average_windows, check_filter
from .recurrent import Recurrent, Sequence


class LSNNState(NamedTuple):
    """What an LSNN carries from one call to the next."""

    neurons: State  # as ALIF
    readout: Tensor | ReadoutState  # (B, output_size): as LeakyReadout

    def detach(self) -> "LSNNState":
        """The same numbers without their graph, as truncated BPTT needs between two chunks."""
        return LSNNState(self.neurons.detach(), self.readout.detach())

    def to(self, *args: Any, **kwargs: Any) -> "LSNNState":
        """Tensor.to of each tensor: another device or dtype."""
        return LSNNState(self.neurons.to(*args, **kwargs), self.readout.to(*args, **kwargs))

    def reset(self, mask: Tensor) -> "LSNNState":
        """Zeros for the sequences of a batch where the mask (B,) of bools is True, as where an
        episode has ended; the others, and their gradients, as they are."""
        readout = self.readout
        return LSNNState(self.neurons.reset(mask), readout.reset(mask) if isinstance(
            readout, ReadoutState) else reset_sequences(readout, mask))


make_savable(LSNNState)


def _parts(state: LSNNState | None) -> tuple[State | None, Any]:
    """The states of the neurons and of the readout."""
    if state is None:
        return None, None
    if not isinstance(state, LSNNState):
        hint = ("; that of an ALIF has no readout: LSNNState(state, readout) with a tensor (B, "
                "output_size), of zeros to begin with" if isinstance(state, State) else "")
        raise TypeError(f"state: expected an LSNNState{LSNNState._fields}, as an LSNN returns it, "
                        f"got {type(state).__name__ + hint if hint else describe_kind(state)}")
    return state


def _split_learn(learn: Any, per_neuron: Any) -> tuple[Any, Any, dict[str, Any], bool]:
    """learn and per_neuron of the neurons, learn and per_neuron of the readout."""
    asked = (learn,) if isinstance(learn, str) else learn
    if not isinstance(asked, Iterable):
        return learn, per_neuron, {}, False  # the neurons say what is wrong with it
    forms = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked)
    if "tau_out" not in forms:
        return forms, per_neuron, {}, False
    readout = {"tau": forms.pop("tau_out")}
    if isinstance(per_neuron, bool) or not isinstance(per_neuron, Iterable):
        return forms, per_neuron, readout, per_neuron is True
    names = (per_neuron,) if isinstance(per_neuron, str) else tuple(per_neuron)
    return forms, tuple(n for n in names if n != "tau_out"), readout, "tau_out" in names


class LSNNOptions(LayerOptions, total=False):
    """Of LSNN."""

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
            With "lsnn" None stands for the paper's values for sequential MNIST: 20 and 700 ms,
            beta 1.8, threshold 0.01, 5 refractory steps, no autapses. beta may be given as
            (n_adaptive,), or as (N,) with 0 for the regular neurons.

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
        given: dict[str, Any] = {**options}
        tau_out, dtype = given.pop("tau_out", 20.0), given.get("dtype")
        dynamics, dt = given.get("dynamics", "lsnn"), given.get("dt", 1.0)
        check_positive("dt", dt)
        dt = float(dt)
        synapses = ("autapses", "delay")  # the model's defaults are those of recurrent weights
        constants = complete(self._kind, dynamics, {
            name: given.pop(name, None) for name in (*RANGES, "refractory", *synapses)
            if name not in synapses or given.get("recurrent", True)}, dt)
        if not given.get("recurrent", True):
            for name in synapses:
                constants.pop(name, None)
        if "beta" not in constants:
            raise TypeError(f"beta: expected to be given to a network with dynamics={dynamics!r}, "
                            f"where it would follow the threshold for the regular neurons too, got "
                            f"none")
        constants["beta"] = self._betas(constants["beta"], dtype)
        N = n_regular + n_adaptive
        learn, per_neuron, learn_out, per_output = _split_learn(given.pop("learn", ()),
                                                                given.pop("per_neuron", False))
        if tau_out is not None:
            check_filter("tau_out", tau_out, dt)
        if learn_out and tau_out is None:
            raise ValueError("tau_out: expected a number to learn from, got None")
        self.neurons = ALIF(input_size, N, num_layers, bias, batch_first, dropout, bidirectional,
                            learn=learn, per_neuron=per_neuron, **given, **constants)
        self.readout = LeakyReadout(N * (1 + bidirectional), output_size, tau_out, dt=dt,
                                    batch_first=batch_first, learn=learn_out,
                                    per_neuron=per_output, device=given.get("device"), dtype=dtype)

    def _betas(self, beta: Coefficient, dtype: torch.dtype | None) -> Tensor:
        """beta of all neurons, that of the regular ones 0."""
        regular, adaptive = self.n_regular, self.n_adaptive
        shapes = ((), (adaptive,), (regular + adaptive,))
        given = constant("beta", beta, shapes, torch.get_default_dtype() if dtype is None
                         else dtype)
        if given.dim() == 0 or given.shape == (adaptive,):
            return torch.cat([given.new_zeros(regular), given.expand(adaptive)])
        if not given.is_meta and bool(given[:regular].any()):
            raise ValueError(f"beta: expected 0 for the n_regular = {regular} first neurons, which "
                             f"do not adapt, got {given[:regular].tolist()}")
        return given

    def reset_parameters(self) -> None:
        """Draws all weights anew, as in the paper's code; the rest as the network was made, see
        ALIF."""
        self.neurons.reset_parameters()
        self.readout.reset_parameters()

    def forward(self, x: Sequence, state: LSNNState | None = None, *,
                lengths: LengthsArgument | None = None, return_spikes: bool = False,
                trace: bool = False, record: Record | None = None, return_rates: bool = False,
                readout_every: int | None = None) -> tuple[Any, ...]:
        """x (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, a PackedSequence, or
        PackedSpikes as of ALIF -> (readout, state), and then what is asked for: spikes, traces,
        rates.

        readout has output_size channels in the form of x, spikes (return_spikes=True) N channels,
        for each direction. trace=True, or record with the indices of neurons or a slice: the Traces
        of the last layer; return_rates=True: firing rates (layers and directions, B, N), to
        regularise them without spikes of all steps; as of ALIF. lengths (B,): steps of each
        sequence of a padded batch, as of ALIF; the readout is 0 after them. The state of sequences
        of unequal length is that of each one's own last step, in the order in which they were
        given. state None is all zeros.
        readout_every=K: the mean of the readout over each K steps in its place, T / K of them.
        Raises ValueError for wrong shapes, and for a K that does not divide T and the steps of each
        sequence, and TypeError for an x that is none of these, or for a
        state that is no LSNNState.
        """
        if not isinstance(x, PackedSequence | PackedSpikes):
            check_tensor("x", x, ", a PackedSequence or PackedSpikes")
        neurons, readout = self.neurons, self.readout
        carried, p = _parts(state)
        more: list[Any]
        if not self._one_operator():
            asked = {"lengths": lengths, "trace": trace, "record": record,
                     "return_rates": return_rates}
            spikes, end, *more = neurons(x, carried, **{name: value for name, value in asked.items()
                                                        if value is not False
                                                        and value is not None})
            y, p = readout(spikes, p) if lengths is None else readout(spikes, p, lengths=lengths)
        else:
            k_out = readout.decay
            assert isinstance(k_out, float)
            like: Any = x.carrier if isinstance(x, PackedSpikes) else x
            readout.check_state(p, readout.batch_of(like), like, "state.readout")
            means: list[Tensor] | None = [] if return_rates else None
            bias, inside = readout.bias, {}
            fused = lengths is None and not isinstance(x, PackedSequence)
            if bias is not None and fused and can_fuse_readout(like, readout.weight):
                bias, inside = None, {"b_out": bias}  # which saves a kernel
            out = neurons._observed(x, carried, trace, record, means, p, lengths,
                                    w_out=readout.weight, k_out=k_out, spikes=return_spikes,
                                    **inside)
            end, p, spikes = out.state, unwrap_optional(out.readout_state), out.spikes
            y = value = add_readout_bias(unwrap_optional(out.readout), bias, lengths,
                                         readout.batch_first)
            if isinstance(x, PackedSequence):
                y = repack(value, x)
                spikes = repack(spikes, x) if return_spikes else None
            more = [*([] if out.traces is None else [out.traces]), *(means or ())]
        if readout_every is not None:
            of_each = None if lengths is None else torch.as_tensor(lengths)
            y = average_windows(y, readout_every, readout.batch_first, of_each)
        return (y, LSNNState(end, p), *([spikes] if return_spikes else []), *more)

    def _one_operator(self) -> bool:
        """Whether nobody could see a difference between calls of the parts and one call that
        computes both."""
        readout = self.readout
        return self._unobserved() and not (
            readout.learn or isinstance(readout.tau, Tensor) or readout.tau_syn is not None)

    def _unobserved(self) -> bool:
        """Whether the parts do what they were made for, and no more."""
        neurons, readout = self.neurons, self.readout
        return (
            has_plain_call(neurons, Recurrent) and has_plain_call(readout, LeakyReadout)
            and not neurons.bidirectional and neurons.batch_first == readout.batch_first
        )

    def step(self, x_t: Tensor, state: LSNNState | None = None) -> tuple[Tensor, LSNNState]:
        """One step, for control loops: x_t (B, I) or (I,) -> readout (B, output_size) or
        (output_size,), and the state.

        Bitwise identical to forward on a sequence of one step. T such calls equal one call on the
        sequence to the rounding of the products with input and readout weights, whose sums have
        another order there. state None is all zeros. Raises ValueError for wrong shapes and
        TypeError for an x_t that is none, or for a state that is no LSNNState.
        """
        check_tensor("x_t", x_t)
        if getattr(self.neurons, "bidirectional", False):
            raise ValueError("step: expected a network with bidirectional=False, got a "
                             "bidirectional one")
        carried, p = _parts(state)
        if not self._unobserved():
            time = 1 if getattr(self.neurons, "batch_first", False) and x_t.dim() == 2 else 0
            y, after, *_ = self.forward(x_t.unsqueeze(time), state)
            assert isinstance(y, Tensor)
            return y.squeeze(time), after
        self.readout.check_state(p, tuple(x_t.shape[:-1]), name="state.readout")
        spikes, end = self.neurons.step(x_t, carried)
        y, p = self.readout.step(spikes, p)
        return y, LSNNState(end, p)
