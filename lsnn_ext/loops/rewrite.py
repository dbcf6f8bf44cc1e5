"""rewrite: replaces a recorded call by equal ones that read less, so that more can be fused."""
import itertools
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from .functions import IN_PLACE_VIEWS, OneStep, is_operator
from .ir import Call, Kind, Mode, Recording, Ref, Refused, flatten_arguments
from .products import list_entries
from .values import find_order

_FACTORIES: dict[Any, Callable[..., Tensor]] = {
    torch.zeros_like: torch.zeros, Tensor.new_zeros: torch.zeros, torch.ones_like: torch.ones,
    Tensor.new_ones: torch.ones, torch.full_like: torch.full, Tensor.new_full: torch.full,
    torch.empty_like: torch.empty, Tensor.new_empty: torch.empty, Tensor.new: torch.empty,
    torch.rand_like: torch.rand, torch.randn_like: torch.randn}
# Methods of two tensors that read the kind of the second one alone; those that take this kind.
_LIKE: dict[Any, Callable[..., Tensor]] = {
    Tensor.to: Tensor.to, Tensor.type_as: Tensor.to, Tensor.view_as: Tensor.view,
    Tensor.reshape_as: Tensor.reshape, Tensor.expand_as: Tensor.expand}


def rewrite(call: Call, recording: Recording) -> list[Call]:
    """Returns the calls that stand for a call, of which recording has the kinds of all values.

    zeros_like, randn_like and others, which read a shape alone, become torch.zeros and so on, and
    x.to(other) and others, which read its kind alone, x.to(device, dtype). Dropout becomes a draw,
    which depends on no number, and a product. masked_fill with a number becomes torch.where, which
    takes other numbers in each iteration; x.data becomes detach, as does detach_, of which the
    tensor is the result, and einsum a product of numbers. nn.LSTMCell and nn.GRUCell
    become their products and gates, x[..., mask] and x[..., numbers] an index_select. An operator
    of SpikingJelly that loops over time becomes one for each step.
    """
    kinds = recording.kinds
    if call.function in _FACTORIES:
        return [_make_factory(call, kinds)]
    if call.function in _LIKE and all(isinstance(leaf, Ref) for leaf in call.leaves[:2]):
        return [_make_like(call, kinds)]
    if call.function == Tensor.data.__get__:  # type: ignore[attr-defined]
        return [call.replace(function=Tensor.detach)]
    if call.function in (functional.dropout, torch.dropout):
        return _split_dropout(call, recording)
    if is_operator(call.function) and str(call.function).startswith("sj_"):
        return _unroll(call, recording)
    if call.function is torch.einsum:
        return _make_multiplications(call, recording)
    if call.name in _CELLS and not any(call.mode.autocast):
        return _expand_cell(call, recording)
    if call.function in IN_PLACE_VIEWS and call.written:
        (_, after), = call.written
        if kinds[after].requires_grad and not call.mode.grad:  # the gradient is not turned back
            raise Refused(f"{call.name}: expected a value without gradient under no_grad",
                          call.line)
        return [call.replace(function=IN_PLACE_VIEWS[call.function], results=Ref(after),
                             written=())]
    if call.name == "__getitem__":
        return _select(call, recording)
    if call.function in (torch.masked_fill, Tensor.masked_fill) and len(call.leaves) == 3:
        x, mask, value = call.leaves
        kind = kinds[call.outputs[0]]
        if isinstance(value, float | int) and kind.dtype.is_floating_point and kind.is_contiguous:
            return [_replace_function(call, torch.where, (mask, value, x))]
    return [call]


def make_call(function: Any, given: Sequence[Any], results: Any, mode: Mode, line: str,
              **named: Any) -> Call:
    """Returns a call that draws nothing and writes to no argument."""
    leaves, spec = flatten_arguments(given, named)
    return Call(function, tuple(leaves), spec, results, (), mode, False, line)


def _replace_function(call: Call, function: Any, args: Sequence[Any], kwargs: Any = None,
                      **changed: Any) -> Call:
    """Returns the call with another function and other arguments."""
    leaves, spec = flatten_arguments(args, kwargs or {})
    return call.replace(function=function, leaves=tuple(leaves), spec=spec, **changed)


def make_copy(value: int | tuple[list[int], int], copy: int, line: str,
              kinds: dict[int, Kind]) -> Call:
    """Returns the call that copies a value, or stacks several along a dimension."""
    function: Any = torch.stack
    given: tuple[Any, ...]
    if isinstance(value, int) and kinds[value].shape == kinds[copy].shape:
        function, given = Tensor.clone, (Ref(value),)
    elif isinstance(value, int):  # with new axes
        function, given = Tensor.reshape, (Ref(value), list(kinds[copy].shape))
    else:
        given = [*map(Ref, value[0])], value[1]
    return make_call(function, given, Ref(copy), Mode.now(), line)


class _Assign(torch.autograd.Function):
    """Numbers of a parameter that were written to its data: its gradient is that of the result."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, numbers: Tensor) -> Tensor:
        return numbers.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g, None


def assign(parameter: Tensor, numbers: Tensor) -> Tensor:
    """Returns the parameter with other numbers."""
    return _Assign.apply(parameter, numbers)  # type: ignore[no-any-return, no-untyped-call]


def make_assignment(old: int, numbers: int, new: int, line: str) -> Call:
    """Returns the call that gives a parameter other numbers."""
    mode = Mode.now()._replace(grad=True)
    return make_call(assign, (Ref(old), Ref(numbers)), Ref(new), mode, line)


def _make_like(call: Call, kinds: dict[int, Kind]) -> Call:
    """Returns the call that takes the kind of the second tensor, in place of this tensor."""
    args, kwargs = pytree.tree_unflatten(list(call.leaves), call.spec)
    if len(args) < 2:  # by name
        return call
    other, function = kinds[args[1].value], _LIKE[call.function]
    kind = (other.device, other.dtype) if function is Tensor.to else (list(other.shape),)
    return _replace_function(call, function, (args[0], *kind, *args[2:]), kwargs)


def _make_factory(call: Call, kinds: dict[int, Kind]) -> Call:
    """Returns the call of a factory; the call itself, where it reads or makes more."""
    kind = kinds[call.outputs[0]]
    factory = _FACTORIES[call.function]
    args, kwargs = pytree.tree_unflatten(list(call.leaves), call.spec)
    given: tuple[Any, ...] = list(kind.shape),
    if call.function is Tensor.new and any(type(one) not in (int, torch.Size) for one in args[1:]):
        return call  # of numbers
    if factory is torch.full:
        at = 2 if call.function is Tensor.new_full else 1
        given += (kwargs["fill_value"] if "fill_value" in kwargs else args[at],)
    if (kind.requires_grad or not kind.is_contiguous or "generator" in kwargs
            or any(isinstance(one, Ref) for one in given)):
        return call
    return _replace_function(call, factory, given, {"dtype": kind.dtype, "device": kind.device})


def _name_axes(equation: str, dims: Sequence[int]) -> str:
    """Returns an equation of einsum with letters in the place of `...`."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    parts = [part.replace("...", "") for part in given.split(",")]
    if len(parts) != len(dims) or not arrow:
        return equation
    letters = [letter for letter in string.ascii_letters if letter not in equation]
    letters = letters[:max(n - len(part) for part, n in zip(parts, dims, strict=True))]
    found = [one.replace("...", "".join(letters[len(letters) - n + len(part):]))
             for one, part, n in zip(given.split(","), parts, dims, strict=True)]
    return ",".join(found) + arrow + result.replace("...", "".join(letters))


def _make_multiplications(call: Call, recording: Recording) -> list[Call]:
    """Returns the products of an einsum such as "bnm,n->bnm", else the call itself."""
    kinds = recording.kinds
    equation, *operands = call.leaves
    if not isinstance(equation, str) or not all(isinstance(one, Ref) for one in operands):
        return [call]
    equation = _name_axes(equation, [len(kinds[one.value].shape) for one in operands])
    call = call.replace(leaves=(equation, *operands))
    writer = _Writer(call, recording)
    if any(call.mode.autocast) or not all(kinds[one.value].is_contiguous for one in operands):
        return [call]
    left, _, result = equation.partition("->")
    given = left.split(",")
    sizes = dict(zip(result, kinds[call.outputs[0]].shape, strict=False))
    if len(given) < 2 or result not in given or len(sizes) < len(result) or not all(
            part and part == "".join(filter(part.__contains__, result))
            and kinds[one.value].shape == tuple(map(sizes.get, part))
            for part, one in zip(given, operands, strict=False)):
        return [call]

    def align(part: str, one: Ref) -> Ref:
        """Returns an operand with the axes of the result behind its own, of size 1."""
        axes = result[result.index(part[0]):]
        shape = tuple(sizes[axis] if axis in part else 1 for axis in axes)
        return one if axes == part else writer.add(
            Tensor.reshape, kinds[one.value]._replace(shape=shape), one, shape)

    found, *others = map(align, given, operands)
    for one in others:
        one_kind, other = kinds[found.value], kinds[one.value]
        found = writer.add(torch.mul, one_kind._replace(
            shape=tuple(torch.broadcast_shapes(one_kind.shape, other.shape)),
            dtype=torch.promote_types(one_kind.dtype, other.dtype),
            requires_grad=call.mode.grad and one_kind.requires_grad | other.requires_grad),
            found, one)
    writer.calls[-1] = writer.calls[-1].replace(results=call.results)
    return writer.calls


def find_positions(mask: Tensor, size: int) -> Tensor:
    """Returns the positions that a mask, or an index that may be negative, takes of so many."""
    return mask.nonzero().flatten() if mask.dtype == torch.bool else mask.remainder(size)


def _select(call: Call, recording: Recording) -> list[Call]:
    """Returns the calls of x[..., index], whose index is a vector; else the call itself."""
    writer, kinds = _Writer(call, recording), recording.kinds
    (x, index), _ = pytree.tree_unflatten(list(call.leaves), call.spec)
    shape, kind = kinds[x.value].shape, kinds[call.outputs[0]]
    *others, last = list_entries(index, len(shape)) or [None]
    if not isinstance(last, Ref) or call.written or (
            kinds[last.value].dtype not in (torch.bool, torch.int64)) or (
            len(kinds[last.value].shape) != 1 or not kind.is_contiguous) or (
            others != [slice(None)] * (len(shape) - 1)):
        return [call]
    positions = writer.add(find_positions, kinds[last.value]._replace(
        shape=kind.shape[-1:], dtype=torch.int64), last, shape[-1])
    writer.add(torch.index_select, call.results, x, len(kind.shape) - 1, positions)
    return writer.calls


def _split_dropout(call: Call, recording: Recording) -> list[Call]:
    """Returns a draw for ones and a product. The draw is in the order of memory of empty_like."""
    writer, kinds, strides = _Writer(call, recording), recording.kinds, recording.strides
    if not call.is_random or call.written or len(call.inputs) != 1:
        return [call]
    x, = call.inputs
    kind = kinds[x]._replace(requires_grad=False, is_contiguous=x not in strides)
    order, back = find_order(strides[x]) if x in strides else ((), ())
    shape = tuple(kind.shape[d] for d in order) or kind.shape
    if not kinds[x].is_contiguous and kind.device.type != "cpu":
        # one kernel, which draws in another order where memory has gaps
        if not order or torch.empty(shape, device="meta").permute(back).stride() != strides[x]:
            raise Refused(f"{call.name}: expected a contiguous value on {kind.device.type}, got a "
                          f"slice; call contiguous() first", call.line)
        return [call]
    ones = writer.add(torch.ones, kind._replace(shape=shape, is_contiguous=True), shape,
                      dtype=kind.dtype, device=kind.device)
    if order:
        ones = writer.add(torch.permute, kind, ones, back)
        strides[ones.value] = strides[x]
    draw = Ref(recording.add_value(kind))
    replaced = [ones if isinstance(leaf, Ref) else leaf for leaf in call.leaves]
    writer.calls.append(call.replace(leaves=tuple(replaced), results=draw))
    writer.add(torch.mul, Ref(call.outputs[0]), Ref(x), draw)
    return writer.calls


class _Writer:
    """Writes calls of the same line and mode as another one."""

    def __init__(self, call: Call, recording: Recording) -> None:
        self.call, self.recording, self.kinds = call, recording, recording.kinds
        self.calls: list[Call] = []

    def add(self, function: Any, results: Any, *given: Any, **named: Any) -> Any:
        """Returns the results of a call: Refs, or the one of a new value of this kind."""
        if isinstance(results, Kind):
            results = Ref(self.recording.add_value(results))
        self.calls.append(make_call(function, given, results, self.call.mode, self.call.line,
                                    **named))
        return results

    def run(self, function: Any, *given: Any, width: int = 1, to: int | None = None) -> Any:
        """Returns the result of a call, of the kind of the first result of the other call; width:
        how many times as many numbers it has in a row; to: the value that it is."""
        *batch, size = self.kinds[self.call.outputs[0]].shape
        kind = self._make_kind(given)._replace(shape=(*batch, size * width), is_contiguous=True)
        return self.add(function, kind if to is None else Ref(to), *given)

    def chunk(self, gates: Ref, count: int) -> Any:
        kind = self._make_kind([gates])._replace(is_contiguous=False)
        refs = tuple(Ref(self.recording.add_value(kind)) for _ in range(count))
        return self.add(torch.chunk, refs, gates, count, 1)

    def _make_kind(self, given: Sequence[Any]) -> Kind:
        return self.kinds[self.call.outputs[0]]._replace(
            requires_grad=self.call.mode.grad and any(
                isinstance(one, Ref) and self.kinds[one.value].requires_grad for one in given))


def _write_lstm(w: _Writer, x: Any, state: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> None:
    h, c = state
    gates = w.run(torch.add, w.run(functional.linear, h, w_hh, b_hh, width=4),
                  w.run(functional.linear, x, w_ih, b_ih, width=4), width=4)
    i, f, g, o = w.chunk(gates, 4)
    kept = w.run(torch.mul, w.run(torch.sigmoid, f), c)
    new = w.run(torch.mul, w.run(torch.sigmoid, i), w.run(torch.tanh, g))
    h_value, c_value = w.call.outputs
    c = w.run(torch.add, kept, new, to=c_value)
    w.run(torch.mul, w.run(torch.sigmoid, o), w.run(torch.tanh, c), to=h_value)


def _write_gru(w: _Writer, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> None:
    r_x, u_x, n_x = w.chunk(w.run(functional.linear, x, w_ih, b_ih, width=3), 3)
    r_h, u_h, n_h = w.chunk(w.run(functional.linear, h, w_hh, b_hh, width=3), 3)
    r, u = (w.run(torch.sigmoid, w.run(torch.add, *pair)) for pair in ((r_h, r_x), (u_h, u_x)))
    n = w.run(torch.tanh, w.run(torch.add, n_x, w.run(torch.mul, n_h, r)))
    w.run(torch.add, w.run(torch.mul, w.run(torch.sub, h, n), u), n, to=w.call.outputs[0])


def _write_rnn(w: _Writer, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> None:
    total = w.run(torch.add, w.run(functional.linear, h, w_hh, b_hh),
                  w.run(functional.linear, x, w_ih, b_ih))
    function = torch.tanh if w.call.name == "rnn_tanh_cell" else torch.relu
    w.run(function, total, to=w.call.outputs[0])


_CELLS = {"lstm_cell": _write_lstm, "gru_cell": _write_gru, "rnn_tanh_cell": _write_rnn,
          "rnn_relu_cell": _write_rnn}


def _expand_cell(call: Call, recording: Recording) -> list[Call]:
    args, kwargs = pytree.tree_unflatten(list(call.leaves), call.spec)
    if kwargs:
        return [call]
    writer = _Writer(call, recording)
    _CELLS[call.name](writer, *args, *[None] * (6 - len(args)))  # biases may be missing
    return writer.calls


def _unroll(call: Call, recording: Recording) -> list[Call]:
    """Returns the calls of an operator of SpikingJelly for each step: its first arguments are a
    sequence (T, ...) and states (...), its first results the spikes and the states of all steps or
    of the last one."""
    kinds, x, refs = recording.kinds, next(iter(call.leaves), None), call.results
    if call.written or not isinstance(x, Ref) or not isinstance(refs, tuple) or None in refs:
        return [call]
    T, *size = kinds[x.value].shape
    states: list[Any] = [*itertools.takewhile(
        lambda leaf: isinstance(leaf, Ref) and kinds[leaf.value].shape == tuple(size),
        call.leaves[1:])]
    outputs = [kinds[ref.value] for ref in refs]
    if T < 2 or not size or not states or len(outputs) <= len(states) or any(
            one.shape not in ((T, *size), tuple(size)) for one in outputs):
        return [call]
    made: list[Call] = []
    steps: list[list[Ref]] = [[] for _ in outputs]

    def add(function: Any, given: Any, result: Any) -> Any:
        made.append(_replace_function(call, function, given, results=result))
        return result

    def make_part(kind: Kind) -> Ref:
        return Ref(recording.add_value(kind._replace(shape=tuple(size), is_contiguous=True)))

    for t in range(T):
        x_t = add(Tensor.__getitem__, (x, t), make_part(kinds[x.value]))
        found = add(OneStep(call.function), (x_t, *states, *call.leaves[1 + len(states):]),
                    tuple(map(make_part, outputs)))
        for part, ref in zip(steps, found, strict=True):
            part.append(ref)
        states = [steps[1 + k][-1] for k in range(len(states))]
    for ref, one, parts in zip(refs, outputs, steps, strict=True):
        is_last = len(one.shape) == len(size)
        add(Tensor.clone if is_last else torch.stack, (parts[-1] if is_last else parts,), ref)
    return made
