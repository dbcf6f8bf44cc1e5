"""Traces values of several real rows: complex numbers, and values with an own axis, (B, N, K).
Each operator becomes operators of their parts, which Tracer traces."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.torch_internals import bind_arguments, find_storage, tree_leaves, tree_map
from .calls import CPU, META, Place, as_tensor
from .complex import COMPLEX, Pair
from .form import MAX_AXIS, Form, parse_form
from .tracer import COPIES, FACTORIES, LIFTS, Tracer
from .values import Fixed, Resize, aten
from .wide_shapes import HANDLERS, is_copy, reshape, take_front

MAKES_COMPLEX = {"complex", "polar"}  # of real values
MAKES_WIDE = {*MAKES_COMPLEX, "select_backward", "slice_backward"}
HAS_FRONT = {"select", "unbind", "stack", "select_backward"}
RESHAPES = {"view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand"}


class Wide(NamedTuple):
    """A value as real tensors of shape (), (N,) or (B, N)."""

    parts: tuple[Tensor, ...]  # in the order of Form.split
    form: Form


def take_part(whole: Tensor | float, k: int | None, c: int | None) -> Tensor:
    value = as_tensor(whole)
    value = value if k is None else value[..., k]
    return value if c is None else (value.real, value.imag)[c]


def join_parts(form: str, *parts: Tensor | float) -> Tensor:
    device = next((one.device for one in parts if isinstance(one, Tensor)), CPU)
    tensors = [as_tensor(one, device) for one in parts]
    return parse_form(form).join(torch.broadcast_tensors(*tensors))


class WideTracer(Tracer):
    """A Tracer for complex values and values with an own axis, too."""

    EXPECTED = ("operators that are elementwise, or on the last axis sum, mean, amax, amin, "
                "select, slice, unbind, stack or cat, of a value with an axis of its own")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.wide: dict[int, Wide] = {}  # by storage: each value has one of its own
        self.wholes: dict[int, Fixed] = {}  # the fixed ones among them
        self.axes: set[int] = set()  # sizes of axes of states and coefficients
        self.shared: set[int] = set()  # storages of what others are views of, or parts
        self.pairs: set[int] = set()  # storages of view_as_real of a value with an axis
        self._real: torch.dtype | None = None  # of the parts of the complex arguments

    # ------------------------------------------------------------------------------ values
    def is_closed_over(self, tensor: Tensor) -> bool:
        return super().is_closed_over(tensor) and find_storage(tensor) not in self.wide

    def give_rows(self, tensor: Tensor, form: Form, parts: Sequence[Tensor]) -> Tensor:
        self.wide[find_storage(tensor)] = Wide(tuple(parts), form)
        self.shared |= {find_storage(part) for part in parts}
        self.alive.append(tensor)
        return tensor

    def give_whole(self, tensor: Tensor, form: Form, whole: Fixed) -> Tensor:
        """Declares a fixed value, whose rows are computed from it."""
        self.wholes[find_storage(tensor)] = whole
        self.shared.add(find_storage(tensor))
        body = tensor.shape[:-1] if form.axis else tensor.shape
        parts = [self.give(torch.empty(body, dtype=tensor.dtype.to_real(), device=META),
                           self.call(take_part, (Place(whole.place), k, c)), is_input=True)
                 for k in (range(form.axis) if form.axis else (None,))
                 for c in ((0, 1) if form.is_complex else (None,))]
        return self.give_rows(tensor, form, parts)

    def find(self, value: Any) -> Wide | None:
        if not isinstance(value, Tensor):
            return None
        if self.is_closed_over(value):
            held = self._hold_wide(value)
            return None if held is None else self.wide[find_storage(held)]
        return self.wide.get(find_storage(value))

    def rows_of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        found = self.find(tensor)
        return (tensor,) if found is None else found.parts

    def form_of(self, tensor: Any) -> Form:
        found = self.find(tensor)
        return Form() if found is None else found.form

    def is_pairs(self, tensor: Tensor) -> bool:
        """Whether a value is view_as_real of one with an axis."""
        return find_storage(tensor) in self.pairs

    def give_pairs(self, out: Tensor, form: Form, rows: Sequence[Tensor]) -> Tensor:
        fresh = self.give_rows(_fresh(out), form, rows)
        self.pairs.add(find_storage(fresh))
        return fresh

    def _hold_wide(self, tensor: Tensor) -> Tensor | None:
        """Returns a tensor without values for a closed-over one that is complex or has an axis."""
        has_axis = tensor.dim() > 1 and tensor.shape[-1] in self.axes
        if not has_axis and not tensor.is_complex():
            return None
        form = Form(tensor.shape[-1] if has_axis else 0, tensor.is_complex())
        body = tuple(tensor.shape[:-1] if has_axis else tensor.shape)
        if tensor.requires_grad or any(size != 1 for size in body[:-1]):
            raise self.error("closed-over tensors of shape (), (N,) or (N, K) without a gradient",
                             f"one of shape {tuple(tensor.shape)}")
        if body and body[-1] not in (1, self.neurons):
            raise Resize(body[-1])
        self.alive.append(tensor)
        return self.give_whole(_fresh(tensor), form, self.call(None, (tensor,)))

    def _take_to_meta(self, value: Any) -> Any:
        """Returns what stands for a device, or for a tensor there, in a trace."""
        if isinstance(value, torch.device):
            return META
        if not isinstance(value, Tensor) or not self.is_closed_over(value):
            return value
        held = self._hold_wide(value)
        return self.give(_fresh(value), self.hold(value), True) if held is None else held

    def _is_fixed(self, value: Tensor) -> bool:
        return all(isinstance(self.value(part), Fixed) for part in self.rows_of(value))

    def _get_whole(self, value: Any) -> Any:
        """Returns the call that computes a fixed value; else the argument."""
        if isinstance(value, list | tuple):
            return tuple(map(self._get_whole, value))
        if not isinstance(value, Tensor):
            return value
        found = self.find(value)
        if found is None:
            known: Any = self.value(value)
            if known.is_number and self._real is not None:
                value = self.run_part("_to_copy", value, dtype=self._real)
            return self.place(value)
        storage = find_storage(value)
        if storage not in self.wholes:
            parts = [self.place(part) for part in found.parts]
            self.wholes[storage] = self.call(join_parts, (str(found.form), *parts))
        return Place(self.wholes[storage].place)

    # ---------------------------------------------------------------------------- dispatch
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        is_in_place = name.endswith("_") and not name.endswith("__")
        if name in LIFTS and self.find(args[0]) is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        args, kwargs = tree_map(self._take_to_meta, (args, kwargs))
        values = tree_leaves((args, kwargs))
        wide = [value for value in values if self.find(value) is not None]
        if is_in_place and (wide or find_storage(args[0]) in self.shared):
            return self._write(func, name.removesuffix("_"), args, kwargs)
        if not wide and name in HAS_FRONT:
            made = take_front(self, name, bind_arguments(func, args, kwargs))
            if made is not None:
                return made
        if not wide and not self._makes_wide(name, args, kwargs):
            return super().__torch_dispatch__(func, types, args, kwargs)
        self.check_kind(func, name)
        axes = [found.form.axis for value in wide if (found := self.find(value)) is not None]
        self._real = next((x.dtype.to_real() for x in wide if x.is_complex()), None)
        try:
            out = self.infer(func, args, kwargs)
        except RuntimeError as error:
            raise self.error("operators on (B, N) or (B, N, K)", f"aten.{name}: {error}") from error
        named = bind_arguments(func, args, kwargs)
        factory = self._find_factory(name)
        if factory is None and not any(isinstance(x, Tensor) for x in values):
            if name != "_conj":  # of a number of Python in the gradient of a product
                raise self.error("elementwise operators", f"aten.{name} of {args[0]}")
            return self._fill("full", {"fill_value": args[0].conjugate()}, out)
        if name in HANDLERS or name in RESHAPES:
            made = HANDLERS.get(name, reshape)(self, name, named, out)
            if not is_copy(name):
                self.shared |= {find_storage(x) for x in (*wide, *tree_leaves(made))}
            return made
        if factory is not None:
            return self._fill(factory, named, out)
        if any(axes) and out.shape[-1] > MAX_AXIS:
            raise self.error(f"an axis of at most {MAX_AXIS}", f"aten.{name} with a result of "
                             f"shape {tuple(out.shape)}, and x.unsqueeze(-1) for what is (B, N)")
        has_axis = any(axes)
        if any(map(self.is_pairs, wide)):
            raise self.error("x.real and x.imag of a complex value with an axis of its own",
                             f"aten.{name} of view_as_real")
        if torch.Tag.pointwise not in func.tags and name not in (*COPIES, *MAKES_COMPLEX):
            raise self.error(self.EXPECTED if has_axis else "elementwise operators", f"aten.{name}")
        form = Form(out.shape[-1] if has_axis else 0, out.is_complex())
        is_complex = out.is_complex() or self._real is not None
        tensors = [x for x in values if isinstance(x, Tensor)]
        if is_complex and name not in COPIES and all(map(self._is_fixed, tensors)):
            call = self.call(func, [self._get_whole(x) for x in args],
                             {key: self._get_whole(x) for key, x in kwargs.items()})
            if form == Form():
                return self.give(out, call)
            return self.give_whole(_fresh(out), form, call)
        if is_complex or (name == "add" and self.is_backward):
            if name not in COMPLEX:
                raise self.error("operators that complex rows have: add, sub, mul, div, neg, conj, "
                                 "real, imag, abs, where", f"aten.{name} of {out.dtype}")
            rows = self._by_pairs(COMPLEX[name], named, form, out.dtype)
        else:
            rows = [self.part_of(func, self._pick(args, k, form), self._pick(kwargs, k, form))
                    for k in range(form.axis)]
        return self.finish(out, form, rows)

    def _write(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        """Runs an operator in place. It replaces the rows, which views would miss."""
        target = args[0]
        if self.find(target) is None or find_storage(target) in self.shared or name == "copy":
            raise self.error("no write in place to a part of a complex value or of one with an "
                             "axis of its own, or to what has such a part", f"aten.{name}_")
        function = getattr(getattr(aten, name), func._overloadname)
        made = self.__torch_dispatch__(function, (), args, kwargs)
        if made.shape != target.shape or made.dtype != target.dtype:
            raise self.error("a result of the form of what is written to", f"aten.{name}_")
        self.wide[find_storage(target)] = self.wide[find_storage(made)]
        self.wholes.pop(find_storage(target), None)
        return target

    def _makes_wide(self, name: str, args: Any, kwargs: Any) -> bool:
        dtype = kwargs.get("dtype")
        if name in MAKES_WIDE or (dtype is not None and dtype.is_complex):
            return True
        if any(isinstance(x, complex) for x in tree_leaves((args, kwargs))):
            return True
        if name == "unsqueeze":
            return 1 <= args[0].dim() == args[1] % (args[0].dim() + 1)
        if name == "stack":
            return len(args) > 1 and 1 <= args[0][0].dim() == args[1] % (args[0][0].dim() + 1)
        if name in ("view", "reshape", "expand", "_unsafe_view"):
            is_front = tuple(args[1]) == (1, *args[0].shape)
            return len(args[1]) == 3 and args[0].dim() == 2 and not is_front
        sizes = [x for x in args if isinstance(x, list | tuple)]
        return self._find_factory(name) is not None and bool(sizes) and len(sizes[0]) == 3

    def part_of(self, func: Any, args: Sequence[Any], kwargs: Any = {}) -> Tensor:  # noqa: B006
        """Traces an operator of real tensors (), (N,) or (B, N)."""
        return super().__torch_dispatch__(func, (), tuple(args), kwargs)

    def run_part(self, name: str, *args: Any, **kwargs: Any) -> Tensor:
        overloads = getattr(aten, name).overloads()
        is_scalar = len(args) > 1 and isinstance(args[-1], int | float)
        order = ("Scalar", "default") if is_scalar else ("Tensor", "self", "dim_IntList", "default")
        overload = next(x for x in order if x in overloads)
        return self.part_of(getattr(getattr(aten, name), overload), args, kwargs)

    def finish(self, out: Tensor, form: Form, rows: Sequence[Tensor]) -> Tensor:
        """Returns the result of an operator as rows of its shape."""
        body = out.shape[:-1] if form.axis else out.shape
        rows = [row if row.shape == body else self.run_part("expand", row, list(body))
                for row in rows]
        if form == Form():
            return self.run_part("alias", rows[0])
        return self.give_rows(_fresh(out), form, rows)

    def _pick(self, value: Any, k: int, form: Form) -> Any:
        """Returns the arguments for number k of the axis."""
        if isinstance(value, dict):
            return {key: self._pick(x, k, form) for key, x in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._pick(x, k, form) for x in value)
        if not isinstance(value, Tensor):
            return value
        parts, of_value = self.find(value) or Wide((value,), Form())
        if form.axis and not of_value.axis and value.numel() > 1:
            raise self.error("x.unsqueeze(-1) where a value (B, N) or (N,) meets one with an axis "
                             "of its own", f"one of shape {tuple(value.shape)}")
        n = 1 + of_value.is_complex
        k = 0 if len(parts) == n else k
        return parts[k] if n == 1 else Pair(*parts[2 * k : 2 * k + 2])

    def _by_pairs(self, function: Callable[..., Any], named: dict[str, Any], form: Form,
                  dtype: torch.dtype) -> list[Tensor]:
        """Runs an operator of complex values, number by number of the axis."""
        rows: list[Tensor] = []
        for k in range(form.axis or 1):
            given = {key: self._pair(self._pick(x, k, form), dtype) for key, x in named.items()
                     if isinstance(x, Tensor | complex | int | float) and not isinstance(x, bool)
                     and (key, x) != ("alpha", 1)}
            re, im = function(self, **given)
            rows.append(re)
            if form.is_complex:
                rows.append(self.run_part("zeros_like", re) if im is None else im)
        return rows

    def _pair(self, value: Any, dtype: torch.dtype) -> Pair:
        """Returns the parts of a value; of a number of Python in the real dtype of the result."""
        if isinstance(value, Pair):
            return value
        if isinstance(value, Tensor):
            return Pair(value, None)
        numbers = (value.real, value.imag) if isinstance(value, complex) else (value,)
        re, *im = [self.part_of(aten.full.default, ([], one), {"dtype": dtype.to_real()})
                   for one in numbers]
        return Pair(re, im[0] if im else None)

    def _fill(self, factory: str, named: dict[str, Any], out: Tensor) -> Tensor:
        value: Any = FACTORIES[factory]
        value = named.get("fill_value", named.get("s")) if value is None else value
        axis = out.shape[-1] if out.dim() == 3 or self.form_of(named.get("self")).axis else 0
        form = Form(axis, out.is_complex())
        if axis > MAX_AXIS:
            raise self.error(f"an axis of at most {MAX_AXIS}", f"one of {axis}")
        numbers = [value.real, value.imag] if form.is_complex else [value]
        body = list(out.shape[:-1] if axis else out.shape)
        rows = [self.part_of(aten.full.default, (body, number), {"dtype": out.dtype.to_real()})
                for _ in range(axis or 1) for number in numbers]
        return self.finish(out, form, rows)


def _fresh(like: Tensor) -> Tensor:
    """Returns a tensor with a new storage, by which its value is found."""
    return torch.empty(like.shape, dtype=like.dtype, device=META)

