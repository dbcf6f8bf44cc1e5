"""Checks of the arguments of functional.alif, and their conversion for the operator.

Other checks: of inputs in call.py (run_layer), of modules in modules/checks.py, of the operators in
csrc/torch/checks.h and arguments.h.
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


def is_readable(tensor: Tensor) -> bool:
    """Whether Python may read the numbers: on the CPU, without compiler, tracer, mode or vmap."""
    return (not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and has_numbers(tensor))


def has_numbers(tensor: Tensor) -> bool:
    """Whether is_readable, or would be without a compiler or tracer."""
    return (type(tensor) in _ORDINARY and tensor.is_cpu and not is_mode_active(functions=False)
            and not is_batched(tensor))


class Delays(NamedTuple):
    """Delays d_jk (N, N) with their distinct values, which calls then need not search.

    After a change of the tensor call Delays.of again: a call raises an error for a delay that is
    not among the distinct values.
    """

    each: Tensor
    distinct: tuple[int, ...]  # ascending

    @classmethod
    def of(cls, each: Tensor) -> "Delays":
        """Delays of integers each >= 0, (N, N). Raises TypeError or ValueError naming delay."""
        if not isinstance(each, Tensor):
            raise TypeError(f"delay: expected an int or an integer tensor (N, N), got "
                            f"{type(each).__name__}")
        if each.dtype.is_floating_point or each.dtype.is_complex or each.dtype == torch.bool:
            raise TypeError(f"delay: expected an integer tensor, got {each.dtype}")
        if each.is_meta:
            raise ValueError("delay: expected numbers, got a tensor on meta; make it on the CPU")
        distinct = _find_distinct(each)
        if distinct and distinct[0] < 0:
            raise ValueError(f"delay: expected extra steps >= 0 everywhere, got {distinct[0]}")
        return cls(each, distinct)


def _find_distinct(each: Tensor) -> tuple[int, ...]:
    if each.is_cpu and each.numel():
        low, high = (int(end) for end in each.aminmax())
        if high - low < each.numel():  # counted in a fraction of the time of sorting
            counts = (each.reshape(-1).long() - low).bincount()
            return tuple(low + d for d in counts.nonzero().squeeze(1).tolist())
    return tuple(int(d) for d in each.unique().tolist())


Delay: TypeAlias = int | Tensor | Delays | Sequence[int]


def _check_distinct(delays: Delays, on_cpu: bool) -> None:
    """Raises ValueError if the tensor was changed since its distinct values were found.

    In a graph and on a GPU the comparison runs on the device. The CPU operator makes the same check
    for more than one distinct value.
    """
    each, distinct = delays
    if each.is_meta or (on_cpu and len(distinct) > 1):
        return
    message = (
        f"delay: expected only the values {distinct}, got a tensor changed since functional.Delays "
        f"read it; make functional.Delays again, or call the layer once outside of torch.compile")
    if is_readable(each) and len(distinct) == 1:
        low, high = each.aminmax()  # half the time of a comparison
        if (int(low), int(high)) != (*distinct, *distinct):
            raise ValueError(message)
        return
    is_distinct = torch.zeros_like(each, dtype=torch.bool)
    for value in distinct:
        is_distinct = is_distinct | (each == value)
    assert_on_device(is_distinct.all(), message)


def resolve_delays(delay: Delay, w_rec: Tensor | None, N: int, device: torch.device,
                   currents: int = 1,
                   kernel: Tensor | None = None) -> tuple[Tensor | None, list[int]]:
    """The delays of the synapses, (N, N) or (K, N, N) for K > 1 currents, None if all of a matrix
    are equal; and the distinct delays, ascending, empty without w_rec. Raises TypeError or
    ValueError for an invalid delay."""
    synapses = _find_weight_shape(N, currents)
    if w_rec is None:
        if not isinstance(delay, int) or delay:
            raise ValueError(f"delay: expected 0 without w_rec, got {delay}")
        return None, []
    if kernel is not None or w_rec.dim() > len(synapses):
        count, of = w_rec.shape[0], f"matrix of w_rec {tuple(w_rec.shape)}"
        if kernel is not None:
            count, of = kernel.shape[0], f"row of delay_kernel {tuple(kernel.shape)}"
        values = [delay] if isinstance(delay, int) else delay
        if not isinstance(values, list | tuple) or not all(type(d) is int for d in values):
            instead = "" if kernel is not None else f", or a w_rec of shape {synapses}"
            raise TypeError(f"delay: expected an int for each {of}{instead}, got "
                            f"{type(delay).__name__}")
        is_ascending = all(low < high for low, high in zip(values, values[1:], strict=False))
        if len(values) != count or not values or values[0] < 0 or not is_ascending:
            raise ValueError(f"delay: expected {count} ascending delays >= 0, one for each {of}, "
                             f"got {tuple(values)}")
        return None, list(values)
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
    each = delay if isinstance(delay, Delays) else Delays.of(delay)  # type: ignore[arg-type]  # raises for a bool
    if each.each.shape not in ((N, N), synapses):
        raise ValueError(f"delay: expected shape {synapses}, got {tuple(each.each.shape)}")
    _check_distinct(each, device.type == "cpu")
    if len(each.distinct) <= 1:
        return None, list(each.distinct)
    found = each.each.to(device, torch.int64)
    return found if found.shape == synapses else found.repeat(currents, 1, 1), list(each.distinct)


def _find_weight_shape(N: int, currents: int) -> tuple[int, ...]:
    return (N, N) if currents == 1 else (currents, N, N)


_NUMBERS = {"alpha": (0, 1), "rho": (0, 1), "sigma": (0, 1), "width": (5e-324, math.inf)}


def _check_number(name: str, value: float) -> None:
    """Raises ValueError for a number out of range. The CPU operator checks those in tensors."""
    low, high = _NUMBERS.get(name, (-math.inf, math.inf))
    # not math.isfinite, which torch.compile cannot trace for a dynamic number
    if low <= value <= high and -math.inf < value < math.inf:
        return
    hint = ""
    if name in ("alpha", "rho", "sigma") and value > 1:
        hint = (f"; {name} is a decay per step: for a time constant of {value:g} pass "
                f"math.exp(-dt / {value:g})")
    expected = {"width": "a finite number > 0"}.get(
        name, "a finite number" if low == -math.inf else f"a number from {low} to {high}")
    raise ValueError(f"{name}: expected {expected}, got {value}{hint}")


def check_coefficients(coefficients: dict[str, Coefficient | Decay | None], N: int,
                       device: torch.device) -> None:
    """Raises TypeError or ValueError for a coefficient of a wrong kind, shape, dtype or device, and
    for a number out of range. None stands for the rule of the model."""
    for name, value in coefficients.items():
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
        if coefficients[name] is None:
            raise TypeError(f"{name}: expected a number or a tensor, got None")


def check_state(state: State | None, B: int, N: int, D: int, dtype: torch.dtype,
                device: torch.device) -> tuple[Any, ...]:
    """The five tensors of the state, z with its D newest steps; for None five times None, which
    stands for zeros. Raises TypeError or ValueError naming the leaf."""
    if state is None:
        return (None,) * len(State._fields)
    refuse_freed_graph(state, through=1)  # the state is that of a call, without further operators
    for name, value in iterate_leaves(state):
        check_state_leaf(name, value, (D, B, N) if name == "z" else (B, N), dtype, device,
                         "current")
    return *state[:4], state[4][:D]


def check_state_leaf(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype,
                     device: torch.device, x_name: str) -> None:
    """Raises TypeError or ValueError for a leaf of a state with another shape, dtype or device than
    that of the argument called x_name. z (D, B, N) may have more past steps."""
    fits = value.shape == shape
    if name == "z":
        fits = value.dim() == 3 and value.shape[0] >= shape[0] and value.shape[1:] == shape[1:]
    if not fits:
        more = " or more past steps" if name == "z" else ""
        raise ValueError(f"state.{name}: expected shape {shape}{more}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"state.{name}: expected device {device} as {x_name}, got {value.device}")
    if value.dtype != dtype:
        raise TypeError(f"state.{name}: expected {dtype}, got {value.dtype}")


def check_operand(name: str, value: Tensor, shape: tuple[int | str, ...], x: Tensor, x_name: str,
                  *, is_carried: bool = False) -> None:
    """Raises TypeError or ValueError unless value is a floating point tensor of this shape on the
    device of x, the argument called x_name; a letter in the shape stands for any size. is_carried:
    it has the dtype of the computation."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dim() != len(shape) or any(size != found and not isinstance(size, str)
                                        for size, found in zip(shape, value.shape, strict=True)):
        sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({sizes}), got {tuple(value.shape)}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating point dtype, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as {x_name}, got {value.device}")
    if is_carried and value.dtype != (dtype := torch.promote_types(x.dtype, torch.float32)):
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")


def _check_recurrence(w_rec: Tensor, N: int, x: Tensor, name: str, currents: int) -> None:
    shape = _find_weight_shape(N, currents)
    by_delay = w_rec.dim() == len(shape) + 1 and w_rec.shape[1:] == shape and w_rec.shape[0] > 0
    if w_rec.shape != shape and not by_delay:
        sizes = ", ".join(map(str, shape))
        what = "a current" if currents == 1 else f"{currents} currents"
        raise ValueError(f"w_rec: expected shape ({sizes}) or (S, {sizes}) for {what} of {N} "
                         f"neurons, got {tuple(w_rec.shape)}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    if torch.promote_types(w_rec.dtype, torch.float32) != dtype:
        smaller = ", torch.float16 or torch.bfloat16" if dtype == torch.float32 else ""
        what = "a current" if name == "current" else f"an {name}"
        raise TypeError(f"w_rec: expected {dtype}{smaller} for {what} of {x.dtype}, got "
                        f"{w_rec.dtype}")
    if w_rec.device != x.device:
        raise ValueError(f"w_rec: expected device {x.device} as {name}, got {w_rec.device}")


def check_call(current: Tensor, w_rec: Tensor | None, N: int, refractory: int,
               dampening: float) -> None:
    """Raises TypeError or ValueError for arguments of a call of N neurons; current: (T, B, N), or
    inputs (T, B, I) of a projection."""
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
    """Raises TypeError or ValueError for an x or w_rec of a wrong kind, dtype or shape; x, the
    argument called name: (T, B, N), inputs (T, B, I), or (T, B, K, N) for K > 1 currents."""
    weights = {} if w_rec is None else {"w_rec": w_rec}
    for argument, value in {name: x, **weights}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{argument}: expected a tensor, got {type(value).__name__}")
        if not value.dtype.is_floating_point:
            raise TypeError(f"{argument}: expected a floating point dtype, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{argument}: expected a dense tensor, got layout {value.layout}")
    if currents == 1 and x.dim() != 3:
        raise ValueError(f"{name}: expected shape (T, B, N), got {tuple(x.shape)}")
    if currents > 1 and (x.dim() != 4 or x.shape[2] != currents):
        raise ValueError(f"{name}: expected shape (T, B, {currents}, N), got {tuple(x.shape)}")
    if N < 1:
        raise ValueError(f"{name}: expected one neuron or more, got shape {tuple(x.shape)}")
    if w_rec is not None:
        _check_recurrence(w_rec, N, x, name, currents)


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(text: str) -> float:
    """The number of bytes in a text such as "500 MB"; 0 for any other text."""
    found = re.fullmatch(r"([0-9.]+) ?([KMG]i?B)", text.strip(), re.IGNORECASE)
    try:
        return float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    except ValueError:
        return 0.0


class Saved(NamedTuple):
    """The numbers that the backward pass needs of a neuron; the defaults are those of models."""

    currents: int = 1  # numbers per neuron-step
    states: int = 4  # numbers of a saved state
    segment: int = 128  # steps between two saved states without checkpoints
    spikes: int = 0  # numbers per neuron-step besides its bit, also with checkpoints


def resolve_checkpoint(checkpoint_every: int | str | None, T: int, B: int, N: int,
                       itemsize: int, saved: Saved = Saved()) -> int:  # noqa: B008
    """Steps between two saved states, a multiple of 16; 0: the membrane of every step is saved.

    A size such as "500 MB" bounds the saved tensors and the scratch memory of the backward pass
    together: 0 if every membrane fits, else the number of steps with the least memory. Raises
    ValueError for another argument, and if no number of steps fits.
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
    is_int = isinstance(checkpoint_every, int) and not isinstance(checkpoint_every, bool)
    if not is_int or checkpoint_every < 1:
        raise ValueError(f"checkpoint_every: expected None, an int >= 1 or bytes such as '500 MB', "
                         f"got {checkpoint_every!r}")
    # A multiple of 16 keeps the chunks of the backward pass, hence bitwise identical sums. More
    # than T steps are equivalent to T.
    return -(-min(checkpoint_every, max(T, 1)) // 16) * 16


def refuse_freed_graph(state: Any, name: str = "state", through: int = 8) -> None:
    """Registers hooks that raise RuntimeError if a backward pass reaches a state whose graph an
    earlier one has freed: the error of torch names neither the tensor nor the remedy. through: as
    of is_graph_freed."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    leaves: dict[str, Any] = {name: state}
    if isinstance(state, tuple):
        state = dict(zip(State._fields, state, strict=False))
    if isinstance(state, dict):
        leaves = {f"{name}.{part}": leaf for part, leaf in state.items()}
    for part, leaf in leaves.items():
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            continue
        if not is_graph_freed(leaf, through):
            return  # all leaves are outputs of one node
        leaf.register_hook(partial(_refuse_gradient, part))


def _refuse_gradient(name: str, gradient: Tensor) -> None:
    raise RuntimeError(
        f"{name}: expected a state that no backward pass has gone through, got one whose graph is "
        f"freed; use state.detach() for truncated BPTT, or retain_graph=True in the earlier "
        f"backward pass")
