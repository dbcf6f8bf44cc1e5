"""The keyword arguments of neurons, calls and layers: names, types, defaults and documentation.

functional.alif, layer and recurrent, reference.alif, ALIF, LIF, LSNN and state dicts share them. A
TypedDict declares the keyword arguments of a caller, with a text for each; the tuples and
LAYER_DEFAULTS have the same names with their defaults. document() writes both into signatures and
docstrings.
"""
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, Required, TypeAlias, TypedDict, TypeVar

import torch
from torch import Tensor

from ..models import COEFFICIENTS, check_sparse_grad
from .arguments import Delay
from .coefficients import Coefficient, Rows
from .lengths import Lengths, LengthsArgument
from .state import State

# names, or a parametrization by name
Learn: TypeAlias = str | Iterable[str] | Mapping[str, Any]


class _Shared(TypedDict, total=False):
    """Options of functions and layers, with and without adaptation."""

    dynamics: Annotated[str, "name of a model; \"lsnn\" is the network of Bellec et al., NeurIPS "
                        "2018."]
    kappa: Annotated[Coefficient | None, "gain of the current. None: the model's rule."]
    sigma: Annotated[Coefficient | None, "decay of the synaptic current, in [0, 1]. None: no "
                     "synaptic filter."]
    R: Annotated[Coefficient | None, "what a spike subtracts, or resets to, in models with such a "
                 "reset. None: the model's rule, theta or 0."]
    surrogate: Annotated[str | None, "shape of the surrogate gradient. None: the model's."]
    dampening: Annotated[float | None, "height of the surrogate gradient. None: the model's."]
    width: Annotated[Coefficient | None, "width of the surrogate gradient. None: the model's."]
    surrogate_cutoff: Annotated[
        float, "share of the surrogate's height, 0 to 0.01. Where |psi| is below it, no gradient "
        "passes the spike, and the backward pass may skip the neuron's row of weights. 1e-8 is "
        "lost in rounding; larger shares are approximations. Only for surrogates with unbounded "
        "support: fast_sigmoid, arctan, sigmoid, exponential, gaussian, multi_gaussian."]
    checkpoint_every: Annotated[
        int | str | None, "None: the membrane of every step is saved, 4 bytes per neuron-step. An "
        "int K: the state every K steps (rounded up to a multiple of 16) and one bit per "
        "neuron-step; the backward pass recomputes the rest, with bitwise identical gradients "
        "(that of sigma: to rounding). A size such as \"500 MB\": the bound for saved tensors and "
        "scratch memory, from which K follows. CPU only; ignored elsewhere, with a warning."]
    saved_dtype: Annotated[
        torch.dtype | None, "torch.bfloat16: membranes are saved in half the memory, 2.25 instead "
        "of 4.25 bytes per neuron-step. Spikes do not change; gradients are those of membranes "
        "rounded to 8 bits. No effect in float64 or with checkpoint_every. None: the dtype of the "
        "computation."]
    sparse_grad: Annotated[
        str, "\"existing\": only recurrent weights that are not 0 receive a gradient, which is "
        "faster if most are 0. \"all\": every weight."]


class _Adaptive(TypedDict, total=False):
    q: Annotated[Coefficient | None, "gain of a spike in the adaptation. None: the model's rule."]
    p: Annotated[Coefficient | None, "coupling of the membrane into the adaptation. None: 0."]
    eta: Annotated[Coefficient | None, "coupling of the adaptation into the current. None: the "
                   "model's, 0 except for adLIF."]


class AlifOptions(_Shared, _Adaptive, total=False):
    """Options of functional.alif, functional.layer and reference.alif."""

    alpha: Annotated[
        Required[Coefficient], "decay of the membrane per step, exp(-dt / tau), in [0, 1]. Every "
        "coefficient is a number or a differentiable tensor (N,)."]
    theta: Annotated[Required[Coefficient], "base threshold."]
    rho: Annotated[Coefficient | None, "decay of the adaptation per step, in [0, 1]. None: 0."]
    beta: Annotated[Coefficient | None, "rise of the threshold per unit of adaptation; 0 for the "
                    "regular neurons of an LSNN. None: 0 (LIF)."]
    refractory: Annotated[int, "steps without a spike after each spike."]
    delay: Annotated[
        Delay, "extra delay of recurrent spikes in steps: an int; integers (N, N), one for each "
        "synapse, or Delays of these so that torch.compile meets no data-dependent control flow; "
        "with w_rec (S, N, N) or delay_kernel (S, N), S ascending ints."]
    delay_kernel: Annotated[
        Tensor | None, "(S, N) axonal delays: the share of a spike of each presynaptic neuron that "
        "acts after each of the S delays, differentiable; w_rec is (N, N). Equals w_rec * "
        "delay_kernel[:, :, None] at a cost of N S + N^2 instead of S N^2 per step; CUDA kernels "
        "expand it to w_rec of shape (S, N, N). None: no filter."]
    recurrent_mask: Annotated[
        Tensor | None, "(B, N) bool: spikes of neurons that are False in a sequence count as 0 in "
        "the recurrent sum (1), as with recurrent dropout. CUDA tensors take the slow reference. "
        "None: all act."]
    autapses: Annotated[bool, "False: the diagonal of w_rec acts as 0 and has no gradient."]
    state: Annotated[State | None, "State to start from. Of a longer spike history the newest "
                     "steps are used. None: zeros."]
    trace: Annotated[bool, "also return Traces of membrane, adaptation and moving threshold, each "
                     "(T, B, N), differentiable."]
    smooth: Annotated[bool, "spikes become the antiderivative of the surrogate, for gradient "
                      "checks."]
    lengths: Annotated[
        LengthsArgument | Lengths | None,
        "(B,) steps of each sequence, 0 to T, integers on the CPU. "
        "After its last step a sequence keeps its state, its spikes and traces are 0, and its "
        "inputs and gradients are not read. Time is proportional to the sum of lengths. None: all "
        "have T steps."]


class LIFOptions(_Shared, total=False):
    """Options of LIF; ALIF and LSNN have them too."""

    recurrent: Annotated[bool, "False: no recurrent weights, hence no autapses and no delay."]
    tau_mem: Annotated[Coefficient | None, "membrane time constant in ms, > 0: a number or (N,). "
                       "None: the model's default, see docs/modules.md."]
    alpha: Annotated[Coefficient | None, "membrane decay exp(-dt / tau_mem), in place of tau_mem."]
    threshold: Annotated[Coefficient | None, "base threshold theta, > 0: a number or (N,). None: "
                         "the model's default."]
    refractory: Annotated[int | str | None, "steps without a spike after each spike, or a time of "
                          "whole steps such as \"5 ms\". None: the model's default."]
    delay: Annotated[
        int | str | Tensor | None, "extra delay of recurrent spikes in steps, beyond the one step "
        "that every spike takes: an int, or integers (N, N) from neuron j to neuron k; or the "
        "whole delay as a time such as \"10 ms\". None: the model's default, mostly 0."]
    autapses: Annotated[bool | None, "False: the diagonal of weight_hh acts as 0. None: the "
                        "model's default."]
    recurrent_dropout: Annotated[
        float, "probability, >= 0 and < 1, that the recurrent synapses of a presynaptic neuron "
        "are dropped for a whole sequence, in training mode. Each call draws a mask (B, N) for "
        "each layer and direction; weight_hh is scaled by 1 / (1 - recurrent_dropout)."]
    dt: Annotated[float, "duration of a step in ms."]
    learn: Annotated[
        Learn, "names of constants that become Parameters; the others are buffers. Constants with "
        "a range are learned unbounded: the logarithm of tau_mem, tau_adapt, threshold and width, "
        "the logit of alpha, rho and sigma. A dict chooses otherwise: {\"tau_mem\": FORM} with "
        "\"log\", \"logit\", \"clamp\" (the range of the model's authors), \"plain\" (the number "
        "itself; a value out of range raises ValueError in the next call), or a module with "
        "right_inverse, see torch.nn.utils.parametrize."]
    per_neuron: Annotated[bool | Iterable[str], "True, or names among learn: one value for each "
                          "neuron, also when a single number is given."]
    device: Annotated[torch.device | str | None, "of parameters and buffers."]
    dtype: Annotated[torch.dtype | None, "of parameters and buffers."]


class LayerOptions(LIFOptions, _Adaptive, total=False):
    tau_adapt: Annotated[Coefficient | None, "adaptation time constant in ms, > 0: a number or "
                         "(N,). None: the model's default."]
    rho: Annotated[Coefficient | None, "adaptation decay exp(-dt / tau_adapt), in place of "
                   "tau_adapt."]
    beta: Annotated[Coefficient | None, "rise of the threshold per unit of adaptation, a number or "
                    "(N,). None: the model's default."]


class NeuronArguments(NamedTuple):
    """The neuron of a call; None: the rule of the model."""

    alpha: Coefficient | None = None
    theta: Coefficient | None = None
    rho: Coefficient | None = None
    beta: Coefficient | None = None
    kappa: Coefficient | None = None
    q: Coefficient | None = None
    p: Coefficient | None = None
    eta: Coefficient | None = None
    sigma: Coefficient | None = None
    R: Coefficient | None = None
    width: Coefficient | None = None
    refractory: int = 0
    dynamics: str = "lsnn"
    surrogate: str | None = None
    dampening: float | None = None
    surrogate_cutoff: float = 0.0
    rows: Rows | None = None  # of these coefficients, if cached


class CallArguments(NamedTuple):
    """How a call computes a sequence, for any neuron; state: a State or NeuronState."""

    delay: Delay = 0
    delay_kernel: Tensor | None = None
    recurrent_mask: Tensor | None = None
    autapses: bool = True
    state: Any = None
    trace: bool = False
    smooth: bool = False
    checkpoint_every: int | str | None = None
    saved_dtype: torch.dtype | None = None
    sparse_grad: str = "all"
    lengths: LengthsArgument | Lengths | None = None

    def check(self) -> None:
        """Raises TypeError or ValueError for options whose range does not depend on the call."""
        if not isinstance(self.autapses, bool):
            raise TypeError(f"autapses: expected True or False, got {self.autapses!r}")
        check_sparse_grad(self.sparse_grad)


_NEURON = frozenset(NeuronArguments._fields) - {"rows"}
_CALL = frozenset(CallArguments._fields)
ALIF_DEFAULTS: dict[str, Any] = {**NeuronArguments._field_defaults, **CallArguments._field_defaults}
# Of ALIF and LIF, in the order of signatures; None: the default of the model.
LAYER_DEFAULTS: dict[str, Any] = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
    "recurrent": True, "dynamics": "lsnn",
    **dict.fromkeys(("tau_mem", "tau_adapt", "beta", "threshold", "alpha", "rho", "kappa", "q", "p",
                     "eta", "sigma", "width", "R", "refractory", "delay")),
    "recurrent_dropout": 0.0, "dt": 1.0, "surrogate": None, "dampening": None,
    "surrogate_cutoff": 0.0, "learn": (), "per_neuron": False, "autapses": None,
    "checkpoint_every": None, "saved_dtype": None, "sparse_grad": "all", "device": None,
    "dtype": None,
}
# The options that a layer passes to its calls unchanged.
_PASSED = _Shared.__annotations__.keys() - set(COEFFICIENTS) | {"refractory"}
PASSED_TO_NEURONS = tuple(name for name in NeuronArguments._fields if name in _PASSED)
PASSED_TO_CALLS = tuple(name for name in CallArguments._fields if name in _PASSED)


def split_options(function: str,
                  options: Mapping[str, Any]) -> tuple[NeuronArguments, CallArguments]:
    """AlifOptions as two tuples. Raises TypeError for an unknown or missing name."""
    for name in options:
        if name not in _NEURON and name not in _CALL:
            near = get_close_matches(name, ALIF_DEFAULTS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{name}: expected a keyword argument of {function}, got an unknown "
                            f"name{hint}")
    for name in ("alpha", "theta"):
        if name not in options:
            raise TypeError(f"{name}: expected a number or a tensor, got none")
    return (NeuronArguments(**{name: options[name] for name in options if name in _NEURON}),
            CallArguments(**{name: options[name] for name in options if name in _CALL}))


Documented = TypeVar("Documented", bound=Callable[..., Any])


def document(options: type, defaults: Mapping[str, Any]) -> Callable[[Documented], Documented]:
    """A decorator that replaces `**options` by the names of a TypedDict, in the order of defaults.

    It changes the signature, and the line `**options` of the docstring; of a class, the signature
    of __init__ and the docstring of the class.
    """
    kinds = typing.get_type_hints(options)
    texts = {name: hint.__metadata__[0] for name, hint
             in typing.get_type_hints(options, include_extras=True).items()}
    required = options.__required_keys__  # type: ignore[attr-defined]

    def decorate(target: Documented) -> Documented:
        function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        signature = inspect.signature(function)
        named = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        names = [name for name in defaults if name in kinds and name not in signature.parameters]
        function.__signature__ = signature.replace(parameters=named + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kinds[name],
                              default=inspect.Parameter.empty if name in required
                              else defaults[name]) for name in names])

        def write_entry(indent: str, name: str) -> str:
            is_shown = name not in required and defaults[name] is not None
            more = f" Default {defaults[name]!r}." if is_shown else ""
            return textwrap.fill(f"{name}: {texts[name]}{more}", 100, initial_indent=indent,
                                 subsequent_indent=indent + "    ", break_on_hyphens=False)

        if target.__doc__:  # python -OO strips docstrings
            target.__doc__ = re.sub(
                r"^( *)\*\*options$",
                lambda found: "\n".join(write_entry(found[1], name) for name in names),
                target.__doc__, flags=re.MULTILINE)
        return target

    return decorate
