"""Memory: which live tensors share memory, and which parts of it they are."""
import re
import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._core.torch_internals import find_storage
from ..codegen.gradients import differentiate
from ..codegen.plain import find_layout
from .functions import FLAGS, find_line
from .indexing import Index
from .ir import Ref, Refused


class Part(NamedTuple):
    """What an index takes of a tensor."""

    taken: Index
    layout: tuple[Any, ...]  # of the whole tensor in memory

    @classmethod
    def of(cls, tensor: Tensor, index: Any) -> "Part | None":
        """Returns None for an index of another kind."""
        found = Index.of(index, tensor.shape)
        return None if found is None else cls(found, find_layout(tensor))

    def is_apart(self, other: "Part | None") -> bool:
        """Whether no number belongs to both."""
        return other is not None and self.layout == other.layout and any(
            set(numbers).isdisjoint(other.taken.numbers.get(axis, numbers))
            for axis, numbers in self.taken.numbers.items())


class Live:
    """A live tensor, its value, and its version then."""

    __slots__ = ("part", "tensor", "value", "version", "whole")

    def __init__(self, tensor: Tensor, value: int) -> None:
        self.tensor = weakref.ref(tensor)
        self.value, self.version = value, tensor._version
        self.part: Part | None = None  # a view of this part of another tensor
        # x, the index of x[index], and whether it was made in the mode of gradients
        self.whole: tuple[weakref.ref[Tensor], Any, bool] | None = None


UNSEEN_WRITE = "a tensor was written to outside of the calls of torch that can be seen"


class Memory:
    """The live tensors of a recording."""

    def __init__(self) -> None:
        self.tensors: dict[int, Live] = {}  # by id
        # by storage and id; a dead tensor stays until another one has its id
        self._sharing: defaultdict[int, dict[int, weakref.ref[Tensor]]] = defaultdict(dict)
        self._writers: dict[int, weakref.ref[Tensor]] = {}  # by storage
        self._kept: defaultdict[int, list[weakref.ref[Tensor]]] = defaultdict(list)  # as well
        self.has_new_versions = False  # without a write; the backward pass compares them

    def add(self, tensor: Tensor, value: int) -> None:
        """Adds a tensor, or gives it a new value."""
        self.tensors[id(tensor)] = Live(tensor, value)
        self._sharing[find_storage(tensor)][id(tensor)] = weakref.ref(tensor)

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Adds tensors whose memory no call may write to any more."""
        for one in tensors:
            self._kept[find_storage(one)].append(weakref.ref(one))

    def check_versions(self, before: dict[int, tuple[Tensor, int]]) -> None:
        """Refuses a write that no call has made. before: tensors and their versions, by id."""
        live = {id(one): (one, known.version) for known in self.tensors.values()
                if (one := known.tensor()) is not None}
        if any(one._version != version for one, version in {**before, **live}.values()):
            raise Refused(UNSEEN_WRITE, find_line())

    def forget(self, tensor: Tensor) -> None:
        """Takes a tensor out, until it is added again."""
        del self.tensors[id(tensor)], self._sharing[find_storage(tensor)][id(tensor)]

    def find_whole(self, view: Any) -> tuple[Tensor, Any] | None:
        """Returns x and the index of a live x[index] in the memory of a live x; None: it is none,
        or torch refuses writes to it in the mode at hand."""
        live = self.tensors.get(id(view))
        one = None if live is None else live.tensor()
        if live is None or one is None or one is not view or live.whole is None:
            return None
        ref, index, has_grad = live.whole
        whole = ref()
        if whole is None or find_storage(whole) != find_storage(one) or (
                has_grad != torch.is_grad_enabled()):
            return None
        return whole, index

    def note_parts(self, name: str, args: Any, given: Sequence[Tensor],
                   results: Sequence[Any]) -> None:
        """Notes that x[index] is a part of x; a view of a part belongs to it."""
        if not given or (name != "__getitem__" and self.tensors[id(given[0])].part is None):
            return
        part = self.tensors[id(given[0])].part or Part.of(given[0], args[1])
        has_whole = name == "__getitem__" and not any(isinstance(one, Ref) for one in
                                                      pytree.tree_leaves(args[1]))
        for one in results:
            if one is not None and find_storage(one) == find_storage(given[0]):
                live = self.tensors[id(one)]
                live.part = part
                live.whole = (weakref.ref(given[0]), args[1],
                              torch.is_grad_enabled()) if has_whole else None

    def find_parameter(self, tensor: Tensor) -> Tensor | None:
        """Returns the leaf of autograd whose data a tensor without gradient is."""
        found = (one() for one in self._sharing[find_storage(tensor)].values())
        return next((one for one in found if one is not None and _is_learned(one)
                     and find_storage(one) == find_storage(tensor)
                     and find_layout(one) == find_layout(tensor)), None)

    def check_write(self, name: str, tensor: Tensor, args: Any,
                    parameter: Tensor | None = None) -> None:
        """Raises Refused where a write changes a live tensor besides this one and its parameter."""
        storage = find_storage(tensor)
        if name in FLAGS:
            self._follow_version(tensor)
            return
        kept = (one() for one in self._kept.get(storage, ()))
        if any(one is not None and find_storage(one) == storage for one in kept):
            raise Refused(f"{name}: expected no write to a tensor that an autograd.Function keeps; "
                          f"call ctx.save_for_backward")
        part = Part.of(tensor, args[1]) if name == "__setitem__" else None
        for other in self._sharing[storage].values():
            one = other()
            if one is None or one is tensor or one is parameter or find_storage(one) != storage:
                continue
            live = self.tensors[id(one)]
            if part is None or not part.is_apart(live.part):
                raise Refused(f"{name}: expected no write to a tensor that shares its memory with "
                              f"another one, as a view does")
            live.version = tensor._version
        self._writers[storage] = weakref.ref(tensor)

    def _follow_version(self, tensor: Tensor) -> None:
        """Gives all views of its base the version that a call without a write has made."""
        before = self.tensors[id(tensor)].version
        self.has_new_versions |= tensor._version != before
        for other in self._sharing[find_storage(tensor)].values():
            one = other()
            if one is not None and _find_base(one) is _find_base(tensor) and (
                    live := self.tensors[id(one)]).version == before:
                live.version = tensor._version

    def is_outdated(self, tensor: Tensor) -> bool:
        """Whether another tensor in the memory of this one was written to."""
        writer = self._writers.get(find_storage(tensor))
        one = None if writer is None else writer()
        return one is not None and find_storage(one) == find_storage(tensor)


def _find_base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _is_learned(tensor: Tensor) -> bool:
    try:
        return tensor.requires_grad and tensor.is_leaf
    except RuntimeError:  # a view made under no_grad, whose base was written to
        return False


def find_version(tensor: Tensor) -> tuple[int, bool]:
    """Returns the state of a tensor that each write changes."""
    return tensor._version, tensor.requires_grad


def check_backward(outputs: Sequence[Tensor], live: Sequence[Tensor]) -> None:
    """Refuses a write to a tensor that the backward pass needs: a replay copies what it writes to,
    and would return a gradient.

    Args:
        outputs: with gradient.
        live: leaves of the recording.
    """
    leaves = [one for one in live if one.requires_grad and not one._backward_hooks]
    try:
        # a view of a parameter that is made under no_grad requires a gradient, too
        made = [one for one in outputs if one.grad_fn is not None]
        if made and leaves:
            differentiate(made, leaves, list(map(torch.ones_like, made)))
    except RuntimeError as error:
        raise Refused(f"expected a backward pass without errors, got "
                      f"{re.split(', which is| Hint:', str(error))[0]}") from error
