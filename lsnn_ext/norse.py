"""Norse's recurrent layers, LSNNRecurrent and LIFRecurrent, as one fused operator over the
sequence.

    from lsnn_ext.norse import LSNNRecurrent    # in place of from norse.torch import LSNNRecurrent

Arguments, defaults, parameters, state and initialisation are those of norse 1.1.0; norse itself is
not imported, and need not be installed. docs/from_norse.md says which of its parameters is which of
functional.alif.

Source: Pehle and Pedersen, Norse (2021); the neurons are those of Bellec et al., NeurIPS 2018.
"""
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from . import functional
from ._core.route import spikes_of
from ._original import Original, Shape, as_steps, in_range, measured, refuse, state_of

__all__ = ["LIFParameters", "LIFRecurrent", "LIFState", "LSNNParameters", "LSNNRecurrent",
           "LSNNState"]


class LSNNParameters(NamedTuple):
    """Rates in 1/s where dt is in seconds. The default of tau_adapt_inv is norse's own, 1/800: with
    dt=0.001 the threshold hardly comes back."""

    tau_syn_inv: Any = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Any = torch.as_tensor(1.0 / 1e-2)
    tau_adapt_inv: Any = torch.as_tensor(1.0 / 800)
    v_leak: Any = torch.as_tensor(0.0)
    v_th: Any = torch.as_tensor(1.0)
    v_reset: Any = torch.as_tensor(0.0)
    beta: Any = torch.as_tensor(1.8)
    method: str = "super"
    alpha: Any = 100.0


class LIFParameters(NamedTuple):
    """Rates in 1/s where dt is in seconds."""

    tau_syn_inv: Any = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Any = torch.as_tensor(1.0 / 1e-2)
    v_leak: Any = torch.as_tensor(0.0)
    v_th: Any = torch.as_tensor(1.0)
    v_reset: Any = torch.as_tensor(0.0)
    method: str = "super"
    alpha: Any = torch.as_tensor(100.0)


class LSNNState(NamedTuple):
    """What a step leaves to the next, each (B, N): spikes, membrane, synaptic current,
    threshold."""

    z: Tensor
    v: Tensor
    i: Tensor
    b: Tensor


class LIFState(NamedTuple):
    """What a step leaves to the next, each (B, N): spikes, membrane, synaptic current."""

    z: Tensor
    v: Tensor
    i: Tensor


def one_step_late(x: Tensor) -> Tensor | functional.PackedSpikes:
    """Inputs (T, B, I) as norse's layers with adaptation have them: what comes in a step acts in
    the next one, and nothing in the first. Spikes as bits where that takes less time."""
    packed = spikes_of(x, x.dtype)
    if packed is None:
        return torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    bits = packed.bits
    return packed._replace(bits=torch.cat([torch.zeros_like(bits[:1]), bits[:-1]]))


def _shape(layer: str, method: str, alpha: Any, slope: float | None) -> Shape:
    """The derivative of norse's threshold function; slope: of "super", None where it is alpha."""
    if method == "super":
        width = 1 / (float(alpha) if slope is None else slope)
        return Shape("fast_sigmoid", width, width)
    if method == "triangle":
        return Shape("triangle", float(alpha), 1.0)
    if method == "tanh":  # 1 - tanh(alpha u)^2 = 4 sigmoid(2 alpha u) sigmoid(-2 alpha u)
        width = 1 / (2 * float(alpha))
        return Shape("sigmoid", 4 * width, width)
    if method == "heavi_erfc":  # 2 exp(-(alpha u)^2) / sqrt(pi), the root rounded as norse does
        width = 1 / (math.sqrt(2.0) * float(alpha))
        root = float(torch.as_tensor(math.pi).sqrt())
        return Shape("gaussian", 2 / root * math.sqrt(2 * math.pi) * width, width)
    if method == "heaviside":
        return Shape("boxcar", 0.0, 1.0)
    refuse(layer, "p.method", repr(method), "super, triangle, tanh, heavi_erfc or heaviside")


class _Constants(NamedTuple):
    """p in the dtype of the computation, the rates as shares of a step."""

    k_mem: Tensor
    k_syn: Tensor
    k_adapt: Tensor
    v_leak: Tensor
    v_th: Tensor
    v_reset: Tensor
    beta: Tensor


class _Recurrent(Original):
    """What both layers share."""

    _activation: ClassVar[str]  # norse's function of a step, without adjoint
    _late: ClassVar[bool]  # a current acts in the step after the one in which it came
    _state: type[Any]
    _parameters_kind: ClassVar[type[Any]]
    _slope: float | None = 1.0  # of method "super": 1.1.0 does not use alpha there
    once = ("record_states",)

    def __init__(self, input_size: int, hidden_size: int, p: Any, input_weights: Tensor | None,
                 recurrent_weights: Tensor | None, autapses: bool, dt: float,
                 record_states: bool) -> None:
        super().__init__()
        name = type(self).__name__
        if record_states:
            refuse(name, "record_states", record_states, "False")
        self.input_size, self.hidden_size = int(input_size), int(hidden_size)
        self.p, self.autapses, self.dt, self.record_states = p, autapses, dt, record_states
        _shape(name, p.method, p.alpha, self._slope)
        gain = torch.sqrt(torch.tensor(2.0) / self.hidden_size)
        if input_weights is None:
            input_weights = nn.Parameter(torch.randn(self.hidden_size, self.input_size) * gain)
        if recurrent_weights is None:
            recurrent_weights = nn.Parameter(torch.randn(self.hidden_size, self.hidden_size) * gain)
        self.input_weights, self.recurrent_weights = input_weights, recurrent_weights
        if not autapses:
            with torch.no_grad():
                self.recurrent_weights.fill_diagonal_(0.0)
            self.recurrent_weights.requires_grad_()
        # as norse's hook on the gradient does
        self._still_diagonal = not autapses

    def _adopt(self, module: Any) -> None:
        name, p = type(self).__name__, module.p
        if isinstance(p, tuple):  # of ours, as norse's LIFParameters cannot be pickled
            kind = self._parameters_kind
            p = kind(*(getattr(p, field) for field in kind._fields))
        if module.record_states:
            refuse(name, "record_states", module.record_states, "False")
        activation = module.activation
        if getattr(activation, "__name__", "") != self._activation:
            refuse(name, "activation", getattr(activation, "__name__", activation),
                   f"{self._activation}, hence neither adjoint=True nor method='adjoint'")
        if getattr(module.state_fallback, "__func__", None) is not type(module).initial_state:
            refuse(name, "state_fallback", module.state_fallback, "the initial_state of its class")
        threshold = activation.__globals__["threshold"]

        def spike(u: Tensor) -> Tensor:
            z: Tensor = threshold(u, p.method, p.alpha)
            return z

        if p.method == "super":
            u = torch.ones((), requires_grad=True)
            with torch.enable_grad():
                (found,) = torch.autograd.grad(spike(u), u)
            # 1.1.0 does not use alpha there, other versions do
            self._slope = 1.0 if abs(float(found) - 0.25) < 1e-6 else None
        measured(_shape(name, p.method, p.alpha, self._slope), spike, name, "p.method")
        self.input_size, self.hidden_size = int(module.input_size), int(module.hidden_size)
        self.p, self.autapses, self.dt, self.record_states = p, module.autapses, module.dt, False
        self.input_weights = module.input_weights
        self.recurrent_weights = module.recurrent_weights
        # a copy of a norse layer has lost the hook that keeps its diagonal from learning
        hooked = bool(module.recurrent_weights._backward_hooks)
        self._still_diagonal = hooked and not module.autapses
        # norse's own class of the state, which its users may ask for
        self._state = type(module).initial_state.__globals__[self._state.__name__]
        k = self._constants(torch.float64)
        in_range(name, {"1 - dt tau_mem_inv": 1 - k.k_mem, "1 - dt tau_syn_inv": 1 - k.k_syn,
                        "1 - dt tau_adapt_inv": 1 - k.k_adapt})

    def extra_repr(self) -> str:
        """As norse writes it."""
        return (f"input_size={self.input_size}, hidden_size={self.hidden_size}, p={self.p}, "
                f"autapses={self.autapses}, dt={self.dt}")

    def _constants(self, dtype: torch.dtype) -> _Constants:
        """Products of dt and a rate are rounded as norse rounds them, and then widened."""
        p, device = self.p, self.input_weights.device

        def of(value: Any) -> Tensor:
            return torch.as_tensor(value, device=device,
                                   dtype=None if isinstance(value, Tensor) else dtype).to(dtype)

        return _Constants(
            of(self.dt * p.tau_mem_inv), of(self.dt * p.tau_syn_inv),
            of(self.dt * getattr(p, "tau_adapt_inv", 0.0)), of(p.v_leak), of(p.v_th),
            of(p.v_reset), of(getattr(p, "beta", 0.0)))

    def _first(self, shape: tuple[int, ...], like: Tensor) -> Any:
        """The state of norse's initial_state."""
        raise NotImplementedError

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """A whole sequence.

        Args:
            input_tensor: (T, B, I), or with any other axes between the first and the last.
            state: LSNNState or LIFState, or norse's own. Default that of norse's initial_state.

        Returns:
            spikes (T, B, N) and the state after the last step, of the class that was given.

        Raises:
            TypeError, ValueError: as functional.alif.
        """
        if input_tensor.layout != torch.strided:
            refuse(type(self).__name__, "input_tensor", f"layout {input_tensor.layout}",
                   "a dense tensor")
        fields = getattr(state, "_fields", ())
        if state is not None and fields != self._state._fields:
            raise TypeError(f"state: expected {self._state.__name__} of "
                            f"{', '.join(self._state._fields)}, norse's own or that of here, got "
                            f"{type(state).__name__}")
        if not input_tensor.shape[0]:
            raise ValueError("input_tensor: expected one step or more, got none")
        shape = (*input_tensor.shape[1:-1], self.hidden_size)
        dtype = torch.promote_types(input_tensor.dtype, torch.float32)
        first = self._first(shape, input_tensor) if state is None else state
        flat = [torch.as_tensor(leaf).to(dtype).broadcast_to(shape).reshape(-1, self.hidden_size)
                for leaf in first]
        spikes, end = self._sequence(as_steps(input_tensor), self._constants(dtype), flat,
                                     fresh=state is None)
        kind = self._state if state is None else type(state)
        spikes = spikes.reshape(spikes.shape[0], *shape)
        return spikes, kind(spikes[-1], *(leaf.reshape(shape) for leaf in end))

    def step(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step, as of norse's cells: (B, I) to spikes (B, N) and the state."""
        spikes, after = self(input_tensor.unsqueeze(0), state)
        return spikes[0], after

    def _weights(self) -> Tensor:
        """w_rec of functional.alif, from neuron j to neuron k."""
        w = self.recurrent_weights
        if self._still_diagonal:
            w = torch.where(torch.eye(self.hidden_size, dtype=torch.bool, device=w.device),
                            w.detach(), w)
        return w.t()

    def _sequence(self, x: Tensor, k: _Constants, first: list[Tensor], fresh: bool,
                  ) -> tuple[Tensor, list[Tensor]]:
        """x (T, B, I) from the state first on, which is norse's initial_state where fresh: spikes,
        and all of the last state but its spikes.

        Membrane, reset and threshold are counted from v_leak, the adaptation from v_th. A current
        that was there before the first step comes as an input.
        """
        z, v, i, *b = first
        w, late = self._weights(), self._late
        sigma, a = 1 - k.k_syn, None
        neuron: dict[str, Any] = self._neuron() | {
            "alpha": 1 - k.k_mem, "kappa": k.k_mem, "sigma": sigma, "theta": k.v_th - k.v_leak,
            "R": k.v_reset - k.v_leak,
        }
        past = z[None]
        if late:
            rho = 1 - k.k_adapt
            # the operator adds the spikes of the step before, which are in b already
            a = b[0] - k.v_th - k.beta * z.detach()
            past = torch.stack([z, torch.zeros_like(z)])
            neuron |= {"rho": rho, "q": rho * k.beta, "beta": 1.0, "delay": 1}
        neuron["state"] = state_of(v - k.v_leak, past, a)
        if fresh:  # without a current before, mostly zero inputs meet their weights event by event
            came = one_step_late(x) if late else x
            out = functional.layer(came, self.input_weights, w, **neuron)
            spikes, end = out.spikes, out.state
            assert spikes is not None
        else:
            current = functional.linear(x, self.input_weights).to(v.dtype)
            current = torch.cat(
                [i[None], current[:-1]] if late else [current[:1] + i, current[1:]])
            spikes, end, *_ = functional.alif(current, w, **neuron)
            spikes = spikes.to(x.dtype)
        if not late:
            return spikes, [end.v + k.v_leak, sigma * end.i]
        last = functional.linear(x[-1], self.input_weights).to(v.dtype)
        i = sigma * end.i + last + end.z[1] @ w.to(v.dtype)
        return spikes, [end.v + k.v_leak, i, k.v_th + end.a + k.beta * end.z[0].detach()]

    def _neuron(self) -> dict[str, Any]:
        shape = _shape(type(self).__name__, self.p.method, self.p.alpha, self._slope)
        return {"dynamics": "norse_lsnn" if self._late else "norse_lif", **shape._asdict()}


class LSNNRecurrent(_Recurrent):
    """norse.torch.LSNNRecurrent: adaptive threshold, synaptic current, input weights inside.

    Args:
        input_size: features of the input, I.
        hidden_size: neurons, N.
        p: LSNNParameters, or norse's own, or any object with these attributes: numbers or tensors,
            one or one per neuron. Tensors that want a gradient get one.
        adjoint: False; True is refused.
        input_weights: (N, I). Default N(0, 1) sqrt(2 / N).
        recurrent_weights: (N, N), the target neuron first. Default the same.
        autapses: False: the diagonal of recurrent_weights is set to 0 and gets no gradient.
        dt: duration of a step, in the unit in which the rates are inverse.
        record_states: False; True is refused.

    method="super" has the slope 1 whatever alpha is, as in norse 1.1.0.
    Raises Refused for what the operator cannot compute as norse does.
    """

    original = "norse.torch.module.lsnn.LSNNRecurrent"
    _activation, _late, _state = "lsnn_step", True, LSNNState
    _parameters_kind = LSNNParameters

    def __init__(self, input_size: int, hidden_size: int, p: Any = LSNNParameters(),  # noqa: B008
                 adjoint: bool = False, *, input_weights: Tensor | None = None,
                 recurrent_weights: Tensor | None = None, autapses: bool = False,
                 dt: float = 0.001, record_states: bool = False) -> None:
        if adjoint:
            refuse(type(self).__name__, "adjoint", adjoint, "False")
        super().__init__(input_size, hidden_size, p, input_weights, recurrent_weights, autapses, dt,
                         record_states)

    def _first(self, shape: tuple[int, ...], like: Tensor) -> Any:
        v_leak, v_th = (torch.as_tensor(value).detach().to(like) for value in (self.p.v_leak,
                                                                               self.p.v_th))
        zero = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return LSNNState(zero, v_leak.expand(shape), zero, v_th.expand(shape))


class LIFRecurrent(_Recurrent):
    """norse.torch.LIFRecurrent: synaptic current, input weights inside.

    Args:
        p: LIFParameters, or norse's own, or any object with these attributes; see LSNNRecurrent for
            it and all others. method="adjoint" is refused.
    """

    original = "norse.torch.module.lif.LIFRecurrent"
    _activation, _late, _state = "lif_step", False, LIFState
    _parameters_kind = LIFParameters

    def __init__(self, input_size: int, hidden_size: int, p: Any = LIFParameters(),  # noqa: B008
                 *, input_weights: Tensor | None = None, recurrent_weights: Tensor | None = None,
                 autapses: bool = False, dt: float = 0.001, record_states: bool = False) -> None:
        values: dict[str, Any] = {
            name: value if name == "method" else torch.as_tensor(value)
            for name in LIFParameters._fields for value in [getattr(p, name)]}
        super().__init__(input_size, hidden_size, LIFParameters(**values), input_weights,
                         recurrent_weights, autapses, dt, record_states)

    def _first(self, shape: tuple[int, ...], like: Tensor) -> Any:
        zero = torch.zeros(shape, dtype=like.dtype, device=like.device)
        # norse's own is float32 in any case
        v_leak = torch.as_tensor(self.p.v_leak).detach().to(like.device, torch.float32)
        return LIFState(zero, v_leak.expand(shape), zero)
