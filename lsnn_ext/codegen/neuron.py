"""Neuron: a step written in PyTorch, with the names of its currents, states and coefficients."""
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from functools import update_wrapper
from itertools import count
from operator import index
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._core.coefficients import Coefficient
from .._core.torch_internals import mark_constant, without_modes
from .form import MAX_AXIS, Form, describe_forms, make_examples, parse_form

Step: TypeAlias = Callable[..., Any]
_numbers = count()
by_name: "WeakValueDictionary[str, Neuron]" = WeakValueDictionary()
# What functional.recurrent and Recurrent take by these names, no coefficient of theirs.
_TAKEN = frozenset({
    "self", "x", "w_rec", "neuron", "w_in", "bias", "delay", "state", "trace", "checkpoint_every",
    "sparse_grad", "lengths", "autapses", "input_size", "hidden_size", "learn", "positive",
    "batch_first", "recurrent", "dtype", "device"})


class Parts(NamedTuple):
    """The names of what a step takes before the last spike, and the forms of its states."""

    currents: tuple[str, ...]
    states: tuple[str, ...]
    forms: tuple[Form, ...]
    kinds: str  # of the coefficients, as of describe_forms


class Neuron:
    """A neuron whose step is written in PyTorch, for functional.recurrent and Recurrent.

    The step is called as step(*currents, *states, z, **coefficients) and returns (*states, z): K
    currents of this step, recurrent spikes included; S states and the spike z of the step before,
    in the order in which the new ones are returned. All of them are (B, N). Its keyword-only
    parameters are the coefficients: numbers, or tensors () or (N,). S is the number of results less
    one, K what is left of the positional parameters. A state whose result is complex is complex.

    Args:
        step: a function, a method or another callable. Each neuron of each sequence is computed
            from its own numbers: elementwise operations, and autograd.Functions of such.
        axes: by name of a state the size of an axis of its own, 1 to 16: this state is (B, N,
            size). Coefficients (N, size) and (1, size) go with it. On the last axis a step may
            also use sum, mean, amax, amin, select, slices, unbind, stack and cat.

    Raises:
        TypeError, ValueError: a signature that is no step's, or axes of another kind.

    Example:
        >>> def step(c, v, z, *, tau, theta=1.0):
        ...     v = v + (c - v) / tau - theta * z
        ...     return v, spike(v - theta)  # spike: a surrogate of any package
        >>> neuron = lsnn_ext.Neuron(step)
        >>> spikes, state = lsnn_ext.functional.recurrent(x, w_rec, neuron, tau=20.0)

    Make it once: each Neuron traces its step anew. Copies share the step, and a pickle holds its
    module and name.
    """

    step: Step
    inputs: tuple[str, ...]  # positional parameters: currents, states, z
    axes: dict[str, int]  # by name of a state the size of its own axis
    coefficients: dict[str, Any]  # by name the default, inspect.Parameter.empty where there is none

    def __init__(self, step: Step, axes: Mapping[str, int] | None = None) -> None:
        if isinstance(step, Neuron):
            axes = step.axes if axes is None else axes
            step = step.step
        if not callable(step):
            raise TypeError(f"step: expected a function step(c, v, z, *, tau), got "
                            f"{type(step).__name__}")
        self.step = step
        self.inputs, self.coefficients = _read_signature(step)
        # torch.compile takes strings, not objects, for constants
        self.name = f"{_get_name(step)}#{next(_numbers)}"
        by_name[self.name] = self
        self.axes = _check_axes(axes, self.inputs)
        self._parts: dict[str, Parts] = {}  # by the forms of the coefficients
        self.kernels: dict[Any, Any] = {}  # kernels by the forms of a call, see kernels.py
        update_wrapper(self, step, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The step itself, of one step."""
        return self.step(*args, **kwargs)

    def parts(self, given: Mapping[str, Coefficient], like: Tensor, N: int) -> Parts:
        """Returns currents and states. The first call runs the step on zeros (1, N)."""
        if torch.compiler.is_compiling():
            # index() makes a number of a size that is a variable of the graph
            kinds = describe_forms(given)
            words = _find_parts_for_graph(self.name, str(like.dtype), str(like.device), index(N),
                                          kinds)
            currents, states, forms = (tuple(one.split()) for one in words.split(","))
            return Parts(currents, states, tuple(map(parse_form, forms)), kinds)
        return self.parts_of(given, like, N)

    def parts_of(self, given: Mapping[str, Coefficient], like: Tensor, N: int) -> Parts:
        """Returns the same outside of torch.compile."""
        forms = describe_forms(given)
        if forms not in self._parts:
            self._parts[forms] = self._find_parts(given, like, N)
        return self._parts[forms]

    def _find_parts(self, given: Mapping[str, Coefficient], like: Tensor, N: int) -> Parts:
        dtype = torch.promote_types(like.dtype, torch.float32)
        devices = [like.device] if like.device.type == "cuda" else []
        values = {name: one.detach() if isinstance(one, Tensor) else one
                  for name, one in given.items()}
        forms = {name: Form(self.axes.get(name, 0)) for name in self.inputs}

        def run() -> tuple[Any, ...]:
            zeros = [torch.zeros(form.shape(1, N), dtype=form.dtype(dtype), device=like.device)
                     for form in forms.values()]
            return check_results(self.step(*zeros, **values))

        with torch.no_grad(), torch.random.fork_rng(devices), without_autocast(like.device), \
                _ZeroImaginary():
            results = run()
            n = len(results)
            K = len(self.inputs) - n
            if K < 1:
                raise TypeError(
                    f"step: expected one current or more, {n - 1} states and z before *, for {n} "
                    f"results, got {len(self.inputs)} parameters: {', '.join(self.inputs)}; a step "
                    f"returns its states and the spike, in the order in which it takes them")
            states = self.inputs[K:-1]
            for name in self.axes:
                if name not in states:
                    raise ValueError(f"axes: expected names of states, which are "
                                     f"{', '.join(states) or 'none'}, got {name!r}")
            while True:  # what is computed from a complex state may be complex, too
                found = [name for name, one in zip(states, results, strict=False)
                         if one.is_complex() and not forms[name].is_complex]
                if not found:
                    break
                for name in found:
                    forms[name] = forms[name]._replace(is_complex=True)
                results = run()
            if results[-1].is_complex():
                raise TypeError(f"step: expected real numbers as the spike, got "
                                f"{results[-1].dtype}; u.real is the real part of u")
        return Parts(self.inputs[:K], states, tuple(forms[name] for name in states),
                     describe_forms(given))

    def all_coefficients(self, given: Mapping[str, Coefficient]) -> dict[str, Coefficient]:
        """Returns the coefficients of a call, defaults included, in the order of the step. Raises
        TypeError for a missing or unknown one."""
        for name in given:
            if name not in self.coefficients:
                known = ", ".join(self.coefficients) or "none"
                raise TypeError(f"{name}: expected a coefficient of {self!r}, which are {known}, "
                                f"got another keyword")
        found = {**self.coefficients, **given}
        for name, value in found.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{name}: expected a number or a tensor, got none; {self!r} has no "
                                f"default for it")
        return found

    def __repr__(self) -> str:
        return f"Neuron({_get_name(self.step)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Neuron) and self.step == other.step and self.axes == other.axes

    def __hash__(self) -> int:
        return hash(self.step)

    def __copy__(self) -> "Neuron":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Neuron":
        return self

    def __reduce__(self) -> Any:
        if not inspect.isfunction(self.step):
            return Neuron, (self.step, self.axes)
        module, name = self.step.__module__, self.step.__qualname__
        try:
            is_found = _load(module, name, self.axes) == self
        except (ImportError, AttributeError, TypeError):
            is_found = False
        if not is_found:
            raise pickle.PicklingError(
                f"step: expected a function that {module} has by the name {name}, to pickle "
                f"{self!r}, got a local function, a lambda or one that was replaced; define it at "
                f"the top of a module")
        return _load, (module, name, self.axes)


class _ZeroImaginary(TorchFunctionMode):
    """Real zeros have an imaginary part, as those of a state have that will be complex."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and not args[0].is_complex():
            if func is torch.imag or getattr(func, "__self__", None) is Tensor.imag:
                return torch.zeros_like(args[0])
            if func is torch.view_as_real:
                return torch.stack([args[0], torch.zeros_like(args[0])], -1)
        return func(*args, **(kwargs or {}))


def _check_axes(axes: Any, inputs: tuple[str, ...]) -> dict[str, int]:
    if axes is None:
        return {}
    if not isinstance(axes, Mapping):
        raise TypeError(f"axes: expected a dict of sizes by names of states, got "
                        f"{type(axes).__name__}")
    for name, size in axes.items():
        if name not in inputs[1:-1]:
            raise ValueError(f"axes: expected names of states, got {name!r}")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_AXIS:
            raise ValueError(f"axes[{name!r}]: expected a size from 1 to {MAX_AXIS}, got {size!r}")
    return dict(axes)


def _find_parts_for_graph(name: str, dtype: str, device: str, N: int, forms: str) -> str:
    """Returns Neuron.parts as a constant of torch.compile."""
    neuron, of = by_name[name], getattr(torch, dtype.removeprefix("torch."))
    with without_modes():
        like = torch.empty(0, dtype=of, device=device)
        given = make_examples(forms, N, torch.promote_types(of, torch.float32), like.device)
        found = neuron.parts_of(given, like, N)
    return ",".join(" ".join(map(str, names)) for names in found[:3])


mark_constant(_find_parts_for_graph)


def _load(module: str, name: str, axes: Mapping[str, int] | None = None) -> Neuron:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found if isinstance(found, Neuron) else Neuron(found, axes)


def _get_name(step: Step) -> str:
    return getattr(step, "__qualname__", None) or type(step).__qualname__


def _read_signature(step: Step) -> tuple[tuple[str, ...], dict[str, Any]]:
    try:
        called = step.forward if isinstance(step, nn.Module) else step
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        raise TypeError(f"step: expected a callable with a signature, got {step!r}") from None
    inputs, coefficients = [], {}
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            raise TypeError(f"step: expected a name for each current, state and coefficient, got "
                            f"{one}")
        if one.kind is one.KEYWORD_ONLY:
            if one.name in _TAKEN:
                raise TypeError(f"step: expected another name for the coefficient {one.name}, "
                                f"which is an argument of functional.recurrent or Recurrent")
            if one.default is not one.empty:
                check_coefficient(one.name, one.default)
            coefficients[one.name] = one.default
            continue
        if one.default is not one.empty:
            raise TypeError(f"step: expected no default of the current, state or spike {one.name}, "
                            f"got {one.default!r}; coefficients stand after *")
        inputs.append(one.name)
    if len(inputs) < 2:
        raise TypeError(f"step: expected a current and the last spike before *, as in step(c, v, "
                        f"z, *, tau), got {', '.join(inputs) or 'none'}")
    return tuple(inputs), coefficients


def check_coefficient(name: str, value: Any) -> None:
    """Raises TypeError for what is neither a real number nor a tensor of numbers."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            raise TypeError(f"{name}: expected numbers, got {value.dtype}")
        return
    if isinstance(value, complex):
        raise TypeError(f"{name}: expected a tensor for a complex number, got {value!r}; "
                        f"torch.tensor makes one")
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")


def check_results(results: Any) -> tuple[Any, ...]:
    """Returns the results of a step as a tuple. Raises TypeError unless they are tensors."""
    results = (results,) if isinstance(results, Tensor) else results
    if not isinstance(results, tuple | list) or not results:
        raise TypeError(f"step: expected its states and its spike as a tuple of tensors, got "
                        f"{type(results).__name__}")
    for one in results:
        if not isinstance(one, Tensor):
            raise TypeError(f"step: expected tensors as results, got {type(one).__name__}")
    return tuple(results)


def without_autocast(device: torch.device) -> torch.autocast:
    """Returns a context in which a step computes in the dtype of its arguments, as the kernels."""
    return torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False)
