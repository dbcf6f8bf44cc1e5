"""The values of one run of a plan: of plain calls, and of loops over all iterations."""
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._core.torch_internals import find_storage
from .ir import Before, Call, Fixed, Mode, Now, Numbers, Ref, Refused, Varying
from .products import Operands, Stacked, bind, find_operands

SUMS = frozenset({"sum", "mean"})  # whose order is that of memory
MOVES = frozenset({"transpose", "swapaxes", "movedim", "permute"})  # of axes
MOST_RANGES = 8  # of a stack: the gradient of each has the size of the sequence

Place = tuple[int, int]  # position in the body and output


def run_call(call: Call, values: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Returns what a call makes of these values, by value."""
    leaves = [values[leaf.value] if isinstance(leaf, Ref) else leaf for leaf in call.leaves]
    return zip(call.outputs, call.run(leaves), strict=True)


def find_turned(values: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yields strides of values with dimensions in another order in memory. Raises Refused."""
    for value, one in values:
        used = [stride for stride, n in zip(one.stride(), one.shape, strict=True) if n > 1]
        kept = [stride for stride in used if stride]
        if kept != sorted({*kept}, reverse=True):
            if kept != used or len({*kept}) < len(kept):
                raise Refused("expected a draw of dimensions in the order of memory, got an "
                              "expanded or unfolded tensor; call contiguous() first")
            yield value, one.stride()


def find_order(strides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Returns the dimensions in the order of memory, and the permutation back."""
    order = sorted(range(len(strides)), key=lambda d: -strides[d])
    return order, [*map(order.index, range(len(order)))]


def match_strides(tensor: Tensor, strides: tuple[int, ...] | None) -> Tensor:
    """Returns the tensor with the dimensions in memory in the order of these strides; None:
    contiguous. What draws random numbers of its kind, or views it, may depend on it."""
    if strides is None:
        return tensor.contiguous()
    if tensor.stride() == strides:
        return tensor
    order, back = find_order(strides)
    return tensor.permute(order).contiguous().permute(back)


class Layout(NamedTuple):
    """Where values are found in a run of a plan."""

    places: dict[int, tuple[int, int, Place]]  # of loops and unbind: frame, iteration, place
    ranges: dict[tuple[int, ...], list[Any]]  # of stacks of earlier runs
    exact: bool  # whether products are those of torch
    has_views: bool = False  # whether results are views of each other: products have one memory
    strides: Mapping[int, tuple[int, ...]] = {}  # as of Recording


class Values:
    """The values of a recording during a run."""

    def __init__(self, leaves: dict[int, Tensor], layout: Layout) -> None:
        self.leaves, self.tensors = leaves, dict(leaves)
        self.places, self.ranges, self.exact, self.has_views, self.strides = layout
        self.frames: dict[int, Frame] = {}  # of the loops so far, and below 0 of unbind
        self.products: dict[int, Operands | Stacked] = {}  # which are computed when they are read
        self.taken: set[int] = set()  # storages of stacks, and of what frames have views of
        self.packed: list[ref[Tensor]] = []  # spikes with bits, until the caller may write to them
        self._leaves: set[int] | None = None

    def get(self, value: int) -> Tensor:
        if value in self.products:
            self.tensors[value] = self._own(self.products.pop(value).compute())
        found = self.tensors.get(value)
        if found is None:
            frame, t, place = self.places[value]
            found = self.frames[frame].element(place, t)
        return found

    def is_shared(self, value: int, tensor: Tensor) -> bool:
        """Whether the tensor of a value is that of several iterations, or a part of it."""
        if value not in self.places:
            return False
        frame, _, place = self.places[value]
        return place in self.frames[frame].invariant or tensor._is_view()

    def free(self, key: Any) -> None:
        """Forgets a value, or the results of a call in a loop: frame and place."""
        if isinstance(key, int):
            self.tensors.pop(key, None)
            self.products.pop(key, None)
        elif key[0] in self.frames:  # a call that nothing reads does not run
            self.frames[key[0]].free(key[1])

    def run(self, call: Call) -> None:
        if call.function is torch.stack and call.mode == Mode.now() and (
                args := _parse_stack(call)) is not None:
            self._keep(call, Stacked(self.stack(args[0]).movedim(0, args[1]), call.mode.grad))
            return
        if call.outputs and call.outputs[0] in self.places:
            number, _, place = self.places[call.outputs[0]]
            dim, = _parse_dims(call, "dim") or [0]
            self.frames[number] = frame = Frame(len(call.outputs), self)
            frame.take_view(place, Fixed(call.inputs[0]), lambda one: one.movedim(dim, 0),
                            call.mode.grad, dim)
            return
        one = self.products.get(call.inputs[0]) if call.inputs else None
        if one is not None and one.has_grad == call.mode.grad and (
                view := _view(one, call)) is not None:
            self._keep(call, view)
            return
        if isinstance(one, Stacked) and call.name in SUMS and not self.exact:
            self.tensors[call.outputs[0]] = _run_on(one.source, call).contiguous()
            return
        if isinstance(one, Stacked) and one.has_grad == call.mode.grad and self._keep_product(
                call, [one.source if isinstance(leaf, Ref) and leaf.value == call.inputs[0]
                       else self._find_leaf(leaf) for leaf in call.leaves]):
            return
        leaves = [*map(self._find_leaf, call.leaves)]
        if call.is_random:
            leaves = [*map(self.match, leaves, call.leaves)]
        if not self._keep_product(call, leaves):
            self.tensors.update(zip(call.outputs, call.run(leaves), strict=True))

    def match(self, one: Any, leaf: Any) -> Any:
        """Returns an argument of a draw, which is in the order of memory, with recorded strides."""
        if not isinstance(leaf, Ref) or one is self.leaves.get(leaf.value):
            return one
        return match_strides(one, self.strides.get(leaf.value))

    def _find_leaf(self, leaf: Any) -> Any:
        return self.get(leaf.value) if isinstance(leaf, Ref) else leaf

    def _keep_product(self, call: Call, leaves: list[Any]) -> bool:
        """Keeps the result if it is a product of a matrix."""
        product = None if self.exact else find_operands(call, leaves)
        if product is None or product.source.dim() < 2 or product.is_vector or not product.fits():
            return False
        self._keep(call, product)
        return True

    def _keep(self, call: Call, product: Operands | Stacked) -> None:
        """Keeps a result that is computed when it is read."""
        self.products[call.outputs[0]] = product
        if self.has_views:
            self.get(call.outputs[0])

    def _own(self, tensor: Tensor) -> Tensor:
        """Returns the tensor, or a copy if it shares its memory with a leaf or another stack."""
        if self.is_part_of_leaf(tensor) or find_storage(tensor) in self.taken:
            tensor = tensor.clone()
        self.taken.add(find_storage(tensor))
        return tensor

    def is_part_of_leaf(self, tensor: Tensor) -> bool:
        if self._leaves is None:
            self._leaves = {find_storage(one) for one in self.leaves.values()}
        return find_storage(tensor) in self._leaves

    def stack(self, values: tuple[int, ...]) -> Tensor:
        """Stacks values of one shape along a new first dimension, without a copy of a range."""
        ranges = self.find_ranges(values)
        if len(ranges) > MOST_RANGES:
            ranges = [[*values]]
        pieces = [torch.stack([self.get(value) for value in one]) if isinstance(one, list)
                  else self.frames[one.frame].range(*one[1:]) for one in ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def find_ranges(self, values: tuple[int, ...]) -> list[Any]:
        """Returns ranges, and lists of values that no frame has."""
        if values in self.ranges:
            return self.ranges[values]
        found: list[Any] = []
        i = 0
        k = next((j for j, one in enumerate(values) if one != values[0]), 1)
        if k > 1 and values == tuple(one for one in values[::k] for _ in range(k)):
            one, *others = self.find_ranges(values[::k])
            if isinstance(one, Range) and not others:
                self.ranges[values] = [one._replace(repeats=k)]
                return self.ranges[values]
        while i < len(values):
            place = self.places.get(values[i])
            end = i + 1
            if place is None:
                while end < len(values) and values[end] not in self.places:
                    end += 1
                found.append(list(values[i:end]))
            else:
                frame, t, where = place
                after = self.places.get(values[end]) if end < len(values) else None
                step = after[1] - t if after and (after[0], after[2]) == (frame, where) else 0
                step = step or 1  # one value may follow itself
                while self.places.get(values[end] if end < len(values) else -1) == (
                        frame, t + step * (end - i), where):
                    end += 1
                found.append(Range(frame, where, t, end - i, step))
            i = end
        self.ranges[values] = found
        return found


class Range(NamedTuple):
    """Values of a frame, of iterations at equal distances."""

    frame: int
    place: Place
    first: int
    length: int
    step: int
    repeats: int = 1  # how many times each of them is there


class Frame:
    """The values of a loop, or those that unbind makes."""

    def __init__(self, iterations: int, values: Values) -> None:
        self.iterations, self.values = iterations, values
        self.invariant: dict[Place, Tensor] = {}  # the same in each iteration
        self.sequences: dict[Place, Tensor] = {}  # (iterations, ...)
        self.products: dict[Place, Operands] = {}  # sequences that are computed when they are read
        self.last: dict[Place, Tensor] = {}  # of the last iteration, where only this is read
        self._elements: dict[Place, Sequence[Tensor]] = {}
        self._columns: dict[Place, dict[int, Sequence[Tensor]]] = {}  # by distance
        # of components, before others compute the products among them; None: they are not kept
        self.inputs: dict[Any, Any] | None = None

    def free(self, place: Place) -> None:
        for values in (self.invariant, self.sequences, self.products, self.last, self._elements,
                       self._columns):
            values.pop(place, None)  # type: ignore[attr-defined]

    def take_view(self, place: Place, slot: Any, get_view: Callable[[Tensor], Tensor],
                  has_grad: bool, *dims: int) -> None:
        """Keeps a view of an argument, of a product that of its source. has_grad: whether gradients
        pass; dims: which the view moves or takes apart."""
        product = self.values.products.get(slot.value) if isinstance(slot, Fixed) else None
        if product is not None and product.has_grad == has_grad and (
                view := product.view(get_view, *dims)) is not None:
            if isinstance(view, Operands):
                self.products[place] = view
            else:
                self.sequences[place] = view.source
            return
        tensor: Any = self.fixed(slot)
        with torch.set_grad_enabled(has_grad):
            self.sequences[place] = get_view(tensor)
        self.values.taken.add(find_storage(tensor))

    def whole(self, place: Place) -> Tensor:
        """Returns a result in all iterations, (iterations, ...)."""
        if place in self.products:
            self.sequences[place] = self.products.pop(place).compute()
        return self.sequences[place]

    def find_product(self, slot: Any) -> Operands | None:
        """Returns the product of an argument in all iterations; None: it is computed already."""
        if isinstance(slot, Now):
            return self.products.get(slot[:2])
        ranges = self.values.find_ranges(slot.values) if isinstance(slot, Varying) else ()
        if len(ranges) != 1 or not isinstance(ranges[0], Range) or ranges[0][4:] != (1, 1):
            return None
        frame, place, first, length, *_ = ranges[0]
        product = self.values.frames[frame].products.get(place)
        return product and product.view(lambda one: one[first : first + length], 0)

    def fixed(self, slot: Any) -> Tensor | None:
        """Returns the tensor of an argument that is the same in each iteration, else None."""
        if isinstance(slot, Fixed):
            return self.values.get(slot.value)
        return self.invariant.get(slot[:2]) if isinstance(slot, Now) else None

    def initial(self, slot: Before) -> list[Tensor]:
        """Returns the first values, from before the loop."""
        return [self.values.get(value) for value in slot.initial]

    def sequence(self, slot: Any) -> Tensor:
        """Returns the argument in all iterations, (iterations, ...)."""
        n = self.iterations
        if (fixed := self.fixed(slot)) is not None:
            return fixed.expand(n, *fixed.shape)
        if isinstance(slot, Now):
            return self.whole(slot[:2])
        if isinstance(slot, Varying):
            return self.values.stack(slot.values)
        first = torch.stack(self.initial(slot)[:n])
        return torch.cat([first, self.range(slot[:2], 0, n - len(first), 1)])

    def elements(self, place: Place) -> Sequence[Tensor]:
        if place not in self._elements:
            # once: the gradient of each index would be as large as the sequence
            sequence = self.whole(place)
            with torch.set_grad_enabled(sequence.requires_grad):
                self._elements[place] = sequence.unbind(0)
        return self._elements[place]

    def element(self, place: Place, t: int) -> Tensor:
        if place in self.invariant:
            return self.invariant[place]
        if place in self.last:
            assert t == self.iterations - 1
            return self.last[place]
        if t == self.iterations - 1 and place not in self._elements:  # seldom one of many
            return self.whole(place)[t]
        return self.elements(place)[t]

    def at_last(self, slot: Any) -> Any:
        """Returns an argument in the last iteration, of this iteration or from before the loop."""
        if isinstance(slot, Varying | Numbers):
            last = slot.values[-1]
            return self.values.get(last) if isinstance(slot, Varying) else last
        if isinstance(slot, Fixed):
            return self.values.get(slot.value)
        return self.element(slot[:2], self.iterations - 1) if isinstance(slot, Now) else slot

    def range(self, place: Place, first: int, length: int, step: int, repeats: int = 1) -> Tensor:
        """Returns a result in iterations first, first + step, ..., each several times."""
        if repeats > 1:
            found = self.range(place, first, length, step).unsqueeze(1)
            return found.expand(-1, repeats, *found.shape[2:]).flatten(0, 1)
        if place in self.invariant:
            return self.invariant[place].expand(length, *self.invariant[place].shape)
        if place in self.last:
            return self.element(place, first)[None]
        if step < 0:
            return self.range(place, first + step * (length - 1), length, -step).flip(0)
        if step > 1 and not self.iterations % step:
            return self.columns(place, step)[first % step].narrow(0, first // step, length)
        found = self.whole(place)
        return found if length == len(found) else found[first :: step][:length]

    def columns(self, place: Place, step: int) -> Sequence[Tensor]:
        """Returns the results of iterations k, k + step, ... for each k < step."""
        found = self._columns.setdefault(place, {})
        if step not in found:  # once, as in elements()
            sequence = self.whole(place)
            with torch.set_grad_enabled(sequence.requires_grad):
                found[step] = sequence.unflatten(0, (-1, step)).unbind(1)
        return found[step]


def _view(one: Operands | Stacked, call: Call) -> Operands | Stacked | None:
    """Returns a view of what is computed later; None: the call is none, or reads its order."""
    if isinstance(one, Stacked):
        return one.view(lambda tensor: _run_on(tensor, call)) if call.name in MOVES else None
    if call.name == "transpose":
        dims = _parse_dims(call, "dim0", "dim1")
        return one.view(lambda tensor: tensor.transpose(*dims), *dims)
    if call.name == "__getitem__":  # a step, for its shape
        index = pytree.tree_unflatten(call.leaves, call.spec)[0][1]
        index = index if isinstance(index, tuple) else (index,)
        if all(type(entry) is int or entry == slice(None) for entry in index):
            return one.view(lambda tensor: tensor[index], *range(len(index)))
    return None


def _run_on(tensor: Tensor, call: Call) -> Tensor:
    """Returns the result of a call of one tensor for another tensor."""
    return call.run([tensor if isinstance(leaf, Ref) else leaf for leaf in call.leaves])[0]


def _parse_dims(call: Call, *names: str) -> list[int]:
    """Returns the given ones of the dimensions of a view."""
    given = bind(*pytree.tree_unflatten(call.leaves, call.spec), "input", *names) or []
    return given[1:]


@functools.lru_cache(1024)
def _parse_stack(call: Call) -> tuple[tuple[int, ...], int] | None:
    """Returns values and dimension of torch.stack."""
    given = bind(*pytree.tree_unflatten(call.leaves, call.spec), "tensors", "dim")
    if not given or not given[0] or isinstance(given[0], Ref):
        return None
    refs, dim = (*given, 0)[:2]
    return tuple(ref.value for ref in refs), dim
