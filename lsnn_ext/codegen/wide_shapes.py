"""Operators on the form of a value: those of the last axis, those between real and complex values,
and changes of shape. Each takes a WideTracer, the arguments by name, and the empty result."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .form import MAX_AXIS, Form
from .tracer import strip_ones
from .values import aten


def _numbers(r: Any, value: Tensor) -> tuple[list[tuple[Tensor, ...]], Form]:
    """The parts of each number along the axis."""
    form, parts = r.form_of(value), r.rows_of(value)
    n = 1 + form.is_complex
    return [parts[i : i + n] for i in range(0, len(parts), n)], form


def _refuse(r: Any, name: str, what: str) -> Exception:
    return r.error(r.EXPECTED, f"aten.{name} {what}")


def _check_last(r: Any, name: str, value: Tensor, dim: int) -> None:
    if not r.form_of(value).axis or dim % value.dim() != value.dim() - 1:
        raise _refuse(r, name, f"on axis {dim} of a value of shape {tuple(value.shape)}")


def is_copy(name: str) -> bool:
    """Whether the result shares no numbers with the arguments."""
    return name in ("clone", "contiguous", "lift_fresh_copy", "_to_copy", "stack", "cat", "sum",
                    "mean", "amax", "amin") or name.endswith("_backward")


# ------------------------------------------------------------------------------------------ copies
def _clone(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    rows = [r.run_part("clone", part) for part in r.rows_of(named["self"])]
    return r.finish(out, r.form_of(named["self"]), rows)


def _to_copy(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    numbers, form = _numbers(r, named["self"])
    if form.is_complex and not out.is_complex():
        raise _refuse(r, name, f"of a complex value to {out.dtype}; x.real is its real part")
    rows = []
    for parts in numbers:
        rows += [r.run_part("_to_copy", part, dtype=out.dtype.to_real()) for part in parts]
        if out.is_complex() and not form.is_complex:
            rows.append(r.run_part("zeros_like", rows[-1]))
    return r.finish(out, form._replace(is_complex=out.is_complex()), rows)


# ----------------------------------------------------------------------------- complex and real
def _conj(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    numbers, form = _numbers(r, named["self"])
    return r.finish(out, form, [x for re, im in numbers for x in (re, r.run_part("neg", im))])


def _view_as_real(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    form, rows = r.form_of(named["self"]), r.rows_of(named["self"])
    if form.axis:  # a second axis: only the parts can be taken
        return r.give_pairs(out, form, rows)
    return r.finish(out, Form(2), rows)


def _view_as_complex(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    value = named["self"]
    form = r.form_of(value) if r.is_pairs(value) else Form(0, True)
    return r.finish(out, form, r.rows_of(value))


# -------------------------------------------------------------------------------- the last axis
def _select(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    value, dim, index = named["self"], named["dim"], named["index"]
    numbers, form = _numbers(r, value)
    if r.is_pairs(value) and dim % value.dim() == value.dim() - 1:
        return r.finish(out, Form(form.axis), [parts[index] for parts in numbers])
    _check_last(r, name, value, dim)
    return r.finish(out, form._replace(axis=0), numbers[index])


def _slice(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    value = named["self"]
    numbers, form = _numbers(r, value)
    if out.shape == value.shape:
        return r.finish(out, form, r.rows_of(value))
    _check_last(r, name, value, named["dim"])
    kept = numbers[slice(named["start"], named["end"], named["step"])]
    return r.finish(out, form._replace(axis=len(kept)), [x for parts in kept for x in parts])


def _spread(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    """The gradient of what has taken some places of the last axis: 0 at the others."""
    places: Any = range(out.shape[-1])
    if name == "select_backward":
        places = [named["index"] % len(places)]
    elif named["grad_output"].shape == out.shape:
        return r.finish(out, r.form_of(named["grad_output"]), r.rows_of(named["grad_output"]))
    else:
        places = places[named["start"]:named["end"]:named["step"]]
    numbers, form = _numbers(r, named["grad_output"])
    is_pairs = form.axis > 0 and name == "select_backward"
    if named["dim"] % out.dim() != out.dim() - 1:
        raise _refuse(r, name, f"on axis {named['dim']}")
    zero = r.run_part("zeros_like", numbers[0][0])
    if is_pairs:
        rows = [x for (part,) in numbers for x in ((part, zero), (zero, part))[places[0]]]
        return r.give_pairs(out, Form(form.axis, True), rows)
    by_place = dict(zip(places, numbers, strict=True))
    rows = [x for k in range(out.shape[-1]) for x in by_place.get(k, (zero,) * len(numbers[0]))]
    return r.finish(out, Form(out.shape[-1], form.is_complex), rows)


def _unbind(r: Any, name: str, named: Any, out: list[Tensor]) -> list[Tensor]:
    value = named["self"]
    _check_last(r, name, value, named["dim"])
    numbers, form = _numbers(r, value)
    return [r.finish(one, form._replace(axis=0), parts)
            for one, parts in zip(out, numbers, strict=True)]


def _stack(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    tensors = named["tensors"]
    if named["dim"] % out.dim() != out.dim() - 1 or any(r.form_of(x).axis for x in tensors):
        raise _refuse(r, name, f"with a result of shape {tuple(out.shape)}")
    return _join(r, name, tensors, out)


def _cat(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    tensors = named["tensors"]
    for x in tensors:
        _check_last(r, name, x, named["dim"])
    return _join(r, name, tensors, out)


def _join(r: Any, name: str, tensors: list[Tensor], out: Tensor) -> Tensor:
    if out.shape[-1] > MAX_AXIS:
        raise r.error(f"an axis of at most {MAX_AXIS}", f"one of {out.shape[-1]}")
    if len({x.dtype for x in tensors}) > 1:
        raise _refuse(r, name, "of several dtypes")
    rows = [r.run_part("clone", part) for x in tensors for part in r.rows_of(x)]
    return r.finish(out, Form(out.shape[-1], out.is_complex()), rows)


def _reduce(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    value = named["self"]
    numbers, form = _numbers(r, value)
    dims = named.get("dim")
    dims = range(value.dim()) if dims in (None, [], ()) else dims
    dims = {dim % value.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    operator = {"amax": "maximum", "amin": "minimum"}.get(name, "add")
    is_last, others = form.axis > 0 and value.dim() - 1 in dims, sorted(dims)
    if is_last:
        others.remove(value.dim() - 1)
    if (others and not r.is_backward) or (not is_last and operator != "add"):
        raise _refuse(r, name, f"over the axes {sorted(dims)} of a value of shape "
                      f"{tuple(value.shape)}")
    rows = [part if part.dtype != torch.bool else  # truth values are counted
            r.run_part("_to_copy", part, dtype=r.graph.dtype) for part in r.rows_of(value)]
    n = 1 + form.is_complex
    if is_last:
        for k in range(1, form.axis):
            for c in range(n):
                rows[c] = r.run_part(operator, rows[c], rows[n * k + c])
        rows = [r.run_part("clone", row) for row in rows[:n]] if form.axis == 1 else rows[:n]
    keep = named.get("keepdim", False)
    if others:
        rows = [r.run_part("sum", row, dim=others, keepdim=keep) for row in rows]
    return r.finish(out, form._replace(axis=(1 if keep else 0) if is_last else form.axis), rows)


def _mean(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    total = _reduce(r, name, named, out)
    size = float(named["self"].shape[-1])
    rows = [r.run_part("div", part, size) for part in r.rows_of(total)]
    return r.finish(out, r.form_of(total), rows)


# -------------------------------------------------------------------------- an axis of 1 in front
def take_front(r: Any, name: str, named: Any) -> Any:
    """What select, unbind and stack, and the gradient of select, make of the axis of size 1 of a
    value (1, B, N): its values. None: they have another axis."""
    if name in ("select", "unbind"):
        value = named["self"]
        if value.dim() != 3 or value.shape[0] != 1 or named["dim"] % 3:
            return None
        part = r.part_of(aten.squeeze.dim, (value, 0))
        return [part] if name == "unbind" else part
    tensors = named["tensors"] if name == "stack" else [named["grad_output"]]
    if len(tensors) != 1 or tensors[0].dim() != 2 or named["dim"] % 3:
        return None
    return r.part_of(aten.unsqueeze.default, (r.run_part("clone", tensors[0]), 0))


# ------------------------------------------------------------------------------------------- shapes
def reshape(r: Any, name: str, named: Any, out: Tensor) -> Tensor:
    """view, reshape, squeeze, unsqueeze and expand."""
    value = named["self"]
    form, rows = r.form_of(value), r.rows_of(value)
    if not form.axis:  # one is made behind a value (B, N) or (N,), or its shape changes
        if out.shape[-1:] == (1,) and out.shape[:-1] == value.shape and value.dim() > 0:
            return r.finish(out, form._replace(axis=1), rows)
        return r.finish(out, form, rows if name == "expand" else _view(r, rows, out.shape))
    if name == "expand":
        if form.axis != out.shape[-1]:
            rows = rows * out.shape[-1]
        if out.shape[-1] > MAX_AXIS:
            raise r.error(f"an axis of at most {MAX_AXIS}", f"one of {out.shape[-1]}")
        return r.finish(out, form._replace(axis=out.shape[-1]), rows)
    is_kept = out.dim() > 0 and out.shape[-1] == form.axis
    if is_kept and strip_ones(out.shape[:-1]) == strip_ones(value.shape[:-1]):
        return r.finish(out, form, _view(r, rows, out.shape[:-1]))
    if form.axis == 1:
        return r.finish(out, form._replace(axis=0), _view(r, rows, out.shape))
    raise _refuse(r, name, f"from shape {tuple(value.shape)} to {tuple(out.shape)}")


def _view(r: Any, rows: Any, shape: Any) -> list[Tensor]:
    return [r.run_part("alias", row) if row.shape == shape else
            r.part_of(aten.view.default, (row, list(shape))) for row in rows]


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("alias", "detach", "lift_fresh"), lambda r, name, named, out: r.finish(
        out, r.form_of(named["self"]), r.rows_of(named["self"]))),
    **dict.fromkeys(("clone", "contiguous", "lift_fresh_copy"), _clone),
    **dict.fromkeys(("_conj", "_conj_physical", "conj_physical"), _conj),
    **dict.fromkeys(("select_backward", "slice_backward"), _spread),
    **dict.fromkeys(("sum", "amax", "amin"), _reduce),
    "_to_copy": _to_copy, "view_as_real": _view_as_real, "view_as_complex": _view_as_complex,
    "select": _select, "slice": _slice, "unbind": _unbind, "stack": _stack, "cat": _cat,
    "mean": _mean,
}
