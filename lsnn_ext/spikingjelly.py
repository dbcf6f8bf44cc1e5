"""SpikingJelly's LinearRecurrentContainer around a LIFNode or ParametricLIFNode, as one fused
operator over the sequence.

    from lsnn_ext.spikingjelly import LIFNode, LinearRecurrentContainer

Arguments, defaults, parameters and the state that stays in the modules are those of spikingjelly
2.0.0, which is not imported and need not be installed; its surrogate functions are taken, and those
of this module, which say the same. Its functional.reset_net, detach_net and set_step_mode find
these modules. docs/from_spikingjelly.md says which of its parameters is which of functional.alif.

Source: Fang et al., Science Advances 9, eadi1480 (2023); ParametricLIFNode: Fang et al., ICCV 2021.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import functional
from ._original import (
    Original,
    Shape,
    Stateful,
    as_steps,
    measured,
    plain_linear,
    qualified,
    refuse,
    state_of,
    unwatched,
    watched,
)

__all__ = ["ATan", "Erf", "LIFNode", "LinearRecurrentContainer", "ParametricLIFNode",
           "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign", "SuperSpike"]

_PACKAGE = "spikingjelly.activation_based"
# Of alpha: the derivative over the distance to the threshold.
_SHAPES: dict[str, Callable[[float], Shape]] = {
    "Sigmoid": lambda alpha: Shape("sigmoid", 1.0, 1 / alpha),
    "ATan": lambda alpha: Shape("arctan", 1 / math.pi, 2 / (math.pi * alpha)),
    "PiecewiseExp": lambda alpha: Shape("exponential", 0.5, 1 / alpha),
    "PiecewiseQuadratic": lambda alpha: Shape("triangle", 1.0, 1 / alpha),
    "SoftSign": lambda alpha: Shape("fast_sigmoid", 0.5, 1 / alpha),
    "SuperSpike": lambda alpha: Shape("fast_sigmoid", alpha, 1.0),
    "Erf": lambda alpha: Shape("gaussian", 1.0, 1 / (math.sqrt(2.0) * alpha)),
}


@dataclass(frozen=True)
class Sigmoid:
    """surrogate_function: alpha s(alpha u) s(-alpha u)."""

    alpha: float = 4.0


@dataclass(frozen=True)
class ATan:
    """surrogate_function: alpha / 2 / (1 + (pi alpha u / 2)^2)."""

    alpha: float = 2.0


@dataclass(frozen=True)
class PiecewiseExp:
    """surrogate_function: alpha / 2 exp(-alpha |u|)."""

    alpha: float = 1.0


@dataclass(frozen=True)
class PiecewiseQuadratic:
    """surrogate_function: max(alpha - alpha^2 |u|, 0)."""

    alpha: float = 1.0


@dataclass(frozen=True)
class SoftSign:
    """surrogate_function: alpha / 2 / (1 + alpha |u|)^2."""

    alpha: float = 2.0


@dataclass(frozen=True)
class SuperSpike:
    """surrogate_function: alpha / (1 + |u|)^2."""

    alpha: float = 1.0


@dataclass(frozen=True)
class Erf:
    """surrogate_function: alpha / sqrt(pi) exp(-(alpha u)^2)."""

    alpha: float = 2.0


_OWN = (Sigmoid, ATan, PiecewiseExp, PiecewiseQuadratic, SoftSign, SuperSpike, Erf)


def _shape(layer: str, function: Any) -> Shape:
    name = type(function).__name__
    own = type(function) in _OWN
    known = own or (name in _SHAPES and type(function).__module__ == f"{_PACKAGE}.surrogate")
    alpha = getattr(function, "alpha", None)
    if not known or not isinstance(alpha, float | int):
        refuse(layer, "surrogate_function", function,
               f"one of {', '.join(_SHAPES)} with a number alpha")
    shape = _SHAPES[name](float(alpha))
    if own:
        return shape
    if not function.spiking or watched(function):
        refuse(layer, "surrogate_function", "one without spikes, or with hooks",
               "spiking=True without hooks")
    return measured(shape, function, layer, "surrogate_function", ge=True)


def _check_step_mode(value: str) -> None:
    if value not in ("s", "m"):
        raise ValueError(f"step_mode: expected 's' or 'm', got {value!r}")


class _Node(Stateful):
    """The constants of a neuron, and its membrane v; LinearRecurrentContainer computes with it."""
    unread = ("surrogate_function", "store_v_seq")

    def __init__(self, decay_input: bool, v_threshold: float, v_reset: float | None,
                 surrogate_function: Any, detach_reset: bool, step_mode: str,
                 store_v_seq: bool) -> None:
        super().__init__()
        name = type(self).__name__
        if store_v_seq:
            refuse(name, "store_v_seq", store_v_seq, "False")
        if step_mode != "s":
            refuse(name, "step_mode", repr(step_mode), "'s' inside of a container")
        self._shape = _shape(name, surrogate_function)
        self.decay_input, self.detach_reset = decay_input, detach_reset
        self.v_threshold, self.v_reset = v_threshold, v_reset
        self.reset()

    @property
    def step_mode(self) -> str:
        """"s": a container goes step by step, whatever functional.set_step_mode of SpikingJelly
        says to what is inside of it."""
        return "s"

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        _check_step_mode(value)

    def reset(self) -> None:
        """The membrane before the first step."""
        self.v: Any = 0.0 if self.v_reset is None else self.v_reset

    def detach(self) -> None:
        """The membrane without its graph, as functional.detach_net of SpikingJelly asks for."""
        if isinstance(self.v, Tensor):
            self.v = self.v.detach()

    def share(self) -> float | Tensor:
        """1 / tau."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Of functional.alif; the membrane is counted from v_reset."""
        soft, share = self.v_reset is None, self.share()
        return {
            "alpha": 1 - share, "kappa": share if self.decay_input else 1.0,
            "theta": self.v_threshold - (self.v_reset or 0.0),
            "dynamics": ("sj_soft" if soft else "sj_hard") + ("_det" if self.detach_reset else ""),
            **self._shape._asdict()}

    def extra_repr(self) -> str:
        """What is not a parameter."""
        return (f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
                f"detach_reset={self.detach_reset}, decay_input={self.decay_input}")

    def forward(self, x: Tensor) -> Tensor:
        """Raises Refused: alone it has no recurrence to be fused."""
        refuse(type(self).__name__, "forward", "a call of the neuron alone",
               "a LinearRecurrentContainer around it, or SpikingJelly's own neuron")


def _tau(value: float) -> float:
    if not value > 1:
        raise ValueError(f"tau: expected a number > 1, got {value}")
    return float(value)


class LIFNode(_Node):
    """neuron.LIFNode, for use inside of LinearRecurrentContainer.

    Args:
        tau: time constant in steps, > 1; the decay of a step is 1 - 1 / tau.
        decay_input: the input is divided by tau.
        v_threshold, v_reset: numbers; v_reset None: a soft reset, by v_threshold.
        surrogate_function: Sigmoid, ATan, PiecewiseExp, PiecewiseQuadratic, SoftSign, SuperSpike or
            Erf, of this module or SpikingJelly's.
        detach_reset: no gradient through the spike of the reset.
        step_mode: "s". store_v_seq: False.
    """

    def __init__(self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0,
                 surrogate_function: Any = Sigmoid(),  # noqa: B008
                 detach_reset: bool = False, step_mode: str = "s",
                 store_v_seq: bool = False) -> None:
        super().__init__(decay_input, v_threshold, v_reset, surrogate_function, detach_reset,
                         step_mode, store_v_seq)
        self.tau = _tau(tau)

    def share(self) -> float:
        """1 / tau."""
        return 1 / self.tau


class ParametricLIFNode(_Node):
    """neuron.ParametricLIFNode, for use inside of LinearRecurrentContainer: 1 / tau is the sigmoid
    of a Parameter w, -log(init_tau - 1) at first. All others as of LIFNode."""

    def __init__(self, init_tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0,
                 surrogate_function: Any = Sigmoid(),  # noqa: B008
                 detach_reset: bool = False, step_mode: str = "s",
                 store_v_seq: bool = False) -> None:
        super().__init__(decay_input, v_threshold, v_reset, surrogate_function, detach_reset,
                         step_mode, store_v_seq)
        self.w = nn.Parameter(torch.as_tensor(-math.log(_tau(init_tau) - 1.0)))

    def share(self) -> Tensor:
        """1 / tau."""
        return self.w.sigmoid()


_KINDS: dict[str, type[_Node]] = {
    f"{_PACKAGE}.neuron.lif.LIFNode": LIFNode,
    f"{_PACKAGE}.neuron.plif.ParametricLIFNode": ParametricLIFNode,
}


def _node_of(layer: str, theirs: Any) -> _Node:
    """Our node for one of SpikingJelly's; raises Refused."""
    kind = _KINDS.get(qualified(type(theirs)))
    if kind is None:
        refuse(layer, "sub_module", type(theirs).__name__,
               "a LIFNode or ParametricLIFNode, or an nn.Sequential of an nn.Linear and one of "
               "them")
    unwatched(layer, "sub_module", theirs)
    if theirs._neuron_precision is not None:
        refuse(layer, "sub_module", f"a precision of {theirs._neuron_precision}", "that of x")
    rest = theirs.v_reset or 0.0
    if theirs.get_reset_value("v") != rest:
        refuse(layer, "sub_module", f"the reset value {theirs.get_reset_value('v')} of v",
               f"{rest}")
    node = kind(decay_input=theirs.decay_input, v_threshold=theirs.v_threshold,
                v_reset=theirs.v_reset, surrogate_function=theirs.surrogate_function,
                detach_reset=theirs.detach_reset, step_mode=theirs.step_mode,
                store_v_seq=theirs.store_v_seq)
    if isinstance(node, LIFNode):
        node.tau = theirs.tau
    else:
        node.w = theirs.w
    node.v = theirs.v
    return node


class LinearRecurrentContainer(Original):
    """layer.LinearRecurrentContainer around a LIFNode or ParametricLIFNode.

    Args:
        sub_module: a node of this module with in_features = out_features = N; or an nn.Sequential
            of an nn.Linear(in_features, out_features) and a node.
        in_features: of the input, I.
        out_features: neurons, N.
        bias: of rc.
        step_mode: "s": a call is one step, (B, ..., I) to (B, ..., N); "m": a sequence, with T in
            front.

    rc is the nn.Linear(I + N, I) of [x, spikes], as there. The state, y and the v of the node,
    stays in the modules, with its graph, until functional.reset_net, or reset() of both.
    Raises Refused for what the operator cannot compute as SpikingJelly does.
    """

    original = f"{_PACKAGE}.layer.container.LinearRecurrentContainer"

    def __init__(self, sub_module: nn.Module, in_features: int, out_features: int,
                 bias: bool = True, step_mode: str = "s") -> None:
        super().__init__()
        self.step_mode, self.sub_module_out_features = step_mode, out_features
        self.rc = nn.Linear(in_features + out_features, in_features, bias)
        self.sub_module = sub_module
        self.y: Tensor | None = None
        self._folded()

    def _adopt(self, module: Any) -> None:
        name, sub = type(self).__name__, module.sub_module
        self.step_mode = module.step_mode
        self.sub_module_out_features = module.sub_module_out_features
        self.rc = module.rc
        if type(sub) is nn.Sequential and len(sub) == 2 and not watched(sub):
            self.sub_module = nn.Sequential(sub[0], _node_of(name, sub[1]))
        else:
            self.sub_module = _node_of(name, sub)
        if module.get_reset_value("y") is not None:
            refuse(name, "y", "a reset value", "none")
        self.y = module.y
        self._folded()

    @property
    def step_mode(self) -> str:
        """"s" or "m"."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        _check_step_mode(value)
        self._step_mode = value

    def _node(self) -> _Node:
        sub = self.sub_module
        node = sub[1] if type(sub) is nn.Sequential and len(sub) == 2 else sub
        if not isinstance(node, _Node):
            refuse(type(self).__name__, "sub_module", type(node).__name__,
                   "a node of lsnn_ext.spikingjelly, or an nn.Sequential of an nn.Linear and one")
        unwatched(type(self).__name__, "sub_module", sub)
        return node

    def _folded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights (N, I) and (N, N) of inputs and spikes, and the bias."""
        name, N = type(self).__name__, self.sub_module_out_features
        self._node()
        rc = plain_linear(name, "rc", self.rc)
        w = cast(Tensor, rc.weight)
        bias: Tensor | None = rc.bias
        if isinstance(self.sub_module, nn.Sequential):
            linear = plain_linear(name, "sub_module[0]", self.sub_module[0])
            if bias is not None:
                bias = nn.functional.linear(bias, linear.weight, linear.bias)
            else:
                bias = linear.bias
            w = linear.weight @ w
        if w.shape[0] != N:
            refuse(name, "out_features", N, f"the {w.shape[0]} features that sub_module has")
        return w[:, :-N], w[:, -N:], bias

    def reset(self) -> None:
        """No spikes before the next step. As in SpikingJelly, the membrane is the node's, which has
        a reset() of its own; functional.reset_net calls both."""
        self.y = None

    def detach(self) -> None:
        """The state without its graph, between two chunks of truncated BPTT."""
        self.y = None if self.y is None else self.y.detach()
        self._node().detach()

    def extra_repr(self) -> str:
        """As SpikingJelly writes it."""
        return f"step_mode={self.step_mode}"

    def forward(self, x: Tensor) -> Tensor:
        """One step with step_mode "s", a sequence with "m".

        Args:
            x: (B, ..., I), or (T, B, ..., I).

        Returns:
            spikes of the same form, with N in place of I.

        Raises:
            TypeError, ValueError: as functional.alif, and for a state of another batch.
        """
        return self.step(x) if self.step_mode == "s" else self._sequence(x)

    def step(self, x: Tensor) -> Tensor:
        """One step, whatever step_mode is."""
        return self._sequence(x.unsqueeze(0))[0]

    def _sequence(self, x: Tensor) -> Tensor:
        node, N = self._node(), self.sub_module_out_features
        w_in, w_rec, bias = self._folded()
        if x.dim() < 2 or not x.shape[0]:
            raise ValueError(f"x: expected shape (T, B, ..., I) with T >= 1, got {tuple(x.shape)}")
        shape, rest = (*x.shape[1:-1], N), node.v_reset or 0.0
        zero = torch.zeros(shape, dtype=x.dtype, device=x.device).reshape(-1, N)
        y, v = self.y, node.v
        if y is not None and y.shape != shape:
            raise ValueError(f"x: expected the batch of the state {tuple(y.shape[:-1])}, got "
                             f"{shape[:-1]}; call functional.reset_net between sequences")
        if isinstance(v, Tensor) and v.shape == shape:
            first = v.reshape(-1, N) - rest
        else:  # as there, a membrane of another batch begins anew
            first = zero + (0.0 if isinstance(v, Tensor) else v - rest)
        out = functional.layer(
            as_steps(x), w_in, w_rec.t(), bias=bias,
            state=state_of(first, (zero if y is None else y.reshape(-1, N))[None]),
            **node.arguments())
        spikes = out.spikes
        assert spikes is not None
        spikes = spikes.reshape(x.shape[0], *shape)
        node.v, self.y = (out.state.v + rest).reshape(shape), spikes[-1]
        return spikes
