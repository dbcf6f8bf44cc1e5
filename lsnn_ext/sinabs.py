"""sinabs' recurrent layers, ALIFRecurrent and LIFRecurrent, as one fused operator over the
sequence.

    from lsnn_ext.sinabs import ALIFRecurrent    # in place of from sinabs.layers import ...

Arguments, defaults, parameters, buffers and the state that stays in the layer are those of sinabs
3.1.3, which is not imported and need not be installed. Its own spike_fn, reset_fn and
surrogate_grad_fn are taken, and those of this module, which say the same. docs/from_sinabs.md says
which of its parameters is which of functional.alif.

sinabs.utils.reset_states and zero_grad look for sinabs' own classes and pass by these layers: call
reset_states() and zero_grad() of the layers themselves.

Source: the package itself; the neuron is that of Bellec et al., NeurIPS 2018.
"""
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from ._original import (
    Original,
    Shape,
    as_steps,
    measured,
    plain_linear,
    qualified,
    refuse,
    state_of,
)
from .functional import State

__all__ = ["ALIFRecurrent", "Gaussian", "LIFRecurrent", "MembraneReset", "MembraneSubtract",
           "MultiGaussian", "MultiSpike", "SingleExponential", "SingleSpike"]


class SingleSpike:
    """spike_fn: at most one spike in a step."""


class MultiSpike:
    """spike_fn: several spikes in a step, sinabs' default of LIF; refused."""


@dataclass
class MembraneSubtract:
    """reset_fn: subtracts the threshold; another subtract_value is refused."""

    subtract_value: float | None = None


@dataclass
class MembraneReset:
    """reset_fn: sets the membrane to 0; another reset_value is refused, as sinabs adds it to every
    neuron at each step."""

    reset_value: float = 0.0


@dataclass
class SingleExponential:
    """surrogate_grad_fn of Shrestha and Orchard (2018): its width is a share of the threshold."""

    grad_width: float = 0.5
    grad_scale: float = 1.0


@dataclass
class Gaussian:
    """surrogate_grad_fn: a normal density of the distance to the threshold; with mu=0, and of
    LIFRecurrent alone."""

    mu: float = 0.0
    sigma: float = 0.5
    grad_scale: float = 1.0


@dataclass
class MultiGaussian:
    """surrogate_grad_fn of Yin et al. (2021); with mu=0, h=0.15, s=6, and of LIFRecurrent alone."""

    mu: float = 0.0
    sigma: float = 0.5
    h: float = 0.15
    s: float = 6
    grad_scale: float = 1.0


def _is(value: object, kind: type) -> bool:
    """Whether it is an instance of our class, or of sinabs' of the same name."""
    found = qualified(type(value))
    return type(value) is kind or (
        found.startswith("sinabs.activation.") and found.endswith(f".{kind.__name__}"))


class _Recurrent(Original):
    """What both layers share."""

    _adaptive: bool
    _kept: tuple[str, ...] = ("v_mem",)  # the states, without i_syn
    unread = ("spike_fn", "reset_fn", "surrogate_grad_fn", "min_v_mem", "record_states")

    def _settle(self, spike_fn: Any, reset_fn: Any, surrogate_grad_fn: Any, min_v_mem: Any,
                record_states: bool) -> None:
        """What must be as the operator has it; raises Refused."""
        name = type(self).__name__
        if record_states:
            refuse(name, "record_states", record_states, "False")
        if min_v_mem is not None:
            refuse(name, "min_v_mem", min_v_mem, "None")
        own = spike_fn is SingleSpike
        if not own and not (isinstance(spike_fn, type) and qualified(spike_fn)
                            == "sinabs.activation.spike_generation.SingleSpike"):
            refuse(name, "spike_fn", getattr(spike_fn, "__name__", spike_fn), "SingleSpike")
        if _is(reset_fn, MembraneSubtract) and reset_fn.subtract_value is None:
            self._dynamics = "sinabs_sub"
        elif _is(reset_fn, MembraneReset) and reset_fn.reset_value == 0:
            self._dynamics = "sinabs_zero"
        else:
            refuse(name, "reset_fn", reset_fn, "MembraneSubtract() or MembraneReset()")
        fn = surrogate_grad_fn
        self._in_thresholds = _is(fn, SingleExponential)
        supported = "SingleExponential"
        if self._in_thresholds:
            self._shape = Shape("exponential", fn.grad_scale, fn.grad_width)
        elif not self._adaptive and _is(fn, Gaussian) and fn.mu == 0:
            self._shape = Shape("gaussian", fn.grad_scale, fn.sigma)
        elif (not self._adaptive and _is(fn, MultiGaussian) and fn.mu == 0
                and (fn.h, fn.s) == (0.15, 6)):
            self._shape = Shape("multi_gaussian", fn.grad_scale, fn.sigma)
        else:
            supported += "" if self._adaptive else ", or Gaussian or MultiGaussian with mu=0"
            refuse(name, "surrogate_grad_fn", fn, supported)
        if not own and callable(fn):
            one = torch.ones(())
            measured(self._shape, lambda u: spike_fn.apply(u + one, one, fn), name,
                     "surrogate_grad_fn", ge=True)

    def _states(self, synapse: bool, shape: Any) -> None:
        for name in (*self._kept, *(("i_syn",) if synapse else ())):
            self.register_buffer(name, torch.zeros(shape or 0))

    def _constants(self, train_alphas: bool, taus: dict[str, Any]) -> None:
        """Parameters tau_mem, ... or alpha_mem, ..., None where a constant is."""
        self.train_alphas = train_alphas
        for name, tau in taus.items():
            value = None
            if tau is not None:
                tau = torch.as_tensor(tau) if self._adaptive else torch.as_tensor(
                    tau, dtype=torch.float32)
                value = nn.Parameter(torch.exp(-1 / tau) if train_alphas else tau)
            self.register_parameter(("alpha_" if train_alphas else "tau_") + name, value)

    def _decay(self, name: str) -> Tensor | None:
        if self.train_alphas:
            alpha: Tensor | None = getattr(self, "alpha_" + name, None)
            return alpha
        tau: Tensor | None = getattr(self, "tau_" + name, None)
        return None if tau is None else torch.exp(-1 / tau)

    def _adopt(self, module: Any) -> None:
        self._settle(module.spike_fn, module.reset_fn, module.surrogate_grad_fn, module.min_v_mem,
                     module.record_states)
        self.train_alphas, self.norm_input = module.train_alphas, module.norm_input
        for name, parameter in module._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            self.register_buffer(name, buffer.clone())
        if self._adaptive:
            self.adapt_scale, self.b0 = module.adapt_scale, module.b0
        self.rec_connect = module.rec_connect
        plain_linear(type(self).__name__, "rec_connect", self.rec_connect)

    def reset_states(self, randomize: bool = False,
                     value_ranges: dict[str, tuple[float, float]] | None = None) -> None:
        """Zeros in the states, or random numbers from 0 to 1 or within value_ranges; without
        their graph."""
        for name, buffer in self._buffers.items():
            assert buffer is not None
            fresh = torch.zeros_like(buffer)
            if randomize:
                low, high = (value_ranges or {}).get(name, (0.0, 1.0))
                fresh.uniform_(low, high)
            self._buffers[name] = fresh

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of nn.Module; and the states go on without their graph."""
        super().zero_grad(set_to_none)
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.detach()

    def forward(self, input_data: Tensor) -> Tensor:
        """A whole sequence, from the states that the last call has left; the recurrent spikes
        begin with none, as in sinabs.

        Args:
            input_data: (B, T, N), or with any other axes between T and N; already projected.

        Returns:
            spikes of the shape of input_data. v_mem, and b or i_syn, stay in the layer with their
            graph: reset_states() or zero_grad() before another backward pass.

        Raises:
            TypeError, ValueError: as functional.alif.
        """
        if input_data.dim() < 3 or not input_data.shape[1]:
            raise ValueError(f"input_data: expected shape (B, T, ..., N) with T >= 1, got "
                             f"{tuple(input_data.shape)}")
        x, N = input_data.transpose(0, 1), input_data.shape[-1]
        shape = x.shape[1:]
        if any(buffer is None or buffer.shape != shape for buffer in self._buffers.values()):
            for name in self._buffers:
                self._buffers[name] = torch.zeros(shape, dtype=x.dtype, device=x.device)
        kept = {name: buffer.reshape(-1, N) for name, buffer in self._buffers.items()
                if buffer is not None}
        linear = plain_linear(type(self).__name__, "rec_connect", self.rec_connect)
        current = as_steps(x)
        i = kept.get("i_syn")
        if linear.bias is not None or i is not None:  # the bias comes with spikes, not at step 0
            later = current[1:] if linear.bias is None else current[1:] + linear.bias
            current = torch.cat([current[:1] if i is None else current[:1] + i, later])
        spikes, end = self._run(current, linear.weight.t(), kept)
        self._keep(end, spikes[-1], shape)
        spikes = spikes.reshape(x.shape).transpose(0, 1)
        self.firing_rate = spikes.sum() / spikes.numel()
        self.recordings: dict[str, Tensor] = {}
        return spikes

    def _run(self, current: Tensor, w: Tensor, kept: dict[str, Tensor]) -> tuple[Tensor, State]:
        alpha, decay = self._decay("mem"), self._decay("syn")
        assert alpha is not None
        kappa: Tensor | float = 1 - alpha if self.norm_input else 1.0
        # the gain is applied to the synaptic current that is carried on, by ALIF all of it
        sigma = None if decay is None else decay * kappa if self._adaptive else decay
        kappa = kappa if decay is None else decay * kappa
        theta, adaptation = self._threshold()
        v, a = kept["v_mem"], None
        if "b" in kept:  # the operator lets b decay at the start of a step, sinabs at the end
            rho = adaptation["rho"]
            a = kept["b"] / rho.clamp(min=torch.finfo(rho.dtype).tiny)
        shape = self._shape._asdict()
        if not self._in_thresholds:
            shape["width"] = shape["width"] / theta
        spikes, end, *_ = functional.alif(
            current, w, alpha=alpha, kappa=kappa, sigma=sigma, theta=theta, **adaptation,
            dynamics=self._dynamics, state=state_of(v, torch.zeros_like(v)[None], a), **shape)
        return spikes, end

    def _threshold(self) -> tuple[Any, dict[str, Any]]:
        """theta, and the arguments of the adaptation."""
        raise NotImplementedError

    def _keep(self, end: State, z: Tensor, shape: torch.Size) -> None:
        """The states after the last step, whose spikes are z."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What is not a parameter."""
        return f"{self._dynamics}, norm_input={self.norm_input}, train_alphas={self.train_alphas}"


class ALIFRecurrent(_Recurrent):
    """sinabs.layers.ALIFRecurrent: adaptive threshold, the input already projected.

    Args:
        tau_mem, tau_adapt, tau_syn: time constants in steps, numbers or tensors, one or one per
            neuron; they are Parameters. tau_syn None: no synapse.
        rec_connect: torch.nn.Linear(N, N); another module is refused. Its bias acts from the
            second step on.
        adapt_scale: what the adaptation adds to the threshold (beta of functional.alif).
        spike_threshold: the base threshold, kept as b0; the buffer spike_threshold is that of the
            last step.
        spike_fn: SingleSpike.
        reset_fn: MembraneSubtract() or MembraneReset().
        surrogate_grad_fn: SingleExponential.
        min_v_mem: None.
        shape: (B, N) of the first states; None: that of the first input.
        train_alphas: the decays exp(-1 / tau) are the Parameters alpha_mem, ...
        norm_input: the input is multiplied by 1 - alpha_mem.
        record_states: False.

    Raises Refused for what the operator cannot compute as sinabs does.
    """

    original = "sinabs.layers.alif.ALIFRecurrent"
    _adaptive = True
    _kept = "v_mem", "b", "spike_threshold"

    def __init__(self, tau_mem: Any, tau_adapt: Any, rec_connect: nn.Module, tau_syn: Any = None,
                 adapt_scale: Any = 1.8, spike_threshold: Any = torch.tensor(1.0),  # noqa: B008
                 spike_fn: Any = SingleSpike, reset_fn: Any = MembraneSubtract(),  # noqa: B008
                 surrogate_grad_fn: Any = SingleExponential(), min_v_mem: Any = None,  # noqa: B008
                 shape: Any = None, train_alphas: bool = False, norm_input: bool = True,
                 record_states: bool = False) -> None:
        super().__init__()
        self._settle(spike_fn, reset_fn, surrogate_grad_fn, min_v_mem, record_states)
        self._constants(train_alphas, {"mem": tau_mem, "adapt": tau_adapt, "syn": tau_syn})
        self.adapt_scale, self.b0, self.norm_input = adapt_scale, spike_threshold, norm_input
        self.rec_connect = plain_linear(type(self).__name__, "rec_connect", rec_connect)
        self._states(tau_syn is not None, shape)

    def _threshold(self) -> tuple[Any, dict[str, Any]]:
        return self.b0, {"rho": self._decay("adapt"), "beta": self.adapt_scale}

    def _keep(self, end: State, z: Tensor, shape: torch.Size) -> None:
        rho = self._decay("adapt")
        assert rho is not None
        b = rho * end.a + (1 - rho) * z
        self.v_mem, self.b = end.v.reshape(shape), b.reshape(shape)
        # i_syn stays what it was, in sinabs too
        self.spike_threshold = (self.b0 + self.adapt_scale * b).reshape(shape)


class LIFRecurrent(_Recurrent):
    """sinabs.layers.LIFRecurrent: without adaptation, the input already projected.

    spike_fn has to be given: the default, as in sinabs, is MultiSpike, which is refused. With
    surrogate_grad_fn Gaussian and MultiGaussian are taken too. All others as of ALIFRecurrent.
    """

    original = "sinabs.layers.lif.LIFRecurrent"
    _adaptive = False

    def __init__(self, tau_mem: Any, rec_connect: nn.Module, tau_syn: Any = None,
                 spike_threshold: Any = torch.tensor(1.0), spike_fn: Any = MultiSpike,  # noqa: B008
                 reset_fn: Any = MembraneSubtract(),  # noqa: B008
                 surrogate_grad_fn: Any = SingleExponential(), min_v_mem: Any = None,  # noqa: B008
                 train_alphas: bool = False, shape: Any = None, norm_input: bool = True,
                 record_states: bool = False) -> None:
        super().__init__()
        self._settle(spike_fn, reset_fn, surrogate_grad_fn, min_v_mem, record_states)
        self._constants(train_alphas, {"mem": tau_mem, "syn": tau_syn})
        self.norm_input = norm_input
        self.spike_threshold = nn.Parameter(torch.as_tensor(spike_threshold), requires_grad=False)
        self.register_parameter("min_v_mem", None)
        self.rec_connect = plain_linear(type(self).__name__, "rec_connect", rec_connect)
        self._states(tau_syn is not None, shape)

    def _threshold(self) -> tuple[Any, dict[str, Any]]:
        return self.spike_threshold, {}

    def _keep(self, end: State, z: Tensor, shape: torch.Size) -> None:
        self.v_mem = end.v.reshape(shape)
        decay = self._decay("syn")
        if decay is not None:
            self.i_syn = (decay * end.i).reshape(shape)
