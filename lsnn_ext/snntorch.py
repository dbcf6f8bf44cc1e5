"""snnTorch's recurrent neurons, RLeaky and RSynaptic, as one fused operator over the sequence.

    from lsnn_ext.snntorch import RLeaky    # in place of from snntorch import RLeaky

In snnTorch a call is one step inside the user's loop. Here a call with (B, N) is that step, and a
call with (T, B, N) is the whole loop. Arguments, defaults, parameters and initialisation are those
of snntorch 1.0.0, which is not imported and need not be installed. docs/from_snntorch.md says which
of its parameters is which of functional.alif.

Source: Eshraghian et al., Proceedings of the IEEE 111, 1016 (2023).
"""
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import functional
from ._original import (
    Original,
    Shape,
    all_ones,
    as_steps,
    enclosed,
    measured,
    never_negative,
    plain_linear,
    qualified,
    refuse,
    state_of,
)

__all__ = ["RLeaky", "RSynaptic"]

_RESETS = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}


def _shape(layer: str, spike_grad: Callable[..., Any] | None, disabled: bool) -> Shape:
    """The derivative of a function of snntorch.surrogate; None: atan with alpha=2."""
    if disabled:
        return Shape("arctan", 0.0, 1 / math.pi)
    if spike_grad is None:
        return Shape("arctan", 1 / math.pi, 1 / math.pi)
    name = f"{getattr(spike_grad, '__module__', '')}.{getattr(spike_grad, '__qualname__', '')}"
    if name == "snntorch.surrogate.atan.<locals>.inner":
        shape = Shape("arctan", 1 / math.pi, 2 / (math.pi * enclosed(spike_grad, "alpha")))
    elif name == "snntorch.surrogate.fast_sigmoid.<locals>.inner":
        width = 1 / enclosed(spike_grad, "slope")
        shape = Shape("fast_sigmoid", width, width)
    elif name == "snntorch.surrogate.sigmoid.<locals>.inner":
        shape = Shape("sigmoid", 1.0, 1 / enclosed(spike_grad, "slope"))
    else:
        refuse(layer, "spike_grad", name.removesuffix(".<locals>.inner"),
               "None, or atan, fast_sigmoid or sigmoid of snntorch.surrogate")
    return measured(shape, spike_grad, layer, "spike_grad")


class _OneToOne(nn.Module):
    """Holds V where snnTorch's RecurrentOneToOne does."""

    def __init__(self, V: Tensor) -> None:
        super().__init__()
        self.V = V


class _Recurrent(Original):
    """What both neurons share. _states: the names of what a call takes and returns."""

    _states: ClassVar[tuple[str, ...]]
    unread = ("spike_grad", "inhibition", "init_hidden", "state_quant", "state_function",
              "conv2d_channels", "kernel_size")
    once = ("reset_delay",)

    def __init__(self, decays: dict[str, tuple[Any, bool]], V: Any, all_to_all: bool,
                 linear_features: int | None, conv2d_channels: int | None, kernel_size: Any,
                 threshold: Any, spike_grad: Any, surrogate_disable: bool, init_hidden: bool,
                 inhibition: bool, learn_threshold: bool, learn_recurrent: bool,
                 reset_mechanism: str, state_quant: Any, output: bool, reset_delay: bool) -> None:
        super().__init__()
        name = type(self).__name__
        self._hold(init_hidden=init_hidden, inhibition=inhibition, state_quant=state_quant,
                   conv2d_channels=conv2d_channels, kernel_size=kernel_size)
        if reset_mechanism not in _RESETS:
            raise ValueError(f"reset_mechanism: expected one of {', '.join(_RESETS)}, got "
                             f"{reset_mechanism!r}")
        if all_to_all is not (linear_features is not None):
            raise TypeError(f"linear_features: expected {'the neurons' if all_to_all else 'None'} "
                            f"with all_to_all={all_to_all}, got {linear_features}")
        self._settle(all_to_all, reset_mechanism, reset_delay)
        self._shape = _shape(name, spike_grad, surrogate_disable)
        self.learn_recurrent, self.linear_features = learn_recurrent, linear_features
        self.output = output
        for key, (value, learn) in (decays | {"threshold": (threshold, learn_threshold)}).items():
            self._put(key, value, learn)
        self._put("graded_spikes_factor", 1.0, False)
        self._put("reset_mechanism_val", list(_RESETS).index(reset_mechanism), False)
        self.recurrent: nn.Module
        if all_to_all:
            assert linear_features is not None
            self.recurrent = nn.Linear(linear_features, linear_features)
        else:
            self._put("V", V, learn_recurrent)
            assert isinstance(self.V, Tensor)
            self.recurrent = _OneToOne(self.V)
        if not learn_recurrent:
            for parameter in self.recurrent.parameters():
                parameter.requires_grad_(False)
        self._forget()

    def _put(self, name: str, value: Any, learn: bool) -> None:
        value = torch.as_tensor(value)
        if learn:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _hold(self, **given: Any) -> None:
        """Raises Refused for an argument that is not off."""
        for argument, value in given.items():
            if value is not None and value is not False:
                refuse(type(self).__name__, argument, value,
                       "None" if argument in ("conv2d_channels", "kernel_size") else "False")

    def _settle(self, all_to_all: bool, reset_mechanism: str, reset_delay: bool) -> None:
        """The reset: in the step after a spike, or at once."""
        if not reset_delay and reset_mechanism != "none" and self._states != ("spk", "mem"):
            refuse(type(self).__name__, "reset_delay", reset_delay,
                   "True, as without it snnTorch itself raises an error")
        self.all_to_all, self.reset_mechanism = all_to_all, reset_mechanism
        self.reset_delay = reset_delay
        now = "" if reset_delay or reset_mechanism == "none" else "_now"
        self._dynamics = f"snntorch_{'zero' if reset_mechanism == 'zero' else 'sub'}{now}"

    def _forget(self) -> None:
        for name in self._states:
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def _adopt(self, module: Any) -> None:
        name = type(self).__name__
        self._hold(**{argument: getattr(module, argument) for argument in (
            "init_hidden", "inhibition", "state_quant", "conv2d_channels", "kernel_size")})
        reset = module.reset_mechanism
        if module.state_function.__name__ != _RESETS[reset]:
            refuse(name, "reset_mechanism", f"{reset!r}, changed after the layer was made",
                   "the one that the layer was made with")
        if int(module.reset_mechanism_val) != list(_RESETS).index(reset):
            refuse(name, "reset_mechanism_val", int(module.reset_mechanism_val),
                   f"that of {reset!r}")
        factor = module.graded_spikes_factor
        if isinstance(factor, nn.Parameter) or not bool((factor == 1).all()):
            refuse(name, "graded_spikes_factor", factor, "1, not learned")
        if not module.all_to_all and qualified(type(module.recurrent)) != (
                f"{type(module).__module__}.RecurrentOneToOne"):
            refuse(name, "recurrent", type(module.recurrent).__name__, "RecurrentOneToOne")
        self._settle(module.all_to_all, reset, module.reset_delay)
        self._shape = _shape(name, module.spike_grad, module.surrogate_disable)
        self.learn_recurrent, self.linear_features = module.learn_recurrent, module.linear_features
        self.output = module.output
        for key, parameter in module._parameters.items():
            self.register_parameter(key, parameter)
        for key, buffer in module._buffers.items():
            self.register_buffer(key, buffer, key not in module._non_persistent_buffers_set)
        self.recurrent = module.recurrent
        self._recurrence(1 if not self.all_to_all else self.linear_features or 1)

    def _recurrence(self, N: int) -> tuple[Tensor, Tensor | None]:
        """w_rec of functional.alif for N neurons, and the bias."""
        if self.all_to_all:
            linear = plain_linear(type(self).__name__, "recurrent", self.recurrent)
            return linear.weight.t(), linear.bias
        V = self.V
        assert isinstance(V, Tensor)
        if V.dim() > 1:
            refuse(type(self).__name__, "V", f"shape {tuple(V.shape)}",
                   "a number or one for each neuron")
        return torch.diag_embed(V.expand(N) if V.numel() == 1 else V), None

    def reset_mem(self) -> tuple[Tensor, ...]:
        """Zeros for the states that step keeps."""
        for name in self._states:
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        return tuple(getattr(self, name) for name in self._states)

    def extra_repr(self) -> str:
        """What is not a parameter."""
        return (f"linear_features={self.linear_features}, all_to_all={self.all_to_all}, "
                f"reset_mechanism={self.reset_mechanism!r}, reset_delay={self.reset_delay}")

    def _whole(self, x: Tensor, given: tuple[Tensor | None, ...], shape: tuple[int, ...],
               ) -> list[Tensor]:
        """The states as (B, N), zeros for what is none or empty."""
        found = []
        for name, value in zip(self._states, given, strict=True):
            if value is None or not value.numel():
                value = torch.zeros(shape, dtype=x.dtype, device=x.device)
            elif tuple(value.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
            found.append(value.reshape(-1, x.shape[-1]))
        return found

    def _sequence(self, x: Tensor, given: tuple[Tensor | None, ...], trace: bool = False,
                  ) -> tuple[Tensor, ...]:
        """x (T, ..., N): the spikes of all steps and the other states of the last one; with trace
        the membranes of all steps.

        In snnTorch the reset of a step follows from the membrane that it was given, whatever
        spikes were given with it. The operator takes both from the spikes, so the difference comes
        as an input to the first step.
        """
        if not x.shape[0]:
            raise ValueError("input_: expected one step or more, got none")
        shape, N = tuple(x.shape[1:]), x.shape[-1]
        spk, *syn, mem = self._whole(x, given, shape)
        w, bias = self._recurrence(N)
        threshold, dynamics = self.threshold, self._dynamics
        factor = self.graded_spikes_factor
        assert isinstance(threshold, Tensor) and isinstance(factor, Tensor)
        all_ones(type(self).__name__, "graded_spikes_factor", factor)
        current = as_steps(x)
        current = current if bias is None else current + bias
        at_rest = all(value is None or not value.numel() for value in given)
        zeroed = dynamics == "snntorch_zero_now"
        # in rest below a threshold that is negative snnTorch resets at once, and does so for ever
        positive = never_negative("threshold", threshold, must=zeroed) if at_rest or zeroed else (
            True)
        if (not at_rest or not positive) and self.reset_mechanism != "none" and (
                dynamics != "snntorch_sub_now"):
            was = (mem.detach() > threshold.detach()).to(mem.dtype)
            if zeroed:
                first = current[0] - was * (current[0] + spk @ w)
                mem = mem * (1 - was)
            else:
                first = current[0] + (spk - was) @ w
                spk = was
            current = torch.cat([first[None], current[1:]])
        beta = self.beta
        assert isinstance(beta, Tensor)
        spikes, end, *traces = functional.alif(
            current, w, alpha=beta.clamp(0, 1), theta=threshold, sigma=self._sigma(),
            R=0.0 if self.reset_mechanism == "none" else None, dynamics=dynamics,
            sparse_grad="all" if self.all_to_all else "existing", trace=trace,
            state=state_of(mem, spk[None], i=syn[0] if syn else None),
            **self._shape._asdict())
        last = [end.i.reshape(shape)] if syn else []
        mem = traces[0].v.reshape(x.shape) if trace else end.v.reshape(shape)
        return spikes.reshape(x.shape), *last, mem

    def _sigma(self) -> Tensor | None:
        return None

    def _call(self, x: Tensor, given: tuple[Tensor | None, ...], trace: bool,
              ) -> tuple[Tensor, ...]:
        if x.dim() > 2:
            return self._sequence(x, given, trace)
        if trace:
            raise ValueError("trace: expected False with one step, which returns all states, got "
                             "True")
        return self._one(x, given)

    def _one(self, x: Tensor, given: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        """One step, which keeps its states; as there, a state of another shape counts as none."""
        kept = [getattr(self, name) if value is None else value
                for name, value in zip(self._states, given, strict=True)]
        fitting = tuple(value if value.shape == x.shape else None for value in kept)
        spikes, *rest = self._sequence(x.unsqueeze(0), fitting)
        found = spikes[0], *rest
        for name, value in zip(self._states, found, strict=True):
            setattr(self, name, value)
        return found


class RLeaky(_Recurrent):
    """snntorch.RLeaky: a leaky neuron without synaptic current, the input already projected.

    Args:
        beta: decay of the membrane over a step, clamped to 0 to 1 (alpha of functional.alif); a
            number or one per neuron.
        V: with all_to_all=False the weight of each neuron onto itself, a number or one per neuron.
        all_to_all: True: recurrent is an nn.Linear(N, N) with its bias.
        linear_features: neurons N, with all_to_all=True.
        conv2d_channels, kernel_size: None; others are refused.
        threshold: a number or one per neuron.
        spike_grad: None (atan with alpha=2), or atan, fast_sigmoid or sigmoid of
            snntorch.surrogate.
        surrogate_disable: True: spikes have no gradient.
        init_hidden, inhibition, state_quant: False; others are refused.
        learn_beta, learn_threshold, learn_recurrent: whether these are Parameters that learn.
        reset_mechanism: "subtract", "zero" or "none".
        output: of no effect without init_hidden.
        reset_delay: True: a spike resets in the next step; False: at once.

    Parameters and buffers are named as there. Raises Refused for what the operator cannot compute
    as snnTorch does.
    """

    original = "snntorch._neurons.rleaky.RLeaky"
    _states = "spk", "mem"

    def __init__(self, beta: Any, V: Any = 1.0, all_to_all: bool = True,
                 linear_features: int | None = None, conv2d_channels: int | None = None,
                 kernel_size: Any = None, threshold: Any = 1.0, spike_grad: Any = None,
                 surrogate_disable: bool = False, init_hidden: bool = False,
                 inhibition: bool = False, learn_beta: bool = False,
                 learn_threshold: bool = False, learn_recurrent: bool = True,
                 reset_mechanism: str = "subtract", state_quant: Any = False,
                 output: bool = False, reset_delay: bool = True) -> None:
        super().__init__({"beta": (beta, learn_beta)}, V, all_to_all, linear_features,
                         conv2d_channels, kernel_size, threshold, spike_grad, surrogate_disable,
                         init_hidden, inhibition, learn_threshold, learn_recurrent,
                         reset_mechanism, state_quant, output, reset_delay)

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None, *,
                trace: bool = False) -> tuple[Tensor, ...]:
        """One step as in snnTorch, or a whole sequence.

        Args:
            input_: (B, N) or (N,): one step. (T, B, N): a sequence.
            spk, mem: (B, N) spikes and membrane before. Default zeros for a sequence, and for a
                step what the step before has left.
            trace: with a sequence, return the membranes of all its steps.

        Returns:
            spk and mem. Of a sequence spk is (T, B, N), and mem (B, N) that of the last step, with
            trace=True (T, B, N); spk[-1] and the last mem go on.

        Raises:
            TypeError, ValueError: as functional.alif.
        """
        return self._call(input_, (spk, mem), trace)

    def step(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None,
             ) -> tuple[Tensor, ...]:
        """One step, of an input of any shape (..., N)."""
        return self._one(input_, (spk, mem))

    def init_rleaky(self) -> tuple[Tensor, ...]:
        """reset_mem, by its older name."""
        return self.reset_mem()


class RSynaptic(_Recurrent):
    """snntorch.RSynaptic: with a synaptic current, the input already projected.

    Args:
        alpha: decay of the synaptic current over a step, clamped to 0 to 1 (sigma of
            functional.alif); a number or one per neuron.
        learn_alpha: whether it is a Parameter.
        reset_delay: True; False is refused, as snnTorch itself raises an error.

    All others as of RLeaky.
    """

    original = "snntorch._neurons.rsynaptic.RSynaptic"
    _states = "spk", "syn", "mem"

    def __init__(self, alpha: Any, beta: Any, V: Any = 1.0, all_to_all: bool = True,
                 linear_features: int | None = None, conv2d_channels: int | None = None,
                 kernel_size: Any = None, threshold: Any = 1.0, spike_grad: Any = None,
                 surrogate_disable: bool = False, init_hidden: bool = False,
                 inhibition: bool = False, learn_alpha: bool = False, learn_beta: bool = False,
                 learn_threshold: bool = False, learn_recurrent: bool = True,
                 reset_mechanism: str = "subtract", state_quant: Any = False,
                 output: bool = False, reset_delay: bool = True) -> None:
        super().__init__({"alpha": (alpha, learn_alpha), "beta": (beta, learn_beta)}, V,
                         all_to_all, linear_features, conv2d_channels, kernel_size, threshold,
                         spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold,
                         learn_recurrent, reset_mechanism, state_quant, output, reset_delay)

    def _sigma(self) -> Tensor | None:
        alpha = self.alpha
        assert isinstance(alpha, Tensor)
        return alpha.clamp(0, 1)

    def forward(self, input_: Tensor, spk: Tensor | None = None, syn: Tensor | None = None,
                mem: Tensor | None = None, *, trace: bool = False) -> tuple[Tensor, ...]:
        """One step or a whole sequence, as of RLeaky: spk, syn and mem. syn is (B, N), that of the
        last step, also with trace=True."""
        return self._call(input_, (spk, syn, mem), trace)

    def step(self, input_: Tensor, spk: Tensor | None = None, syn: Tensor | None = None,
             mem: Tensor | None = None) -> tuple[Tensor, ...]:
        """One step, of an input of any shape (..., N)."""
        return self._one(input_, (spk, syn, mem))

    def init_rsynaptic(self) -> tuple[Tensor, ...]:
        """reset_mem, by its older name."""
        return self.reset_mem()
