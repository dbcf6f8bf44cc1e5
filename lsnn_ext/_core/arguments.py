"""The arguments of functional.alif: checked, and in the form that the operator takes.

Inputs are checked in call.py (of_inputs), inputs of modules in modules/checks.py, and what reaches
the operators in csrc/torch/checks.h and arguments.h.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .coefficients import Coefficient, Decay
from .state import State, iterate_leaves
from .torch_internals import assert_on_device, is_batched, is_graph_freed, is_mode_active

_ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)

def readable(tensor: Tensor) -> bool:
    """Whether its numbers may be looked at here: they lie on the CPU, and nobody compiles, traces
    or maps over them."""
    return (
        not torch.compiler.is_compiling() and type(tensor) in _ORDINARY and tensor.is_cpu
        and not is_mode_active(functions=False) and not torch.jit.is_tracing()
        and not is_batched(tensor)
    )


class Delays(NamedTuple):
    """Delays d_jk (N, N) with their distinct values in ascending order, so that no call has to look
    for them.

    Whoever changes the tensor makes them anew: a call refuses delays that are not among the
    distinct values.
    """

    each: Tensor
    distinct: tuple[int, ...]

    @classmethod
    def of(cls, each: Tensor) -> "Delays":
        """Looks for the distinct values; integers >= 0 are expected."""
        if not isinstance(each, Tensor):
            raise TypeError(f"delay: expected an int or an integer tensor (N, N), got "
                            f"{type(each).__name__}")
        if each.dtype.is_floating_point or each.dtype.is_complex or each.dtype == torch.bool:
            raise TypeError(f"delay: expected an integer tensor, got {each.dtype}")
        if each.is_meta:
            raise ValueError("delay: expected numbers, got a tensor on meta; make it on the CPU")
        distinct = _distinct(each)
        if distinct and distinct[0] < 0:
            raise ValueError(f"delay: expected extra steps >= 0 everywhere, got {distinct[0]}")
        return cls(each, distinct)


def _distinct(each: Tensor) -> tuple[int, ...]:
    """In ascending order."""
    if each.is_cpu and each.numel():
        low, high = (int(end) for end in each.aminmax())
        if high - low < each.numel():  # counted in a fraction of the time of sorting
            counts = (each.reshape(-1).long() - low).bincount()
            return tuple(low + d for d in counts.nonzero().squeeze(1).tolist())
    return tuple(int(d) for d in each.unique().tolist())


Delay: TypeAlias = int | Tensor | Delays | Sequence[int]


def _hold(given: Delays, on_cpu: bool) -> None:
    """Refuses a tensor that was changed since its distinct values were looked for.

    What may not be looked at here, in a graph or on a GPU, is compared there when it runs. The
    operator on the CPU does so by itself, where there are several delays.
    """
    each, distinct = given
    if each.is_meta or (on_cpu and len(distinct) > 1):
        return
    message = (
        f"delay: expected no other numbers than {distinct}, got a tensor that was changed since "
        f"they were looked for; "
        "make functional.Delays of it anew, or call the layer once outside of torch.compile"
    )
    if readable(each) and len(distinct) == 1:
        low, high = each.aminmax()  # twice as fast as a comparison
        if (int(low), int(high)) != (*distinct, *distinct):
            raise ValueError(message)
        return
    known = torch.zeros_like(each, dtype=torch.bool)
    for value in distinct:
        known = known | (each == value)
    assert_on_device(known.all(), message)


def delays_of(
    delay: Delay, w_rec: Tensor | None, N: int, device: torch.device, currents: int = 1,
) -> tuple[Tensor | None, list[int]]:
    """The delay of each synapse, or None where those of a matrix are alike, and the distinct
    delays, ascending. With several currents K each has synapses of its own: (K, N, N)."""
    synapses = _synapses_shape(N, currents)
    if w_rec is None:
        if not isinstance(delay, int) or delay:
            raise ValueError(f"delay: expected 0 without w_rec, got {delay}")
        return None, []
    if w_rec.dim() > len(synapses):
        given = [delay] if isinstance(delay, int) else delay
        if not isinstance(given, list | tuple) or not all(type(d) is int for d in given):
            wanted = (
                f"an int for each matrix of w_rec {tuple(w_rec.shape)}, or a w_rec of shape "
                f"{synapses}"
            )
            raise TypeError(f"delay: expected {wanted}, got {type(delay).__name__}")
        ascending = all(low < high for low, high in zip(given, given[1:], strict=False))
        if len(given) != w_rec.shape[0] or not given or given[0] < 0 or not ascending:
            wanted = f"{w_rec.shape[0]} ascending delays >= 0, one for each matrix of w_rec"
            raise ValueError(f"delay: expected {wanted}, got {tuple(given)}")
        return None, list(given)
    if isinstance(delay, int) and not isinstance(delay, bool):
        if delay < 0:
            raise ValueError(f"delay: expected extra steps >= 0, got {delay}")
        return None, [delay]
    if isinstance(delay, list | tuple) and not isinstance(delay, Delays):
        letters = "(N, N)" if currents == 1 else "(K, N, N)"
        raise TypeError(f"delay: expected an int or an integer tensor (N, N) for a w_rec of shape "
                        f"{letters}, got {type(delay).__name__}")
    if isinstance(delay, Delays) and not isinstance(delay.each, Tensor):
        raise TypeError(f"delay.each: expected an integer tensor ({N}, {N}), got "
                        f"{type(delay.each).__name__}")
    each = delay if isinstance(delay, Delays) else Delays.of(delay)  # type: ignore[arg-type]  # a bool is refused there
    if each.each.shape not in ((N, N), synapses):
        raise ValueError(f"delay: expected shape {synapses}, got {tuple(each.each.shape)}")
    _hold(each, device.type == "cpu")
    if len(each.distinct) <= 1:
        return None, list(each.distinct)
    one = each.each.to(device, torch.int64)
    return one if one.shape == synapses else one.repeat(currents, 1, 1), list(each.distinct)


def _synapses_shape(N: int, currents: int) -> tuple[int, ...]:
    """Of a matrix of weights, or of one for each of several currents."""
    return (N, N) if currents == 1 else (currents, N, N)


_NUMBERS = {"alpha": (0, 1), "rho": (0, 1), "sigma": (0, 1), "width": (5e-324, math.inf)}


def _check_number(name: str, value: float) -> None:
    """Numbers that are no tensors; those in tensors the operator reads itself, on the CPU."""
    low, high = _NUMBERS.get(name, (-math.inf, math.inf))
    # not math.isfinite, which torch.compile cannot trace for a dynamic number
    if low <= value <= high and -math.inf < value < math.inf:
        return
    hint = ""
    if name in ("alpha", "rho", "sigma") and value > 1:
        hint = (f"; {name} is a decay over a step: that of a time constant of {value:g} is "
                f"math.exp(-dt / {value:g})")
    wanted = {"width": "a finite number > 0"}.get(
        name, "a finite number" if low == -math.inf else f"a number from {low} to {high}")
    raise ValueError(f"{name}: expected {wanted}, got {value}{hint}")


def check_coefficients(given: dict[str, Coefficient | Decay | None], N: int,
                       device: torch.device) -> None:
    """Kinds, shapes, devices; ranges of numbers where the operator does not check them. None: left
    to the model."""
    for name, value in given.items():
        if value is None:
            continue
        value = value.tau if type(value) is Decay else value
        if isinstance(value, Tensor):
            if value.shape not in ((), (1,), (N,)):
                raise ValueError(f"{name}: expected a number or shape ({N},), got "
                                 f"{tuple(value.shape)}")
            if value.dtype.is_complex:
                raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
            if value.device != device and (value.dim() > 0 or value.is_meta):
                raise ValueError(f"{name}: expected device {device} as current, got {value.device}")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
        else:
            _check_number(name, value)
    for name in ("alpha", "theta"):
        if given[name] is None:
            raise TypeError(f"{name}: expected a number or a tensor, got None")


def complements_of(given: dict[str, Coefficient | Decay | None],
                   rules: dict[str, tuple[str, bool]]) -> dict[str, str]:
    """Of coefficients that are left out, those that are one less a tensor or a Decay, and the name
    of it; rules: by name that other one, and whether the model says so."""
    return {name: other for name, (other, follows) in rules.items()
            if follows and given[name] is None and isinstance(given[other], (Tensor, Decay))}


def check_state(
    state: State | None, B: int, N: int, D: int, dtype: torch.dtype, device: torch.device,
) -> tuple[Any, ...]:
    """The five tensors of the state; five times None, which stands for zeros, where none is
    given."""
    if state is None:
        return (None,) * len(State._fields)
    refuse_freed_graph(state, through=1)  # as a call has returned it, not as layers compute it
    for name, value in iterate_leaves(state):
        check_state_leaf(name, value, (D, B, N) if name == "z" else (B, N), dtype, device,
                         "current")
    v, a, i, r, z = state
    return v, a, i, r, z[:D]


def check_state_leaf(name: str, value: Tensor, wanted: tuple[int, ...], dtype: torch.dtype,
                     device: torch.device, of: str) -> None:
    """Raises TypeError or ValueError for what is no leaf of a state: z (D, B, N), which may have
    more past steps, or another (B, N). of: the argument whose device it must have."""
    fits = value.shape == wanted
    if name == "z":
        fits = value.dim() == 3 and value.shape[0] >= wanted[0] and value.shape[1:] == wanted[1:]
    if not fits:
        more = " or more past steps" if name == "z" else ""
        raise ValueError(f"state.{name}: expected shape {wanted}{more}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"state.{name}: expected device {device} as {of}, got {value.device}")
    if value.dtype != dtype:
        raise TypeError(f"state.{name}: expected {dtype}, got {value.dtype}")


def check_beside(name: str, value: Tensor, shape: tuple[int | str, ...], x: Tensor,
                 of: str) -> None:
    """A floating point tensor on the device of x, called `of`; a letter in the shape stands for any
    size."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        isinstance(size, str) or size == given
        for size, given in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(value.shape)}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating point dtype, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as {of}, got {value.device}")


def _check_recurrence(w_rec: Tensor, N: int, x: Tensor, name: str, currents: int) -> None:
    shape = _synapses_shape(N, currents)
    by_delay = w_rec.dim() == len(shape) + 1 and w_rec.shape[1:] == shape and w_rec.shape[0] > 0
    if w_rec.shape != shape and not by_delay:
        sizes = ", ".join(map(str, shape))
        of = f"a current of {N} neurons" if currents == 1 else f"{currents} currents of {N} neurons"
        raise ValueError(f"w_rec: expected shape ({sizes}) or (S, {sizes}) for {of}, got "
                         f"{tuple(w_rec.shape)}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    if torch.promote_types(w_rec.dtype, torch.float32) != dtype:
        smaller = ", torch.float16 or torch.bfloat16" if dtype == torch.float32 else ""
        of = "a current" if name == "current" else f"an {name}"
        raise TypeError(f"w_rec: expected {dtype}{smaller} for {of} of {x.dtype}, got "
                        f"{w_rec.dtype}")
    if w_rec.device != x.device:
        raise ValueError(f"w_rec: expected device {x.device} as {name}, got {w_rec.device}")


def check(current: Tensor, w_rec: Tensor | None, N: int, refractory: int, dampening: float) -> None:
    """Kinds, shapes and dtypes of a layer of N neurons; current: (T, B, N), or the inputs in front
    of a projection."""
    check_sequence("current", current, w_rec, N)
    if isinstance(refractory, bool) or not isinstance(refractory, int):
        raise TypeError(f"refractory: expected an int, got {type(refractory).__name__}")
    if not 0 <= refractory < 1 << 24:
        raise ValueError(f"refractory: expected steps >= 0 and < 2^24, got {refractory}")
    if isinstance(dampening, bool) or not isinstance(dampening, int | float):
        raise TypeError(f"dampening: expected a number, got {type(dampening).__name__}")
    # not math.isfinite, which torch.compile cannot trace for a dynamic number
    if not 0 <= dampening < math.inf:
        raise ValueError(f"dampening: expected a finite number >= 0, got {dampening}")


def check_sequence(name: str, x: Tensor, w_rec: Tensor | None, N: int, currents: int = 1) -> None:
    """The part of check that every neuron shares; x, called name: (T, B, N), or (T, B, K, N) of
    several currents K, or inputs (T, B, I)."""
    weights = {} if w_rec is None else {"w_rec": w_rec}
    for of, value in {name: x, **weights}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{of}: expected a tensor, got {type(value).__name__}")
        if not value.dtype.is_floating_point:
            raise TypeError(f"{of}: expected a floating point dtype, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{of}: expected a dense tensor, got layout {value.layout}")
    if currents == 1 and x.dim() != 3:
        raise ValueError(f"{name}: expected shape (T, B, N), got {tuple(x.shape)}")
    if currents > 1 and (x.dim() != 4 or x.shape[2] != currents):
        raise ValueError(f"{name}: expected shape (T, B, {currents}, N), got {tuple(x.shape)}")
    if N < 1:
        raise ValueError(f"{name}: expected one neuron or more, got shape {tuple(x.shape)}")
    if w_rec is not None:
        _check_recurrence(w_rec, N, x, name, currents)


def saves_bf16(saved_dtype: torch.dtype | None, dtype: torch.dtype) -> bool:
    """Whether y is saved as bfloat16, in a computation of this dtype."""
    if saved_dtype not in (None, torch.bfloat16, dtype):
        raise ValueError(
            f"saved_dtype: expected None, torch.bfloat16 or {dtype}, got {saved_dtype}")
    return saved_dtype == torch.bfloat16 and dtype == torch.float32


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(text: str) -> float:
    """The number of bytes in a text such as "500 MB"; 0 for any other text."""
    found = re.fullmatch(r"([0-9.]+) ?([KMG]i?B)", text.strip(), re.IGNORECASE)
    try:
        return float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    except ValueError:
        return 0.0


class Saved(NamedTuple):
    """What the backward pass needs of a neuron; those of models."""

    currents: int = 1  # numbers of a neuron-step
    states: int = 4
    segment: int = 128  # steps between two saved states without checkpoints
    spikes: int = 0  # numbers of a neuron-step beside its bit, with checkpoints too


def checkpoint_steps(checkpoint_every: int | str | None, T: int, B: int, N: int,
                     itemsize: int, saved: Saved = Saved()) -> int:  # noqa: B008
    """Steps between two saved states, or 0: the membrane of every step is saved.

    A text such as "500 MB" is what the saved tensors and the scratch memory of the backward pass
    may take together: 0 if everything fits, else the number of steps that takes least.
    """
    if checkpoint_every is None:
        return 0
    if isinstance(checkpoint_every, str):
        budget = parse_bytes(checkpoint_every)
        if budget <= 0:
            raise ValueError(f"checkpoint_every: expected bytes such as '500 MB' or '2 GiB', got "
                             f"{checkpoint_every!r}")
        step = B * N * itemsize
        spikes = T * (B * ((N + 31) // 32) * 4 + saved.spikes * step)
        state = saved.states * step
        rows = min(B, 16 * torch.get_num_threads()) * N * itemsize
        if T * saved.currents * step + spikes + -(-T // saved.segment) * state <= budget:
            return 0
        steps = max(16, round(math.sqrt(T * state / max(1, saved.currents * rows)) / 16) * 16)
        scratch = (steps * saved.currents + 16 * saved.states) * rows
        least = spikes + -(-T // steps) * state + scratch
        if least > budget:
            raise ValueError(f"checkpoint_every: expected {least / 1e6:.0f} MB or more for T = "
                             f"{T}, B = {B}, N = {N}, got {checkpoint_every!r}")
        return steps
    whole = isinstance(checkpoint_every, int) and not isinstance(checkpoint_every, bool)
    if not whole or checkpoint_every < 1:
        wanted = "None, an int >= 1 or bytes such as '500 MB'"
        raise ValueError(f"checkpoint_every: expected {wanted}, got {checkpoint_every!r}")
    # Chunks of the backward pass stay whole, and so do the bits of its sums; more than T steps say
    # no more than T.
    return -(-min(checkpoint_every, max(T, 1)) // 16) * 16


def refuse_freed_graph(state: Any, name: str = "state", through: int = 8) -> None:
    """Has a backward pass raise RuntimeError where it comes to a state whose graph an earlier one
    has freed; torch's own error does not say which tensor that is, nor what to do. through: as of
    is_graph_freed."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    leaves: dict[str, Any] = {name: state}
    if isinstance(state, tuple):
        state = dict(zip(State._fields, state, strict=False))
    if isinstance(state, dict):
        leaves = {f"{name}.{part}": leaf for part, leaf in state.items()}
    for of, leaf in leaves.items():
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            continue
        if not is_graph_freed(leaf, through):
            return  # the others are of the same node
        leaf.register_hook(partial(_refuse_gradient, of))


def _refuse_gradient(name: str, gradient: Tensor) -> None:
    raise RuntimeError(
        f"{name}: expected a state that no backward pass has gone through, got one whose graph is "
        f"freed; truncated BPTT goes on from state.detach(), and a backward pass with "
        f"retain_graph=True leaves the graph")
