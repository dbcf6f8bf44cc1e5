"""Reader: what the calls of a recurrent component read, and which are products or sums."""
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.nn.functional import batch_norm
from torch.utils import _pytree as pytree

from . import ir
from .functions import get_name
from .integers import find_number
from .ir import Before, Fixed, Kind, Loop, Now, Refused, Slot, Varying
from .products import bind, list_entries, list_operands

ADDS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})
SUBTRACTS = frozenset({"sub", "subtract", "__sub__", "sub_", "__isub__"})
# Functions whose result has the same numbers in the same order, if it has as many.
COPIES = frozenset({
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous", "clone",
    "expand", "to", "float", "double",
    "__getitem__", "unbind", "stack", "chunk", "split",
    "sum", "mean", "amax", "amin"})  # over axes of size 1

TURNS = frozenset({"t", "T", "transpose", "swapaxes", "permute", "movedim", "moveaxis"})
NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "rms_norm"})
SPLITS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "__getitem__"})


class Read(NamedTuple):
    """A value of the component, as it is read."""

    position: int
    output: int
    lag: int = 0  # iterations before
    initial: tuple[int, ...] = ()  # as of Before


class Product(NamedTuple):
    """A product of a value by inputs first, ..., last - 1 of an invariant matrix."""

    source: "Read | Slot"
    matrix: Slot
    is_transposed: bool  # (outputs, inputs), as of torch.nn.functional.linear
    first: int
    last: int
    then: tuple[tuple[Slot, bool], ...] = ()  # matrices of products of this product
    part: tuple[int, int] = (0, 0)  # how many numbers of the source are in front, and behind
    sign: int = 1
    positions: "Slot | None" = None  # which numbers of the source are multiplied

    @property
    def inputs(self) -> int:
        """How many numbers the source has."""
        return sum(self.part) + self.last - self.first


class FirstTerms(NamedTuple):
    """Values that are added in the first iterations, one each."""

    values: tuple[int, ...]


class LaterTerm(NamedTuple):
    """A term that is added in the iterations after those of FirstTerms."""

    term: Any


class Current(NamedTuple):
    products: tuple[Product, ...]
    others: tuple[Any, ...]  # slots, numbers, and products of sequences from outside
    shape: tuple[int, ...]  # to which they are broadcast
    shift: int  # steps that the calls that read it run ahead
    population: int  # of these calls


Term: TypeAlias = Read | Slot | Product | FirstTerms | LaterTerm | float


class Name(NamedTuple):
    """An argument of a call of the step."""

    name: str
    dtype: torch.dtype
    has_new_axis: bool = False  # of size 1, behind that of the neurons
    has_first_axis: bool = False  # of size 1, before that of the batch: (1, B, N)
    number: int | None = None  # which all its numbers are


class StepCall(NamedTuple):
    """A call of the step."""

    call: ir.Call
    leaves: tuple[Any, ...]  # as of the call, with a Name for each tensor
    results: tuple[str, ...]
    is_copy: bool = False
    is_sum: bool = False  # of the leaves
    widths: tuple[int, ...] = ()  # of the results
    parts: tuple[slice, ...] = ()  # results that are parts of an argument, along its own axis


def is_affine(call: ir.Call) -> bool:
    """Whether a call is a BatchNorm that does not train."""
    args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
    training = {**dict(zip(("training",), args[5:], strict=False)), **kwargs}.get("training")
    return call.function is batch_norm and training is False


def find_invariants(loop: Loop) -> frozenset[int]:
    """Returns the positions whose results are the same in each iteration."""
    found: set[int] = set()
    for position, (call, slots) in enumerate(loop.body):
        if not call.is_random and all(
                isinstance(slot, Fixed) or (isinstance(slot, Now) and slot.position in found)
                for slot in slots if isinstance(slot, Slot)):
            found.add(position)
    return frozenset(found)


class Reader:
    def __init__(self, loop: Loop, positions: Sequence[int], recording: ir.Recording) -> None:
        self.loop, self.recording, self.kinds = loop, recording, recording.kinds
        self._kinds: dict[tuple[int, int], Kind] = {}
        self.inside = frozenset(positions)
        self.invariant = find_invariants(loop)
        self.reads = Counter(slot.position for _, slots in loop.body for slot in slots
                             if isinstance(slot, Now | Before))
        self.has_grad = any(loop.body[p].call.mode.grad for p in positions)

    def kind(self, position: int, output: int) -> Kind:
        """Returns the kind of a result; requires_grad: in some iteration."""
        place = position, output
        if place not in self._kinds:
            self._kinds[place] = self._common([made[position][output] for made in self.loop.made])
        return self._kinds[place]

    def _common(self, values: Sequence[int]) -> Kind:
        return self.kinds[values[-1]]._replace(
            requires_grad=any(self.kinds[value].requires_grad for value in values))

    def kind_of(self, slot: Any) -> Kind:
        if isinstance(slot, Now | Before):
            kind = self.kind(slot.position, slot.output)
            initial = slot.initial if isinstance(slot, Before) else ()
            return kind._replace(requires_grad=kind.requires_grad or any(
                self.kinds[value].requires_grad for value in initial))
        return self.kinds[slot.value] if isinstance(slot, Fixed) else self._common(slot.values)

    def is_invariant(self, slot: Any) -> bool:
        return isinstance(slot, Fixed) or (isinstance(slot, Now)
                                           and slot.position in self.invariant)

    def find_integer(self, slot: Any) -> int | None:
        """Returns the integer that all numbers of an argument are in each iteration and call."""
        if not self.is_invariant(slot) or self.kind_of(slot).dtype.is_floating_point:
            return None
        return find_number(self.recording, self.loop.leaf(slot, 0).value)

    def read(self, slot: Any) -> Any:
        """Returns a Read of a result of the component, through copies; else the slot."""
        if not isinstance(slot, Now | Before) or slot.position not in self.inside:
            return slot
        lag, initial = (slot.lag, slot.initial) if isinstance(slot, Before) else (0, ())
        here = Read(slot.position, slot.output, lag, initial)
        seen = set()
        while here.position not in seen:
            seen.add(here.position)
            source = self.source(here.position)
            if source is None or not self.loop.body[here.position].call.mode.grad == self.has_grad:
                break
            lag, initial = (source.lag, source.initial) if isinstance(source, Before) else (0, ())
            here = Read(source.position, source.output, here.lag + lag, here.initial + initial)
        return here

    def source(self, position: int) -> Now | Before | None:
        """Returns the slot that a call copies, if it is a result of the component."""
        call, slots = self.loop.body[position]
        if len(call.outputs) != 1 or call.written:
            return None
        tensors = [slot for slot in slots if isinstance(slot, Slot)]
        is_turn = get_name(call.function) in TURNS
        if call.name in ("mul", "__mul__", "__rmul__"):  # a product with 1
            others = [slot for slot in tensors
                      if not (isinstance(slot, Fixed) and self.recording.is_one(slot.value))]
            source = others[0] if (len(others), len(tensors), len(slots)) == (1, 2, 2) else None
        else:
            source = tensors[0] if tensors and (is_turn or call.name in COPIES) else None
        if not isinstance(source, Now | Before) or source.position not in self.inside:
            return None
        before, after = self.kind(source.position, source.output), self.kind(position, 0)
        is_copy = before.dtype == after.dtype and prod(before.shape) == prod(after.shape)
        if is_turn:  # (B, N) and (N, B) have the same numbers for the kernels
            is_copy &= len(before.shape) == 2 and before.shape[0] != before.shape[1]
        if call.name == "__getitem__":
            is_copy &= all(isinstance(x, slice | int | type(None) | type(Ellipsis))
                           and not isinstance(x, bool) for x in slots[1:])
        return source if is_copy else None

    def find_parts(self, position: int) -> list[slice] | None:
        """Returns the numbers of the last axis of its argument that each result of a call has, as
        of chunk, split and x[:, :n]; None: it is another call."""
        call, slots = self.loop.body[position]
        if call.name not in SPLITS or call.written or not isinstance(slots[0], Now | Before) or (
                slots[0].position not in self.inside):
            return None
        *batch, size = self.kind_of(slots[0]).shape or (1,)
        kinds = [self.kind(position, k).shape for k in range(len(call.outputs))]
        if size == 1 or any(list(one[:-1]) != batch for one in kinds):
            return None
        if call.name == "__getitem__":
            index = pytree.tree_unflatten(slots, call.spec)[0][1]
            *others, last = list_entries(index, len(batch) + 1) or [None]
            if not isinstance(last, slice) or others != [slice(None)] * len(batch):
                return None
            first, end, step = last.indices(size)
            return [slice(first, end)] if step == 1 and end - first < size else None
        ends = [*accumulate(one[-1] for one in kinds)]
        is_split = len(ends) > 1 and ends[-1] == size
        return [*map(slice, [0, *ends[:-1]], ends)] if is_split else None

    def check_norm(self, position: int, neurons: int) -> None:
        """Refuses a LayerNorm that is not over all neurons of one population."""
        call, shape = self.loop.body[position].call, self.kind(position, 0).shape
        if shape[-1] != neurons or [*call.leaves[1:2]] not in ([neurons], [(neurons,)]):
            raise Refused(f"expected a LayerNorm over all neurons of one population, got one of "
                          f"{tuple(shape)}", call.line)

    def find_device(self, positions: Collection[int]) -> torch.device:
        devices = {self.kind(*place).device for place in self.loop.list_places(positions)}
        device = devices.pop()
        if devices or device.type not in ir.DEVICES:
            found = ", ".join(sorted(map(str, {device, *devices})))
            raise Refused(f"expected tensors on the CPU or on one GPU, got {found}",
                          self.loop.body[min(positions)].call.line)
        return device

    def find_dtype(self, positions: Collection[int]) -> torch.dtype:
        """Returns the dtype in which the kernels run calls."""
        calls = [self.loop.body[position].call for position in positions]
        for call in calls:
            if call.is_random:
                raise Refused("expected random numbers that depend on no number of the recurrence",
                              call.line)
            if any(call.mode.autocast):
                raise Refused("expected no autocast", call.line)
            if call.name in NORMS and not is_affine(call):
                raise Refused("expected calls that act on each neuron by itself, or a LayerNorm, "
                              f"got {call.name}", call.line)
            if call.name in ("__set__", "requires_grad_"):
                raise Refused("expected no change of requires_grad", call.line)
        dtypes = set()
        for position, call in zip(positions, calls, strict=True):
            dtypes |= (made := {self.kind(position, k).dtype for k in range(len(call.outputs))})
            # of integers the tracer takes those that are exact
            if any(one.is_complex or one.is_floating_point and one.itemsize < 4 for one in made):
                raise Refused(f"expected float32 or float64, got {call.name} of "
                              f"{', '.join(sorted(map(str, made)))}", call.line)
        if not any(one.is_floating_point for one in dtypes):
            raise Refused(f"expected float32 or float64, got "
                          f"{', '.join(sorted(map(str, dtypes)))}", calls[0].line)
        return torch.float64 if torch.float64 in dtypes else torch.float32

    # ------------------------------------------------------------------------------- sums
    def terms(self, position: int) -> tuple[Term, ...] | None:
        """Returns the terms of a sum, products among them; None: the call is no sum."""
        call, slots = self.loop.body[position]
        name = call.name
        if len(call.outputs) != 1 or call.mode.grad != self.has_grad:
            return None
        args, kwargs = pytree.tree_unflatten(slots, call.spec)
        if name in ADDS | SUBTRACTS:
            given = bind(args, kwargs, "input", "other")
            if given is None or not all(isinstance(one, Slot | int | float) for one in given):
                return None
            if name in ADDS:
                return tuple(map(self.read, given))
            return self._subtract(position, *given)
        for one in list_operands(call, slots):
            shape = self.kind_of(one.source).shape
            is_column = one.is_vector and len(shape) > 2 and shape[-1] == 1
            if one.is_vector and not (isinstance(self.read(one.source), Read)
                                      and (is_column or len(shape) == 1)):
                if columns := self._find_columns(one.source, one.matrix):
                    return (columns,)
                continue
            if found := self._products(one.source, one.matrix, one.is_transposed, is_column):
                return (*found, *map(self.read, one.added))
        return None

    def _subtract(self, position: int, one: Any, slot: Any) -> tuple[Term, ...] | None:
        """Returns a difference whose second term is a product of past spikes, which nothing else
        reads, as a sum."""
        other = self.read(slot)
        if not isinstance(other, Read) or other.lag or (
                self.kind(other.position, other.output).shape != self.kind(position, 0).shape) or (
                max(self.reads[slot.position], self.reads[other.position]) > 1):
            return None
        products = [term._replace(sign=-term.sign) for term in self.terms(other.position) or ()
                    if isinstance(term, Product) and isinstance(term.source, Read)]
        is_product = products and len(products) == len(self.terms(other.position) or ())
        return (self.read(one), *products) if is_product else None

    def _find_columns(self, slot: Any, matrix: Any) -> Product | None:
        """Returns the product of a matrix and values of shape (inputs, B)."""
        source = self.read(slot)
        if not isinstance(source, Read) or not self.is_invariant(matrix):
            return None
        shapes = self.kind_of(matrix).shape, self.kind_of(slot).shape
        is_product = [len(one) for one in shapes] == [2, 2] and shapes[1][0] != shapes[1][1]
        return Product(source, matrix, True, 0, shapes[1][0]) if is_product else None

    def _products(self, slot: Any, matrix: Any, is_transposed: bool,
                  is_column: bool) -> list[Term]:
        """Returns the product of a value, or one of each part of a concatenation."""
        source = self.read(slot)
        sizes = self.kind_of(matrix).shape if self.is_invariant(matrix) else ()
        is_matrix = len(sizes) == 2 or (len(sizes) > 2 and prod(sizes) == prod(sizes[-2:]))
        if not is_matrix or not isinstance(source, Read | Fixed | Now | Before | Varying):
            return []
        if not isinstance(source, Read):
            inputs = self.kind_of(source).shape[-1]
            fits = inputs == sizes[-1 if is_transposed else -2]
            return [Product(source, matrix, is_transposed, 0, inputs)] if fits else []
        call, slots = self.loop.body[source.position]
        shape = self.kind(source.position, source.output).shape
        if shape == self.kind(slot.position, slot.output).shape and not source.lag and (
                series := self._multiply(self.terms(source.position) or (), matrix, is_transposed)):
            return series
        if call.name not in ("cat", "concat", "concatenate") or source.lag:
            # of another shape, as a view has it, the product is one along another axis
            size = self.kind(slot.position, slot.output).shape[-2 if is_column else -1]
            return [self._of_whole(Product(source, matrix, is_transposed, 0, size))]
        args, kwargs = pytree.tree_unflatten(slots, call.spec)
        given = bind(args, kwargs, "tensors", "dim")
        if given is None or len(given) != 2 or given[1] not in (-1, len(shape) - 1):
            return []
        found: list[Term] = []
        first = 0
        for part in given[0]:
            last = first + self.kind_of(part).shape[-1]
            found.append(Product(self.read(part), matrix, is_transposed, first, last))
            first = last
        return found

    def _of_whole(self, product: Product) -> Product:
        """Returns the product of a part of a value, such as z[:, :n], as one of the value."""
        source: Any = product.source
        call, slots = self.loop.body[source.position]
        if call.name == "index_select" and not source.lag and self.is_invariant(slots[2]) and (
                isinstance(whole := self.read(slots[0]), Read)):
            size, inputs = self.kind_of(slots[0]).shape[-1], product.last
            if slots[1] == len(self.kind_of(slots[0]).shape) - 1 and (
                    self.kind(source.position, 0).shape[-1] == inputs):
                return product._replace(source=whole, part=(0, size - inputs), positions=slots[2])
        parts = self.find_parts(source.position)
        whole = self.read(self.loop.body[source.position].slots[0]) if parts else None
        if parts is None or source.lag or not isinstance(whole, Read):
            return product
        part, size = parts[source.output], self.kind(whole.position, whole.output).shape[-1]
        if part.stop - part.start != product.last:  # a view of it is multiplied
            return product
        return product._replace(source=whole, part=(part.start, size - part.stop))

    def _multiply(self, terms: Sequence[Term], matrix: Any, is_transposed: bool) -> list[Term]:
        """Returns the product of a sum of products, a term each; empty: the sum is another one."""
        found: list[Term] = []
        size = self.kind_of(matrix).shape[-1 if is_transposed else -2]
        for one in terms:
            if isinstance(one, Product):
                found.append(one._replace(then=(*one.then, (matrix, is_transposed))))
            elif isinstance(one, Read) and not one.lag and (
                    self.kind(one.position, one.output).shape[-1:] == (size,)) and (
                    inner := self._multiply(self.terms(one.position) or (), matrix,
                                            is_transposed)):
                found += inner
            elif isinstance(one, Fixed | Now) and self.is_invariant(one) and (
                    self.kind_of(one).shape == (size,)):
                found.append(Product(one, matrix, is_transposed, 0, size))
            else:
                return []
        return found if any(isinstance(one, Product) and one.then for one in found) else []
