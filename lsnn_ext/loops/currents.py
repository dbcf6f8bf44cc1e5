"""Currents: what enters the neurons of a component from outside."""
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._core.route import choose_linear, pack_sparse_input
from .ir import Now, Numbers, Slot, Varying
from .products import Operands, find_events, linear
from .reader import Current, FirstTerms, LaterTerm, Product
from .recurrence import Recurrence
from .values import Place


class RunInputs(NamedTuple):
    """The arguments of a run."""

    iterations: int
    # by slot from outside, (n, ...) where they differ by iteration, an Operands for
    # Currents.projected; and by value from before the loop
    tensors: Mapping[Slot | int, Any]


class Currents:
    def __init__(self, found: Recurrence) -> None:
        self.found = found
        self.options = found.options
        self.projected = self._find_projected()

    def _find_projected(self) -> Any:
        """Returns what the operator may project itself: the only term that differs by row."""
        found, reader = self.found, self.found.reader
        current = next(iter(found.currents))
        if found.copies > 1 or len(found.currents) > 1 or found.width(current.shape) > 1 or any(
                isinstance(one, FirstTerms) for one in current.others):
            return None
        others = [one for one in current.others
                  if not isinstance(one, int | float) and not (
                      reader.is_invariant(one) and found.is_per_neuron(
                          reader.kind_of(one).shape, current.shape, ""))]
        if len(others) != 1:
            return None
        source = others[0].source if isinstance(others[0], Product) else others[0]
        is_sequence = isinstance(source, Now | Varying) and not reader.is_invariant(source)
        return others[0] if is_sequence else None

    def may_project(self, slot: Slot) -> bool:
        """Whether the operator may compute a product in this place."""
        one = self.projected
        return slot == (one.source if isinstance(one, Product) else one)

    def make(self, given: RunInputs, is_projecting: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns x, w_in and bias of functional.recurrent; or x only, the current itself."""
        product = self._find_product(given) if is_projecting else None
        if product is not None:
            return self._project(product, given)
        currents = [self._join(shared, lambda one: self.make_current(one, given),
                               3 if self.found.width(shared[0].shape) > 1 else 2)
                    for shared in self.list_shared()]
        return currents[0] if len(currents) == 1 else torch.cat(
            [one if one.dim() == 4 else one.unsqueeze(2) for one in currents], 2), {}

    def _find_product(self, given: RunInputs) -> Operands | None:
        one = self.projected
        if isinstance(one, Product):
            source: Any = given.tensors[one.source]  # type: ignore[index]
            weight = slice_matrix(one, given.tensors)
            one = source.then(weight) if isinstance(source, Operands) else Operands(
                source, weight, True)
        else:
            one = given.tensors.get(one)
        if not isinstance(one, Operands) or one.source.dim() != 3:
            return None
        sizes = one.source.shape[1], len(one.weight), one.source.dtype, one.weight.dtype
        if sizes != (self.found.rows, *self.found.sizes, *[self.found.dtype] * 2):
            return None
        x = one.source if one.has_grad else one.source.detach()
        is_shifted = next(iter(self.found.currents)).shift and len(x) > 1
        if not is_shifted and (bits := find_events(x, one.weight)) is not None:
            return one._replace(source=bits)
        if x.is_contiguous() and not is_shifted:
            return one._replace(source=x)
        bits = pack_sparse_input(x, x.dtype)
        if bits is None and not x.is_contiguous() and x.shape[2] > sizes[1] and (
                choose_linear(x, one.weight)[0] != "events"):
            return None  # it takes longer to copy than the product
        if bits is None:
            return one._replace(source=_shift(x) if is_shifted else x.contiguous())
        return one._replace(source=bits._replace(bits=_shift(bits.bits)) if is_shifted else bits)

    def _project(self, product: Operands, given: RunInputs) -> tuple[Tensor, dict[str, Tensor]]:
        current = next(iter(self.found.currents))
        w_in, *added = (one if product.has_grad else one.detach()
                        for one in (product.weight, *product.added))
        for one in current.others:
            if isinstance(one, int | float):
                added.append(torch.tensor(one, **self.options))
            elif one is not self.projected:
                added.append(make_coefficient(self.found, given.tensors[one], current.shape))
        bias = {"bias": reduce(torch.add, added).expand(*self.found.sizes)} if added else {}
        return product.source, {"w_in": w_in, **bias}

    def list_shared(self) -> list[list[Current]]:
        """Returns the currents of the kernels: at most one of each population."""
        by_name = {name: one for one, name in self.found.currents.items()}
        return [[by_name[name] for name in names.values()]
                for names in self.found.shared_currents.values()]

    def _join(self, shared: Sequence[Current], make: Callable[[Current], Tensor],
              dim: int) -> Tensor:
        return self.found.populations.join({one.population: make(one) for one in shared}, dim)

    def make_current(self, current: Current, given: RunInputs) -> Tensor:
        """Returns a current (n, B, N), or (n, B, K, N) with an axis of its own."""
        shape = current.shape
        first = [one.values for one in current.others if isinstance(one, FirstTerms)]
        later = [one.term for one in current.others if isinstance(one, LaterTerm)]
        parts = [one for one in current.others if not isinstance(one, FirstTerms | LaterTerm)]
        x = self._add_terms(parts, shape, given)
        if first:
            n, x = len(first[0]), x.expand(given.iterations, *x.shape[1:])
            head = torch.cat([self._arrange(given.tensors[one], shape) for one in first[0]])
            x = torch.cat([x[:n] + head[:len(x)], x[n:] + self._add_terms(later, shape, given)])
        retiming = self.found.retiming
        if retiming.groups > 1:
            x = retiming.split(x.expand(given.iterations, *x.shape[1:]))
        if current.shift and len(x) > 1:
            x = _shift(x, current.shift)
        return x.expand(given.iterations * retiming.groups, *x.shape[1:])

    def _add_terms(self, terms: Sequence[Any], shape: tuple[int, ...], given: RunInputs) -> Tensor:
        """Returns a sum of terms (n, B, N) or (n, B, K, N); n = 1: the same in each iteration."""
        zero = torch.zeros((), **self.options)
        made = reduce(torch.add, [self._make_term(one, shape, given) for one in terms] or [zero])
        width = self.found.width(shape)
        return made.expand(made.shape[0] if made.dim() else 1, self.found.rows,
                           *(width,) * (width > 1), self.found.size(shape))

    def _arrange(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns values of the loop as (n, B, N), or with an axis of its own (n, B, K, N)."""
        found, width = self.found, self.found.width(shape)
        tensor = found.turn(tensor).to(**self.options)
        tensor = tensor.reshape(-1, found.rows, found.size(shape) * width)
        return tensor if width == 1 else found.put_axis_last(tensor, width).transpose(2, 3)

    def _make_term(self, one: Any, shape: tuple[int, ...], given: RunInputs) -> Tensor:
        """Returns a term as _add_terms, or with dimensions of size 1."""
        width, size = self.found.width(shape), shape[-1] if shape else 0
        if isinstance(one, int | float):
            return torch.tensor(one, **self.options)
        if isinstance(one, Numbers):
            values = torch.tensor(one.values[:given.iterations], **self.options)
            return values.view(-1, *(1,) * (2 + (width > 1)))
        slot: Any = one.source if isinstance(one, Product) else one
        tensor = given.tensors[slot]
        tensor = tensor.compute() if isinstance(tensor, Operands) else tensor
        tensor = tensor[None] if self.found.reader.is_invariant(slot) else tensor
        is_arranged = False
        if isinstance(one, Product):
            weight = slice_matrix(one, given.tensors)
            is_arranged = width > 1 and len(weight) == size == self.found.size(shape) * width
            if is_arranged:  # in the order of the result, which need not be copied then
                weight = self.found.put_axis_last(weight.t(), width).transpose(1, 2).flatten(1).t()
            tensor = linear(tensor, weight)
        if tensor.numel() != len(tensor) * prod(shape):
            missing = (1,) * (len(shape) + 1 - tensor.dim())
            tensor = tensor.reshape(len(tensor), *missing, *tensor.shape[1:]).expand(-1, *shape)
        if is_arranged:
            return tensor.to(**self.options).reshape(len(tensor), self.found.rows, width, -1)
        return self._arrange(tensor, shape)

    def make_weights(self, given: RunInputs) -> tuple[Tensor | None, tuple[int, ...]]:
        """Returns w_rec for each delay, and the delays in steps."""
        blocks: dict[tuple[int, Current, int, Place], Tensor] = {}
        for current in self.found.currents:
            width = self.found.width(current.shape)
            for product in current.products:
                source: Any = product.source
                matrix = self.found.put_axis_last(slice_matrix(product, given.tensors).t(), width)
                for k in range(width):
                    key, one = (source.lag - 1, current, k, source[:2]), matrix[..., k]
                    blocks[key] = blocks[key] + one if key in blocks else one
        if not blocks:
            return None, ()
        delays = tuple(sorted({delay for delay, *_ in blocks}))

        def join(delay: int, k: int, current: Current) -> Tensor:
            """Returns the weights from all neurons to those of a current."""
            size = self.found.size(current.shape)
            parts = [torch.zeros(inputs, size, **self.options) if (
                part := blocks.get((delay, current, k, one))) is None else part
                for one, inputs in zip(self.found.emitted, self.found.sizes, strict=True)]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        rows = [[self._join(shared, partial(join, delay, k), 1) for shared in self.list_shared()
                 for k in range(self.found.width(shared[0].shape))] for delay in delays]
        each = [row[0] if len(row) == 1 else torch.stack(row) for row in rows]
        return each[0] if len(each) == 1 else torch.stack(each), delays


def _shift(x: Tensor, steps: int = 1) -> Tensor:
    """Returns the inputs of steps ahead; the last ones have none, and no reader."""
    return torch.cat([x[steps:], *[x[-1:]] * steps])


def make_coefficient(found: Recurrence, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a coefficient of shape (), (N,) or (N, K)."""
    tensor = tensor.to(**found.options)
    if tensor.numel() == 1:
        return tensor.reshape(())
    if found.is_turned(shape):
        return tensor.reshape(-1)
    behind = shape[found.split(shape, ""):]
    tensor = tensor.reshape(tensor.shape[max(tensor.dim() - len(behind), 0):])
    width = found.width(shape)
    tensor = tensor.expand(behind).reshape(-1)
    return tensor if width == 1 else found.put_axis_last(tensor, width)


def slice_matrix(product: Product, tensors: Mapping[Slot | int, Tensor]) -> Tensor:
    """Returns the part (outputs, inputs) of the matrix, times those of further products."""
    found = _transpose(product.matrix, product.is_transposed, tensors)
    found = found[:, product.first : product.last]
    for matrix, is_transposed in product.then:
        found = _transpose(matrix, is_transposed, tensors) @ found
    found = found if product.sign > 0 else -found
    if product.positions is not None:
        wide = found.new_zeros(len(found), product.inputs)
        return wide.index_add(1, tensors[product.positions], found)
    return pad(found, product.part) if any(product.part) else found


def _transpose(matrix: Slot, is_transposed: bool, tensors: Mapping[Slot | int, Tensor]) -> Tensor:
    """Returns a matrix as (outputs, inputs), without axes of size 1 in front."""
    one = tensors[matrix]
    one = one if one.dim() == 2 else one.reshape(one.shape[-2:])
    return one if is_transposed else one.t()
