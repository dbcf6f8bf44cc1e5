"""What the fuzz does to a call that is in order: other devices, dtypes, shapes, strides, numbers,
kinds and bits."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fuzz_calls import HUGE, MOST, Call, Draw
from lsnn_ext import _ops
from lsnn_ext.functional import State

Path = tuple[Any, ...]
Change = Callable[[Draw, Tensor], Any]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int32,
          torch.int64, torch.bool, torch.complex64)
NUMBERS = (-1, 0, 1, 2, 7, 33, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 62,
           (1 << 63) - 1, (1 << 63) - 17, 1 << 64, -(1 << 63), -(1 << 40))
REALS = (float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 0.0, 1.0, 20.0, 1e-320, 1e-39, 1e38,
         1e300)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything that is no container, and lists of numbers as a whole, with the way to it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, PackedSequence) or (
            isinstance(value, tuple) and hasattr(value, "_fields")):
        for place, part in enumerate(value):
            yield from leaves(part, (*path, place))
    else:
        yield path, value


def replaced(value: Any, path: Path, new: Any) -> Any:
    """The same with another leaf."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], rest, new)}
    parts = list(value)
    parts[key] = replaced(parts[key], rest, new)
    return type(value)(*parts)


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same with every tensor changed."""
    for path, leaf in list(leaves(value)):
        if isinstance(leaf, Tensor):
            value = replaced(value, path, change(leaf))
    return value


# ------------------------------------------------------------------ layouts, which change no number
def _transposed(d: Draw, t: Tensor) -> Tensor:
    a, b = d.random.sample(range(t.dim()), 2) if t.dim() > 1 else (0, 0)
    return t.transpose(a, b).contiguous().transpose(a, b) if t.dim() > 1 else t


def _spread(d: Draw, t: Tensor) -> Tensor:
    """A slice of something larger, along one axis."""
    if not t.dim():
        return t
    axis, step = d.random.randrange(t.dim()), d.one_of(2, 3)
    wide = t.repeat_interleave(step, axis)
    index = [slice(None)] * t.dim()
    index[axis] = slice(d.random.randrange(step), None, step)
    return wide[tuple(index)]


def _offset(d: Draw, t: Tensor) -> Tensor:
    """Behind a number or some, so that no vector of it is aligned."""
    skip = d.one_of(1, 3)
    return torch.cat([t.new_zeros(skip), t.reshape(-1)])[skip:].view(t.shape)


LAYOUTS: tuple[Change, ...] = (_transposed, _spread, _offset)


# ------------------------------------------------------------------------------- changes of tensors
def _meta(d: Draw, t: Tensor) -> Tensor:
    return t.to("meta")


def _dtype(d: Draw, t: Tensor) -> Tensor:
    return t.to(d.one_of(*DTYPES))


def _expanded(d: Draw, t: Tensor) -> Tensor:
    """One item for all along an axis."""
    axis = d.random.randrange(t.dim()) if t.dim() else 0
    return t.narrow(axis, 0, 1).expand(t.shape) if t.dim() and t.shape[axis] else t


def _enormous(d: Draw, t: Tensor) -> Tensor:
    """An axis that is far too long, and takes no memory."""
    axis = d.random.randrange(t.dim()) if t.dim() else 0
    shape = [*t.shape[:axis], d.one_of(*HUGE), *t.shape[axis + 1:]]
    return t.reshape(-1)[:1].squeeze().expand(shape) if t.dim() and t.numel() else t


def _one_off(d: Draw, t: Tensor) -> Tensor:
    axis = d.random.randrange(t.dim()) if t.dim() else 0
    if not t.dim() or not t.shape[axis]:
        return t.unsqueeze(0)
    if d.chance(0.5):
        return t.narrow(axis, 1, t.shape[axis] - 1)
    return torch.cat([t, t.narrow(axis, 0, 1)], axis)


def _shape(d: Draw, t: Tensor) -> Tensor:
    forms: list[Callable[[], Tensor]] = [
        lambda: t[:0] if t.dim() else t[None][:0], lambda: t.unsqueeze(d.one_of(0, -1)),
        lambda: t.flatten(), lambda: t.new_zeros(()), lambda: t.mT if t.dim() > 1 else t,
        lambda: t[0] if t.dim() and t.shape[0] else t,
    ]
    return d.one_of(*forms)()


def _number(d: Draw, t: Tensor) -> Tensor:
    """One entry, or all, out of range."""
    t = t.detach().clone()
    if not t.numel():
        return t
    whole = not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
    most = torch.iinfo(t.dtype).max if whole else 0
    value = d.one_of(-1, -3, 9, 1 << 20, most, -most - 1) if whole else d.one_of(*REALS)
    if d.chance(0.3):
        return t.fill_(value)
    t.view(-1)[d.random.randrange(t.numel())] = value
    return t


def _garbage(d: Draw, t: Tensor) -> Tensor:
    """Any bits, also those that no result would have."""
    if t.dtype in (torch.bool, torch.complex64) or not t.numel():
        return t
    words = d.bits(t.numel() * t.element_size() // 4
                   + 1).view(torch.uint8)[: t.numel() * t.element_size()]
    return words.view(t.dtype).view(t.shape)


def _unusual(d: Draw, t: Tensor) -> Any:
    """Tensors that are not what their memory says, or that want a gradient."""
    if t.requires_grad or t.numel() > MOST:
        return t.detach()
    forms: list[Callable[[], Tensor]] = [
        lambda: t.detach().requires_grad_(t.is_floating_point()),
        lambda: torch._neg_view(t) if t.is_floating_point() else t,
        lambda: torch._efficientzerotensor(t.shape, dtype=t.dtype),
        lambda: t.to_sparse(),
        lambda: t.to_mkldnn() if t.dtype == torch.float32 and t.dim() else t,
    ]
    return d.one_of(*forms)()


def _kind(d: Draw, t: Tensor) -> Any:
    array = t.dtype != torch.bfloat16 and t.layout == torch.strided and not t.is_meta
    return d.one_of(None, [[0.0]], 1.0, "x", t.detach().numpy() if array else 3)


def _sliced(d: Draw, t: Tensor) -> Tensor:
    """Slices, as one takes neurons or items out of a layer."""
    if not t.dim():
        return t
    axis = t.dim() - 1 if d.chance(0.7) else d.random.randrange(t.dim())
    return t.narrow(axis, 0, d.random.randint(0, t.shape[axis]))


SHARES: dict[Change, int] = {_meta: 4, _dtype: 4, _expanded: 3, _enormous: 2, _one_off: 4,
                             _shape: 3, _number: 4, _garbage: 3, _unusual: 2, _kind: 2, _sliced: 4,
                             **dict.fromkeys(LAYOUTS, 3)}


# ------------------------------------------------------------------------- changes of whatever else
def _other(d: Draw, value: Any) -> Any:
    if isinstance(value, bool):
        return d.one_of(not value, not value, not value, None, 2, "yes")
    if isinstance(value, int):
        return d.one_of(*NUMBERS, *NUMBERS, value + 1, value - 1, None, 0.5, float("nan"))
    if isinstance(value, float):
        return d.one_of(*REALS, None, "x", 1 << 64)
    if isinstance(value, str):
        return d.one_of("", "nonsense", "0 MB", "1 KB", None, 3)
    if isinstance(value, list | tuple):
        new = d.one_of([], list(value)[::-1], [*value, *value], [-1], [*value, d.one_of(*NUMBERS)],
                       None, [*value, "x"], [0, 1, 2, 3, 4])
        return None if new is None else type(value)(new)
    if isinstance(value, torch.dtype):
        return d.one_of(*DTYPES, None)
    return d.one_of(None, 0, 1, -1, 0.5, torch.zeros(()), torch.zeros(3), "x", (),
                    State(*[torch.zeros(1, 2)] * 5))


def _all_at_once(d: Draw, call: Call) -> str:
    """One change of every tensor, so that they agree with each other and with nothing else."""
    dtype, layout = d.one_of(*DTYPES), d.one_of(*LAYOUTS)
    changes: dict[str, Callable[[Tensor], Any]] = {
        "meta": lambda t: t.to("meta"),
        f"to {dtype}": lambda t: t.to(dtype),
        f"real ones to {dtype}": lambda t: t.to(dtype) if t.is_floating_point() else t,
        f"layout {layout.__name__}": lambda t: layout(d, t),
        "transposed sizes": lambda t: t.mT if t.dim() > 1 else t,
    }
    what = d.one_of(*changes)
    call.args = mapped(call.args, changes[what])
    return f"every tensor: {what}"


# What the operators trust most is changed more often.
TRUSTED = {"y", "bits", "smooth_z", "carry", "x_bits", "delay", "delays", "checkpoint", "outputs",
           "gradients", "coefficient_gradients", "coefficients"}
# What says which call it is, and sizes for which modules hold memory.
KEPT = {"kind", "method", "grad", "times", "parameters", "memory", "wide", "cut"}
KEPT_OPTIONS = {"n", "input_size", "hidden_size", "output_size", "n_regular", "n_adaptive",
                "num_layers"}


def _kept(call: Call, path: Path, leaf: Any) -> bool:
    if path[0] == "options" and path[1] in KEPT_OPTIONS:
        return True
    if len(path) == 2 and path[1] and isinstance(call.args[path[0]], PackedSequence):
        return True  # the order of the sequences, which torch has made
    return (path[0] in KEPT and len(path) == 1) or (
        call.name == "_C.PreparedLayer" and path == ("N",))


def _one(d: Draw, call: Call, places: list[tuple[Path, Any]]) -> tuple[Path, Any, str] | None:
    """A leaf, what becomes of it, and the name of the change; None: nothing this time."""
    tensors = [(path, leaf) for path, leaf in places if isinstance(leaf, Tensor)]
    if tensors and d.chance(0.7):
        path, leaf = d.one_of(*tensors)
        (change,) = d.random.choices([*SHARES], [*SHARES.values()])
        if path[0] == "parameters" and change is _kind:
            return None
        return path, change(d, leaf), change.__name__
    path, leaf = d.one_of(*places)
    return None if isinstance(leaf, Tensor) else (path, _other(d, leaf), "other")


def mutate(d: Draw, call: Call) -> bool:
    """0 to 3 changes; whether all that was changed is the layout of tensors, if anything."""
    same, layouts = True, {layout.__name__ for layout in LAYOUTS}
    for _ in range(d.one_of(0, 1, 1, 1, 1, 1, 2, 2, 3)):
        if d.chance(0.08) and "memory" not in call.args:
            call.changes.append(_all_at_once(d, call))
            same = same and ": layout " in call.changes[-1]
            continue
        places = [(path, leaf) for path, leaf in leaves(call.args) if not _kept(call, path, leaf)
                  for _ in range(3 if path[0] in TRUSTED else 1)]
        found = _one(d, call, places)
        if found is not None:
            path, new, what = found
            call.args = replaced(call.args, path, new)
            call.changes.append(f"{'.'.join(map(str, path))}: {what}")
            same = same and what in layouts
    tensors = [leaf for _, leaf in leaves(call.args) if isinstance(leaf, Tensor)]
    outputs = call.args.get("outputs")
    if type(outputs) is int and any(t.numel() > 1 << 26 for t in tensors):
        # Without a result a call of endless steps takes no memory, and does not end.
        call.args["outputs"] = outputs | _ops.make_mask("outputs", ["spikes"])
    return same
