"""The leaky readout: filtered spikes, weighed and summed."""
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import functional
from .._core.arguments import answer_for_freed, readable
from .._core.lengths import GivenLengths, add_bias, lengths_of
from .._core.torch_internals import has_hooks
from .copies import Copied
from .forms import check_tensor, renew
from .given import batch_hint, check_lengths
from .layer_arguments import Learn
from .neuron import SHORTEST, flag, positive, shown, whole
from .parametrizations import Log


def _learned(learn: Any, tau: float | None) -> tuple[str, ...]:
    """What a readout learns, ("tau",) or (). Raises TypeError or ValueError naming the argument."""
    asked = (learn,) if isinstance(learn, str) else learn
    if not isinstance(asked, Iterable):
        raise TypeError(f"learn: expected \"tau\" or nothing, got {learn!r}")
    forms = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked)
    for name, form in forms.items():
        if name != "tau":
            raise ValueError(f"learn: expected \"tau\" or nothing, got {name!r}")
        if type(form) is not Log and form not in (None, "log"):
            raise ValueError(f"learn: expected \"log\" for the time constant of a readout, got "
                             f"{form!r}")
    if forms and tau is None:
        raise ValueError("tau: expected a number to learn from, got None")
    return tuple(forms)


def check_filter(name: str, tau: float, dt: float) -> None:
    """Raises ValueError for a time constant so far below a step that it must be in another unit."""
    positive(name, tau)
    if tau < dt / SHORTEST:
        raise ValueError(
            f"{name}: expected at least a tenth of a step, which is dt={dt:g}, got {tau:g}; both "
            f"are in one unit, milliseconds by default: for seconds give dt in seconds too; for no "
            f"filter at all give {name}=None")


def _check_windows(lengths: Tensor, every: int) -> None:
    """Raises ValueError for a sequence that ends within a window."""
    if readable(lengths) and bool((lengths % every).any()):
        odd = int(lengths[(lengths % every).nonzero()[0]])
        raise ValueError(f"readout_every: expected a divisor of the steps of each sequence, "
                         f"got {every} for one of {odd}")


def window_means(y: Tensor | PackedSequence, every: int, batch_first: bool,
                 each: Tensor | None = None) -> Tensor | PackedSequence:
    """The means of results (T, B, O), (B, T, O), (T, O) or packed over each so many steps; each
    (B,): the steps of each sequence of a padded batch. Raises ValueError where a sequence does not
    end with a window."""
    whole("readout_every", every, 1)
    if isinstance(y, PackedSequence):
        padded, lengths = pad_packed_sequence(y)
        _check_windows(lengths, every)
        means = padded.unflatten(0, (-1, every)).mean(1)
        return pack_padded_sequence(means, lengths // every,
                                    enforce_sorted=y.sorted_indices is None)
    if each is not None:
        _check_windows(each, every)
    time = 1 if batch_first and y.dim() == 3 else 0
    T = y.shape[time]
    if T % every:
        raise ValueError(f"readout_every: expected a divisor of the T = {T} steps, got {every}")
    return y.unflatten(time, (T // every, every)).mean(time + 1)


def with_bias(y: Tensor, bias: Tensor | None, lengths: GivenLengths | None,
              first: bool) -> Tensor:
    """add_bias of a readout (T, B, O), first: (B, T, O), or of any form without lengths."""
    if bias is None:
        return y
    if lengths is None:
        return add_bias(y, bias, None)
    steps_first = y.transpose(0, 1) if first else y
    T, B, _ = steps_first.shape
    y = add_bias(steps_first, bias, lengths_of(lengths, T, B, y.device))
    return y.transpose(0, 1) if first else y


class LeakyReadout(Copied):
    """y_t = W p_t + b with the filtered spikes p_t = k p_{t-1} + (1 - k) z_t, k = exp(-dt / tau)
    (Bellec et al. 2018).

    n, output_size   channels in and out
    tau              time constant of the filter in the unit of dt (ms), > 0, default 20; None: no
                     filter, y_t = W z_t + b
    dt               duration of a step (ms), default 1
    batch_first      x is (B, T, n) instead of (T, B, n)
    learn            "tau" or ("tau",): tau becomes a Parameter, its logarithm, so that no step of
                     an optimizer makes it negative; default (): it stays
    per_neuron       True: a learned tau for each output, (output_size,); False: one

    weight (output_size, n) is drawn as in the paper's code (Glorot uniform), bias (output_size,) is
    0. The filter and the product commute, so the product comes first and the filter runs over
    output_size channels only. Raises ValueError naming the argument for what is out of range.
    """

    def __init__(self, n: int, output_size: int, tau: float | None = 20.0, *, dt: float = 1.0,
                 bias: bool = True, batch_first: bool = False, learn: Learn = (),
                 per_neuron: bool = False, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        for name, size in (("n", n), ("output_size", output_size)):
            whole(name, size, 1)
        positive("dt", dt)
        if tau is not None:
            check_filter("tau", tau, dt)
        for name, value in (("bias", bias), ("batch_first", batch_first),
                            ("per_neuron", per_neuron)):
            flag(name, value)
        self.learn = _learned(learn, tau)
        if per_neuron and not self.learn:
            raise ValueError("per_neuron: expected learn=(\"tau\",) beside it, got a tau that does "
                             "not learn")
        tau = None if tau is None else float(tau)
        self.n, self.output_size, self.dt, self.batch_first = n, output_size, float(dt), batch_first
        self.per_neuron, self._first_tau = per_neuron, tau
        self.weight = nn.Parameter(torch.empty(output_size, n, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(output_size, device=device,
                                             dtype=dtype)) if bias else None
        self.tau: float | Tensor | None
        if self.learn:
            shape = (output_size,) if per_neuron else ()
            self.tau = nn.Parameter(torch.ones(shape, device=device, dtype=dtype))
            parametrize.register_parametrization(self, "tau", Log())
        else:
            self.tau = tau
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot uniform weights, bias 0; a learned tau as the readout was made."""
        with torch.no_grad():
            renew(self, "weight", nn.init.xavier_uniform_)
            if self.bias is not None:
                renew(self, "bias", nn.init.zeros_)
            if self.learn and self._first_tau is not None:
                renew(self, "tau", partial(nn.init.constant_, val=self._first_tau))

    @property
    def decay(self) -> float | Tensor:
        """k, the decay over a step; 0 without a filter, a differentiable tensor where tau
        learns."""
        if self.tau is None:
            return 0.0
        if isinstance(self.tau, Tensor):
            tau = self.tau.to(torch.promote_types(self.tau.dtype, torch.float32))
            return torch.exp(-self.dt / tau)
        return math.exp(-float(self.dt) / float(self.tau))  # of numpy's numbers too

    def extra_repr(self) -> str:
        """Sizes and time constant; where it learns, that of now."""
        return f"{self.n}, {self.output_size}, tau={shown(self.tau)}" + (
            f", learn={self.learn}" if self.learn else "") + (
            ", batch_first=True" if self.batch_first else "")

    def check_state(self, state: Tensor | None, batch: tuple[int, ...], x: Any = None,
                    name: str = "state") -> None:
        """Raises ValueError for a state of another shape than (B, output_size), or (output_size,)
        unbatched, with a hint where x seems to be batch first or not; name: of the argument."""
        want = (*batch, self.output_size)
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(f"{name}: expected a tensor of shape {want}, got "
                            f"{type(state).__name__}")
        if state is not None and tuple(state.shape) != want:
            hint = batch_hint(tuple(state.shape)[:-1], batch, x, self.batch_first)
            raise ValueError(f"{name}: expected shape {want}, got {tuple(state.shape)}{hint}")
        answer_for_freed(state, name)

    def batch_of(self, x: Tensor | PackedSequence) -> tuple[int, ...]:
        """(B,), or () of an unbatched x."""
        if isinstance(x, PackedSequence):
            return (int(x.batch_sizes[0]),)
        return (x.shape[0 if self.batch_first else 1],) if x.dim() == 3 else ()

    def forward(self, x: Tensor | PackedSequence, state: Tensor | None = None, *,
                lengths: GivenLengths | None = None) -> tuple[Tensor | PackedSequence, Tensor]:
        """x (T, B, n), (B, T, n) with batch_first, (T, n) unbatched, or a PackedSequence -> (y,
        state).

        y has the form of x with output_size channels; state (B, output_size), unbatched
        (output_size,), is W p after the last step, None is zero; both are float32 where x is
        float16 or bfloat16. lengths (B,): steps of each sequence of a padded batch, as of ALIF; y
        is 0 after them. Raises TypeError for an x that is no tensor, ValueError for wrong shapes.
        """
        if isinstance(x, PackedSequence):
            check_lengths(x, lengths, self.batch_first)
            return self._packed(x, state)
        check_tensor("x", x, " or a PackedSequence")
        form = f"({'B, T' if self.batch_first else 'T, B'}, {self.n}) or (T, {self.n})"
        if x.dim() not in (2, 3) or x.shape[-1] != self.n:
            raise ValueError(f"x: expected shape {form}, got {tuple(x.shape)}")
        check_lengths(x, lengths, self.batch_first)
        batched, first, given = x.dim() == 3, self.batch_first and x.dim() == 3, x
        x = x.transpose(0, 1) if first else x if batched else x.unsqueeze(1)
        self.check_state(state, (x.shape[1],) if batched else (), given)
        carried = state if state is None or batched else state.unsqueeze(0)
        y, end = functional.leaky_readout(x, self.weight, self.decay, carried, lengths)
        y = with_bias(y, self.bias, lengths, False)
        if not batched:
            return y.squeeze(1), end.squeeze(0)
        return y.transpose(0, 1) if first else y, end

    def _packed(self, x: PackedSequence, state: Tensor | None) -> tuple[PackedSequence, Tensor]:
        check_tensor("x.data", x.data)
        if x.data.dim() != 2 or x.data.shape[-1] != self.n:
            raise ValueError(f"x: expected packed rows (sum of lengths, {self.n}), got "
                             f"{tuple(x.data.shape)}")
        self.check_state(state, self.batch_of(x))
        padded, lengths = pad_packed_sequence(x)  # in the order given
        y, end = functional.leaky_readout(padded, self.weight, self.decay, state, lengths)
        y = with_bias(y, self.bias, None, False)
        sorted_too = x.sorted_indices is None
        return pack_padded_sequence(y, lengths, enforce_sorted=sorted_too), end

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step, equal to forward on it: x_t (B, n) or (n,) -> y, state: (B, output_size),
        (output_size,)."""
        check_tensor("x_t", x_t)
        if has_hooks(self):
            time = 1 if self.batch_first and x_t.dim() == 2 else 0
            y, end = self(x_t.unsqueeze(time), state)
            return y.squeeze(time), end
        if x_t.dim() not in (1, 2) or x_t.shape[-1] != self.n:
            raise ValueError(f"x_t: expected shape (B, {self.n}) or ({self.n},), got "
                             f"{tuple(x_t.shape)}")
        batch = tuple(x_t.shape[:-1])
        self.check_state(state, batch)
        x, carried = (
            (x_t[None], state)
            if batch
            else (x_t[None, None], None if state is None else state[None])
        )
        y, end = functional.leaky_readout(x, self.weight, self.decay, carried)
        y = y[0] if self.bias is None else y[0] + self.bias
        return (y, end) if batch else (y[0], end[0])
