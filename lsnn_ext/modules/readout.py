"""The leaky readout: weighted sums of filtered spikes."""
import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .. import functional
from .._core.arguments import check_state_leaf, is_readable, refuse_freed_graph
from .._core.call import check_decay, check_readout, project_to_outputs
from .._core.coefficients import Coefficient
from .._core.lengths import LengthsArgument, add_bias, resolve_lengths
from .._core.options import Learn
from .._core.state import describe_kind, reset_sequences
from .._core.torch_internals import has_hooks, make_savable
from ..codegen.neuron import Neuron
from ..functional import NeuronState
from . import checks
from .neuron import check_unit, format_value
from .packed import repack, to_time_first
from .parametrizations import Log, ParametrizedModule, fill_parameter


class ReadoutState(NamedTuple):
    """The state of a LeakyReadout with tau_syn between two calls, which then equal one call."""

    p: Tensor  # (B, output_size) membrane, the output of the last step; unbatched (output_size,)
    i: Tensor  # the same shape: synaptic current

    def detach(self) -> "ReadoutState":
        """The state without its graph, as truncated BPTT needs between two chunks."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> "ReadoutState":
        """Tensor.to of each tensor: another device or dtype."""
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    def reset(self, mask: Tensor) -> "ReadoutState":
        """Zeros for the sequences where the bool mask (B,) is True; the others keep their numbers
        and gradients."""
        return self.map(lambda leaf: reset_sequences(leaf, mask))

    def map(self, change: Callable[[Tensor], Tensor]) -> "ReadoutState":
        """A state of changed tensors."""
        return ReadoutState(change(self.p), change(self.i))


make_savable(ReadoutState)


def _step(c: Tensor, i: Tensor, p: Tensor, *, k: Tensor | float,
          k_syn: Tensor | float) -> tuple[Tensor, Tensor]:
    """A readout with a synaptic current as a neuron whose output is its membrane."""
    i = k_syn * i + c
    return i, k * p + (1 - k) * i


_NEURON = Neuron(_step)
_LEARNED = ("tau", "tau_syn")


def _parse_learn(learn: Any, initial: Mapping[str, float | None]) -> tuple[str, ...]:
    forms = checks.read_names("learn", learn, "\"tau\", \"tau_syn\" or ()")
    for name, form in forms.items():
        if name not in _LEARNED:
            raise ValueError(f"learn: expected \"tau\", \"tau_syn\" or (), got {name!r}")
        if type(form) is not Log and form not in (None, "log"):
            raise ValueError(f"learn: expected \"log\" for the time constant of a readout, got "
                             f"{form!r}")
        if not initial[name]:
            raise ValueError(f"{name}: expected a number > 0 to learn from, got {initial[name]}")
    return tuple(forms)


def check_filter(name: str, tau: float, dt: float, nothing: str = "None") -> None:
    """Raises TypeError or ValueError for a time constant; nothing: what means no filter."""
    checks.check_positive(name, tau)
    check_unit(name, tau, dt, f"for no filter give {name}={nothing}")


def _decay(tau: float | Tensor | None, dt: float) -> float | Tensor:
    """exp(-dt / tau), a differentiable tensor where tau is one; 0 without a time constant."""
    if isinstance(tau, Tensor):
        return torch.exp(-dt / tau.to(torch.promote_types(tau.dtype, torch.float32)))
    return math.exp(-float(dt) / float(tau)) if tau else 0.0  # float: of NumPy numbers


def _map_state(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if state is None:
        return None
    return state.map(change) if isinstance(state, ReadoutState) else change(state)


def average_windows(y: Tensor | PackedSequence, every: int, batch_first: bool,
                    each: Tensor | None = None) -> Tensor | PackedSequence:
    """The means of results (T, B, O), (B, T, O), (T, O) or packed over windows of `every` steps.

    each (B,): the steps of each sequence of a padded batch. Raises ValueError unless all sequences
    end with a window.
    """
    checks.check_whole_number("readout_every", every, 1)
    if isinstance(y, PackedSequence):
        padded, lengths = pad_packed_sequence(y)
        means: Any = average_windows(padded, every, False, lengths)
        return repack(means, y._replace(batch_sizes=y.batch_sizes[::every]))
    if each is not None and is_readable(each) and bool((each % every).any()):
        odd = int(each[(each % every).nonzero()[0]])
        raise ValueError(f"readout_every: expected a divisor of the steps of each sequence, got "
                         f"{every} for one of {odd} steps")
    time = 1 if batch_first and y.dim() == 3 else 0
    T = y.shape[time]
    if T % every:
        raise ValueError(f"readout_every: expected a divisor of the T = {T} steps, got {every}")
    return y.unflatten(time, (T // every, every)).mean(time + 1)


class LeakyReadout(ParametrizedModule):
    """A leaky readout, y_t = W p_t + b of filtered spikes p_t = k p_{t-1} + (1 - k) z_t with
    k = exp(-dt / tau); with tau_syn a synaptic current precedes the filter.

    weight (output_size, n) is initialized as in the paper's code (Glorot uniform), bias
    (output_size,) is 0. Filter and product commute: the product comes first, so the filter has only
    output_size channels.

    Args:
        n: input channels.
        output_size: output channels.
        tau: time constant of the filter in the unit of dt (ms), > 0; None: no filter,
            y_t = W z_t + b. Default 20.
        dt: duration of a step (ms). Default 1.
        bias: whether there is a bias. Default True.
        batch_first: x is (B, T, n) instead of (T, B, n).
        learn: "tau", "tau_syn" or both: they become Parameters, stored as logarithms, so no step of
            an optimizer makes them negative. Default ().
        per_neuron: True: learned time constants have a number for each output, (output_size,).
        tau_syn: time constant of the synaptic current (ms), > 0, or 0: it does not carry over to
            the next step. Default None: no synaptic current.
        device, dtype: of the parameters.

    With tau_syn the output is the membrane of a neuron without spikes, and the bias is a current:

        i_t = k_syn i_{t-1} + W z_t + b,  k_syn = exp(-dt / tau_syn)
        y_t = p_t = k p_{t-1} + (1 - k) i_t

    In equilibrium the bias adds b / (1 - k_syn) to y. On the CPU the kernels of
    functional.recurrent compute it, elsewhere a loop over time; it has first derivatives only.

    Readouts of other packages, from a state of zeros:
        Yin et al. (output_Neuron)   tau_syn=0, tau=tau_m: the same equations
        norse LI, LILinearCell       tau_syn=-dt / log(1 - dt tau_syn_inv), tau likewise from
                                     tau_mem_inv, v_leak=0. Their membrane reads the current of the
                                     previous step: their v_t is y_{t-1} here, and 0 at first
        SpyTorch tutorials           exp(-dt / tau_syn) = alpha, exp(-dt / tau) = beta. Their
                                     membrane has gain 1 and reads the current of the previous step:
                                     their out_t is y_{t-1} / (1 - beta); divide W by 1 - beta

    Raises:
        TypeError, ValueError: an argument of the wrong type or range; the message names it.

    Source: Bellec et al., NeurIPS 2018.
    """

    def __init__(self, n: int, output_size: int, tau: float | None = 20.0, *, dt: float = 1.0,
                 bias: bool = True, batch_first: bool = False, learn: Learn = (),
                 per_neuron: bool = False, tau_syn: float | None = None,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        for name, size in (("n", n), ("output_size", output_size)):
            checks.check_whole_number(name, size, 1)
        checks.check_positive("dt", dt)
        if tau is not None:
            check_filter("tau", tau, dt)
        is_zero = isinstance(tau_syn, Real) and type(tau_syn) is not bool and tau_syn == 0
        if tau_syn is not None and not is_zero:
            check_filter("tau_syn", tau_syn, dt, "0")
        checks.check_flags(bias=bias, batch_first=batch_first, per_neuron=per_neuron)
        initial: dict[str, Any] = {name: None if one is None else float(one)
                                   for name, one in (("tau", tau), ("tau_syn", tau_syn))}
        self.learn, self._initial = _parse_learn(learn, initial), initial
        if per_neuron and not self.learn:
            raise ValueError("per_neuron: expected False without learned time constants, got True; "
                             "pass learn=(\"tau\",) too")
        self.n, self.output_size, self.dt, self.batch_first = n, output_size, float(dt), batch_first
        self.per_neuron = per_neuron
        self.weight = nn.Parameter(torch.empty(output_size, n, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(output_size, device=device,
                                             dtype=dtype)) if bias else None
        self.tau: float | Tensor | None
        self.tau_syn: float | Tensor | None
        for name, first in initial.items():
            if name not in self.learn:
                setattr(self, name, first)
                continue
            shape = (output_size,) if per_neuron else ()
            setattr(self, name, nn.Parameter(torch.ones(shape, device=device, dtype=dtype)))
            parametrize.register_parametrization(self, name, Log())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes weights (Glorot uniform), bias (0) and learned time constants (those of the
        constructor)."""
        with torch.no_grad():
            fill_parameter(self, "weight", nn.init.xavier_uniform_)
            if self.bias is not None:
                fill_parameter(self, "bias", nn.init.zeros_)
            for name in self.learn:
                fill_parameter(self, name, partial(nn.init.constant_, val=self._initial[name]))

    @property
    def decay(self) -> float | Tensor:
        """k, the decay over a step: 0 without a filter, a differentiable tensor if tau learns."""
        return _decay(self.tau, self.dt)

    def extra_repr(self) -> str:
        synapse = "" if self.tau_syn is None else f", tau_syn={format_value(self.tau_syn)}"
        return f"{self.n}, {self.output_size}, tau={format_value(self.tau)}{synapse}" + (
            f", learn={self.learn}" if self.learn else "") + (
            ", batch_first=True" if self.batch_first else "")

    def check_state(self, state: Any, batch: tuple[int, ...], x: Any = None,
                    name: str = "state") -> None:
        """Raises ValueError unless the state has shape (B, output_size), unbatched (output_size,),
        with a hint if x seems to have the wrong order of axes, and TypeError for another type;
        name: of the argument."""
        if state is None:
            return
        shape, leaves = (*batch, self.output_size), {name: state}
        if self.tau_syn is not None:
            if not isinstance(state, ReadoutState):
                raise TypeError(f"{name}: expected a ReadoutState{ReadoutState._fields} of a "
                                f"readout with tau_syn, got {describe_kind(state)}")
            leaves = {f"{name}.{part}": leaf for part, leaf in state._asdict().items()}
        for of, leaf in leaves.items():
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{of}: expected a tensor of shape {shape}, got "
                                f"{type(leaf).__name__}")
            if tuple(leaf.shape) != shape:
                hint = checks.hint_batch_first(tuple(leaf.shape)[:-1], batch, x, self.batch_first)
                raise ValueError(f"{of}: expected shape {shape}, got {tuple(leaf.shape)}{hint}")
            refuse_freed_graph(leaf, of)

    def batch_of(self, x: Tensor | PackedSequence) -> tuple[int, ...]:
        """(B,), or () for an unbatched x."""
        if isinstance(x, PackedSequence):
            return (int(x.batch_sizes[0]),)
        return (x.shape[0 if self.batch_first else 1],) if x.dim() == 3 else ()

    def forward(self, x: Tensor | PackedSequence, state: Any = None, *,
                lengths: LengthsArgument | None = None) -> tuple[Tensor | PackedSequence, Any]:
        """Runs a whole sequence.

        Args:
            x: (T, B, n), (B, T, n) with batch_first, (T, n) unbatched, or a PackedSequence.
            state: W p (B, output_size) after the previous step, unbatched (output_size,); with
                tau_syn a ReadoutState. Default zeros.
            lengths: (B,) steps of each sequence of a padded batch, as of ALIF; y is 0 after them.

        Returns:
            y in the form of x with output_size channels, and the state after the last step. Both
            are float32 if x is float16 or bfloat16.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape; the message names it.
        """
        if isinstance(x, PackedSequence):
            checks.check_tensor("x.data", x.data)
            if x.data.dim() != 2 or x.data.shape[-1] != self.n:
                raise ValueError(f"x: expected packed rows (sum of lengths, {self.n}), got "
                                 f"{tuple(x.data.shape)}")
        else:
            checks.check_tensor("x", x, " or a PackedSequence")
            if x.dim() not in (2, 3) or x.shape[-1] != self.n:
                order = "B, T" if self.batch_first else "T, B"
                raise ValueError(f"x: expected shape ({order}, {self.n}) or (T, {self.n}), got "
                                 f"{tuple(x.shape)}")
        checks.check_lengths(x, lengths, self.batch_first)
        batch = self.batch_of(x)
        self.check_state(state, batch, x)
        sequence, lengths, restore = to_time_first(x, lengths, self.batch_first)
        carried = state if batch else _map_state(state, lambda leaf: leaf.unsqueeze(0))
        y, end = self._run(sequence, carried, lengths)
        return restore(y), end if batch else _map_state(end, lambda leaf: leaf.squeeze(0))

    def _run(self, x: Tensor, state: Any, lengths: LengthsArgument | None) -> tuple[Tensor, Any]:
        """y (T, B, O) and the state after x (T, B, n), which has been checked."""
        if self.tau_syn is None:
            y, end = functional.leaky_readout(x, self.weight, self.decay, state, lengths)
            if self.bias is not None:
                y = add_bias(y, self.bias, resolve_lengths(lengths, len(y), y.shape[1], y.device))
            return y, end
        (T, B, _), O = x.shape, self.output_size
        check_readout(x, self.weight, None)
        decays: dict[str, Coefficient] = {"k": self.decay, "k_syn": _decay(self.tau_syn, self.dt)}
        for name, k in decays.items():
            check_decay(name, k, self.weight, x, "x")
        each = resolve_lengths(lengths, T, B, x.device)
        if each is not None:
            x = each.mask(x)
        current = project_to_outputs(x, self.weight)
        if self.bias is not None:
            current = current + self.bias.to(current.dtype)
        carried = None
        if state is not None:
            for name, leaf in state._asdict().items():
                check_state_leaf(name, leaf, (B, O), current.dtype, x.device, "x")
            carried = NeuronState({"i": state.i}, state.p[None])
        if T == 1 and each is None:  # bitwise identical, without the overhead of dispatch
            zero = current.new_zeros(B, O)
            k, k_syn = (one.to(current.dtype) if isinstance(one, Tensor) else one
                        for one in decays.values())
            i, p = _step(current[0], *((zero, zero) if state is None else (state.i, state.p)),
                         k=k, k_syn=k_syn)
            return p[None].clone(), ReadoutState(p, i)  # clone: y may be changed in place
        y, after = functional.recurrent(current, None, _NEURON, state=carried, lengths=lengths,
                                        **decays)  # type: ignore[arg-type, misc]
        return y, ReadoutState(after.z[0], after.states["i"])

    def step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step, equal to forward on it: x_t (B, n) or (n,) -> y and state (B, output_size) or
        (output_size,), the state a ReadoutState with tau_syn."""
        checks.check_tensor("x_t", x_t)
        if has_hooks(self):
            return checks.step_by_sequence(self, self.batch_first, x_t, state)
        if x_t.dim() not in (1, 2) or x_t.shape[-1] != self.n:
            raise ValueError(f"x_t: expected shape (B, {self.n}) or ({self.n},), got "
                             f"{tuple(x_t.shape)}")
        batch = tuple(x_t.shape[:-1])
        self.check_state(state, batch)
        if not batch:
            y, end = self.step(x_t[None], _map_state(state, lambda leaf: leaf[None]))
            return y[0], _map_state(end, lambda leaf: leaf[0])
        y, end = self._run(x_t[None], state, None)
        return y[0], end
