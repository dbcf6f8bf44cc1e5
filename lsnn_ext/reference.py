"""The reference: the recurrence in plain torch, one line per equation, differentiated by autograd.

Numbers in brackets are the equations of docs/equations.md, which explains letters and choices.
Terms are evaluated from left to right as written, so that the compiled kernels can be bitwise
identical.
"""
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from ._core.autograd_rules import forbid_second_derivative
from ._core.coefficients import complete_coefficients
from ._core.lengths import Lengths
from ._core.options import ALIF_DEFAULTS, AlifOptions, document, split_options
from ._core.state import State, Traces
from ._core.surrogates import SURROGATES, Surrogate, find_cutoff
from ._core.synapses import Synapses, split_synapses
from .models import COEFFICIENTS, Model, check_surrogate, find_model

__all__ = ["alif", "leaky_readout"]


class _Stepper(NamedTuple):
    """A model with its coefficients; step computes one step."""

    model: Model
    k: dict[str, Tensor]
    synapses: Synapses
    refractory: int
    spike: Callable[[Tensor, Tensor], Tensor]  # of m, and whether m passes the test

    def step(self, x: Tensor, s: State) -> tuple[State, Tensor]:
        """The state after one step, and the moving threshold A."""
        model, k = self.model, self.k
        c = x + self.synapses.sum(self.detach("rec", s.z))  # (1)
        i = k["sigma"] * s.i + c  # (2)
        a = k["rho"] * s.a + k["q"] * self.compute_drive(s) + k["p"] * s.v  # (3)
        A = k["theta"] + k["beta"] * a  # (4)
        y = k["alpha"] * s.v + k["kappa"] * (i - k["eta"] * a)  # (5)
        u = self.reset(y, self.detach("reset", s.z[0]), A) if model.when == "next" else y  # (6)
        n = u if model.test == "new" else s.v
        m, over = self.compute_margin(n, self.detach("thr", A))  # (7)
        free = ~(s.r > 0)
        z = torch.where(free, self.spike(m, over), torch.zeros_like(m))
        v = self.reset(u, self.detach("reset", z), A) if model.when == "now" else u  # (8)
        # (9)
        r = torch.where(free & over, torch.full_like(s.r, self.refractory), (s.r - 1).clamp(min=0))
        return State(v, a, i, r, torch.cat([z[None], s.z[:-1]])), A

    def compute_drive(self, s: State) -> Tensor:
        """e' of (3)."""
        if self.model.drive == "cross":
            A = self.k["theta"] + self.k["beta"] * s.a
            return self.detach("adapt", self.spike(*self.compute_margin(s.v, A)))
        if self.model.drive == "above":  # only the test, which has no gradient
            return _passes_test(self.model.ge, s.v - self.k["theta"]).to(s.v.dtype)
        return self.detach("adapt", s.z[0])

    def reset(self, y: Tensor, z: Tensor, A: Tensor) -> Tensor:
        """y after the reset of a spike z, (6) and (8)."""
        if self.model.reset == "to":
            return (1 - z) * y + z * self.k["R"]
        return y - z * (A if self.model.reset == "A" else self.k["R"])

    def compute_margin(self, n: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """m of (7), 0 if s is zero or subnormal, and whether the test passes, without division."""
        d, width = n - A, self.k["width"]
        if self.model.scale == "1":
            return d / width, _passes_test(self.model.ge, d)
        s = width * A
        vanishes = s.abs() < torch.finfo(s.dtype).tiny
        m = torch.where(vanishes, 0.0, d / torch.where(vanishes, 1.0, s))
        return m, _passes_test(self.model.ge, torch.where(A < 0, -d, d))

    def detach(self, path: str, value: Tensor) -> Tensor:
        """The value, detached if the model detaches this path."""
        return stop_gradient(value) if path in self.model.detach else value


def _passes_test(ge: bool, d: Tensor) -> Tensor:
    return d >= 0 if ge else d > 0


def stop_gradient(value: Tensor) -> Tensor:
    """The value, detached: a function, so that tests can replace it for all models."""
    return value.detach()


class _Spike(torch.autograd.Function):
    """z of (7), or with smooth=True its antiderivative; the gradient is dampening * psi(m)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, fired: Tensor, surrogate: Surrogate, dampening: float, cutoff: float,
                smooth: bool) -> Tensor:
        return dampening * surrogate.integral(m) if smooth else fired.to(m.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        m, _, surrogate, dampening, cutoff, _ = inputs
        ctx.save_for_backward(m)
        ctx.psi, ctx.dampening, ctx.cutoff = surrogate.psi, dampening, cutoff

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (m,) = ctx.saved_tensors
        with torch.no_grad():
            psi = torch.where(m.abs() >= ctx.cutoff, 0.0, ctx.psi(m))
            found = gradient * (ctx.dampening * psi)
        return *forbid_second_derivative([found], [gradient, m]), None, None, None, None, None


@document(AlifOptions, ALIF_DEFAULTS)
def alif(
    current: Tensor, w_rec: Tensor | None, **options: Unpack[AlifOptions],
) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:
    """Spikes and state of a whole sequence, by a loop over time that autograd differentiates.

    checkpoint_every and saved_dtype are ignored. The refractory counter of equation (9) follows the
    test of equation (7), also with smooth=True.

    Args:
        current: (T, B, N) input current; half precision is computed in float32.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k; (S, N, N): a matrix
            for each of S delays; None: no recurrence.
        **options

    Returns:
        spikes (T, B, N) in the dtype of current, the State after the last step, and with trace=True
        the Traces.

    Raises:
        TypeError, ValueError: an unknown option, or one out of range.
    """
    neuron, call = split_options("reference.alif", options)
    model = find_model(neuron.dynamics)
    name = model.surrogate if neuron.surrogate is None else neuron.surrogate
    check_surrogate(name)
    cutoff = find_cutoff(name, neuron.surrogate_cutoff, call.smooth)
    height = model.dampening if neuron.dampening is None else neuron.dampening
    state, lengths = call.state, call.lengths
    (_, B, N), device = current.shape, current.device
    dtype = torch.promote_types(current.dtype, torch.float32)
    call.check()
    numbers: Any = {name: getattr(neuron, name) for name in COEFFICIENTS}
    k = {name: torch.as_tensor(value, dtype=dtype, device=device)
         for name, value in complete_coefficients(neuron.dynamics, **numbers).items()}
    synapses = split_synapses(None if w_rec is None else w_rec.to(dtype), call.delay, 1,
                              call.delay_kernel, call.recurrent_mask, call.autapses,
                              call.sparse_grad == "existing")
    spike: Callable[..., Tensor] = _Spike.apply
    stepper = _Stepper(
        model, k, synapses, neuron.refractory,
        lambda m, over: spike(m, over, SURROGATES[name], height, cutoff, call.smooth))

    D = synapses.D
    if state is None:
        zero = torch.zeros(B, N, dtype=dtype, device=device)
        state = State(zero, zero, zero, zero, zero.expand(D, B, N))
    if state.z.shape[0] < D:
        raise ValueError(f"state.z: expected {D} past steps or more for these delays, got "
                         f"{state.z.shape[0]}")
    s = State(*(value.to(dtype) for value in state))
    s = s._replace(z=s.z[:D])

    steps: list[tuple[Tensor, ...]] = []
    lengths = lengths.each if isinstance(lengths, Lengths) else lengths
    each = None if lengths is None else torch.as_tensor(lengths, device=device)
    for t, x in enumerate(current.to(dtype)):
        if each is None:
            s, A = stepper.step(x, s)
            steps.append((s.z[0], s.v, s.a, A))
            continue
        runs = (t < each)[:, None]
        after, A = stepper.step(torch.where(runs, x, 0.0), s)
        s = State(*(torch.where(runs, new, old) for new, old in zip(after, s, strict=True)))
        steps.append(tuple(torch.where(runs, value, 0.0) for value in (s.z[0], s.v, s.a, A)))
    if steps:
        spikes, v, a, threshold = (torch.stack(values) for values in zip(*steps, strict=True))
    else:
        spikes = v = a = threshold = current.to(dtype)
    spikes = spikes.to(current.dtype)
    return (spikes, s, Traces(v, a, threshold)) if call.trace else (spikes, s)


def leaky_readout(x: Tensor, p: Tensor | None, k: float) -> tuple[Tensor, Tensor]:
    """The readout of projected spikes.

    Args:
        x: (T, B, O) products of spikes and output weights.
        p: (B, O) before the first step, or None: zeros.
        k: decay per step.

    Returns:
        p of every step (T, B, O), and p after the last step (B, O).
    """
    last = x.new_zeros(x.shape[1:]) if p is None else p
    outputs = []
    for x_t in x:
        last = k * last + (1 - k) * x_t
        outputs.append(last)
    return torch.stack(outputs) if outputs else x, last
