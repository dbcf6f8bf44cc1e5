"""The recurrence in plain torch, one line per equation, differentiated by autograd: the form to compare others with.

Per batch item and neuron: v membrane, a adaptation, i synaptic current, r steps for which no spike may come,
z past spikes.  A prime is the value carried from the step before.  Coefficients are scalars or (N,).

    (1) c = x_t + sum_j w_jk z_j[t-1-d_jk]           d_jk: extra delay, one for all or one per synapse
    (2) i = sigma i' + c
    (3) a = rho a' + q e' + p v'                     e' = drive: spike z' | cross [v' over A'] | above [v' over theta]
    (4) A = theta + beta a
    (5) y = alpha v' + kappa (i - eta a)
    (6) u = reset(y, z') when = next, else y         reset(y, z) = y - z A | y - z R | (1 - z) y + z R
    (7) m = (n - A) / s                              n = u (test new) or v' (old);  s = width (scale 1) or width A
        z = [m > 0] (ge: >=), 0 while r' > 0         dz/dm := psi(m), 0 while r' > 0
    (8) v = reset(u, z) when = now, else u
    (9) r = refractory after a spike, else max(r' - 1, 0)
    stop: no gradient through   rec: z in (1) | adapt: e' in (3) | reset: z in (6), (8) | thr: A in (7)

Terms are evaluated from left to right exactly as written, so that a compiled form can agree bit for bit.
"""
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Coefficient: TypeAlias = float | Tensor

COEFFICIENTS = ("alpha", "kappa", "rho", "q", "p", "beta", "eta", "theta", "sigma", "width", "R")


class State(NamedTuple):
    """What is carried from one step to the next; two calls that pass it on equal one call."""

    v: Tensor  # (B, N) membrane
    a: Tensor  # (B, N) adaptation
    i: Tensor  # (B, N) synaptic current
    r: Tensor  # (B, N) steps for which no spike may come: whole numbers in the dtype of v, not differentiable
    z: Tensor  # (D, B, N) past spikes, newest first; D = 1 + the largest extra delay


class Traces(NamedTuple):
    """The values of every step, each (T, B, N)."""

    v: Tensor  # (8)
    a: Tensor  # (3)
    threshold: Tensor  # A of (4)


@dataclass(frozen=True)
class Row:
    """One model: the constants of the recurrence, then the rules for what the caller leaves out."""

    test: Literal["new", "old"] = "new"
    ge: bool = False
    scale: Literal["1", "A"] = "1"
    reset: Literal["A", "R", "to"] = "R"
    when: Literal["next", "now"] = "next"
    drive: Literal["spike", "cross", "above"] = "spike"
    stop: tuple[str, ...] = ()
    surrogate: str = "triangle"
    dampening: float = 0.3
    width: float | None = 1.0  # None: theta
    kappa: Literal["1", "1-alpha"] = "1-alpha"
    q: Literal["1", "1-rho"] = "1-rho"
    R: Literal["theta", "0", "alpha", "unused"] = "theta"
    beta: Literal["0", "theta"] = "0"
    eta: float = 0.0


_LSNN = Row(test="old", scale="A", reset="A", R="unused")
_EPROP = Row(scale="A")
_ELIG = Row(width=None, kappa="1", q="1")
_TIMIT = replace(_ELIG, drive="cross")
_SRNN = Row(reset="A", R="unused", surrogate="multi_gaussian", dampening=0.5, width=0.5)
_NORSE = Row(reset="to", R="0", when="now", stop=("reset",),
             surrogate="fast_sigmoid", dampening=0.01, width=0.01, q="1")
_SNN = Row(stop=("reset",), surrogate="arctan", dampening=1 / math.pi, width=1 / math.pi, kappa="1", q="1")
_SINABS = Row(ge=True, scale="A", reset="A", R="unused", when="now", stop=("thr",),
              surrogate="exponential", dampening=1.0, width=0.5)
_SJ = Row(ge=True, when="now", surrogate="sigmoid", dampening=1.0, width=0.25, q="1")

ROWS: dict[str, Row] = {
    "lsnn": _LSNN,
    "eprop": _EPROP,
    "eprop_stop": replace(_EPROP, stop=("rec", "reset")),
    "eprop_elig": _ELIG,
    "eprop_elig_stop": replace(_ELIG, stop=("rec", "reset")),
    "eprop_timit": _TIMIT,
    "eprop_timit_stop": replace(_TIMIT, stop=("rec", "reset")),
    "srnn": _SRNN,
    "norse_lsnn": replace(_NORSE, stop=("reset", "adapt"), q="1-rho"),
    "norse_lif": _NORSE,
    "snntorch_sub": _SNN,
    "snntorch_zero": replace(_SNN, reset="to", R="0"),
    "snntorch_zero_now": replace(_SNN, reset="to", R="0", when="now", stop=()),
    "snntorch_sub_now": replace(_SNN, when="now", drive="above", stop=(), beta="theta"),
    "sinabs_sub": _SINABS,
    "sinabs_zero": replace(_SINABS, reset="to", R="0", stop=("thr", "reset")),
    "sj_soft": _SJ,
    "sj_hard": replace(_SJ, reset="to", R="0"),
    "sj_soft_det": replace(_SJ, stop=("reset",)),
    "sj_hard_det": replace(_SJ, reset="to", R="0", stop=("reset",)),
    "adlif": Row(R="alpha", surrogate="boxcar", dampening=1.0, width=1.0, eta=1.0),
    "se_adlif": Row(reset="to", R="0", when="now", stop=("reset",),
                    surrogate="exponential", dampening=0.2, width=0.2, eta=1.0),
}


class Surrogate(NamedTuple):
    """A pseudo-derivative: dz/dm := dampening * psi(m); integral is its antiderivative, rising from 0 (or 1/2)."""

    psi: Callable[[Tensor], Tensor]
    integral: Callable[[Tensor], Tensor]


def _density(m: Tensor) -> Tensor:
    return torch.exp(-m * m / 2) / math.sqrt(2 * math.pi)


def _cumulative(m: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.erf(m / math.sqrt(2.0))


def _triangle_integral(m: Tensor) -> Tensor:
    inside = m.clamp(-1, 1)
    return 0.5 + inside - inside * inside.abs() / 2


SURROGATES: dict[str, Surrogate] = {
    "triangle": Surrogate(lambda m: torch.relu(1 - m.abs()), _triangle_integral),
    "boxcar": Surrogate(lambda m: ((m > -0.5) & (m <= 0.5)).to(m.dtype), lambda m: m.clamp(-0.5, 0.5) + 0.5),
    "fast_sigmoid": Surrogate(lambda m: 1 / ((1 + m.abs()) * (1 + m.abs())), lambda m: 1 + m / (1 + m.abs())),
    "arctan": Surrogate(lambda m: 1 / (1 + m * m), lambda m: math.pi / 2 + torch.atan(m)),
    "sigmoid": Surrogate(lambda m: torch.sigmoid(m) * torch.sigmoid(-m), torch.sigmoid),
    "exponential": Surrogate(lambda m: torch.exp(-m.abs()), lambda m: 1 - torch.sign(m) * torch.expm1(-m.abs())),
    "gaussian": Surrogate(_density, _cumulative),
    # A tall bell of width 1 less two low ones of width 6 at -1 and 1 (Yin et al.); the .15 of their areas is .025 * 6.
    "multi_gaussian": Surrogate(
        lambda m: 1.15 * _density(m) - 0.025 * (_density((m - 1) / 6) + _density((m + 1) / 6)),
        lambda m: 1.15 * _cumulative(m) - 0.15 * (_cumulative((m - 1) / 6) + _cumulative((m + 1) / 6)),
    ),
}


def named_row(dynamics: str) -> Row:
    """The row of the table with this name."""
    if dynamics not in ROWS:
        raise ValueError(f"dynamics: unknown row {dynamics!r}, expected one of {', '.join(ROWS)}")
    return ROWS[dynamics]


def named_surrogate(name: str) -> Surrogate:
    """The pseudo-derivative with this name."""
    if name not in SURROGATES:
        raise ValueError(f"surrogate: unknown {name!r}, expected one of {', '.join(SURROGATES)}")
    return SURROGATES[name]


def coefficients(dynamics: str, *, alpha: Coefficient, theta: Coefficient, rho: Coefficient | None = None,
                 beta: Coefficient | None = None, kappa: Coefficient | None = None, q: Coefficient | None = None,
                 p: Coefficient | None = None, eta: Coefficient | None = None, sigma: Coefficient | None = None,
                 width: Coefficient | None = None, R: Coefficient | None = None) -> dict[str, Coefficient]:
    """All COEFFICIENTS, those left out (None) by the rules of the row; keeps the graph of what was given."""
    row = named_row(dynamics)
    rho = 0.0 if rho is None else rho
    rules: dict[str, Coefficient] = {"0": 0.0, "1": 1.0, "1-alpha": 1 - alpha, "1-rho": 1 - rho,
                                     "theta": theta, "alpha": alpha, "unused": 0.0}
    return {
        "alpha": alpha,
        "kappa": rules[row.kappa] if kappa is None else kappa,
        "rho": rho,
        "q": rules[row.q] if q is None else q,
        "p": 0.0 if p is None else p,
        "beta": rules[row.beta] if beta is None else beta,
        "eta": row.eta if eta is None else eta,
        "theta": theta,
        "sigma": 0.0 if sigma is None else sigma,
        "width": (theta if row.width is None else row.width) if width is None else width,
        "R": rules[row.R] if R is None else R,
    }


class _OnlyOnce(torch.autograd.Function):
    """Gradients as they are; what asks for their gradient gets an error, as a spike has no second derivative."""

    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """The first n of the tensors; the others are what they depend on."""
        return tuple(None if t is None else t.clone() for t in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError("lsnn_ext: expected one derivative, got a second derivative, which spikes do not have")


def only_once(gradients: Sequence[Tensor | None], depend_on: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients that a backward pass has computed, for what records it (create_graph=True): without this they would
    count as constants there, and their own gradients be dropped without a word."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    unsaved = torch.zeros((), requires_grad=True)  # stands for what they depend on and was not saved
    return _OnlyOnce.apply(len(gradients), *gradients, unsaved, *depend_on)


class _Spike(torch.autograd.Function):
    """z of (7): the test, or for smooth spikes the antiderivative; the gradient is dampening * psi(m) in both."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, fired: Tensor, surrogate: Surrogate, dampening: float, smooth: bool) -> Tensor:
        ctx.save_for_backward(m)
        ctx.psi, ctx.dampening = surrogate.psi, dampening
        return dampening * surrogate.integral(m) if smooth else fired.to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (m,) = ctx.saved_tensors
        with torch.no_grad():
            found = gradient * (ctx.dampening * ctx.psi(m))
        return *only_once([found], [gradient, m]), None, None, None, None


def _over(ge: bool, d: Tensor) -> Tensor:
    return d >= 0 if ge else d > 0


def stopped(value: Tensor) -> Tensor:
    """The value without its gradient: every stop of the table goes through here, so that a test can hold it fixed."""
    return value.detach()


class _Model(NamedTuple):
    """A row with its coefficients, ready to step."""

    row: Row
    k: dict[str, Tensor]
    synapses: list[tuple[int, Tensor]]  # (d, weights of the synapses with extra delay d), d ascending
    refractory: int
    spike: Callable[[Tensor, Tensor], Tensor]  # of m, and of whether it passes the test

    def stop(self, path: str, value: Tensor) -> Tensor:
        return stopped(value) if path in self.row.stop else value

    def reset(self, y: Tensor, z: Tensor, A: Tensor) -> Tensor:
        if self.row.reset == "to":
            return (1 - z) * y + z * self.k["R"]
        return y - z * (A if self.row.reset == "A" else self.k["R"])

    def margin(self, n: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """m of (7), and whether it passes the test, which divides nothing; m is 0 where s is no normal number."""
        d, width = n - A, self.k["width"]
        if self.row.scale == "1":
            return d / width, _over(self.row.ge, d)
        s = width * A
        vanishes = s.abs() < torch.finfo(s.dtype).tiny
        m = torch.where(vanishes, 0.0, d / torch.where(vanishes, 1.0, s))
        return m, _over(self.row.ge, torch.where(A < 0, -d, d))

    def drive(self, s: State) -> Tensor:
        if self.row.drive == "cross":
            A = self.k["theta"] + self.k["beta"] * s.a
            return self.stop("adapt", self.spike(*self.margin(s.v, A)))
        if self.row.drive == "above":  # a bare test: it never had a gradient
            return _over(self.row.ge, s.v - self.k["theta"]).to(s.v.dtype)
        return self.stop("adapt", s.z[0])

    def step(self, x: Tensor, s: State) -> tuple[State, Tensor]:
        """One step: the new state, and the moving threshold A."""
        row, k = self.row, self.k
        c = x + sum(self.stop("rec", s.z[d]) @ w for d, w in self.synapses)  # (1)
        i = k["sigma"] * s.i + c  # (2)
        a = k["rho"] * s.a + k["q"] * self.drive(s) + k["p"] * s.v  # (3)
        A = k["theta"] + k["beta"] * a  # (4)
        y = k["alpha"] * s.v + k["kappa"] * (i - k["eta"] * a)  # (5)
        u = self.reset(y, self.stop("reset", s.z[0]), A) if row.when == "next" else y  # (6)
        m, over = self.margin(u if row.test == "new" else s.v, self.stop("thr", A))  # (7)
        free = ~(s.r > 0)
        z = torch.where(free, self.spike(m, over), torch.zeros_like(m))
        v = self.reset(u, self.stop("reset", z), A) if row.when == "now" else u  # (8)
        r = torch.where(free & over, torch.full_like(s.r, self.refractory), (s.r - 1).clamp(min=0))  # (9)
        return State(v, a, i, r, torch.cat([z[None], s.z[:-1]])), A


def _synapses(w: Tensor | None, delay: int | Tensor | Sequence[int]) -> list[tuple[int, Tensor]]:
    if w is None:
        return []
    if w.dim() == 3:
        return list(zip([delay] if isinstance(delay, int) else [int(d) for d in delay], w, strict=True))
    if isinstance(delay, int):
        return [(delay, w)]
    assert isinstance(delay, Tensor)
    delay = delay.to(w.device)
    return [(d, torch.where(delay == d, w, torch.zeros_like(w))) for d in sorted(set(delay.flatten().tolist()))]


def alif(current: Tensor, w_rec: Tensor | None, *, alpha: Coefficient, theta: Coefficient,
         rho: Coefficient | None = None, beta: Coefficient | None = None, kappa: Coefficient | None = None,
         q: Coefficient | None = None, p: Coefficient | None = None, eta: Coefficient | None = None,
         sigma: Coefficient | None = None,
         R: Coefficient | None = None, refractory: int = 0, delay: int | Tensor | Sequence[int] = 0,
         dynamics: str = "lsnn",
         surrogate: str | None = None, dampening: float | None = None, width: Coefficient | None = None,
         state: State | None = None, trace: bool = False, smooth: bool = False,
         checkpoint_every: int | str | None = None, saved_dtype: torch.dtype | None = None, sparse_grad: bool = False,
         lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:
    """The whole sequence: (spikes, state), with trace=True (spikes, state, traces).

    current (T,B,N); w_rec (N,N), w_rec[j,k] from neuron j to neuron k; delay: extra delay d_jk >= 0 of (1), an int
    or integers (N,N). w_rec None: no recurrence; (S,N,N): a matrix for each of S delays.  Coefficients, surrogate,
    dampening and width that are None follow the row named by dynamics.
    state None is all zeros; of a state with more past spikes than the delays need the newest are used and returned.
    Half-precision currents are computed in float32: the spikes have the dtype of current, state and traces float32.
    smooth=True makes z = dampening * antiderivative(m), a real number, so that the whole recurrence is differentiable;
    the counter of (9) still follows the test.  checkpoint_every and saved_dtype save memory in the compiled form; here
    they are ignored.  sparse_grad=True gives synapses that are 0 no gradient.  lengths (B,): steps of each sequence,
    which keeps its state from there on; its spikes and traces are 0 then.
    """
    row = named_row(dynamics)
    shape = named_surrogate(row.surrogate if surrogate is None else surrogate)
    height = row.dampening if dampening is None else dampening
    (_, B, N), device = current.shape, current.device
    dtype = torch.promote_types(current.dtype, torch.float32)
    if sparse_grad and w_rec is not None:
        w_rec = torch.where(w_rec == 0, torch.zeros_like(w_rec), w_rec)
    given = coefficients(dynamics, alpha=alpha, theta=theta, rho=rho, beta=beta, kappa=kappa, q=q, p=p, eta=eta,
                         sigma=sigma, width=width, R=R)
    k = {name: torch.as_tensor(value, dtype=dtype, device=device) for name, value in given.items()}
    synapses = _synapses(None if w_rec is None else w_rec.to(dtype), delay)
    spike: Callable[..., Tensor] = _Spike.apply
    model = _Model(row, k, synapses, refractory, lambda m, over: spike(m, over, shape, height, smooth))

    D = 1 + synapses[-1][0] if synapses else 1
    if state is None:
        zero = torch.zeros(B, N, dtype=dtype, device=device)
        state = State(zero, zero, zero, zero, zero.expand(D, B, N))
    if state.z.shape[0] < D:
        raise ValueError(f"state.z: holds {state.z.shape[0]} past steps, the delays need at least {D}")
    s = State(*(value.to(dtype) for value in state))
    s = s._replace(z=s.z[:D])

    steps: list[tuple[Tensor, ...]] = []
    each = None if lengths is None else torch.as_tensor(lengths, device=device)
    for t, x in enumerate(current.to(dtype)):
        if each is None:
            s, A = model.step(x, s)
            steps.append((s.z[0], s.v, s.a, A))
            continue
        runs = (t < each)[:, None]
        after, A = model.step(torch.where(runs, x, 0.0), s)
        s = State(*(torch.where(runs, new, old) for new, old in zip(after, s, strict=True)))
        steps.append(tuple(torch.where(runs, value, 0.0) for value in (s.z[0], s.v, s.a, A)))
    if steps:
        spikes, v, a, threshold = (torch.stack(values) for values in zip(*steps, strict=True))
    else:
        spikes = v = a = threshold = current.to(dtype)
    spikes = spikes.to(current.dtype)
    return (spikes, s, Traces(v, a, threshold)) if trace else (spikes, s)
