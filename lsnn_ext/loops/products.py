"""Products of a sequence and a matrix, event by event where the sequence is mostly zero."""
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import functional
from .._core.bits import PackedSpikes, find_bits, make_carrier
from .._core.route import choose_linear, pack_sparse_input
from .ir import Call, Ref

COPIED = 1 << 24  # numbers of a sequence that are copied at once


class Operands(NamedTuple):
    """source (..., inputs) by matrix (inputs, outputs), and what is added."""

    source: Any
    matrix: Any
    is_transposed: bool  # the matrix is (outputs, inputs), as of torch.nn.functional.linear
    added: tuple[Any, ...] = ()
    is_vector: bool = False  # whether the source must have one dimension, or a last one of size 1
    has_grad: bool = True  # whether its gradient is recorded

    @property
    def weight(self) -> Tensor:
        """The matrix as (outputs, inputs)."""
        return self.matrix if self.is_transposed else self.matrix.t()

    def compute(self) -> Tensor:
        """Returns the product of tensors; the source may be a sequence (iterations, B, ...).
        It is contiguous as that of torch, since a view may read it."""
        with torch.set_grad_enabled(self.has_grad):
            return linear(self.source, self.weight, *self.added).contiguous()

    def view(self, get_view: Callable[[Tensor], Tensor], *dims: int) -> "Operands | None":
        """Returns the product of a view of the source; None: not all of dims stay outside."""
        last = self.source.dim() - 1
        if any(dim % (last + 1) == last for dim in dims):
            return None
        with torch.set_grad_enabled(self.has_grad):
            return self._replace(source=get_view(self.source))

    def fits(self) -> bool:
        """Whether source and matrix fit; where an axis is of 1, einsum multiplies others too."""
        return (self.source.dtype, self.source.shape[-1]) == (
            self.matrix.dtype, self.weight.shape[1])

    def then(self, weight: Tensor) -> "Operands":
        """Returns the product of this product and weight (outputs, inputs): by the product of both
        matrices, where this is less work."""
        inner = self.weight
        n, m, k = len(weight), *inner.shape
        rows = self.source.numel() // max(k, 1)
        if n * k * (rows + m) > rows * m * (k + n):
            return Operands(self.compute(), weight, True)
        added = tuple(weight @ one.expand(m) for one in self.added)
        return Operands(self.source, weight @ inner, True, added)

    def detach(self) -> "Operands":
        return self._replace(has_grad=False)


class Stacked(NamedTuple):
    """Values of several iterations along any dimension, which a view may put in front again."""

    source: Tensor  # in the order of the kernels in memory
    has_grad: bool = True

    def compute(self) -> Tensor:
        """Returns the tensor, contiguous as that of torch."""
        with torch.set_grad_enabled(self.has_grad):
            return self.source.contiguous()

    def view(self, get_view: Callable[[Tensor], Tensor], *dims: int) -> "Stacked":
        with torch.set_grad_enabled(self.has_grad):
            return self._replace(source=get_view(self.source))


def list_operands(call: Call, leaves: Sequence[Any]) -> list[Operands]:
    """Returns how a call may be read as a product, if its matrix has two dimensions."""
    name = call.name
    if name not in ("linear", "addmm", "einsum", "matmul", "mm", "mv", "bmm", "__matmul__"):
        return []
    args, kwargs = pytree.tree_unflatten(list(leaves), call.spec)
    if name == "linear":
        given = bind(args, kwargs, "input", "weight", "bias")
        if given is None or len(given) < 2:
            return []
        return [Operands(given[0], given[1], True, tuple(one for one in given[2:]
                                                        if one is not None))]
    if name == "addmm":
        given = bind(args, kwargs, "input", "mat1", "mat2")
        return [Operands(given[1], given[2], False, (given[0],))] if given else []
    if kwargs or len(args) < 2:
        return []
    if name == "einsum":
        return _list_einsum(args)
    return [Operands(args[0], args[1], False), Operands(args[1], args[0], True, is_vector=True)]


def _list_einsum(args: Sequence[Any]) -> list[Operands]:
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    if not isinstance(args[0], str) or len(operands) != 2:
        return []
    found = re.fullmatch(r"([a-zA-Z.]+),([a-zA-Z.]+)->([a-zA-Z.]+)", args[0].replace(" ", ""))
    if found is None:
        return []
    a, b, out = found.groups()

    def is_product(a: str, b: str) -> bool:
        new, letters = b.replace(a[-1], ""), a.replace("...", "")
        return (len(b) == 2 and len(new) == 1 and new not in a and out == a[:-1] + new
                and len(set(letters)) == len(letters))

    return [Operands(source, matrix, b[1] == a[-1]) for a, b, source, matrix in (
        (a, b, *operands), (b, a, *reversed(operands))) if is_product(a, b)]


class Argument(NamedTuple):
    """A place among the leaves of a call."""

    number: int


@functools.lru_cache(4096)
def list_places(call: Call) -> list[Operands]:
    """Returns list_operands with an Argument for each tensor, read once for all runs of a call."""
    if len(call.outputs) != 1 or any(call.mode.autocast):
        return []
    return list_operands(call, [Argument(k) if isinstance(leaf, Ref) else leaf
                                for k, leaf in enumerate(call.leaves)])


def find_operands(call: Call, leaves: Sequence[Any]) -> Operands | None:
    """Returns a call as a product by a matrix of two dimensions; None: it is another call. leaves:
    tensors and constants, with anything in the place of the source."""
    def take(one: Any) -> Any:
        return leaves[one.number] if isinstance(one, Argument) else one

    for source, matrix, is_transposed, added, is_vector, _ in list_places(call):
        matrix, added = take(matrix), tuple(map(take, added))
        if _has_dims(matrix, 2) and all(_has_dims(other, 1) for other in added):
            return Operands(take(source), matrix, is_transposed, added, is_vector, call.mode.grad)
    return None


def _has_dims(one: Any, dims: int) -> bool:
    return isinstance(one, Tensor) and one.dim() == dims


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns functional.linear of a sequence (iterations, B, ...). One with the batch in front in
    memory is read as bits, or copied in parts, or not at all."""
    if (bits := find_events(x, weight)) is not None:
        return functional.linear(bits, weight, bias)
    if x.dim() < 3 or x.is_contiguous():
        return functional.linear(x, weight, bias)
    if (bits := pack_sparse_input(x, x.dtype)) is not None:
        return functional.linear(bits, weight, bias)
    if x.transpose(0, 1).is_contiguous():
        return functional.linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
    made = [functional.linear(part, weight, bias)
            for part in x.split(max(1, COPIED // max(1, x[0].numel())))]
    return made[0] if len(made) == 1 else torch.cat(made)


def find_events(x: Tensor, weight: Tensor) -> PackedSpikes | None:
    """Returns spikes of a component with their bits where these are the faster to multiply."""
    bits = find_bits(x)
    if bits is None or choose_linear(x, weight)[0] != "events":
        return None
    return bits._replace(carrier=_Carrier.apply(x))


class _Carrier(torch.autograd.Function):
    """A carrier of the gradient of spikes, whose numbers are not kept until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return make_carrier(x, *x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def bind(args: Sequence[Any], kwargs: Mapping[str, Any], *names: str) -> list[Any] | None:
    """Returns the arguments of these names; None: there are others."""
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    for name in ("alpha", "beta"):
        if given.get(name) == 1:
            del given[name]
    if len(args) > len(names) or not set(given) <= set(names):
        return None
    return [given[name] for name in names if name in given]


def list_entries(index: Any, dims: int) -> list[Any]:
    """Returns the entries of an index of a tensor of so many dimensions, with slices for `...`."""
    entries = [*index] if type(index) is tuple else [index]  # a Slot is one entry
    if Ellipsis in entries:
        k = entries.index(Ellipsis)
        entries[k : k + 1] = [slice(None)] * (dims - len(entries) + entries.count(None) + 1)
    return entries
